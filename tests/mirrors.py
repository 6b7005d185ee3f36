"""What follows a bucket, a snapshot, a Delta or Iceberg table: one way to write, to read and to kill all."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import subprocess
import sys
import time
import weakref
from collections import Counter
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from contrib.delta import kit as delta
from deltalake import DeltaTable
from scan.kit import Row
from snapshot import kit as snapshots
from snapshot.conftest import Calendar

from cbframe import LocalCluster, Snapshot, SnapshotError
from cbframe.scan.store import LocalStore
from cbframe.snapshot.manifest import History, name_of

with contextlib.suppress(ModuleNotFoundError):
    from contrib.iceberg import kit as iceberg

SCRIPT = Path(__file__).with_name("mortal.py")
KILLED = -signal.SIGKILL
Death: TypeAlias = tuple[str, int, bool]
"""A function, the number of its call, and whether it is after the call rather than before it."""


class SnapshotMirror:
    kind = "snapshot"
    what = "snapshot is of"
    publication = "link"
    """The function that makes a version visible."""

    def __init__(self, folder: Path) -> None:
        self.place = folder / self.kind
        self.calendar = Calendar()

    def update(self, conn: Any, **arguments: Any) -> Any:
        return snapshots.update(conn, self.place, **{"clock": self.calendar, **arguments})

    def held(self, version: int | None = None) -> dict[bytes, Row]:
        """Every document of a version, with all of its metadata."""
        return snapshots.held(self.place, version)

    def exists(self) -> bool:
        try:
            Snapshot(self.place)
        except SnapshotError:
            return False
        return True

    def version(self) -> int:
        return Snapshot(self.place).version

    def versions(self) -> set[int]:
        return {each.version for each in Snapshot(self.place).versions}

    def pack(self) -> None:
        """Within the last day nothing is left out."""
        Snapshot(self.place).compact(clock=self.calendar)

    def tidy(self, rng: random.Random, happened: Counter[str]) -> bool:
        """What its owner may do to it; whether older versions are gone."""
        self.calendar.go_on(minutes=10)
        if rng.random() > 0.3:
            return False
        Snapshot(self.place).compact(keep=rng.choice(["0s", "25min", "1d"]), clock=self.calendar)
        happened["compacted"] += 1
        if rng.random() > 0.3:
            return False
        Snapshot(self.place).vacuum(keep=1, clock=self.calendar)
        happened["vacuumed"] += 1
        return True

    def verify(self) -> None:
        verification = Snapshot(self.place).verify()
        assert verification.ok, str(verification)

    def nothing_left(self) -> None:
        """What writers left that were killed is gone."""
        history = History(LocalStore(self.place))
        named = {entry.name for number in history.numbers() for entry in history.load(number).files}
        assert {f"data/{each.name}" for each in (self.place / "data").iterdir()} <= named
        assert {each.name for each in (self.place / "manifest").iterdir()} == {
            name_of(number).partition("/")[2] for number in history.numbers()
        }


class DeltaMirror:
    kind = "delta"
    what = "table mirrors"
    publication = "merge"

    def __init__(self, folder: Path) -> None:
        self.place = folder / self.kind

    def update(self, conn: Any, **arguments: Any) -> Any:
        if self.exists() and "mode" not in arguments:
            return delta.update(conn, str(self.place), **arguments)
        return delta.make(conn, str(self.place), parse=False, **arguments)

    def held(self, version: int | None = None) -> dict[bytes, Row]:
        return delta.held(str(self.place), version)

    def exists(self) -> bool:
        return DeltaTable.is_deltatable(str(self.place))

    def version(self) -> int:
        return DeltaTable(str(self.place)).version()

    def versions(self) -> set[int]:
        return {*range(self.version() + 1)}

    def pack(self) -> None:
        table = DeltaTable(str(self.place))
        table.vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)

    def tidy(self, rng: random.Random, happened: Counter[str]) -> bool:
        if rng.random() < 0.2:
            DeltaTable(str(self.place)).optimize.compact()
            happened["compacted"] += 1
        if rng.random() > 0.15:
            return False
        self.pack()
        happened["vacuumed"] += 1
        return True

    def verify(self) -> None:
        """The table's own readers do."""

    def nothing_left(self) -> None:
        """Files that no commit names are Delta's usual: vacuum() deletes them."""


class IcebergMirror:
    kind = "iceberg"
    what = "table mirrors"
    publication = "merge"

    def __init__(self, folder: Path) -> None:
        pytest.importorskip("pyiceberg", reason="it needs a newer pyarrow than the lowest one")
        folder.mkdir(exist_ok=True)
        self.place = folder / self.kind
        self.catalog = iceberg.catalog_of(self.place)
        weakref.finalize(self, self.catalog.close)

    def update(self, conn: Any, **arguments: Any) -> Any:
        if self.exists() and "mode" not in arguments:
            return iceberg.update(conn, self.catalog, **arguments)
        return iceberg.make(conn, self.catalog, parse=False, **arguments)

    def held(self, version: int | None = None) -> dict[bytes, Row]:
        return iceberg.held(self.catalog, version)

    def exists(self) -> bool:
        return self.catalog.table_exists(iceberg.NAME)

    def version(self) -> int:
        return max(self.versions())

    def versions(self) -> set[int]:
        return {*iceberg.numbers(self.catalog)}

    def pack(self) -> None:
        iceberg.expire(self.catalog)

    def tidy(self, rng: random.Random, happened: Counter[str]) -> bool:
        if rng.random() < 0.2:
            iceberg.compact(self.catalog)
            happened["compacted"] += 1
            return False  # pyiceberg hides of which snapshot it was, if that is expired
        if rng.random() > 0.15:
            return False
        self.pack()
        happened["vacuumed"] += 1
        return True

    def verify(self) -> None:
        """The table's own readers do."""

    def nothing_left(self) -> None:
        """Files that no snapshot names are Iceberg's usual: remove_orphan_files() deletes them."""


Mirror: TypeAlias = SnapshotMirror | DeltaMirror | IcebergMirror
KINDS: dict[str, type[Mirror]] = {each.kind: each for each in (SnapshotMirror, DeltaMirror, IcebergMirror)}


class Mortals:
    """Processes that update a mirror.

    Attributes
    ----------
    calls
        How often the last one that lived called each function in which it could have died.
    seconds
        That it took.
    dead
        Whether the last one died in the function, before anyone killed it from outside.
    """

    def __init__(self, cluster: LocalCluster, mirror: Mirror) -> None:
        self._job: dict[str, Any] = {
            "kind": mirror.kind,
            "conn": cluster.connection_string,
            "auth": (cluster.username, cluster.password),
            "place": str(mirror.place),
        }
        self.calls: dict[str, int] = {}
        self.seconds = 0.0
        self.dead = False
        self._process = subprocess.Popen(
            [sys.executable, str(SCRIPT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def update(
        self,
        *,
        place: Path | None = None,
        die_at: Death | None = None,
        kill_after: float | None = None,
        compact: bool = False,
    ) -> int:
        """Have a child update the mirror; its exit status, negative for a signal."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        job = self._job | {"die_at": die_at, "kill_after": kill_after, "compact": compact}
        if place is not None:
            job["place"] = str(place)
        began = time.monotonic()
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        told = json.loads(self._process.stdout.readline())
        self.dead = told["words"] == "dies"
        if told["words"] and not self.dead:
            self.calls, self.seconds = json.loads(told["words"]), time.monotonic() - began
        return int(told["status"])

    def death(self, rng: random.Random) -> Death:
        """One that is as likely in each function, and half of the time in its last calls."""
        name = rng.choice(list(self.calls))
        count = max(self.calls[name], 1)
        number = rng.randrange(count) if rng.random() < 0.5 else max(count - rng.randrange(1, 6), 0)
        return name, number, rng.random() < 0.5

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process.wait(30)
