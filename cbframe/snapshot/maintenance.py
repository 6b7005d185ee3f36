"""Fewer and smaller files: what no rollback can bring back is left out, and old versions are deleted."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cbframe.arrow.columns import SEQNO, VBUCKET
from cbframe.errors import ConfigurationError, SnapshotError
from cbframe.scan.parquet import write_parquet
from cbframe.snapshot.contents import METADATA
from cbframe.snapshot.files import DATA, ChangeFiles, heads, opened, parts_for
from cbframe.snapshot.manifest import FOLDER, Counts, FileEntry, Manifest, Rollback, name_of
from cbframe.snapshot.reader import VersionReader, documents_of
from cbframe.snapshot.result import behind, count
from cbframe.snapshot.rows import Ceilings, Live, Part, shown
from cbframe.snapshot.store import LocalStore, Store, make_folder
from cbframe.snapshot.versions import Boundaries, History, following, lag
from cbframe.snapshot.writer import publish, sweep, writer_prefix
from cbframe.wire.constants import MAX_SEQNO

_METADATA = (*METADATA, "scope", "collection")


@dataclass(frozen=True, slots=True)
class Compaction:
    """What a compaction did.

    Attributes
    ----------
    version
        The version that it made; the newest one where there was nothing to gain.
    rows, files, nbytes
        Before and after.
    changed
        Whether it made a version. It does not where that would have the same rows in as many files, of the
        same compression.
    clock_behind
        As of :class:`~cbframe.SnapshotResult`.
    """

    version: int
    rows: tuple[int, int]
    files: tuple[int, int]
    nbytes: tuple[int, int]
    changed: bool = True
    clock_behind: timedelta = timedelta()

    def __str__(self) -> str:
        if not self.changed:
            return (
                f"version {self.version}: nothing to gain, {count(self.rows[0], 'row')} in "
                f"{count(self.files[0], 'file')} stay as they are"
            )
        summary = (
            f"version {self.version}: {self.rows[0]:,} -> {self.rows[1]:,} rows, "
            f"{self.files[0]:,} -> {self.files[1]:,} files, {self.nbytes[0]:,} -> {self.nbytes[1]:,} bytes"
        )
        return f"{summary}\nclock {behind(self.clock_behind)}" if self.clock_behind else summary


def compact(
    store: Store,
    history: History,
    *,
    keep: timedelta,
    now: datetime,
    compression: str,
    file_bytes: int,
) -> Compaction:
    """Rewrite the newest version as few files.

    Older versions of documents, and deletions, stay if they came after the newest version that is older
    than `keep`: where the server takes back what came later, they count again. A rollback to before that
    has its vbucket read again from the start.
    """
    base = history.at(None)
    sweep(store, base.version)
    before = history.latest_time()
    floors = _floors(base, history, now - keep)
    parts = [*_kept(store, base, floors)]
    documents = documents_of(base)
    metadata = (*_METADATA, "xattrs") if base.options.get("xattrs") else _METADATA
    reader = VersionReader(store, base, metadata=metadata, changes=True, keys="binary")
    version = base.version + 1
    rows = sum(part.count for part in parts)
    nbytes, compressions = _stored(store, base)
    files_needed = parts_for(nbytes, file_bytes) if rows else 0
    old = base.files
    if (
        rows == sum(entry.rows for entry in old)
        and len(old) <= files_needed
        and len({(entry.columns, entry.text_keys) for entry in old}) <= 1
        and compressions <= {"UNCOMPRESSED" if compression == "none" else compression.upper()}
    ):
        same = sum(entry.nbytes for entry in old)
        return Compaction(
            base.version,
            (rows, rows),
            (len(old), len(old)),
            (same, same),
            changed=False,
            clock_behind=lag(before, now),
        )
    entries: tuple[FileEntry, ...] = ()
    if rows:
        newest = Live(store, base, deletions=True).parts()
        unique = not any(map(_some_older, parts, newest))
        with ChangeFiles(
            store,
            writer_prefix(version),
            reader.schema,
            parts=files_needed,
            vbuckets=len(base.positions),
            compression=compression,
        ) as files:
            for table in reader.tables(parts):
                files.add(table)
            entries = files.finish(version, columns=0, unique=unique)
    manifest = replace(
        base,
        version=version,
        parent=base.version,
        kind="compact",
        created=following(before, now),
        ordered=True,
        # Those that earlier releases have written are left out now.
        options={"transaction_records": "drop", **base.options},
        floors=floors,
        files=entries,
        columns=(documents,),
        drops=tuple(
            drop for drop in base.drops if any(seqno > floors[vb] for vb, seqno in drop.vbuckets.items())
        ),
        counts=Counts(),
    )
    publish(store, manifest, manifest.to_bytes())
    return Compaction(
        version,
        (sum(entry.rows for entry in old), rows),
        (len(old), len(entries)),
        (sum(entry.nbytes for entry in old), sum(entry.nbytes for entry in entries)),
        clock_behind=lag(before, now),
    )


def _floors(base: Manifest, history: History, moment: datetime) -> Sequence[int]:
    """By vbucket: older versions are kept only of what came after this seqno."""
    ancestors = [*history.ancestors(base)]
    times = history.times()
    old = next((each.version for each in ancestors if times[each.version] <= moment), 0)
    boundaries = Boundaries(base, ancestors)
    return [
        max(floor, boundaries.below(vbucket, MAX_SEQNO, before=old + 1).seqno)
        for vbucket, floor in enumerate(base.floors)
    ]


def _kept(store: Store, base: Manifest, floors: Sequence[int]) -> Iterator[Part]:
    """Documents as they were at the floors, and everything that came after them."""
    limits = dict(enumerate(floors))
    # A collection that is dropped does not come back, whatever is taken back.
    at_floor = replace(
        base,
        rollbacks=(*base.rollbacks, Rollback(base.version + 1, "repair", limits)),
        drops=tuple(
            replace(drop, vbuckets={vb: at for vb, at in drop.vbuckets.items() if at <= floors[vb]})
            for drop in base.drops
        ),
    )
    ceilings = Ceilings(base.rollbacks)
    floor = np.array(floors, np.uint64)
    for part in Live(store, at_floor).parts():
        if part.keep is None:
            yield part
            continue
        later = [
            _later(table, part.entry, ceilings, floor) for table in heads(store, part.entry, (VBUCKET, SEQNO))
        ]
        yield shown(store, base, Part(part.entry, part.keep | np.concatenate(later)))


def _some_older(part: Part, newest: Part) -> bool:
    """Whether there are rows of a file besides those that are the newest of their document."""
    if newest.keep is None:
        return False
    return not (newest.keep.all() if part.keep is None else newest.keep[part.keep].all())


def _later(
    table: pa.Table, entry: FileEntry, ceilings: Ceilings, floor: npt.NDArray[np.uint64]
) -> npt.NDArray[np.bool_]:
    later: npt.NDArray[np.bool_] = table[SEQNO].to_numpy() > floor[table[VBUCKET].to_numpy()]
    counts = ceilings.mask(entry.version, table)
    return later if counts is None else later & counts


def _stored(store: Store, base: Manifest) -> tuple[int, set[str]]:
    """Bytes of all rows, not compressed, and how they are compressed."""
    nbytes, compressions = 0, set()
    for entry in base.files:
        with opened(store, entry) as file:
            for group in map(file.metadata.row_group, range(file.num_row_groups)):
                nbytes += group.total_byte_size
                compressions.add(group.column(0).compression)
    return nbytes, compressions


def vacuum(store: Store, history: History, keep: int) -> list[str]:
    """Delete files that only older versions need; their names.

    Manifests of older versions stay as long as a vbucket can be taken back to where it was then.
    """
    numbers = history.numbers()
    newest = [history.load(number) for number in numbers[-keep:]]
    needed = {entry.name.partition("/")[2] for manifest in newest for entry in manifest.files}
    # What has not such a name is not ours.
    ours = [name for name in store.names(DATA) if name.partition("-")[0].isdigit()]
    deleted = [f"{DATA}/{name}" for name in ours if name not in needed]
    useful = _useful(newest[-1], history)
    deleted += [name_of(number) for number in numbers[:-keep] if number not in useful]
    deleted += [f"{FOLDER}/{name}" for name in store.names(FOLDER) if name.endswith(".damaged")]
    # What somebody reads on Windows stays until next time.
    return [name for name in deleted if store.remove(name)]


def _useful(base: Manifest, history: History) -> set[int]:
    """Versions to which a vbucket can be taken back."""
    useful = set()
    ancestors = [*history.ancestors(base)]
    for each in ancestors:
        one = Boundaries(base, [each])
        if any(one.below(vbucket, MAX_SEQNO).seqno for vbucket in range(len(base.positions))):
            useful.add(each.version)
    return useful


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
