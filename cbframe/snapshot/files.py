"""Parquet files of rows that are changes: written a row group at a time, each for a range of vbuckets."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cbframe.arrow.columns import COLLECTION_ID, KEY, SEQNO, VBUCKET
from cbframe.arrow.documents.written import rendered
from cbframe.errors import SnapshotError
from cbframe.scan.parquet import check_compression
from cbframe.scan.spec import positive
from cbframe.snapshot.manifest import FileEntry
from cbframe.snapshot.sink import CHANGE_TYPE, UPSERT
from cbframe.snapshot.store import Output, Store

DATA = "data"
FILE_BYTES = 128 << 20
"""Bytes in memory of the changes for which there is a file of its own."""
_MOST_FILES = 16
_PENDING = 24 << 20
"""Bytes in memory that wait until they are worth a row group."""


def check_form(compression: str, file_bytes: int = FILE_BYTES) -> None:
    """Refuse what no file can be written with."""
    check_compression(compression)
    positive("file_bytes", file_bytes)


@dataclass(slots=True)
class _Open:
    """A file that is being written."""

    name: str
    output: Output
    writer: pq.ParquetWriter
    rows: int = 0
    upserts: int = 0
    vbuckets: tuple[int, int] = (0xFFFF, 0)
    seqnos: tuple[int, int] = ((1 << 64) - 1, 0)
    pending: list[pa.Table] = field(default_factory=list)
    waiting: int = 0

    def take(self, table: pa.Table) -> None:
        """Add rows, which wait for more."""
        self.rows += len(table)
        self.upserts += pc.sum(pc.equal(table[CHANGE_TYPE], UPSERT)).as_py() or 0
        self.vbuckets = _widened(self.vbuckets, table[VBUCKET])
        self.seqnos = _widened(self.seqnos, table[SEQNO])
        self.pending.append(table)
        self.waiting += table.nbytes

    def put_down(self) -> None:
        """Write what waits."""
        if self.pending:
            group = pa.concat_tables(self.pending)
            self.pending.clear()
            self.waiting = 0
            self.writer.write_table(group, row_group_size=len(group))


class ChangeFiles:
    """The files of one version; a context manager: after an error none of them is left."""

    def __init__(
        self, store: Store, prefix: str, schema: pa.Schema, *, parts: int, vbuckets: int, compression: str
    ) -> None:
        self._store = store
        self._prefix = prefix
        self._schema = rendered(schema.empty_table()).schema
        self._bounds = np.linspace(0, vbuckets, parts + 1).astype(np.int64)[1:-1]
        self._compression = compression
        self._files: dict[int, _Open] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files.values():
            # One that is never closed would be so later, when its file is gone.
            with suppress(OSError):
                file.writer.close()
        self._stack.__exit__(kind, value, trace)

    def add(self, table: pa.Table) -> None:
        """Add rows."""
        table = rendered(table)
        for part, rows in self._split(table):
            if part not in self._files:
                self._files[part] = self._open(part)
            self._files[part].take(rows)
        while sum(file.waiting for file in self._files.values()) > _PENDING:
            max(self._files.values(), key=lambda file: file.waiting).put_down()

    def _split(self, table: pa.Table) -> Iterator[tuple[int, pa.Table]]:
        if not len(self._bounds):
            yield 0, table
            return
        parts: npt.NDArray[np.int64] = np.searchsorted(self._bounds, table[VBUCKET].to_numpy(), side="right")
        order = np.argsort(parts, kind="stable")
        table = table.take(pa.array(order))
        found, starts = np.unique(parts[order], return_index=True)
        ends = [*starts[1:].tolist(), len(table)]
        for part, start, end in zip(found.tolist(), starts.tolist(), ends, strict=True):
            yield part, table.slice(start, end - start)

    def _open(self, part: int) -> _Open:
        name = f"{DATA}/{self._prefix}-{part:03d}.parquet"
        output = self._stack.enter_context(self._store.create(name))
        writer = pq.ParquetWriter(
            output,
            self._schema,
            compression=self._compression,
            write_page_checksum=True,
        )
        return _Open(name, output, writer)

    def finish(self, version: int, *, columns: int, unique: bool) -> tuple[FileEntry, ...]:
        """Complete the files."""
        entries = []
        for _, file in sorted(self._files.items()):
            file.put_down()
            file.writer.close()
            entries.append(
                FileEntry(
                    name=file.name,
                    version=version,
                    rows=file.rows,
                    upserts=file.upserts,
                    nbytes=file.output.nbytes,
                    sha256=file.output.sha256,
                    vbuckets=file.vbuckets,
                    seqnos=file.seqnos,
                    unique=unique,
                    columns=columns,
                )
            )
        self._stack.close()
        return tuple(entries)


def parts_for(nbytes: int, file_bytes: int) -> int:
    """Into how many files so much goes."""
    return min(_MOST_FILES, max(1, -(-nbytes // file_bytes)))


def _widened(ends: tuple[int, int], column: pa.ChunkedArray) -> tuple[int, int]:
    found = pc.min_max(column).as_py()
    return min(ends[0], found["min"]), max(ends[1], found["max"])


HEAD = (KEY, COLLECTION_ID, VBUCKET, SEQNO, CHANGE_TYPE)
"""What tells which rows count."""
_AT_ONCE = 1 << 21
"""Rows: some tens of bytes each."""


@contextmanager
def opened(store: Store, entry: FileEntry) -> Iterator[pq.ParquetFile]:
    """A file of a snapshot."""
    try:
        with store.input(entry.name) as source:
            file = pq.ParquetFile(source, page_checksum_verification=True)
            rows = file.metadata.num_rows
            if rows == entry.rows:
                yield file
                return
        raise damaged(store, entry, f"{rows:,} rows instead of {entry.rows:,}")
    except FileNotFoundError as exc:
        raise SnapshotError(
            "a file of the snapshot is gone",
            path=store.where(entry.name),
            hint="vacuum() deletes files of old versions: read a newer one. If this is the newest, "
            'write_snapshot(..., mode="repair") reads again what was in it',
        ) from exc
    except (OSError, KeyError, pa.ArrowException) as exc:
        # What pyarrow cannot decode is an OSError without a number, too.
        if isinstance(exc, OSError) and exc.errno and not is_lost(exc):
            raise unreadable(store, entry, exc) from exc
        # Pages have check sums. The footer has none: a name in it that is another one is a missing column.
        raise damaged(store, entry, str(exc)) from exc


def is_lost(error: OSError) -> bool:
    """Whether an error of the system says that the disk has the bytes no more, and not: not now."""
    return error.errno == errno.EIO


def unreadable(store: Store, entry: FileEntry, why: OSError) -> SnapshotError:
    """Of a file that may be as it was written."""
    return SnapshotError(
        f"cannot read a file: {why.strerror or why}",
        path=store.where(entry.name),
        hint="it need not be damaged: try again when the cause is gone",
    )


def damaged(store: Store, entry: FileEntry, why: str) -> SnapshotError:
    """Of a file that is not as it was written."""
    return SnapshotError(
        f"a damaged file of the snapshot ({why.strip()})",
        path=store.where(entry.name),
        hint='verify() looks at all files; write_snapshot(..., mode="repair") reads again what was in '
        "damaged ones",
    )


def heads(store: Store, entry: FileEntry, columns: Sequence[str] = HEAD) -> Iterator[pa.Table]:
    """Metadata of the rows of a file, many rows at once; keys are binary."""
    with opened(store, entry) as file:
        groups: list[int] = []
        rows = 0
        for group in range(file.num_row_groups):
            groups.append(group)
            rows += file.metadata.row_group(group).num_rows
            if rows < _AT_ONCE and group + 1 < file.num_row_groups:
                continue
            table = file.read_row_groups(groups, columns=list(columns)).select(list(columns))
            if KEY in columns and table[KEY].type != pa.binary():
                table = table.set_column(columns.index(KEY), KEY, table[KEY].cast(pa.binary()))
            yield table
            groups, rows = [], 0


def may_have(store: Store, entry: FileEntry, column: str, low: int, high: int) -> bool:
    """Whether a column of a file may have numbers from `low` to `high`, as its statistics say."""
    with opened(store, entry) as file:
        at = file.schema_arrow.get_field_index(column)
        if at < 0:
            raise damaged(store, entry, f"it has no column {column}")
        # Nested columns come after those of metadata: what is before them are columns of their own.
        for group in map(file.metadata.row_group, range(file.num_row_groups)):
            chunk = group.column(at)
            if chunk.path_in_schema != column or chunk.statistics is None or not chunk.statistics.has_min_max:
                return True
            if chunk.statistics.min <= high and chunk.statistics.max >= low:
                return True
    return False
