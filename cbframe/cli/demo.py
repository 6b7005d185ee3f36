"""``cbframe demo``: a whole read against an embedded cluster, checked row by row."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from time import monotonic
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cbframe import __version__, core
from cbframe.arrow.columns import KEY
from cbframe.cli.output import (
    INDENT,
    say,
    say_rows,
    show_nodes,
    show_remarks,
    show_table,
    title,
    without_nulls,
    writer_of,
)
from cbframe.errors import ConfigurationError
from cbframe.local import LocalCluster
from cbframe.scan.dataframe import to_pandas
from cbframe.scan.parquet import write_parquet
from cbframe.scan.scan import scan_bucket
from cbframe.ui.show import TextProgress

_CHECKED_DOCUMENTS = 1000


def demo(options: argparse.Namespace) -> int:
    """Run the demo; 1 if anything differs from what it must be."""
    with ExitStack() as stack:
        if options.json:
            # What people read goes where the progress goes.
            stack.enter_context(redirect_stdout(sys.stderr))
        status, report = _demo(options)
    if options.json:
        say(json.dumps(report))
    return status


def _demo(options: argparse.Namespace) -> tuple[int, dict[str, Any]]:
    steps: list[tuple[str, float]] = []

    @contextmanager
    def step(name: str) -> Iterator[None]:
        began = monotonic()
        yield
        steps.append((name, monotonic() - began))

    path = _demo_path(options.keep)
    with ExitStack() as stack:
        if path is None:
            path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cbframe-"))) / "demo.parquet"
        differences = _run_demo(options, path, stack, step)
    title("timings")
    say_rows([(name, f"{seconds:.1f} s") for name, seconds in [*steps, ("all", sum(s for _, s in steps))]])
    if differences:
        say(f"\nFAILED: {'; '.join(differences)}")
    elif options.keep is not None:
        say(f"\nkept: {path}")
    return int(bool(differences)), {
        "core": core.NAME,
        "documents": options.documents,
        "differences": differences,
        "seconds": {name: round(seconds, 3) for name, seconds in steps},
    }


def _demo_path(keep: Path | None) -> Path | None:
    if keep is None:
        return None
    path = keep / "demo.parquet" if keep.is_dir() else keep
    if path.suffix != ".parquet":
        raise ConfigurationError(f"--keep {keep} is no folder and no .parquet file")
    writer_of(path)
    return path


def _run_demo(
    options: argparse.Namespace, path: Path, stack: ExitStack, step: Callable[[str], Any]
) -> list[str]:
    title("cluster", first=True)
    with step("start the cluster"):
        cluster = stack.enter_context(
            LocalCluster(options.nodes, options.vbuckets, process=True, sending="bulk")
        )
    say(f"{INDENT}{cluster.connection_string}, in a process of its own")
    with step("load the sample"):
        cluster.load_sample(options.documents)
    existing = cluster.item_count()
    say(f"{INDENT}{options.documents:,} keys loaded, {existing:,} documents exist now")

    title("read")
    say(f"{INDENT}cbframe {__version__}, {core.TITLE}")
    with step("read the bucket"), TextProgress(sys.stderr) as progress:
        result = scan_bucket(cluster, progress=progress).read()
    table = result.table
    show_table(table)
    title("nodes")
    show_nodes(result)
    title("result")
    show_remarks(result)

    title("checks")
    with step("write the Parquet file"):
        write_parquet(table.to_reader(), path)
    say(f"{INDENT}{path.name}: {path.stat().st_size / 1e6:,.1f} MB")
    with step("read it back and compare"):
        return list(_check(cluster, table, to_pandas(table, "pyarrow"), existing, path))


def _check(cluster: LocalCluster, table: pa.Table, frame: Any, existing: int, path: Path) -> Iterator[str]:
    """Print what was compared; yield what differs."""

    def as_table(frame: pd.DataFrame) -> pa.Table:
        return pa.Table.from_pandas(frame.reset_index(), preserve_index=False)

    documents = table.num_rows
    sample = range(0, documents, max(1, documents // _CHECKED_DOCUMENTS))
    same = _same_in_cluster(cluster, table, sample)
    backward = pd.read_parquet(path, dtype_backend="pyarrow").set_index(KEY)
    checks = (
        ("documents read, of those that exist", documents, existing),
        ("documents as the cluster holds them, a sample", same, len(sample)),
        ("rows equal in the DataFrame", equal_rows(table, as_table(frame)), documents),
        ("rows equal in the file, by pyarrow", equal_rows(table, pq.read_table(path)), documents),
        ("rows equal in the file, by pandas", equal_rows(table, as_table(backward)), documents),
    )
    rows = []
    for name, count, wanted in checks:
        rows.append((name, f"{count:,} of {wanted:,}", "ok" if count == wanted else "DIFFERENT"))
        if count != wanted:
            yield f"{name}: {count:,} of {wanted:,}"
    say_rows(rows)


def _same_in_cluster(cluster: LocalCluster, table: pa.Table, rows: Sequence[int]) -> int:
    same = 0
    for row in table.take(list(rows)).to_pylist():
        raw = cluster.get(row[KEY])
        fields = {name: value for name, value in row.items() if not name.startswith("_cb_")}
        if row.get("_cb_value") is not None:
            same += row["_cb_value"] == raw
        else:
            same += raw is not None and without_nulls(json.loads(raw)) == without_nulls(fields)
    return same


def equal_rows(expected: pa.Table, actual: pa.Table) -> int:
    """How many rows of two tables are equal, by place, value and type; 0 if the shapes or types differ."""
    if not expected.schema.equals(actual.schema, check_metadata=False):
        return 0
    rows = expected.num_rows
    if rows != actual.num_rows:
        return 0

    def count(start: int, stop: int) -> int:
        here, there = expected.slice(start, stop - start), actual.slice(start, stop - start)
        if here.equals(there):
            return stop - start
        if stop - start == 1:
            return 0
        middle = (start + stop) // 2
        return count(start, middle) + count(middle, stop)

    return count(0, rows) if rows else 0
