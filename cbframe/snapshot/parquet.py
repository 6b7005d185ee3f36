"""Reading the files of a snapshot: what is damaged is reported, and never taken for data."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq

from cbframe.arrow.columns import COLLECTION_ID, KEY, SEQNO, VBUCKET
from cbframe.errors import SnapshotError
from cbframe.snapshot.manifest import FileEntry
from cbframe.snapshot.sink import CHANGE_TYPE
from cbframe.snapshot.store import Store

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
