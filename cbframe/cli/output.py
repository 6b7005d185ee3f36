"""What the commands print: titles, aligned tables, the head of a read."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TextIO, TypeAlias

import msgspec
import pyarrow as pa
import pyarrow.csv

from cbframe.arrow.columns import KEY
from cbframe.cli import complain
from cbframe.errors import ConfigurationError
from cbframe.scan.parquet import whole_file, write_batches
from cbframe.scan.result import ReadResult, left_out
from cbframe.ui.show import is_terminal

Write: TypeAlias = Callable[[pa.RecordBatchReader, Path], int]
INDENT = "  "
HEAD_ROWS = 10
_WIDEST_CELL = 26
_WIDEST_KEY = 40
_LINES = 4096
"""Rows that are Python objects at the same time."""
_ACTIONS = {"text": "kept as text", "json": "kept as JSON text", "null": "made null", "map": "names are data"}


def writer_of(path: Path, form: str | None = None) -> Write:
    """What writes `path`, and returns the number of rows; in a format, or in that of its ending.

    Asked before the bucket is read, since a read can take an hour.
    """
    ending = path.suffix.lower().removeprefix(".")
    write = _WRITERS.get(form or ending)
    if write is None or (ending in _WRITERS and ending != (form or ending)):
        endings = ", ".join(f".{name}" for name in _WRITERS)
        wrong = "names no known format" if write is None else f"does not end in .{form}"
        raise ConfigurationError(f"{path.name!r} {wrong}", hint=f"end it in one of: {endings}")
    if not path.parent.is_dir():
        raise ConfigurationError(f"the folder {path.parent} does not exist")
    if path.is_dir():
        raise ConfigurationError(f"{path} is a folder")

    def write_whole(reader: pa.RecordBatchReader, path: Path) -> int:
        with whole_file(path) as file:
            return write(reader, file)

    return write_whole


def print_rows(reader: pa.RecordBatchReader, form: str) -> None:
    """Write to the standard output."""
    sys.stdout.flush()
    _WRITERS[form](reader, sys.stdout.buffer)


def _write_arrow(reader: pa.RecordBatchReader, file: BinaryIO) -> int:
    with pa.ipc.new_file(file, reader.schema) as writer:
        return _write_each(reader, writer.write_batch)


def _write_csv(reader: pa.RecordBatchReader, file: BinaryIO) -> int:
    schema = _flat(reader.schema.empty_table()).schema
    with pyarrow.csv.CSVWriter(file, schema) as writer:
        return _write_each(reader, lambda batch: writer.write_table(_flat(pa.Table.from_batches([batch]))))


def _write_ndjson(reader: pa.RecordBatchReader, file: BinaryIO) -> int:
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


_WRITERS: dict[str, Callable[[pa.RecordBatchReader, BinaryIO], int]] = {
    "parquet": partial(write_batches, compression="zstd"),
    "arrow": _write_arrow,
    "csv": _write_csv,
    "ndjson": _write_ndjson,
}


def say(text: str) -> None:
    # At once: the progress line goes to another stream.
    print(text, flush=True)


def title(text: str, *, first: bool = False) -> None:
    say(f"{'' if first else chr(10)}{text}")


def styled(text: str, stream: TextIO | None = None, *, dim: bool = False) -> str:
    """Bold or dim, on a terminal; not where NO_COLOR is set."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM", "dumb") == "dumb"
    return text if plain or not is_terminal(stream or sys.stdout) else f"\x1b[{2 if dim else 1}m{text}\x1b[0m"


def note(text: str) -> None:
    """Tell a person something beside the data."""
    complain(styled(text, sys.stderr, dim=True))


def width() -> int:
    """Columns of the terminal; 80 where there is none."""
    return max(40, shutil.get_terminal_size((80, 24)).columns)


def _cells(text: str) -> int:
    """Columns of a terminal that a text takes: 京 takes two."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def cut(text: str, most: int) -> str:
    """A text, cut to the columns of a terminal."""
    if len(text) <= most and _cells(text) <= most:
        return text
    text = text[:most]
    while _cells(text) >= most:
        text = text[:-1]
    return f"{text}…"


def aligned(rows: Iterable[Sequence[str]], left: Container[int] = (0,)) -> Iterator[str]:
    """The lines of a table: these columns to the left, the others to the right."""
    lines = [*rows]
    widths = [max(map(_cells, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = []
        for at, (text, size) in enumerate(zip(line, widths, strict=True)):
            blanks = " " * (size - _cells(text))
            cells.append(text + blanks if at in left else blanks + text)
        yield "  ".join(cells).rstrip()


def say_rows(rows: Iterable[Sequence[str]], header: Sequence[str] | None = None) -> None:
    """An aligned table: the first column to the left, the others to the right."""
    for line in aligned([*([header] if header else []), *rows]):
        say(INDENT + line)


def show_head(table: pa.Table, *, chosen: bool = False) -> None:
    """Rows, with as many of their columns as fit: simple ones that they have first, or those `chosen`."""
    names = [name for name in table.column_names if name != KEY]
    if not chosen:
        names = [name for name in names if table[name].null_count < len(table)]
        names.sort(key=lambda name: (pa.types.is_nested(table[name].type), table[name].null_count))
    columns, left, hidden = [_column(table, KEY)], {0}, set(table.column_names) - {KEY}
    room = width() - 2 * len(INDENT) - max(map(_cells, columns[0]))
    for name in names:
        column = _column(table, name)
        size = len(INDENT) + max(map(_cells, column))
        if size <= room:
            room -= size
            kind = table[name].type
            if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
                left.add(len(columns))
            columns.append(column)
            hidden.remove(name)
    for at, line in enumerate(aligned(zip(*columns, strict=True), left)):
        say(INDENT + (line if at else styled(line)))
    if hidden:
        others = ", ".join(printable(name) for name in table.column_names if name in hidden)
        say(INDENT + styled(cut(f"… and {len(hidden)} more columns: {others}", width() - 4), dim=True))


def _column(table: pa.Table, name: str) -> list[str]:
    kind = table.schema.field(name).type
    values = (_shown(_plain(value, kind)) for value in table[name].to_pylist())
    most = _WIDEST_KEY if name == KEY else _WIDEST_CELL
    return [cut(printable(name), _WIDEST_KEY), *(cut(value, most) for value in values)]


def _shown(value: Any) -> str:
    if isinstance(value, bool | dict | list | bytes | None):
        return _cell(value) or ""
    return printable(str(value))


def printable(text: str) -> str:
    """A text on one line, whatever is in it."""
    return text if text.isprintable() else repr(text)[1:-1]


def show_table(table: pa.Table) -> None:
    say("")
    show_head(table.slice(0, HEAD_ROWS))
    say("")
    for line in _fields(table):
        say(line)


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
    size = max(map(_cells, [*by_type, *(name for name, _ in nested)]), default=0)
    rows = [(kind, ", ".join(names)) for kind, names in by_type.items()]
    for left, right in [*rows, *nested]:
        lead = INDENT + left + " " * (size - _cells(left) + 2)
        rest = " " * (size + 4)
        wrapper = textwrap.TextWrapper(
            min(100, width()), initial_indent=lead, subsequent_indent=rest, break_on_hyphens=False
        )
        yield from wrapper.wrap(right)


def show_nodes(result: ReadResult) -> None:
    rows = []
    for name, node in [*result.stats.nodes.items(), ("all", result.stats.total)]:
        removed = node.deletions + node.expirations
        counts = (f"{number:,}" for number in (node.streams_ended, node.mutations, removed))
        others = f"{node.bytes_received / 1e6:.1f}", f"{node.snapshots:,}", f"{node.buffer_acks:,}"
        rows.append((name, *counts, *others))
    say_rows(rows, ("node", "vbuckets", "documents", "tombstones", "MB", "snapshots", "acks"))


def show_remarks(result: ReadResult) -> None:
    """The vbucket positions of the table, and what is not in a column of its own type."""
    as_of = result.as_of
    whole = f"{len(as_of):,} vbuckets, {as_of.changes:,} changes"
    rows = [("as of", whole if as_of else "no moment: these are some documents")]
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
