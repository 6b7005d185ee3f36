from __future__ import annotations

import pytest

from cbframe.local.bucket import LocalManifest
from cbframe.local.dcp import Filter, check_range, effective_end, parse_filter, rollback_point
from cbframe.wire.constants import MAX_SEQNO, Status, StreamFlag
from cbframe.wire.messages import FailoverEntry, StreamRequest

LOG = (FailoverEntry(2222, 3), FailoverEntry(1111, 0))
HIGH = 10


def wish(start: int, snap: tuple[int, int] | None = None, uuid: int = 2222, flags: int = 0) -> StreamRequest:
    low, high = snap or (start, start)
    return StreamRequest(0, start, MAX_SEQNO, uuid, low, high, flags)


@pytest.mark.parametrize(
    ("request_", "point"),
    [
        (wish(3, (1, 4), 1111), 1),
        (wish(3, (3, 3), 1111), None),
        (wish(5, (5, 5), 1111), 3),
        (wish(5, (5, 5), 9999), 0),
        (wish(12, (12, 12)), 10),
        (wish(0, uuid=0), None),
        (wish(0, uuid=9999), None),
        (wish(0, uuid=9999, flags=StreamFlag.STRICT_VBUUID), 0),
        (wish(0, uuid=0, flags=StreamFlag.STRICT_VBUUID), None),
        (wish(4, uuid=0), 0),
        (wish(10), None),
        (wish(4, (4, 40)), None),  # nothing of that snapshot was received
        (wish(5, (4, 40)), 4),
        (wish(12, (2, 12)), 10),  # a complete snapshot goes back no further than the history
        (wish(3, (0, 3), 1111), None),
        (wish(4, (0, 8), 1111), 0),
    ],
)
def test_rollback_table(request_: StreamRequest, point: int | None) -> None:
    assert rollback_point(request_, LOG, HIGH) == point


def test_purged_tombstones_roll_back_to_zero() -> None:
    assert rollback_point(wish(4), LOG, HIGH, purge=5) == 0
    assert rollback_point(wish(5), LOG, HIGH, purge=5) is None
    ignoring = wish(4, flags=StreamFlag.IGNORE_PURGED_TOMBSTONES)
    assert rollback_point(ignoring, LOG, HIGH, purge=5) is None
    assert rollback_point(wish(0, uuid=0), LOG, HIGH, purge=5) is None


@pytest.mark.parametrize("bad", [(10, 5, 10, 10), (5, 100, 6, 10), (5, 100, 1, 4)])
def test_range(bad: tuple[int, int, int, int]) -> None:
    start, end, low, high = bad
    assert not check_range(StreamRequest(0, start, end, 1, low, high))


def test_start_at_end_is_in_range() -> None:
    assert check_range(StreamRequest(0, 5, 5, 1, 5, 5))


@pytest.mark.parametrize(
    ("value", "result"),
    [
        (b"", Filter()),
        (b'{"uid":"ff"}', Filter()),
        (b'{"collections":["0"]}', Filter(frozenset({0}))),
        (b'{"collections":[]}', Filter(frozenset())),
        (b'{"scope":"8"}', Filter(scope=8)),
        (b'{"scope":"77"}', Status.UNKNOWN_SCOPE),
        (b'{"collections":["77"]}', Status.UNKNOWN_COLLECTION),
        (b'{"scope":"8","collections":["8"]}', Status.EINVAL),
        (b"{}", Status.EINVAL),
        (b"[]", Status.EINVAL),
        (b"{bad", Status.EINVAL),
        (b'{"collections":[8]}', Status.EINVAL),
        (b'{"collections":8}', Status.EINVAL),
        (b'{"sid":1,"collections":["8"]}', Status.DCP_STREAM_ID_INVALID),
    ],
)
def test_filters_as_the_real_node_answers(value: bytes, result: Filter | Status) -> None:
    manifest = LocalManifest()
    manifest.create_scope("inventory")
    assert parse_filter(value, manifest) == result


def test_to_latest_ends_at_the_high_seqno() -> None:
    assert effective_end(wish(3), HIGH) == MAX_SEQNO
    assert effective_end(wish(3, flags=StreamFlag.TO_LATEST), HIGH) == HIGH
    assert effective_end(wish(3, flags=StreamFlag.DISK_ONLY), HIGH) == HIGH
