"""Where documents wait: on a disk, with room, or with a word about it before the read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import cbframe
from cbframe.arrow import spill
from cbframe.arrow.spill import LITTLE, spill_folder
from cbframe.errors import SpoolError

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


@pytest.mark.parametrize("kind", ["tmpfs", "ramfs"])
def test_in_memory_there_is_another(places: tuple[str, str], kind: str) -> None:
    one, other = places
    assert (
        spill_folder(None, other=other, free_bytes=lambda _: MUCH, mounts=lambda: mounted(one, kind)) == other
    )


def test_nearly_full_there_is_another(places: tuple[str, str]) -> None:
    one, other = places
    free = {one: LITTLE - 1, other: MUCH}
    assert spill_folder(None, other=other, free_bytes=free.__getitem__, mounts=list) == other


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
