"""Run an embedded cluster as a program: ``python -m cbframe.local``."""

from __future__ import annotations

import argparse
import json
import os
import signal
import stat
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any

from cbframe.errors import CbframeError, ConfigurationError
from cbframe.local.cluster import LocalCluster, control
from cbframe.local.loop import ServerTLS
from cbframe.system import Event, OwnThread, waited


def serve(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT, or the end of the standard input where that is a pipe.

    Prints one line of JSON with ``connection_string``, ``rest_urls``, ``username`` and ``pid``
    when the cluster is ready; with certificates also the addresses for TLS.
    """
    if argv is None and sys.argv[1:] == ["--control"]:  # as the child of a LocalCluster
        return control(sys.stdin.buffer, sys.stdout.buffer)
    return _stand_alone(parser().parse_args(argv))


def parser() -> argparse.ArgumentParser:
    """The arguments of ``cbframe serve``."""
    found = argparse.ArgumentParser(
        prog="cbframe serve",
        description="Run an embedded Couchbase on 127.0.0.1 until Ctrl-C.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n  cbframe serve --sample 1000\n  cbframe serve --nodes 3 --bucket travel",
    )
    default = "default: %(default)s"
    found.add_argument("--nodes", type=int, default=1, metavar="N", help=f"how many; {default}")
    found.add_argument("--vbuckets", type=int, default=1024, metavar="N", help=f"how many; {default}")
    found.add_argument("--bucket", default="default", help=f"its name; {default}")
    found.add_argument("--username", default="Administrator", help=f"the one user; {default}")
    password = os.environ.get("CBFRAME_LOCAL_PASSWORD", "password")
    found.add_argument("--password", default=password, help="default: $CBFRAME_LOCAL_PASSWORD, or password")
    found.add_argument("--replicas", type=int, default=0, metavar="N", help=f"of each vbucket; {default}")
    found.add_argument("--seed", type=int, metavar="N", help="have the same uuids each time")
    found.add_argument("--sample", type=int, default=0, metavar="N", help="load N documents of sample data")
    tls = found.add_argument_group("TLS", "each node then has a TLS port beside each of its two")
    tls.add_argument("--tls-cert", metavar="FILE", help="certificate for 127.0.0.1, and its chain")
    tls.add_argument("--tls-key", metavar="FILE", help="its key, if it is not in the same file")
    tls.add_argument("--tls-client-ca", metavar="FILE", help="take client certificates of this authority")
    return found


def _stand_alone(options: argparse.Namespace) -> int:
    done = Event()

    def stop(_number: int, _frame: FrameType | None) -> None:
        done.set()

    for number in (signal.SIGTERM, signal.SIGINT, getattr(signal, "SIGBREAK", signal.SIGINT)):
        signal.signal(number, stop)
    try:
        tls = None
        if options.tls_cert is not None:
            tls = ServerTLS(options.tls_cert, options.tls_key, options.tls_client_ca)
        elif options.tls_key is not None or options.tls_client_ca is not None:
            raise ConfigurationError("a key or an authority alone makes no TLS", hint="give --tls-cert")
        cluster = LocalCluster(
            options.nodes,
            options.vbuckets,
            bucket=options.bucket,
            username=options.username,
            password=options.password,
            replicas=options.replicas,
            seed=options.seed,
            tls=tls,
        ).start()
    except CbframeError as exc:
        sys.stderr.write(f"{exc}\n")
        return 2
    with cluster:
        if options.sample:
            cluster.load_sample(options.sample)
        ready: dict[str, Any] = {
            "connection_string": cluster.connection_string,
            "rest_urls": cluster.rest_urls,
            "username": cluster.username,
            "pid": os.getpid(),
        }
        if tls is not None:
            ready["tls_connection_string"] = cluster.tls_connection_string
            ready["tls_rest_urls"] = cluster.tls_rest_urls
        sys.stdout.write(json.dumps(ready) + "\n")
        sys.stdout.flush()

        def watch_input() -> None:
            while os.read(sys.stdin.fileno(), 4096):
                pass
            done.set()

        # A pipe ends with whoever holds its other end; what is no pipe, as under a service manager, does
        # not end.
        if sys.stdin is not None and stat.S_ISFIFO(os.fstat(sys.stdin.fileno()).st_mode):
            # A daemon: a read of the standard input cannot be interrupted otherwise.
            OwnThread(watch_input, "cbframe-local-stdin").start()
        waited(done.wait, None)
    return 0


if __name__ == "__main__":
    sys.exit(serve())
