"""Run an embedded cluster as a program: ``python -m cbframe.local``."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from functools import partial
from types import FrameType
from typing import IO, Any

from cbframe.errors import CbframeError
from cbframe.local.cluster import LocalCluster
from cbframe.local.engine import Engine
from cbframe.local.process import answer, unpack


def serve(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM, SIGINT or the end of the standard input.

    Prints one line of JSON with ``connection_string``, ``rest_urls``, ``username`` and ``pid``
    when the cluster is ready.

    Parameters
    ----------
    argv
        Arguments without the program's name; None for those of the process.

    Returns
    -------
    int
        Exit status.
    """
    parser = argparse.ArgumentParser(
        prog="cbframe serve", description="Run an embedded Couchbase on 127.0.0.1."
    )
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--vbuckets", type=int, default=1024)
    parser.add_argument("--bucket", default="default")
    parser.add_argument("--username", default="Administrator")
    parser.add_argument("--password", default=os.environ.get("CBFRAME_LOCAL_PASSWORD", "password"))
    parser.add_argument("--replicas", type=int, default=0)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--sample", type=int, default=0, metavar="N", help="load N documents of sample data")
    parser.add_argument("--control", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.control:
        return _control(sys.stdin.buffer, sys.stdout.buffer)
    return _stand_alone(options)


def _stand_alone(options: argparse.Namespace) -> int:
    done = threading.Event()

    def stop(_number: int, _frame: FrameType | None) -> None:
        done.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    try:
        cluster = LocalCluster(
            options.nodes,
            options.vbuckets,
            bucket=options.bucket,
            username=options.username,
            password=options.password,
            replicas=options.replicas,
            seed=options.seed,
        ).start()
    except CbframeError as exc:
        sys.stderr.write(f"{exc}\n")
        return 2
    with cluster:
        if options.sample:
            cluster.load_sample(options.sample)
        ready = {
            "connection_string": cluster.connection_string,
            "rest_urls": cluster.rest_urls,
            "username": cluster.username,
            "pid": os.getpid(),
        }
        sys.stdout.write(json.dumps(ready) + "\n")
        sys.stdout.flush()

        def watch_input() -> None:
            while os.read(sys.stdin.fileno(), 4096):
                pass
            done.set()

        # A daemon: a read of the standard input cannot be interrupted otherwise.
        threading.Thread(target=watch_input, name="cbframe-local-stdin", daemon=True).start()
        done.wait()
    return 0


def _control(stdin: IO[bytes], stdout: IO[bytes]) -> int:
    """Do what the parent says, from the options of the cluster to the end of the input."""
    # Ctrl-C goes to the whole group of processes: the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    engine: Engine | None = None

    def call(message: Any) -> Any:
        nonlocal engine
        if engine is None:
            engine = Engine(**message)
            return engine.addresses()
        name, args, kwargs = message
        return getattr(engine, name)(*args, **kwargs)

    try:
        while True:
            message = unpack(stdin)
            stdout.write(answer(partial(call, message)))
            stdout.flush()
    except (EOFError, BrokenPipeError):
        return 0
    finally:
        if engine is not None:
            engine.close()
