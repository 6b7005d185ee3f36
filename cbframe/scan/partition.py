"""Partitions: parts of a read that other processes and machines can do, together a read of one bucket.

:func:`divided` asks all nodes where their vbuckets are, finds the schema of all partitions from a sample,
asks the nodes once more, and pins each partition to the seqnos that they report then.
"""

from __future__ import annotations

import heapq
import pickle
import traceback
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from math import gcd
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, Self, SupportsIndex, TypeVar, cast, get_args

import pyarrow as pa

from cbframe.arrow.column_types import Columns, ColumnsBuilder, Kind, unify
from cbframe.arrow.columns import KEY, raw_schema
from cbframe.arrow.filters import predicates, unknown
from cbframe.arrow.receivers import DeferringBatchReceiver
from cbframe.cluster.auth import Authenticator, CertificateAuthenticator
from cbframe.cluster.collections_manifest import CollectionsManifest
from cbframe.cluster.connection_string import parse_connection_string
from cbframe.cluster.tls import TLSContext
from cbframe.dcp.stats import BucketDataSourceStats, NodeStats, add_up
from cbframe.dcp.survey import BucketState, Size
from cbframe.errors import CbframeError, ConfigurationError, ConversionError
from cbframe.json.layout import struct
from cbframe.json.typer import OURS, REASON, VALUE
from cbframe.public import public, warn
from cbframe.scan.names import Names, described
from cbframe.scan.parquet import Destination, write_folders, write_parquet
from cbframe.scan.pipeline import Intake, Pipeline, beside
from cbframe.scan.result import AsOf, Moment, ReadReport, ReadResult, result_of, utc_now
from cbframe.scan.session import Pins, ReadSession, Run
from cbframe.scan.shape import Fitter, Outcome, declared, lacking
from cbframe.scan.spec import METADATA_NAMES, Consistency, ScanSpec, count, flag, one_of, positive
from cbframe.system import starting_process

if TYPE_CHECKING:
    import pandas as pd


S = TypeVar("S")
T = TypeVar("T")

SAMPLE_ROWS = 10_000
_GOLDEN = 0.618
"""Steps of this part of a circle lead far from all places where one was before."""
_PER_WORKER = 4
"""Partitions for each: who is quick takes more of them, and each file is a good part of all."""


# --- which vbuckets go together


@dataclass(frozen=True, slots=True)
class Share:
    """Vbuckets that go together, and the node that has them, or most of them."""

    node: str
    vbuckets: tuple[int, ...]


def shares(look: BucketState, n: int) -> list[Share]:
    """Divide the vbuckets into `n` shares of about the same size, fewer if there are not as many."""
    # Where there are as many shares as nodes, or more, each is of one node only: it takes one connection to
    # read it.
    weights = _weights(look)
    of_node: dict[str, list[int]] = {}
    for vb in weights:
        of_node.setdefault(look.map.node_of(vb) or "", []).append(vb)
    total = {node: sum(weights[vb] for vb in vbs) for node, vbs in of_node.items()}
    nodes = sorted(of_node, key=lambda node: (-total[node], node))
    if n <= len(nodes):
        return [
            Share(some[0], tuple(sorted(vb for node in some for vb in of_node[node])))
            for some in _even(nodes, total, n)
        ]
    counts = dict.fromkeys(nodes, 1)
    for _ in range(min(n, len(weights)) - len(nodes)):
        # To the node whose shares are the largest.
        some = [node for node in nodes if counts[node] < len(of_node[node])]
        counts[max(some, key=lambda node: total[node] / counts[node])] += 1
    cut = [
        [Share(node, tuple(sorted(vbs))) for vbs in _even(of_node[node], weights, counts[node])]
        for node in nodes
    ]
    # By turns: who takes the first few takes them from all nodes.
    return [
        each[number] for number in range(max(map(len, cut), default=0)) for each in cut if number < len(each)
    ]


def _weights(look: BucketState) -> dict[int, int]:
    """About how much it is to read each vbucket, and never nothing."""
    # Bytes, if all nodes tell; or else documents; or else seqnos: many of those are of older versions.
    sizes = [look.sizes.get(vb, Size(None, None)) for vb in look.positions]
    for figures in ([size.bytes for size in sizes], [size.documents for size in sizes]):
        known = [number for number in figures if number is not None]
        # A node that has not written anything to its disk yet tells of no bytes.
        if len(known) == len(figures) and any(known):
            return {vb: 1 + number for vb, number in zip(look.positions, known, strict=True)}
    return {vb: 1 + at.seqno for vb, at in look.positions.items()}


def _even(items: Sequence[T], weights: Mapping[T, int], count: int) -> list[list[T]]:
    """Divide items into `count` lists of about the same weight, none empty if there are as many items."""
    # The heaviest first, each to what is the lightest list then: in the end two lists differ by no more than
    # the weight of one item.
    found: list[list[T]] = [[] for _ in range(count)]
    heap = [(0, number) for number in range(count)]
    for item in sorted(items, key=lambda item: -weights[item]):
        weight, number = heap[0]
        found[number].append(item)
        heapq.heapreplace(heap, (weight + weights[item], number))
    return found


# --- what they have in common


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class AgreedScan:
    """A scan whose columns are known before it is read: each read of it has these, or is an error."""

    spec: ScanSpec
    columns: Columns  # what the fields of documents are
    schema: pa.Schema

    def select(self, names: Sequence[str]) -> Self:
        """The same with some of the columns, besides the key: no more is read than they need."""
        unknown = [name for name in names if name not in self.schema.names]
        if unknown:
            raise ConfigurationError(
                f"the partitions have no column {unknown[0]!r}", hint="their attribute schema tells which"
            )
        wanted = dict.fromkeys([KEY, *names])
        schema = pa.schema([self.schema.field(name) for name in wanted])
        return replace(self, schema=schema, spec=narrowed(self.spec, wanted))

    def read(self, pins: Pins | None = None) -> ReadResult:
        """Read it into a table."""
        result = ReadSession(self.spec, pins=pins, agreed=self.columns).read()
        self._check(result.table.schema)
        return replace(result, table=result.table.select(self.schema.names))

    def stream(self, pins: Pins | None = None) -> tuple[ReadResult, pa.RecordBatchReader]:
        """Read it into record batches; before them, what there is to say."""
        result, reader = ReadSession(self.spec, pins=pins, agreed=self.columns).stream()
        self._check(reader.schema)
        schema = self.schema.with_metadata(reader.schema.metadata)
        batches = (batch.select(schema.names) for batch in reader)
        return result, pa.RecordBatchReader.from_batches(schema, batches)

    def _check(self, schema: pa.Schema) -> None:
        """Refuse a read that lacks agreed columns, or has some that tell more of documents than these can."""
        later = schema.names[:] if not {"scope", "collection"} & {*self.spec.metadata} else []
        if "_cb_collection" in later:
            raise ConversionError(
                "documents are of collections, and the agreed schema has no column for them",
                hint="collections came since then: make the partitions, or the frame, again",
            )
        other = [each.name for each in self.schema if each not in schema]
        if other:
            raise ConversionError(f"columns are not the agreed ones: {', '.join(other)}")


def agree(
    spec: ScanSpec, n: int, *, sample_rows: int | None
) -> tuple[AgreedScan, BucketState, Moment | None]:
    """The scan of `n` partitions, the bucket as it is now, and by when documents have expired."""
    count("sample_rows", sample_rows)
    _refuse_undividable(spec, n)
    expires = spec.expired == "drop"
    look = spec.look(spec.vbuckets, time=expires)
    moment = Moment.of(look.time) if expires else None
    return AgreedScan(*_agree(spec, sample_rows, look, n, moment)), look, moment


def _agree(
    target: ScanSpec, sample_rows: int | None, look: BucketState, n: int, moment: Moment | None
) -> tuple[ScanSpec, Columns, pa.Schema]:
    """What each partition is to read, the columns that they have in common, and their schema."""
    target, manifest = _with_names(target, look)
    if not target.parsed:
        agreed = Columns.of_schema(pa.schema([]))
    elif target.columns is not None and set(target.columns) <= {(name,) for name in target.schema}:
        agreed = Columns.of_schema(pa.schema([(name, pa.null()) for name in target.schema]))
    else:
        agreed = _sampled(target, sample_rows, look, n, moment)
    target = declared(target, agreed)
    return target, agreed, _schema(target, agreed, manifest)


def _with_names(target: ScanSpec, look: BucketState) -> tuple[ScanSpec, CollectionsManifest | None]:
    """The names of collections are columns in all partitions, or in none."""
    manifest = described(target)[1] if look.map.collections else None
    if manifest is None:
        return target, None
    names = Names(target, target.options)
    chosen = names.resolve_collections().collections
    target = names.target
    asked = {"scope", "collection"}
    ids = manifest.collections_of(target.scope).keys() if chosen is None else set(chosen)
    if not any(ids) and not asked.intersection(target.metadata):
        return target, None
    return replace(target, metadata=tuple(dict.fromkeys([*target.metadata, *sorted(asked)]))), manifest


def _sampled(
    target: ScanSpec, sample_rows: int | None, look: BucketState, n: int, moment: Moment | None
) -> Columns:
    filled = [vb for vb, at in look.positions.items() if at.seqno]
    if sample_rows is None:
        # Not all at once: what is typed together is in memory together.
        parts = [share.vbuckets for share in shares(look, n)]
    else:
        parts = [spread(filled)] if filled else []
    found = [_sample(replace(target, vbuckets=part, n_rows=sample_rows), look, moment) for part in parts]
    # A sample is no proof that something is not there: then a warning is given.
    proves = sample_rows is None
    matchers = [each.matcher for _, each, _ in found if each.matcher is not None and each.saw_documents()]
    if matchers:
        first, *others = matchers
        for other in others:
            first.update(other)
        if proves:
            first.refuse()
        for error in first.errors():
            warn(f"in the sample: {error}")
    columns = unify([each for each, _, _ in found], max_members=target.max_struct_fields)
    if target.on_conflict == "json":
        columns = columns.mapped(lambda _, kind: replace(kind, json=kind.json or kind.mixed, mixed=False))
    for path in (target.columns or ()) if any(rows for _, _, rows in found) else ():
        if path[0] not in target.schema and lacking(columns.schema, path):
            error = unknown("columns", path)
            if proves:
                raise error
            warn(f"in the sample: {error}")
    kinds = {**columns.kinds, **dict.fromkeys(target.schema, Kind(pa.null()))}
    if target.errors == "drop":
        # Of what is left out no partition has the columns.
        kinds = {name: kind for name, kind in kinds.items() if name not in (VALUE, REASON)}
    return Columns(kinds)


def _sample(target: ScanSpec, look: BucketState, moment: Moment | None) -> tuple[Columns, Intake, int]:
    """What the columns of some documents are, what took them in, and how many there are."""
    run = Run(replace(target, progress=None), first_map=look.map, moment=moment)
    receiver = DeferringBatchReceiver(run.names.received, run.options.max_body_bytes)
    pipeline = Pipeline(target, run.names, receiver, moment=run.moment)
    with closing(pipeline):
        run.into(receiver, pipeline)
        # What is an error in any document is one here.
        typed = pipeline.keep_documents(lenient=True)
        settled = typed.settled
        assert settled is not None, "documents are parsed"
        columns = ColumnsBuilder(typed.empty.schema, settled.layout.root, settled.widths())
        for number in range(len(pipeline)):
            columns.look(pipeline.table(number, typed))
    return columns.columns(), pipeline.intake, pipeline.documents - settled.rejected.total()


def _schema(target: ScanSpec, agreed: Columns, manifest: CollectionsManifest | None) -> pa.Schema:
    """The columns of all partitions."""
    names = Names(target, target.options)
    raw = raw_schema(names.wire_metadata).empty_table()
    head = names.head(raw, manifest)
    if not target.parsed:
        return beside(head, raw.select([] if target.keys_only else [VALUE])).schema
    fields = [each.with_type(target.schema.get(each.name, each.type)) for each in agreed.schema]
    empty = pa.schema(fields).empty_table()
    fitter = Fitter(agreed, target, empty.schema, struct({}))
    fitter.look(empty)
    fitter.settle()
    _, table = Outcome(target, 0, {}, fitter, lenient=True).form(raw, empty)
    return beside(head, table).schema


def spread(vbuckets: Sequence[int]) -> tuple[int, ...]:
    """All of them, in an order in which the first few are far from each other."""
    count = len(vbuckets)
    step = max(1, round(_GOLDEN * count))
    while gcd(step, count) > 1:
        step += 1
    return tuple(vbuckets[number * step % count] for number in range(count))


# --- the partitions


def refuse_secrets(spec: ScanSpec, *, with_secrets: bool = False) -> None:
    """Raise if a scan may not leave this process: with a password in it, unless that was asked for."""
    if any(isinstance(each, TLSContext) for each in (spec.tls, spec.options.tls_config)):
        raise ConfigurationError(
            "a TLS context cannot be sent to other processes",
            hint="tls= takes certificate authorities as PEM text, too, or the path of a file",
        )
    if with_secrets:
        return
    if any("@" in proxy for proxy in (spec.options.proxies or {}).values()):
        raise ConfigurationError(
            "a partition is not sent to other processes with the password of a proxy in it",
            hint="name a proxy without a password, or partitions(..., include_credentials=True)",
        )
    auth = spec.auth
    by_certificate = isinstance(auth, CertificateAuthenticator)
    by_reference = callable(auth) and not isinstance(auth, Authenticator)
    harmless = auth is None or by_reference or (by_certificate and not auth.holds_key)
    if not harmless or parse_connection_string(spec.server_urls).credentials is not None:
        secret = "private key" if by_certificate else "password"
        raise ConfigurationError(
            f"a partition is not sent to other processes with a {secret} in it",
            hint='give auth=EnvironmentAuth("CB_USER", "CB_PASSWORD"), another callable that they can '
            "import, or paths of files with a key; or partitions(..., include_credentials=True)",
        )


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class ScanPartition:
    """Some vbuckets of a scan, to be read anywhere. Made by :meth:`BucketScan.partitions`.

    It can be pickled: no socket is in it, and no password unless that was asked for. Reading it connects
    to the nodes that have its vbuckets, most often a single one, and to a seed before that.

    Attributes
    ----------
    number
        From 0.
    node
        The node that had its vbuckets, ``host:port``, or most of them. It is asked wherever they are.
    as_of
        The vbucket positions of all partitions together, cut down to its vbuckets: each is read to this
        seqno at least.
    documents
        An estimate: how many there are in its vbuckets as a whole, whatever the scan selects of them by
        collections and filters. None if a node does not tell, which it does to whom it shows statistics.
    bytes
        An estimate: what its vbuckets as a whole take up on the disks, compressed, with keys and metadata.
        None if a node does not tell; it cannot of a bucket that is in memory only.
    """

    number: int
    node: str
    as_of: AsOf
    _pins: Pins
    _scan: AgreedScan
    _with_secrets: bool  # whether a password may be pickled with them
    documents: int | None = None
    bytes: int | None = None

    def __reduce_ex__(self, protocol: SupportsIndex) -> str | tuple[Any, ...]:
        self.refuse_secrets()
        return object.__reduce_ex__(self, protocol)

    def __repr__(self) -> str:
        some = f"at most {self.changes:,}" if self.documents is None else f"about {self.documents:,}"
        size = "" if self.bytes is None else f", {self.bytes:,} bytes"
        return (
            f"<ScanPartition {self.number} of {self.bucket!r}: {len(self.as_of)} vbuckets of {self.node}, "
            f"{some} documents{size}>"
        )

    def refuse_secrets(self) -> None:
        """Raise what pickling would raise.

        Raises
        ------
        ConfigurationError
            There is a password in it, or something that exists in this process only.
        """
        refuse_secrets(self._scan.spec, with_secrets=self._with_secrets)

    @property
    def bucket(self) -> str:
        """Where the documents are."""
        return self._scan.spec.bucket

    @property
    def schema(self) -> pa.Schema:
        """Of all partitions."""
        return self._scan.schema

    @property
    def vbuckets(self) -> tuple[int, ...]:
        """Those that are read."""
        return tuple(self.as_of)

    @property
    def changes(self) -> int:
        """The seqnos of its vbuckets, summed: as many documents as there can be at most."""
        return self.as_of.changes

    @public
    def result(self) -> ReadResult:
        """Read it: the documents, their vbucket positions, and what there is to say about them.

        The server sends whole snapshots. Where documents were written since the partitions were made, the
        newer versions come and the older ones are gone: ``as_of`` of the result, other than that of the
        partition, tells how far each vbucket really was. With ``consistency="strict"`` that is an
        error. So on a bucket at rest every attempt gives the same rows, and on another each gives what is
        no older than the pinned moment.

        Raises
        ------
        ConversionError
            Documents do not fit the agreed schema.
        RollbackError, StreamError
            With ``"strict"``: the history of a vbucket is another one, or it went on.
        CbframeError
            As :meth:`BucketScan.read`.
        """
        return self._scan.read(self._pins)

    @public
    def read(self) -> pa.Table:
        """Read it into an Arrow table, as :meth:`result` does; its metadata has ``as_of``."""
        return self.result().table

    @public
    def to_pandas(self) -> pd.DataFrame:
        """Read it into a DataFrame whose index is the document key, as :meth:`result` does.

        The dtypes of all partitions are the same: with ``dtype_backend=None``, integers and booleans have
        pandas' nullable types, since numpy's cannot hold missing values.
        """
        from cbframe.scan.dataframe import to_pandas  # noqa: PLC0415 - pandas is slow to import

        result = self.result()
        backend = self._scan.spec.dtype_backend
        return to_pandas(result.table, backend, result.report.to_dict(), fixed_dtypes=True)

    @public
    def to_reader(self) -> pa.RecordBatchReader:
        """Read it into record batches, as :meth:`result` does; memory as with a scan's ``to_reader``."""
        return self.streamed()[1]

    @public
    def streamed(self) -> tuple[ReadResult, pa.RecordBatchReader]:
        """What :meth:`to_reader` gives, and before it all of :meth:`result` but the documents."""
        return self._scan.stream(self._pins)

    def __arrow_c_schema__(self) -> Any:
        """The schema of all partitions; nothing is read."""
        return self.schema.__arrow_c_schema__()

    @public
    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        """Hand a new read over to any Arrow consumer."""
        return self.to_reader().__arrow_c_stream__(requested_schema)

    @public
    def select(self, columns: Sequence[str]) -> ScanPartition:
        """The same with some of the columns, besides the key: no more is read than they need.

        Raises
        ------
        ConfigurationError
            There is no such column.
        """
        return replace(self, _scan=self._scan.select(columns))


def divided(
    spec: ScanSpec, n: int, *, sample_rows: int | None, consistency: Consistency | None, with_secrets: bool
) -> list[ScanPartition]:
    """What :meth:`BucketScan.partitions` promises."""
    with_secrets = flag("include_credentials", with_secrets)
    consistency = consistency or spec.consistency
    one_of(*get_args(Consistency))("consistency", consistency)
    scan, look, moment = agree(spec, n, sample_rows=sample_rows)
    inside: Consistency = "strict" if "strict" in (consistency, spec.consistency) else "snapshot"
    # Functions stay in this process.
    log = None if callable(scan.spec.event_log) else scan.spec.event_log
    spec = replace(scan.spec, progress=None, event_log=log, consistency=inside)
    # Once more: the sample took its time.
    time = utc_now()
    look = spec.look(spec.vbuckets, first_map=look.map, sizes=True)
    found = []
    for number, share in enumerate(shares(look, n)):
        as_of = AsOf.of({vb: look.positions[vb] for vb in share.vbuckets}, time)
        pins = Pins(as_of, look.map.uuid, consistency, moment)
        size = Size.total(look.sizes[vb] for vb in share.vbuckets)
        part = replace(scan, spec=replace(spec, vbuckets=share.vbuckets))
        found.append(ScanPartition(number, share.node, as_of, pins, part, with_secrets, *size))
    return found


def _refuse_undividable(target: ScanSpec, n: int) -> None:
    """Refuse what depends on all documents in another way than by their types."""
    positive("n", n)
    if target.vbuckets == ():
        raise ConfigurationError(
            "a scan of no vbuckets cannot be divided", hint="leave vbuckets= out, or name some"
        )
    for argument, given, hint in (
        ("n_rows", target.n_rows, "read so few documents with the scan itself"),
        ("infer_schema_length", target.infer_schema_length, "sample_rows= says how many are looked at"),
        ("parse_dates", target.parse_dates, "declare what they are: schema={'when': 'timestamp[us]'}"),
    ):
        if given:
            raise ConfigurationError(f"a scan with {argument}= cannot be divided", hint=hint)


def narrowed(target: ScanSpec, names: Collection[str]) -> ScanSpec:
    """A target that reads no more than some of its columns need, as far as names show that."""
    fields = [name for name in names if not name.startswith(OURS)]
    odd = any(name.startswith(OURS) and name.removeprefix(OURS) not in METADATA_NAMES for name in names)
    if not target.parsed or target.nested == "flatten" or odd:
        return target
    if not fields:
        # Values need not even be sent, if nobody has to look at them.
        by_fields = any(not each.of_metadata for each in predicates(target.filters))
        needless = not by_fields and target.errors == "keep"
        return replace(target, keys_only=True, columns=None) if needless else target
    if target.columns is None:
        return replace(target, columns=tuple((name,) for name in fields))
    return replace(target, columns=tuple(path for path in target.columns if ".".join(path) in fields))


# --- a folder of files


def to_folder(
    spec: ScanSpec, place: Destination, compression: str, workers: int, by: tuple[str, ...]
) -> ReadResult:
    """Write a file for each of some partitions; the folder appears whole or not at all."""
    began = monotonic()
    positive("workers", workers)
    parts = divided(
        spec, _PER_WORKER * workers, sample_rows=SAMPLE_ROWS, consistency="snapshot", with_secrets=True
    )
    with place.folder(spec.spool_dir) as scratch:
        write = partial(_write, folder=scratch, compression=compression, by=by)
        done = in_processes(write, parts, workers)
    report = ReadReport.merged(each for each, _ in done)
    count = len(report.as_of)
    nodes = {node for _, counters in done for node in counters}
    total = {node: add_up(counters[node] for _, counters in done if node in counters) for node in nodes}
    stats = BucketDataSourceStats((), total, vbuckets=count, vbuckets_done=count, at=monotonic())
    return replace(result_of(report, parts[0].schema.empty_table(), stats), seconds=monotonic() - began)


def _write(
    part: ScanPartition, folder: Path, compression: str, by: tuple[str, ...]
) -> tuple[ReadReport, dict[str, NodeStats]]:
    """In a worker process: the report of the partition, and the counters of its nodes."""
    result, reader = part.streamed()
    name = f"part-{part.number:05d}"
    if by:
        count = write_folders(reader, folder, compression, by, name)
    else:
        count = write_parquet(reader, folder / f"{name}.parquet", compression)
    return replace(result, documents=count).report, dict(result.stats.nodes)


# --- work that is done by processes


def in_processes(work: Callable[[S], T], items: Sequence[S], count: int) -> list[T]:
    """What `work` returns for each item, done by `count` processes of this machine.

    Whatever goes wrong, and if Ctrl-C is pressed, all of them are ended before this returns. No thread is
    needed, so none can be missing.
    """
    todo = deque(enumerate(items))
    busy: dict[Connection, int] = {}
    results: dict[int, T] = {}
    with ExitStack() as stack:
        for _ in range(min(count, len(items))):
            connection = _start(work, stack)
            busy[connection] = _hand_out(connection, todo)
        while busy:
            for connection in cast("list[Connection]", wait(list(busy))):
                number = busy.pop(connection)
                results[number] = _outcome(connection)
                if todo:
                    busy[connection] = _hand_out(connection, todo)
    return [results[number] for number in range(len(items))]


def _start(work: Callable[[S], T], stack: ExitStack) -> Connection:
    """Start a process, which the stack ends; the connection to it."""
    context = get_context("spawn")
    with starting_process():
        ends: tuple[Any, Any] = context.Pipe()
        ours, theirs = ends
        stack.callback(ours.close)
        with closing(theirs):
            process = context.Process(target=_serve, args=(theirs, work))
            process.start()
    stack.callback(_end, process)
    connection: Connection = ours
    return connection


def _end(process: BaseProcess) -> None:
    # Not by closing its connection: to wait until it has done its work may take hours.
    process.terminate()
    process.join()
    process.close()


def _hand_out(connection: Connection, todo: deque[tuple[int, S]]) -> int:
    """Send the next item; its number."""
    number, item = todo.popleft()
    with _lost():
        connection.send(item)
    return number


def _outcome(connection: Connection) -> Any:
    """The result that a process has; or its error is raised."""
    with _lost():
        result, error = connection.recv()
    if error is not None:
        raise error
    return result


@contextmanager
def _lost() -> Iterator[None]:
    try:
        yield
    except (EOFError, ConnectionError):
        raise CbframeError(
            "a worker process ended before its work was done",
            hint="is the memory of the machine used up? And a script that starts processes has to do so "
            'below: if __name__ == "__main__":',
        ) from None


def _serve(connection: Connection, work: Callable[[S], T]) -> None:
    """In a process: one item after the other, until there is no parent any more."""
    with suppress(EOFError, ConnectionError, KeyboardInterrupt):
        while True:
            item = connection.recv()
            try:
                outcome: tuple[T | None, Exception | None] = work(item), None
            except Exception as exc:  # noqa: BLE001 - raised again in the parent
                outcome = None, _sendable(exc)
            connection.send(outcome)


def _sendable(exc: Exception) -> Exception:
    """The error, or words about it: neither its traceback nor every error can be pickled."""
    if not isinstance(exc, CbframeError):
        exc.add_note("".join(traceback.format_exception(exc)))
    try:
        pickle.loads(pickle.dumps(exc))  # noqa: S301 - our own
    except Exception:  # noqa: BLE001 - whatever pickle, or a constructor, raises
        return CbframeError(f"an unexpected {type(exc).__name__} in a worker process: {exc}")
    return exc
