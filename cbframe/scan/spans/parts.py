"""Bounded reads of changes between two offsets, by other processes: each some vbuckets.

What :mod:`cbframe.scan.spans.offsets` plans is read here. Rows are those of a change stream with typed
fields. One more kind of row, without a key, says what no other could: ``reset``, all documents of the
vbucket are void that were given before. The rows behind it are the vbucket from its beginning.

A vbucket is given again like that where its history is not the planned one any more, where the server does
not know of the place to begin at or has purged deletions behind it, and where one of its collections was
created, emptied or dropped, or the one scope that is read created again: of such documents there are no
deletions, and their collection's name is gone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa

from cbframe.arrow.columns import KEY, SEQNO, VBUCKET
from cbframe.arrow.documents.unify import Columns
from cbframe.arrow.keys import form_of
from cbframe.cluster.tls import TLSLike
from cbframe.dcp.look import Look, look_at
from cbframe.dcp.positions import Position
from cbframe.errors import ConfigurationError, RollbackError
from cbframe.json.typer import OURS
from cbframe.options import BucketDataSourceOptions
from cbframe.scan.agreed import Agreement
from cbframe.scan.changes import CHANGE_TYPE
from cbframe.scan.divide import shares
from cbframe.scan.names import settled
from cbframe.scan.partition import PartSettings
from cbframe.scan.shape import cast_to
from cbframe.scan.spans.offsets import BEGINNING, Offset, Range, Selection
from cbframe.scan.spans.passes import Pass
from cbframe.scan.spec import METADATA_NAMES, Exclusion, ScanSpec
from cbframe.typing import Connectable, ServerURLs

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
