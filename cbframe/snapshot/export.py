"""The documents of a version as a plain folder of Parquet files."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from cbframe.errors import ConfigurationError, SnapshotError
from cbframe.scan.parquet import write_parquet
from cbframe.snapshot.reader import VersionReader
from cbframe.snapshot.store import LocalStore, Store, make_folder

_FILE = 512 << 20
"""Bytes in memory that go to one file."""


def export(reader: VersionReader, place: Store, compression: str) -> Path:
    """Write the files; the folder appears whole or not at all."""
    if not isinstance(place, LocalStore):
        raise ConfigurationError(
            f"export() writes a folder of this machine, and {place.root} is none",
            hint="write it here and copy it there",
        )
    path = Path(place.root)
    if path.exists():
        raise SnapshotError(
            "there is something already", path=str(path), hint="give the name of a new folder"
        )
    scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with place.reporting("", "export the documents"):
            make_folder(scratch)
            left = _Left(reader)
            number = 0
            while left.some or not number:
                part = pa.RecordBatchReader.from_batches(reader.schema, left.next_file())
                write_parquet(part, scratch / f"part-{number:05d}.parquet", compression)
                number += 1
            os.rename(scratch, path)  # noqa: PTH104 - unlike replace(), refuses a folder that has something
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return path


class _Left:
    """Tables that are not written yet."""

    def __init__(self, reader: VersionReader) -> None:
        self._tables = reader.tables()
        self._next = next(self._tables, None)

    @property
    def some(self) -> bool:
        return self._next is not None

    def next_file(self) -> Iterator[pa.RecordBatch]:
        """What goes to one file."""
        size = 0
        while self._next is not None and size < _FILE:
            table = self._next
            yield from table.to_batches()
            size += table.nbytes
            self._next = next(self._tables, None)
