"""What a snapshot says of itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from cbframe import LocalCluster, Snapshot, write_snapshot
from cbframe.snapshot import snapshot as module

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
