"""Files that appear whole or not at all, and Parquet in them."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from cbframe.arrow.documents.rendered import rendered
from cbframe.errors import ConfigurationError
from cbframe.system import replace, sync

_COMPRESSIONS = ("zstd", "snappy", "gzip", "lz4", "brotli", "none")
_ROW_GROUP_BYTES = 24 << 20
_ROW_GROUP_ROWS = 1 << 20


def check_compression(compression: str) -> None:
    """Refuse what no file can be written with, before anything is read."""
    if compression not in _COMPRESSIONS:
        raise ConfigurationError(
            f"compression={compression!r}", hint=f"choose from: {', '.join(_COMPRESSIONS)}"
        )


def place_of(path: str | os.PathLike[str], compression: str) -> Path:
    """Where files go; ``~`` is the home folder. Refuses what :func:`check_compression` does."""
    check_compression(compression)
    return Path(path).expanduser()


@contextmanager
def whole_file(path: Path, *, overwrite: bool = True) -> Iterator[BinaryIO]:
    """Write to a file beside `path`, and rename it when it is complete and on the disk."""
    scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with scratch.open("wb") as file:
            yield file
            sync(file)
        if not overwrite and os.path.lexists(path):
            raise ConfigurationError(
                f"there is something at {path}, which came during the read", hint="give another name"
            )
        replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def write_parquet(reader: pa.RecordBatchReader, path: Path, compression: str = "zstd") -> int:
    """Write all batches into a file, as :func:`write_batches` does."""
    with whole_file(path) as file:
        return write_batches(reader, file, compression)


def write_batches(reader: pa.RecordBatchReader, file: Any, compression: str) -> int:
    """Write all batches, gathered until they are worth a row group; return the number of rows."""
    rows = 0
    schema = rendered(reader.schema.empty_table()).schema
    with pq.ParquetWriter(file, schema, compression=compression) as writer:
        for group in _groups(reader):
            writer.write_table(rendered(group), row_group_size=len(group))
            rows += len(group)
    return rows


def _groups(reader: pa.RecordBatchReader) -> Iterator[pa.Table]:
    pending: list[pa.RecordBatch] = []
    rows = size = 0
    for batch in reader:
        pending.append(batch)
        rows, size = rows + len(batch), size + batch.nbytes
        if rows >= _ROW_GROUP_ROWS or size >= _ROW_GROUP_BYTES:
            yield pa.Table.from_batches(pending)
            pending.clear()
            rows = size = 0
    if pending:
        yield pa.Table.from_batches(pending)
