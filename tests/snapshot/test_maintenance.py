"""Compaction, and damage: it is found, explained, and read again: that, and nothing else."""

from __future__ import annotations

import errno
import hashlib
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scan.kit import fill, truth

from cbframe import LocalCluster, Snapshot, SnapshotError, SpoolError, read_snapshot, write_snapshot
from cbframe.scan.store import LocalStore, Output
from cbframe.snapshot.maintenance import verify
from cbframe.snapshot.manifest import History

from .conftest import Calendar
from .kit import held, update


def test_nothing_to_gain(cluster: LocalCluster, path: Path) -> None:
    cluster.bulk_load((f"k{n}".encode(), b'{"n":%d}' % n) for n in range(100))
    write_snapshot(cluster, path)
    before = sorted(path.rglob("*.*"))
    done = Snapshot(path).compact(keep="0s")
    assert not done.changed
    assert (done.version, done.rows, done.files) == (1, (100, 100), (1, 1))
    assert str(done) == "version 1: nothing to gain, 100 rows in 1 file stay as they are"
    assert sorted(path.rglob("*.*")) == before


@pytest.mark.parametrize("compression", ["none", "lz4"])
def test_nothing_to_gain_in_files_of_another_compression(
    cluster: LocalCluster, path: Path, compression: str
) -> None:
    cluster.upsert("a", {"n": 1})
    write_snapshot(cluster, path, compression=compression)
    assert not Snapshot(path).compact(compression=compression).changed


def test_something_to_gain(cluster: LocalCluster, path: Path) -> None:
    cluster.upsert("a", {"n": 1})
    cluster.upsert("b", {"n": 1})
    write_snapshot(cluster, path)
    snapshot = Snapshot(path)
    # The same rows, compressed in another way.
    assert snapshot.compact(compression="gzip", keep="0s").changed
    # Two files, of which nothing is left out.
    cluster.upsert("c", {"n": 1})
    write_snapshot(cluster, path)
    done = snapshot.compact(keep="0s")
    assert (done.changed, done.version, done.rows, done.files) == (True, 4, (3, 3), (2, 1))
    # Rows that no rollback can bring back.
    cluster.delete("c")
    write_snapshot(cluster, path)
    done = snapshot.compact(keep="0s")
    assert (done.changed, done.version, done.rows, done.files) == (True, 6, (4, 2), (2, 1))
    assert not snapshot.compact(keep="0s").changed
    assert len(snapshot) == 2


def test_as_many_are_kept_as_are_left_out(path: Path, calendar: Calendar) -> None:
    """An older version stays for a rollback, a deletion goes: as many rows, and yet a document twice."""
    with LocalCluster(nodes=1, vbuckets=1, seed=3) as cluster:
        cluster.upsert("key", {"n": 1})
        cluster.upsert("other", {})
        update(cluster, path, clock=calendar)
        cluster.delete("other")
        update(cluster, path, clock=calendar)
        calendar.go_on(hours=1)
        cluster.upsert("key", {"n": 2})
        update(cluster, path, clock=calendar)
        Snapshot(path).compact(keep="30min", clock=calendar)
        assert held(path) == truth(cluster)


@pytest.mark.parametrize("only_persisted", [False, True])
def test_what_no_failover_takes_back_need_not_be_kept(
    path: Path, calendar: Calendar, only_persisted: bool
) -> None:
    with LocalCluster(nodes=2, vbuckets=1, replicas=1, seed=3) as cluster:
        for n in range(3):
            cluster.upsert("key", {"n": n})
            update(cluster, path, clock=calendar, only_persisted=only_persisted)
        manifest = History(LocalStore(path)).latest()
        assert manifest.persisted == only_persisted
        done = Snapshot(path).compact(clock=calendar)
        assert done.rows == ((3, 1) if only_persisted else (3, 3))
        assert held(path) == truth(cluster)
        # What came since may still be taken back.
        cluster.upsert("key", {"n": 3})
        update(cluster, path, clock=calendar)
        assert not History(LocalStore(path)).latest().persisted
        Snapshot(path).compact(clock=calendar)
        cluster.fail_over(0, lose=1)
        result = update(cluster, path, clock=calendar)
        assert held(path) == truth(cluster)
        assert (result.retracted, result.read_again) == (1, {0: 3})
        # Against all promises: it is read from the start then.
        cluster.fail_over(0, lose=2)
        result = update(cluster, path, clock=calendar)
        assert held(path) == truth(cluster)
        assert result.read_again == {0: 0}
        assert Snapshot(path).verify().ok


# --- What is damaged is found, explained, and read again: that, and nothing else.


Hurt = Callable[[Path], None]


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size * 2 // 3)


def flip(file: Path) -> None:
    """Turn over one bit: of a Parquet file, in the middle of the values."""
    data = bytearray(file.read_bytes())
    at = len(data) // 2
    if file.suffix == ".parquet":
        metadata = pq.read_metadata(file)
        [number] = [n for n in range(metadata.num_columns) if metadata.schema.column(n).name == "_cb_value"]
        column = metadata.row_group(0).column(number)
        at = column.dictionary_page_offset or column.data_page_offset
        at += column.total_compressed_size - 20  # behind what a page's header says of its values
    data[at] ^= 0x10
    file.write_bytes(data)


def delete(file: Path) -> None:
    file.unlink()


HURTS = pytest.mark.parametrize("hurt", [truncate, flip, delete])


@pytest.fixture
def kept(cluster: LocalCluster, path: Path) -> Path:
    """Three versions in several files of a few vbuckets each."""
    fill(cluster, 400)
    update(cluster, path, file_bytes=5000)
    for n in range(60):
        cluster.upsert(f"key-{n * 6:06d}", {"n": -n})
        cluster.delete(f"key-{n * 6 + 1:06d}")
    update(cluster, path, file_bytes=2000)
    cluster.upsert("last", {})
    update(cluster, path)
    return path


def files(path: Path, version: int) -> list[Path]:
    return sorted((path / "data").glob(f"{version:08d}-*"))


@HURTS
@pytest.mark.parametrize("version", [1, 2])
def test_a_file(hurt: Hurt, version: int, cluster: LocalCluster, kept: Path) -> None:
    assert len(files(kept, version)) > 3
    victim = files(kept, version)[1]
    [entry] = [each for each in Snapshot(kept)._history.at(None).files if each.name == f"data/{victim.name}"]
    hurt(victim)

    verification = Snapshot(kept).verify()
    [problem] = verification.problems
    assert not verification
    assert problem.file == str(victim)
    assert problem.versions == tuple(range(version, 4))
    assert 'mode="repair"' in problem.remedy
    assert str(victim) in str(verification)
    with pytest.raises(SnapshotError, match=victim.name) as caught:
        held(kept)
    assert 'mode="repair"' in str(caught.value.hint)

    result = update(cluster, kept, mode="repair")
    assert held(kept) == truth(cluster)
    assert Snapshot(kept).version == 4
    assert Snapshot(kept).versions[-1].kind == "repair"
    # Not more was read than what was in the file, and what came in its vbuckets after it.
    assert result.upserted + result.deleted <= sum(
        position.seqno
        for vbucket, position in enumerate(Snapshot(kept)._history.at(None).positions)
        if entry.vbuckets[0] <= vbucket <= entry.vbuckets[1]
    )
    assert result.upserted < len(truth(cluster)) / 2
    Snapshot(kept).vacuum()
    assert Snapshot(kept).verify().ok
    assert held(kept) == truth(cluster)


def test_any_bit_of_a_file(kept: Path) -> None:
    """Whatever is read is right, or refused."""
    before = held(kept)
    victim = files(kept, 1)[2]
    data = victim.read_bytes()
    refused = 0
    for at in range(0, len(data), 41):
        hurt = bytearray(data)
        hurt[at] ^= 0x10
        victim.write_bytes(hurt)
        try:
            found = held(kept)
        except SnapshotError as exc:
            refused += victim.name in str(exc)
        else:
            assert found == before
    assert refused > len(data) / 41 / 4


@pytest.mark.parametrize("hurt", [truncate, flip])
def test_a_manifest(hurt: Hurt, cluster: LocalCluster, kept: Path) -> None:
    victim = kept / "manifest" / "00000003.json"
    whole = Snapshot(kept)
    hurt(victim)
    [problem] = verify(whole._store, History(whole._store)).problems
    assert problem.file == str(victim)
    with pytest.raises(SnapshotError, match="a damaged manifest") as caught:
        read_snapshot(kept)
    assert str(victim) in str(caught.value)
    assert 'mode="repair"' in str(caught.value)
    with pytest.raises(SnapshotError, match="a damaged manifest"):
        update(cluster, kept)
    result = update(cluster, kept, mode="repair")
    # Of the damaged version only its one document.
    assert (result.version, result.upserted, result.deleted) == (4, 1, 0)
    assert held(kept) == truth(cluster)
    assert Snapshot(kept).verify().ok


def no_input(monkeypatch: pytest.MonkeyPatch, victim: Path, error: type[OSError], number: int) -> None:
    """Have a file fail whenever it is opened."""
    input_of = LocalStore.input

    def refused(self: LocalStore, name: str) -> pa.NativeFile:
        if name == f"data/{victim.name}":
            raise error(number, os.strerror(number))
        return input_of(self, name)

    monkeypatch.setattr(LocalStore, "input", refused)


def test_a_file_that_cannot_be_read_now(
    cluster: LocalCluster, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be whole: nothing is read again for an outage."""
    before, victim = held(kept), files(kept, 1)[1]
    with monkeypatch.context() as patched:
        no_input(patched, victim, PermissionError, errno.EACCES)
        for attempt in (lambda: held(kept), lambda: update(cluster, kept, mode="repair")):
            with pytest.raises(SnapshotError, match="cannot read a file: Permission denied") as caught:
                attempt()
            assert caught.value.path == str(victim)
            assert "try again" in str(caught.value.hint)
        [problem] = Snapshot(kept).verify().problems
        assert (problem.file, problem.what) == (str(victim), "cannot read a file: Permission denied")
        assert "try again" in problem.remedy
    assert Snapshot(kept).version == 3
    assert held(kept) == before


def test_a_disk_that_has_lost_a_file(
    cluster: LocalCluster, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That does not pass by itself."""
    no_input(monkeypatch, files(kept, 1)[1], OSError, errno.EIO)
    with pytest.raises(SnapshotError, match="Input/output error") as caught:
        held(kept)
    assert 'mode="repair"' in str(caught.value.hint)
    update(cluster, kept, mode="repair")
    assert held(kept) == truth(cluster)


def test_an_old_manifest(cluster: LocalCluster, kept: Path) -> None:
    """Nothing has to be read again; but all that looks at all versions would stumble over it."""
    truncate(kept / "manifest" / "00000002.json")
    before = held(kept)
    [problem] = Snapshot(kept).verify().problems
    assert "newer versions do not need it" in problem.remedy
    result = update(cluster, kept, mode="repair")
    assert (result.version, result.changed) == (3, False)
    assert held(kept) == before
    assert [each.version for each in Snapshot(kept).versions] == [1, 3]
    assert Snapshot(kept).verify().ok


def test_a_manifest_of_the_future(cluster: LocalCluster, kept: Path) -> None:
    """It is no damage, and nothing that a repair by an older program may put away."""
    victim = kept / "manifest" / "00000003.json"
    body = victim.read_bytes().replace(b'"format":1', b'"format":2').rpartition(b',\n"digest"')[0]
    newer = body + b',\n"digest": "%s"}\n' % hashlib.sha256(body).hexdigest().encode()
    victim.write_bytes(newer)
    with pytest.raises(SnapshotError, match="a manifest of format 2"):
        update(cluster, kept, mode="repair")
    assert victim.read_bytes() == newer


def test_nothing_is_damaged(cluster: LocalCluster, kept: Path) -> None:
    before = held(kept)
    assert not update(cluster, kept, mode="repair").changed
    assert held(kept) == before
    assert Snapshot(kept).version == 3


def test_files_of_others(kept: Path) -> None:
    """Somebody put it there: no version needs it, and yet it is not ours to delete."""
    (kept / "data" / "notes.txt").write_text("mine")
    Snapshot(kept).compact(keep="0s")
    assert len(Snapshot(kept).vacuum()) > 3
    assert (kept / "data" / "notes.txt").read_text() == "mine"


def test_a_compacted_file(cluster: LocalCluster, kept: Path) -> None:
    """It has rows of all times: its vbuckets are read again from the start."""
    Snapshot(kept).compact(keep="0s", file_bytes=5000)
    Snapshot(kept).vacuum()
    victim = files(kept, 4)[0]
    truncate(victim)
    entry = Snapshot(kept)._history.at(None).files[0]
    result = update(cluster, kept, mode="repair")
    assert held(kept) == truth(cluster)
    positions = Snapshot(kept)._history.at(None).positions[entry.vbuckets[0] : entry.vbuckets[1] + 1]
    assert result.upserted + result.deleted >= entry.rows
    assert result.upserted <= sum(position.seqno for position in positions)
    [problem] = Snapshot(kept).verify().problems
    assert "vacuum()" in problem.remedy
    Snapshot(kept).vacuum()
    assert Snapshot(kept).verify().ok


@pytest.mark.parametrize("moment", [0, 1, 5])
def test_a_full_disk(moment: int, cluster: LocalCluster, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, there = held(kept), sorted(each.name for each in kept.rglob("*"))
    for n in range(50):
        cluster.upsert(f"more-{n}", {"n": n})
    write, left = Output.write, moment

    def full(self: Output, data: object) -> int:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(self, data)

    with monkeypatch.context() as patched:
        patched.setattr(Output, "write", full)
        with pytest.raises(SnapshotError, match="No space left on device") as caught:
            update(cluster, kept)
    assert "the disk is full" in str(caught.value.hint)
    assert str(kept / "data") in str(caught.value)
    assert sorted(each.name for each in kept.rglob("*")) == there
    assert held(kept) == before
    assert Snapshot(kept).verify().ok
    update(cluster, kept)
    assert held(kept) == truth(cluster)


def test_the_system_refuses(cluster: LocalCluster, kept: Path) -> None:
    """By its limit for the size of a file, which the files of the read meet as well."""
    for n in range(300):
        cluster.upsert(f"more-{n}", {"text": os.urandom(200).hex()})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        with pytest.raises((SnapshotError, SpoolError), match="File too large"):
            update(cluster, kept)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert Snapshot(kept).verify().ok
    update(cluster, kept)
    assert held(kept) == truth(cluster)
