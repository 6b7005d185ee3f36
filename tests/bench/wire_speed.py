"""Compare cbframe with a reader written by hand, at wire speed, round by round in turn.

    python tests/bench/wire_speed.py                    # 1,000,000 documents of 256 B, 5 rounds

Starts the replay server (a node whose streams are encoded once, so that it is never the bottleneck),
then runs each client as a process of its own. A client's figures begin when its imports are done:
user + system CPU seconds of the whole process, and its peak resident memory.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parent
METADATA = ["key", "vbucket", "seqno", "cas", "rev_seqno", "expiry", "flags", "datatype"]
JOBS = {
    "raw": ("scan.to_arrow(), parse=False", "raw"),
    "df": ("read_bucket()", "pyarrow-df"),
    "columns": ('read_bucket(columns=["total", "customer.id"])', "pyarrow-df"),
    "parquet": ("scan.to_parquet()", "pyarrow-df"),
}


def client(job: str, port: int) -> None:
    """Run one job of cbframe in this process and print its figures."""
    import pandas  # noqa: F401, ICN001 - not a part of what is measured; the peer imports it first, too
    import pyarrow.json
    import pyarrow.parquet

    import cbframe
    import cbframe.frame.convert

    scan = cbframe.scan_bucket(
        f"couchbase://127.0.0.1:{port + 1}/bench",
        auth=("Administrator", "password"),
        parse=job != "raw",
        columns=["total", "customer.id"] if job == "columns" else None,
        metadata=METADATA if job == "raw" else "key",
    )
    with tempfile.TemporaryDirectory() as scratch:
        began = time.perf_counter()
        before = resource.getrusage(resource.RUSAGE_SELF)
        if job == "parquet":
            path = scan.to_parquet(Path(scratch, "bench.parquet"))
            docs, size = pyarrow.parquet.read_metadata(path).num_rows, path.stat().st_size
        else:
            result = scan.to_arrow() if job == "raw" else scan.to_pandas()
            docs = len(result)
            size = result.nbytes if job == "raw" else result.memory_usage(index=True).sum()
        after = resource.getrusage(resource.RUSAGE_SELF)
    figures = {
        "docs": docs,
        "cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "wall": time.perf_counter() - began,
        "rss_mb": after.ru_maxrss / 1024,
        "result_mb": int(size) / 1e6,
    }
    print(json.dumps(figures))


def run(command: list[str]) -> dict[str, float]:
    """Run a client and read the figures from its last line."""
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    figures: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    if "cpu" not in figures:
        figures["cpu"] = figures["user"] + figures["sys"]
    return figures


@contextmanager
def server(options: argparse.Namespace, *arguments: str) -> Iterator[int]:
    """A replay server that is ready; its first port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1] - 1
    with tempfile.TemporaryDirectory() as scratch:
        ready = Path(scratch) / "ready"
        process = subprocess.Popen(
            [
                *(sys.executable, str(HERE / "replay_server.py"), "--port", str(port)),
                *("--docs", str(options.docs), "--value-bytes", str(options.value_bytes)),
                *("--ready-file", str(ready), *arguments),
            ],
            stderr=subprocess.DEVNULL,
        )
        try:
            while not ready.exists():
                if process.poll() is not None:
                    raise SystemExit("the replay server ended before it was ready")
                try:
                    process.wait(0.2)
                except subprocess.TimeoutExpired:
                    continue
            yield port
        finally:
            process.terminate()
            process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--docs", type=int, default=1_000_000)
    parser.add_argument("--value-bytes", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--jobs", default=",".join((*JOBS, "odd", "nodes")))
    parser.add_argument("--client", nargs=2, metavar=("JOB", "PORT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.client:
        client(options.client[0], int(options.client[1]))
        return 0
    jobs = options.jobs.split(",")
    with server(options) as port:
        for job in jobs:
            if job in JOBS:
                name, mode = JOBS[job]
                handwritten = [sys.executable, str(HERE / "handwritten_reader.py"), "--port", str(port)]
                compare(name, ours(job, port), mode, [*handwritten, "--mode", mode], "cpu", options)
        if "odd" in jobs:
            with server(options, "--odd", "0.01") as odd:
                compare("1 % odd", ours("df", odd), "clean", ours("df", port), "cpu", options)
        if "nodes" in jobs:
            with server(options, "--nodes", "2") as two:
                compare("two nodes, wall s", ours("df", two), "one", ours("df", port), "wall", options)
    return 0


def ours(job: str, port: int) -> list[str]:
    """The command of a client of cbframe."""
    return [sys.executable, __file__, "--client", job, str(port)]


def compare(
    name: str,
    command: list[str],
    other_name: str,
    other: list[str],
    what: str,
    options: argparse.Namespace,
) -> None:
    """Print a row of the table: both sides in turn, medians, and the median of the ratios."""
    pairs = [(run(command), run(other)) for _ in range(options.rounds)]
    if any(figures["docs"] != options.docs for pair in pairs for figures in pair):
        raise SystemExit(f"{name}: a client did not read all {options.docs} documents")
    median = statistics.median
    ratios = [a[what] / b[what] for a, b in pairs]
    print(
        f"| {name} | {other_name} | {median(a[what] for a, _ in pairs):.2f} "
        f"| {median(b[what] for _, b in pairs):.2f} "
        f"| {median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f}) "
        f"| {median(a['rss_mb'] for a, _ in pairs):.0f} | {median(b['rss_mb'] for _, b in pairs):.0f} "
        f"| {median(a.get('result_mb', 0) for a, _ in pairs):.0f} |",
        flush=True,
    )


if __name__ == "__main__":
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.exit(main())
