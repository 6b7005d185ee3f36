"""The time that a read still takes, by seconds that are made up."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cbframe import BucketDataSourceStats, LocalCluster, ScanProgress, scan_bucket, write_snapshot
from cbframe.scan.progress import Pace
from cbframe.scan.session import Run
from cbframe.scan.spec import ScanSpec

from .kit import QUICK, fill


def told(*steps: tuple[float, int], total: int = 1000, requests: int = 64) -> list[float | None]:
    pace = Pace()
    return [pace.add(seconds, reached, total, requests) for seconds, reached in steps]


def test_nothing_is_said_at_the_start() -> None:
    """Neither of nothing, nor of the first second."""
    assert told((0, 0)) == [None]
    assert told((0.1, 0), (0.2, 10), (0.9, 90), (1.0, 99)) == [None] * 4
    assert told((0.1, 0), (1.1, 100))[-1] == pytest.approx(9.0)
    assert told((5, 0), (5.5, 0), (6, 0), (7, 0)) == [None] * 4


def test_it_follows_the_last_seconds() -> None:
    slow = [(float(second), second * 2) for second in range(61)]
    fast = [(60.0 + second, 120 + second * 100) for second in range(1, 6)]
    assert told(*slow)[-1] == pytest.approx((1000 - 120) / 2)
    assert told(*slow, *fast)[-1] == pytest.approx((1000 - 620) / 100)


def test_a_stall_promises_nothing_and_the_end_is_the_end() -> None:
    assert told((0, 0), (1, 500), *((float(second), 500) for second in range(2, 12)))[-1] is None
    assert told((0, 0), (2, 1000))[-1] == 0
    assert told((0, 0), (2, 1), total=10**9)[-1] is None, "years"


def test_streams_that_are_requested_are_no_progress() -> None:
    """They stand where they were before, at once: in an update nearly at the end."""
    pace = Pace()
    assert pace.add(0.0, 0, 1_000_000, 0) is None
    assert pace.add(0.5, 500_000, 1_000_000, 32) is None
    assert pace.add(1.5, 990_000, 1_000_000, 64) is None
    assert pace.add(2.0, 990_500, 1_000_000, 64) is None
    assert pace.add(2.5, 991_000, 1_000_000, 64) == pytest.approx(9.0)
    # A connection is lost, with what was reached over it, and made again.
    assert pace.add(3.5, 600_000, 1_000_000, 64) is None
    assert pace.add(4.6, 600_100, 1_000_000, 64) is not None
    assert pace.add(4.7, 991_100, 1_000_000, 96) is None
    # Another end is another read.
    assert pace.add(7.0, 992_000, 1_000_000, 96) is not None
    assert pace.add(7.1, 992_100, 2_000_000, 96) is None


def test_reports_of_reads(cluster: LocalCluster, tmp_path: Path) -> None:
    """A read of a moment promises nothing; what is promised is never less than nothing."""
    seen: list[ScanProgress] = []
    scan_bucket(cluster, progress=seen.append).to_arrow()
    assert seen[-1].share == 1.0, "of an empty bucket"
    seen.clear()
    fill(cluster, 5000)
    scan_bucket(cluster, progress=seen.append, buffer_bytes=1000).to_arrow()
    assert len(seen) > 2
    for name in ("rows", "nbytes", "seqnos", "vbuckets", "seconds", "share"):
        values = [getattr(progress, name) for progress in seen]
        assert values == sorted(values), name
    last = seen[-1]
    assert last.share == 1.0
    assert (last.rows, last.seqnos, last.seqnos_total) == (5000, 5000, 5000)
    assert (last.vbuckets, last.vbuckets_total) == (16, 16)
    write_snapshot(cluster, tmp_path, options=QUICK, progress=seen.append)
    assert all(0 <= each.share <= 1 for each in seen)
    assert all(each.eta is None or each.eta >= 0 for each in seen)


def test_an_error_in_progress_ends_the_read(cluster: LocalCluster) -> None:
    def fail(_: ScanProgress) -> None:
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        scan_bucket(cluster, progress=fail).to_arrow()


@pytest.mark.parametrize(("n_rows", "expected"), [(None, 8.0), (10, None)])
def test_a_look_at_some_documents_has_no_known_end(n_rows: int | None, expected: float | None) -> None:
    run = Run(ScanSpec.of("couchbase://h/b", auth=("u", "p"), n_rows=n_rows, progress=None))
    reached = 0
    source: Any = SimpleNamespace(
        progress=lambda: (reached, 1000), stats=lambda: BucketDataSourceStats((), {})
    )
    assert run._progress(source, 1.0).eta is None
    reached = 200
    assert run._progress(source, 3.0).eta == expected
