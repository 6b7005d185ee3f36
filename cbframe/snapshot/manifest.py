"""Manifests, one for each version of a snapshot, from which everything else follows; and their history.

:class:`Manifest` is one version, :class:`History` all that there are, :class:`RollbackPoints` the
positions to which a vbucket can be rolled back.

Format 1
--------
``manifest/00000007.json`` is version 7: UTF-8 JSON, unsigned 64-bit integers as strings. Its last field,
``digest``, is the SHA-256 of the file up to that field. A manifest is complete: no other one is needed to
read its version.

========================  ==========================================================================
field                     meaning
========================  ==========================================================================
format                    1
version, parent           this version, and the one it was made from (0 for none)
kind                      create, update, repair, compact
created                   time of day, ISO 8601 with offset: at least 1 ms after that of the version before
node_time                 the latest time of day that a node has reported, ISO 8601 with offset; null if
                          none has. Missing in manifests of earlier releases, where `created` may also be
                          before that of an earlier version: then 1 ms after the version before counts
bucket, bucket_uuid       where the documents are from
cluster_uuid              empty where the cluster does not tell
persisted                 true where all copies of the vbuckets had the version on disk, with
                          ``only_persisted``; missing where that is not known
options                   what was asked for when the snapshot was made; transaction_records is always
                          among them: where it is missing, in manifests of earlier releases, files have
                          documents whose keys begin with ``_txn:``, and these do not count
vbuckets                  lists with one entry a vbucket: seqno, vbuuid, failover_log (newest history
                          first), snap_start, snap_end, manifest_uid, purge_seqno, and floor: older
                          versions of documents are kept for what came after it
files                     the files that count, oldest first: name, version (in which it was written),
                          rows, upserts, nbytes, sha256, vbuckets and seqnos (lowest, highest), unique
                          (no document occurs twice in the files of its version), columns (which of
                          ``columns`` it has), text_keys (its keys are strings, as earlier versions of
                          cbframe wrote them where all were UTF-8)
columns                   what the columns of files are
rollbacks                 version, reason, and seqno by vbucket: rows of that vbucket with a higher
                          seqno, in files of earlier versions, do not count
drops                     version, collection, and seqno by vbucket: rows of that collection with a
                          lower seqno do not count: it was emptied, or dropped
dead                      ids of collections that were dropped: none of their rows counts
collections               id to ``scope.collection``, of all rows that may count
counts                    rows of this version: upserted, deleted, retracted
========================  ==========================================================================

``data/`` has the files: Parquet, one row for each change, with the columns ``_cb_key`` (the bytes, whatever
form of keys a reader asks for), ``_change_type`` (upsert, delete, expire), the metadata ``_cb_…``, and the
fields of the documents, which are null in a deletion; a field ``_change_type`` is the column
``_change_type_``. Of several rows that count, the one with the highest seqno is the document.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any, Literal, TypeAlias

import numpy as np

from cbframe.arrow.column_types import Columns
from cbframe.dcp.positions import VBucketMetaData, VBucketOffset, u64_of
from cbframe.errors import ConfigurationError, SnapshotError
from cbframe.scan.store import Store
from cbframe.wire.messages import FailoverEntry

FORMAT = 1
FOLDER = "manifest"

VersionLike: TypeAlias = int | str | date | None
"""A version, or a time; None for the newest version."""
Kind = Literal["create", "update", "repair", "compact"]
Reason = Literal["rollback", "repair"]
_COLUMNS = ("seqno", "vbuuid", "failover_log", "snap_start", "snap_end", "manifest_uid", "purge_seqno")
"""Of ``vbuckets``, what makes a position."""
_DIGEST = ',\n"digest": "'
_STEP = timedelta(milliseconds=1)
"""Between the times of two versions, at least."""
_LAST = datetime.max.replace(tzinfo=UTC)


class DamagedManifestError(SnapshotError):
    """A manifest is not as it was written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """A file of changes; the module's documentation says what the fields are."""

    name: str
    version: int
    rows: int
    upserts: int
    nbytes: int
    sha256: str
    vbuckets: tuple[int, int]
    seqnos: tuple[int, int]
    unique: bool
    columns: int
    text_keys: bool = False


@dataclass(frozen=True, slots=True)
class Rollback:
    """A rollback of files before a version: by vbucket, the highest seqno of their rows that still counts."""

    version: int
    reason: Reason
    vbuckets: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Drop:
    """A collection that was dropped, or emptied: by vbucket, the seqno at which that was."""

    version: int
    collection: int
    vbuckets: Mapping[int, int]

    def without(self, rollback_seqnos: Mapping[int, int]) -> Drop:
        """What is left of it after vbuckets were rolled back."""
        left = {vb: at for vb, at in self.vbuckets.items() if at <= rollback_seqnos.get(vb, at)}
        return self if len(left) == len(self.vbuckets) else Drop(self.version, self.collection, left)


@dataclass(frozen=True, slots=True)
class Counts:
    """Rows of one version."""

    upserted: int = 0  # written; a document that changed twice counts twice
    deleted: int = 0
    retracted: int = 0  # rows of earlier versions that were rolled back


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """One version of a snapshot; the module's documentation says what the fields are."""

    version: int
    parent: int
    kind: Kind
    created: datetime
    bucket: str
    bucket_uuid: str
    cluster_uuid: str = ""
    node_time: datetime | None = None
    ordered: bool = True
    """Whether `created` is after that of every earlier version; earlier releases took any clock's word."""
    persisted: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    positions: Sequence[VBucketOffset]
    floors: Sequence[int]
    files: tuple[FileEntry, ...] = ()
    columns: tuple[Columns, ...] = ()
    rollbacks: tuple[Rollback, ...] = ()
    drops: tuple[Drop, ...] = ()
    dead: tuple[int, ...] = ()
    collections: Mapping[int, str] = field(default_factory=dict)
    counts: Counts = Counts()

    @property
    def knows_transactions(self) -> bool:
        """Whether files have records of transactions was decided; else they have some, and none counts."""
        return "transaction_records" in self.options

    def to_bytes(self) -> bytes:
        """The file."""
        body = json.dumps(self._fields(), separators=(",", ":"))[:-1]
        digest = hashlib.sha256(body.encode()).hexdigest()
        return f'{body}{_DIGEST}{digest}"}}\n'.encode()

    def _fields(self) -> dict[str, Any]:
        positions = [position.to_dict() for position in self.positions]
        return {
            "format": FORMAT,
            "version": self.version,
            "parent": self.parent,
            "kind": self.kind,
            "created": self.created.isoformat(),
            **({"node_time": self.node_time and self.node_time.isoformat()} if self.ordered else {}),
            "bucket": self.bucket,
            "bucket_uuid": self.bucket_uuid,
            "cluster_uuid": self.cluster_uuid,
            **({"persisted": True} if self.persisted else {}),
            "options": dict(self.options),
            "vbuckets": {
                **{name: [position[name] for position in positions] for name in _COLUMNS},
                "floor": [str(seqno) for seqno in self.floors],
            },
            "files": [
                asdict(entry) | {"seqnos": [str(seqno) for seqno in entry.seqnos]} for entry in self.files
            ],
            "columns": [columns.to_dict() for columns in self.columns],
            "rollbacks": [_with_vbuckets(each) for each in self.rollbacks],
            "drops": [_with_vbuckets(each) for each in self.drops],
            "dead": list(self.dead),
            "collections": {str(number): name for number, name in self.collections.items()},
            "counts": asdict(self.counts),
        }

    @classmethod
    def from_bytes(cls, data: bytes, path: str) -> Manifest:
        """Read a file."""
        fields = _checked(data, path)
        if fields.get("format") != FORMAT:
            raise SnapshotError(
                f"a manifest of format {fields.get('format')!r}, and this cbframe reads format {FORMAT}",
                path=path,
                hint="use a newer cbframe",
            )
        try:
            return cls._of(fields)
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as exc:
            raise _damaged(path, f"a field is missing or no such thing ({exc})") from exc

    @classmethod
    def _of(cls, fields: dict[str, Any]) -> Manifest:
        vbuckets = fields["vbuckets"]
        columns = zip(*(vbuckets[name] for name in _COLUMNS), strict=True)
        positions = [_position(number, *values) for number, values in enumerate(columns)]
        time = fields.get("node_time")
        return cls(
            version=int(fields["version"]),
            parent=int(fields["parent"]),
            kind=fields["kind"],
            created=datetime.fromisoformat(fields["created"]),
            node_time=None if time is None else datetime.fromisoformat(time),
            ordered="node_time" in fields,
            bucket=fields["bucket"],
            bucket_uuid=fields["bucket_uuid"],
            cluster_uuid=fields["cluster_uuid"],
            persisted=bool(fields.get("persisted")),
            options=fields["options"],
            positions=positions,
            floors=[u64_of(seqno) for seqno in vbuckets["floor"]],
            files=tuple(_entry(entry) for entry in fields["files"]),
            columns=tuple(Columns.from_dict(columns) for columns in fields["columns"]),
            rollbacks=tuple(
                Rollback(each["version"], each["reason"], _numbers(each["vbuckets"]))
                for each in fields["rollbacks"]
            ),
            drops=tuple(
                Drop(each["version"], each["collection"], _numbers(each["vbuckets"]))
                for each in fields["drops"]
            ),
            dead=tuple(int(number) for number in fields["dead"]),
            collections={int(number): name for number, name in fields["collections"].items()},
            counts=Counts(**fields["counts"]),
        )


BLANK = Manifest(
    version=0, parent=0, kind="create", created=_LAST, bucket="", bucket_uuid="", positions=(), floors=()
)
"""What the first version is made from."""


def _position(vbucket: int, seqno: str, vbuuid: str, log: Any, *numbers: str) -> VBucketOffset:  # noqa: ARG001
    try:
        start, end, uid, purged = map(u64_of, numbers)
        entries = tuple(FailoverEntry(u64_of(name), u64_of(began)) for name, began in log)
        # Earlier releases wrote the range as stored, also where the seqno is outside of it.
        return VBucketOffset.of(VBucketMetaData(0, 0, start, end, entries, purged, uid), u64_of(seqno))
    except (TypeError, ValueError) as exc:
        raise ValueError(f"vbucket {vbucket}: {exc}") from exc


def name_of(version: int) -> str:
    """The file of a version."""
    return f"{FOLDER}/{version:08d}.json"


def version_of(name: str) -> int | None:
    """The version of a file of the folder; None if it is no manifest."""
    stem = name.partition(".")[0]
    if not stem.isascii() or not stem.isdigit():
        return None
    return int(stem) if name_of(int(stem)) == f"{FOLDER}/{name}" else None


def publish(store: Store, manifest: Manifest) -> int:
    """Make a version the newest one; the bytes of its manifest."""
    data = manifest.to_bytes()
    try:
        store.publish(name_of(manifest.version), data)
    except FileExistsError as exc:
        raise SnapshotError(
            f"version {manifest.version} was published by another writer",
            path=store.root,
            hint="let one process write at a time, and update again",
        ) from exc
    return len(data)


def _checked(data: bytes, path: str) -> dict[str, Any]:
    """The fields of a file that is as it was written."""
    body, mark, rest = data.rpartition(_DIGEST.encode())
    if not mark or rest != hashlib.sha256(body).hexdigest().encode() + b'"}\n':
        raise _damaged(path, "its digest does not fit, or it is cut off")
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise _damaged(path, "it is no JSON") from exc
    if not isinstance(fields, dict):
        raise _damaged(path, "it is no JSON object")
    return fields


def _damaged(path: str, why: str) -> DamagedManifestError:
    return DamagedManifestError(
        f"a damaged manifest: {why}",
        path=path,
        hint='write_snapshot(..., mode="repair") goes back to the last version that is intact, and reads '
        "again what came after it",
    )


def _entry(fields: dict[str, Any]) -> FileEntry:
    first, last = (u64_of(seqno) for seqno in fields["seqnos"])
    low, high = fields["vbuckets"]
    return FileEntry(**fields | {"seqnos": (first, last), "vbuckets": (int(low), int(high))})


def _with_vbuckets(event: Rollback | Drop) -> dict[str, Any]:
    return asdict(event) | {"vbuckets": {str(vb): str(seqno) for vb, seqno in sorted(event.vbuckets.items())}}


def _numbers(seqnos: Mapping[str, str]) -> dict[int, int]:
    return {int(vbucket): u64_of(seqno) for vbucket, seqno in seqnos.items()}


def following(before: datetime | None, now: datetime) -> datetime:
    """The time of a version that is made at `now`, after one of the time `before`: never earlier."""
    return now if before is None else max(now, before + _STEP)


def behind(span: timedelta) -> str:
    """What to say of a clock that is behind."""
    return f"{span} behind the time of the version before: check the clocks of the machines that write"


def lag(before: datetime | None, now: datetime) -> timedelta:
    """How far the clock that says `now` is behind the one that said `before`."""
    return timedelta() if before is None else max(before - now, timedelta())


def _moment(as_of: Any) -> datetime:
    try:
        moment = datetime.fromisoformat(as_of.isoformat() if isinstance(as_of, date) else as_of)
    except (TypeError, ValueError) as exc:
        raise ConfigurationError(
            f"as_of={as_of!r} is no time", hint="give a version, or a time such as 2026-01-31T12:00+00:00"
        ) from exc
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


class History:
    """The versions that there are. A manifest never changes: each is read once."""

    def __init__(self, store: Store) -> None:
        self.root = store.root
        self._store = store
        self._loaded: dict[int, Manifest] = {}

    def numbers(self) -> list[int]:
        """Versions, oldest first; also those whose manifest is damaged."""
        found = map(version_of, self._store.names(FOLDER))
        return sorted(number for number in found if number is not None)

    def load(self, version: int) -> Manifest:
        """One version."""
        if version not in self._loaded:
            name = name_of(version)
            try:
                data = self._store.read(name)
            except FileNotFoundError:
                raise SnapshotError(
                    f"there is no version {version}",
                    path=self.root,
                    hint="Snapshot(path).versions lists them; older ones are deleted by vacuum()",
                ) from None
            except OSError as exc:
                raise SnapshotError(
                    f"cannot read a manifest: {exc.strerror or exc}",
                    path=self._store.where(name),
                    hint="try again when the cause is gone",
                ) from exc
            self._loaded[version] = Manifest.from_bytes(data, self._store.where(name))
        return self._loaded[version]

    def latest(self) -> Manifest:
        """The newest version; `BLANK` before the first."""
        numbers = self.numbers()
        return self.load(numbers[-1]) if numbers else BLANK

    def at(self, as_of: VersionLike) -> Manifest:
        """The version that was the newest one then."""
        numbers = self.numbers()
        if not numbers:
            raise SnapshotError("there is no snapshot", path=self.root, hint="write_snapshot() makes one")
        if as_of is None:
            return self.load(numbers[-1])
        if isinstance(as_of, int | np.integer) and not isinstance(as_of, bool):  # those of numpy, too
            return self.load(int(as_of))
        moment = _moment(as_of)
        times = self.times(moment)
        found = max((number for number, time in times.items() if time <= moment), default=None)
        if found is None:
            oldest = self.load(numbers[0])  # a damaged one may be that of the time
            raise ConfigurationError(
                f"as_of={as_of!s} is before the oldest version, which is of {oldest.created}",
                hint="Snapshot(path).versions lists what there is",
            )
        later = next((number for number in numbers if number > found), None)
        if later is not None and times[found] != moment:
            self.load(later)  # a damaged one may be that of the time
            if later != found + 1:
                raise SnapshotError(
                    f"as_of={as_of!s} is between versions {found} and {later}; those in between were deleted",
                    path=self.root,
                    hint=f"vacuum() deletes versions: give as_of={found} for the one before",
                )
        return self.load(found)

    def times(self, moment: datetime | None = None) -> dict[int, datetime]:
        """The times of the versions that can be read, oldest first: later versions have later times.

        Earlier releases wrote down what the clock said, also where it was behind that of another writer. A
        version that is not after the one before counts as 1 ms after it.
        """
        line: list[Manifest] = []
        for number in reversed(self.numbers()):
            try:
                line.append(self.load(number))
            except DamagedManifestError:
                continue
            if moment is not None and line[-1].ordered and line[-1].created <= moment:
                break
        found: dict[int, datetime] = {}
        latest: datetime | None = None
        for manifest in reversed(line):
            created = manifest.created
            latest = created if latest is None or created > latest else latest + _STEP
            found[manifest.version] = latest
        return found

    def time_of(self, manifest: Manifest) -> datetime:
        """The time of one of these versions."""
        return manifest.created if manifest.ordered else self.times()[manifest.version]

    def latest_time(self) -> datetime | None:
        """The time of the newest version that can be read; None if there is none."""
        return max(self.times(_LAST).values(), default=None)

    def ancestors(self, manifest: Manifest) -> Iterator[Manifest]:
        """A version, and what it was made from, newest first, as far as they are still there.

        Another beginning (mode="overwrite") is no ancestor. A damaged manifest ends the line.
        """
        numbers = set(self.numbers())
        each: Manifest | None = manifest
        while each is not None:
            yield each
            if each.kind == "create" or each.parent not in numbers:
                return
            try:
                each = self.load(each.parent)
            except SnapshotError:
                return


class RollbackPoints:
    """The positions to which each vbucket can be rolled back: those of earlier versions.

    A server that rolls a vbucket back to some seqno sends only what comes after it. Versions of documents
    at or before that seqno which a rolled-back change had replaced may never have been sent: within a
    snapshot, only the newest version of a document is. So a vbucket is rolled back to the end of a read,
    where nothing is missing, and read again from there.
    """

    def __init__(self, manifest: Manifest, ancestors: Iterable[Manifest]) -> None:
        self._manifest = manifest
        self._line = ancestors

    @property
    def loaded(self) -> bool:
        """Whether the ancestors have been read."""
        return isinstance(self._line, list)

    def load(self) -> None:
        """Read the ancestors, once."""
        if not self.loaded:
            self._line = [*self._line]

    def position(self, vbucket: int, seqno: int, *, before: int | None = None) -> VBucketOffset:
        """The last one at or before `seqno`, of a version `before` another; the vbucket's start if none."""
        found = self.version(vbucket, seqno, before=before)
        return VBucketOffset() if found is None else found.positions[vbucket]

    def version(self, vbucket: int, seqno: int, *, before: int | None = None) -> Manifest | None:
        """The newest version that has that position; None for the start."""
        rollbacks = [
            (each.version, each.vbuckets[vbucket])
            for each in self._manifest.rollbacks
            if vbucket in each.vbuckets
        ]
        floor = self._manifest.floors[vbucket]
        self.load()
        found: Manifest | None = None
        reached = 0
        for each in self._line:
            position = each.positions[vbucket]
            rolled_back = any(
                version > each.version and position.seqno > highest for version, highest in rollbacks
            )
            if (
                reached < position.seqno <= seqno
                and position.seqno >= floor
                and not rolled_back
                and (before is None or each.version < before)
            ):
                found, reached = each, position.seqno
        return found
