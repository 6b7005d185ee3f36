"""Looking after a snapshot: all files verified and repaired, fewer and smaller ones, old versions deleted.

:func:`verify` compares every file with what the manifests say of it. :func:`mended` leaves damaged files out,
so that an update reads again what was in them. :func:`compact` writes the newest version as few files,
without what no rollback can bring back; :func:`vacuum` deletes the files that only older versions need.
:func:`export` writes documents as a folder of plain Parquet files.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from html import escape
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cbframe.arrow.columns import SEQNO, VBUCKET, Mask
from cbframe.errors import ConfigurationError, SnapshotError
from cbframe.scan.changes import CHANGE_TYPE, UPSERT
from cbframe.scan.parquet import write_parquet
from cbframe.scan.store import LocalStore, Store, make_folder
from cbframe.snapshot.files import (
    DATA,
    METADATA,
    ChangeFiles,
    Live,
    Part,
    RollbackSeqnos,
    heads,
    is_lost,
    matching,
    opened,
    parts_for,
    shown,
    sweep,
    unreadable,
)
from cbframe.snapshot.manifest import (
    BLANK,
    FOLDER,
    Counts,
    DamagedManifestError,
    FileEntry,
    History,
    Kind,
    Manifest,
    Rollback,
    RollbackPoints,
    behind,
    following,
    lag,
    name_of,
    publish,
)
from cbframe.snapshot.reader import VersionReader, documents_of
from cbframe.wire.constants import MAX_SEQNO

_BLOCK = 4 << 20
_FILE = 512 << 20
"""Bytes in memory that go to one exported file."""
_REPAIR = 'write_snapshot(..., mode="repair") reads again what was in it; other vbuckets are not touched'
_OLD_MANIFEST = 'newer versions do not need it: write_snapshot(..., mode="repair") puts it away'
_OLD = "only older versions need it: vacuum() deletes them"
_Seqnos = npt.NDArray[np.uint64]


def count(number: int, what: str) -> str:
    """A number of things: "1 file", "2 files"."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


# Verification and repair ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is not as it was written."""

    file: str  # where
    what: str  # what is wrong
    versions: tuple[int, ...]  # the versions that cannot be read because of it
    remedy: str  # what to do

    def __str__(self) -> str:
        of = f", needed by version{'s' if len(self.versions) > 1 else ''} {_numbers(self.versions)}"
        return f"{self.file}: {self.what}{of if self.versions else ''}\n  hint: {self.remedy}"


@dataclass(frozen=True, slots=True)
class Verification:
    """What :meth:`Snapshot.verify` found.

    Attributes
    ----------
    path
        Where the snapshot is.
    versions, files, rows, nbytes
        What was looked at.
    problems
        Empty if all is well.
    """

    path: str
    versions: int
    files: int
    rows: int
    nbytes: int
    problems: tuple[Problem, ...] = field(default=())

    @property
    def ok(self) -> bool:
        """Whether all is well."""
        return not self.problems

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        summary = (
            f"{self.path}: {self.versions:,} versions, {self.files:,} files, {self.rows:,} rows, "
            f"{self.nbytes:,} bytes: "
        )
        if self.ok:
            return summary + "all is well"
        some = "problem" if len(self.problems) == 1 else "problems"
        return summary + f"{len(self.problems)} {some}\n" + "\n".join(map(str, self.problems))

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"


def verify(store: Store, history: History) -> Verification:
    """Look at every manifest, and at every file that one of them names."""
    problems: list[Problem] = []
    manifests: dict[int, Manifest] = {}
    numbers = history.numbers()
    for number in numbers:
        try:
            manifests[number] = history.load(number)
        except SnapshotError as exc:
            old = isinstance(exc, DamagedManifestError) and number < numbers[-1]
            remedy = _OLD_MANIFEST if old else exc.hint or ""
            problems.append(Problem(store.where(name_of(number)), _what(exc), (number,), remedy))
    newest = max(manifests, default=0)
    users: dict[str, tuple[FileEntry, list[int]]] = {}
    for number, manifest in manifests.items():
        for entry in manifest.files:
            users.setdefault(entry.name, (entry, []))[1].append(number)
    there = store.names(DATA)
    looked: list[FileEntry] = []
    for name, (entry, versions) in users.items():
        if name.partition("/")[2] not in there and newest not in versions:
            continue  # vacuum() did that
        looked.append(entry)
        remedy = _REPAIR if newest in versions else _OLD
        try:
            what = flaw(store, entry, history)
        except SnapshotError as exc:
            what, remedy = _what(exc), exc.hint or ""
        if what is not None:
            problems.append(Problem(store.where(name), what, tuple(versions), remedy))
    for manifest in manifests.values():
        problems += _gaps(store, manifest, manifests)
    return Verification(
        store.root,
        len(manifests),
        len(looked),
        sum(entry.rows for entry in looked),
        sum(entry.nbytes for entry in looked),
        tuple(problems),
    )


def flaw(store: Store, entry: FileEntry, history: History) -> str | None:
    """What is wrong with a file; None if nothing is."""
    try:
        size, digest = _digest(store, entry)
    except FileNotFoundError:
        return "it is gone"
    except OSError as exc:
        if not is_lost(exc):
            raise unreadable(store, entry, exc) from exc
        return f"it cannot be read ({exc.strerror or exc})"
    if size != entry.nbytes:
        return f"it has {size:,} bytes instead of {entry.nbytes:,}"
    if digest != entry.sha256:
        return "its bytes are not those that were written"
    return _wrong_rows(store, entry, history)


def _what(error: SnapshotError) -> str:
    """Without the file, which a problem tells by itself."""
    return error.message.removesuffix(f": {error.path}")


def _digest(store: Store, entry: FileEntry) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    with store.input(entry.name) as source:
        while block := source.read(_BLOCK):
            digest.update(block)
            size += len(block)
    return size, digest.hexdigest()


def _wrong_rows(store: Store, entry: FileEntry, history: History) -> str | None:
    """What is wrong with the rows, by what the manifests say of them."""
    manifest = _version_of(history, entry)
    span = None if manifest is None or manifest.kind == "compact" else _span(manifest, history)
    upserts = 0
    try:
        for table in heads(store, entry, (VBUCKET, SEQNO, CHANGE_TYPE)):
            upserts += pc.sum(pc.equal(table[CHANGE_TYPE], UPSERT)).as_py() or 0
            if span is None:
                continue
            vbucket, seqno = table[VBUCKET].to_numpy(), table[SEQNO].to_numpy()
            start, end = (bound[vbucket] for bound in span)
            beyond = (seqno <= start) | (seqno > end)
            if beyond.any():
                at = int(np.argmax(beyond))
                return (
                    f"it has seqno {seqno[at]} of vbucket {vbucket[at]}, and its version is of "
                    f"{start[at]} to {end[at]}"
                )
    except SnapshotError as exc:
        return _what(exc)
    if upserts != entry.upserts:
        return f"it has {upserts:,} documents instead of {entry.upserts:,}"
    return None


def _span(manifest: Manifest, history: History) -> tuple[_Seqnos, _Seqnos] | None:
    """By vbucket, after which seqno, and up to which one, the rows of a version are; None if unknown."""
    ends = np.array([position.seqno for position in manifest.positions], np.uint64)
    if manifest.kind == "create":
        return np.zeros_like(ends), ends
    try:
        return _starts(manifest, history.load(manifest.parent)), ends
    except SnapshotError:
        return None


def _starts(manifest: Manifest, parent: Manifest) -> _Seqnos:
    starts = np.array([position.seqno for position in parent.positions], np.uint64)
    for each in manifest.rollbacks:
        if each.version == manifest.version:
            for vbucket, seqno in each.vbuckets.items():
                starts[vbucket] = min(int(starts[vbucket]), seqno)
    return starts


def _gaps(store: Store, manifest: Manifest, manifests: dict[int, Manifest]) -> Iterator[Problem]:
    """Whether a version goes on where the one before ends."""
    parent = manifests.get(manifest.parent)
    if parent is None or manifest.kind == "create":
        return
    name = store.where(name_of(manifest.version))
    remedy = "this is a fault of cbframe: keep the folder, report it, and make the snapshot again"
    if len(parent.positions) != len(manifest.positions) or parent.bucket_uuid != manifest.bucket_uuid:
        yield Problem(name, f"it is of another bucket than version {parent.version}", (), remedy)
        return
    ends = np.array([position.seqno for position in manifest.positions], np.uint64)
    back = np.flatnonzero(ends < _starts(manifest, parent))
    if len(back):
        yield Problem(name, f"vbucket {back[0]} goes back, and no rollback tells of it", (), remedy)
    kept = {entry.name for entry in manifest.files}
    lost = [entry.name for entry in parent.files if entry.name not in kept]
    if lost and manifest.kind == "update":
        yield Problem(name, f"it does without {lost[0]}, which version {parent.version} has", (), remedy)


def _numbers(versions: Sequence[int]) -> str:
    return f"{versions[0]}-{versions[-1]}" if len(versions) > 2 else ", ".join(map(str, versions))


def mended(store: Store, history: History, version: int) -> tuple[Manifest, Kind]:
    """The newest version that can be read, without the files that are damaged; what its update is.

    Vbuckets that have rows in a damaged file are rolled back to where they were before it. Damaged
    manifests get another name.
    """
    base = BLANK
    kind: Kind = "update"
    for number in reversed(history.numbers()):
        try:
            found = history.load(number)
            base = found if base is BLANK else base
        except DamagedManifestError:
            store.rename(name_of(number), name_of(number) + ".damaged")
            kind = "repair" if base is BLANK else kind
    hurt = [entry for entry in base.files if flaw(store, entry, history) is not None]
    return (_without(base, hurt, history, version), "repair") if hurt else (base, kind)


def _version_of(history: History, entry: FileEntry) -> Manifest | None:
    try:
        return history.load(entry.version)
    except SnapshotError:
        return None


def _without(base: Manifest, hurt: list[FileEntry], history: History, version: int) -> Manifest:
    points = RollbackPoints(base, history.ancestors(base))
    rollback_seqnos: dict[int, int] = {}
    positions = list(base.positions)
    for entry in hurt:
        written = _version_of(history, entry)
        for vbucket in range(entry.vbuckets[0], entry.vbuckets[1] + 1):
            # A compacted file has rows of all times: there is nothing before it.
            before = entry.version if written is not None and written.kind != "compact" else 0
            position = points.position(vbucket, MAX_SEQNO, before=before)
            if position.seqno <= positions[vbucket].seqno:
                positions[vbucket] = position
            rollback_seqnos[vbucket] = positions[vbucket].seqno
    names = {entry.name for entry in hurt}
    return replace(
        base,
        positions=positions,
        floors=[min(floor, rollback_seqnos.get(vbucket, floor)) for vbucket, floor in enumerate(base.floors)],
        files=tuple(entry for entry in base.files if entry.name not in names),
        rollbacks=(*base.rollbacks, Rollback(version, "repair", rollback_seqnos)),
        drops=tuple(drop.without(rollback_seqnos) for drop in base.drops),
    )


# Compaction and deletion ------------------------------------------------------------------------------------


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
    store: Store, history: History, *, keep: timedelta, now: datetime, compression: str, file_bytes: int
) -> Compaction:
    """Rewrite the newest version as few files.

    Older versions of documents, and deletions, stay if they came after the newest version that is older
    than `keep`, or was on the disks of all copies: where the server rolls back what came later, they count
    again. A rollback to before that has its vbucket read again from the start.
    """
    base = history.at(None)
    sweep(store, base.version)
    before = history.latest_time()
    floors = _floors(base, history, now - keep)
    parts = [*_kept(store, base, floors)]
    version = base.version + 1
    metadata = (*METADATA, "scope", "collection", *(["xattrs"] if base.options.get("xattrs") else []))
    reader = VersionReader(store, base, metadata=metadata, changes=True, keys="binary")
    rows = sum(part.count for part in parts)
    nbytes, compressions = _stored(store, base)
    most = parts_for(nbytes, file_bytes) if rows else 0
    old_rows = sum(entry.rows for entry in base.files)
    old_bytes = sum(entry.nbytes for entry in base.files)
    entries = base.files
    changed = not (
        rows == old_rows
        and len(base.files) <= most
        and len({(entry.columns, entry.text_keys) for entry in base.files}) <= 1
        and compressions <= {"UNCOMPRESSED" if compression == "none" else compression.upper()}
    )
    if changed:
        entries = ()
        if rows:
            newest = Live(store, base, deletions=True).parts()
            unique = not any(map(_some_older, parts, newest))
            with ChangeFiles(
                store,
                version,
                reader.schema,
                parts=most,
                vbuckets=len(base.positions),
                compression=compression,
            ) as files:
                for table in reader.tables(parts):
                    files.add(table)
                entries = files.finish(columns=0, unique=unique)
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
            columns=(documents_of(base),),
            drops=tuple(
                drop for drop in base.drops if any(seqno > floors[vb] for vb, seqno in drop.vbuckets.items())
            ),
            counts=Counts(),
        )
        publish(store, manifest)
    return Compaction(
        version if changed else base.version,
        (old_rows, rows),
        (len(base.files), len(entries)),
        (old_bytes, sum(entry.nbytes for entry in entries)),
        changed=changed,
        clock_behind=lag(before, now),
    )


def _floors(base: Manifest, history: History, moment: datetime) -> Sequence[int]:
    """By vbucket: older versions are kept only of what came after this seqno."""
    ancestors = [*history.ancestors(base)]
    times = history.times()
    old = next((each.version for each in ancestors if each.persisted or times[each.version] <= moment), 0)
    points = RollbackPoints(base, ancestors)
    return [
        max(floor, points.position(vbucket, MAX_SEQNO, before=old + 1).seqno)
        for vbucket, floor in enumerate(base.floors)
    ]


def _kept(store: Store, base: Manifest, floors: Sequence[int]) -> Iterator[Part]:
    """Documents as they were at the floors, and everything that came after them."""
    # A collection that is dropped does not come back, whatever is rolled back.
    at_floor = replace(
        base,
        rollbacks=(*base.rollbacks, Rollback(base.version + 1, "repair", dict(enumerate(floors)))),
        drops=tuple(
            replace(drop, vbuckets={vb: at for vb, at in drop.vbuckets.items() if at <= floors[vb]})
            for drop in base.drops
        ),
    )
    rollback_seqnos = RollbackSeqnos(base.rollbacks)
    floor = np.array(floors, np.uint64)
    for part in Live(store, at_floor).parts():
        if part.keep is None:
            yield part
            continue
        later = matching(
            store, part.entry, (VBUCKET, SEQNO), partial(_later, part.entry.version, rollback_seqnos, floor)
        )
        yield shown(store, base, Part(part.entry, part.keep | later))


def _some_older(part: Part, newest: Part) -> bool:
    """Whether there are rows of a file besides those that are the newest of their document."""
    if newest.keep is None:
        return False
    return not (newest.keep.all() if part.keep is None else newest.keep[part.keep].all())


def _later(
    version: int, rollback_seqnos: RollbackSeqnos, floor: npt.NDArray[np.uint64], table: pa.Table
) -> Mask:
    """Which rows of a version came after the floors, and were not rolled back."""
    later: Mask = table[SEQNO].to_numpy() > floor[table[VBUCKET].to_numpy()]
    return later & rollback_seqnos.mask(version, table)


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

    Manifests of older versions stay as long as a vbucket can be rolled back to where it was then.
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
    """Versions to which a vbucket can be rolled back."""
    useful = set()
    ancestors = [*history.ancestors(base)]
    for each in ancestors:
        points = RollbackPoints(base, [each])
        if any(points.position(vbucket, MAX_SEQNO).seqno for vbucket in range(len(base.positions))):
            useful.add(each.version)
    return useful


# Export -----------------------------------------------------------------------------------------------------


def export(reader: VersionReader, place: Store, compression: str) -> Path:
    """Write the files; the folder appears whole or not at all."""
    if not isinstance(place, LocalStore):
        raise ConfigurationError(
            f"export() writes a folder of this machine, and {place.root} is none",
            hint="export to a local folder, and copy that",
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
            tables = reader.tables()
            waiting = [next(tables, reader.schema.empty_table())]
            number = 0
            while waiting:
                part = pa.RecordBatchReader.from_batches(reader.schema, _batches_of_file(waiting, tables))
                write_parquet(part, scratch / f"part-{number:05d}.parquet", compression)
                number += 1
            os.rename(scratch, path)  # noqa: PTH104 - unlike replace(), refuses a folder that has something
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return path


def _batches_of_file(waiting: list[pa.Table], tables: Iterator[pa.Table]) -> Iterator[pa.RecordBatch]:
    """What goes to one file; the table that comes after it waits."""
    size = 0
    while waiting and size < _FILE:
        table = waiting.pop()
        yield from table.to_batches()
        size += table.nbytes
        waiting.extend(islice(tables, 1))
