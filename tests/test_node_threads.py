"""What receivers do on the threads of the nodes: nothing that waits for a disk or a network.

While a callback runs, its node's connection is silent. So wherever something is rolled back while it is
read, files are read by the consumer's thread.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd  # noqa: F401 - pyarrow loads it with its first array
import pytest
from contrib.delta.kit import held as delta_rows
from scan.kit import QUICK, truth
from scan.test_microbatch import SECRET, USER, Engine, reader_of
from snapshot.kit import held as snapshot_rows

from cbframe import LocalCluster, SnapshotResult, VBucketMetaData, read_bucket, stream_bucket, write_snapshot
from cbframe.arrow.receivers import GatheringReceiver
from cbframe.contrib.delta import DeltaResult, to_delta, update_delta
from cbframe.dcp.receiver import Callbacks
from cbframe.errors import SnapshotError
from cbframe.snapshot.manifest import RollbackPoints

_inside = threading.local()
_found: list[str] = []


def _audit(event: str, arguments: tuple[object, ...]) -> None:
    if getattr(_inside, "callback", None) and event.startswith(("open", "os.", "socket.", "subprocess.")):
        _found.append(f"{_inside.callback}: {event} {arguments[:1]}")


sys.addaudithook(_audit)


@pytest.fixture(autouse=True)
def done_by_callbacks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Files and sockets that callbacks of receivers open, which must be none."""
    call = Callbacks._call
    _found.clear()

    def watched(self: Callbacks, callback: Callable[..., object], *arguments: object) -> object:
        _inside.callback = getattr(callback, "__name__", "a callback")
        try:
            return call(self, callback, *arguments)
        finally:
            _inside.callback = None

    monkeypatch.setattr(Callbacks, "_call", watched)
    yield _found
    assert not _found, "\n".join(_found)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalCluster]:
    monkeypatch.setenv("CB_USER", USER)
    monkeypatch.setenv("CB_PASSWORD", SECRET)
    with LocalCluster(nodes=1, vbuckets=2, seed=3, username=USER, password=SECRET) as found:
        yield found


def change(cluster: LocalCluster, number: int) -> None:
    for key in range(8):
        cluster.upsert(f"key-{key}", {"n": number})


def lose(cluster: LocalCluster) -> None:
    """Roll all vbuckets back to before the newest change."""
    for vbucket, seqno in cluster.high_seqnos().items():
        cluster.roll_back(vbucket, seqno - 1)


def test_a_file_that_is_opened_is_found(
    cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch, done_by_callbacks: list[str]
) -> None:
    monkeypatch.setattr(GatheringReceiver, "on_error", lambda *_: None)
    monkeypatch.setattr(GatheringReceiver, "snapshot_start", lambda *_: Path(__file__).read_bytes())
    change(cluster, 0)
    read_bucket(cluster, options=QUICK)
    assert "test_node_threads.py" in done_by_callbacks[0]
    done_by_callbacks.clear()


@pytest.mark.parametrize("copy", ["snapshot", "Delta table"])
def test_a_copy_that_is_rolled_back(cluster: LocalCluster, tmp_path: Path, copy: str) -> None:
    path = str(tmp_path / "copy")

    def update(*, new: bool = False) -> SnapshotResult | DeltaResult:
        if copy == "snapshot":
            return write_snapshot(cluster, path, parse=False, options=QUICK)
        return (
            to_delta(cluster, path, parse=False, options=QUICK)
            if new
            else update_delta(cluster, path, options=QUICK)
        )

    for number in range(3):
        change(cluster, number)
        update(new=not number)
    lose(cluster)
    result = update()
    assert sorted(result.rolled_back) == [0, 1]
    assert all(result.read_again.values()), "back to the second version, and not to the start"
    held = snapshot_rows(Path(path)) if copy == "snapshot" else delta_rows(path)
    assert held == truth(cluster)


def test_a_stream_that_is_rolled_back(cluster: LocalCluster) -> None:
    for number in range(2):
        change(cluster, number)
    with stream_bucket(cluster, options=QUICK) as stream:
        seen = 0
        while seen < 8 and (batch := stream.poll(timeout=30)) is not None:
            seen += len(batch)
            stream.ack(batch)
        checkpoint = stream.checkpoint
    lose(cluster)
    with stream_bucket(cluster, start=checkpoint, options=QUICK) as stream:
        batch = stream.poll(timeout=30)
        assert batch is not None
        assert batch.rollbacks


def test_a_read_between_offsets_that_is_rolled_back(cluster: LocalCluster) -> None:
    engine = Engine(reader_of(cluster))
    for number in range(2):
        change(cluster, number)
        assert engine.plan()
        if not number:
            engine.apply(engine.read())
    lose(cluster)
    engine.apply(engine.read())
    assert engine.resets == 2


def test_positions_are_handed_over_as_they_are(
    cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """JSON is for receivers of users: there is a position for each snapshot of each vbucket."""
    for name in ("to_json", "from_json"):
        monkeypatch.setattr(VBucketMetaData, name, None)
    change(cluster, 0)
    with stream_bucket(cluster, start="now", options=QUICK) as stream:
        assert len(read_bucket(cluster, options=QUICK)) == 8
        assert write_snapshot(cluster, tmp_path / "copy", options=QUICK).upserted == 8
        change(cluster, 1)
        assert stream.poll(timeout=30)


def test_what_cannot_be_read_for_a_rollback_ends_the_update(
    cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(_: RollbackPoints) -> None:
        raise SnapshotError("no disk", path=str(tmp_path))

    change(cluster, 0)
    write_snapshot(cluster, tmp_path / "copy", options=QUICK)
    lose(cluster)
    monkeypatch.setattr(RollbackPoints, "load", fail)
    with pytest.raises(SnapshotError, match="no disk"):
        write_snapshot(cluster, tmp_path / "copy", options=QUICK)
