"""What is left of a damaged snapshot, to go on from: only what was hurt is read again."""

from __future__ import annotations

from dataclasses import replace

from cbframe.errors import SnapshotError
from cbframe.snapshot.check import flaw
from cbframe.snapshot.history import Boundaries, History
from cbframe.snapshot.manifest import DamagedManifestError, FileEntry, Manifest, Rollback, name_of
from cbframe.snapshot.store import Store
from cbframe.wire.constants import MAX_SEQNO


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
