"""Seconds from a write to the receiver of a live stream, while little comes and while more does.

    python tests/bench/latency.py                     # writes every 50, 3 and 0.3 ms
    python tests/bench/latency.py --latency 0         # everything is taken as it comes

Each document holds the moment of its write, on a clock that all processes share. What the embedded
server takes is in the figures, so compare them with those of ``--latency 0``.

Segments are as long as Ethernet's. With those of the loopback interface, 64 KiB, the client's system
acknowledges only what was read; the server's may have ten small segments under way until then, so
documents wait for a second receive.
"""

from __future__ import annotations

import argparse
import socket
import statistics
import sys
import threading
import time

from cbframe import BucketDataSourceOptions, LocalCluster
from cbframe.dcp.receiver import Document
from cbframe.dcp.source import BucketDataSource
from cbframe.testing import RecordingReceiver

_SEGMENT = 1448


class Receiver(RecordingReceiver):
    """Keeps how long each document took."""

    def __init__(self) -> None:
        super().__init__()
        self.took: list[float] = []

    def data_update(self, vbucket: int, key: bytes, seqno: int, document: Document) -> None:
        self.took.append(time.monotonic() - float(document.value))
        super().data_update(vbucket, key, seqno, document)


def connected(_protocol: str, address: str) -> socket.socket:
    """To a data node, in Ethernet's segments."""
    host, _, port = address.rpartition(":")
    sock = socket.socket()
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, _SEGMENT)
    sock.connect((host, int(port)))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def measure(interval: float, writes: int, latency: float) -> tuple[list[float], int]:
    """Milliseconds of each write, and how many receives there were."""
    receiver = Receiver()
    with LocalCluster(vbuckets=64, process=True) as cluster:
        options = BucketDataSourceOptions(receive_latency=latency, connect=connected)
        auth = (cluster.username, cluster.password)
        with BucketDataSource(
            cluster.connection_string, "default", cluster.bucket, "", None, auth, receiver, options
        ) as source:
            pause = threading.Event()
            for number in range(writes):
                cluster.upsert(f"k{number}", repr(time.monotonic()).encode())
                pause.wait(interval)
            with receiver.changed:
                if not receiver.changed.wait_for(lambda: len(receiver.took) == writes, 30):
                    raise SystemExit(f"{len(receiver.took)} of {writes} documents came")
            return [1000 * seconds for seconds in receiver.took[1:]], source.stats().total.receives


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--latency", type=float, default=0.02, help="receive_latency of the source, in seconds"
    )
    parser.add_argument("--writes", type=int, default=1000)
    options = parser.parse_args()
    for interval in (0.05, 0.003, 0.0003):
        writes = min(options.writes, int(20 / interval))
        took, receives = measure(interval, writes, options.latency)
        cut = statistics.quantiles(took, n=100)
        print(
            f"a write every {1000 * interval:g} ms: median {statistics.median(took):.2f} ms, "
            f"99 % {cut[98]:.2f} ms, most {max(took):.2f} ms; {receives} receives of {writes} documents"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
