"""What the commands print: titles, aligned tables, the head of a read."""

from __future__ import annotations

import shutil
import sys
import textwrap
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pandas as pd
import pyarrow as pa
import pyarrow.csv

from cbframe.arrow.columns import KEY
from cbframe.errors import ConfigurationError
from cbframe.scan.dataframe import to_pandas
from cbframe.scan.parquet import whole_file, write_parquet
from cbframe.scan.result import ReadResult, left_out
from cbframe.ui.show import TextProgress

INDENT = "  "
HEAD_ROWS = 5
_WIDEST_CELL = 26
_LINES = 4096
"""Rows that are Python objects at the same time."""
_ACTIONS = {"text": "kept as text", "json": "kept as JSON text", "null": "made null", "map": "names are data"}


def writer_of(path: Path) -> Callable[[pa.RecordBatchReader, Path], int]:
    """What writes `path`, and returns the number of rows.

    Asked before the bucket is read, since a read can take an hour.
    """
    write = _WRITERS.get(path.suffix.lower())
    if write is None:
        raise ConfigurationError(
            f"{path.name!r} names no known format", hint=f"end it in one of: {', '.join(_WRITERS)}"
        )
    if not path.parent.is_dir():
        raise ConfigurationError(f"the folder {path.parent} does not exist")
    if path.is_dir():
        raise ConfigurationError(f"{path} is a folder")
    return write


def _write_arrow(reader: pa.RecordBatchReader, path: Path) -> int:
    with whole_file(path) as file, pa.ipc.new_file(file, reader.schema) as writer:
        return _write_each(reader, writer.write_batch)


def _write_csv(reader: pa.RecordBatchReader, path: Path) -> int:
    schema = _flat(reader.schema.empty_table()).schema
    with whole_file(path) as file, pyarrow.csv.CSVWriter(file, schema) as writer:
        return _write_each(reader, lambda batch: writer.write_table(_flat(pa.Table.from_batches([batch]))))


def _write_ndjson(reader: pa.RecordBatchReader, path: Path) -> int:
    with whole_file(path) as file:
        return _write_each(reader, lambda batch: file.writelines(ndjson(batch)))


def _write_each(reader: pa.RecordBatchReader, write: Callable[[pa.RecordBatch], object]) -> int:
    rows = 0
    for batch in reader:
        write(batch)
        rows += len(batch)
    return rows


def _flat(table: pa.Table) -> pa.Table:
    """A table without what CSV cannot hold."""
    for index, field in enumerate(table.schema):
        if pa.types.is_nested(field.type) or pa.types.is_binary(field.type) or pa.types.is_null(field.type):
            values = (_cell(_plain(value, field.type)) for value in table.column(index).to_pylist())
            table = table.set_column(index, field.name, pa.array(values, pa.string()))
    return table


def _cell(value: Any) -> str | None:
    if value is None:
        return None
    text = msgspec.json.encode(without_nulls(value)).decode()
    return text[1:-1] if isinstance(value, bytes) else text


def ndjson(batch: pa.RecordBatch) -> Iterator[bytes]:
    """The rows as lines of JSON, some thousand at a time."""
    encode = msgspec.json.Encoder().encode_lines
    maps = pa.struct(list(batch.schema)) if any(map(_has_map, batch.schema.types)) else None
    for start in range(0, len(batch), _LINES):
        rows = batch[start : start + _LINES].to_pylist()
        if maps:
            rows = [_plain(row, maps) for row in rows]
        yield encode([without_nulls(row) for row in rows])


def _has_map(kind: pa.DataType) -> bool:
    if pa.types.is_map(kind):
        return True
    return any(_has_map(kind.field(at).type) for at in range(kind.num_fields))


def _plain(value: Any, kind: pa.DataType) -> Any:
    """A Python value of a type, in which maps are objects."""
    if value is None or not _has_map(kind):
        return value
    if pa.types.is_map(kind):
        return {name: _plain(item, kind.item_type) for name, item in value}
    if pa.types.is_struct(kind):
        return {each.name: _plain(value[each.name], each.type) for each in kind}
    return [_plain(item, kind.value_type) for item in value]


def without_nulls(value: Any) -> Any:
    """Columns cannot tell a null from a missing field: neither is written. Nulls in lists stay."""
    if isinstance(value, dict):
        return {name: without_nulls(item) for name, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value


_WRITERS: dict[str, Callable[[pa.RecordBatchReader, Path], int]] = {
    ".parquet": write_parquet,
    ".arrow": _write_arrow,
    ".csv": _write_csv,
    ".ndjson": _write_ndjson,
}


@contextmanager
def progress_line() -> Iterator[TextProgress]:
    sys.stdout.flush()
    with TextProgress(sys.stderr) as progress:
        yield progress


def say(text: str) -> None:
    # At once: the progress line goes to another stream.
    print(text, flush=True)


def title(text: str, *, first: bool = False) -> None:
    say(f"{'' if first else chr(10)}{text}")


def _columns() -> int:
    return min(100, max(40, shutil.get_terminal_size((80, 24)).columns))


def _cells(text: str) -> int:
    """Columns of a terminal that a text takes: 京 takes two."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def say_rows(rows: Iterable[Sequence[str]], header: Sequence[str] | None = None) -> None:
    """An aligned table: the first column to the left, the others to the right."""
    lines = [*([header] if header else []), *rows]
    widths = [max(_cells(line[i]) for line in lines) for i in range(len(lines[0]))]
    for first, *others in lines:
        cells = [first + " " * (widths[0] - _cells(first))]
        cells += [f"{text:>{width}}" for text, width in zip(others, widths[1:], strict=True)]
        say(INDENT + "  ".join(cells))


def show_head(table: pa.Table) -> None:
    say("")
    say(textwrap.indent(_head(table), INDENT))


def show_table(table: pa.Table) -> None:
    show_head(table)
    say("")
    for line in _fields(table):
        say(line)


def _head(table: pa.Table) -> str:
    """The first documents with as many of their own fields as fit, simple ones first."""
    top = table.slice(0, HEAD_ROWS)
    present = [name for name in top.column_names if name != KEY and top[name].null_count < top.num_rows]
    present.sort(key=lambda name: (pa.types.is_nested(top.schema.field(name).type), top[name].null_count))
    frame = to_pandas(top, "pyarrow")
    room = _columns() - len(INDENT)
    chosen: list[str] = []
    text = frame[chosen].to_string()
    with pd.option_context("display.unicode.east_asian_width", True):
        for name in present:
            wider = frame[[*chosen, name]].to_string(max_colwidth=_WIDEST_CELL)
            if max(map(_cells, wider.splitlines())) > room:
                continue
            chosen.append(name)
            text = wider
    left_out = table.num_columns - 1 - len(chosen)
    text = "\n".join(line.rstrip() for line in text.splitlines())
    return text + (f"\n… and {left_out} more columns" if left_out else "") if chosen else "no fields"


def _fields(table: pa.Table) -> Iterator[str]:
    """The fields by type, simple types first; each nested field on its own line."""
    by_type: dict[str, list[str]] = defaultdict(list)
    nested = []
    for field in table.schema:
        if field.name == KEY:
            continue
        if pa.types.is_nested(field.type):
            nested.append((field.name, str(field.type).replace("item: ", "").replace("element: ", "")))
        else:
            by_type[str(field.type)].append(field.name)
    width = max(map(_cells, [*by_type, *(name for name, _ in nested)]), default=0)
    rows = [(kind, ", ".join(names)) for kind, names in by_type.items()]
    for left, right in [*rows, *nested]:
        lead = INDENT + left + " " * (width - _cells(left) + 2)
        yield from textwrap.wrap(
            right,
            _columns(),
            initial_indent=lead,
            subsequent_indent=" " * (width + 4),
            break_on_hyphens=False,
        )


def show_nodes(result: ReadResult) -> None:
    rows = []
    for name, node in [*result.stats.nodes.items(), ("all", result.stats.total)]:
        removed = node.deletions + node.expirations
        numbers = (node.streams_ended, node.mutations, removed, node.snapshots, node.buffer_acks)
        counts = [f"{number:,}" for number in numbers]
        megabytes = f"{node.bytes_received / 1e6:.1f}"
        rows.append((name, *counts[:3], megabytes, *counts[3:]))
    say_rows(rows, ("node", "vbuckets", "documents", "tombstones", "MB", "snapshots", "acks"))


def show_remarks(result: ReadResult) -> None:
    """The vbucket positions of the table, and what is not in a column of its own type."""
    as_of = result.as_of
    rows = [("as of", f"{len(as_of):,} vbuckets, {as_of.changes:,} changes")]
    written = next(((vbucket, *at) for vbucket, at in as_of.items() if at[1]), None)
    if written is not None:
        rows.append(("", "vbucket {}: history {:016x}, seqno {:,}, and so on".format(*written)))
    for conflict in result.conflicts:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(conflict.types.items()))
        names = "" if conflict.names is None else f", {conflict.names:,} names"
        rows.append((_ACTIONS[conflict.action], f"{conflict.path}: {kinds}{names}"))
    if all(conflict.action == "map" for conflict in result.conflicts):
        rows.append(("conflicts", "none: every field has one type"))
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in result.rejected.items())
    rows.append(("kept in _cb_value", reasons or "none: every document is a JSON object"))
    if excluded := left_out(result.expired, result.transaction_records):
        rows.append(("left out", excluded))
    for name, text in rows:
        say(f"{INDENT}{name:<18}  {text}")
