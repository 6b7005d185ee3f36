"""A process whose children update a mirror, and die of SIGKILL on the way. Jobs come as lines of JSON.

Run as a script. Children are forks, so that a death costs no start of an interpreter; nothing of
deltalake runs in their parent, whose threads would not survive.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from deltalake import DeltaTable

from cbframe import BucketDataSourceOptions, Snapshot, write_snapshot
from cbframe.arrow.spill import Spill
from cbframe.contrib import delta, iceberg, mirror, stored_rows
from cbframe.dcp.transport import SocketStream
from cbframe.scan.store import Output

with suppress(ModuleNotFoundError):
    # Once, and not in each child.
    from pyiceberg.catalog import load_catalog, sql  # noqa: F401
    from pyiceberg.io import pyarrow  # noqa: F401

OPTIONS = BucketDataSourceOptions(data_manager_sleep_init_ms=1, data_manager_sleep_max_ms=10)

PLACES: dict[str, list[tuple[Any, str]]] = {
    "snapshot": [
        (SocketStream, "receive_into"),
        (Spill, "put"),
        (Output, "write"),
        *((os, name) for name in ("fsync", "link", "open", "scandir", "unlink")),
    ],
    "delta": [
        (SocketStream, "receive_into"),
        (Spill, "put"),
        (stored_rows.Waiting, "put"),
        (mirror.Mirror, "_write"),
        *((delta.Delta, name) for name in ("overwrite", "merge", "result")),
    ],
    "iceberg": [
        (SocketStream, "receive_into"),
        (Spill, "put"),
        (stored_rows.Waiting, "put"),
        (mirror.Mirror, "_write"),
        *((iceberg.Iceberg, name) for name in ("overwrite", "merge", "_commit", "result")),
    ],
}
"""Functions in which something changes, in memory or on the disk."""


def die_at(kind: str, death: tuple[str, int, bool] | None, last_words: int) -> Callable[[], dict[str, int]]:
    """End this process just before or just after a call of one of the functions.

    Parameters
    ----------
    death
        The function, the number of the call, and whether it is after it; None to live.
    last_words
        A descriptor; a death is announced there.

    Returns
    -------
    callable
        Tells how many calls there were.
    """
    calls = {name: itertools.count() for _, name in PLACES[kind]}

    def reached(*moment: object) -> None:
        if moment == death:
            os.write(last_words, b"dies")
            os.kill(os.getpid(), signal.SIGKILL)

    def mortal(function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            number = next(calls[name])
            reached(name, number, False)
            result = function(*args, **named)
            reached(name, number, True)
            return result

        return call

    for owner, name in PLACES[kind]:
        setattr(owner, name, mortal(getattr(owner, name), name))
    return lambda: {name: next(numbers) for name, numbers in calls.items()}


def work(job: dict[str, Any], last_words: int) -> dict[str, int]:
    """Do a job; how often each function was called."""
    calls = die_at(job["kind"], job["die_at"] and tuple(job["die_at"]), last_words)
    place, auth = job["place"], tuple(job["auth"])
    arguments: dict[str, Any] = {"auth": auth, "options": OPTIONS, "timeout": 60, "batch_bytes": 4000}
    if job["kind"] == "snapshot":
        if job["compact"]:
            Snapshot(place).compact(keep="0s")
            Snapshot(place).vacuum(keep=2)
        write_snapshot(job["conn"], place, parse=False, file_bytes=2000, **arguments)
    elif job["kind"] == "iceberg":
        Path(place).mkdir(exist_ok=True)
        properties = {"uri": f"sqlite:///{place}/catalog.db", "warehouse": Path(place).as_uri()}
        with closing(load_catalog(None, type="sql", **properties)) as catalog:
            catalog.create_namespace_if_not_exists("lake")
            if catalog.table_exists("lake.travel"):
                iceberg.update_iceberg(job["conn"], "lake.travel", catalog=catalog, **arguments)
            else:
                iceberg.to_iceberg(job["conn"], "lake.travel", catalog=catalog, parse=False, **arguments)
    elif DeltaTable.is_deltatable(place):
        delta.update_delta(job["conn"], place, **arguments)
    else:
        delta.to_delta(job["conn"], place, parse=False, **arguments)
    return calls()


def main() -> None:
    for line in sys.stdin:
        job = json.loads(line)
        read, write = os.pipe()
        pid = os.fork()
        if not pid:
            os.write(write, json.dumps(work(job, write)).encode())
            os._exit(0)
        os.close(write)
        if job["kill_after"] is not None:
            time.sleep(job["kill_after"])
            os.kill(pid, signal.SIGKILL)  # it is not reaped before: the number is still its own
        _, status = os.waitpid(pid, 0)
        told = {"status": os.waitstatus_to_exitcode(status), "words": os.read(read, 1000).decode()}
        os.close(read)
        sys.stdout.write(json.dumps(told) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
