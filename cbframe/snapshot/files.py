"""The Parquet files of a snapshot: how their rows, which are changes, are written, and which of them count.

:class:`ChangeFiles` writes the files of a version, each for a range of vbuckets. Rows are never changed: what
the server rolls back, replaces or deletes later no longer counts. :class:`Live` finds what counts, one mask a
file. It reads keys and metadata, not documents.
"""

from __future__ import annotations

import errno
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cbframe.arrow.column_types import rendered
from cbframe.arrow.columns import COLLECTION_ID, EXPIRY, KEY, SEQNO, VBUCKET, Mask
from cbframe.arrow.current_rows import (
    by_vbucket,
    has_expired,
    newest,
    of_dropped,
    of_transactions,
    rolled_back,
)
from cbframe.errors import SnapshotError
from cbframe.scan.changes import CHANGE_TYPE, UPSERT
from cbframe.scan.parquet import check_compression
from cbframe.scan.spec import positive
from cbframe.scan.store import Output, Store
from cbframe.snapshot.manifest import FOLDER, FileEntry, Manifest, Rollback

DATA = "data"
HEAD = (KEY, COLLECTION_ID, VBUCKET, SEQNO, CHANGE_TYPE)
"""What tells which rows count."""
METADATA = ("key", "vbucket", "seqno", "cas", "rev_seqno", "expiry", "flags", "datatype")
"""What files have of every row, besides the name of its collection."""
FILE_BYTES = 128 << 20
"""Bytes in memory of the changes for which there is a file of its own."""
_MOST_FILES = 16
_PENDING = 24 << 20
"""Bytes in memory that wait until they are worth a row group."""
_AT_ONCE = 1 << 21
"""Rows whose metadata is read at once: some tens of bytes each."""

_Counting: TypeAlias = list[tuple[pa.Table, Mask]]
"""Rows of a file, a part after the other, and which of them were not rolled back."""


def made_way(field: str) -> str:
    """The column of a field: a document's own ``_change_type`` makes way, as does what looks as if it had."""
    return f"{field}_" if field.rstrip("_") == CHANGE_TYPE else field


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
        self, store: Store, version: int, schema: pa.Schema, *, parts: int, vbuckets: int, compression: str
    ) -> None:
        self._store = store
        self._version = version
        # No other attempt to write this version has the same names.
        self._prefix = f"{DATA}/{version:08d}-{uuid.uuid4().hex[:8]}"
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
        name = f"{self._prefix}-{part:03d}.parquet"
        output = self._stack.enter_context(self._store.create(name))
        writer = pq.ParquetWriter(
            output, self._schema, compression=self._compression, write_page_checksum=True
        )
        return _Open(name, output, writer)

    def finish(self, *, columns: int, unique: bool) -> tuple[FileEntry, ...]:
        """Complete the files."""
        entries = []
        for _, file in sorted(self._files.items()):
            file.put_down()
            file.writer.close()
            entries.append(
                FileEntry(
                    name=file.name,
                    version=self._version,
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


def sweep(store: Store, newest: int) -> None:
    """Delete what a writer that was killed left behind: nothing names it, and nobody writes now."""
    for name in store.names(DATA):
        version = name.partition("-")[0]
        if version.isdigit() and int(version) > newest:
            store.remove(f"{DATA}/{name}")
    for name in store.names(FOLDER):
        if name.startswith("."):
            store.remove(f"{FOLDER}/{name}")


def parts_for(nbytes: int, file_bytes: int) -> int:
    """How many files these bytes go to."""
    return min(_MOST_FILES, max(1, -(-nbytes // file_bytes)))


def _widened(ends: tuple[int, int], column: pa.ChunkedArray) -> tuple[int, int]:
    found = pc.min_max(column).as_py()
    return min(ends[0], found["min"]), max(ends[1], found["max"])


@contextmanager
def opened(store: Store, entry: FileEntry) -> Iterator[pq.ParquetFile]:
    """A file of a snapshot."""
    try:
        with store.input(entry.name) as source:
            file = pq.ParquetFile(source, page_checksum_verification=True)
            if (rows := file.metadata.num_rows) != entry.rows:
                raise damaged(store, entry, f"{rows:,} rows instead of {entry.rows:,}")
            yield file
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
        hint="the file may be intact: remove the cause, and try again",
    )


def damaged(store: Store, entry: FileEntry, why: str) -> SnapshotError:
    """Of a file that is not as it was written."""
    return SnapshotError(
        f"a damaged file of the snapshot ({why.strip()})",
        path=store.where(entry.name),
        hint='verify() looks at all files; write_snapshot(..., mode="repair") reads again what is damaged',
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
            if len(table) != rows:  # pyarrow 18 and 19 leave out what a damaged footer hides
                raise damaged(store, entry, f"{len(table):,} rows instead of {rows:,}")
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


def matching(
    store: Store, entry: FileEntry, columns: Sequence[str], test: Callable[[pa.Table], Mask]
) -> Mask:
    """Which rows of a file pass a test on some columns of metadata."""
    return np.concatenate([test(table) for table in heads(store, entry, columns)])


@dataclass(frozen=True, slots=True)
class Part:
    """The rows of a file that count."""

    entry: FileEntry
    keep: Mask | None  # one entry a row; None for all

    @property
    def count(self) -> int:
        """How many they are."""
        return self.entry.rows if self.keep is None else int(self.keep.sum())

    def only(self, mask: Mask) -> Part:
        """Those of them that a mask keeps, too."""
        return Part(self.entry, mask if self.keep is None else self.keep & mask)


def shown(store: Store, manifest: Manifest, part: Part) -> Part:
    """A part without records of transactions: snapshots of earlier releases have them."""
    if manifest.knows_transactions or not part.count:
        return part
    hidden = matching(store, part.entry, (KEY,), lambda table: of_transactions(table[KEY]))
    return part.only(~hidden) if hidden.any() else part


class RollbackSeqnos:
    """The rollback seqnos of vbuckets, by the version in which rows were written."""

    def __init__(self, rollbacks: Sequence[Rollback]) -> None:
        self._rollbacks = rollbacks
        self._of: dict[int, npt.NDArray[np.uint64] | None] = {}

    def of(self, version: int) -> npt.NDArray[np.uint64] | None:
        """By vbucket; None if nothing of this version was rolled back."""
        if version not in self._of:
            lowest: dict[int, int] = {}
            for each in self._rollbacks:
                if each.version > version:
                    for vbucket, seqno in each.vbuckets.items():
                        lowest[vbucket] = min(seqno, lowest.get(vbucket, seqno))
            self._of[version] = by_vbucket(lowest) if lowest else None
        return self._of[version]

    def concern(self, entry: FileEntry) -> bool:
        """Whether rows of a file may have been rolled back."""
        seqnos = self.of(entry.version)
        return seqnos is not None and _may_have_rolled_back(entry, seqnos)

    def mask(self, version: int, table: pa.Table) -> Mask:
        """Which rows of a version were not rolled back."""
        seqnos = self.of(version)
        return np.ones(len(table), bool) if seqnos is None else ~rolled_back(table, seqnos)


def _may_have_rolled_back(entry: FileEntry, rollback_seqnos: npt.NDArray[np.uint64]) -> bool:
    low, high = entry.vbuckets
    return bool((rollback_seqnos[low : high + 1] < entry.seqnos[1]).any())


class Live:
    """Finds the rows that are the documents of a version."""

    def __init__(
        self,
        store: Store,
        manifest: Manifest,
        *,
        deletions: bool = False,  # the newest rows of documents that are gone count, too
        moment: int | None = None,  # by when documents have expired; None to keep them
    ) -> None:
        self._store = store
        self._manifest = manifest
        self._deletions = deletions
        self._moment = moment
        self.expired = 0
        self._rollback_seqnos = RollbackSeqnos(manifest.rollbacks)
        self._dead = set(manifest.dead)
        self._ended: dict[tuple[int, int], int] = {}
        for drop in manifest.drops:
            for vbucket, seqno in drop.vbuckets.items():
                place = vbucket, drop.collection
                self._ended[place] = max(seqno, self._ended.get(place, 0))

    def parts(self) -> list[Part]:
        """Files with what counts of them, oldest first."""
        found = [shown(self._store, self._manifest, part) for part in self._newest()]
        if self._moment is None:
            return found
        return [self._without_expired(part, self._moment) for part in found]

    def _without_expired(self, part: Part, moment: int) -> Part:
        # 0 is never, and most often there is nothing else.
        if not part.count or not may_have(self._store, part.entry, EXPIRY, 1, moment - 1):
            return part
        gone = matching(
            self._store, part.entry, (EXPIRY,), lambda table: has_expired(table[EXPIRY].to_numpy(), moment)
        )
        left = part.only(~gone)
        self.expired += part.count - left.count
        return left

    def _newest(self) -> list[Part]:
        """Files with the newest versions of documents.

        Keys are compared only where a document may occur twice. The version with most rows in which none does
        is the base: its rows are read one part after the other, and only checked against the keys of the
        others.
        """
        entries = self._manifest.files
        base = self._base()
        others = [entry for entry in entries if entry.version != base]
        plain = not self._dead and not self._ended and not any(map(self._rollback_seqnos.concern, entries))
        if not others and plain and (self._deletions or all(e.rows == e.upserts for e in entries)):
            return [Part(entry, None) for entry in entries]
        counting = {entry.name: [*self._counting(entry)] for entry in others}
        if base is not None and self._goes_by_version(base):
            masks = self._newest_by_version(counting)
        else:
            masks = self._newest_by_seqno(base, counting)
        return [Part(entry, np.concatenate(masks[entry.name] or [np.ones(0, bool)])) for entry in entries]

    def _base(self) -> int | None:
        """The version with most rows among those in which no document occurs twice."""
        rows: Counter[int] = Counter()
        for entry in self._manifest.files:
            if entry.unique:
                rows[entry.version] += entry.rows
        return rows.most_common(1)[0][0] if rows else None

    def _counting(self, entry: FileEntry) -> Iterator[tuple[pa.Table, Mask]]:
        columns = [KEY, COLLECTION_ID, SEQNO]
        if self._ended or self._rollback_seqnos.of(entry.version) is not None:
            columns.append(VBUCKET)
        if not self._deletions and entry.rows != entry.upserts:
            columns.append(CHANGE_TYPE)
        for table in heads(self._store, entry, columns):
            mask = self._rollback_seqnos.mask(entry.version, table)
            gone = of_dropped(table, self._dead, self._ended)
            yield table, mask if gone is None else mask & ~gone

    def _goes_by_version(self, base: int) -> bool:
        """Whether of two rows of one key, the one of the later version is always the newer one."""
        return (
            len({*self._manifest.collections, *self._dead}) <= 1
            and all(entry.unique for entry in self._manifest.files)
            and base == min(entry.version for entry in self._manifest.files)
        )

    def _newest_by_version(self, counting: Mapping[str, _Counting]) -> dict[str, list[Mask]]:
        later = [
            table[KEY] if mask.all() else table[KEY].filter(pa.array(mask))
            for some in counting.values()
            for table, mask in some
        ]
        encoded = _encoded(pa.chunked_array([chunk for keys in later for chunk in keys.chunks], pa.binary()))
        codes = np.asarray(encoded.indices)
        last = np.zeros(len(encoded.dictionary), np.int64)
        last[codes] = np.arange(len(codes))  # of several assignments to one place, the last counts
        is_last = last[codes] == np.arange(len(codes))
        masks: dict[str, list[Mask]] = {}
        start = 0
        for entry in self._manifest.files:
            masks[entry.name] = []
            for table, mask in counting.get(entry.name) or self._counting(entry):
                counts = mask.copy()
                if entry.name in counting:
                    rows = int(mask.sum())
                    counts[mask] = is_last[start : start + rows]
                    start += rows
                else:
                    counts &= ~pc.is_in(table[KEY], value_set=encoded.dictionary).to_numpy()
                masks[entry.name].append(_documents(table, counts))
        return masks

    def _newest_by_seqno(self, base: int | None, counting: Mapping[str, _Counting]) -> dict[str, list[Mask]]:
        keys = [table[KEY].filter(pa.array(mask)) for some in counting.values() for table, mask in some]
        named = pa.chunked_array([chunk for key in keys for chunk in key.chunks], pa.binary())
        masks: dict[str, list[Mask]] = {}
        suspects: list[tuple[Mask, npt.NDArray[np.int64], pa.Table]] = []
        for entry in self._manifest.files:
            masks[entry.name] = []
            # The newest is looked for among documents that are in several versions; of the one with most
            # rows, only those are taken up that others have, too.
            for table, mask in counting.get(entry.name) or self._counting(entry):
                again = mask
                if entry.version == base:
                    again = mask & pc.is_in(table[KEY], value_set=named).to_numpy()
                rows = np.flatnonzero(again)
                counts = _documents(table, mask)
                masks[entry.name].append(counts)
                if len(rows):
                    some = table.select([KEY, COLLECTION_ID, SEQNO]).take(pa.array(rows))
                    suspects.append((counts, rows, some))
        if suspects:
            stale = ~newest(pa.concat_tables([some for *_, some in suspects]))
            start = 0
            for counts, rows, some in suspects:
                counts[rows[stale[start : start + len(some)]]] = False
                start += len(some)
        return masks


def _documents(table: pa.Table, mask: Mask) -> Mask:
    """A mask without deletions, where these are read at all."""
    if CHANGE_TYPE not in table.column_names:
        return mask
    upserts: Mask = pc.equal(table[CHANGE_TYPE], UPSERT).to_numpy()
    return mask & upserts


def _encoded(keys: pa.ChunkedArray) -> pa.DictionaryArray:
    """A number for each key."""
    # Not chunk by chunk: to unify the dictionaries afterwards takes longer than all the rest.
    whole = keys.combine_chunks()
    if isinstance(whole, pa.ChunkedArray):  # more bytes than one array holds
        return whole.dictionary_encode().unify_dictionaries().combine_chunks()
    return whole.dictionary_encode()


def count_rolled_back(store: Store, before: Manifest, rollback_seqnos: Mapping[int, int]) -> int:
    """How many rows of a version one more rollback concerns."""
    if not rollback_seqnos:
        return 0
    earlier, seqnos = RollbackSeqnos(before.rollbacks), by_vbucket(rollback_seqnos)
    return sum(
        int((rolled_back(table, seqnos) & earlier.mask(entry.version, table)).sum())
        for entry in before.files
        if _may_have_rolled_back(entry, seqnos)
        for table in heads(store, entry, (VBUCKET, SEQNO))
    )
