"""Files in four formats; each appears whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.csv

from cbframe.errors import ConfigurationError
from cbframe.scan.parquet import whole_file, write_parquet

_LINES = 4096
"""Rows that are Python objects at the same time."""


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
    rows = 0
    with whole_file(path) as file, pa.ipc.new_file(file, reader.schema) as writer:
        for batch in reader:
            writer.write_batch(batch)
            rows += len(batch)
    return rows


def _write_csv(reader: pa.RecordBatchReader, path: Path) -> int:
    rows = 0
    schema = _flat(reader.schema.empty_table()).schema
    with whole_file(path) as file, pyarrow.csv.CSVWriter(file, schema) as writer:
        for batch in reader:
            writer.write_table(_flat(pa.Table.from_batches([batch])))
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


def _write_ndjson(reader: pa.RecordBatchReader, path: Path) -> int:
    rows = 0
    with whole_file(path) as file:
        for batch in reader:
            for lines in ndjson(batch):
                file.write(lines)
            rows += len(batch)
    return rows


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
