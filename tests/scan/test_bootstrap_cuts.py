"""A connection that ends at any byte between connecting and the first stream answers costs a retry, no more.

All of it goes through a proxy that cuts exactly one connection, exactly there. What a whole bootstrap
looks like is measured by the same proxy.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace

import pytest

from cbframe import LocalCluster, scan_bucket
from cbframe.scan.spec import METADATA_NAMES
from cbframe.testing import Direction, FaultProxy
from cbframe.wire.constants import Opcode
from cbframe.wire.framing import Frame

from .kit import QUICK, Row, fill, rows_of, truth

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
