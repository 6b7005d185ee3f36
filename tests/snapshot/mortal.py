"""A process whose children update a snapshot, and die of SIGKILL on the way. Jobs come as lines of JSON.

Run as a script. Children are forks, so that a death costs no start of an interpreter.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from cbframe import BucketDataSourceOptions, Snapshot, write_snapshot
from cbframe.arrow.spill import Spill
from cbframe.dcp.transport import SocketStream
from cbframe.snapshot.store import Output

OPTIONS = BucketDataSourceOptions(data_manager_sleep_init_ms=1, data_manager_sleep_max_ms=10)


def die_at(moment: int) -> Callable[[], int]:
    """End this process at one of the moments at which something changes, in memory or on the disk.

    Returns
    -------
    callable
        Tells how many there were so far.
    """
    left = moment

    def mortal(function: Callable[..., Any], *, after: bool) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            nonlocal left
            if not after:
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
            result = function(*args, **named)
            if after:
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call

    places: list[tuple[Any, str]] = [
        (SocketStream, "receive_into"),
        (Spill, "put"),
        (Output, "write"),
        (os, "fsync"),
        (os, "link"),
        (os, "open"),
        (os, "scandir"),
        (os, "unlink"),
    ]
    for number, (owner, name) in enumerate(places):
        setattr(owner, name, mortal(getattr(owner, name), after=number % 2 == 0))
    return lambda: moment - left


def die_at_publication(*, behind: bool) -> None:
    """End this process just before a version gets its name, or just behind it."""
    link = os.link

    def call(*args: Any) -> None:
        if behind:
            link(*args)
        os.kill(os.getpid(), signal.SIGKILL)

    os.link = call  # type: ignore[assignment]


def work(job: dict[str, Any]) -> int:
    """Do a job; how many moments there were to die at."""
    if job["publication"] is not None:
        die_at_publication(behind=job["publication"] == "behind")
    moments = die_at(sys.maxsize if job["die_at"] is None else job["die_at"])
    if job["compact"]:
        Snapshot(job["path"]).compact(keep="0s")
        Snapshot(job["path"]).vacuum(keep=2)
    write_snapshot(
        job["conn"],
        job["path"],
        auth=tuple(job["auth"]),
        parse=False,
        file_bytes=2000,
        batch_bytes=4000,
        options=OPTIONS,
        timeout=60,
    )
    return moments()


def main() -> None:
    for line in sys.stdin:
        job = json.loads(line)
        read, write = os.pipe()
        pid = os.fork()
        if not pid:
            os.write(write, str(work(job)).encode())
            os._exit(0)
        os.close(write)
        if job["kill_after"] is not None:
            time.sleep(job["kill_after"])
            os.kill(pid, signal.SIGKILL)  # it is not reaped before: the number is still its own
        _, status = os.waitpid(pid, 0)
        told = {"status": os.waitstatus_to_exitcode(status), "moments": os.read(read, 100).decode()}
        os.close(read)
        sys.stdout.write(json.dumps(told) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
