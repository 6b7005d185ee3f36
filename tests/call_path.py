"""Which files and functions a block of documents passes, from the socket to cells and snapshot rows.

    python tests/call_path.py                     # of this checkout
    python tests/call_path.py --tree CHECKOUT     # of another one
    python tests/call_path.py --list              # and which they are

A profile hook notes every function of the package that runs while 400 documents are read. ``block`` counts
those that run on behalf of a block: its receive, its decoding, its delivery, and what the reader makes of it.
Bootstrap, cluster map, control messages, timers, progress and teardown are counted in ``all`` only.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
from pathlib import Path
from types import FrameType
from typing import Any, Self

ROOTS = {
    "SocketStream.receive_into",
    "DcpConnection.receive",
    "NodeThread._on_event",
    "Run._gather",
    # What a reader makes of the blocks, when all are there.
    "Pipeline.finish",
    "Pipeline.finish.<locals>.tables",
    "Assembler.finish",
    "ChangeReader._keep_changes",
    "ChangeReader._typed",
    "ChangeReader._tables",
    "ChangeSink.changes",
    "ChangeSink._tables",
    "ChangeFiles.add",
    "ChangeFiles.finish",
}
"""What runs below these runs on behalf of a block, of events only those of documents; some are older."""
LEFT_OUT = {
    *("DcpConnection._on_frame", "DcpConnection._control", "Frame.parse", "waited", "Waker.wake"),
    *("Pipeline.foresee", "BucketDataSource.progress", "SourceView.progress", "BucketDataSource.finished"),
    *("SourceView.finished", "Run._progress", "Pace.add"),
}
"""Control messages and progress."""
OTHERS = ("local/", "testing.py")
DOCUMENTS = 400


class Calls:
    """The functions of a package that ran while it was watched."""

    def __init__(self, package: Path) -> None:
        self.block: set[tuple[str, str]] = set()
        self.all: set[tuple[str, str]] = set()
        self._package = f"{package}{os.sep}"
        self._local = threading.local()

    def __enter__(self) -> Self:
        threading.setprofile(self._note)
        sys.setprofile(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        threading.setprofile(None)

    def _note(self, frame: FrameType, event: str, _: object) -> None:
        if event not in {"call", "return"}:
            return
        code = frame.f_code
        if not code.co_filename.startswith(self._package):
            return
        path = Path(code.co_filename).relative_to(self._package).as_posix()
        if path.startswith(OTHERS) or "<frozen" in path:
            return
        name = code.co_qualname
        stack: list[bool] = self._local.__dict__.setdefault("stack", [False])
        if event == "return":
            if len(stack) > 1:
                stack.pop()
            return
        counts = (stack[-1] or self._enters(name, frame)) and name not in LEFT_OUT
        stack.append(counts)
        if name.endswith(("<module>", "comp>", "genexpr>", "<lambda>")):
            return
        self.all.add((path, name))
        if counts:
            self.block.add((path, name))

    @staticmethod
    def _enters(name: str, frame: FrameType) -> bool:
        if name == "NodeThread._on_event":
            return type(frame.f_locals["event"]).__name__ == "Data"
        return name in ROOTS


def watched(package: Path, job: Any) -> Calls:
    """The calls of a job that ran once before, so that nothing is imported meanwhile."""
    job()
    with Calls(package) as calls:
        job()
    return calls


def main() -> int:
    """Print the counts of a read and of a snapshot."""
    parser = argparse.ArgumentParser(description="Count the files that a block of documents passes.")
    parser.add_argument("--tree", type=Path, default=Path(__file__).parents[1])
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    sys.path.insert(0, str(options.tree.resolve()))
    import cbframe  # noqa: PLC0415 - that of the tree

    package = Path(cbframe.__file__).parent
    with cbframe.LocalCluster(vbuckets=64) as cluster, tempfile.TemporaryDirectory() as folder:
        for n in range(DOCUMENTS):
            cluster.upsert(f"k{n}", {"name": f"n{n}", "price": n / 2, "tags": ["a", "b"], "at": {"x": n}})
        folders = (str(Path(folder) / f"snapshot{n}") for n in range(2))
        jobs = {
            "read_bucket": lambda: cbframe.read_bucket(cluster, progress=None),
            "write_snapshot": lambda: cbframe.write_snapshot(cluster, next(folders), progress=None),
        }
        for name, job in jobs.items():
            calls = watched(package, job)
            for what, found in (("block", calls.block), ("all", calls.all)):
                files = sorted({path for path, _ in found})
                print(f"{name:15} {what:6} {len(found):4} functions in {len(files):3} files")  # noqa: T201
                if options.list:
                    for path in files:
                        print(f"  {path}: {', '.join(sorted(n for p, n in found if p == path))}")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
