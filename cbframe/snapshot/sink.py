"""The changes of one update: put down on disk as they come, then typed, deletions among them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from cbframe.arrow.batcher import DeferringBatchReceiver
from cbframe.arrow.columns import COLLECTION_ID, MUTATION, OPCODE
from cbframe.arrow.current_rows import CurrentRows
from cbframe.arrow.documents.unify import Columns, ColumnsBuilder
from cbframe.cluster.collections_manifest import CollectionsManifest
from cbframe.dcp.positions import Position
from cbframe.dcp.receiver import Receipt
from cbframe.json.layout import FAMILIES, Column, Place, is_list, struct
from cbframe.json.typer import shown
from cbframe.scan.names import Names
from cbframe.scan.pipeline import Pipeline, Typed, beside
from cbframe.scan.result import Conflict
from cbframe.scan.spec import ScanSpec
from cbframe.snapshot.versions import Boundaries
from cbframe.wire.constants import DATA_OPCODES, SystemEventId
from cbframe.wire.messages import SystemEvent


class ResumingReceiver(DeferringBatchReceiver):
    """Gathers what changed since a snapshot.

    Everything that was received counts, also deletions and older versions of documents, but for what the
    server took back during the read itself.
    """

    __slots__ = ("_boundaries", "_drops", "_starts", "_waiting", "rolled_back", "taken_back")

    rolled_back: dict[int, int]
    """Seqnos to which the server rolled vbuckets back, the lowest of each."""
    taken_back: dict[int, int]
    """Seqnos, by vbucket, behind which nothing counts that the snapshot has."""

    def resume(self, starts: Mapping[int, Position], boundaries: Boundaries | None) -> None:
        """Begin there; call it before anything is received."""
        self._starts = starts
        self._boundaries = boundaries
        self._waiting: deque[Callable[[], None]] = deque()
        self._drops: dict[tuple[int, int], int] = {}
        self.rolled_back = {}
        self.taken_back = {}
        for vbucket, position in starts.items():
            self._begin(vbucket, position)

    def _begin(self, vbucket: int, position: Position) -> None:
        state = self._vbuckets[vbucket]
        state.metadata = position.metadata if position.seqno else None
        self._last_seqno[vbucket] = position.seqno

    # -- on the threads of the nodes

    def prepare_rollback(self, ready: Callable[[], None]) -> bool:
        if self._boundaries is None or self._boundaries.loaded:
            return True
        self._waiting.append(ready)
        self._batches.wake()
        return False

    def rollback(self, vbucket: int, seqno: int) -> Position:
        state = self._vbuckets[vbucket]
        state.void_before = self._batches.count()
        target = self._below(vbucket, seqno)
        self.rolled_back[vbucket] = min(seqno, self.rolled_back.get(vbucket, seqno))
        if target.seqno < self._starts.get(vbucket, target).seqno:
            self.taken_back[vbucket] = min(target.seqno, self.taken_back.get(vbucket, target.seqno))
        for place in [
            place for place, at in self._drops.items() if place[0] == vbucket and at > target.seqno
        ]:
            del self._drops[place]
        self._begin(vbucket, target)
        return target

    def seqno_advanced(self, vbucket: int, seqno: int) -> None:
        self._last_seqno[vbucket] = seqno

    def system_event(self, vbucket: int, event: SystemEvent) -> None:
        DeferringBatchReceiver.system_event(self, vbucket, event)
        # A collection that is reported to begin behind the start of the stream is new, or was emptied.
        ends = {SystemEventId.DROP_COLLECTION}
        if self._last_seqno[vbucket]:
            ends.add(SystemEventId.CREATE_COLLECTION)
        if event.event in ends and event.collection_id is not None:
            self._drops[vbucket, event.collection_id] = event.seqno

    # -- on the consumer's thread

    def take(self, timeout: float | None = None) -> list[tuple[pa.RecordBatch, Receipt]]:
        found = DeferringBatchReceiver.take(self, timeout)
        if self._waiting and self._boundaries is not None:
            self._boundaries.load()
            while self._waiting:
                self._waiting.popleft()()
        return found

    # -- afterwards

    def _below(self, vbucket: int, seqno: int) -> Position:
        """The last position at or before a seqno at which the vbucket was whole."""
        return Position() if self._boundaries is None else self._boundaries.below(vbucket, seqno)

    def ended(self) -> dict[tuple[int, int], int]:
        """By vbucket and collection: the seqno at which it was dropped or emptied."""
        return dict(self._drops)

    def drops(self, collections: Iterable[int]) -> dict[int, dict[int, int]]:
        """By collection, of those that matter, and vbucket: the seqno at which it was dropped or emptied."""
        found: dict[int, dict[int, int]] = {number: {} for number in collections}
        for (vbucket, collection), seqno in self._drops.items():
            if collection in found:
                found[collection][vbucket] = seqno
        return {collection: seqnos for collection, seqnos in found.items() if seqnos}

    def vanished(self, reached: Mapping[int, int]) -> dict[int, int]:
        """Vbuckets of which less is there than the snapshot has, though nobody rolled them back.

        Nothing is asked about a vbucket that the server says is empty.
        """
        return {
            vbucket: self._below(vbucket, reached[vbucket]).seqno
            for vbucket, start in self._starts.items()
            if reached.get(vbucket, start.seqno) < start.seqno and vbucket not in self.taken_back
        }

    def position_at(self, vbucket: int, seqno: int) -> Position:
        """Where to continue, once all up to `seqno` was received."""
        return Position.of(self._vbuckets[vbucket].metadata, seqno) if seqno else Position()

    def replaced(self, vbuckets: Iterable[int]) -> bool:
        """Whether the snapshot knows none of the histories that the server reported for these vbuckets."""
        return not any(
            {vbuuid for vbuuid, _ in self.failover_log(vbucket)}
            & {vbuuid for vbuuid, _ in self._starts[vbucket].failover_log}
            for vbucket in vbuckets
            if vbucket in self.taken_back
        )


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
