"""Bounded reads of changes between two offsets, for engines that keep no more than a small JSON of each.

Such an engine (Spark, for one) asks where the bucket is, stores that :class:`Offset`, and has other processes
read what lies between two offsets (:class:`MicroBatchPart`, each some vbuckets). These processes cannot
report what they met. So an offset holds no snapshot and no failover log, only each vbucket's newest history
and a seqno, and one rule makes up for it: whenever a vbucket is not in the history any more that it was in,
it is delivered again from its beginning.

Less would not be right. Of several versions of a document the server sends the last. So a read to a seqno,
from a vbucket that has gone on meanwhile, may not contain versions at or before that seqno which later
changes had replaced: the next read brings the later ones. If a failover loses those, the older versions
come back to light, *before* the seqno where the next read begins, also where the server's history has
nothing against beginning there. Nobody would ever get them.

Rows are those of a change stream with typed fields, and of one more kind, without a key: ``reset``, all
documents of the vbucket that were delivered before are rolled back. The rows after it are the vbucket from
its beginning. A vbucket is delivered again like that

* where its history is not the planned one any more,
* where the server does not know the place to begin at, or has purged deletions after it,
* where one of its collections was created, emptied or dropped, or the one scope that is read created again:
  of such documents there are no deletions, and their collection's name is gone.

With ``only_persisted`` a new history that contains the offset is no reason. All copies of a vbucket have on
disk what lies before it, and a read takes whole snapshots and waits for the copies: the newer version, for
which one before the offset was left out, is not lost either.

An offset says, too, which scope and collections it is of. Those that are asked for later have documents
before it that were never delivered, and documents of those that are asked for no more would never be deleted.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, SupportsIndex, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cbframe.arrow.column_types import Columns
from cbframe.arrow.columns import KEY, OPCODE, SEQNO, VBUCKET, form_of
from cbframe.arrow.current_rows import CurrentRows
from cbframe.arrow.receivers import DeferringBatchReceiver
from cbframe.cluster.collections_manifest import CollectionsManifest
from cbframe.dcp.persistence import warn_of_few_copies
from cbframe.dcp.positions import ReachedEnds, VBucketMetaData, VBucketOffset, has_place, u64_of
from cbframe.dcp.receiver import Receipt
from cbframe.dcp.survey import BucketState
from cbframe.errors import ClusterMapError, ConfigurationError, ConversionError, RollbackError, StreamError
from cbframe.json.typer import OURS
from cbframe.public import Connectable, ServerURLs
from cbframe.scan.changes import CHANGE_TYPE, CHANGE_TYPES, KIND_OF
from cbframe.scan.names import settled
from cbframe.scan.partition import refuse_secrets, shares
from cbframe.scan.pipeline import Pipeline, Typed, beside
from cbframe.scan.session import Run
from cbframe.scan.shape import cast_to
from cbframe.scan.spec import METADATA_NAMES, ScanSpec
from cbframe.wire.constants import MAX_SEQNO, MAX_VBUCKETS, SystemEventId
from cbframe.wire.messages import FailoverLog, SystemEvent

OnReset: TypeAlias = Literal["reset", "fail"]
RESET = "reset"
REQUIRED = (CHANGE_TYPE, KEY, VBUCKET, SEQNO)
"""Without one of these columns nobody can tell what the rows mean."""
BEGINNING = VBucketOffset()
_CHANGES_PER_PART = 10_000
"""A part that has less is not worth a task of its own."""
_HINT = "offsets belong to the stream that wrote them: take a new checkpoint location"


# --- offsets


class Selection(NamedTuple):
    """Of which documents an offset is."""

    scope: str | None = None  # the name that was asked for; None if none was
    collections: tuple[str, ...] | None = None  # the names that were asked for, sorted; None if none were

    @classmethod
    def of(cls, scope: str | None, collections: Iterable[str] | None) -> Selection:
        """Whatever order the names come in."""
        return cls(scope, None if collections is None else tuple(sorted({*collections})))

    def __str__(self) -> str:
        names = None if self.collections is None else ", ".join(self.collections)
        choices = [("scope", self.scope), ("collections", names)]
        return (
            " and ".join(f"{what} {name!r}" for what, name in choices if name is not None)
            or "all collections"
        )


ALL = Selection()


class Range(NamedTuple):
    """The changes of one vbucket after `start`, up to `end`."""

    vbucket: int
    start: VBucketOffset
    end: VBucketOffset

    def carried(self, now: VBucketOffset) -> Range:
        """The same, with the start in the history of the end, if the newest history contains both."""
        start, end, log = self.start, self.end, now.failover_log
        if not all(has_place(log, at.history, at.seqno) for at in (start, end)):
            return self
        if end.seqno <= start.seqno:
            # A replica that is built again has less for a while.
            return Range(self.vbucket, start, start)
        end = _on_disk(log, end.seqno)
        return Range(self.vbucket, VBucketOffset.at(end.history, start.seqno), end)

    @property
    def reset(self) -> bool:
        """Whether what was delivered before is rolled back: then all up to `end` is, not only what is new."""
        return bool(self.start.seqno) and (
            self.end.history != self.start.history or self.end.seqno < self.start.seqno
        )

    @property
    def base(self) -> int:
        """After which seqno it is read."""
        return 0 if self.reset else self.start.seqno

    @property
    def changes(self) -> int:
        """As many rows as there can be at most; one of them may be the reset."""
        return self.end.seqno - self.base + self.reset


@dataclass(frozen=True, slots=True)
class Offset:
    """How far all vbuckets are."""

    bucket_uuid: str = ""  # of the bucket; empty if none was looked at
    marks: Mapping[int, VBucketOffset] = field(default_factory=dict)
    turn: int = 0  # the vbucket from which on the next read takes what there is, if reads are limited
    initial: bool = False
    began: Mapping[int, VBucketOffset] | None = None
    selection: Selection = ALL

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: vbuuid and seqno by vbucket, as text, since many readers lose digits."""
        found: dict[str, Any] = {"bucket_uuid": self.bucket_uuid, **_plain(self.marks)}
        if self.turn:
            found["turn"] = self.turn
        if self.initial:
            found["initial"] = True
        if self.began is not None:
            found["began"] = _plain(self.began)
        if self.selection.scope is not None:
            found["scope"] = self.selection.scope
        if self.selection.collections is not None:
            found["collections"] = [*self.selection.collections]
        return found

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Offset:
        """Read what :meth:`to_dict` returned; nothing is the beginning."""
        if not isinstance(fields, Mapping):
            raise ConfigurationError(f"an offset is a {type(fields).__name__}, and no object", hint=_HINT)
        rest = dict(fields)
        ours = ("bucket_uuid", "turn", "initial", "began", "scope", "collections")
        uuid, turn, initial, began, scope, collections = (rest.pop(name, None) for name in ours)
        _check("bucket_uuid", uuid is None or isinstance(uuid, str))
        _check("turn", turn is None or (type(turn) is int and 0 <= turn < MAX_VBUCKETS))
        _check("initial", initial is None or isinstance(initial, bool))
        _check("began", began is None or isinstance(began, Mapping))
        _check("scope", scope is None or isinstance(scope, str))
        names = collections if isinstance(collections, list) else [collections]
        _check("collections", collections is None or all(isinstance(name, str) for name in names))
        return cls(
            uuid or "",
            _marks(rest),
            turn or 0,
            bool(initial),
            None if began is None else _marks(began, "began."),
            Selection.of(scope, None if collections is None else names),
        )

    def ahead(
        self,
        positions: Mapping[int, VBucketOffset],  # the newest history and the high seqno of every vbucket
        bucket_uuid: str,
        most: int | None = None,
        selection: Selection = ALL,  # what is asked for
        carries: bool = False,
    ) -> Offset:
        """The offset that is to be read to, when the bucket is at `positions`."""
        self.check(positions, bucket_uuid, selection)
        marks = {vb: self.marks.get(vb, BEGINNING) for vb in sorted(positions)}
        left = MAX_SEQNO if most is None else most
        order = sorted(positions, key=lambda vb: (vb < self.turn, vb))
        turn = 0
        for at, vb in enumerate(order):
            wanted = Range(vb, marks[vb], positions[vb])
            wanted = wanted.carried(positions[vb]) if carries else wanted
            if not wanted.changes:
                # An empty vbucket with a new history has nothing to deliver, and no more had the old one.
                continue
            if wanted.changes > left:
                # The next one's turn, however much is left of this one: or who writes much would be
                # the only one to be read. One that had nothing keeps its turn.
                turn = order[(at + 1) % len(order)] if left else vb
                if left:
                    marks[vb] = VBucketOffset.at(wanted.end.history, wanted.base + left - wanted.reset)
                break
            marks[vb] = wanted.end
            left -= wanted.changes
        if marks == {vb: self.marks.get(vb, BEGINNING) for vb in marks} and self.marks:
            return self
        began = dict(self.marks) if self.initial else None
        return Offset(bucket_uuid, marks, turn, began=began, selection=selection)

    def check(
        self, positions: Mapping[int, VBucketOffset], bucket_uuid: str, selection: Selection = ALL
    ) -> None:
        """See that it is of this bucket and of these collections."""
        self._check_selection(selection)
        other = self.bucket_uuid and bucket_uuid and bucket_uuid != self.bucket_uuid
        if other or (self.marks and self.marks.keys() != positions.keys()):
            error = ClusterMapError(
                "it is not the bucket that the checkpoint is of: that was deleted and created again, or is "
                "of another cluster",
                fault="other bucket",
                hint="nothing that was delivered before belongs to it: take a new checkpoint location, and "
                "an empty target",
            )
            error.permanent = True
            raise error

    def _check_selection(self, selection: Selection) -> None:
        if self.marks and self.selection != selection:
            raise ConfigurationError(
                f"the checkpoint is of {self.selection}, and {selection} is asked for",
                hint="the scope and collections of a checkpoint cannot change: ask for the same, or take a "
                "new checkpoint location and an empty target",
            )

    def ranges_to(self, end: Offset, now: Mapping[int, VBucketOffset] | None = None) -> list[Range]:
        """What is to be read between this offset and a later one; carried, if the histories of `now` do."""
        self._check_selection(end.selection)
        if end.initial:
            # Nothing had come since the beginning that this is.
            return []
        before = self.marks if end.began is None else end.began
        found = [Range(vb, before.get(vb, BEGINNING), mark) for vb, mark in end.marks.items()]
        if now is not None:
            found = [each.carried(now[each.vbucket]) for each in found]
        return [each for each in found if each.start != each.end and each.changes]

    @classmethod
    def now(
        cls, positions: Mapping[int, VBucketOffset], bucket_uuid: str, selection: Selection = ALL
    ) -> Offset:
        """The initial offset of who wants only what comes from now on."""
        marks = {vb: _on_disk(at.failover_log, at.seqno) for vb, at in sorted(positions.items())}
        return cls(bucket_uuid, marks, initial=True, selection=selection)


def _on_disk(log: tuple[tuple[int, int], ...], seqno: int) -> VBucketOffset:
    """A place up to which all disks have everything, in the newest history of which that is true, too."""
    history = next((vbuuid for vbuuid, began in log if began < seqno), log[0][0] if log else 0)
    return VBucketOffset.at(history, seqno)


def _plain(marks: Mapping[int, VBucketOffset]) -> dict[str, list[str]]:
    return {str(vb): [str(at.history), str(at.seqno)] for vb, at in sorted(marks.items())}


def _marks(fields: Mapping[Any, Any], prefix: str = "") -> dict[int, VBucketOffset]:
    found = {}
    for name, mark in fields.items():
        try:
            number = u64_of(name)
            vbuuid, seqno = map(u64_of, mark if isinstance(mark, list | tuple) else ())
        except ValueError:
            number = MAX_VBUCKETS
        _check(f"{prefix}{name}", number < MAX_VBUCKETS)
        found[number] = VBucketOffset.at(vbuuid, seqno)
    return found


def _check(name: str, holds: bool) -> None:
    if not holds:
        raise ConfigurationError(f"the field {name!r} of an offset cannot be read", hint=_HINT)


# --- the driver: what is to be read


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatchReader:
    """What is read between offsets, and how."""

    spec: ScanSpec
    agreed: Columns  # the fields of its documents, whose types are declared
    schema: pa.Schema  # of the rows: REQUIRED columns, other metadata, and fields of documents
    on_rollback: OnReset = "reset"
    whole_snapshots: bool = False

    @property
    def selection(self) -> Selection:
        """Of which documents the offsets are."""
        return Selection.of(self.spec.scope, self.spec.named)

    def look(self) -> BucketState:
        """Where the bucket is now."""
        found = self.spec.look(None, persisted=self.spec.options.only_persisted)
        if self.spec.options.only_persisted:
            warn_of_few_copies(found.map)
        return found

    def ahead(self, start: Offset, look: BucketState, most: int | None = None) -> Offset:
        """As :meth:`Offset.ahead`."""
        carries = self.spec.options.only_persisted
        end = start.ahead(look.positions, look.map.uuid, most, self.selection, carries=carries)
        self._refuse_planned(start.ranges_to(end, look.positions if carries else None), look)
        return end

    def now(self, look: BucketState) -> Offset:
        """As :meth:`Offset.now`."""
        return Offset.now(look.positions, look.map.uuid, self.selection)

    def parts(self, start: Offset, end: Offset, look: BucketState, n: int) -> list[MicroBatchPart]:
        """What is to be read between two offsets, in `n` parts at most, of one node each if it can be."""
        # Who is restarted has not looked ahead from here: nobody has compared anything yet.
        end.check(look.positions, look.map.uuid, self.selection)
        now = look.positions if self.spec.options.only_persisted else None
        ranges = {each.vbucket: each for each in start.ranges_to(end, now)}
        self._refuse_planned(ranges.values(), look)
        # Those that nothing is read of count, too: they have a row.
        weights = {vb: VBucketOffset.at(0, each.changes) for vb, each in ranges.items()}
        total = sum(each.changes for each in ranges.values())
        n = max(1, min(n, -(-total // _CHANGES_PER_PART)))
        return [
            MicroBatchPart(
                number, share.node, tuple(ranges[vb] for vb in share.vbuckets), end.bucket_uuid, self
            )
            for number, share in enumerate(shares(replace(look, positions=weights), n))
        ]

    def _refuse_planned(self, ranges: Collection[Range], look: BucketState) -> None:
        if self.on_rollback == "fail":
            refused = next((each for each in ranges if each.reset), None)
            if refused is not None:
                other = refused.end.history != refused.start.history
                node = look.map.node_of(refused.vbucket)
                raise _refusal("other history" if other else "shorter", refused, node)


def micro_batch_reader(
    conn: ServerURLs | Connectable,
    bucket: str | None,
    *,
    schema: pa.Schema,
    on_conflict: Literal["raise", "null"] = "raise",
    on_rollback: OnReset = "reset",
    whole_snapshots: bool = False,
    **arguments: Any,  # others of scan_bucket()
) -> MicroBatchReader:
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
        keys_only=not fields,
        metadata=metadata,
        keys=form_of(schema.field(KEY).type),
        schema=pa.schema(fields) if fields else None,
        on_conflict=on_conflict,
        expired="keep",  # a document that expires comes as a change when the server has removed it
        progress=None,
        **arguments,
    )
    agreed = Columns.of_schema(pa.schema([(each.name, pa.null()) for each in fields]))
    return MicroBatchReader(
        spec=settled(spec),
        agreed=agreed,
        schema=schema,
        on_rollback=on_rollback,
        whole_snapshots=whole_snapshots,
    )


# --- a worker: reading it


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class MicroBatchPart:
    """Some vbuckets of a read between offsets, to be read anywhere."""

    number: int  # from 0
    node: str  # the node that had its vbuckets, or most of them
    ranges: tuple[Range, ...]  # what is to be read
    bucket_uuid: str
    reader: MicroBatchReader = field(repr=False)

    def __reduce_ex__(self, protocol: SupportsIndex) -> str | tuple[Any, ...]:
        self.refuse_secrets()
        return object.__reduce_ex__(self, protocol)

    def __repr__(self) -> str:
        changes = sum(each.changes for each in self.ranges)
        vbuckets = f"{len(self.ranges)} vbuckets of {self.node}"
        return f"<MicroBatchPart {self.number}: {changes:,} changes of {vbuckets}>"

    def refuse_secrets(self) -> None:
        """Raise what pickling would raise."""
        refuse_secrets(self.reader.spec)

    def read(self) -> Iterator[pa.RecordBatch]:
        """Read it: each change after the start, none twice, and none after the end.

        With whole snapshots also what lies after the end, as far as the server sends it.

        Of a vbucket that is delivered again, a reset comes first. If its history is the planned one, it is
        delivered up to the planned end; if not, as far as it goes: the next read, whose offset has yet
        another history, delivers it once more.
        """
        reader, schema = self.reader, self.reader.schema
        with ExitStack() as stack:
            first = Pass(reader, self.bucket_uuid, self.ranges, stack)
            reset = {each.vbucket for each in self.ranges if each.reset} | first.reset
            again = [Range(each.vbucket, BEGINNING, each.end) for each in first.again]
            passes = [first]
            if again:
                reset |= {each.vbucket for each in again}
                second = Pass(reader, self.bucket_uuid, again, stack)
                assert not second.again, "it began at the beginning"
                passes.append(second)
            self._refuse(passes)
            tables = [each.tables() for each in passes]
            if reset:
                yield _resets(sorted(reset), schema)
            for each in tables:
                for table in each:
                    yield from cast_to(table, schema).to_batches()

    def _refuse(self, passes: Sequence[Pass]) -> None:
        if self.reader.on_rollback != "fail":
            return
        other_history = set[int]().union(*(each.other_history for each in passes))
        rolled_back = set[int]().union(*(each.rolled_back for each in passes))
        for each in self.ranges:
            # Of one that is at its beginning nothing was delivered that could be rolled back.
            if each.start.seqno and each.vbucket in other_history:
                raise _refusal("other history", each, self.node)
            if each.start.seqno and each.vbucket in rolled_back:
                raise _refusal("rolled back", each, self.node)


def _resets(vbuckets: Sequence[int], schema: pa.Schema) -> pa.RecordBatch:
    count = len(vbuckets)
    known: Mapping[str, pa.Array] = {
        CHANGE_TYPE: pa.array([RESET] * count),
        VBUCKET: pa.array(vbuckets, pa.uint16()),
        SEQNO: pa.array(np.zeros(count, np.uint64)),
    }
    columns = [known.get(each.name, pa.nulls(count, each.type)).cast(each.type) for each in schema]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


class Pass:
    """One run over some vbuckets, and what is to be said of each."""

    def __init__(
        self, reader: MicroBatchReader, bucket_uuid: str, ranges: Sequence[Range], stack: ExitStack
    ) -> None:
        self._reader = reader
        self.reset: set[int] = set()
        self.again: list[Range] = []
        self.other_history: set[int] = set()
        self.rolled_back: set[int] = set()
        self._sink: MicroBatchSink | None = None
        # A vbucket that has nothing but a new history is not asked.
        some = [each for each in ranges if each.end.seqno]
        if not some:
            return
        ends = {each.vbucket: each.end.seqno for each in some}
        spec = reader.spec
        options = replace(spec.options, out_of_order=False)
        run = Run(
            replace(spec, vbuckets=tuple(ends), options=options),
            bounded=True,
            bucket_uuid=bucket_uuid,
            ends=ReachedEnds(ends),
        )
        receiver = MicroBatchReceiver(run.names.wire_metadata, run.options.max_body_bytes)
        starts = {each.vbucket: each.start if each.base else BEGINNING for each in some}
        of_scope = spec.scope is not None and spec.collections is None
        receiver.begin(starts, of_scope=of_scope, persisted=spec.options.only_persisted)
        agreed = reader.agreed
        sink = MicroBatchSink(spec, run.names, receiver, agreed, bounded=True, of_changes=True)
        stack.callback(sink.close)
        sink.stop_at({} if reader.whole_snapshots or spec.options.only_persisted else ends)
        ran = run.into(receiver, sink)
        self._sink = sink
        short = []
        for each in some:
            _, reached = ran.as_of.get(each.vbucket, (0, sink.reached(each.vbucket)))
            if not self._judge(each, receiver, sink, reached):
                short.append(each)
        if short:
            self._check_short(short)

    def _judge(
        self, planned: Range, receiver: MicroBatchReceiver, sink: MicroBatchSink, reached: int | None
    ) -> bool:
        """Decide what is delivered of a vbucket; whether it reached the reported end of its history."""
        vb, end = planned.vbucket, planned.end
        # A vbucket that is empty now is not asked: then its history is another one, too.
        same = receiver.has(vb, end)
        rolled_back = vb in receiver.rolled_back
        if not same:
            self.other_history.add(vb)
        elif rolled_back:
            self.rolled_back.add(vb)
        whole = rolled_back or not planned.base
        ended = any(planned.base < seqno <= end.seqno for seqno in receiver.ended_at(vb))
        if not whole and (not same or ended or reached is None):
            self.again.append(planned)
            return True
        if reached is None:
            raise _on_its_way(planned)
        if rolled_back or not same:
            self.reset.add(vb)
        exact = same and not self._reader.whole_snapshots
        sink.deliver(vb, 0 if whole else planned.base, end.seqno if exact else None)
        return not same or reached >= end.seqno

    def _check_short(self, short: Sequence[Range]) -> None:
        """See that there is nothing for us where vbuckets ended early; not all servers report that."""
        # If a history does not have the seqno that it was reported to have, what is missing would be reported
        # by nobody later on, so that cannot be passed over.
        now = self._reader.spec.look({each.vbucket for each in short}).positions
        for each in short:
            at = now[each.vbucket]
            other = at.history != each.end.history and not self._reader.spec.options.only_persisted
            if other or at.seqno < each.end.seqno:
                raise _on_its_way(each)

    def tables(self) -> Iterator[pa.Table]:
        """The rows."""
        return iter(()) if self._sink is None else self._sink.changes()


class MicroBatchReceiver(DeferringBatchReceiver):
    """Gathers changes after some positions."""

    __slots__ = ("_logs", "_of_scope", "_persisted", "_scopes", "_starts", "rolled_back")

    rolled_back: set[int]  # vbuckets that the server rolled back: they were read from their beginning then

    def begin(self, starts: Mapping[int, VBucketOffset], *, of_scope: bool, persisted: bool) -> None:
        """Begin there; call it before anything is received."""
        self.rolled_back = set()
        self._starts = starts
        self._persisted = persisted
        self._of_scope = of_scope
        self._scopes: list[tuple[int, int]] = []
        self._logs: dict[int, FailoverLog] = {}
        for vbucket, position in starts.items():
            # It is not known in which snapshot the seqno lay. The server takes it for the end of one,
            # which it need not have been: that is why a new history means a reset in any case.
            self.read_from(vbucket, position)

    # -- on the threads of the nodes

    def rollback(self, vbucket: int, seqno: int) -> VBucketOffset:
        start = self._starts[vbucket]
        if self._persisted and 0 < start.seqno <= seqno:
            return self.read_from(vbucket, start)
        self.rolled_back.add(vbucket)
        return DeferringBatchReceiver.rollback(self, vbucket, seqno)

    def store(self, vbucket: int, metadata: VBucketMetaData) -> None:
        DeferringBatchReceiver.store(self, vbucket, metadata)
        if metadata.failover_log:
            self._logs[vbucket] = metadata.failover_log

    def system_event(self, vbucket: int, event: SystemEvent) -> None:
        DeferringBatchReceiver.system_event(self, vbucket, event)
        if self._of_scope and event.event == SystemEventId.CREATE_SCOPE:
            # It may have the name of another that was dropped: of that one's end nothing is sent.
            self._scopes.append((vbucket, event.seqno))

    # -- afterwards

    def ended_at(self, vbucket: int) -> list[int]:
        """Seqnos at which collections of a vbucket, or their scope, were created, emptied or dropped."""
        scopes = [seqno for vb, seqno in self._scopes if vb == vbucket]
        return DeferringBatchReceiver.ended_at(self, vbucket) + scopes

    def has(self, vbucket: int, end: VBucketOffset) -> bool:
        """Whether a vbucket has the planned history, or only the end of it, as the server last reported."""
        log = self._logs.get(vbucket, ())
        return has_place(log if self._persisted else log[:1], end.history, end.seqno)


class MicroBatchSink(Pipeline):
    """Takes the changes of one run to disk."""

    _receiver: MicroBatchReceiver

    def stop_at(self, ends: Mapping[int, int]) -> None:
        """Have enough once all vbuckets are there, whatever more the server would send; never, if none."""
        self._ends = dict(ends)
        self._vbs = np.array([*ends], np.int64)
        self._goals = np.array([*ends.values()], np.uint64)
        self._seqno = np.zeros(MAX_VBUCKETS, np.uint64)
        self._number = np.zeros(MAX_VBUCKETS, np.int64)
        # Nothing of a vbucket is delivered unless deliver() says so.
        self._base = np.full(MAX_VBUCKETS, MAX_SEQNO, np.uint64)
        self._most = np.zeros(MAX_VBUCKETS, np.uint64)

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
        """How far a vbucket came; None if that was rolled back, or is not as far as it was to come."""
        seqno = int(self._seqno[vbucket])
        if vbucket not in self._ends or seqno < self._ends[vbucket]:
            return None
        return seqno if self._number[vbucket] >= self._receiver.rolled_back_before[vbucket] else None

    def deliver(self, vbucket: int, base: int, most: int | None) -> None:
        """Deliver the changes of a vbucket after `base`, up to `most` or to where it ends."""
        self._base[vbucket] = base
        self._most[vbucket] = MAX_SEQNO if most is None else most

    def changes(self) -> Iterator[pa.Table]:
        """Rows that count, in the order of each vbucket: what happened, metadata, fields."""
        manifest = self.complete()
        current = CurrentRows(self.heads(), self._receiver, versions=True)

        def mask(number: int, heads: pa.RecordBatch) -> npt.NDArray[np.bool_]:
            vbucket, seqno = heads.column(VBUCKET).to_numpy(), heads.column(SEQNO).to_numpy()
            wanted: npt.NDArray[np.bool_] = (seqno > self._base[vbucket]) & (seqno <= self._most[vbucket])
            return wanted & current.mask(number, heads)

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
            kinds = KIND_OF[raw[OPCODE].to_numpy()]
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


# --- errors


def _on_its_way(planned: Range) -> StreamError:
    return StreamError(
        f"the vbucket did not come to seqno {planned.end.seqno}, where it was before",
        vbucket=planned.vbucket,
        hint="it is being moved to another node: read again",
    )


def _refusal(
    kind: Literal["other history", "shorter", "rolled back"], planned: Range, node: str | None
) -> RollbackError:
    """Why a vbucket would be delivered again, where that is refused."""
    start, end = planned.start.seqno, planned.end.seqno
    match kind:
        case "other history":
            what = (
                f"the history that was read to seqno {start} is not the vbucket's any more, "
                f"which was to be read to seqno {end}"
            )
            why = "a failover lost changes that were delivered already, or the bucket was flushed"
        case "shorter":
            what = f"the vbucket was read to seqno {start}, and its history ends at seqno {end} now"
            why = "the server lost changes that were delivered already"
        case "rolled back":
            what = (
                f"the server does not go on after seqno {start}, to which the vbucket was read, "
                f"though its history is the same; it was to be read to seqno {end}"
            )
            why = "deletions after it were purged before they were delivered"
    hint = f"{why}: start again with a new checkpoint location and an empty target, or say "
    return RollbackError(what, node=node, vbucket=planned.vbucket, hint=hint + 'on_rollback="reset"')
