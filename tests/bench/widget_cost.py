"""What the live widget costs the stream that it looks at.

    python tests/bench/widget_cost.py                   # 10 times 1,000,000 documents of 256 B, 5 rounds

Both sides stream from the replay server into a receiver that only counts, so that nothing but the
client itself can be slowed down; one of them is looked at, four times a second, and makes all messages
to the browser up to their bytes. Printed are the documents a second of both in turn, the median of the
ratios, and how much of a processor the thread that looks takes: it cannot cost the stream more.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import Counter
from typing import Any

from wire_speed import run, server

from cbframe.dcp.source import BucketDataSource
from cbframe.errors import CbframeError
from cbframe.options import BucketDataSourceOptions
from cbframe.wire.blocks import DataBlock


class Counting:
    """Takes blocks, and keeps their number of documents."""

    def __init__(self) -> None:
        self.documents: Counter[int] = Counter()

    def on_block(self, block: DataBlock) -> None:
        self.documents[0] += len(block)

    def on_error(self, error: CbframeError) -> None:
        raise SystemExit(str(error))

    def snapshot_start(self, vbucket: int, start: int, end: int, flags: int) -> None: ...
    def set_metadata(self, vbucket: int, metadata: bytes) -> None: ...
    def get_metadata(self, vbucket: int) -> tuple[bytes | None, int]:
        return None, 0

    def rollback(self, vbucket: int, seqno: int) -> None: ...


class Target:
    """What is looked at: one source after the other."""

    source: BucketDataSource | None = None


def client(port: int, repeat: int, *, watched: bool) -> None:
    """Stream the bucket some times over and print the figures."""
    import cbframe.ui.show as show
    from cbframe.ui.panel import StatsPanel

    target, receiver = Target(), Counting()
    spent: list[float] = []
    sizes: list[int] = []
    view = None
    if watched:

        class View(show.StatsView):
            def refresh(self) -> bool:
                began = time.thread_time()
                super().refresh()
                spent.append(time.thread_time() - began)
                return True  # another source follows

        def send(message: dict[str, Any], buffers: Any = None) -> None:
            body = json.dumps(message, ensure_ascii=False).encode()
            sizes.append(len(b"".join([body, *map(bytes, buffers or ())])))

        view = View(target)
        view._panel = StatsPanel(view.model, lambda: None)
        view._panel.canvas._send = send
        view.display()
    began = time.perf_counter()
    for _ in range(repeat):
        source = BucketDataSource(
            f"couchbase://127.0.0.1:{port + 1}/bench",
            "default",
            "bench",
            "",
            None,
            ("Administrator", "password"),
            receiver,
            BucketDataSourceOptions(seq_end="now"),
        )
        target.source = source
        with source:
            source.wait()
    wall = time.perf_counter() - began
    if view is not None:
        view.close()
    figures = {
        "cpu": sum(spent),
        "rate": receiver.documents[0] / wall,
        "share": sum(spent) / wall,
        "updates": (len(spent) - 1) / wall,  # the last one is that of the end
        "largest": max(sizes, default=0),
    }
    print(json.dumps(figures))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--docs", type=int, default=1_000_000)
    parser.add_argument("--value-bytes", type=int, default=256)
    parser.add_argument("--repeat", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--client", nargs=2, metavar=("WATCHED", "PORT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.client:
        client(int(options.client[1]), options.repeat, watched=options.client[0] == "watched")
        return 0
    with server(options) as port:
        command = [sys.executable, __file__, "--repeat", str(options.repeat), "--client"]
        pairs = [
            (run([*command, "watched", str(port)]), run([*command, "alone", str(port)]))
            for _ in range(options.rounds)
        ]
    median = statistics.median
    ratios = [watched["rate"] / alone["rate"] for watched, alone in pairs]
    print(
        f"| {median(w['rate'] for w, _ in pairs):,.0f} | {median(a['rate'] for _, a in pairs):,.0f} "
        f"| {median(ratios):.3f} ({min(ratios):.3f}-{max(ratios):.3f}) "
        f"| {100 * median(w['share'] for w, _ in pairs):.2f} % "
        f"| {median(w['updates'] for w, _ in pairs):.1f} | {max(w['largest'] for w, _ in pairs):,.0f} B |"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
