"""What can be seen of a source while it runs."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from cbframe.dcp import messages
from cbframe.dcp.receiver import Receipt
from cbframe.dcp.stats import VBucketPhase
from cbframe.errors import AuthFailError
from cbframe.local import LocalCluster
from cbframe.testing import RecordingReceiver
from cbframe.wire.blocks import DataBlock

from .test_source import LONG, filled, source_of, until


class Holding:
    """Holds all documents until it is let go."""

    def __init__(self) -> None:
        self.receipts: list[Receipt] = []
        self.came = threading.Condition()
        self.errors: list[Exception] = []

    def take_block(self, block: DataBlock, receipt: Receipt) -> None:
        with self.came:
            self.receipts.append(receipt)
            self.came.notify_all()

    def on_error(self, error: Any) -> None: ...
    def snapshot_start(self, vbucket: int, start: int, end: int, flags: int) -> None: ...
    def set_metadata(self, vbucket: int, metadata: bytes) -> None: ...
    def get_metadata(self, vbucket: int) -> tuple[bytes | None, int]:
        return None, 0

    def rollback(self, vbucket: int, seqno: int) -> None: ...


def test_a_source_says_its_state() -> None:
    with filled() as cluster:
        source = source_of(cluster, RecordingReceiver())
        assert (source.state, source.bounded, source.bucket) == ("new", True, "default")
        assert len(source.vbucket_table()) == 0
        with source:
            assert source.state in {"running", "complete"}
            source.wait(LONG)
            assert source.state == "complete"
        assert source.state == "complete"
        table = source.vbucket_table()
        assert (table.phase == VBucketPhase.DONE).all()
        assert {vb: int(seqno) for vb, seqno in enumerate(table.seqno)} == cluster.high_seqnos()
        assert (table.high == table.seqno).all()


def test_a_source_without_an_end_is_closed() -> None:
    with filled() as cluster:
        receiver = RecordingReceiver()
        source = source_of(cluster, receiver, seq_end=None)
        with source:
            until(receiver, lambda: sum(map(len, receiver.documents.values())) > 0)
            assert source.state == "running"
            assert not source.bounded
        assert source.state == "closed"
        assert source.problems() == ()


def test_a_failed_source_says_why_once() -> None:
    with LocalCluster(vbuckets=4) as cluster:
        source = source_of(cluster, RecordingReceiver(), password="wrong")
        with source, pytest.raises(AuthFailError):
            source.wait(LONG)
        assert source.state == "failed"
        [problem] = source.problems()
        assert problem.kind == "AuthFailError"
        assert problem.hint
        assert "wrong" not in (problem.message + problem.hint).replace("wrong user", "")


def test_a_cut_connection_is_a_problem_with_a_place_and_a_time() -> None:
    with filled() as cluster:
        receiver = RecordingReceiver()
        source = source_of(cluster, receiver, seq_end=None)
        with source:
            until(receiver, lambda: receiver.values().keys() >= {b"k3999"})
            before = source.stats().at
            cluster.cut(1)
            until(receiver, lambda: len(receiver.errors) == 1)
            [problem] = source.problems()
            assert problem.at >= before
            assert problem.node == source.map.nodes[1]  # type: ignore[union-attr]
            assert problem.message == receiver.errors[0].message


def test_seqnos_are_asked_for() -> None:
    with filled() as cluster:
        receiver = RecordingReceiver()
        source = source_of(cluster, receiver, seq_end=None, vbuckets=[2])
        source.sample_seqnos()  # nothing is connected: nobody is asked
        with source:
            until(receiver, lambda: len(receiver.documents[2]) > 0)
            cluster.bulk_load((b"more%d" % n, b"{}") for n in range(500))
            wanted = cluster.high_seqnos()
            told = threading.Event()
            handle = source._coordinator.handle

            def spy(event: messages.Event, now: float, received: int) -> list[messages.Instruction]:
                instructions = handle(event, now, received)
                if isinstance(event, messages.NodeSampled):
                    told.set()
                return instructions

            source._coordinator.handle = spy  # type: ignore[method-assign]
            source.sample_seqnos()
            assert told.wait(LONG)
            source.close()
        table = source.vbucket_table()
        owner = table.owner[2]
        # Of the node that was connected to; the other one has not told.
        for vb, high in enumerate(table.high.tolist()):
            assert high == (wanted[vb] if table.owner[vb] == owner else -1)
        assert table.phase.tolist() == [0, 0, VBucketPhase.WAITING, 0, 0, 0, 0, 0]


def test_what_is_not_consumed_fills_the_window() -> None:
    with filled() as cluster:
        receiver = Holding()
        source = source_of(cluster, receiver, seq_end=None, feed_buffer_size_bytes=100_000)
        with source:
            with receiver.came:
                assert receiver.came.wait_for(
                    lambda: sum(r.nbytes for r in receiver.receipts) > 180_000, LONG
                )
                held = sum(receipt.nbytes for receipt in receiver.receipts)
            windows = source.windows()
            assert len(windows) == 2
            assert sum(window.held for window in windows.values()) >= held
            assert max(window.fill for window in windows.values()) > 0.8
