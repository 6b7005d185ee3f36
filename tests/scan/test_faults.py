"""Cuts, moves, failovers and rollbacks in the middle of a read: the result is the truth, or an error."""

from __future__ import annotations

import itertools
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import pytest
from worlds import Version, either_version  # noqa: F401 - a fixture that is used by itself

from cbframe import LocalCluster, read_bucket, scan_bucket
from cbframe.errors import CbframeError, ConnectError, RollbackError, StreamError
from cbframe.local.dcp import Producer
from cbframe.local.node import LocalNode
from cbframe.scan.spec import METADATA_NAMES
from cbframe.testing import Direction, FaultProxy
from cbframe.wire.constants import Opcode
from cbframe.wire.framing import Frame
from cbframe.wire.messages import BufferAck, StreamRequest

from .kit import QUICK, Row, Sent, fill, keys_in, keys_of, read_rows, rows_of, truth, values_of


def bytes_of_a_read(monkeypatch: pytest.MonkeyPatch, cluster: LocalCluster, node: int) -> int:
    with monkeypatch.context() as patch:
        sent = Sent(patch, cluster, node)
        read_rows(cluster)
        return sent.total


def test_a_cut_anywhere(pair: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(pair)
    total = bytes_of_a_read(monkeypatch, pair, 1)
    expected = truth(pair)
    sent = Sent(monkeypatch, pair, 1)
    points = [*range(1, 60, 13), *range(60, total - 24, total // 25)]
    for after in points:
        before = sent.cuts
        pair.cut(1, after_bytes=after)
        assert read_rows(pair) == expected, after
        assert sent.cuts == before + 1, after


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_cut_at_every_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    with LocalCluster(nodes=2, vbuckets=4, seed=1) as cluster:
        fill(cluster, 30, 10)
        total = bytes_of_a_read(monkeypatch, cluster, 0)
        expected = truth(cluster)
        for after in range(1, total):
            cluster.cut(0, after_bytes=after)
            assert read_rows(cluster) == expected, after


@pytest.mark.parametrize("after", range(200, 5600, 300))
def test_a_cut_between_the_wanted_end_and_the_end_of_its_snapshot(
    monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """The older versions of what the rest of the snapshot holds were left out of it.

    So a stream that has passed its end must still be resumed until the snapshot is whole.
    """
    with LocalCluster(vbuckets=1, seed=1) as cluster:
        for number in range(50):
            cluster.upsert(f"k{number}", {"n": number})
        stream_request = Producer.stream_request
        overwritten: list[int] = []

        def overwrite_first(self: Producer, frame: Frame, message: StreamRequest) -> None:
            # The end is pinned to 50 by now; the snapshot that contains it will end at 90.
            if not overwritten:
                overwritten.extend(
                    cluster._engine.bucket.upsert(b"k%d" % n, b'{"n":"later"}') for n in range(40)
                )
            stream_request(self, frame, message)

        monkeypatch.setattr(Producer, "stream_request", overwrite_first)
        sent = Sent(monkeypatch, cluster)
        sent.cut(iter([after]))
        assert read_rows(cluster) == truth(cluster)
        assert overwritten == list(range(51, 91))


def test_a_cut_in_a_large_value(cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(cluster, 50)
    cluster.upsert("large", random.Random(1).randbytes(5_000_000))
    sent = Sent(monkeypatch, cluster)
    sent.cut(iter([1_000_000, 4_000_000, 2_500_000]))
    assert read_rows(cluster) == truth(cluster)
    assert sent.cuts == 3


def test_cuts_with_documents_as_columns(pair: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(pair, 1000)
    pair.upsert("binary", b"\x00\x01")
    sent = Sent(monkeypatch, pair)
    sent.cut(itertools.chain([9000, 11_000, 7_000]))
    frame = read_bucket(pair, options=QUICK, timeout=30)
    assert sent.cuts == 3
    assert sorted(frame["n"].dropna()) == list(range(1000))
    assert frame.attrs["cbframe"]["rejected"] == {"binary": 1}


def test_refused_for_a_while(pair: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node goes away in the middle of the read, and takes no connection at the first attempts."""
    fill(pair, 1000)
    expected = truth(pair)
    sent = Sent(monkeypatch, pair, 1)
    attempts = itertools.count(1)

    class Refusing:
        """In place of the node's flag: set, and clear again when it was looked at often enough."""

        def __get__(self, node: LocalNode, kind: type[LocalNode]) -> bool:
            return node is sent.node and not sent.pending and next(attempts) <= 5

        def __set__(self, node: LocalNode, value: bool) -> None: ...

    monkeypatch.setattr(LocalNode, "refusing", Refusing(), raising=False)
    sent.at(20_000, lambda: sent.node.cut(0))
    assert read_rows(pair, buffer_bytes=2000) == expected
    assert next(attempts) > 5


def test_gone_for_good_is_an_error(pair: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(pair, 1000)
    sent = Sent(monkeypatch, pair, 0)

    def go_away() -> None:
        sent.node.refusing = True
        sent.node.cut(0)

    sent.at(20_000, go_away)
    began = time.monotonic()
    with pytest.raises(CbframeError) as caught:
        read_rows(pair, timeout=1.5, buffer_bytes=2000)
    assert 1 < time.monotonic() - began < 5
    assert "vbuckets" in str(caught.value)
    assert isinstance(caught.value.__cause__, ConnectError)


def half_read(monkeypatch: pytest.MonkeyPatch, cluster: LocalCluster, action: Callable[[], object]) -> Sent:
    """Arrange for something to happen when half of what the node has is sent."""
    size = bytes_of_a_read(monkeypatch, cluster, 0)
    sent = Sent(monkeypatch, cluster)
    sent.at(size // 2, action)
    return sent


def written_twice(cluster: LocalCluster) -> None:
    """A part of the documents of vbucket 0."""
    for number in range(400):
        cluster.upsert(f"k{number % 250}", {"n": number, "pad": "x" * 50})


@pytest.mark.parametrize("action", ["fail_over", "roll_back"])
@pytest.mark.parametrize("lose", [0, 1, 40, 149, 151, 399, 400])
def test_history_is_lost_in_the_middle(monkeypatch: pytest.MonkeyPatch, action: str, lose: int) -> None:
    with LocalCluster(vbuckets=1, seed=1) as cluster:
        written_twice(cluster)
        engine = cluster._engine
        forks = {
            "fail_over": partial(engine.fail_over, 0, lose=lose),
            "roll_back": partial(engine.roll_back, 0, 400 - lose),
        }
        sent = half_read(monkeypatch, cluster, forks[action])
        # A small window: the stream is still under way when the history forks.
        found = read_rows(cluster, buffer_bytes=2000)
        assert not sent.pending
        assert len(cluster.failover_log(0)) == 2
        assert found == truth(cluster)


@pytest.mark.parametrize(("version", "rollbacks"), [("7.2", 1), ("8.0", 0)])
def test_a_cut_after_deletions_were_purged(
    monkeypatch: pytest.MonkeyPatch, version: Version, rollbacks: int
) -> None:
    """8.0 says with the snapshot how far: who has that snapshot need not begin again."""
    with LocalCluster(vbuckets=1, seed=1, version=version) as cluster:
        for number in range(400):
            cluster.upsert(f"k{number}", {"pad": "x" * 50})
        for number in range(0, 400, 2):
            cluster.delete(f"k{number}")
        cluster.upsert("last", {})
        assert cluster.purge() == 200
        size = bytes_of_a_read(monkeypatch, cluster, 0)
        sent = Sent(monkeypatch, cluster)
        cluster.cut(0, after_bytes=size // 2)
        scan = scan_bucket(cluster, parse=False, options=QUICK, timeout=30)
        assert sorted(keys_of(scan.to_arrow())) == sorted(truth(cluster))
        assert sent.cuts == 1
        assert scan.stats.total.tot_upr_stream_req_res_rollback == rollbacks


def keys_by_vbucket() -> list[list[bytes]]:
    """A thousand keys of two vbuckets."""
    return [keys_in(0, 2, 500), keys_in(1, 2, 500)]


def complete_and_half_read(
    monkeypatch: pytest.MonkeyPatch, cluster: LocalCluster, lose: int, more: int
) -> Sent:
    """Two vbuckets: when half of the large one is sent, the small one is complete, and its history forks."""
    small, large = keys_by_vbucket()
    for key in small[:20] + large:
        cluster.upsert(key, {"pad": "x" * 50})
    sent = Sent(monkeypatch, cluster)
    engine = cluster._engine

    def fork() -> None:
        (producer,) = (each.producer for each in sent.node._connections if each.producer is not None)
        assert {stream.vbucket for stream in producer.streams.values()} == {1}
        engine.fail_over(0, lose=lose)
        for key in small[20 : 20 + more]:
            engine.bucket.upsert(key, b'{"new":1}')

    sent.at(40_000, fork)
    return sent


@pytest.mark.parametrize(("lose", "more"), [(0, 0), (0, 3), (1, 0), (7, 3), (7, 12), (20, 0), (20, 3)])
def test_history_is_lost_of_what_was_complete(monkeypatch: pytest.MonkeyPatch, lose: int, more: int) -> None:
    """Read again, if that is wanted, and only if something was lost."""
    with LocalCluster(vbuckets=2, seed=1) as cluster:
        sent = complete_and_half_read(monkeypatch, cluster, lose, more)
        found = read_rows(cluster, buffer_bytes=2000, consistency="strict")
        assert not sent.pending
        expected = truth(cluster)
        if not lose:
            expected = {key: row for key, row in expected.items() if row.value != b'{"new":1}'}
        assert found == expected


def test_history_is_lost_of_what_was_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is delivered before all is compared."""
    with LocalCluster(vbuckets=2, seed=1) as cluster:
        complete_and_half_read(monkeypatch, cluster, 7, 0)
        scan = scan_bucket(cluster, options=QUICK, buffer_bytes=2000, timeout=30, consistency="strict")
        assert sorted(keys_of(scan.to_reader().read_all())) == sorted(truth(cluster))


def test_a_partition_whose_moment_is_lost_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with LocalCluster(vbuckets=2, seed=1) as cluster:
        sent = complete_and_half_read(monkeypatch, cluster, 7, 0)
        (part,) = scan_bucket(
            cluster, parse=False, options=QUICK, buffer_bytes=2000, timeout=30, consistency="strict"
        ).partitions(1)
        assert sent.pending
        with pytest.raises(RollbackError, match="history of 1 vbuckets"):
            part.read()
        assert not sent.pending


def test_what_was_complete_stays_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """By default; the position of the result is that of the lost history."""
    with LocalCluster(vbuckets=2, seed=1) as cluster:
        old = cluster.failover_log(0)[0][0]
        complete_and_half_read(monkeypatch, cluster, 7, 0)
        scan = scan_bucket(cluster, parse=False, options=QUICK, buffer_bytes=2000, timeout=30)
        assert len(scan.to_arrow()) == len(truth(cluster)) + 7
        assert scan.as_of[0] == (old, 20)
        assert cluster.failover_log(0)[0][0] != old


@pytest.mark.parametrize("lose", [40, 151])
def test_history_is_lost_and_goes_on(monkeypatch: pytest.MonkeyPatch, lose: int) -> None:
    """After the failover come other changes with the same seqnos."""
    with LocalCluster(vbuckets=1, seed=1) as cluster:
        written_twice(cluster)

        def fork_and_write() -> None:
            engine = cluster._engine
            engine.fail_over(0, lose=lose)
            for number in range(lose + 5):
                engine.bucket.upsert(b"new%d" % number, b'{"new":%d}' % number)
            engine.bucket.delete(b"k7")

        sent = half_read(monkeypatch, cluster, fork_and_write)
        scan = scan_bucket(cluster, parse=False, buffer_bytes=2000, options=QUICK, timeout=30)
        found = values_of(scan.to_arrow())
        assert not sent.pending
        assert found == {key: row.value for key, row in truth(cluster).items()}
        assert scan.as_of[0] == (cluster.failover_log(0)[0][0], cluster.high_seqnos()[0])


def test_what_a_rollback_took_back_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in types, nor in columns, nor in what is counted."""
    with LocalCluster(vbuckets=1, seed=1) as cluster:
        for number in range(300):
            cluster.upsert(f"k{number}", {"n": number, "pad": "x" * 50})
        for number in range(300):
            # Every document changes its type, and half of them are no objects at all any more.
            value = {"n": str(number), "gone": 1} if number % 2 else b"\x00binary, not JSON"
            cluster.upsert(f"k{number}", value)
        sent = half_read(monkeypatch, cluster, lambda: cluster._engine.roll_back(0, 300))
        frame = read_bucket(cluster, buffer_bytes=2000, options=QUICK, timeout=30)
        assert not sent.pending
        assert list(frame.columns) == ["n", "pad"]
        assert str(frame["n"].dtype) == "int64[pyarrow]"
        assert frame.attrs["cbframe"]["rejected"] == {}
        assert frame.attrs["cbframe"]["conflicts"] == []
        assert frame["n"].to_dict() == {f"k{n}": n for n in range(300)}


def test_a_flushed_vbucket(monkeypatch: pytest.MonkeyPatch) -> None:
    with LocalCluster(vbuckets=1, seed=1) as cluster:
        fill(cluster, 400)
        sent = half_read(monkeypatch, cluster, lambda: cluster._engine.flush_vbucket(0))
        assert read_rows(cluster, buffer_bytes=2000) == {}
        assert not sent.pending


def test_a_node_that_forgets_what_was_consumed(
    cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It sends no more, and goes on answering: only that its streams stand still tells."""
    fill(cluster, 500)
    forgetful: list[Producer] = []
    acknowledge = Producer.acknowledge

    def forgets(self: Producer, message: BufferAck) -> None:
        if not forgetful:
            forgetful.append(self)
        if self is not forgetful[0]:
            acknowledge(self, message)

    monkeypatch.setattr(Producer, "acknowledge", forgets)
    options = replace(QUICK, idle_timeout=0.3)
    scan = scan_bucket(cluster, parse=False, options=options, buffer_bytes=2000, timeout=30)
    assert sorted(keys_of(scan.to_arrow())) == sorted(truth(cluster))
    assert forgetful
    assert scan.stats.total.tot_worker_connect >= 2


def test_a_node_that_answers_and_never_sends(cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """The read ends, after as many attempts as there was time for, and names node and vbuckets."""
    fill(cluster, 100)
    monkeypatch.setattr(Producer, "fill", lambda _self: None)
    options = replace(QUICK, idle_timeout=0.1, recovery_timeout=0.5)
    scan = scan_bucket(cluster, parse=False, options=options, timeout=30)
    with pytest.raises(StreamError, match="owes vbuckets 0-15") as caught:
        scan.to_arrow()
    assert caught.value.node == cluster.kv_addresses[0]


# --- A connection that ends at any byte before the first stream answers costs a retry, no more.
#
# All of it goes through a proxy that cuts exactly one connection, exactly there. What a whole bootstrap
# looks like is measured by the same proxy.


CASES = [(scheme, direction) for scheme in ("couchbase", "http") for direction in ("down", "up")]
STEP = 101
"""Between the samples of the short form; a prime, to hit each field of the messages now and then."""


@pytest.fixture(scope="module")
def small() -> Iterator[LocalCluster]:
    with LocalCluster(vbuckets=2, seed=1) as cluster:
        fill(cluster, 4, 5)
        yield cluster


def read(cluster: LocalCluster, scheme: str) -> dict[bytes, Row]:
    conn = cluster.rest_urls if scheme == "http" else cluster.connection_string
    scan = scan_bucket(
        conn,
        cluster.bucket,
        auth=(cluster.username, cluster.password),
        parse=False,
        metadata=METADATA_NAMES,
        timeout=30,
        # A connection beside the others, which nothing waits for: then bytes are not in order of connections.
        options=replace(QUICK, map_streaming=False),
    )
    return rows_of(scan.to_arrow())


def messages(data: bytes) -> Iterator[tuple[int, Frame | None]]:
    """Where each message of one connection ends; without a frame: an answer of HTTP, and its head."""
    if data.startswith((b"HTTP", b"GET")):
        head = data.index(b"\r\n\r\n") + 4
        yield from ((head, None), (len(data), None))
        return
    offset = 0
    while offset < len(data):
        parsed = Frame.parse(data, offset)
        assert parsed is not None
        frame, offset = parsed
        yield offset, frame


def bootstrap(cluster: LocalCluster, scheme: str, direction: Direction) -> tuple[int, list[int]]:
    """Bytes until the streams have been asked for and answered, and the ends of the messages in them."""
    with FaultProxy(cluster, record=True) as proxy:
        read(cluster, scheme)
        pieces = [piece for piece in proxy.record if piece.direction == direction]
    connections: dict[int, bytes] = defaultdict(bytes)
    for piece in pieces:
        connections[piece.connection] += piece.data
    # One after the other: then a position in all of them together is one in one of them.
    assert [piece.connection for piece in pieces] == sorted(piece.connection for piece in pieces)
    ends, length, asked = [], 0, 0
    for number in sorted(connections):
        for end, frame in messages(connections[number]):
            ends.append(length + end)
            if frame is not None and frame.opcode == Opcode.DCP_STREAM_REQ:
                asked = length + end
        length += len(connections[number])
    assert asked, "no stream was asked for"
    return asked, [end for end in ends if end <= asked]


def check(cluster: LocalCluster, scheme: str, direction: Direction, points: list[int]) -> None:
    expected = truth(cluster)
    for after in points:
        with FaultProxy(cluster) as proxy:
            proxy.cut(after_bytes=after, direction=direction)
            assert read(cluster, scheme) == expected, after
            assert not proxy.pending, after


@pytest.mark.parametrize(("scheme", "direction"), CASES)
def test_a_cut_in_the_bootstrap(small: LocalCluster, scheme: str, direction: Direction) -> None:
    length, ends = bootstrap(small, scheme, direction)
    around = {end + shift for end in ends for shift in (-1, 0, 1)}
    points = sorted(point for point in {0, *around, *range(0, length, STEP)} if point < length)
    check(small, scheme, direction, points)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("scheme", "direction"), CASES)
def test_a_cut_at_every_byte_of_the_bootstrap(small: LocalCluster, scheme: str, direction: Direction) -> None:
    length, _ = bootstrap(small, scheme, direction)
    check(small, scheme, direction, list(range(length)))
