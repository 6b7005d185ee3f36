"""What a receiver may do: hold back its acknowledgements, and close the source that calls it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cbframe.dcp.receiver import (
    AdaptedReceiver,
    DeferringReceiver,
    Document,
    Handover,
    MergingHandover,
    Receipt,
)
from cbframe.dcp.source import BucketDataSource
from cbframe.errors import CbframeError, ReadCancelledError
from cbframe.local import LocalCluster
from cbframe.scan.changes import Switch
from cbframe.testing import RecordingReceiver
from cbframe.wire.blocks import DataBlock
from cbframe.wire.constants import Datatype, Opcode
from cbframe.wire.messages import join_xattrs
from tests.wire.pipeline import block_of

from .test_source import LONG, source_of, until

WINDOW = 64 * 1024
LARGEST = 20_000
DOCUMENTS = 400
NODES = 2


class Sleeper(RecordingReceiver):
    """Takes documents and keeps the receipts until it is woken."""

    def __init__(self) -> None:
        super().__init__()
        self.receipts: list[Receipt] = []
        self.awake = False
        self.taken = 0

    def take_block(self, block: DataBlock, receipt: Receipt) -> None:
        with self.changed:
            self.taken += receipt.nbytes
            for row, vbucket in enumerate(block.vbucket.tolist()):
                self.documents[vbucket][block.key(row)] = block.value(row)  # type: ignore[assignment]
                self.seqnos[vbucket] = int(block.seqno[row])
            if not self.awake:
                self.receipts.append(receipt)
            self.changed.notify_all()
        if self.awake:
            receipt.done()

    @property
    def held(self) -> int:
        return sum(receipt.nbytes for receipt in self.receipts)

    def wake_up(self) -> None:
        """Consume, on the caller's thread, what was held back; and all that comes, at once."""
        with self.changed:
            self.awake = True
            receipts, self.receipts = self.receipts, []
        for receipt in receipts:
            receipt.done()

    def found(self) -> dict[bytes, Any]:
        return {key: value for docs in self.documents.values() for key, value in docs.items()}


def document(n: int) -> bytes:
    return b'{"n":%d,"pad":"%s"}' % (n, b"x" * (LARGEST - 100 if n % 10 == 0 else 2000))


def full(**fields: Any) -> LocalCluster:
    cluster = LocalCluster(nodes=NODES, vbuckets=8, seed=1, **fields).start()
    cluster.bulk_load((b"k%d" % n, document(n)) for n in range(DOCUMENTS))
    return cluster


def test_which_receivers_defer() -> None:
    assert isinstance(Sleeper(), DeferringReceiver)
    assert not isinstance(RecordingReceiver(), DeferringReceiver)


def test_a_receipt_is_done_once() -> None:
    acknowledged: list[int] = []
    receipt = Receipt(7, acknowledged.append)
    assert repr(receipt) == "<Receipt of 7 bytes>"
    receipt.done()
    receipt.done()
    assert acknowledged == [7]
    assert repr(receipt) == "<Receipt of 7 bytes, done>"


def test_a_consumer_that_sleeps() -> None:
    with full(noop_interval=0.05) as cluster:
        receiver = Sleeper()
        never = threading.Event()
        deadline = time.monotonic() + LONG
        with source_of(cluster, receiver, feed_buffer_size_bytes=WINDOW) as source:
            # Each node asks five times whether the client lives, and hangs up if one has no answer.
            while min((s.tot_upr_noop for s in source.stats().nodes.values()), default=0) < 5:
                assert time.monotonic() < deadline
                never.wait(0.01)
            stats = source.stats()
            assert stats.total.tot_worker_connect_ok == NODES
            # A node sends while less than the window is out; markers and the like are counted too.
            bound = NODES * (WINDOW + LARGEST)
            assert WINDOW < receiver.held == receiver.taken < bound
            handshake_and_markers = 20_000
            assert stats.total.bytes_received - receiver.held < handshake_and_markers
            receiver.wake_up()
            source.wait(LONG)
            assert source.stats().total.tot_worker_connect_ok == NODES
        assert receiver.found() == {b"k%d" % n: document(n) for n in range(DOCUMENTS)}
        assert not receiver.errors
        assert receiver.taken > 3 * bound


def test_a_source_whose_consumer_sleeps_can_be_closed() -> None:
    with full() as cluster:
        receiver = Sleeper()
        with source_of(cluster, receiver, feed_buffer_size_bytes=WINDOW) as source:
            until(receiver, lambda: receiver.held > 1.8 * WINDOW)
            held, windows = receiver.held, source.windows()
            assert len(windows) == NODES
            assert sum(window.held for window in windows.values()) >= held
            assert max(window.fill for window in windows.values()) > 0.8
        with pytest.raises(ReadCancelledError):
            source.wait(0)
        receiver.wake_up()  # nobody waits for these any more


def test_receipts_of_a_connection_that_is_gone_mean_nothing_to_the_next() -> None:
    with full() as cluster:
        receiver = Sleeper()
        with source_of(cluster, receiver, feed_buffer_size_bytes=WINDOW) as source:
            until(receiver, lambda: receiver.held > NODES * WINDOW)
            for node in range(NODES):
                cluster.cut(node)
            until(receiver, lambda: receiver.held > 2 * NODES * WINDOW)
            receiver.wake_up()
            source.wait(LONG)
        assert receiver.found() == {b"k%d" % n: document(n) for n in range(DOCUMENTS)}


class Closing(RecordingReceiver):
    """Closes its source in a callback."""

    source: BucketDataSource

    def __init__(self, callback: str) -> None:
        super().__init__()
        self.callback = callback
        self.closed = threading.Event()

    def _close(self, callback: str) -> None:
        if callback == self.callback:
            self.source.close()  # from the node's thread, or from the one that looks after all
            self.closed.set()

    def data_update(self, *arguments: Any) -> None:
        super().data_update(*arguments)
        self._close("data_update")

    def get_metadata(self, vbucket: int) -> tuple[bytes | None, int]:
        self._close("get_metadata")
        return super().get_metadata(vbucket)

    def on_error(self, error: CbframeError) -> None:
        super().on_error(error)
        self._close("on_error")


def nothing(cluster: LocalCluster) -> None:
    pass


@pytest.mark.parametrize(
    ("callback", "before"),
    [("data_update", nothing), ("get_metadata", nothing), ("on_error", lambda cluster: cluster.close())],
    ids=["documents", "metadata", "no seed answers"],
)
def test_a_callback_may_close_the_source(callback: str, before: Callable[[LocalCluster], Any]) -> None:
    with full() as cluster:
        receiver = Closing(callback)
        receiver.source = source = source_of(cluster, receiver, seq_end=None)
        before(cluster)
        source.start()
        assert receiver.closed.wait(LONG)
        with pytest.raises(ReadCancelledError):
            source.wait(LONG)
        source.close()
        assert repr(source).startswith("<BucketDataSource 'default' closed")


def test_the_parts_of_a_document() -> None:
    value = join_xattrs({"u": b"2"}, b"{}")
    document = Document(Opcode.DCP_MUTATION, Datatype.JSON | Datatype.XATTR, 1, 1, 0, 0, 0, value)
    assert (document.xattrs, document.body, document.value) == ({"u": b"2"}, b"{}", value)
    plain = document._replace(datatype=1, value=b"{}")
    assert (plain.xattrs, plain.body) == ({}, b"{}")
    # Without values only the datatype is there.
    empty = document._replace(value=b"")
    assert (empty.xattrs, empty.body) == ({}, b"")


def test_documents_without_values_are_not_compressed() -> None:
    """A real node marks what it leaves out as it has it stored."""
    data = bytearray((Path(__file__).parent.parent / "golden" / "disk_no_value.1.s2c.bin").read_bytes())
    block = block_of(bytes(data), collections=False)
    assert (block.datatype & Datatype.SNAPPY).any()
    receiver = RecordingReceiver()
    AdaptedReceiver(receiver).on_block(block)
    documents = [document for found in receiver.documents.values() for document in found.values()]
    assert {document.datatype for document in documents} == {0, Datatype.JSON, Datatype.JSON | Datatype.XATTR}
    assert {document.value for document in documents} == {b""}


# --- from many threads to one: nothing is lost, and news take room once


def test_a_wait_lasts_until_there_is_enough() -> None:
    items: Handover[str] = Handover()
    items.enough = 10
    items.put("a", 4)
    items.put("b", 5)
    woken = threading.Event()
    found: list[str] = []

    def take() -> None:
        found.extend(items.take(20))
        woken.set()

    assert items.take(0.0) == ["a", "b"]  # all that is there, when the time is over
    items.put("c", 9)
    thread = threading.Thread(target=take)
    thread.start()
    assert not woken.wait(0.05)
    items.put("d", 1)
    assert woken.wait(20)
    thread.join()
    assert found == ["c", "d"]


def test_a_wait_for_enough_ends_when_woken() -> None:
    items: Handover[str] = Handover()
    items.enough = 10
    items.put("a", 1)
    items.wake()
    assert items.take(20) == ["a"]


def test_news_replace_what_waits_of_the_same_key() -> None:
    items: MergingHandover[str] = MergingHandover()
    items.news(1, "a")
    items.news(2, "b")
    items.news(1, "c")
    assert items.take() == ["c", "b"]
    items.news(1, "d")
    items.put("e", [1])
    items.news(1, "f")
    items.news(2, "g")
    items.put("h", [2])
    items.news(1, "i")
    assert items.take() == ["d", "e", "i", "g", "h"]
    assert items.take() == []


def test_however_long_nobody_comes_news_take_room_once() -> None:
    items: MergingHandover[int] = MergingHandover()
    for n in range(10_000):
        items.news(n % 7, n)
    assert sorted(items.take()) == list(range(9993, 10_000))


def test_a_wait_ends_with_an_item_or_when_woken() -> None:
    items: MergingHandover[int] = MergingHandover()
    items.wait(0.0)
    thread = threading.Thread(target=lambda: items.put(1, ()))
    thread.start()
    items.wait(20)
    thread.join()
    assert items.take() == [1]
    items.wake()
    items.wait(20)
    assert items.take() == []


def test_many_threads() -> None:
    items: MergingHandover[tuple[int, int]] = MergingHandover()

    def work(number: int) -> None:
        for n in range(500):
            items.put((number, n), [number])
            items.news(number, (number, -n))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    found: list[tuple[int, int]] = []
    while any(thread.is_alive() for thread in threads):
        found += items.take()
    found += items.take()
    for number in range(4):
        mine = [n for who, n in found if who == number]
        assert [n for n in mine if n > 0] == list(range(1, 500))
        assert mine[-1] == -499


def test_a_switch_puts_off() -> None:
    switch = Switch()
    done: list[int] = []
    switch.when_off(lambda: done.append(1))
    assert done == [1]
    switch.on()
    assert switch
    switch.when_off(lambda: done.append(2))
    switch.on()
    switch.when_off(lambda: done.append(3))
    assert done == [1]
    switch.off()
    assert not switch
    assert done == [1, 2, 3]
    switch.off()
    assert done == [1, 2, 3]
