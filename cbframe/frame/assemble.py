"""From the record batches of a read to its table: types, newest versions, names of collections."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cbframe.arrow.batcher import BatchingReceiver
from cbframe.arrow.columns import (
    COLLECTION_ID,
    DATATYPE,
    KEY,
    METADATA_TYPES,
    OPCODE,
    SEQNO,
    VALUE,
    VBUCKET,
)
from cbframe.arrow.documents.filters import Matcher
from cbframe.arrow.documents.order import Places
from cbframe.arrow.documents.plan import Policy
from cbframe.arrow.documents.projection import Projection
from cbframe.arrow.documents.result import TypedColumns
from cbframe.arrow.documents.typer import JsonTyper
from cbframe.arrow.memory import POOL
from cbframe.cluster.manifest import CollectionName, Manifest
from cbframe.dcp.maps import bucket_manifest
from cbframe.errors import ConfigurationError
from cbframe.frame.conflicts import Conflict
from cbframe.frame.outcome import Documents, documents_of
from cbframe.frame.target import ScanTarget
from cbframe.options import BucketDataSourceOptions
from cbframe.wire.constants import Datatype, Opcode

_SYSTEM_SCOPE = "_system"
_NAMES = frozenset({"scope", "collection"})


@dataclass(frozen=True, slots=True)
class Assembled:
    """The table of a read, and what there is to say about it."""

    table: pa.Table
    conflicts: tuple[Conflict, ...]
    rejected: dict[str, int]


class Assembler:
    """Takes the batches of one read and makes its table."""

    def __init__(self, target: ScanTarget, options: BucketDataSourceOptions, batch_bytes: int) -> None:
        self._target = target
        self._options = options
        self._batch_bytes = batch_bytes
        self._parse = target.parse and not target.keys_only
        self._typer = self._new_typer() if self._parse else None
        self._matcher = Matcher(target.filters) if target.filters else None
        self._projection = Projection(target.columns) if target.columns and self._parse else None
        self._documents = 0
        self._wanted: dict[int, str] = {}
        self._scope_id: int | None = None
        self._batches: list[pa.RecordBatch] = []
        self._pending: list[pa.RecordBatch] = []
        self._pending_bytes = 0

    def _new_typer(self) -> JsonTyper:
        target = self._target
        return JsonTyper(
            Policy(
                max_members=target.max_struct_fields,
                on_conflict=target.on_conflict,
                nested_as_text=target.nested == "json",
                declared=target.schema,
                infer_length=target.infer_schema_length,
            )
        )

    @property
    def wire_metadata(self) -> tuple[str, ...]:
        """Metadata columns that come from the wire."""
        names = (f"_cb_{name}" for name in self._target.metadata)
        return tuple(name for name in names if name in METADATA_TYPES)

    def resolve_collections(self) -> BucketDataSourceOptions:
        """Turn the names of scopes and collections into the ids that the server filters by."""
        target, options = self._target, self._options
        if target.scope is None and target.collections is None:
            return options
        manifest = self._fetch_manifest()
        if target.collections is None:
            assert target.scope is not None
            self._scope_id = manifest.scope_id(target.scope)
            return replace(options, scope_id=self._scope_id)
        scope = target.scope or "_default"
        names = [name if "." in name else f"{scope}.{name}" for name in target.collections]
        self._wanted = {manifest.id_of(name): name for name in names}
        return replace(options, collections=tuple(self._wanted))

    def has_enough(self) -> bool:
        """Whether as many documents came as were asked for."""
        wanted = self._target.n_rows
        return wanted is not None and self._documents >= wanted

    def add(self, batches: list[pa.RecordBatch]) -> None:
        """Take batches in the order in which they arrived."""
        if (prefix := self._target.key_prefix) is not None:
            # Also where nothing is left: batches are known by their number.
            batches = [batch.filter(pc.starts_with(batch.column(KEY), prefix)) for batch in batches]
        if self._matcher is not None or self._projection is not None:
            batches = [self._reduced(batch) for batch in batches]
        if self._target.n_rows is not None:
            self._documents += sum(
                int((batch.column(OPCODE).to_numpy() == Opcode.DCP_MUTATION).sum()) for batch in batches
            )
        self._batches += batches
        if self._typer is None:
            return
        # Many may have come while the last ones were parsed. Still no more is parsed at once than
        # asked for: then the parser's memory is used again and again, not asked of the system anew.
        for batch in batches:
            self._pending.append(batch)
            self._pending_bytes += batch.column(VALUE).nbytes
            if self._pending_bytes >= self._batch_bytes:
                self._convert()

    def _reduced(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Only what is wanted of the values.

        A document that is not wanted stands as a deletion: an older version of it must not count.
        """
        values, is_json = batch.column(VALUE), (batch.column(DATATYPE).to_numpy() & Datatype.JSON) != 0
        columns = {name: batch.column(name) for name in batch.schema.names}
        opcode = batch.column(OPCODE).to_numpy()
        mutation = opcode == Opcode.DCP_MUTATION
        if self._matcher is not None:
            wanted = self._matcher.mask(values, is_json & mutation)
            columns[OPCODE] = pa.array(np.where(wanted | ~mutation, opcode, np.uint8(Opcode.DCP_DELETION)))
            # Not if_else(): that of pyarrow 16 makes broken offsets of binary values and a null.
            values = values.filter(pa.array(wanted))
            if self._projection is not None:
                values = self._projection.apply(values, np.ones(len(values), bool))
            empty = pa.array([b""] * len(batch), values.type)
            columns[VALUE] = pc.replace_with_mask(empty, pa.array(wanted), values)
        elif self._projection is not None:
            columns[VALUE] = self._projection.apply(values, is_json & mutation)
        return pa.RecordBatch.from_arrays(list(columns.values()), schema=batch.schema)

    def _convert(self) -> None:
        assert self._typer is not None
        batches = []
        for batch in self._pending:
            mutation = batch.column(OPCODE).to_numpy() == Opcode.DCP_MUTATION
            if not mutation.all():
                batch = batch.filter(pa.array(mutation))  # noqa: PLW2901
            batches.append(batch)
        self._pending.clear()
        self._pending_bytes = 0
        if sum(map(len, batches)):
            _add(self._typer, batches)

    def finish(self, receiver: BatchingReceiver) -> Assembled:
        """Make the table.

        Raises
        ------
        ConfigurationError
            ``columns=`` names a field that no document has, or a collection that was asked for is gone.
        ConversionError
            Values are no JSON objects, or do not fit, and that was to be an error.
        """
        self._refuse_dropped(receiver)
        keep = receiver.surviving(self._batches)
        raw = pa.Table.from_batches(self._batches, receiver.schema)
        self._batches.clear()
        manifest = self._manifest_of(raw, receiver)
        if manifest is not None and not (alive := _alive(raw, manifest)).all():
            keep = alive if keep is None else keep & alive
        if self._typer is None:
            raw = _filter(raw, keep)
            documents = Documents(raw, raw.select([] if self._target.keys_only else [VALUE]))
        else:
            documents = documents_of(*self._type(self._typer, raw, keep), self._target)
        head = self._head(documents.raw, manifest)
        table = pa.table(
            [*head.columns, *documents.table.columns],
            schema=pa.schema([*head.schema, *documents.table.schema]),
        )
        return Assembled(table.slice(0, self._target.n_rows), documents.conflicts, documents.rejected)

    def _type(
        self, typer: JsonTyper, raw: pa.Table, keep: npt.NDArray[np.bool_] | None
    ) -> tuple[pa.Table, TypedColumns]:
        """The rows that count, and their documents as columns.

        What was typed while it arrived may hold versions that do not count. They must not show in
        any column, type, conflict or count, so then what is left is typed once more.
        """
        mutation = raw[OPCODE].to_numpy() == Opcode.DCP_MUTATION
        if keep is None or keep[mutation].all():
            if self._pending:
                self._convert()
            return _filter(raw, mutation), typer.finish()
        raw = _filter(raw, keep & mutation)
        self._pending.clear()
        self._typer = typer = self._new_typer()
        for batch in raw.to_batches():
            _add(typer, [batch])
        return raw, typer.finish()

    def _refuse_dropped(self, receiver: BatchingReceiver) -> None:
        """What was asked for by name must not come back as nothing because it went meanwhile."""
        gone = next((name for cid, name in self._wanted.items() if cid in receiver.dropped), None)
        what = f"collection {gone!r}"
        if gone is None and self._scope_id in receiver.dropped_scopes:
            gone, what = self._target.scope, f"scope {self._target.scope!r}"
        if gone is not None:
            raise ConfigurationError(
                f"{what} was dropped during the read", hint="read again without it, or as it is now"
            )

    def _manifest_of(self, raw: pa.Table, receiver: BatchingReceiver) -> Manifest | None:
        """The collections as they are now, if the documents are from more than the default one.

        The node that is asked may know less than the streams told.
        """
        if not (raw[COLLECTION_ID].to_numpy() != 0).any() and not _NAMES.intersection(self._target.metadata):
            return None
        manifest = self._fetch_manifest()
        scopes = {number: name for name, number in manifest.scopes.items()} | receiver.scopes
        news = {
            cid: CollectionName(scopes[event.scope_id], event.name)
            for cid, event in receiver.created.items()
            if event.manifest_uid is not None and event.manifest_uid >= manifest.uid
            if event.scope_id in scopes and cid not in receiver.dropped
        }
        return replace(manifest, collections={**news, **manifest.collections})

    def _head(self, raw: pa.Table, manifest: Manifest | None) -> pa.Table:
        """The metadata columns."""
        columns: dict[str, pa.ChunkedArray] = {KEY: _as_text(raw[KEY])}
        for name in self.wire_metadata:
            columns[name] = raw[name]
        if manifest is not None:
            unique, codes = np.unique(raw[COLLECTION_ID].to_numpy(), return_inverse=True)
            names = [manifest.collections[int(cid)] for cid in unique]
            indices = pa.array(codes.astype(np.int32))
            for column, values in (
                ("_cb_scope", [name.scope for name in names]),
                ("_cb_collection", [name.name for name in names]),
            ):
                columns[column] = pa.chunked_array([pa.array(values, pa.string()).take(indices)])
        return pa.table(columns)

    def _fetch_manifest(self) -> Manifest:
        target, options = self._target, self._options
        manifest = bucket_manifest(
            target.server_urls, target.bucket, target.auth, options, target.tls, target.network
        )
        if manifest is None:
            raise ConfigurationError(
                f"bucket {target.bucket!r} is on a server without collections",
                hint="leave scope= and collections= out",
            )
        return manifest


def _add(typer: JsonTyper, batches: list[pa.RecordBatch]) -> None:
    values = [batch.column(VALUE) for batch in batches]

    def column(name: str) -> npt.NDArray[Any]:
        return np.concatenate([batch.column(name).to_numpy() for batch in batches])

    typer.add(
        values[0] if len(values) == 1 else pa.concat_arrays(values, memory_pool=POOL),
        (column(DATATYPE) & Datatype.JSON) != 0,
        Places(column(VBUCKET), column(SEQNO)),
    )


def _alive(raw: pa.Table, manifest: Manifest) -> npt.NDArray[np.bool_]:
    """Which rows are of a collection that still exists and is not the server's own.

    A collection's documents outlive it for a while.
    """
    unique, codes = np.unique(raw[COLLECTION_ID].to_numpy(), return_inverse=True)
    names = [manifest.collections.get(int(cid)) for cid in unique]
    known = np.array([name is not None and name.scope != _SYSTEM_SCOPE for name in names], bool)
    alive: npt.NDArray[np.bool_] = known[codes]
    return alive


def _filter(table: pa.Table, keep: npt.NDArray[np.bool_] | None) -> pa.Table:
    return table if keep is None or keep.all() else table.filter(pa.array(keep))


def _as_text(keys: pa.ChunkedArray) -> pa.ChunkedArray:
    """Keys as strings; as they are if one of them is not UTF-8, which the server does not forbid."""
    try:
        return keys.cast(pa.string())
    except pa.ArrowInvalid:
        return keys
