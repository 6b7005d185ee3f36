"""What a snapshot costs: its first copy, updates of a share of the documents, reading it.

    python tests/bench/snapshot_cost.py                 # 1,000,000 documents of 260 bytes, 20 updates of 1 %
    python tests/bench/snapshot_cost.py --value-bytes 1536

Each step runs in a process of its own, whose figures begin when its imports are done: user + system CPU
seconds of the whole process, and its peak resident memory. The bucket is a LocalCluster in another process.

    python tests/bench/snapshot_cost.py --first-copy 19001

copies the bucket of a replay server (tests/bench/replay_server.py, by its second port) once.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

WORDS = ("amber", "birch", "cedar", "delta", "ember", "flint", "grove", "harbor", "inlet", "jasper")


def document(number: int, version: int, size: int) -> bytes:
    """One of about so many bytes; of a large one, a third is items, and half is text."""
    rng = random.Random(number * 1000 + version)
    items = [
        {"sku": rng.choice(WORDS), "qty": rng.randrange(1, 9), "price": rng.randrange(100, 50_000) / 100}
        for _ in range(max(1, size // 120))
    ]
    order = {
        "type": "order",
        "id": number,
        "version": version,
        "customer": {"id": rng.randrange(100_000), "name": " ".join(rng.choices(WORDS, k=3))},
        "total": rng.randrange(1, 1_000_000) / 100,
        "paid": rng.random() < 0.9,
        "created": f"2026-{rng.randrange(1, 13):02d}-{rng.randrange(1, 29):02d}T12:00:00Z",
        "items": items,
    }
    # A space and a word are 6.3 bytes.
    room = size - len(json.dumps(order, separators=(",", ":"))) - len(',"note":""')
    order["note"] = " ".join(rng.choices(WORDS, k=max(1, round(room / 6.3))))
    return json.dumps(order, separators=(",", ":")).encode()


def step(what: str, conn: str, path: str) -> None:
    """Do one thing in this process and print its figures."""
    import pandas  # noqa: F401, ICN001 - not a part of what is measured

    import cbframe
    import cbframe.frame.convert
    from cbframe.snapshot import read, write  # noqa: F401

    auth = ("Administrator", "password")
    before = resource.getrusage(resource.RUSAGE_SELF)
    figures: dict[str, Any] = {}
    if what == "write":
        result = cbframe.write_snapshot(conn, path, auth=auth)
        figures = {"rows": result.upserted, "mb": result.nbytes / 1e6}
    elif what == "compact":
        cbframe.Snapshot(path).compact(keep="0s")
    else:
        frame = cbframe.read_snapshot(path)
        figures = {"rows": len(frame)}
    after = resource.getrusage(resource.RUSAGE_SELF)
    figures["cpu"] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    figures["rss_mb"] = after.ru_maxrss / 1024
    print(json.dumps(figures))


def run(what: str, conn: str, path: Path) -> dict[str, float]:
    """A step in a process of its own."""
    command = [sys.executable, __file__, "--step", what, conn, str(path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    figures: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    print(what, {name: round(value, 2) for name, value in figures.items()}, file=sys.stderr, flush=True)
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--docs", type=int, default=1_000_000)
    parser.add_argument("--value-bytes", type=int, default=260, help="of a document, about")
    parser.add_argument("--updates", type=int, default=20)
    parser.add_argument("--share", type=float, default=0.01)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--first-copy", type=int, metavar="PORT")
    parser.add_argument("--step", nargs=3, metavar=("WHAT", "CONN", "PATH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        step(*options.step)
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "snapshot")
        if options.first_copy:
            print(run("write", f"couchbase://127.0.0.1:{options.first_copy}/bench", path))
            return 0
        measure(path, options)
    return 0


def measure(path: Path, options: argparse.Namespace) -> None:
    from cbframe import LocalCluster

    rng = random.Random(1)
    with LocalCluster(nodes=1, vbuckets=1024, process=True) as cluster:
        lines = Path(path.parent, "documents.ndjson.gz")
        with gzip.open(lines, "wb") as file:

            def documents() -> Any:
                for n in range(options.docs):
                    value = document(n, 0, options.value_bytes)
                    file.write(value + b"\n")
                    yield b"order::%09d" % n, value

            cluster.bulk_load(documents())
        first = run("write", cluster.connection_string, path)
        updates = []
        for version in range(1, options.updates + 1):
            some = rng.sample(range(options.docs), int(options.docs * options.share))
            cluster.bulk_load((b"order::%09d" % n, document(n, version, options.value_bytes)) for n in some)
            updates.append(run("write", cluster.connection_string, path))
        whole = path.with_name("compacted")
        shutil.copytree(path, whole)
        compaction = run("compact", "", whole)
        # In turn: what else the machine does meets both.
        pairs = [(run("read", "", path), run("read", "", whole)) for _ in range(options.rounds)]
        reads, compacted = zip(*pairs, strict=True)
        if {each["rows"] for each in (*reads, *compacted)} != {options.docs}:
            raise SystemExit("documents are missing")
    median = statistics.median
    update = median(each["cpu"] for each in updates)
    written = median(each["mb"] for each in updates)
    before, after = (median(each["cpu"] for each in some) for some in (reads, compacted))
    ratios = sorted(one["cpu"] / other["cpu"] for one, other in pairs)
    print(f"| first copy | {first['cpu']:.2f} CPU s | {first['mb']:.1f} MB | {first['rss_mb']:.0f} MB RSS |")
    print(
        f"| update of {options.share:.0%} | {update:.2f} CPU s, {update / first['cpu']:.1%} "
        f"| {written:.2f} MB, {written / first['mb']:.1%} |"
    )
    print(
        f"| read after {options.updates} updates | {before:.2f} CPU s "
        f"| {median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f}) of compacted |"
    )
    print(f"| read, compacted | {after:.2f} CPU s | compact() itself {compaction['cpu']:.2f} |")
    print(f"| the documents as lines of JSON, gzip | {lines.stat().st_size / 1e6:.1f} MB |")


if __name__ == "__main__":
    sys.exit(main())
