"""A process whose children update a snapshot, and die of SIGKILL on the way. Jobs come as lines of JSON.

Run as a script. Children are forks, so that a death costs no start of an interpreter.
"""

from __future__ import annotations

import itertools
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


PLACES: dict[str, Any] = {
    "receive_into": SocketStream,
    "put": Spill,
    "write": Output,
    "fsync": os,
    "link": os,
    "open": os,
    "scandir": os,
    "unlink": os,
}
"""Functions in which something changes, in memory or on the disk, and whose they are."""


def die_at(death: tuple[str, int, bool] | None, last_words: int) -> Callable[[], dict[str, int]]:
    """End this process just before or just behind a call of one of the functions.

    Parameters
    ----------
    death
        The function, the number of the call, and whether it is behind it; None to live.
    last_words
        A descriptor; a death is announced there.

    Returns
    -------
    callable
        Tells how many calls there were.
    """
    calls = {name: itertools.count() for name in PLACES}

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

    for name, owner in PLACES.items():
        setattr(owner, name, mortal(getattr(owner, name), name))
    return lambda: {name: next(numbers) for name, numbers in calls.items()}


def die_at_publication(*, behind: bool) -> None:
    """End this process just before a version gets its name, or just behind it."""
    link = os.link

    def call(*args: Any) -> None:
        if behind:
            link(*args)
        os.kill(os.getpid(), signal.SIGKILL)

    os.link = call  # type: ignore[assignment]


def work(job: dict[str, Any], last_words: int) -> dict[str, int]:
    """Do a job; how often each function was called."""
    if job["publication"] is not None:
        die_at_publication(behind=job["publication"] == "behind")
    calls = die_at(job["die_at"] and tuple(job["die_at"]), last_words)
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
