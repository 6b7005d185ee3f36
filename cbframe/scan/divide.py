"""How a scan is divided: which vbuckets go together, and what schema all partitions have."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from math import gcd
from typing import TypeVar

import pyarrow as pa

from cbframe.arrow.batcher import DeferringBatchReceiver
from cbframe.arrow.columns import raw_schema
from cbframe.arrow.documents.kinds import Kind
from cbframe.arrow.documents.unify import Columns, ColumnsBuilder, unify
from cbframe.cluster.collections_manifest import CollectionsManifest
from cbframe.dcp.look import Look, look_at
from cbframe.dcp.survey import Size
from cbframe.errors import ConfigurationError
from cbframe.json.layout import struct
from cbframe.json.typer import REASON, VALUE
from cbframe.public import warn
from cbframe.scan.agreed import Agreement, Fitter
from cbframe.scan.intake import Intake
from cbframe.scan.moment import Moment
from cbframe.scan.names import Names, described
from cbframe.scan.outcome import Outcome
from cbframe.scan.pipeline import Pipeline, beside
from cbframe.scan.run import Run
from cbframe.scan.shape import lacking
from cbframe.scan.spec import ScanSpec, count, positive

T = TypeVar("T")

SAMPLE_ROWS = 10_000
_GOLDEN = 0.618
"""Steps of this part of a circle lead far from all places where one was before."""


@dataclass(frozen=True, slots=True)
class Share:
    """Vbuckets that go together, and the node that has them, or most of them."""

    node: str
    vbuckets: tuple[int, ...]


def shares(look: Look, n: int) -> list[Share]:
    """Divide the vbuckets that were looked at into `n` shares, fewer if there are not as many.

    Where there are as many shares as nodes, or more, each is of one node only: it takes one connection to
    read it. All have about as much in them, as far as the nodes tell.
    """
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


def _weights(look: Look) -> dict[int, int]:
    """About how much it is to read each vbucket, and never nothing.

    Bytes, if all nodes tell; or else documents; or else seqnos: many of those are of older versions.
    """
    sizes = [look.sizes.get(vb, Size(None, None)) for vb in look.positions]
    for figures in ([size.bytes for size in sizes], [size.documents for size in sizes]):
        known = [number for number in figures if number is not None]
        # A node that has not written anything to its disk yet tells of no bytes.
        if len(known) == len(figures) and any(known):
            return {vb: 1 + number for vb, number in zip(look.positions, known, strict=True)}
    return {vb: 1 + at.seqno for vb, at in look.positions.items()}


def _even(items: Sequence[T], weights: Mapping[T, int], count: int) -> list[list[T]]:
    """Divide items into `count` lists of about the same weight, none empty if there are as many items.

    The heaviest first, each to what is the lightest list then: in the end two lists differ by no more than
    the weight of one item.
    """
    found: list[list[T]] = [[] for _ in range(count)]
    heap = [(0, number) for number in range(count)]
    for item in sorted(items, key=lambda item: -weights[item]):
        weight, number = heap[0]
        found[number].append(item)
        heapq.heapreplace(heap, (weight + weights[item], number))
    return found


@dataclass(frozen=True, slots=True)
class Divider:
    """Finds out what the partitions of a scan have in common."""

    spec: ScanSpec
    sample_rows: int | None  # number of documents that are looked at for the schema; None for all

    def __post_init__(self) -> None:
        count("sample_rows", self.sample_rows)

    def look(self, before: Look | None = None, *, sizes: bool = False, time: bool = False) -> Look:
        """Where the vbuckets are now, how much is in them if `sizes`, and what time it is there if `time`.

        `before` was a moment ago: its cluster map will do.
        """
        spec = self.spec
        return look_at(
            spec.server_urls,
            spec.bucket,
            spec.auth,
            spec.options,
            spec.tls,
            spec.network,
            vbuckets=spec.vbuckets,
            first_map=None if before is None else before.map,
            sizes=sizes,
            time=time,
        )

    def moment(self, look: Look) -> Moment | None:
        """By when documents have expired, for all partitions; None if none is left out for that."""
        return Moment.of(look.time) if self.spec.expired == "drop" else None

    def agree(self, look: Look, n: int, moment: Moment | None) -> tuple[ScanSpec, Agreement, pa.Schema]:
        """What each partition is to read, the columns that they have in common, and their schema."""
        target, manifest = self._with_names(look)
        declared = {(name,) for name in target.schema}
        if not target.parsed:
            agreement = Agreement(Columns(pa.schema([])))
        elif target.columns is not None and set(target.columns) <= declared:
            agreement = Agreement(_only_names(target.schema))
        else:
            agreement = self._sampled(target, look, n, moment)
        target = agreement.declared(target)
        return target, agreement, self._schema(target, agreement, manifest)

    def _with_names(self, look: Look) -> tuple[ScanSpec, CollectionsManifest | None]:
        """The names of collections are columns in all partitions, or in none."""
        target = self.spec
        asked = {"scope", "collection"}
        if not look.map.collections:
            return target, None
        _, manifest = described(target)
        if manifest is None:
            return target, None
        names = Names(target, target.options)
        options = names.resolve_collections()
        target = names.target
        chosen = options.collections
        ids = manifest.collections_of(target.scope).keys() if chosen is None else set(chosen)
        if not any(ids) and not asked.intersection(target.metadata):
            return target, None
        return replace(target, metadata=tuple(dict.fromkeys([*target.metadata, *sorted(asked)]))), manifest

    def _sampled(self, target: ScanSpec, look: Look, n: int, moment: Moment | None) -> Agreement:
        filled = [vb for vb, at in look.positions.items() if at.seqno]
        if self.sample_rows is None:
            # Not all at once: what is typed together is in memory together.
            parts = [share.vbuckets for share in shares(look, n)]
        else:
            parts = [spread(filled)] if filled else []
        some = [replace(target, vbuckets=part, n_rows=self.sample_rows) for part in parts]
        found = [self._looked(each, look, moment) for each in some]
        self._judge_filters([intake for _, intake, _ in found])
        columns = unify([each for each, _, _ in found], max_members=target.max_struct_fields)
        if any(rows for _, _, rows in found):
            self._judge_columns(target, columns.schema)
        kinds = columns.kinds()
        kinds |= dict.fromkeys(target.schema, Kind(pa.null()))
        if target.errors == "drop":
            # Of what is left out no partition has the columns.
            kinds = {name: kind for name, kind in kinds.items() if name not in (VALUE, REASON)}
        return Agreement(Columns.of_kinds(kinds))

    def _judge_columns(self, target: ScanSpec, schema: pa.Schema) -> None:
        """Refuse columns that no document has; a sample is no proof, and a warning is given."""
        for path in target.columns or ():
            if path[0] in target.schema or not lacking(schema, path):
                continue
            what = f"columns= names {'.'.join(path)!r}, which no document has"
            if self.sample_rows is None:
                raise ConfigurationError(what, hint="read without it to see the fields, or look with peek()")
            warn(f"in the sample of the partitions: {what}")

    def _judge_filters(self, intakes: Sequence[Intake]) -> None:
        """Refuse filters that no document can pass; a sample is no proof, and a warning is given."""
        matchers = [each.matcher for each in intakes if each.matcher is not None and each.saw_documents()]
        if not matchers:
            return
        first, *others = matchers
        for other in others:
            first.update(other)
        if self.sample_rows is None:
            first.refuse()
        for error in first.errors():
            warn(f"in the sample of the partitions: {error}")

    def _looked(self, target: ScanSpec, look: Look, moment: Moment | None) -> tuple[Columns, Intake, int]:
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

    def _schema(
        self, target: ScanSpec, agreement: Agreement, manifest: CollectionsManifest | None
    ) -> pa.Schema:
        names = Names(target, target.options)
        raw = raw_schema(names.wire_metadata).empty_table()
        head = names.head(raw, manifest)
        if not target.parsed:
            return beside(head, raw.select([] if target.keys_only else [VALUE])).schema
        fields = [
            each.with_type(target.schema.get(each.name, each.type)) for each in agreement.documents.schema
        ]
        empty = pa.schema(fields).empty_table()
        fitter = Fitter(agreement, target, empty.schema, struct({}))
        fitter.look(empty)
        fitter.settle()
        _, table = Outcome(target, 0, {}, lenient=True).form(raw, fitter.apply(empty, 0))
        return beside(head, table).schema


def refuse_undividable(target: ScanSpec, n: int) -> None:
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


def _only_names(schema: Mapping[str, pa.DataType]) -> Columns:
    return Columns(pa.schema([(name, pa.null()) for name in schema]))


def spread(vbuckets: Sequence[int]) -> tuple[int, ...]:
    """All of them, in an order in which the first few are far from each other."""
    count = len(vbuckets)
    step = max(1, round(_GOLDEN * count))
    while gcd(step, count) > 1:
        step += 1
    return tuple(vbuckets[number * step % count] for number in range(count))
