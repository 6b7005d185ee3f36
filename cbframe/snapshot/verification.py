"""Looking at all files of a snapshot: are they as they were written, and does nothing miss between them?"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from html import escape

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from cbframe.arrow.columns import SEQNO, VBUCKET
from cbframe.errors import SnapshotError
from cbframe.snapshot.files import DATA, heads, is_lost, unreadable
from cbframe.snapshot.manifest import DamagedManifestError, FileEntry, Manifest, Rollback, name_of
from cbframe.snapshot.sink import CHANGE_TYPE, UPSERT
from cbframe.snapshot.store import Store
from cbframe.snapshot.versions import Boundaries, History
from cbframe.wire.constants import MAX_SEQNO

_BLOCK = 4 << 20
_Seqnos = npt.NDArray[np.uint64]


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


_REPAIR = 'write_snapshot(..., mode="repair") reads again what was in it; other vbuckets are not touched'
_OLD_MANIFEST = 'newer versions do not need it: write_snapshot(..., mode="repair") puts it away'
_OLD = "only older versions need it: vacuum() deletes them"


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
            what = flaw(store, entry, manifests.get(entry.version), history)
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


def flaw(store: Store, entry: FileEntry, manifest: Manifest | None, history: History) -> str | None:
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
    return _wrong_rows(store, entry, manifest, history)


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


def _wrong_rows(store: Store, entry: FileEntry, manifest: Manifest | None, history: History) -> str | None:
    """Whether the rows are those that the manifests tell of."""
    starts = ends = None
    if manifest is not None and manifest.kind != "compact":
        starts, ends = _span(manifest, history)
    upserts = 0
    try:
        for table in heads(store, entry, (VBUCKET, SEQNO, CHANGE_TYPE)):
            upserts += pc.sum(pc.equal(table[CHANGE_TYPE], UPSERT)).as_py() or 0
            vbucket, seqno = table[VBUCKET].to_numpy(), table[SEQNO].to_numpy()
            if starts is not None and ends is not None:
                beyond = (seqno <= starts[vbucket]) | (seqno > ends[vbucket])
                if beyond.any():
                    at = int(np.argmax(beyond))
                    return (
                        f"it has seqno {seqno[at]} of vbucket {vbucket[at]}, and its version is of "
                        f"{starts[vbucket[at]]} to {ends[vbucket[at]]}"
                    )
    except SnapshotError as exc:
        return _what(exc)
    if upserts != entry.upserts:
        return f"it has {upserts:,} documents instead of {entry.upserts:,}"
    return None


def _span(manifest: Manifest, history: History) -> tuple[_Seqnos, _Seqnos] | tuple[None, None]:
    """By vbucket, behind which seqno, and up to which one, the rows of a version are."""
    ends = np.array([position.seqno for position in manifest.positions], np.uint64)
    if manifest.kind == "create":
        return np.zeros_like(ends), ends
    try:
        parent = history.load(manifest.parent)
    except SnapshotError:
        return None, None
    return _starts(manifest, parent), ends


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


def mended(store: Store, history: History, version: int) -> tuple[Manifest | None, bool]:
    """The newest version that can be read, without the files that are damaged.

    Vbuckets that have rows in a damaged file are taken back to where they were before it. Damaged
    manifests get another name.
    """
    base, damaged = None, False
    for number in reversed(history.numbers()):
        try:
            found = history.load(number)
            base = base or found
        except DamagedManifestError:
            store.rename(name_of(number), name_of(number) + ".damaged")
            damaged = damaged or base is None
    if base is None:
        return None, damaged
    hurt = [entry for entry in base.files if flaw(store, entry, _of(history, entry), history) is not None]
    return (_without(base, hurt, history, version), True) if hurt else (base, damaged)


def _of(history: History, entry: FileEntry) -> Manifest | None:
    try:
        return history.load(entry.version)
    except SnapshotError:
        return None


def _without(base: Manifest, hurt: list[FileEntry], history: History, version: int) -> Manifest:
    boundaries = Boundaries(base, history.ancestors(base))
    limits: dict[int, int] = {}
    positions = list(base.positions)
    for entry in hurt:
        written = _of(history, entry)
        for vbucket in range(entry.vbuckets[0], entry.vbuckets[1] + 1):
            # A compacted file has rows of all times: there is nothing before it.
            before = entry.version if written is not None and written.kind != "compact" else 0
            position = boundaries.below(vbucket, MAX_SEQNO, before=before)
            if position.seqno <= positions[vbucket].seqno:
                positions[vbucket] = position
            limits[vbucket] = positions[vbucket].seqno
    names = {entry.name for entry in hurt}
    return replace(
        base,
        positions=positions,
        floors=[min(floor, limits.get(vbucket, floor)) for vbucket, floor in enumerate(base.floors)],
        files=tuple(entry for entry in base.files if entry.name not in names),
        rollbacks=(*base.rollbacks, Rollback(version, "repair", limits)),
        drops=tuple(drop.without(limits) for drop in base.drops),
    )
