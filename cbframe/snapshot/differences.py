"""What changed between two versions of a snapshot.

Most of it was recorded: the rows that the versions in between wrote, and that still count. What was taken
back, or went with its collection, left no rows: for the vbuckets concerned, the documents of both versions
are compared (:class:`_Compensation`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cbframe.arrow.column_types import unify
from cbframe.arrow.columns import COLLECTION_ID, KEY, SEQNO, VBUCKET, KeyForm, with_keys
from cbframe.errors import ConfigurationError, SnapshotError
from cbframe.scan.changes import CHANGE_TYPE, UPSERT
from cbframe.snapshot.files import HEAD, METADATA, Ceilings, Live, Part, heads, matching, shown
from cbframe.snapshot.manifest import Drop, History, Manifest, Rollback
from cbframe.snapshot.reader import VersionReader
from cbframe.snapshot.store import Store

RESTORE, RETRACT, DROP = "restore", "retract", "drop"
_BEFORE, _THEN = 0, 1
"""In each vbucket: what went without a word, then what came."""
_Place: TypeAlias = tuple[int, int]
"""Vbucket and seqno."""
_NOTHING = pa.schema(
    [
        (KEY, pa.binary()),
        (COLLECTION_ID, pa.uint32()),
        (VBUCKET, pa.uint16()),
        (SEQNO, pa.uint64()),
        (CHANGE_TYPE, pa.string()),
    ]
).empty_table()


def changes(
    store: Store, history: History, since: Manifest, until: Manifest, keys: KeyForm | None = None
) -> pa.Table:
    """The changes, in order within each vbucket."""
    line = _line(history, since, until)
    documents = unify([columns for each in (since, *line) for columns in each.columns])

    def reader(manifest: Manifest) -> VersionReader:
        # What was recorded is compared with what files hold: by the bytes.
        return VersionReader(
            store, manifest, metadata=METADATA, changes=True, documents=documents, keys="binary"
        )

    ceilings = Ceilings(until.rollbacks)
    tables = [reader(until).schema.empty_table()]
    for manifest in line:
        tables += reader(manifest).tables(_own_parts(store, manifest, ceilings))
    recorded = pa.concat_tables(tables)
    # Another collection of the same name may have taken the place of one that was dropped.
    dead = pc.is_in(recorded[COLLECTION_ID], value_set=pa.array(until.dead, pa.uint32()))
    recorded = recorded.filter(pc.invert(dead))
    pieces = [(_THEN, recorded)]
    affected = _affected(since, until)
    if affected:
        pieces += _Compensation(store, reader, since, until, affected).pieces(recorded)
    whole = pa.concat_tables([table for _, table in pieces])
    rank = np.concatenate([np.full(len(table), rank) for rank, table in pieces])
    order = np.lexsort((whole[SEQNO].to_numpy(), rank, whole[VBUCKET].to_numpy()))
    found = whole.take(pa.array(order)).drop_columns([COLLECTION_ID])
    return with_keys(found, keys or until.options.get("keys", "text"))


def _line(history: History, since: Manifest, until: Manifest) -> list[Manifest]:
    """Versions from the one after `since` to `until`."""
    line: list[Manifest] = []
    for each in history.ancestors(until):
        if each.version == since.version:
            return line[::-1]
        line.append(each)
    if line and line[-1].kind != "create" and line[-1].parent > since.version:
        raise SnapshotError(
            f"version {line[-1].parent}, which is between {since.version} and {until.version}, is damaged "
            "or was deleted",
            path=history.root,
            hint="Snapshot(path).versions lists what there is; vacuum(keep=...) keeps more",
        )
    raise ConfigurationError(
        f"version {until.version} was not made from version {since.version}",
        hint='changes() needs an earlier version, with all in between; mode="overwrite" begins again',
    )


def _own_parts(store: Store, manifest: Manifest, ceilings: Ceilings) -> list[Part]:
    """What a version brought, and was not taken back since."""
    parts = []
    for entry in manifest.files:
        if entry.version != manifest.version or manifest.kind == "compact":
            continue
        part = Part(entry, None)
        if ceilings.touch(entry):
            counts = partial(ceilings.mask, entry.version)
            part = part.only(matching(store, entry, (VBUCKET, SEQNO), counts))
        parts.append(shown(store, manifest, part))
    return parts


def _affected(since: Manifest, until: Manifest) -> list[int]:
    """Vbuckets in which something went that no deletion tells of."""
    if until.dead != since.dead:
        return list(range(len(until.positions)))
    news: list[Rollback | Drop] = [*until.rollbacks, *until.drops]
    return sorted({vbucket for each in news if each.version > since.version for vbucket in each.vbuckets})


class _Compensation:
    """What has to be done besides what was recorded, to come from one version to the other.

    Looks at the documents of the vbuckets concerned one by one: rollbacks are rare.
    """

    def __init__(
        self, store: Store, reader: Any, since: Manifest, until: Manifest, affected: Sequence[int]
    ) -> None:
        self._store = store
        self._reader = reader
        self._since = since
        self._until = until
        self._affected = pa.array(affected, pa.uint16())

    def pieces(self, recorded: pa.Table) -> Iterator[tuple[int, pa.Table]]:
        """Rows, and where they belong in their vbuckets."""
        old, new, log = (
            self._documents(self._since),
            self._documents(self._until),
            self._some(recorded.select(HEAD)),
        )
        codes = _codes([old, log, new])
        before = dict(zip(codes[: len(old)].tolist(), _places(old), strict=True))
        came: dict[int, _Place | None] = {}
        order = np.lexsort((log[SEQNO].to_numpy(), log[VBUCKET].to_numpy())).tolist()
        places, kinds, some = _places(log), log[CHANGE_TYPE].to_pylist(), codes[len(old) :].tolist()
        for row in order:
            came[some[row]] = places[row] if kinds[row] == UPSERT else None
        after = dict(zip(codes[len(old) + len(log) :].tolist(), _places(new), strict=True))
        # Who applied what was recorded has what came, or what was before.
        have = before | came
        restored = {place for code, place in after.items() if have.get(code) != place}
        yield _BEFORE, _marked(self._at(self._until, restored), RESTORE)
        lost = {place for code, place in before.items() if code not in after and code not in came}
        yield from self._gone(self._at(self._since, lost))
        lost = {place for code, place in came.items() if code not in after and place is not None}
        yield from self._gone(recorded.filter(pa.array(_standing(recorded, lost))))

    def _gone(self, table: pa.Table) -> Iterator[tuple[int, pa.Table]]:
        ends = {
            (vbucket, drop.collection): seqno
            for drop in self._until.drops
            if drop.version > self._since.version
            for vbucket, seqno in drop.vbuckets.items()
        }
        of = zip(table[VBUCKET].to_pylist(), table[COLLECTION_ID].to_pylist(), strict=True)
        emptied_at = pa.array([ends.get(place) for place in of], pa.uint64())
        dead = np.isin(table[COLLECTION_ID].to_numpy(), self._until.dead)
        emptied = emptied_at.is_valid().to_numpy(zero_copy_only=False) & ~dead
        yield _BEFORE, _bare(table.filter(pa.array(dead)), DROP)
        yield _BEFORE, _bare(table.filter(pa.array(~emptied & ~dead)), RETRACT)
        # Where it was emptied: more may follow.
        dropped = _bare(table.filter(pa.array(emptied)), DROP)
        at = dropped.column_names.index(SEQNO)
        yield _THEN, dropped.set_column(at, SEQNO, emptied_at.filter(pa.array(emptied)))

    def _some(self, table: pa.Table) -> pa.Table:
        return table.filter(pc.is_in(table[VBUCKET], value_set=self._affected))

    def _documents(self, manifest: Manifest) -> pa.Table:
        """Which documents a version has in the vbuckets concerned."""
        tables = [_NOTHING]
        for part in Live(self._store, manifest).parts():
            table = pa.concat_tables([*heads(self._store, part.entry)])
            tables.append(self._some(table if part.keep is None else table.filter(pa.array(part.keep))))
        return pa.concat_tables(tables)

    def _at(self, manifest: Manifest, places: set[_Place]) -> pa.Table:
        """Documents of a version that stand there."""
        parts = []
        for part in Live(self._store, manifest).parts() if places else ():
            standing = partial(_standing, places=places)
            parts.append(part.only(matching(self._store, part.entry, (VBUCKET, SEQNO), standing)))
        reader = self._reader(manifest)
        return pa.concat_tables([reader.schema.empty_table(), *reader.tables(parts)])


def _codes(tables: Iterable[pa.Table]) -> npt.NDArray[np.int64]:
    """A number for each document, alike in all tables."""
    whole = pa.concat_tables(tables).combine_chunks()
    indices = whole[KEY].dictionary_encode().unify_dictionaries().combine_chunks().indices
    number: npt.NDArray[np.int64] = np.asarray(indices).astype(np.int64)
    collection: npt.NDArray[np.int64] = whole[COLLECTION_ID].to_numpy().astype(np.int64)
    return number << 32 | collection


def _places(table: pa.Table) -> list[_Place]:
    return list(zip(table[VBUCKET].to_pylist(), table[SEQNO].to_pylist(), strict=True))


def _standing(table: pa.Table, places: set[_Place]) -> npt.NDArray[np.bool_]:
    found: npt.NDArray[np.bool_] = np.fromiter(
        (place in places for place in _places(table)), bool, len(table)
    )
    return found


def _marked(table: pa.Table, kind: str) -> pa.Table:
    at = table.column_names.index(CHANGE_TYPE)
    return table.set_column(at, CHANGE_TYPE, pa.array([kind] * len(table), pa.string()))


def _bare(table: pa.Table, kind: str) -> pa.Table:
    """What is recorded of a document that is gone: not its fields."""
    kept = {*HEAD, "_cb_scope", "_cb_collection"}
    columns = [
        column if field.name in kept else pa.nulls(len(table), field.type)
        for field, column in zip(table.schema, table.columns, strict=True)
    ]
    return _marked(pa.table(columns, schema=table.schema), kind)
