"""Runs a scan once: into a table, into one table for each kind of document, or into record batches.

A :class:`Run` starts the source, hands what the node threads gather to a pipeline, and ends with the
positions that were reached. A :class:`ReadSession` makes a result of that.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from time import monotonic
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cbframe import core
from cbframe.arrow.column_types import Columns
from cbframe.arrow.columns import DATATYPE, SEQNO, VBUCKET, is_json
from cbframe.arrow.current_rows import LeftOut
from cbframe.arrow.filters import unknown
from cbframe.arrow.receivers import DeferringBatchReceiver
from cbframe.cluster.cluster_map import ClusterMap
from cbframe.cluster.connection_string import parse_connection_string
from cbframe.dcp.persistence import warn_of_few_copies
from cbframe.dcp.positions import ReachedEnds, VBucketOffset, has_place
from cbframe.dcp.source import BucketDataSource
from cbframe.dcp.stats import BucketDataSourceStats
from cbframe.errors import ConfigurationError, ReadTimeoutError, RollbackError, StreamError
from cbframe.json.layout import Path, path_of
from cbframe.json.typer import VALUE, Documents, texts_at, typed
from cbframe.scan.names import Names, described
from cbframe.scan.pipeline import DocumentTables, Pipeline, beside
from cbframe.scan.progress import Pace, ScanProgress, Watcher, teller_of
from cbframe.scan.result import AsOf, Moment, ReadResult, utc_now
from cbframe.scan.shape import Outcome, keys_at, lacking
from cbframe.scan.spec import Consistency, ScanSpec, paths_of, positive
from cbframe.wire.messages import FailoverLog

_POLL = 0.1
"""Seconds after which it is looked whether the source is over, while nothing arrives."""
_PROGRESS_EVERY = 0.1
_AT_ONCE = 2 << 20
"""Bytes of documents that are worth waking up for; no more than an eighth of what a node may send ahead."""
_KEPT = 60.0
"""Seconds for which a connection is kept that nothing is said on: routers and nodes forget such ones."""
_GROWTH = 8
"""How many more vbuckets each time, until a look has found enough."""
_FEW = 8
"""Documents of a vbucket on average up to which a look takes all others next: they cost less than turns."""
_SAMPLED = 4
"""Vbuckets that a sample is of, at least."""
_SPARE = 1 << 16
"""Rows that a sample keeps besides those that are wanted, until it sorts them."""
_RANK = "\0rank"
_MOST = 1000
"""Tables; who asks for more has named a field that tells documents apart, not their kinds."""


@dataclass(frozen=True, slots=True)
class Pins:
    """Where vbuckets are to be read to."""

    as_of: AsOf  # history and seqno of each vbucket when the parts were made
    bucket_uuid: str  # of the bucket that they are of
    consistency: Consistency
    moment: Moment | None = None  # by when documents have expired; None if none is left out for that

    def check(self, reached: Mapping[int, tuple[int, int]], receiver: DeferringBatchReceiver) -> None:
        """Compare with what a read reached."""
        if self.consistency != "strict":
            return
        lost = [vb for vb in self.as_of if not self._has(vb, reached[vb], receiver.failover_log(vb))]
        if lost:
            raise RollbackError(
                f"the history of {len(lost)} vbuckets is not that of the partitions any more",
                vbucket=lost[0],
                hint="make the partitions again, or accept it with consistency='snapshot'",
            )
        past = [vb for vb, (_, seqno) in self.as_of.items() if reached[vb][1] > seqno]
        if past:
            error = StreamError(
                f"{len(past)} vbuckets were written to since the partitions were made",
                vbucket=past[0],
                hint="the older versions are gone from the server: make the partitions again, or accept "
                "the newer ones with consistency='snapshot'",
            )
            error.permanent = True
            raise error

    def _has(self, vb: int, reached: tuple[int, int], log: FailoverLog) -> bool:
        """Whether what was read contains the pinned moment: certainly, or it counts as another history."""
        vbuuid, seqno = self.as_of[vb]
        if not seqno:
            return True
        if reached[1] < seqno:
            return False
        if reached[0] == vbuuid:
            return True
        if not log or log[0].vbuuid != reached[0]:
            return False
        return has_place(log, vbuuid, seqno)


@dataclass(frozen=True, slots=True)
class Ran:
    """A run that reached its end."""

    as_of: AsOf  # what was read is as of this; empty if the run was only a look at some documents
    stats: BucketDataSourceStats  # counters of the connections
    map: ClusterMap  # the bucket as it was at the end
    moment: Moment | None  # by when documents have expired; None if none is left out for that
    node_time: int | None


class Run:
    """One run, not started yet."""

    def __init__(
        self,
        target: ScanSpec,
        *,
        bounded: bool = False,
        bucket_uuid: str = "",  # refuse a bucket of the name with another uuid; empty to take any
        ends: ReachedEnds | None = None,
        first_map: ClusterMap | None = None,  # the cluster map, where one was fetched a moment ago
        moment: Moment | None = None,
        ask_time: bool = False,  # ask the nodes what time it is, also where no document is left out for that
        skip_first_deletions: bool = False,
    ) -> None:
        self._began = monotonic()
        self._time = utc_now()
        self._moment = moment
        self._bucket_uuid = bucket_uuid
        self._target = target
        self._tell = teller_of(target.progress)
        self._pace = Pace()
        self._reached = 0
        self.source: BucketDataSource | None = None
        """What runs at present."""
        # Some documents have no position that could be compared.
        strict = "strict" in (target.consistency, target.options.consistency) and target.n_rows is None
        options = replace(
            target.options,
            feed_buffer_size_bytes=target.window(bounded=bounded),
            seq_end="now" if ends is None else ends,
            no_value=target.keys_only,
            consistency="strict" if strict else "snapshot",
            ask_time=ask_time or (target.expired == "drop" and moment is None),
            skip_first_deletions=skip_first_deletions or target.options.skip_first_deletions,
            include_xattrs=target.options.include_xattrs or "xattrs" in target.metadata,
        )
        self.names = Names(target, options)
        self._asked = ExitStack()
        """Closes the connection that was asked for names; it is asked again at the end."""
        weakref.finalize(self, self._asked.close)
        try:
            self.options = self.names.resolve_collections(self._asked)
        except BaseException:  # Ctrl-C, too: no connection is left open, and it is raised again
            self._asked.close()
            raise
        self._map = first_map or self.names.map

    @property
    def seconds(self) -> float:
        """Since it was made."""
        return monotonic() - self._began

    @property
    def moment(self) -> Callable[[], int] | None:
        """Tells by when documents have expired, in seconds since the epoch; None if none is left out."""
        return (lambda: self._decided().seconds) if self._target.expired == "drop" else None

    def _decided(self) -> Moment:
        """One moment for all of the read: that of the nodes, if the first to send documents reported one."""
        if self._moment is None:
            self._moment = Moment.of(None if self.source is None else self.source.node_time)
        return self._moment

    def into(self, receiver: DeferringBatchReceiver, sink: Pipeline) -> Ran:
        """Run to the end."""
        core.warn_of_reference()
        try:
            ran = self._into(receiver, sink)
            if self.seconds < _KEPT:
                self.names.look_again()
            return ran
        finally:
            self.source = None
            self._asked.close()
            if isinstance(self._tell, Watcher):
                self._tell.end()

    def _into(self, receiver: DeferringBatchReceiver, sink: Pipeline) -> Ran:
        positions: dict[int, VBucketOffset] = {}
        parts = _parts(self._target)
        vbuckets = next(parts)
        if self._target.n_rows is None:
            receiver.wake_at(min(_AT_ONCE, self.options.feed_buffer_size_bytes // 8 or _AT_ONCE))
        while True:
            source = self.source = self._target.data_source(
                receiver, self.options, vbuckets=vbuckets, bucket_uuid=self._bucket_uuid, first_map=self._map
            )
            if isinstance(self._tell, Watcher):
                self._tell.begin(source)
            # Not a with block: Ctrl-C may come while the threads are being started.
            try:
                source.on_finished = receiver.wake
                source.start()
                # pyarrow imports pandas with its first array: while nodes are waited for, it costs no time.
                import_module("pandas")
                complete = self._gather(source, receiver, sink)
                if complete:
                    source.wait(0)
                positions |= source.as_of
                stats = source.stats()
                moment = self._decided() if self._target.expired == "drop" else None
            finally:
                source.close()
            self._map = found = source.map
            assert found is not None, "documents came"
            if not complete or sink.has_enough():
                break
            try:
                vbuckets = parts.send((found.vbuckets, stats.total.documents))
            except StopIteration:
                break
        if self.options.only_persisted:
            warn_of_few_copies(found)
        # A look at some documents is not as of anything.
        as_of = AsOf.of(positions, self._time) if self._target.n_rows is None else AsOf({})
        return Ran(as_of, stats, found, moment, source.node_time)

    def _gather(self, source: BucketDataSource, receiver: DeferringBatchReceiver, sink: Pipeline) -> bool:
        """Take what comes, until the source is complete or there is enough; whether it is complete."""
        shown = self._began
        while True:
            finished = source.finished
            sink.add(receiver.take(0 if finished else _POLL))
            now = monotonic()
            if finished or now - shown >= _PROGRESS_EVERY:
                shown = now
                sink.foresee(source.progress)
                if self._tell is not None:
                    self._tell(self._progress(source, now - self._began))
            if finished or sink.has_enough():
                return finished
            timeout = self._target.timeout
            if timeout is not None and now - self._began > timeout:
                raise self._too_slow(source, receiver)

    def _progress(self, source: BucketDataSource, seconds: float) -> ScanProgress:
        # Of a stream that has just ended nothing is known for a moment.
        reached, total = source.progress()
        reached = self._reached = max(reached, self._reached)
        stats = source.stats()
        left = self._pace.add(seconds, reached, total, stats.total.tot_upr_stream_req)
        return ScanProgress(
            stats.total.documents,
            stats.total.bytes_received,
            reached,
            total,
            stats.vbuckets_done,
            stats.vbuckets,
            seconds,
            left if self._target.n_rows is None else None,
        )

    def _too_slow(self, source: BucketDataSource, receiver: DeferringBatchReceiver) -> ReadTimeoutError:
        stats, problem, timeout = source.stats(), receiver.last_error, self._target.timeout
        if problem is not None and not stats.total.documents:
            # It never got to its documents: what is in the way comes first.
            error = ReadTimeoutError(
                f"{problem.message}; the read was given up after {timeout:g} s",
                node=problem.node or _unfinished(source, self._target),
                vbucket=problem.vbucket,
                hint=problem.hint,
            )
        else:
            shown = "" if problem is None else f"; last problem: {problem.message}"
            hint = "raise timeout=, or read fewer vbuckets or collections"
            if self.options.only_persisted and stats.vbuckets_done == stats.vbuckets > 0:
                shown = f", and not all that was read of them is on the disks of all copies{shown}"
                hint = "try again when all replicas are back and write to disk, or leave only_persisted out"
            error = ReadTimeoutError(
                f"the read is not complete after {timeout:g} s: "
                f"{stats.vbuckets_done} of {stats.vbuckets or '?'} vbuckets{shown}",
                node=_unfinished(source, self._target) or (None if problem is None else problem.node),
                hint=hint,
            )
        error.__cause__ = problem
        return error


def _parts(target: ScanSpec) -> Generator[tuple[int, ...] | None, tuple[int, int], None]:
    """The vbuckets to read, one part after the other: all at once, unless some documents are enough.

    Then a few at first, and more if they have too little: it is sent how many vbuckets the bucket has, and
    how many documents came from the part before.
    """
    if target.n_rows is None:
        yield target.vbuckets
        return
    part = (0,) if target.vbuckets is None else target.vbuckets[:1]
    total, documents = yield part
    left = tuple(range(1, total)) if target.vbuckets is None else target.vbuckets[1:]
    size = _GROWTH
    while left:
        if documents <= _FEW * len(part):
            size = len(left)
        part, left, size = left[:size], left[size:], size * _GROWTH
        _, documents = yield part


def _unfinished(source: BucketDataSource, target: ScanSpec) -> str:
    """Whom the read waits for: the owners of what is not complete, or the seeds."""
    found, done = source.map, source.as_of
    if found is None:
        return ", ".join(map(str, parse_connection_string(target.server_urls).seeds()))
    wanted = range(found.vbuckets) if target.vbuckets is None else target.vbuckets
    owners = {found.node_of(vb) or "without owner" for vb in wanted if vb not in done}
    return ", ".join(sorted(owners))


def split_tables(
    pipeline: Pipeline, path: Path, target: ScanSpec, names: Names
) -> tuple[dict[str | None, tuple[DocumentTables, pa.Table]], LeftOut]:
    """Convert each kind of document for itself."""
    raw, manifest = pipeline.unconverted()
    tables: dict[str | None, tuple[DocumentTables, pa.Table]] = {}
    schemas: list[pa.Schema] = []
    for label, rows in groups_of(raw, path).items():
        part = raw.take(pa.array(rows))
        table, settled = typed(_documents_in(part), target.policy())
        schemas.append(table.schema)
        outcome = Outcome(target, len(part), settled.reasons(), lenient=True)
        outcome.look(part, table)
        conflicts = outcome.conflicts(settled.disagreements(), partial(keys_at, [part], form=target.keys))
        part, table = outcome.form(part, table)
        table = beside(names.head(part, manifest), table)
        tables[label] = DocumentTables(table.schema, iter(()), conflicts, settled.reasons()), table
    refuse_unknown(target, schemas, (name for _, each in tables.values() for name in each.column_names))
    return tables, pipeline.left_out


def refuse_unknown(target: ScanSpec, schemas: Sequence[pa.Schema], names: Iterable[str]) -> None:
    """Raise where none of several tables has a field: as typed, and by the names of their columns."""
    if not schemas:
        return
    lacked = [path for path in target.columns or () if all(lacking(each, path) for each in schemas)]
    _refuse("columns", lacked)
    if isinstance(target.parse_dates, tuple):
        there = {*names}
        _refuse("parse_dates", (path_of(name) for name in target.parse_dates if name not in there))


def _documents_in(raw: pa.Table) -> list[Documents]:
    """Documents that are not converted, to be so."""
    return [
        Documents(
            batch.column(VALUE),
            is_json(batch.column(DATATYPE).to_numpy()),
            batch.column(VBUCKET).to_numpy(),
            batch.column(SEQNO).to_numpy(),
        )
        for batch in raw.to_batches()
    ]


def _refuse(argument: str, lacked: Iterable[Path]) -> None:
    """What one kind of documents has not may be a field of another, but not of none."""
    for path in lacked:
        raise unknown(argument, path)


def groups_of(raw: pa.Table, path: Path) -> dict[str | None, npt.NDArray[np.int64]]:
    """Rows by the value of a field, as :meth:`cbframe.BucketScan.split` names it."""
    labels: dict[str | None, int] = {}
    codes: list[npt.NDArray[np.int64]] = []
    for documents in _documents_in(raw):
        # Many documents, few kinds.
        texts = texts_at(documents, path).dictionary_encode()
        numbers = [
            labels.setdefault(label, len(labels)) for label in map(_label, texts.dictionary.to_pylist())
        ]
        indices = texts.indices
        if indices.null_count:
            numbers.append(labels.setdefault(None, len(labels)))
            indices = indices.fill_null(len(numbers) - 1)
        if len(labels) > _MOST:
            raise ConfigurationError(
                f"split_by={'.'.join(path)!r} has more than {_MOST:,} different values",
                hint="name a field that tells kinds of documents apart, or read them with filters=",
            )
        codes.append(np.array(numbers, np.int64)[indices.to_numpy()])
    if not codes:
        return {}
    code = np.concatenate(codes)
    order = np.argsort(code, kind="stable")
    ends = np.cumsum(np.bincount(code, minlength=len(labels)))[:-1]
    rows = dict(zip(labels, np.split(order, ends), strict=True))
    return {label: rows[label] for label in sorted(rows, key=lambda label: (label is None, label or ""))}


def _label(text: str) -> str | None:
    if text[0] == '"':
        label: str = json.loads(text)
        return label
    return None if text[0] in "{[n" else text


class ReadSession:
    """One read of a bucket, to be run by one of its methods, once."""

    def __init__(self, spec: ScanSpec, *, pins: Pins | None = None, agreed: Columns | None = None) -> None:
        self._spec = spec
        self._pins = pins
        self._agreed = agreed
        self._run: Run | None = None

    @property
    def source(self) -> BucketDataSource | None:
        """What streams at present; None while nothing is read."""
        return None if self._run is None else self._run.source

    def read(self) -> ReadResult:
        """Read into a table."""
        run, ran, pipeline, found = self._finish()
        with closing(pipeline):
            tables = list(found.tables)
        table = pa.concat_tables([found.schema.empty_table(), *tables])
        return self._result(run, ran, found, table)

    def split(self, by: str | tuple[str, ...]) -> tuple[ReadResult, dict[str | None, ReadResult]]:
        """Read into a table for each kind of document, after what there is to say about all of them."""
        (path,) = paths_of([by])
        if not self._spec.parsed:
            raise ConfigurationError(
                "documents that are not parsed have no kind", hint="leave keys_only=True and parse=False out"
            )
        run, receiver, pipeline = self._begin(replace(self._spec, parse=False, columns=None))
        with closing(pipeline):
            ran = self._into(run, receiver, pipeline)
            tables, left_out = split_tables(pipeline, path, self._spec, run.names)
        results = {label: self._result(run, ran, *each) for label, each in tables.items()}
        whole = replace(DocumentTables.several(found for found, _ in tables.values()), left_out=left_out)
        rows = sum(len(each.table) for each in results.values())
        return replace(self._result(run, ran, whole, pa.table({})), documents=rows), results

    def by_collection(self, write: Callable[[str, pa.RecordBatchReader], int]) -> ReadResult:
        """Read into a table for each collection that has documents, with columns of its own.

        They are written one after the other, by ``scope.collection``; `write` gives how many rows there were.
        """
        if self._spec.n_rows is not None:
            raise ConfigurationError(
                "n_rows= is for one table", hint='leave it or table_per="collection" out'
            )
        run, receiver, pipeline = self._begin(replace(self._spec, parse=False, columns=None), bounded=True)
        parts: list[tuple[Pipeline, DocumentTables]] = []
        rows = 0
        with closing(pipeline):
            ran = self._into(run, receiver, pipeline)
            manifest = pipeline.complete()
            pipeline.refuse_filters()
            known = {0: "_default._default"} if manifest is None else manifest.collections
            for number in sorted(pipeline.collections & known.keys()):
                part = Pipeline(self._spec, run.names, receiver, bounded=True)
                with closing(part):
                    pipeline.give(part, number)
                    found = part.finish(lenient=True)
                    parts.append((part, found))
                    if part.documents:
                        batches = (batch for table in found.tables for batch in table.to_batches())
                        rows += write(
                            str(known[number]), pa.RecordBatchReader.from_batches(found.schema, batches)
                        )
        there = [(part.fields, found.schema) for part, found in parts if part.documents]
        refuse_unknown(
            self._spec, [fields for fields, _ in there], (n for _, each in there for n in each.names)
        )
        return replace(
            self._result(run, ran, DocumentTables.several(found for _, found in parts), pa.table({})),
            documents=rows,
        )

    def stream(self) -> tuple[ReadResult, pa.RecordBatchReader]:
        """Read into record batches, by way of a temporary file; before them, what there is to say.

        The reader deletes the file at its end, or when it is no longer used.
        """
        run, ran, _, found = self._finish(bounded=True)
        about = replace(self._result(run, ran, found, found.schema.empty_table()), documents=None)
        batches = (batch for table in found.tables for batch in table.to_batches())
        return about, pa.RecordBatchReader.from_batches(about.table.schema, batches)

    def _finish(self, *, bounded: bool = False) -> tuple[Run, Ran, Pipeline, DocumentTables]:
        """Read to the end; the pipeline has files until its tables are consumed."""
        wanted = enough = self._spec.n_rows
        while True:
            run, receiver, pipeline = self._begin(self._spec, bounded=bounded, enough=enough)
            with ExitStack() as stack:
                stack.callback(pipeline.close)
                ran = self._into(run, receiver, pipeline)
                found = pipeline.finish()
                dropped = sum(found.rejected.values()) if self._spec.errors == "drop" else 0
                if not wanted or not pipeline.has_enough() or pipeline.documents - dropped >= wanted:
                    stack.pop_all()
                    return run, ran, pipeline, found
            # Of what came too much is left out: older versions, documents of dropped collections, no objects.
            enough = (enough or 1) * _GROWTH

    def _begin(
        self, spec: ScanSpec, *, bounded: bool = False, enough: int | None = None
    ) -> tuple[Run, DeferringBatchReceiver, Pipeline]:
        """What reads; `spec` is what the pipeline makes of it."""
        pins = self._pins
        run = self._run = Run(
            self._spec,
            bounded=bounded,
            bucket_uuid="" if pins is None else pins.bucket_uuid,
            ends=None if pins is None else ReachedEnds({vb: seqno for vb, (_, seqno) in pins.as_of.items()}),
            moment=None if pins is None else pins.moment,
            skip_first_deletions=True,
        )
        receiver = DeferringBatchReceiver(run.names.received, run.options.max_body_bytes)
        common = spec, run.names, receiver, self._agreed, run.moment
        return run, receiver, Pipeline(*common, bounded=bounded, enough=enough)

    def _into(self, run: Run, receiver: DeferringBatchReceiver, sink: Pipeline) -> Ran:
        ran = run.into(receiver, sink)
        if self._pins is not None:
            self._pins.check(ran.as_of, receiver)
        return ran

    def _result(self, run: Run, ran: Ran, found: DocumentTables, table: pa.Table) -> ReadResult:
        """A result whose schema says its vbucket positions."""
        result = ReadResult(
            table,
            self._spec.bucket,
            ran.as_of,
            found.conflicts,
            dict(found.rejected),
            ran.stats,
            run.seconds,
            len(table),
            found.left_out.expired,
            found.left_out.transaction_records,
            ran.moment,
        )
        # Whoever gets the table of a partition alone, from another process, has no other report.
        return result.labelled(report=self._pins is not None)


# --- a random sample


def sampled(spec: ScanSpec, n: int, seed: int) -> ReadResult:
    """What :meth:`cbframe.BucketScan.sample` promises."""
    positive("n", n)
    positive("seed", seed, least=0)
    if spec.n_rows is not None:
        raise ConfigurationError("a scan with n_rows= has no sample", hint="leave n_rows= out")
    known = range(described(spec)[0].vbuckets) if spec.vbuckets is None else sorted(set(spec.vbuckets))
    vbuckets = np.array(known, np.uint64)
    order = vbuckets[np.argsort(_ranks(seed, vbuckets, np.zeros_like(vbuckets)))].tolist()
    asked = replace(spec, metadata=tuple(dict.fromkeys((*spec.metadata, "vbucket", "seqno"))))
    count, came = _SAMPLED, 0
    while True:
        try:
            about, reader = ReadSession(replace(asked, vbuckets=tuple(order[:count]))).stream()
            table, came = _lowest(reader, n, seed)
        except ConfigurationError:
            # A field that none of these documents has may be in others.
            if count >= len(order):
                raise
        if came >= n or count >= len(order):
            break
        # These are read again, with more: types follow from all of them.
        count = max(2 * count, 5 * count * n // (4 * came) + 1) if came else 8 * count
    added = {VBUCKET, SEQNO} - {f"_cb_{name}" for name in spec.metadata}
    table = table.drop_columns([*added, _RANK]).replace_schema_metadata(about.table.schema.metadata)
    return replace(about, table=table, documents=len(table))


def _lowest(reader: pa.RecordBatchReader, n: int, seed: int) -> tuple[pa.Table, int]:
    """The rows of the `n` lowest ranks, in the order of these; and of how many rows."""
    kept = reader.schema.append(pa.field(_RANK, pa.uint64())).empty_table()
    came = 0

    def lowest() -> pa.Table:
        return kept.take(pa.array(np.argsort(kept[_RANK].to_numpy(), kind="stable")[:n]))

    for batch in reader:
        came += len(batch)
        ranks = _ranks(seed, batch.column(VBUCKET).to_numpy(), batch.column(SEQNO).to_numpy())
        rows = pa.Table.from_batches([batch]).append_column(_RANK, pa.array(ranks))
        kept = pa.concat_tables([kept, rows])
        if len(kept) >= n + _SPARE:
            kept = lowest()
    return lowest(), came


def _ranks(seed: int, vbuckets: npt.NDArray[Any], seqnos: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Of each change a number as good as random, by the generator SplitMix64, and always the same."""
    numbers = np.array([seed], np.uint64)
    for more in (np.uint64(0), vbuckets.astype(np.uint64), seqnos):
        numbers = (numbers ^ more) + np.uint64(0x9E37_79B9_7F4A_7C15)
        numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58_476D_1CE4_E5B9)
        numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D0_49BB_1331_11EB)
        numbers ^= numbers >> np.uint64(31)
    return numbers
