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
from pathlib import Path

HERE = Path(__file__).parent
JOBS = {
    "raw": ("scan.to_arrow(), parse=False", "raw"),
    "df": ("read_bucket()", "pyarrow-df"),
}


def client(job: str, port: int) -> None:
    """Run one job of cbframe in this process and print its figures."""
    import pandas  # noqa: F401, ICN001 - not a part of what is measured; the peer imports it first, too
    import pyarrow.json
    import pyarrow.parquet  # noqa: F401

    import cbframe
    import cbframe.frame.convert

    scan = cbframe.scan_bucket(
        f"couchbase://127.0.0.1:{port + 1}/bench", auth=("Administrator", "password"), parse=job != "raw"
    )
    before = resource.getrusage(resource.RUSAGE_SELF)
    result = scan.to_arrow() if job == "raw" else scan.to_pandas()
    after = resource.getrusage(resource.RUSAGE_SELF)
    figures = {
        "docs": len(result),
        "cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "rss_mb": after.ru_maxrss / 1024,
    }
    print(json.dumps(figures))


def run(command: list[str]) -> dict[str, float]:
    """Run a client and read the figures from its last line."""
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    figures: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    if "cpu" not in figures:
        figures["cpu"] = figures["user"] + figures["sys"]
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--docs", type=int, default=1_000_000)
    parser.add_argument("--value-bytes", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--jobs", default=",".join(JOBS))
    parser.add_argument("--client", nargs=2, metavar=("JOB", "PORT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.client:
        client(options.client[0], int(options.client[1]))
        return 0
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1] - 1
    with tempfile.TemporaryDirectory() as scratch:
        ready = Path(scratch) / "ready"
        server = subprocess.Popen(
            [
                *(sys.executable, str(HERE / "replay_server.py"), "--port", str(port)),
                *("--docs", str(options.docs), "--value-bytes", str(options.value_bytes)),
                *("--ready-file", str(ready)),
            ],
            stderr=subprocess.DEVNULL,
        )
        try:
            while not ready.exists():
                if server.poll() is not None:
                    raise SystemExit("the replay server ended before it was ready")
                try:
                    server.wait(0.2)
                except subprocess.TimeoutExpired:
                    continue
            for job in options.jobs.split(","):
                compare(job, port, options.rounds, options.docs)
        finally:
            server.terminate()
            server.wait()
    return 0


def compare(job: str, port: int, rounds: int, docs: int) -> None:
    """Print a row of the table: both sides in turn, medians, and the median of the ratios."""
    name, mode = JOBS[job]
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(run([sys.executable, __file__, "--client", job, str(port)]))
        theirs.append(
            run([sys.executable, str(HERE / "handwritten_reader.py"), "--port", str(port), "--mode", mode])
        )
    if any(figures["docs"] != docs for figures in ours + theirs):
        raise SystemExit(f"{job}: a client did not read all {docs} documents")
    cpu = [(a["cpu"], b["cpu"]) for a, b in zip(ours, theirs, strict=True)]
    rss = [(a["rss_mb"], b["rss_mb"]) for a, b in zip(ours, theirs, strict=True)]
    median = statistics.median
    ratios = [a / b for a, b in cpu]
    print(
        f"| {name} | {mode} | {median(a for a, _ in cpu):.2f} | {median(b for _, b in cpu):.2f} "
        f"| {median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f}) "
        f"| {median(a for a, _ in rss):.0f} | {median(b for _, b in rss):.0f} |",
        flush=True,
    )


if __name__ == "__main__":
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.exit(main())
