"""What a snapshot says of itself, and its versions by time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cbframe import ConfigurationError, LocalCluster, Snapshot, read_snapshot, write_snapshot
from cbframe.scan.result import Clock
from cbframe.scan.store import LocalStore
from cbframe.snapshot import snapshot as module
from cbframe.snapshot.manifest import History, Manifest, name_of

from .conftest import Calendar


def test_documents_and_tombstones_are_counted_apart(
    cluster: LocalCluster, path: Path, calendar: Calendar, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.upsert("a", {"n": 1})
    write_snapshot(cluster, path, clock=calendar)
    start = f"<Snapshot {str(path)!r} of 'default': version"
    assert repr(Snapshot(path)) == (
        f"{start} 1 of 2026-01-01 00:00 UTC, 1 document and 0 tombstones in 1 file>"
    )
    cluster.upsert("a", {"n": 2})
    cluster.upsert("b", {"n": 2})
    cluster.upsert("c", {"n": 2})
    write_snapshot(cluster, path, clock=calendar)
    cluster.delete("c")
    write_snapshot(cluster, path, clock=calendar)
    told = f"{start} 3 of 2026-01-01 00:00 UTC"
    assert repr(Snapshot(path)) == f"{told}, 2 documents and 1 tombstone in 3 files>"
    # Of a snapshot with many rows no file is read for that, and of a damaged one none can be.
    monkeypatch.setattr(module, "_COUNTED", 4)
    assert repr(Snapshot(path)) == f"{told}, at most 4 documents and 1 tombstone in 3 files>"
    monkeypatch.undo()
    for file in (path / "data").iterdir():
        file.unlink()
    assert repr(Snapshot(path)) == f"{told}, at most 4 documents and 1 tombstone in 3 files>"


# --- Versions by time: times ascend from version to version, whatever the clocks of those who write say.


def at(hour: int, minute: int = 0) -> datetime:
    return datetime(2026, 3, 1, hour, minute, tzinfo=UTC)


def clock(time: datetime) -> Clock:
    return lambda: time


MS = timedelta(milliseconds=1)


def _as_earlier_releases(path: Path, created: dict[int, datetime]) -> None:
    """Write manifests as releases did that took any clock's word for the time of a version."""
    store = LocalStore(path)
    for version, time in created.items():
        file = path / name_of(version)
        manifest = Manifest.from_bytes(store.read(name_of(version)), str(file))
        file.write_bytes(replace(manifest, created=time, ordered=False).to_bytes())


def test_times_ascend_with_a_clock_that_is_behind(cluster: LocalCluster, path: Path) -> None:
    for key, time in (("k1", at(12)), ("k2", at(13)), ("k3", at(11, 30)), ("k4", at(13))):
        cluster.upsert(key, {"a": 1})
        result = write_snapshot(cluster, path, clock=clock(time))
        assert result.as_of.time is not None
    created = [each.created for each in Snapshot(path).versions]
    assert created == [at(12), at(13), at(13) + MS, at(13) + 2 * MS]
    wanted = {at(12, 30): ["k1"], at(13): ["k1", "k2"], at(13) + MS: ["k1", "k2", "k3"]}
    for time, keys in wanted.items():
        assert sorted(read_snapshot(path, as_of=time).index) == keys
    assert result.clock_behind == MS


def test_a_clock_that_is_behind_is_reported(cluster: LocalCluster, path: Path) -> None:
    cluster.upsert("k1", {"a": 1})
    first = write_snapshot(cluster, path, clock=clock(at(12)))
    assert not first.clock_behind
    assert "clock " not in str(first)
    cluster.upsert("k1", {"a": 2})
    second = write_snapshot(cluster, path, clock=clock(at(10, 30)))
    assert second.clock_behind == timedelta(hours=1, minutes=30)
    assert "1:30:00 behind the time of the version before" in str(second)
    assert "clock_behind=datetime.timedelta(seconds=5400)" in repr(second)
    compaction = Snapshot(path).compact(keep="0s", clock=clock(at(11)))
    assert compaction.clock_behind == timedelta(hours=1) + MS
    assert "1:00:00.001000 behind the time of the version before" in str(compaction)


def _update(cluster: LocalCluster, path: Path, now: Clock) -> None:
    cluster.upsert("k", {"a": 2})
    write_snapshot(cluster, path, clock=now)


def _overwrite(cluster: LocalCluster, path: Path, now: Clock) -> None:
    write_snapshot(cluster, path, mode="overwrite", clock=now)


def _repair(cluster: LocalCluster, path: Path, now: Clock) -> None:
    next((path / "data").iterdir()).unlink()
    write_snapshot(cluster, path, mode="repair", clock=now)


def _compact(cluster: LocalCluster, path: Path, now: Clock) -> None:
    cluster.delete("k")
    write_snapshot(cluster, path, clock=now)
    assert Snapshot(path).compact(keep="0s", clock=now).changed


@pytest.mark.parametrize("write", [_update, _overwrite, _repair, _compact])
def test_every_way_to_write(
    write: Callable[[LocalCluster, Path, Clock], None], cluster: LocalCluster, path: Path
) -> None:
    cluster.upsert("k", {"a": 1})
    write_snapshot(cluster, path, clock=clock(at(12)))
    write(cluster, path, clock(at(11)))
    manifests = [History(LocalStore(path)).load(number) for number in History(LocalStore(path)).numbers()]
    times = [manifest.created for manifest in manifests]
    assert times == [at(12) + number * MS for number in range(len(times))]
    assert len(times) > 1


def test_times_of_earlier_releases(cluster: LocalCluster, path: Path, calendar: Calendar) -> None:
    for key in ("k1", "k2", "k3", "k4"):
        cluster.upsert(key, {"a": 1})
        write_snapshot(cluster, path, clock=calendar)
    # As they come from two machines: one's clock is behind by hours. The last is a millisecond's part late.
    late = at(13) + timedelta(microseconds=1300)
    _as_earlier_releases(path, {1: at(12), 2: at(13), 3: at(11, 30), 4: late})
    snapshot = Snapshot(path)
    assert [each.created for each in snapshot.versions] == [at(12), at(13), at(13) + MS, late]
    for time, version in ((at(12, 30), 1), (at(13), 2), (at(13) + MS, 3), (at(15), 4)):
        assert len(read_snapshot(path, as_of=time)) == version
        assert snapshot.to_pandas(as_of=time).attrs["cbframe"]["version"] == version
    with pytest.raises(ConfigurationError, match="before the oldest version, which is of 2026-03-01 12:00"):
        read_snapshot(path, as_of=at(11, 45))
    # What is written now comes after all of them.
    cluster.upsert("k5", {"a": 1})
    assert write_snapshot(cluster, path, clock=clock(at(12))).clock_behind == late - at(12)
    assert Snapshot(path).versions[-1].created == late + MS
    assert len(read_snapshot(path, as_of=late + MS)) == 5
    assert Snapshot(path).schema_history()["created"].tolist() == [at(12)]


def test_as_of_names_its_time(cluster: LocalCluster, path: Path) -> None:
    cluster.upsert("k", {"a": 1})
    result = write_snapshot(cluster, path, clock=clock(at(12)))
    told = "AsOf(2026-03-01 12:00:00 UTC, 16 vbuckets, 1 changes)"
    snapshot = Snapshot(path)
    frame = read_snapshot(path)
    for as_of in (result.as_of, snapshot.as_of, snapshot.versions[0].as_of, frame.attrs["cbframe"]["as_of"]):
        assert str(as_of) == told
