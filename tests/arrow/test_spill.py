"""Where documents wait: on a disk, with room, or with a word about it before the read."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

import cbframe
from cbframe.arrow import spill
from cbframe.arrow.spill import LITTLE, spill_folder
from cbframe.errors import SpoolError
from cbframe.scan import session

MUCH = 100 << 30


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """The system's folder for temporary files, and the other one."""
    one, other = tmp_path / "tmp", tmp_path / "var tmp"
    one.mkdir()
    other.mkdir()
    monkeypatch.setattr(spill.tempfile, "gettempdir", lambda: str(one))
    return str(one), str(other)


def mounted(place: str, kind: str) -> list[str]:
    return [
        "/dev/sda / ext4 rw 0 0",
        "none none",
        "none {} {} rw 0 0".format(place.replace(" ", "\\040"), kind),
    ]


def test_a_disk_with_room(places: tuple[str, str]) -> None:
    one, other = places
    assert spill_folder(None, other=other, free_bytes=lambda _: MUCH, mounts=list) == one
    assert spill_folder(other, other=one, free_bytes=lambda _: MUCH, mounts=list) == other
    free = {one: LITTLE - 1, other: MUCH}  # nearly full
    assert spill_folder(None, other=other, free_bytes=free.__getitem__, mounts=list) == other
    for kind in ("tmpfs", "ramfs"):  # in memory
        lines = mounted(one, kind)
        assert spill_folder(None, other=other, free_bytes=lambda _: MUCH, mounts=lambda: lines) == other  # noqa: B023


@pytest.mark.parametrize("why", ["missing", "in memory", "full"])
def test_in_memory_and_no_other(places: tuple[str, str], why: str) -> None:
    one, other = places
    free = {one: MUCH, other: 5 if why == "full" else MUCH}
    lines = mounted(one, "tmpfs") + (mounted(other, "tmpfs") if why == "in memory" else [])
    if why == "missing":
        os.rmdir(other)  # noqa: PTH106 - it is a text
    with pytest.warns(UserWarning, match=r"is in memory \(tmpfs\).*spool_dir=") as caught:
        found = spill_folder(None, other=other, free_bytes=free.__getitem__, mounts=lambda: lines)
    assert found == one
    assert repr(one) in str(caught[0].message)


def test_a_folder_that_was_named_is_taken_and_named(places: tuple[str, str]) -> None:
    one, other = places
    with pytest.warns(UserWarning, match="is in memory"):
        assert spill_folder(other, free_bytes=lambda _: MUCH, mounts=lambda: mounted(other, "tmpfs")) == other
    with pytest.warns(UserWarning, match="only 20 MB are free in"):
        assert spill_folder(one, free_bytes=lambda _: 20_000_000, mounts=list) == one


def test_no_room_at_all(places: tuple[str, str]) -> None:
    one, other = places
    with pytest.raises(SpoolError, match="there is no room in") as caught:
        spill_folder(None, other=other, free_bytes=lambda _: 1000, mounts=list)
    assert one in caught.value.message
    assert "spool_dir=" in (caught.value.hint or "")


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(SpoolError, match="No such file or directory"):
        spill_folder(tmp_path / "missing")


def test_the_nearest_mount_counts(places: tuple[str, str]) -> None:
    one, _ = places
    above = str(Path(one).parent)
    lines = mounted(above, "tmpfs") + mounted(one, "xfs")
    assert spill_folder(one, free_bytes=lambda _: MUCH, mounts=lambda: lines) == one


def test_a_system_without_a_table(monkeypatch: pytest.MonkeyPatch, places: tuple[str, str]) -> None:
    monkeypatch.setattr(spill, "_TABLE", Path(places[0], "nothing"))
    assert spill_folder(None, free_bytes=lambda _: MUCH) == places[0]


@pytest.fixture(scope="module")
def cluster() -> Iterator[cbframe.LocalCluster]:
    with cbframe.LocalCluster(vbuckets=2) as cluster:
        cluster.upsert("k", {"a": 1})
        yield cluster


def test_before_the_read(cluster: cbframe.LocalCluster, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    for read in (
        lambda: cbframe.read_bucket(cluster, spool_dir=missing),
        lambda: next(iter(cbframe.scan_bucket(cluster, spool_dir=missing).iter_batches())),
        lambda: cbframe.write_snapshot(cluster, tmp_path / "s", spool_dir=missing),
    ):
        before = cluster.dcp_connections()
        with pytest.raises(SpoolError, match="missing"):
            read()
        assert cluster.dcp_connections() == before


def test_a_read_on_a_folder_in_memory(
    cluster: cbframe.LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spill, "_mounts", lambda: mounted(str(tmp_path), "tmpfs"))
    with pytest.warns(UserWarning, match="is in memory"):
        assert len(cbframe.read_bucket(cluster, spool_dir=tmp_path)) == 1


def test_what_will_not_fit_is_foreseen(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []

    def progress() -> tuple[int, int]:
        looks.append(1)
        return 10, 100

    forecast = spill.Forecast("place")
    monkeypatch.setattr(spill.shutil, "disk_usage", lambda _: SimpleNamespace(free=9 * 70_000_000 * 2))
    forecast.look(spill.LITTLE - 1, progress)
    assert not looks
    forecast.look(70_000_000, progress)
    forecast.look(130_000_000, progress)
    assert len(looks) == 1
    told = "about 1,350 MB more will wait in 'place'.*1,260 MB are free.*spool_dir="
    with pytest.warns(UserWarning, match=told):
        forecast.look(150_000_000, progress)
    forecast.look(1 << 40, progress)
    assert len(looks) == 2


def test_before_anything_was_reached_nothing_is_foreseen() -> None:
    spill.Forecast("missing").look(1 << 60, lambda: (0, 0))


@pytest.mark.parametrize("how", ["read", "stream", "snapshot"])
def test_a_read_that_will_not_fit(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(1)
    with cbframe.LocalCluster(vbuckets=4) as cluster:
        cluster.bulk_load((b"k%d" % n, b'"%s"' % rng.randbytes(3000).hex().encode()) for n in range(2000))
        monkeypatch.setattr(spill, "LITTLE", 1 << 20)
        monkeypatch.setattr(session, "_PROGRESS_EVERY", 0.0)
        monkeypatch.setattr(spill.shutil, "disk_usage", lambda _: SimpleNamespace(free=2_000_000))
        given = {"spool_dir": tmp_path, "spill_bytes": 1 << 20, "buffer_bytes": 100_000, "progress": None}
        call = {
            "read": lambda: cbframe.read_bucket(cluster, **given),
            "stream": lambda: cbframe.scan_bucket(cluster, **given).to_reader(),
            "snapshot": lambda: cbframe.write_snapshot(cluster, tmp_path / "s", **given),
        }[how]
        with pytest.warns(UserWarning, match=f"MB more will wait in {str(tmp_path)!r} during") as caught:
            call()
        assert [each.filename for each in caught] == [__file__]
