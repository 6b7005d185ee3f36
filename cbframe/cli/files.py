"""Files in four formats; each appears whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import pyarrow as pa
import pyarrow.csv

from cbframe.errors import ConfigurationError
from cbframe.frame import convert


def writer_of(path: Path) -> Callable[[pa.Table, Path], None]:
    """What writes `path`; asked before the bucket is read, since a read can take an hour."""
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


@contextmanager
def _whole(path: Path) -> Iterator[BinaryIO]:
    """A file that takes its name when it is complete and on the disk."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with scratch.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def write_parquet(table: pa.Table, path: Path) -> None:
    convert.write_parquet(table, path, "zstd")


def _write_arrow(table: pa.Table, path: Path) -> None:
    with _whole(path) as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


def _write_csv(table: pa.Table, path: Path) -> None:
    for index, field in enumerate(table.schema):
        if pa.types.is_nested(field.type) or pa.types.is_binary(field.type) or pa.types.is_null(field.type):
            values = (_cell(value) for value in table.column(index).to_pylist())
            table = table.set_column(index, field.name, pa.array(values, pa.string()))
    with _whole(path) as file:
        pyarrow.csv.write_csv(table, file)


def _cell(value: Any) -> str | None:
    if value is None:
        return None
    text = msgspec.json.encode(without_nulls(value)).decode()
    return text[1:-1] if isinstance(value, bytes) else text


def _write_ndjson(table: pa.Table, path: Path) -> None:
    encode = msgspec.json.Encoder().encode_lines
    with _whole(path) as file:
        for batch in table.to_batches(max_chunksize=4096):
            file.write(encode([without_nulls(row) for row in batch.to_pylist()]))


def without_nulls(value: Any) -> Any:
    """Columns cannot tell a null from a missing field: neither is written. Nulls in lists stay."""
    if isinstance(value, dict):
        return {name: without_nulls(item) for name, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value


_WRITERS: dict[str, Callable[[pa.Table, Path], None]] = {
    ".parquet": write_parquet,
    ".arrow": _write_arrow,
    ".csv": _write_csv,
    ".ndjson": _write_ndjson,
}
