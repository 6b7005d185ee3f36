"""Compare a bucket read by one process with the same read by several, at wire speed, in turn.

    python tests/bench/partitions.py                    # 1,000,000 documents of 256 B, 5 rounds, 2 workers
    python tests/bench/partitions.py --workers 1,2,4 --nodes 2

Starts the replay server, then has each side write the bucket as Parquet, as a process of its own:
``scan.to_parquet(path)`` and ``scan.to_parquet(path, workers=n)``, whose workers each read partitions.
CPU is user + system time of the client and of all its workers, from when its imports are done; the
workers' imports are a part of what they cost. Wall time is that of the call. Each node of the server is
one process: with as many nodes as workers it is not what they wait for, given enough processors.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

from wire_speed import run, server

WHATS = {"cpu": "CPU s", "wall": "wall s"}


def cpu() -> float:
    """Seconds of this process and of its children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def client(workers: int, port: int) -> None:
    """Write the bucket as Parquet, by so many processes or by this one if 0, and print the figures."""
    import pandas  # noqa: F401, ICN001 - not a part of what is measured
    import pyarrow.dataset
    import pyarrow.parquet

    import cbframe
    import cbframe.frame.convert
    import cbframe.frame.parts

    scan = cbframe.scan_bucket(f"couchbase://127.0.0.1:{port + 1}/bench", auth=("Administrator", "password"))
    with tempfile.TemporaryDirectory() as scratch:
        before, began = cpu(), time.perf_counter()
        path = scan.to_parquet(Path(scratch, "bench"), workers=workers or None)
        after, wall = cpu(), time.perf_counter() - began
        peaks = [
            resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        ]
        found = pyarrow.dataset.dataset(path, format="parquet")
        keys = found.to_table(columns=["_cb_key"])["_cb_key"]
        files = [path] if path.is_file() else [*path.iterdir()]
        size = sum(file.stat().st_size for file in files)
    assert scan.last is not None
    figures = {
        "docs": len(keys),
        "keys": len(keys.unique()),
        "reported": scan.last.documents,
        "received_mb": scan.last.report.bytes / 1e6,
        "cpu": after - before,
        "wall": wall,
        "rss_mb": max(peaks) / 1024,
        "result_mb": size / 1e6,
    }
    print(json.dumps(figures))


def command(workers: int, port: int) -> list[str]:
    return [sys.executable, __file__, "--client", str(workers), str(port)]


def compare(workers: int, port: int, options: argparse.Namespace) -> None:
    """Print the rows of one number of workers: both sides in turn, medians, the median of the ratios."""
    pairs = []
    for number in range(options.rounds):
        # Neither side is always the one that finds the caches warm.
        sides = [(workers, port), (0, port)][:: 1 if number % 2 else -1]
        found = {side[0]: run(command(*side)) for side in sides}
        pairs.append((found[workers], found[0]))
    for figures in (side for pair in pairs for side in pair):
        if not figures["docs"] == figures["keys"] == figures["reported"] == options.docs:
            raise SystemExit(f"not all {options.docs} documents were read, each once: {figures}")
    median = statistics.median
    for what, name in WHATS.items():
        ratios = [many[what] / one[what] for many, one in pairs]
        print(
            f"| workers={workers} | {name} | {median(many[what] for many, _ in pairs):.2f} "
            f"| {median(one[what] for _, one in pairs):.2f} "
            f"| {median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f}) "
            f"| {median(many['rss_mb'] for many, _ in pairs):.0f} "
            f"| {median(one['rss_mb'] for _, one in pairs):.0f} |",
            flush=True,
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--docs", type=int, default=1_000_000)
    parser.add_argument("--value-bytes", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", default="2", help="numbers of processes, with commas between")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--client", nargs=2, type=int, metavar=("WORKERS", "PORT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.client:
        client(*options.client)
        return 0
    print(
        "| side | what | workers | one process | ratio | largest process, peak RSS MB | one's peak RSS MB |"
    )
    print("|---|---|---|---|---|---|---|", flush=True)
    with server(options, "--nodes", str(options.nodes)) as port:
        for workers in options.workers.split(","):
            compare(int(workers), port, options)
    return 0


if __name__ == "__main__":
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.exit(main())
