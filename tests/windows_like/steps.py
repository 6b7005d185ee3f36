"""What people do on Windows, run by ``test_windows_like.py``: prints what went wrong, by step, as JSON."""

from __future__ import annotations

import io
import json
import selectors
import socket
import sys
import tempfile
import threading
import traceback
import warnings
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import cbframe
from cbframe import system
from cbframe.cli import main
from cbframe.scan.partition import in_processes

warnings.filterwarnings("error", category=EncodingWarning, module=r"cbframe\b")


class Steps:
    """Each method is a step; they share a cluster of two nodes with documents in it."""

    def __init__(self, cluster: cbframe.LocalCluster, folder: Path) -> None:
        self.cluster = cluster
        self.folder = folder
        self.count = 0

    def change(self, count: int) -> None:
        for n in range(self.count, self.count + count):
            self.cluster.upsert(f"key-{n}", {"n": n, "city": "京都"})
        self.count += count

    def system(self) -> None:
        """What was to be taken away is gone."""
        assert system.WINDOWS
        assert system.Selector is selectors.SelectSelector
        assert not hasattr(socket.socket, "sendmsg") or isinstance(socket.socket.sendmsg, property)
        assert socket.socketpair()[0].family is socket.AF_INET
        path = self.folder / "open"
        with path.open("wb"), pytest.raises(PermissionError):
            path.unlink()
        with pytest.raises(OSError, match=r"syntax is incorrect|No such file"):
            (self.folder / "a:b").write_bytes(b"")

    def read(self) -> None:
        self.change(500)
        frame = cbframe.read_bucket(self.cluster, progress=None)
        assert sorted(frame["n"]) == list(range(self.count))
        with cbframe.LocalCluster(1, 4) as refused:
            address = refused.connection_string
        with pytest.raises(cbframe.CbframeError, match="cannot connect: Connection refused"):
            cbframe.read_bucket(address, auth=("a", "b"), progress=None, timeout=0.5)

    def files(self) -> None:
        scan = cbframe.scan_bucket(self.cluster)
        path = self.folder / "bucket.parquet"
        for _ in range(2):
            scan.to_parquet(path, overwrite=True)
        assert pq.read_metadata(path).num_rows == self.count
        # Another program has the file open: for good, and for a moment.
        with path.open("rb"), pytest.raises(PermissionError, match="open in another program") as caught:
            scan.to_parquet(path, overwrite=True)
        assert path.name in str(caught.value)
        held = path.open("rb")
        threading.Timer(0.1, held.close).start()
        scan.to_parquet(path, overwrite=True)
        assert [each.name for each in self.folder.glob("*bucket*")] == ["bucket.parquet"]

    def folders(self) -> None:
        scan = cbframe.scan_bucket(self.cluster)
        place = self.folder / "parts"
        place.mkdir()  # an empty folder may be given
        for overwrite in (False, True):
            scan.to_parquet(place, workers=2, overwrite=overwrite)
            rows = sum(pq.read_metadata(file).num_rows for file in place.glob("*.parquet"))
            assert rows == self.count

    def snapshot(self) -> None:
        place = self.folder / "snapshot"
        for _ in range(3):
            self.change(20)
            cbframe.write_snapshot(self.cluster, place)
        snapshot = cbframe.Snapshot(place)
        files = {f"data/{path.name}" for path in (place / "data").iterdir()}
        assert len(files) == 3
        reader = snapshot.to_reader(as_of=3)
        reader.read_next_batch()
        cbframe.write_snapshot(self.cluster, place, mode="overwrite")
        # What somebody reads stays until next time.
        left = files - set(snapshot.vacuum(keep=1))
        assert left
        assert len(snapshot.to_pandas()) == self.count
        del reader
        assert set(snapshot.vacuum(keep=1)) == left

    def locks(self) -> None:
        from cbframe.scan.store import open_store, writing  # noqa: PLC0415

        store = open_store(self.folder / "snapshot")
        with writing(store), pytest.raises(cbframe.SnapshotError, match="is being written by process"):
            cbframe.write_snapshot(self.cluster, self.folder / "snapshot")
        cbframe.write_snapshot(self.cluster, self.folder / "snapshot")

    def stream(self) -> None:
        path = self.folder / "checkpoint.json"
        with cbframe.stream_bucket(self.cluster, start="beginning") as changes:
            seen = 0
            while seen < self.count:
                batch = changes.poll(20)
                assert batch is not None
                seen += len(batch.record_batch)
                changes.ack(batch)
                changes.checkpoint.save(path)
                changes.checkpoint.save(path)
        assert seen == self.count
        begin = cbframe.Checkpoint.load(path)
        self.change(10)
        with cbframe.stream_bucket(self.cluster, start=begin) as changes:
            written = changes.to_parquet(self.folder / "changes", seconds=2, rotate={"rows": 5})
        assert sum(pq.read_metadata(file).num_rows for file in written) == 10

    def processes(self) -> None:
        assert in_processes(str, list(range(4)), 2) == ["0", "1", "2", "3"]

    def doctor(self) -> None:
        found = cbframe.doctor(self.cluster)
        assert found.ok, str(found)

    def cli(self) -> None:
        secret = self.folder / "password"
        secret.write_bytes(b"password\r\n")
        login = [self.cluster.connection_string, "--user", "Administrator", "--password-file", str(secret)]
        for arguments, text in {
            ("read", *login): "_cb_key",
            ("schema", *login, "--all"): f"{self.count:,} documents",
            ("stream", *login, "--json", "--limit", "5"): '"city":"京都"',
            ("doctor", *login): "everything is well",
            ("snapshot", "versions", str(self.folder / "snapshot")): "version",
        }.items():
            raw = io.BytesIO()
            out, err = sys.stdout, sys.stderr
            sys.stdout = console = io.TextIOWrapper(raw, encoding="cp1252", newline="\r\n")
            sys.stderr = complaints = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
            try:
                status = main(arguments)
                console.flush()
            finally:
                sys.stdout, sys.stderr = out, err
            complaints.seek(0)
            assert status == 0, complaints.read()
            assert text in raw.getvalue().decode("utf-8" if "--json" in arguments else "cp1252")


def run() -> None:
    wrong: dict[str, str | None] = {}
    with tempfile.TemporaryDirectory() as folder, cbframe.LocalCluster(2, 8) as cluster:
        steps = Steps(cluster, Path(folder))
        for name in sys.argv[1:] or vars(Steps):
            if name.startswith("_") or name == "change":
                continue
            try:
                getattr(steps, name)()
            except Exception:  # noqa: BLE001 - shown by the test
                wrong[name] = traceback.format_exc()
            else:
                wrong[name] = None
    print(json.dumps(wrong))


if __name__ == "__main__":
    run()
