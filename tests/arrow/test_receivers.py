"""Which rows of a read still count at its end."""

from __future__ import annotations

import random
import struct
import threading
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbframe.arrow import current_rows
from cbframe.arrow.current_rows import ARRIVED, VERSION, CurrentRows, newest
from cbframe.arrow.receivers import DeferringBatchReceiver, ended_collection
from cbframe.core import COMPILED
from cbframe.dcp.positions import VBucketMetaData, VBucketOffset
from cbframe.dcp.receiver import Receipt
from cbframe.errors import ConnectError
from cbframe.wire.constants import Opcode, SnapshotFlag, SystemEventId
from cbframe.wire.framing import request
from cbframe.wire.messages import FailoverEntry, SystemEvent, encode_leb128
from tests.wire.pipeline import block_of

M, D, E = Opcode.DCP_MUTATION, Opcode.DCP_DELETION, Opcode.DCP_EXPIRATION
EXTRAS = {
    M: lambda seqno: struct.pack(">QQIIIHB", seqno, 1, 0, 0, 0, 0, 0),
    D: lambda seqno: struct.pack(">QQH", seqno, 1, 0),
    E: lambda seqno: struct.pack(">QQI", seqno, 1, 0),
}
Item = tuple[int, int, str, Opcode, int]
"""vbucket, seqno, key, opcode, collection."""


def put(receiver: DeferringBatchReceiver, *items: Item) -> None:
    data = bytearray()
    for vbucket, seqno, key, opcode, collection in items:
        data += request(
            opcode,
            vbucket=vbucket,
            extras=EXTRAS[opcode](seqno),
            key=encode_leb128(collection) + key.encode(),
            value=b"%d" % seqno if opcode == M else b"",
        ).encode()
    block = block_of(bytes(data), collections=True)
    receiver.take_block(block, Receipt(0, int))


def m(vbucket: int, seqno: int, key: str, collection: int = 0) -> Item:
    return vbucket, seqno, key, M, collection


def run(*steps: object) -> list[tuple[str, int]]:
    """What is left after steps: a list is a block; others are what they say, with a vbucket first."""
    receiver = DeferringBatchReceiver()
    play(receiver, *steps)
    arrived = [batch for batch, _ in receiver.take(0)]
    found, *others = (left(receiver, arrived, rows) for rows in (1, 3, 1000))
    assert all(other == found for other in others)
    return found


def left(receiver: DeferringBatchReceiver, arrived: list[pa.RecordBatch], rows: int) -> list[tuple[str, int]]:
    """Documents that count, where they wait in batches of so many rows."""
    numbers = np.repeat(np.arange(len(arrived)), [len(batch) for batch in arrived])
    table = pa.Table.from_batches(arrived, receiver.schema).append_column(ARRIVED, pa.array(numbers))
    batches = table.combine_chunks().to_batches(max_chunksize=rows)
    current = CurrentRows([lambda batch=batch: batch for batch in batches], receiver)  # type: ignore[misc]
    found = []
    for number, heads in enumerate(batches):
        mask = current.mask(number, heads) & (heads["_cb_opcode"].to_numpy() == Opcode.DCP_MUTATION)
        some = heads.filter(pa.array(mask))
        keys, seqnos = some["_cb_key"].to_pylist(), some["_cb_seqno"].to_pylist()
        found += [(key.decode(), seqno) for key, seqno in zip(keys, seqnos, strict=True)]
    return found


def play(receiver: DeferringBatchReceiver, *steps: object) -> None:
    for step in steps:
        match step:
            case ("snapshot", int(vbucket)):
                receiver.snapshot_start(vbucket, 0, 0, 0)
            case ("history", int(vbucket)):
                receiver.snapshot_start(vbucket, 0, 0, SnapshotFlag.DISK | SnapshotFlag.HISTORY)
            case ("duplicates", int(vbucket)):
                receiver.snapshot_start(vbucket, 0, 0, SnapshotFlag.MAY_CONTAIN_DUPLICATE_KEYS)
            case ("rollback", int(vbucket)):
                receiver.rollback(vbucket, 0)
            case ("event", int(vbucket), int(seqno), int(kind), int(cid)):
                event = SystemEvent(vbucket, seqno, kind, 0, "c", b"", 7, 0, cid)
                receiver.system_event(vbucket, event)
            case list():
                put(receiver, *step)


def dropped(vbucket: int, seqno: int, collection: int) -> tuple[object, ...]:
    return "event", vbucket, seqno, int(SystemEventId.DROP_COLLECTION), collection


def created(vbucket: int, seqno: int, collection: int) -> tuple[object, ...]:
    return "event", vbucket, seqno, int(SystemEventId.CREATE_COLLECTION), collection


S0, S1 = ("snapshot", 0), ("snapshot", 1)
R0 = ("rollback", 0)
LATER = [m(0, 3, "a", 8), m(0, 4, "b", 8)]


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([], []),
        ([S0, [m(0, 1, "a"), m(0, 2, "b")]], [("a", 1), ("b", 2)]),
        # a newer version in a later snapshot, in the same block or in another
        ([S0, [m(0, 1, "a")], S0, [m(0, 2, "a")]], [("a", 2)]),
        ([S0, S0, [m(0, 1, "a"), m(0, 2, "a")]], [("a", 2)]),
        ([S0, [m(0, 1, "a"), m(0, 2, "b")], S0, [m(0, 3, "a")]], [("b", 2), ("a", 3)]),
        # a deletion takes the document away, a new mutation brings it back
        ([S0, [(0, 1, "a", D, 0), m(0, 2, "b")]], [("b", 2)]),
        ([S0, [m(0, 1, "a")], S0, [(0, 2, "a", D, 0)]], []),
        ([S0, [m(0, 1, "a")], S0, [(0, 2, "a", E, 0)]], []),
        ([S0, [m(0, 1, "a")], S0, [(0, 2, "a", D, 0)], S0, [m(0, 3, "a")]], [("a", 3)]),
        # the same key in another vbucket's block or another collection is another document
        ([S0, S0, [m(0, 1, "a"), m(0, 2, "a", 8)]], [("a", 1), ("a", 2)]),
        ([S0, S0, [m(0, 1, "a", 8), m(0, 2, "a", 9), m(0, 3, "a", 8)]], [("a", 2), ("a", 3)]),
        # a deletion in one vbucket while another has two snapshots
        ([S0, S1, S1, [(0, 1, "a", D, 0), m(1, 1, "b"), m(1, 2, "b")]], [("b", 2)]),
        # all before a rollback is rolled back, in its vbucket only
        ([S0, S1, [m(0, 1, "a"), m(1, 1, "b")], R0], [("b", 1)]),
        ([S0, [m(0, 1, "a"), m(0, 2, "x")], R0, S0, [m(0, 1, "a")]], [("a", 1)]),
        ([S0, [m(0, 5, "a")], R0, S0, [m(0, 2, "a")]], [("a", 2)]),
        ([S0, [m(0, 5, "a")], R0, S0, [(0, 2, "a", D, 0)]], []),
        ([S0, [m(0, 5, "a")], R0, S0, [m(0, 4, "a")], R0, S0, [m(0, 3, "a")]], [("a", 3)]),
        ([R0, S0, [m(0, 1, "a")]], [("a", 1)]),
        # a snapshot may say that it holds several versions
        ([("history", 0), [m(0, 1, "a"), m(0, 2, "a")]], [("a", 2)]),
        ([("duplicates", 0), [m(0, 1, "a"), m(0, 2, "a"), (0, 3, "a", D, 0), m(0, 4, "b")]], [("b", 4)]),
        # a collection that is dropped in one vbucket is gone from all of them
        (
            [S0, S1, [m(0, 1, "a", 8), m(0, 2, "b", 9), m(1, 1, "c", 8)], dropped(0, 3, 8), [m(0, 4, "d")]],
            [("b", 2), ("d", 4)],
        ),
        ([S0, [m(0, 1, "a")], dropped(0, 2, 0)], []),
        # one that is created is new
        ([S0, [m(0, 1, "a")], created(0, 2, 8), [m(0, 3, "b", 8)]], [("a", 1), ("b", 3)]),
        # so what it had before is gone: in this vbucket, and there only
        (
            [
                S0,
                S1,
                [m(0, 1, "a", 8), m(0, 2, "b", 9), m(1, 1, "c", 8)],
                created(0, 3, 8),
                [m(0, 4, "d", 8)],
            ],
            [("b", 2), ("c", 1), ("d", 4)],
        ),
        # what was rolled back does not come to count by it: the events come again, elsewhere
        (
            [S0, [m(0, 1, "x")], created(0, 6, 8), [m(0, 7, "a", 8)], R0, S0, created(0, 1, 8), LATER],
            [("a", 3), ("b", 4)],
        ),
        # the version before it does not count either where there are several
        ([S0, S0, [m(0, 1, "a", 8)], created(0, 3, 8), [m(0, 4, "a", 8)], created(0, 5, 8)], []),
    ],
)
def test_what_survives(steps: list[object], expected: list[tuple[str, int]]) -> None:
    assert run(*steps) == expected


@pytest.mark.parametrize(
    ("kind", "existed", "ends"),
    [
        (SystemEventId.DROP_COLLECTION, True, True),
        (SystemEventId.DROP_COLLECTION, False, True),
        (SystemEventId.CREATE_COLLECTION, True, True),  # it was emptied
        (SystemEventId.CREATE_COLLECTION, False, False),
        (SystemEventId.MODIFY_COLLECTION, True, False),
        (SystemEventId.DROP_SCOPE, True, False),
    ],
)
def test_events_that_end_the_documents_of_a_collection(kind: int, existed: bool, ends: bool) -> None:
    event = SystemEvent(0, 5, int(kind), 0, "c", b"", 7, 0, 8)
    assert ended_collection(event, existed=existed) == (8 if ends else None)


@pytest.mark.parametrize("seed", range(40))
def test_against_a_plain_dictionary(seed: int) -> None:
    rng = random.Random(seed)
    steps: list[object] = []
    expected: dict[tuple[int, int, str], int] = {}
    seqnos = dict.fromkeys(range(3), 0)
    for _ in range(rng.randint(1, 30)):
        action = rng.random()
        vbucket = rng.randrange(3)
        if action < 0.1:
            steps.append(("rollback", vbucket))
            expected = {name: seqno for name, seqno in expected.items() if name[0] != vbucket}
            seqnos[vbucket] = 0
            continue
        steps.append(("snapshot", vbucket))
        items = []
        for key in rng.sample("abcdef", rng.randint(1, 6)):
            seqnos[vbucket] += rng.randint(1, 3)
            opcode, collection = rng.choice((M, M, M, D, E)), rng.choice((0, 8))
            # A key lives in one vbucket only.
            name = f"{key}{vbucket}"
            items.append((vbucket, seqnos[vbucket], name, opcode, collection))
            if opcode == M:
                expected[vbucket, collection, name] = seqnos[vbucket]
            else:
                expected.pop((vbucket, collection, name), None)
        steps.append(items)
    found = run(*steps)
    assert sorted(found) == sorted((name, seqno) for (_, _, name), seqno in expected.items())


def test_position_and_metadata() -> None:
    receiver = DeferringBatchReceiver()
    assert receiver.position(3) == VBucketOffset()
    receiver.store(3, VBucketMetaData(0, 0, 2, 2**64 - 1, (FailoverEntry(7, 0),)))
    put(receiver, m(3, 2, "a"), m(4, 9, "b"), m(3, 2**64 - 1, "c"))
    assert receiver.position(3) == VBucketOffset(2**64 - 1, 2, 2**64 - 1, ((7, 0),))
    assert receiver.position(4) == VBucketOffset.at(0, 9)
    assert receiver.rollback(3, 1) == receiver.position(3) == VBucketOffset()
    assert receiver.position(4) == VBucketOffset.at(0, 9)


def test_take_waits_for_a_batch() -> None:
    receiver = DeferringBatchReceiver()
    assert receiver.take(0) == []
    thread = threading.Thread(target=lambda: put(receiver, m(0, 1, "a")))
    thread.start()
    batches = receiver.take(20)
    thread.join()
    assert [batch.num_rows for batch, _ in batches] == [1]
    assert receiver.take(0) == []


def test_the_last_error_is_kept() -> None:
    receiver = DeferringBatchReceiver()
    error = ConnectError("x")
    receiver.on_error(error)
    assert receiver.last_error is error


rows = st.lists(
    st.tuples(
        st.sampled_from([b"", b"a", b"b", b"ab", b"a\0", b"k" * 40]),
        st.sampled_from([0, 8, 2**32 - 1]),
        st.sampled_from([0, 1, 2, 2**63, 2**64 - 1]),
    ),
    max_size=30,
)


@given(some=rows, cut=st.integers(0, 30))
def test_the_newest_of_each_document(some: list[tuple[bytes, int, int]], cut: int) -> None:
    """As a dictionary finds them, with both cores; of versions with one seqno it is the last."""
    best: dict[tuple[bytes, int], int] = {}
    for row, (key, collection, seqno) in enumerate(some):
        before = best.setdefault((key, collection), row)
        if seqno >= some[before][2]:
            best[key, collection] = row
    kinds = (pa.binary(), pa.uint32(), pa.uint64())
    columns = zip(VERSION, kinds, strict=True)
    arrays = {
        name: pa.chunked_array([pa.array(part, kind) for part in (values[:cut], values[cut:])], kind)
        for (name, kind), values in zip(columns, [[row[i] for row in some] for i in range(3)], strict=True)
    }
    for core in dict.fromkeys((None, COMPILED)):
        with patch.object(current_rows, "COMPILED", core):
            assert np.flatnonzero(newest(pa.table(arrays))).tolist() == sorted(best.values())
