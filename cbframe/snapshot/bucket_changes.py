"""What changed in a bucket since a version of a snapshot, or of a Delta table that mirrors it.

:class:`ChangeReader` reads on from the positions of that version to where the bucket is now. Changes wait in
temporary files as they come. When nothing more comes, they are typed, and handed out as tables: documents,
and deletions whose fields are null.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from copy import copy
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from cbframe.arrow.column_types import Columns, ColumnsBuilder
from cbframe.arrow.columns import COLLECTION_ID, MUTATION, OPCODE
from cbframe.arrow.current_rows import CurrentRows
from cbframe.arrow.receivers import DeferringBatchReceiver
from cbframe.cluster.collections_manifest import CollectionsManifest
from cbframe.dcp.positions import VBucketOffset
from cbframe.dcp.receiver import Receipt
from cbframe.errors import ClusterMapError, SnapshotError
from cbframe.json.arrays import is_list
from cbframe.json.layout import FAMILIES, Column, FieldPath, struct
from cbframe.json.typer import shown
from cbframe.scan.changes import CHANGE_TYPE, DELETE, EXPIRE, UPSERT
from cbframe.scan.pipeline import Pipeline, Typed, beside
from cbframe.scan.result import Conflict
from cbframe.scan.session import Ran, Run
from cbframe.scan.spec import ScanSpec
from cbframe.snapshot.files import made_way
from cbframe.snapshot.manifest import BLANK, Manifest, RollbackPoints
from cbframe.wire.constants import DATA_OPCODES

_KINDS = pa.array([UPSERT, DELETE, EXPIRE])
_OPCODES = np.array(DATA_OPCODES, np.uint8)
_DEFAULT = "_default"


class ResumingReceiver(DeferringBatchReceiver):
    """Gathers what changed since a snapshot.

    Everything that was received counts, also deletions and older versions of documents, but for what was
    rolled back during the read itself.
    """

    __slots__ = ("_points", "_starts", "_waiting", "rollback_seqnos", "rolled_back")

    rolled_back: dict[int, int]
    """Seqnos to which the server rolled vbuckets back, the lowest of each."""
    rollback_seqnos: dict[int, int]
    """Of vbuckets that were read again: the highest seqno of the snapshot's rows that still counts."""

    def resume(self, starts: Mapping[int, VBucketOffset], points: RollbackPoints | None) -> None:
        """Begin at these positions; call it before anything is received."""
        self._starts = starts
        self._points = points
        self._waiting: deque[Callable[[], None]] = deque()
        self.rolled_back = {}
        self.rollback_seqnos = {}
        for vbucket, position in starts.items():
            self.read_from(vbucket, position)

    # -- on the threads of the nodes

    def prepare_rollback(self, ready: Callable[[], None]) -> bool:
        # The positions are in the manifests of earlier versions, maybe on S3, and a thread of a node must not
        # wait for those: the consumer's loads them, and then the stream goes on.
        if self._points is None or self._points.loaded:
            return True
        self._waiting.append(ready)
        self.wake()
        return False

    def rollback(self, vbucket: int, seqno: int) -> VBucketOffset:
        target = self._point(vbucket, seqno)
        self.rolled_back[vbucket] = min(seqno, self.rolled_back.get(vbucket, seqno))
        if target.seqno < self._starts.get(vbucket, target).seqno:
            self.rollback_seqnos[vbucket] = min(target.seqno, self.rollback_seqnos.get(vbucket, target.seqno))
        return self.read_from(vbucket, target)

    # -- on the consumer's thread

    def take(self, timeout: float | None = None) -> list[tuple[pa.RecordBatch, Receipt]]:
        found = DeferringBatchReceiver.take(self, timeout)
        if self._waiting and self._points is not None:
            self._points.load()
            while self._waiting:
                self._waiting.popleft()()
        return found

    # -- afterwards

    def _point(self, vbucket: int, seqno: int) -> VBucketOffset:
        """The last rollback point at or before a seqno."""
        return VBucketOffset() if self._points is None else self._points.position(vbucket, seqno)

    def vanished(self, reached: Mapping[int, int]) -> dict[int, int]:
        """Vbuckets of which less is there than the snapshot has, though nobody rolled them back.

        Nothing is asked about a vbucket that the server says is empty.
        """
        return {
            vbucket: self._point(vbucket, reached[vbucket]).seqno
            for vbucket, start in self._starts.items()
            if reached.get(vbucket, start.seqno) < start.seqno and vbucket not in self.rollback_seqnos
        }

    def replaced(self, vbuckets: Iterable[int]) -> bool:
        """Whether the snapshot knows none of the histories that the server reported for these vbuckets."""
        return not any(
            {vbuuid for vbuuid, _ in self.failover_log(vbucket)}
            & {vbuuid for vbuuid, _ in self._starts[vbucket].failover_log}
            for vbucket in vbuckets
            if vbucket in self.rollback_seqnos
        )


@dataclass(frozen=True, slots=True)
class Changes:
    """What one read brought."""

    ran: Ran  # the run
    positions: list[VBucketOffset]  # where each vbucket is complete now
    rollback_seqnos: dict[int, int]  # by vbucket, the highest seqno of what was there before that counts
    rolled_back: dict[int, int]  # vbuckets that the server rolled back, and the lowest seqno to which
    ended: dict[tuple[int, int], int]  # by vbucket and collection: where it was dropped or emptied
    unique: bool  # whether no document occurs twice
    nbytes: int  # of the rows, as they came
    tables: Iterator[pa.Table]  # metadata, and the documents' columns after it; to be consumed once
    documents: DescribedColumns  # what the documents' columns are, once `tables` is consumed
    collections: dict[int, str]  # ids and names of those that rows are of
    dead: frozenset[int]  # those, of rows or known before, that do not exist any more
    conflicts: tuple[Conflict, ...]  # as of a read
    rejected: dict[str, int]
    transaction_records: int  # how many changes of such records were left out


class ChangeReader(Pipeline):
    """One read of what changed; it has to be closed, since documents wait in temporary files."""

    _receiver: ResumingReceiver

    def __init__(
        self,
        target: ScanSpec,
        base: Manifest = BLANK,  # the version from which to go on
        points: RollbackPoints | None = None,  # of its vbuckets; None for their start
        *,
        documents: bool = False,  # whether that version has documents, and not only deletions
        net: bool = False,  # of each document only the newest change is wanted
        per_collection: bool = False,  # documents are converted by :meth:`by_collection`
        other_bucket: Callable[[str], SnapshotError],
    ) -> None:
        self._base = base
        self._had_documents = documents
        self._net = net
        self._other_bucket = other_bucket
        self._run = Run(target, bounded=True, bucket_uuid=base.bucket_uuid, ask_time=True)
        names = self._run.names
        receiver = ResumingReceiver(names.wire_metadata, self._run.options.max_body_bytes)
        receiver.resume(dict(enumerate(base.positions)), points)
        self._asked = target
        if per_collection:
            target = replace(target, parse=False, columns=None)
        super().__init__(target, names, receiver, bounded=True, of_changes=True)

    @property
    def seconds(self) -> float:
        """Since it was made."""
        return self._run.seconds

    def read(self) -> Changes:
        """Read to the end."""
        ran, receiver = self._ran(), self._receiver
        reached = {vbucket: seqno for vbucket, (_, seqno) in ran.as_of.items()}
        rollback_seqnos = receiver.rollback_seqnos | receiver.vanished(reached)
        emptied = [vbucket for vbucket, seqno in rollback_seqnos.items() if not seqno]
        everything = len(emptied) == sum(bool(position.seqno) for position in self._base.positions)
        # A node that fails rolls some vbuckets back, and leaves their histories.
        if emptied and everything and receiver.replaced(emptied):
            raise self._other_bucket("it was emptied, and no vbucket knows anything of what was read of it")
        positions = [
            receiver.position_at(vbucket, reached[vbucket]) if reached[vbucket] else VBucketOffset()
            for vbucket in range(ran.map.vbuckets)
        ]
        manifest = self._manifest = self.complete(self._base.collections)
        if not self._base.positions:
            self.intake.refuse_filters()
        elif not self._had_documents:
            self.intake.warn_of_filters()
        dead = set(receiver.dropped)
        if manifest is not None and manifest.uid >= max((at.manifest_uid for at in positions), default=0):
            dead |= self.collections - manifest.collections.keys()
        self._keep_changes(manifest)
        typed = self._typed()
        columns = DescribedColumns(typed, self._target)
        return Changes(
            ran=ran,
            positions=positions,
            rollback_seqnos=rollback_seqnos,
            rolled_back=dict(receiver.rolled_back),
            ended=receiver.ended(),
            unique=not receiver.several_versions().any(),
            nbytes=self.nbytes,
            tables=self._tables(typed, manifest, columns),
            documents=columns,
            collections=self._names_of_collections(manifest),
            dead=frozenset(dead),
            conflicts=typed.conflicts,
            rejected=dict(typed.rejected),
            transaction_records=self.intake.by_key.transaction_records,
        )

    def by_collection(self, whole: Changes) -> Iterator[tuple[str, Changes]]:
        """Of what was read, the changes of each collection, with columns of its own; one after the other."""
        for name in sorted({*whole.collections.values()}):
            part: ChangeReader = copy(self)
            Pipeline.__init__(part, self._asked, self._names, self._receiver, bounded=True, of_changes=True)
            with closing(part):
                for number in (cid for cid, each in whole.collections.items() if each == name):
                    self.give(part, number)
                typed = part._typed()
                columns = DescribedColumns(typed, self._asked)
                yield (
                    name,
                    replace(
                        whole,
                        tables=part._tables(typed, self._manifest, columns),
                        documents=columns,
                        conflicts=typed.conflicts,
                        rejected=dict(typed.rejected),
                    ),
                )

    def _ran(self) -> Ran:
        had = len(self._base.positions)
        try:
            ran = self._run.into(self._receiver, self)
        except ClusterMapError as exc:
            if exc.fault != "other bucket" or not self._base.bucket_uuid:
                raise
            raise self._other_bucket(
                "it was deleted and created again, or it is one of another cluster"
            ) from exc
        if had not in (0, ran.map.vbuckets):
            raise self._other_bucket(f"it has {ran.map.vbuckets} vbuckets, and it had {had}")
        return ran

    def _keep_changes(self, manifest: CollectionsManifest | None) -> None:
        """All changes count, also older versions of documents; where only the net is wanted, the newest."""
        net, receiver = self._net, self._receiver
        current = CurrentRows(
            self.heads(),
            receiver,
            versions=not net,
            ended=receiver.ended() if net else {},
            dropped=None if net else set(),
        )
        self.keep(current.mask, manifest, documents=False)

    def _typed(self) -> Typed:
        # An update may bring none of the documents that have a field.
        typed = self.typed(lenient=bool(self._base.positions), final=False)
        if typed.settled is None:
            # A deletion has no value.
            schema = pa.schema([each.with_nullable(True) for each in typed.empty.schema])
            typed = replace(typed, empty=schema.empty_table())
        typed.form(self._receiver.schema.empty_table(), typed.empty)
        return typed

    def _names_of_collections(self, manifest: CollectionsManifest | None) -> dict[int, str]:
        if manifest is None:
            return dict.fromkeys(self.collections, f"{_DEFAULT}.{_DEFAULT}")
        names = ((cid, manifest.collections[cid]) for cid in sorted(self.collections))
        return {cid: f"{name.scope}.{name.name}" for cid, name in names}

    def _tables(
        self, typed: Typed, manifest: CollectionsManifest | None, columns: DescribedColumns
    ) -> Iterator[pa.Table]:
        """Documents, and after them deletions, whose fields are null."""
        for number in range(len(self)):
            upserts, documents = typed.form(self.raw(number), self.table(number, typed))
            documents = documents.rename_columns([*map(made_way, documents.column_names)])
            columns.look(documents)
            table = beside(self._head(upserts, manifest), documents)
            every = self.all_of(number)
            others = every.filter(pa.array(every[OPCODE].to_numpy() != MUTATION))
            if len(others):
                nothing = pa.table(
                    [pa.nulls(len(others), field.type) for field in documents.schema], schema=documents.schema
                )
                head = self._head(others, manifest)
                table = pa.concat_tables([table, beside(head, nothing) if documents.schema.names else head])
            if len(table):
                yield table

    def _head(self, raw: pa.Table, manifest: CollectionsManifest | None) -> pa.Table:
        """The metadata of changes."""
        # What is kept are the bytes: who reads it gives them the form that is asked for.
        head = self._names.head(raw, manifest, keys="binary")
        if manifest is None:
            default = pa.array([_DEFAULT], pa.string()).take(pa.array(np.zeros(len(raw), np.int8)))
            head = head.append_column("_cb_scope", default).append_column("_cb_collection", default)
        head = head.append_column(COLLECTION_ID, raw[COLLECTION_ID])
        kinds = (raw[OPCODE].to_numpy()[:, None] == _OPCODES).argmax(axis=1)
        return head.append_column(CHANGE_TYPE, _KINDS.take(pa.array(kinds)))


class DescribedColumns:
    """What the columns of documents are, found out table by table."""

    def __init__(self, typed: Typed, target: ScanSpec) -> None:
        self._typed = typed
        self._target = target
        self._builder: ColumnsBuilder | None = None

    def look(self, table: pa.Table) -> None:
        """Take in one more table; all have one schema."""
        if self._builder is None:
            settled, target = self._typed.settled, self._target
            plan, widths = struct({}), None
            if settled is not None:
                plan = _named(settled.layout.root, target)
                widths = _placed(settled.widths(), target)
            self._builder = ColumnsBuilder(table.schema, plan, widths)
        self._builder.look(table)

    def columns(self) -> Columns:
        """What they are, with what is known of values that have no common type."""
        if self._builder is None:
            return Columns({})
        columns = self._builder.columns()
        return columns if self._typed.settled is None else columns.reported(self._reported())

    def _reported(self) -> dict[str, dict[str, list[str]]]:
        reported: dict[str, dict[str, list[str]]] = {}
        for each in self._typed.conflicts:
            families: list[str] = [FAMILIES[kind] for kind in each.types if kind in FAMILIES]
            reported.setdefault(made_way(each.path), {})[each.action] = families
        for name, kind in self._target.schema.items():
            for place in _any_value(kind, (made_way(name),)):
                reported.setdefault(shown(place), {})["text"] = ["string", "number"]
        return reported


def _any_value(kind: pa.DataType, place: FieldPath) -> Iterator[FieldPath]:
    """Where a declared type may have text, which any value fits."""
    if pa.types.is_struct(kind):
        for member in kind:
            yield from _any_value(member.type, (*place, member.name))
    elif is_list(kind) or pa.types.is_map(kind):
        yield from _any_value(kind.value_type if is_list(kind) else kind.item_type, (*place, None))
    else:
        yield place


def _placed(
    widths: Mapping[FieldPath, tuple[int, int]], target: ScanSpec
) -> dict[FieldPath, tuple[int, int]]:
    """Widths by the places of the columns in the result."""
    found: dict[FieldPath, tuple[int, int]] = {}
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
