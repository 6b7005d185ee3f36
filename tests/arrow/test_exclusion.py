"""Which documents a read leaves out, and that no older version of them takes their place."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from test_receivers import E, m, put

from cbframe.arrow.columns import KEY, OPCODE
from cbframe.arrow.current_rows import (
    ARRIVED,
    EXPIRED,
    TRANSACTION_RECORD,
    CurrentRows,
    LeftOut,
    has_expired,
    of_transactions,
)
from cbframe.arrow.receivers import DeferringBatchReceiver
from cbframe.wire.constants import Opcode


def test_keys_of_transactions() -> None:
    keys = [b"_txn:atr-1", b"_txn:", b"_txn", b"x_txn:", b"_Txn:a", b"", b"\xff_txn:", b"_txn:\xff"]
    want = [True, True, False, False, False, False, False, True]
    for array in (pa.array(keys), pa.chunked_array([keys[:3], keys[3:]])):
        assert of_transactions(array).tolist() == want
    assert of_transactions(pa.array(["_txn:a", "a", "_tx"])).tolist() == [True, False, False]
    assert of_transactions(pa.array([], pa.binary())).tolist() == []


def test_expiries() -> None:
    expiry = np.array([0, 1, 99, 100, 101, 2**32 - 1], np.uint32)
    assert has_expired(expiry, 100).tolist() == [False, True, True, False, False, False]
    assert not has_expired(expiry, 0).any()
    # Seconds go beyond 32 bits some day.
    assert has_expired(expiry, 2**33).tolist() == [False, True, True, True, True, True]


@pytest.mark.parametrize("mark", [EXPIRED, TRANSACTION_RECORD])
def test_a_marked_version_hides_older_ones(mark: int) -> None:
    """A marked version that is deleted later is no document that was left out."""
    receiver = DeferringBatchReceiver()
    receiver.snapshot_start(3, 0, 4, 1)
    put(receiver, m(3, 1, "a"), m(3, 2, "b"), m(3, 3, "c"))
    receiver.snapshot_start(3, 5, 7, 1)
    put(receiver, m(3, 5, "a"), m(3, 6, "c"), (3, 7, "c", E, 0))
    batches = [
        _marked(batch, mark, number) if number else batch.append_column(ARRIVED, pa.array([0] * len(batch)))
        for number, (batch, _) in enumerate(receiver.take(0))
    ]
    current = CurrentRows([lambda batch=batch: batch for batch in batches], receiver)  # type: ignore[misc]
    table = pa.concat_tables(
        pa.Table.from_batches([batch]).filter(
            pa.array(current.mask(number, batch) & (batch[OPCODE].to_numpy() != Opcode.DCP_EXPIRATION))
        )
        for number, batch in enumerate(batches)
    )
    assert dict(zip(table[KEY].to_pylist(), table[OPCODE].to_pylist(), strict=True)) == {
        b"a": mark,
        b"b": Opcode.DCP_MUTATION,
    }
    left_out = LeftOut.of(table[OPCODE].to_numpy())
    assert left_out == (LeftOut(1, 0) if mark == EXPIRED else LeftOut(0, 1))
    assert left_out + LeftOut(2, 3) == LeftOut(2 + left_out.expired, 3 + left_out.transaction_records)


def _marked(batch: pa.RecordBatch, mark: int, number: int) -> pa.RecordBatch:
    opcode = batch.column(OPCODE).to_numpy()
    marked = np.where(opcode == Opcode.DCP_MUTATION, np.uint8(mark), opcode)
    columns = {name: batch.column(name) for name in batch.schema.names} | {OPCODE: pa.array(marked)}
    marked_batch = pa.RecordBatch.from_arrays([*columns.values()], schema=batch.schema)
    return marked_batch.append_column(ARRIVED, pa.array([number] * len(batch)))


def test_marks_are_no_opcodes() -> None:
    opcodes = np.array([*Opcode], np.uint16)
    opcodes = opcodes[opcodes < 256].astype(np.uint8)
    assert not {EXPIRED, TRANSACTION_RECORD} & {*opcodes.tolist()}
