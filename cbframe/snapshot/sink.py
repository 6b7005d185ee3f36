"""The changes of one update: put down on disk as they come, then typed, deletions among them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from cbframe.arrow.columns import COLLECTION_ID, MUTATION, OPCODE
from cbframe.arrow.current_rows import CurrentRows
from cbframe.arrow.documents.unify import Columns, ColumnsBuilder
from cbframe.cluster.collections_manifest import CollectionsManifest
from cbframe.json.layout import FAMILIES, Column, Place, is_list, struct
from cbframe.json.typer import shown
from cbframe.scan.conflicts import Conflict
from cbframe.scan.names import Names
from cbframe.scan.pipeline import Pipeline, Typed, beside
from cbframe.scan.spec import ScanSpec
from cbframe.snapshot.resume import ResumingReceiver
from cbframe.wire.constants import DATA_OPCODES

CHANGE_TYPE = "_change_type"
UPSERT, DELETE, EXPIRE = "upsert", "delete", "expire"
_KINDS = pa.array([UPSERT, DELETE, EXPIRE])
_OPCODES = np.array(DATA_OPCODES, np.uint8)
_DEFAULT = "_default"


def made_way(field: str) -> str:
    """The column of a field: a document's own ``_change_type`` makes way, as does what looks as if it had."""
    return f"{field}_" if field.rstrip("_") == CHANGE_TYPE else field


def _any_value(kind: pa.DataType, place: Place) -> Iterator[Place]:
    """Where a declared type may have text, which any value fits."""
    if pa.types.is_struct(kind):
        for member in kind:
            yield from _any_value(member.type, (*place, member.name))
    elif is_list(kind) or pa.types.is_map(kind):
        yield from _any_value(kind.value_type if is_list(kind) else kind.item_type, (*place, None))
    else:
        yield place


class Described:
    """What the columns of documents are, found out table by table."""

    def __init__(
        self,
        plan: Column,  # by which they were made
        conflicts: Iterable[Conflict] = (),  # values that have no common type
        declared: Mapping[str, pa.DataType] | None = None,
        widths: Mapping[Place, tuple[int, int]] | None = None,
    ) -> None:
        self._plan = plan
        self._widths = widths
        self._reported: dict[str, dict[str, list[str]]] = {}
        for each in conflicts:
            families: list[str] = [FAMILIES[kind] for kind in each.types if kind in FAMILIES]
            self._reported.setdefault(made_way(each.path), {})[each.action] = families
        for name, kind in (declared or {}).items():
            for place in _any_value(kind, (made_way(name),)):
                self._reported.setdefault(shown(place), {})["text"] = ["string", "number"]
        self._builder: ColumnsBuilder | None = None

    def look(self, table: pa.Table) -> None:
        """Take in one more table; all have one schema."""
        if self._builder is None:
            self._builder = ColumnsBuilder(table.schema, self._plan, self._widths)
        self._builder.look(table)

    def columns(self) -> Columns:
        """What they are."""
        if self._builder is None:
            return Columns(pa.schema([]))
        return self._builder.columns().reported(self._reported)


@dataclass(frozen=True, slots=True)
class Changes:
    """What an update brought."""

    rows: int  # how many there are
    tables: Iterator[pa.Table]  # metadata, and the documents' columns behind it; to be consumed once
    documents: Described  # what the documents' columns are, once `tables` is consumed
    collections: dict[int, str]  # ids and names of those that rows are of
    dead: frozenset[int]  # those, of rows or known before, that do not exist any more
    conflicts: tuple[Conflict, ...]  # as of a read
    rejected: dict[str, int]
    transaction_records: int = 0  # how many changes of such records were left out


class ChangeSink(Pipeline):
    """Takes the changes of one run."""

    _receiver: ResumingReceiver

    def __init__(
        self, target: ScanSpec, names: Names, receiver: ResumingReceiver, *, net: bool = False
    ) -> None:
        super().__init__(target, names, receiver, bounded=True, of_changes=True)
        self._net = net

    def changes(
        self,
        known: Collection[int] = (),  # collections that the snapshot has
        manifest_uid: int = 0,
        *,
        whole: bool = False,
        first: bool = False,
    ) -> Changes:
        """Nothing more comes."""
        receiver, target = self._receiver, self._target
        manifest = self.complete(known)
        if whole:
            self.intake.refuse_filters()
        elif first:
            self.intake.warn_of_filters()
        dead = set(receiver.dropped)
        if manifest is not None and manifest.uid >= manifest_uid:
            dead |= self.collections - manifest.collections.keys()
        net = self._net
        current = CurrentRows(
            self.heads(),
            receiver,
            versions=not net,
            ended=receiver.ended() if net else {},
            dropped=None if net else set(),
        )
        self.keep(current.mask, manifest, documents=False)
        # An update may bring none of the documents that have a field.
        typed = self.typed(lenient=not whole, final=False)
        if typed.settled is None:
            # A deletion has no value.
            schema = pa.schema([each.with_nullable(True) for each in typed.empty.schema])
            typed = replace(typed, empty=schema.empty_table())
        typed.form(receiver.schema.empty_table(), typed.empty)
        columns = Described(struct({}))
        if typed.settled is not None:
            columns = Described(
                _named(typed.settled.layout.root, target),
                typed.conflicts,
                target.schema,
                _placed(typed.settled.widths(), target),
            )
        return Changes(
            self.rows,
            self._tables(typed, _Head(self._names, manifest), columns),
            columns,
            self._names_of_collections(manifest),
            frozenset(dead),
            typed.conflicts,
            dict(typed.rejected),
            self.intake.transaction_records,
        )

    def _names_of_collections(self, manifest: CollectionsManifest | None) -> dict[int, str]:
        if manifest is None:
            return dict.fromkeys(self.collections, f"{_DEFAULT}.{_DEFAULT}")
        names = ((cid, manifest.collections[cid]) for cid in sorted(self.collections))
        return {cid: f"{name.scope}.{name.name}" for cid, name in names}

    def _tables(self, typed: Typed, head: _Head, columns: Described) -> Iterator[pa.Table]:
        """Documents, and after them deletions, whose fields are null."""
        for number in range(len(self)):
            upserts, documents = typed.form(self.raw(number), self.table(number, typed))
            documents = documents.rename_columns([*map(made_way, documents.column_names)])
            columns.look(documents)
            table = beside(head.of(upserts), documents)
            every = self.all_of(number)
            others = every.filter(pa.array(every[OPCODE].to_numpy() != MUTATION))
            if len(others):
                nothing = pa.table(
                    [pa.nulls(len(others), field.type) for field in documents.schema], schema=documents.schema
                )
                deleted = beside(head.of(others), nothing) if documents.schema.names else head.of(others)
                table = pa.concat_tables([table, deleted])
            if len(table):
                yield table


class _Head:
    """The metadata of changes."""

    def __init__(self, names: Names, manifest: CollectionsManifest | None) -> None:
        self._names = names
        self._manifest = manifest

    def of(self, raw: pa.Table) -> pa.Table:
        # What is kept are the bytes: who reads it gives them the form that is asked for.
        head = self._names.head(raw, self._manifest, keys="binary")
        if self._manifest is None:
            default = pa.array([_DEFAULT], pa.string()).take(pa.array(np.zeros(len(raw), np.int8)))
            head = head.append_column("_cb_scope", default).append_column("_cb_collection", default)
        head = head.append_column(COLLECTION_ID, raw[COLLECTION_ID])
        kinds = (raw[OPCODE].to_numpy()[:, None] == _OPCODES).argmax(axis=1)
        return head.append_column(CHANGE_TYPE, _KINDS.take(pa.array(kinds)))


def _placed(widths: Mapping[Place, tuple[int, int]], target: ScanSpec) -> dict[Place, tuple[int, int]]:
    """Widths by the places of the columns in the result."""
    found: dict[Place, tuple[int, int]] = {}
    for path in target.columns or [(str(place[0]),) for place in widths]:
        for place, width in widths.items():
            if place[: len(path)] == path:
                found[made_way(".".join(path)), *place[len(path) :]] = width
    return found


def _named(plan: Column, target: ScanSpec) -> Column:
    """The plan of the columns as they are named in the result."""
    if target.columns is None:
        return replace(plan, members={made_way(name): each for name, each in plan.members.items()})
    chosen = {}
    for name, *inside in target.columns:
        member = plan.members.get(name)
        for each in inside:
            member = None if member is None else member.members.get(each)
        if member is not None:
            chosen[made_way(".".join([name, *inside]))] = member
    return replace(plan, members=chosen)
