"""Which rows of a read still count at its end."""

from __future__ import annotations

import struct
import threading

import pytest

from cbframe.arrow.receivers import DeferringBatchReceiver, ended_collection
from cbframe.dcp.positions import VBucketMetaData, VBucketOffset
from cbframe.dcp.receiver import Receipt
from cbframe.errors import ConnectError
from cbframe.wire.constants import Opcode, SystemEventId
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
