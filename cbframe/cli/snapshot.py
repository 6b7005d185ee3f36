"""``cbframe snapshot``: write a Parquet copy of a bucket, look at it, look after it."""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from cbframe.arrow.columns import KEY, SEQNO, VBUCKET
from cbframe.cli.commands import connection
from cbframe.cli.output import (
    HEAD_ROWS,
    INDENT,
    ndjson,
    progress_line,
    say,
    say_rows,
    show_head,
    show_table,
    writer_of,
)
from cbframe.json.typer import OURS
from cbframe.snapshot.files import CHANGE_TYPE
from cbframe.snapshot.snapshot import Snapshot, SnapshotVersion
from cbframe.snapshot.writer import SnapshotResult, size, write_snapshot

_PLACE = (KEY, CHANGE_TYPE, VBUCKET, SEQNO)
_COUNTS = (
    *("path", "bucket", "version", "changed", "upserted", "deleted"),
    *("retracted", "rolled_back", "read_again", "nbytes"),
)


def snapshot(options: argparse.Namespace) -> int:
    """Do what the options say."""
    return _COMMANDS[options.command](options)


def _write(options: argparse.Namespace) -> int:
    arguments = connection(options)
    with ExitStack() as stack:
        progress = None if options.no_progress else stack.enter_context(progress_line())
        result = write_snapshot(
            **arguments,
            path=options.path,
            mode=options.mode,
            compression=options.compression,
            scope=options.scope,
            collections=options.collections,
            columns=options.columns,
            xattrs=options.xattrs,
            transaction_records=options.transaction_records,
            consistency=options.consistency,
            progress=progress,
            break_lock=options.break_lock,
        )
    if options.json:
        _say_json(_result(result))
    else:
        say(textwrap.indent(str(result), INDENT))
    return 0


def _result(result: SnapshotResult) -> dict[str, Any]:
    return {name: getattr(result, name) for name in _COUNTS} | {
        "seconds": round(result.seconds, 3),
        "vbuckets": len(result.as_of),
        "changes": result.as_of.changes,
        "conflicts": [conflict.path for conflict in result.conflicts],
        "rejected": result.rejected,
        "transaction_records": result.transaction_records,
        "clock_behind": result.clock_behind.total_seconds(),
    }


def _read(options: argparse.Namespace) -> int:
    write = None if options.output is None else writer_of(options.output)
    source = Snapshot(options.path)
    reader = source.to_reader(
        as_of=options.as_of, columns=options.columns, expired=options.expired, keys="text"
    )
    if write is not None:
        _wrote(options, write(reader, options.output), len(reader.schema), "documents")
        return 0
    head: list[pa.RecordBatch] = []
    rows = 0
    for batch in reader:
        if rows < HEAD_ROWS:
            head.append(batch.slice(0, HEAD_ROWS - rows))
        rows += len(batch)
    say(f"{rows:,} documents")
    show_table(pa.Table.from_batches(head, reader.schema))
    return 0


def _changes(options: argparse.Namespace) -> int:
    write = None if options.output is None else writer_of(options.output)
    table = Snapshot(options.path).changes_to_arrow(options.since, options.until, keys="text")
    if write is not None:
        _wrote(options, write(table.to_reader(), options.output), table.num_columns, "changes")
    elif options.json:
        sys.stdout.flush()
        for batch in table.to_batches():
            for lines in ndjson(batch):
                sys.stdout.buffer.write(lines)
    else:
        counts = Counter(table[CHANGE_TYPE].to_pylist())
        say(f"{len(table):,} changes")
        if counts:
            say_rows((kind, f"{count:,}") for kind, count in sorted(counts.items()))
            show_head(
                table.select(
                    [*_PLACE, *(n for n in table.column_names if not n.startswith((OURS, CHANGE_TYPE)))]
                )
            )
    return 0


def _versions(options: argparse.Namespace) -> int:
    versions = Snapshot(options.path).versions
    if options.json:
        _say_json([_version(each) for each in versions])
        return 0
    header = ["version", "kind", "created (UTC)", "upserted", "deleted", "retracted", "files", "size"]
    rows = []
    for each in versions:
        counts = each.counts.upserted, each.counts.deleted, each.counts.retracted, each.files
        numbers = [f"{number:,}" for number in counts]
        created = f"{each.created:%Y-%m-%d %H:%M:%S}"
        rows.append(
            (str(each.version), each.kind, created, *numbers, size(each.nbytes), f"{each.as_of.changes:,}")
        )
    say_rows(rows, [*header, "changes"])
    return 0


def _version(version: SnapshotVersion) -> dict[str, Any]:
    return {
        "version": version.version,
        "kind": version.kind,
        "created": version.created.isoformat(),
        **asdict(version.counts),
        "files": version.files,
        "nbytes": version.nbytes,
        "vbuckets": len(version.as_of),
        "changes": version.as_of.changes,
    }


def _verify(options: argparse.Namespace) -> int:
    found = Snapshot(options.path).verify()
    if options.json:
        _say_json({"ok": found.ok, **asdict(found)})
    else:
        say(str(found))
    return 0 if found.ok else 1


def _compact(options: argparse.Namespace) -> int:
    done = Snapshot(options.path).compact(keep=options.keep)
    if options.json:
        sizes = {"rows": done.rows, "files": done.files, "nbytes": done.nbytes}
        _say_json(
            {
                "version": done.version,
                "changed": done.changed,
                "clock_behind": done.clock_behind.total_seconds(),
                **{name: {"before": before, "after": after} for name, (before, after) in sizes.items()},
            }
        )
    else:
        say(str(done))
    return 0


def _vacuum(options: argparse.Namespace) -> int:
    deleted = Snapshot(options.path).vacuum(keep=options.keep)
    if options.json:
        _say_json(deleted)
        return 0
    say(f"{len(deleted):,} files deleted")
    for name in deleted:
        say(INDENT + name)
    return 0


def _export(options: argparse.Namespace) -> int:
    folder = Snapshot(options.path).export(options.folder, as_of=options.as_of, expired=options.expired)
    files = sorted(folder.glob("*.parquet"))
    some = "file" if len(files) == 1 else "files"
    say(f"{folder}: {len(files):,} {some}, {size(sum(file.stat().st_size for file in files))}")
    return 0


def _wrote(options: argparse.Namespace, rows: int, columns: int, what: str) -> None:
    nbytes = options.output.stat().st_size
    say(f"{options.output}: {rows:,} {what}, {columns} columns, {size(nbytes)}")


def _say_json(value: Any) -> None:
    say(json.dumps(value, indent=2, ensure_ascii=False))


_COMMANDS = {
    "write": _write,
    "read": _read,
    "changes": _changes,
    "versions": _versions,
    "verify": _verify,
    "compact": _compact,
    "vacuum": _vacuum,
    "export": _export,
}
