"""Bounded reads of changes between two offsets, by other processes: each some vbuckets.

What :mod:`cbframe.scan.offsets` plans is read here. Rows are those of a change stream with typed
fields. One more kind of row, without a key, says what no other could: ``reset``, all documents of the
vbucket are void that were given before. The rows behind it are the vbucket from its beginning.

A vbucket is given again like that where its history is not the planned one any more, where the server does
not know of the place to begin at or has purged deletions behind it, and where one of its collections was
created, emptied or dropped, or the one scope that is read created again: of such documents there are no
deletions, and their collection's name is gone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cbframe.arrow.batcher import DeferringBatchReceiver
from cbframe.arrow.columns import KEY, OPCODE, SEQNO, VBUCKET, form_of
from cbframe.arrow.current_rows import CurrentRows
from cbframe.arrow.documents.unify import Columns
from cbframe.cluster.collections_manifest import CollectionsManifest
from cbframe.cluster.tls import TLSLike
from cbframe.dcp.look import Look, look_at
from cbframe.dcp.positions import Position, ReachedEnds, VBucketMetaData
from cbframe.dcp.receiver import Receipt
from cbframe.errors import ConfigurationError, ConversionError, RollbackError, StreamError
from cbframe.json.typer import OURS
from cbframe.options import BucketDataSourceOptions
from cbframe.scan.agreement import Agreement
from cbframe.scan.changes import CHANGE_TYPE, CHANGE_TYPES
from cbframe.scan.names import settled
from cbframe.scan.offsets import BEGINNING, Offset, Range, Selection
from cbframe.scan.partition import PartSettings, shares
from cbframe.scan.pipeline import Pipeline, Typed, beside
from cbframe.scan.session import Run
from cbframe.scan.shape import cast_to
from cbframe.scan.spec import METADATA_NAMES, Exclusion, ScanSpec
from cbframe.typing import Connectable, ServerURLs
from cbframe.wire.constants import DATA_OPCODES, MAX_SEQNO, MAX_VBUCKETS, SystemEventId
from cbframe.wire.messages import SystemEvent

_OPCODES = np.array(DATA_OPCODES, np.uint8)


class SpanReceiver(DeferringBatchReceiver):
    """Gathers changes behind some marks."""

    __slots__ = ("_ends", "_events", "_histories", "fallen")

    fallen: set[int]  # vbuckets that the server sent back: they were read from their beginning then

    def begin(self, marks: Mapping[int, Position], *, of_scope: bool) -> None:
        """Begin there; call it before anything is received."""
        self.fallen = set()
        # Servers tell that a collection was emptied by telling once more that it was created.
        self._ends = {SystemEventId.CREATE_COLLECTION, SystemEventId.DROP_COLLECTION}
        if of_scope:
            # One that has the name of another that was dropped: of the other's end nothing is sent.
            self._ends.add(SystemEventId.CREATE_SCOPE)
        self._events: list[tuple[int, int]] = []
        self._histories: dict[int, int] = {}
        for vbucket, position in marks.items():
            # It is not known in which snapshot the seqno lay. The server takes it for the end of one,
            # which it need not have been: that is why a new history voids it in any case.
            if position.seqno:
                self._vbuckets[vbucket].metadata = position.metadata
                self._last_seqno[vbucket] = position.seqno

    # -- on the threads of the nodes

    def rollback(self, vbucket: int, seqno: int) -> Position:
        self.fallen.add(vbucket)
        return DeferringBatchReceiver.rollback(self, vbucket, seqno)

    def store(self, vbucket: int, metadata: VBucketMetaData) -> None:
        DeferringBatchReceiver.store(self, vbucket, metadata)
        if metadata.failover_log:
            self._histories[vbucket] = metadata.failover_log[0].vbuuid

    def system_event(self, vbucket: int, event: SystemEvent) -> None:
        DeferringBatchReceiver.system_event(self, vbucket, event)
        if event.event in self._ends:
            self._events.append((vbucket, event.seqno))

    # -- afterwards

    def ends_of_collections(self, vbucket: int) -> list[int]:
        """Seqnos at which collections of a vbucket, or their scope, were created, emptied or dropped."""
        return [seqno for vb, seqno in self._events if vb == vbucket]

    def history(self, vbucket: int) -> int | None:
        """The newest history of a vbucket, as the server last reported; None if it was not asked."""
        return self._histories.get(vbucket)

    def counts_from(self, vbucket: int) -> int:
        """In batches with a smaller number there is nothing of a vbucket that counts."""
        return self._vbuckets[vbucket].void_before


class Kept:
    """Which seqnos of which vbuckets are given."""

    def __init__(self) -> None:
        self._low = np.full(MAX_VBUCKETS, MAX_SEQNO, np.uint64)
        self._high = np.zeros(MAX_VBUCKETS, np.uint64)

    def add(self, vbucket: int, behind: int, most: int | None) -> None:
        """Give those of a vbucket that are behind a seqno, up to another or to where it ends."""
        self._low[vbucket] = behind
        self._high[vbucket] = MAX_SEQNO if most is None else most

    def mask(self, vbucket: npt.NDArray[np.uint16], seqno: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
        """Which rows are given."""
        found: npt.NDArray[np.bool_] = (seqno > self._low[vbucket]) & (seqno <= self._high[vbucket])
        return found


class SpanSink(Pipeline):
    """Takes the changes of one run to disk."""

    _receiver: SpanReceiver

    def stop_at(self, ends: Mapping[int, int]) -> None:
        """Have enough once all vbuckets are there, whatever more the server would send; never, if none."""
        self._ends = dict(ends)
        self._vbs = np.array([*ends], np.int64)
        self._goals = np.array([*ends.values()], np.uint64)
        self._seqno = np.zeros(MAX_VBUCKETS, np.uint64)
        self._number = np.zeros(MAX_VBUCKETS, np.int64)

    def add(self, arrived: list[tuple[pa.RecordBatch, Receipt]]) -> None:
        for number, (batch, _) in enumerate(arrived, self._arrived):
            # Ascending within a vbucket, but for a rollback: of several, the last is where it is.
            vbucket = batch.column(VBUCKET).to_numpy()
            self._seqno[vbucket] = batch.column(SEQNO).to_numpy()
            self._number[vbucket] = number
        super().add(arrived)

    def has_enough(self) -> bool:
        if not len(self._vbs) or not (self._seqno[self._vbs] >= self._goals).all():
            return False
        return all(self.reached(vbucket) is not None for vbucket in self._ends)

    def reached(self, vbucket: int) -> int | None:
        """How far a vbucket came; None if that is void, or not as far as it was to come."""
        seqno = int(self._seqno[vbucket])
        if vbucket not in self._ends or seqno < self._ends[vbucket]:
            return None
        return seqno if self._number[vbucket] >= self._receiver.counts_from(vbucket) else None

    def changes(self, kept: Kept) -> Iterator[pa.Table]:
        """Rows that count, in the order of each vbucket: what happened, metadata, fields."""
        receiver = self._receiver
        manifest = self.complete()
        current = CurrentRows(self.heads(), receiver, versions=True)

        def mask(number: int, heads: pa.RecordBatch) -> npt.NDArray[np.bool_]:
            given = kept.mask(heads.column(VBUCKET).to_numpy(), heads.column(SEQNO).to_numpy())
            return given & current.mask(number, heads)

        self.keep(mask, manifest, documents=False)
        self._refuse_nameless()
        return self._formed(self.typed(lenient=True), manifest)

    def _refuse_nameless(self) -> None:
        """Two documents with one key must not look like one."""
        needed = _name_columns(self._target)
        if self.collections - {0} and not needed.issubset(self._target.metadata):
            columns = " and ".join(OURS + name for name in sorted(needed, reverse=True))
            raise ConversionError(
                "documents are of collections, and the schema has no columns for them",
                hint=f"declare {columns} as string, or read one collection only",
            )

    def _formed(self, typed: Typed, manifest: CollectionsManifest | None) -> Iterator[pa.Table]:
        for number in range(len(self)):
            raw = self.all_of(number)
            if not len(raw):
                continue
            kinds = (raw[OPCODE].to_numpy()[:, None] == _OPCODES).argmax(axis=1)
            head = self._names.head(raw, manifest)
            head = head.append_column(CHANGE_TYPE, CHANGE_TYPES.take(pa.array(kinds)))
            table = (
                typed.form(self.raw(number), self.table(number, typed))[1] if typed.settled else pa.table({})
            )
            if table.num_columns:
                # Each row takes its document; where there is none, there is no index, and so null.
                there = kinds == 0
                head = beside(head, table.take(pa.array(np.cumsum(there) - 1, mask=~there)))
            yield head


def _name_columns(target: ScanSpec) -> set[str]:
    """Metadata without which documents of two collections may look alike."""
    if target.named is None:
        return {"scope", "collection"} if target.scope is None else {"collection"}
    places = {
        tuple(name.split(".", 1)) if "." in name else (target.scope or "_default", name)
        for name in target.named
    }
    several = {"scope": {scope for scope, _ in places}, "collection": {name for _, name in places}}
    found = {what for what, names in several.items() if len(names) > 1}
    # One of them is enough where it tells all apart.
    return next(({what} for what in sorted(found) if len(several[what]) == len(places)), found)


class Pass:
    """One run over some vbuckets, and what is to be said of each."""

    def __init__(
        self,
        settings: PartSettings,
        bucket_uuid: str,
        ranges: Sequence[Range],
        stack: ExitStack,
        *,
        look: Callable[[Collection[int]], Look],
        whole_snapshots: bool,
    ) -> None:
        self._look = look
        self._whole_snapshots = whole_snapshots
        self.reset: set[int] = set()
        self.again: list[Range] = []
        self.lost: set[int] = set()
        self.sent_back: set[int] = set()
        self._sink: SpanSink | None = None
        self._kept = Kept()
        # A vbucket that has nothing but a new history is not asked.
        some = [each for each in ranges if each.end.seqno]
        if not some:
            return
        spec = settings.spec
        run = Run(
            replace(
                spec,
                vbuckets=tuple(each.vbucket for each in some),
                options=replace(spec.options, out_of_order=False),
            ),
            bounded=True,
            bucket_uuid=bucket_uuid,
            ends=ReachedEnds({each.vbucket: each.end.seqno for each in some}),
        )
        receiver = SpanReceiver(run.names.wire_metadata, run.options.max_body_bytes)
        of_scope = spec.scope is not None and spec.collections is None
        starts = {each.vbucket: each.start if each.base else BEGINNING for each in some}
        receiver.begin(starts, of_scope=of_scope)
        enough = {} if whole_snapshots else {each.vbucket: each.end.seqno for each in some}
        sink = SpanSink(spec, run.names, receiver, settings.agreement, bounded=True, of_changes=True)
        stack.callback(sink.close)
        sink.stop_at(enough)
        ran = run.into(receiver, sink)
        self._sink = sink
        reached = {vb: seqno for vb, (_, seqno) in ran.as_of.items()}
        short = [
            each
            for each in some
            if not self._is_judged(each, receiver, reached.get(each.vbucket, sink.reached(each.vbucket)))
        ]
        if short:
            self._check_short(short)

    def _is_judged(self, given: Range, receiver: SpanReceiver, reached: int | None) -> bool:
        """Decide what becomes of a vbucket; not if it ended before the reported end of its history."""
        vb, end = given.vbucket, given.end
        # A vbucket that is empty now is not asked: then its history is another one, too.
        same = receiver.history(vb) == end.history
        fallen = vb in receiver.fallen
        if not same:
            self.lost.add(vb)
        elif fallen:
            self.sent_back.add(vb)
        whole = fallen or not given.base
        ended = any(given.base < seqno <= end.seqno for seqno in receiver.ends_of_collections(vb))
        if not whole and (not same or ended or reached is None):
            self.again.append(given)
            return True
        if reached is None:
            raise _on_its_way(given)
        if fallen or not same:
            self.reset.add(vb)
        most = end.seqno if same and not self._whole_snapshots else None
        self._kept.add(vb, 0 if whole else given.base, most)
        return not same or reached >= end.seqno

    def _check_short(self, short: Sequence[Range]) -> None:
        """See that there is nothing for us where vbuckets ended early; not all servers tell that.

        If a history does not have the seqno that it was reported to have, what is missing would
        be reported by nobody later on, so that cannot be passed over.
        """
        now = self._look({each.vbucket for each in short}).positions
        for each in short:
            at = now[each.vbucket]
            if at.history != each.end.history or at.seqno < each.end.seqno:
                raise _on_its_way(each)

    def tables(self) -> Iterator[pa.Table]:
        """The rows."""
        return iter(()) if self._sink is None else self._sink.changes(self._kept)


def _on_its_way(given: Range) -> StreamError:
    return StreamError(
        f"the vbucket did not come to seqno {given.end.seqno}, where it was before",
        vbucket=given.vbucket,
        hint="it is on its way from node to node: read again",
    )


OnReset: TypeAlias = Literal["reset", "fail"]
RESET = "reset"
REQUIRED = (CHANGE_TYPE, KEY, VBUCKET, SEQNO)
"""Without one of these columns nobody can tell what the rows mean."""
_CHANGES_PER_PART = 10_000
"""A part that has less is not worth a task of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spans:
    """What is read between offsets, and how."""

    settings: PartSettings
    schema: pa.Schema  # of the rows: REQUIRED columns, other metadata, and fields of documents
    on_rollback: OnReset = "reset"
    whole_snapshots: bool = False

    @property
    def selection(self) -> Selection:
        """Of which documents the offsets are."""
        return Selection.of(self.settings.spec.scope, self.settings.spec.named)

    def look(self, vbuckets: Collection[int] | None = None) -> Look:
        """Where the bucket is now, or some of its vbuckets."""
        spec = self.settings.spec
        return look_at(
            spec.server_urls,
            spec.bucket,
            spec.auth,
            spec.options,
            spec.tls,
            spec.network,
            vbuckets=vbuckets,
        )

    def ahead(self, start: Offset, look: Look, most: int | None = None) -> Offset:
        """As :meth:`Offset.ahead`."""
        end = start.ahead(look.positions, look.map.uuid, most, self.selection)
        self._refuse_planned(start.ranges_to(end), look)
        return end

    def now(self, look: Look) -> Offset:
        """As :meth:`Offset.now`."""
        return Offset.now(look.positions, look.map.uuid, self.selection)

    def parts(self, start: Offset, end: Offset, look: Look, n: int) -> list[SpanPart]:
        """What is to be read between two offsets, in `n` parts at most, of one node each if it can be."""
        # Who is restarted has not looked ahead from here: nobody has compared anything yet.
        end.check(look.positions, look.map.uuid, self.selection)
        ranges = {each.vbucket: each for each in start.ranges_to(end)}
        self._refuse_planned(ranges.values(), look)
        # Those that nothing is read of count, too: they have a row.
        weights = {vb: Position.at(0, each.changes) for vb, each in ranges.items()}
        total = sum(each.changes for each in ranges.values())
        n = max(1, min(n, -(-total // _CHANGES_PER_PART)))
        return [
            SpanPart(number, share.node, tuple(ranges[vb] for vb in share.vbuckets), end.bucket_uuid, self)
            for number, share in enumerate(shares(replace(look, positions=weights), n))
        ]

    def _refuse_planned(self, ranges: Collection[Range], look: Look) -> None:
        if self.on_rollback == "fail":
            refused = next((each for each in ranges if each.reset), None)
            if refused is not None:
                refuse = _other_history if refused.end.history != refused.start.history else _shorter
                raise refuse(refused, look.map.node_of(refused.vbucket))


def make_spans(
    conn: ServerURLs | Connectable,
    bucket: str | None,
    *,
    auth: Any,
    tls: TLSLike = None,
    network: str = "auto",
    scope: str | None = None,
    collections: str | Sequence[str] | None = None,
    schema: pa.Schema,
    on_conflict: Literal["raise", "null"] = "raise",
    on_rollback: OnReset = "reset",
    whole_snapshots: bool = False,
    transaction_records: Exclusion = "drop",
    options: BucketDataSourceOptions | None = None,
) -> Spans:
    """Check what is to be read."""
    if on_rollback not in ("reset", "fail"):
        raise ConfigurationError(f"on_rollback={on_rollback!r}", hint="choose 'reset' or 'fail'")
    if on_conflict not in ("raise", "null"):
        raise ConfigurationError(
            f"on_conflict={on_conflict!r} is nothing for changes",
            hint="choose 'raise' or 'null': types cannot be widened, since the schema is declared",
        )
    absent = [name for name in REQUIRED if name not in schema.names]
    if absent:
        raise ConfigurationError(
            f"the schema of the changes has no column {absent[0]!r}",
            hint=f"it needs {', '.join(REQUIRED)}, and fields as wanted",
        )
    metadata = [name.removeprefix(OURS) for name in schema.names if name.startswith(OURS)]
    unknown = [name for name in metadata if name not in METADATA_NAMES]
    if unknown:
        raise ConfigurationError(
            f"there is no column '{OURS}{unknown[0]}'",
            hint=f"metadata is: {', '.join(OURS + name for name in METADATA_NAMES)}",
        )
    fields = [each for each in schema if not each.name.startswith(OURS) and each.name != CHANGE_TYPE]
    spec = ScanSpec.of(
        conn,
        bucket,
        auth=auth,
        tls=tls,
        network=network,
        scope=scope,
        collections=collections,
        keys_only=not fields,
        metadata=metadata,
        keys=form_of(schema.field(KEY).type),
        schema=pa.schema(fields) if fields else None,
        on_conflict=on_conflict,
        expired="keep",  # a document that expires comes as a change when the server has removed it
        transaction_records=transaction_records,
        progress=None,
        options=options,
    )
    settings = PartSettings(
        spec=settled(spec),
        agreement=Agreement(Columns(pa.schema([(each.name, pa.null()) for each in fields]))),
        with_secrets=False,
    )
    return Spans(settings=settings, schema=schema, on_rollback=on_rollback, whole_snapshots=whole_snapshots)


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class SpanPart:
    """Some vbuckets of a read between offsets, to be read anywhere."""

    number: int  # from 0
    node: str  # the node that had its vbuckets, or most of them
    ranges: tuple[Range, ...]  # what is to be read
    bucket_uuid: str
    spans: Spans = field(repr=False)

    def __reduce__(self) -> tuple[type[SpanPart], tuple[Any, ...]]:
        self.refuse_secrets()
        return SpanPart, (self.number, self.node, self.ranges, self.bucket_uuid, self.spans)

    def __repr__(self) -> str:
        changes = sum(each.changes for each in self.ranges)
        return f"<SpanPart {self.number}: {changes:,} changes of {len(self.ranges)} vbuckets of {self.node}>"

    def refuse_secrets(self) -> None:
        """Raise what pickling would raise."""
        self.spans.settings.refuse_secrets()

    def read(self) -> Iterator[pa.RecordBatch]:
        """Read it: each change behind the start, none twice, and none behind the end.

        With whole snapshots also what lies behind the end, as far as the server sends it.

        Of a vbucket that is given again, a reset comes first. If its history is the planned one, it is given
        up to the planned end; if not, as far as it goes: the next read, whose offset tells of yet another
        history, gives it once more.
        """
        with ExitStack() as stack:
            first = self._pass(self.ranges, stack)
            reset = {each.vbucket for each in self.ranges if each.reset} | first.reset
            again = [Range(each.vbucket, BEGINNING, each.end) for each in first.again]
            passes = [first]
            if again:
                reset |= {each.vbucket for each in again}
                second = self._pass(again, stack)
                assert not second.again, "it began at the beginning"
                passes.append(second)
            self._refuse(passes)
            tables = [each.tables() for each in passes]
            yield from _resets(sorted(reset), self.spans.schema)
            for each in tables:
                for table in each:
                    yield from _formed(table, self.spans.schema)

    def _pass(self, ranges: Sequence[Range], stack: ExitStack) -> Pass:
        spans = self.spans
        return Pass(
            spans.settings,
            self.bucket_uuid,
            ranges,
            stack,
            look=spans.look,
            whole_snapshots=spans.whole_snapshots,
        )

    def _refuse(self, passes: Sequence[Pass]) -> None:
        if self.spans.on_rollback != "fail":
            return
        lost = set[int]().union(*(each.lost for each in passes))
        sent_back = set[int]().union(*(each.sent_back for each in passes))
        for each in self.ranges:
            # Of one that is at its beginning nothing was given that could be void.
            if each.start.seqno and each.vbucket in lost:
                raise _other_history(each, self.node)
            if each.start.seqno and each.vbucket in sent_back:
                raise _sent_back(each, self.node)


def _resets(vbuckets: Sequence[int], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    if not vbuckets:
        return
    count = len(vbuckets)
    known: Mapping[str, pa.Array] = {
        CHANGE_TYPE: pa.array([RESET] * count),
        VBUCKET: pa.array(vbuckets, pa.uint16()),
        SEQNO: pa.array(np.zeros(count, np.uint64)),
    }
    columns = [known.get(each.name, pa.nulls(count, each.type)).cast(each.type) for each in schema]
    yield pa.RecordBatch.from_arrays(columns, schema=schema)


def _formed(table: pa.Table, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    yield from cast_to(table, schema).to_batches()


def _other_history(given: Range, node: str | None) -> RollbackError:
    return _refusal(
        f"the history that was read to seqno {given.start.seqno} is not the vbucket's any more, "
        f"which was to be read to seqno {given.end.seqno}",
        "a failover lost changes that were given already, or the bucket was emptied",
        given,
        node,
    )


def _shorter(given: Range, node: str | None) -> RollbackError:
    return _refusal(
        f"the vbucket was read to seqno {given.start.seqno}, and its history ends at seqno "
        f"{given.end.seqno} now",
        "the server lost changes that were given already",
        given,
        node,
    )


def _sent_back(given: Range, node: str | None) -> RollbackError:
    return _refusal(
        f"the server does not go on behind seqno {given.start.seqno}, to which the vbucket was read, "
        f"though its history is the same; it was to be read to seqno {given.end.seqno}",
        "deletions behind it were purged before they were given",
        given,
        node,
    )


def _refusal(what: str, why: str, given: Range, node: str | None) -> RollbackError:
    return RollbackError(
        what,
        node=node,
        vbucket=given.vbucket,
        hint=f"{why}: start again with a new checkpoint location and an empty target, or say "
        'on_rollback="reset"',
    )
