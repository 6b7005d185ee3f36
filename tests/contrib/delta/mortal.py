"""A process whose children write a Delta table, and die of SIGKILL on the way. Jobs come as lines of JSON.

Run as a script. Each child is an interpreter of its own: the threads of deltalake do not survive a fork.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from cbframe import BucketDataSourceOptions
from cbframe.arrow.spill import Spill
from cbframe.contrib.delta import mirror, table, to_delta, update_delta
from cbframe.dcp.transport import SocketStream

OPTIONS = BucketDataSourceOptions(data_manager_sleep_init_ms=1, data_manager_sleep_max_ms=10)


def die_at(moment: int) -> None:
    """End this process at one of the moments at which something changes, in memory or on the disk.

    -1 is just before the commit, -2 just behind it.
    """
    left = moment if moment >= 0 else [1, 0][moment]

    def reached() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def mortal(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            reached()
            result = function(*args, **named)
            reached()
            return result

        return call

    places: list[tuple[Any, str]] = [
        (SocketStream, "receive_into"),
        (Spill, "put"),
        (table.Waiting, "put"),
        (mirror.Mirror, "_write"),
        (table.Committer, "overwrite"),
        (table.Committer, "merge"),
        (table.Committer, "version"),
    ]
    if moment < 0:
        places = [(table.Committer, "merge"), (table.Committer, "overwrite")]
    for owner, name in places:
        setattr(owner, name, mortal(getattr(owner, name)))


def work(job: dict[str, Any]) -> None:
    if job["die_at"] is not None:
        die_at(job["die_at"])
    arguments = {"auth": tuple(job["auth"]), "options": OPTIONS, "timeout": 60, "batch_bytes": 4000}
    if job["exists"]:
        update_delta(job["conn"], job["uri"], **arguments)
    else:
        to_delta(job["conn"], job["uri"], parse=False, **arguments)


if __name__ == "__main__":
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    work(json.loads(sys.stdin.readline()))
    os._exit(0)
