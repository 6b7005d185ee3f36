"""Batches of changes: what happened to which documents, how far the stream is then, and their typed form.

:class:`Gatherer` makes them of what a receiver was given, and knows which of them were consumed.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cbframe.arrow.column_types import rendered
from cbframe.arrow.columns import (
    COLLECTION_ID,
    COLLECTION_NAMES,
    DATATYPE,
    KEY,
    KEY_TYPES,
    METADATA_TYPES,
    OPCODE,
    SEQNO,
    VBUCKET,
    formed,
    is_json,
)
from cbframe.arrow.current_rows import by_vbucket, newest, rolled_back
from cbframe.arrow.receivers import (
    Arrived,
    ChangeReceiver,
    EventArrived,
    Item,
    Reached,
    RolledBack,
    ended_collection,
)
from cbframe.cluster.collections_manifest import SYSTEM_SCOPE, CollectionName, CollectionsManifest
from cbframe.dcp.positions import VBucketOffset
from cbframe.dcp.receiver import Receipt
from cbframe.dcp.source import BucketDataSource
from cbframe.errors import CbframeError, ConfigurationError, ReadCancelledError
from cbframe.json.layout import FieldPath, Policy, tree_of
from cbframe.json.typer import VALUE, Documents
from cbframe.json.typer import typed as typed_documents
from cbframe.scan import shape
from cbframe.scan.names import name_columns
from cbframe.scan.result import Conflict
from cbframe.scan.shape import keys_at, named
from cbframe.scan.spec import NESTED, Nested, ScanSpec, paths_of
from cbframe.wire.constants import Opcode, SystemEventId
from cbframe.wire.messages import SystemEvent

if TYPE_CHECKING:
    import pandas as pd


CHANGE_TYPE = "_change_type"
UPSERT, DELETE, EXPIRE = "upsert", "delete", "expire"
CHANGE_TYPES = pa.array([UPSERT, DELETE, EXPIRE])
KIND_OF = np.zeros(256, np.int8)
"""Index among CHANGE_TYPES, by opcode."""
KIND_OF[[Opcode.DCP_MUTATION, Opcode.DCP_DELETION, Opcode.DCP_EXPIRATION]] = (0, 1, 2)
_DEFAULT = CollectionName("_default", "_default")
_NAME = pa.dictionary(pa.int32(), pa.string())
POLL = 0.05
"""Seconds after which it is looked whether the source is over, or how far it is, while nothing arrives."""


@dataclass(frozen=True, slots=True)
class Rollback:
    """The server has rolled back a vbucket, for example after a failover.

    All changes of the vbucket with a seqno over `seqno` that were delivered before are rolled back. A
    consumer that has kept every change deletes those, and has the vbucket's state at that moment. One that
    has kept only the newest version of each document has lost what rolled-back changes had replaced:
    ``on_rollback="restart"`` then makes `seqno` the beginning of the stream, and all of the vbucket is
    delivered again.

    Attributes
    ----------
    vbucket
        Whose history.
    seqno
        Where the stream goes on from: the end of a snapshot.
    server_seqno
        Where the server's history was cut off, at or after `seqno`.
    """

    vbucket: int
    seqno: int
    server_seqno: int


@dataclass(frozen=True, slots=True)
class CollectionDrop:
    """A collection's documents are gone: those of this vbucket with a smaller seqno.

    The names are None where nobody knows them any more.
    """

    vbucket: int
    seqno: int
    collection_id: int
    scope: str | None
    collection: str | None


@dataclass(slots=True, eq=False)
class Delivery:
    """What a batch that was delivered leads to, once it is acknowledged."""

    positions: dict[int, VBucketOffset] = field(default_factory=dict)  # where vbuckets are then
    receipts: list[Receipt] = field(default_factory=list)  # of its documents


@dataclass(frozen=True, eq=False)
class ChangeBatch:
    """Some changes in the order in which they happened, per vbucket.

    Attributes
    ----------
    record_batch
        One row a change: ``_change_type`` (upsert, delete or expire), ``_cb_key``, ``_cb_vbucket`` and
        ``_cb_seqno``, the metadata that was asked for, and the document as bytes in ``_cb_value``, null
        where it is gone.
    rollbacks
        What the server has rolled back: to be applied before the rows of this batch.
    events
        Scopes and collections that came, went or changed.
    drops
        Collections that went, or were emptied: of the documents nothing else tells.
    delivery
        For acknowledging it.
    datatype, collection_ids
        Of each row, as the server has it.
    maps
        Where names of objects were data in any batch of the stream that was typed: from then on they are.
    """

    record_batch: pa.RecordBatch = field(repr=False)
    rollbacks: tuple[Rollback, ...]
    events: tuple[SystemEvent, ...]
    drops: tuple[CollectionDrop, ...]
    delivery: Delivery = field(repr=False)
    datatype: npt.NDArray[np.uint8] = field(repr=False)
    collection_ids: npt.NDArray[np.uint32] = field(repr=False)
    maps: set[FieldPath] = field(default_factory=set, repr=False)

    def __len__(self) -> int:
        """How many changes there are."""
        return int(self.record_batch.num_rows)

    def __bool__(self) -> bool:
        # One without rows may have a rollback.
        return True

    def __repr__(self) -> str:
        parts = [f"{len(self):,} changes", f"{len(self.delivery.positions)} vbuckets"]
        if self.rollbacks:
            parts.append(f"{len(self.rollbacks)} rollbacks")
        if self.events:
            parts.append(f"{len(self.events)} events")
        return f"<ChangeBatch: {', '.join(parts)}, {self.nbytes:,} bytes>"

    @property
    def nbytes(self) -> int:
        """Size in memory."""
        return int(self.record_batch.nbytes)

    @cached_property
    def offsets(self) -> dict[int, VBucketOffset]:
        """How far the vbuckets of this batch are after it; those of others have not changed."""
        return dict(sorted(self.delivery.positions.items()))

    def __arrow_c_schema__(self) -> Any:
        """The schema of the batch's rows."""
        return self.record_batch.schema.__arrow_c_schema__()

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        """Hand the rows over to any Arrow consumer."""
        return pa.Table.from_batches([self.record_batch]).__arrow_c_stream__(requested_schema)

    def to_arrow(
        self,
        *,
        columns: Sequence[str | tuple[str, ...]] | None = None,
        nested: Literal["struct", "flatten", "json"] = "struct",
    ) -> pa.Table:
        """A table with a typed column for each field of the batch's documents; null where they are gone.

        Types follow from this batch alone.

        Parameters
        ----------
        columns, nested
            As for :func:`cbframe.scan_bucket`, but a field that no document has is null.

        Raises
        ------
        ConfigurationError
            An argument is invalid.
        """
        return self._typed(columns, nested)[0]

    def to_pandas(
        self,
        *,
        columns: Sequence[str | tuple[str, ...]] | None = None,
        nested: Literal["struct", "flatten", "json"] = "struct",
        dtype_backend: str | None = "pyarrow",
    ) -> pd.DataFrame:
        """A DataFrame whose index is the document key, typed as :meth:`to_arrow` does it.

        ``df.attrs["cbframe"]`` has ``conflicts`` and ``rejected``, as of a read, and ``rollbacks``.
        """
        from cbframe.scan.dataframe import to_pandas  # noqa: PLC0415 - pandas is slow to import

        table, conflicts, rejected = self._typed(columns, nested)
        about = {
            "conflicts": [conflict.to_dict() for conflict in conflicts],
            "rejected": rejected,
            "rollbacks": [[each.vbucket, each.seqno] for each in self.rollbacks],
        }
        return to_pandas(table, dtype_backend, about)

    def _typed(
        self, columns: Sequence[str | tuple[str, ...]] | None, nested: Nested
    ) -> tuple[pa.Table, tuple[Conflict, ...], dict[str, int]]:
        batch = pa.Table.from_batches([self.record_batch])
        return typed(batch, self.datatype, columns=columns, nested=nested, maps=self.maps)


def typed(
    changes: pa.Table,  # as in record_batch
    datatype: npt.NDArray[np.uint8],  # of each row, as the server has it
    *,
    columns: Sequence[str | tuple[str, ...]] | None = None,
    nested: Nested = "struct",
    maps: set[FieldPath],  # where names of objects are data in any case; those that are found out are added
) -> tuple[pa.Table, tuple[Conflict, ...], dict[str, int]]:
    """Rows of changes with their documents as columns, conflicts, and how many are no documents."""
    rows = len(changes)
    values = changes[VALUE]
    there = np.asarray(values.is_valid())
    if nested not in NESTED:
        raise ConfigurationError(f"nested={nested!r}", hint=f"choose from: {', '.join(NESTED)}")
    paths = None if columns is None else paths_of(columns, nested)
    documents: list[Documents] = []
    if there.any():
        some = values.filter(pa.array(there)).combine_chunks()
        if isinstance(some, pa.ChunkedArray):
            some = pa.concat_arrays(some.chunks)
        vbucket, seqno = changes[VBUCKET].to_numpy()[there], changes[SEQNO].to_numpy()[there]
        documents.append(Documents(some, is_json(datatype[there]), vbucket, seqno))
    wanted = tree_of(paths) if paths else None
    policy = Policy(nested_as_text=nested == "json", maps=frozenset(maps), wanted=wanted)
    table, settled = typed_documents(documents, policy)
    rows_typed = int(there.sum())
    maps.update(place for place, column in settled.layout.root.conflicts() if column.data)
    if paths is not None:
        table = shape.selected(table, paths, rows=rows_typed, lenient=True)
    if nested == "flatten":
        table = shape.flattened(table)
    table = rendered(table)
    if rows_typed != rows and table.num_columns:
        # Each row takes its document; where there is none, there is no index, and so null.
        table = table.take(pa.array(np.cumsum(there) - 1, mask=~there))
    # The only name without our prefix, since others call this column so: a document's own makes way.
    free = CHANGE_TYPE
    while free in table.column_names:
        free += "_"
    table = table.rename_columns([free if name == CHANGE_TYPE else name for name in table.column_names])
    conflicts = named(settled.disagreements(), lambda places: keys_at([changes], places, None))
    head = changes.drop_columns([VALUE])
    kinds = [kind.value_type if pa.types.is_dictionary(kind) else kind for kind in head.schema.types]
    head = head.cast(pa.schema(list(zip(head.column_names, kinds, strict=True))))
    schema = pa.schema([*head.schema, *table.schema])
    return pa.table([*head.columns, *table.columns], schema=schema), conflicts, settled.reasons()


class Directory:
    """Names of collections by their ids: as they were at the start, and as the streams report since."""

    def __init__(
        self,
        fetch: Callable[[], CollectionsManifest | None],
        known: Mapping[int, CollectionName] | None = None,
        resumed: Container[int] = (),  # vbuckets that are not read from their start
    ) -> None:
        self._fetch = fetch
        self._resumed = resumed
        self._at_start = set(known or ())
        self._names: dict[int, CollectionName | None] = {0: _DEFAULT, **(known or {})}
        self._scopes: dict[int, str] = {0: "_default"}
        self._created: set[tuple[int, int | None]] = set()

    def apply(self, event: SystemEvent) -> CollectionDrop | None:
        """Take in an event; what it says of documents.

        What is gone keeps its name, for the changes that are still under way.
        """
        cid = event.collection_id
        match event.event:
            case SystemEventId.CREATE_SCOPE if event.scope_id is not None:
                self._scopes[event.scope_id] = event.name
            case SystemEventId.CREATE_COLLECTION if cid is not None:
                scope = self._scopes.get(event.scope_id or 0)
                if scope is not None:
                    self._names[cid] = CollectionName(scope, event.name)
        existed = (event.vbucket, cid) in self._created
        existed |= event.vbucket in self._resumed and cid in self._at_start
        ended = ended_collection(event, existed=existed)
        if event.event == SystemEventId.CREATE_COLLECTION:
            self._created.add((event.vbucket, cid))
        return None if ended is None else self._drop(event, ended)

    @property
    def known(self) -> dict[int, CollectionName]:
        """All names, but that of the default collection."""
        return {cid: name for cid, name in self._names.items() if cid and name is not None}

    def learn(self) -> None:
        """Ask the cluster once, if it answers: who learns of a drop later finds no name there."""
        self._ask(())
        self._at_start |= self._names.keys()

    def _drop(self, event: SystemEvent, cid: int) -> CollectionDrop:
        name = self.of([cid])[0]
        scope, collection = (None, None) if name is None else (name.scope, name.name)
        return CollectionDrop(event.vbucket, event.seqno, cid, scope, collection)

    def of(self, ids: Sequence[int]) -> list[CollectionName | None]:
        """Names; None of a collection that nobody knows any more."""
        if any(cid not in self._names for cid in ids):
            self._ask(ids)
        return [self._names.get(cid) for cid in ids]

    def _ask(self, ids: Sequence[int]) -> None:
        try:
            manifest = self._fetch()
        except CbframeError:
            # The changes are what matters: they go on without names, and the next ones ask again.
            return
        if manifest is not None:
            self._names |= manifest.collections
            self._scopes |= {number: name for name, number in manifest.scopes.items()}
        for cid in ids:
            self._names.setdefault(cid, None)


class ChangeRows:
    """Gives rows their public form."""

    def __init__(self, raw: pa.Schema, target: ScanSpec, directory: Directory) -> None:
        self._target = target
        self._directory = directory
        self._raw = raw  # of what arrives
        self.by_key = target.key_filter()
        asked = [f"_cb_{name}" for name in target.metadata]
        columns = [name for name in (VBUCKET, SEQNO) if name not in asked]
        columns += [name for name in asked if name != KEY]
        self.schema = pa.schema(
            [
                pa.field(CHANGE_TYPE, pa.dictionary(pa.int8(), pa.string())),
                pa.field(KEY, KEY_TYPES[target.keys], nullable=False),
                *((name, METADATA_TYPES.get(name, _NAME)) for name in columns),
                pa.field(VALUE, pa.binary()),
            ]
        )

    def reduce(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Only the rows that are wanted."""
        batch = self.by_key.reduce(batch)
        ids = batch.column(COLLECTION_ID).to_numpy()
        if ids.any():
            unique, codes = np.unique(ids, return_inverse=True)
            names = self._directory.of(unique.tolist())
            ours = np.array([name is None or name.scope != SYSTEM_SCOPE for name in names])
            if not ours.all():
                batch = batch.filter(pa.array(ours[codes]))
        return batch

    def formed(
        self, batches: Sequence[pa.RecordBatch]
    ) -> tuple[pa.RecordBatch, npt.NDArray[np.uint8], npt.NDArray[np.uint32]]:
        """One batch of several; and of each row the datatype, and the collection's id."""
        table = pa.Table.from_batches(batches, self._raw).combine_chunks()
        # Combined, a column has one chunk, or none.
        arrays = {
            name: table[name].chunk(0) if len(table) else pa.array([], table[name].type)
            for name in table.column_names
        }
        arrays[KEY] = formed(arrays[KEY], self._target.keys)
        kinds = KIND_OF[arrays[OPCODE].to_numpy()]
        arrays[CHANGE_TYPE] = pa.DictionaryArray.from_arrays(pa.array(kinds), CHANGE_TYPES)
        if kinds.any():
            rows = pa.array(np.arange(len(kinds)), mask=kinds != 0)
            arrays[VALUE] = arrays[VALUE].take(rows)
        if not set(COLLECTION_NAMES).isdisjoint(self.schema.names):
            names = name_columns(arrays[COLLECTION_ID].to_numpy(), self._directory.of)
            arrays |= {name: column.dictionary_encode() for name, column in names.items()}
        record = pa.RecordBatch.from_arrays([arrays[name] for name in self.schema.names], schema=self.schema)
        return record, arrays[DATATYPE].to_numpy(), arrays[COLLECTION_ID].to_numpy()


# --- what makes batches


class Switch:
    """On or off, by any thread; what is done meanwhile on one thread is put off until it is off."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._on = False
        self._put_off: list[Callable[[], None]] = []

    def __bool__(self) -> bool:
        return self._on

    def on(self) -> None:
        with self._lock:
            self._on = True

    def off(self) -> None:
        """Do what was put off."""
        with self._lock:
            self._on = False
            waiting, self._put_off = self._put_off, []
        for work in waiting:
            work()

    def when_off(self, work: Callable[[], None]) -> None:
        """Do it now, or when it is off."""
        with self._lock:
            if self._on:
                self._put_off.append(work)
                return
        work()


class Gatherer:
    """Makes batches, and knows which of them were consumed."""

    def __init__(
        self,
        receiver: ChangeReceiver,  # where items come from
        source: BucketDataSource,  # nothing more arrives once it is finished
        rows: ChangeRows,  # give rows their form
        directory: Directory,
        start: Mapping[int, VBucketOffset],  # where the consumer is at first
        *,
        batch_bytes: int,  # a batch with this many bytes, on the wire, is delivered
        max_latency: float,  # so is one whose first row arrived this many seconds ago
        paused: Switch,  # while it is on, nothing is delivered, and nothing is acknowledged to the nodes
        maps: set[FieldPath],  # where names of objects are data
        epochs: Mapping[int, int],  # of a member of a group, what it has, and since when
    ) -> None:
        self._receiver = receiver
        self._source = source
        self._rows = rows
        self._directory = directory
        self._batch_bytes = batch_bytes
        self._max_latency = max_latency
        self._paused = paused
        self.acked: dict[int, VBucketOffset] = dict(start)
        self._inbox: deque[Item] = deque()
        self._outstanding: deque[Delivery] = deque()
        self._maps = maps
        self.epochs = epochs
        self._torn = False
        self._begin()

    def _begin(self) -> None:
        self._batches: list[pa.RecordBatch] = []
        self._rollbacks: list[Rollback] = []
        self._events: list[SystemEvent] = []
        self._drops: list[CollectionDrop] = []
        self._delivery = Delivery()
        self._nbytes = 0
        self._since: float | None = None
        """When the first thing in the batch came that is worth delivering."""

    def turn(self, deadline: float) -> tuple[ChangeBatch | None, float | None]:
        """A batch, if it is time for one; or else how long to wait for more, None for no longer."""
        if self._torn:
            raise ReadCancelledError(
                "the stream was interrupted while a batch was made",
                hint="close it, and open another one with start=stream.checkpoint",
            )
        # Ctrl-C may come anywhere. Here it would lose what is neither there any more nor here yet.
        self._torn = True
        over = self._source.finished
        self._inbox.extend(self._receiver.take())
        found = self._due(deadline, over=over)
        self._torn = False
        return found

    def _due(self, deadline: float, *, over: bool) -> tuple[ChangeBatch | None, float | None]:
        paused = bool(self._paused)
        full = not paused and self._fill()
        now = monotonic()
        expired = now >= deadline
        late = self._since is not None and now >= self._since + self._max_latency
        if self._since is not None and not paused and (full or late or expired or (over and not self._inbox)):
            return self._cut(), None
        if expired or (over and not paused):
            self._settle()
            return None, None
        left = min(POLL, deadline - now)
        if self._since is not None and not paused:
            left = min(left, self._since + self._max_latency - now)
        return None, max(0.0, left)

    def _fill(self) -> bool:
        """Take items into the batch that is being made; whether it is to be delivered as it is."""
        while self._inbox:
            item = self._inbox[0]
            if isinstance(item, RolledBack) and (self._batches or self._events):
                # A rollback comes between the changes before and those after it.
                return True
            self._inbox.popleft()
            self._take(item)
            if self._nbytes >= self._batch_bytes:
                return True
        return False

    def _take(self, item: Item) -> None:
        delivery = self._delivery
        match item:
            case Arrived(batch=batch, receipt=receipt, positions=positions):
                delivery.positions |= positions
                batch = self._rows.reduce(batch)
                if not len(batch):
                    # Nothing of it is held here, so nothing is held up.
                    self._paused.when_off(receipt.done)
                    return
                self._batches.append(batch)
                self._nbytes += receipt.nbytes
                delivery.receipts.append(receipt)
            case RolledBack(vbucket=vbucket, position=position, server_seqno=server_seqno):
                delivery.positions[vbucket] = position
                self._rollbacks.append(Rollback(vbucket, position.seqno, server_seqno))
            case EventArrived(event=event, position=position):
                delivery.positions[event.vbucket] = position
                if (drop := self._directory.apply(event)) is not None:
                    self._drops.append(drop)
                self._events.append(event)
            case Reached(vbucket=vbucket, position=position):
                delivery.positions[vbucket] = position
                return
        if self._since is None:
            self._since = monotonic()

    def _cut(self) -> ChangeBatch:
        record, datatype, ids = self._rows.formed(self._batches)
        batch = ChangeBatch(
            record,
            tuple(self._rollbacks),
            tuple(self._events),
            tuple(self._drops),
            self._delivery,
            datatype,
            ids,
            self._maps,
        )
        self._outstanding.append(self._delivery)
        self._begin()
        return batch

    @property
    def idle(self) -> bool:
        """Whether all that was delivered is acknowledged."""
        return not self._outstanding

    def awaits(self, batch: ChangeBatch) -> bool:
        """Whether a batch was delivered, and is not acknowledged."""
        return any(delivery is batch.delivery for delivery in self._outstanding)

    def ack(self, batch: ChangeBatch) -> None:
        """Take note that a batch, and all before it, is consumed; once is enough."""
        wanted = batch.delivery
        if not self.awaits(batch):
            return
        while True:
            delivery = self._outstanding.popleft()
            self.acked |= delivery.positions
            for receipt in delivery.receipts:
                self._paused.when_off(receipt.done)
            if delivery is wanted:
                break
        self._settle()

    @property
    def delivered(self) -> dict[int, VBucketOffset]:
        """Where vbuckets are after all that was delivered, acknowledged or not."""
        found = dict(self.acked)
        for delivery in self._outstanding:
            found |= delivery.positions
        return found if self._since is not None else found | self._delivery.positions

    def release(self, batch: ChangeBatch) -> None:
        """Have the bytes of a batch acknowledged to the nodes, and nothing else."""
        delivery = batch.delivery
        receipts, delivery.receipts = delivery.receipts, []
        for receipt in receipts:
            self._paused.when_off(receipt.done)

    def after(self, batch: ChangeBatch) -> dict[int, VBucketOffset]:
        """Where vbuckets will be when a batch is acknowledged; none if it was, or is not ours."""
        wanted = batch.delivery
        found: dict[int, VBucketOffset] = {}
        for delivery in self._outstanding:
            found |= delivery.positions
            if delivery is wanted:
                return found
        return {}

    def _settle(self) -> None:
        """Positions that were reached without anything to deliver need no acknowledgement."""
        if not self._outstanding and self._since is None:
            self.acked |= self._delivery.positions
            self._delivery = Delivery()


# --- the last changes of a stream


@dataclass(slots=True)
class _Piece:
    """Some changes that arrived together."""

    at: float
    rows: pa.RecordBatch
    datatype: npt.NDArray[np.uint8]
    collection: npt.NDArray[np.uint32]

    def where(self, keep: npt.NDArray[np.bool_]) -> None:
        """Forget the other rows."""
        self.rows = self.rows.filter(pa.array(keep))
        self.datatype, self.collection = self.datatype[keep], self.collection[keep]

    def without(self, first: int) -> None:
        """Forget the first rows."""
        self.rows = self.rows.slice(first)
        self.datatype, self.collection = self.datatype[first:], self.collection[first:]

    def column(self, name: str) -> npt.NDArray[np.uint64]:
        """Metadata of the rows."""
        return np.asarray(self.rows.column(name).to_numpy())


class Tail:
    """The last changes: all of them, since a rollback brings older versions back to light."""

    def __init__(self, schema: pa.Schema, clock: Callable[[], float]) -> None:
        self._schema = schema
        self._clock = clock
        self._maps: set[FieldPath] = set()
        self._pieces: deque[_Piece] = deque()
        self._count = 0

    def add(self, batch: ChangeBatch, most: int) -> None:
        """Take a batch, and forget what is before the last `most` changes then."""
        if batch.rollbacks:
            seqnos = by_vbucket({each.vbucket: each.seqno for each in batch.rollbacks})
            self._forget(lambda piece: ~rolled_back(piece.rows, seqnos))
        rows = batch.record_batch
        if len(rows):
            self._pieces.append(_Piece(self._clock(), rows, batch.datatype, batch.collection_ids))
        for drop in batch.drops:
            self._forget(
                lambda piece, drop=drop: (  # type: ignore[misc]
                    (piece.collection != drop.collection_id)
                    | (piece.column(VBUCKET) != drop.vbucket)
                    | (piece.column(SEQNO) >= drop.seqno)
                )
            )
        self._count = sum(len(piece.rows) for piece in self._pieces)
        self._shorten(most)

    def _forget(self, keeps: Callable[[_Piece], npt.NDArray[np.bool_]]) -> None:
        for piece in self._pieces:
            keep = keeps(piece)
            if not keep.all():
                piece.where(keep)

    def _shorten(self, most: int) -> None:
        while self._count > most:
            piece = self._pieces[0]
            excess = self._count - most
            if len(piece.rows) <= excess:
                self._pieces.popleft()
                self._count -= len(piece.rows)
            else:
                piece.without(excess)
                self._count = most

    def to_pandas(
        self,
        age: float | None,
        most: int,
        *,
        columns: Sequence[str | tuple[str, ...]] | None,
        dtype_backend: str | None,
    ) -> pd.DataFrame:
        """Documents in their newest version, of changes that arrived within `age` seconds."""
        from cbframe.scan.dataframe import to_pandas  # noqa: PLC0415 - pandas is slow to import

        self._shorten(most)
        oldest = None if age is None else self._clock() - age
        while oldest is not None and self._pieces and self._pieces[0].at < oldest:
            self._count -= len(self._pieces.popleft().rows)
        table = pa.Table.from_batches([piece.rows for piece in self._pieces], self._schema)
        datatype = np.concatenate([np.zeros(0, np.uint8), *(piece.datatype for piece in self._pieces)])
        ids = np.concatenate([np.zeros(0, np.uint32), *(piece.collection for piece in self._pieces)])
        keep = newest(pa.table({KEY: table[KEY], COLLECTION_ID: pa.array(ids), SEQNO: table[SEQNO]}))
        keep &= np.asarray(table[VALUE].is_valid())
        result, conflicts, rejected = typed(
            table.filter(pa.array(keep)), datatype[keep], columns=columns, maps=self._maps
        )
        about = {"conflicts": [conflict.to_dict() for conflict in conflicts], "rejected": rejected}
        return to_pandas(result, dtype_backend, about)
