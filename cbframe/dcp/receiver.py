"""Who takes the documents: the reference's callbacks, and the fast one that takes blocks; queues for them."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import wraps
from typing import Generic, NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np

from cbframe.dcp.handshake import Session
from cbframe.dcp.positions import VBucketMetaData, VBucketOffset, vbuuid_at
from cbframe.dcp.stats import NodeStats
from cbframe.dcp.streams import Stream, request_from
from cbframe.errors import CbframeError, ConfigurationError, ProtocolError, ReceiverError, StreamError
from cbframe.options import BucketDataSourceOptions
from cbframe.system import Event, waited
from cbframe.wire.blocks import DataBlock
from cbframe.wire.constants import Datatype, Opcode, StreamFlag
from cbframe.wire.messages import StreamFilter, StreamRequest, SystemEvent, split_xattrs

T = TypeVar("T")
_MARKERS = "max_marker_version"
_NOTHING = VBucketOffset()


class Document(NamedTuple):
    """One data message, as the callbacks of :class:`Receiver` get it.

    With ``include_xattrs``, `value` begins with the section of extended attributes where `datatype` has
    the bit ``Datatype.XATTR``; `xattrs` and `body` take it apart.
    """

    opcode: int
    datatype: int
    cas: int
    rev_seqno: int
    flags: int
    expiry: int
    collection_id: int
    value: bytes

    def __repr__(self) -> str:
        """Without the value: it may be private."""
        shown = ", ".join(f"{name}={getattr(self, name)}" for name in self._fields[:-1])
        return f"Document({shown}, {len(self.value)} bytes)"

    @property
    def xattrs(self) -> dict[str, bytes]:
        """Extended attributes, JSON text by name; none where ``include_xattrs`` was not asked for."""
        return split_xattrs(self.value).xattrs if self.datatype & Datatype.XATTR and self.value else {}

    @property
    def body(self) -> bytes:
        """The value without extended attributes."""
        return split_xattrs(self.value).body if self.datatype & Datatype.XATTR and self.value else self.value


class BaseReceiver(Protocol):
    """What every receiver has.

    Callbacks of one vbucket come from one thread at a time; those of different connections come
    concurrently. No lock is held during a callback. An exception tears the node's connection down
    and is reported through `on_error`.

    A callback holds up its node: while it runs nothing is received, and the node's question whether
    the client lives has no answer. One that takes longer than two noop intervals loses the
    connection. A receiver that has to wait for someone is a :class:`DeferringReceiver`.
    """

    def on_error(self, error: CbframeError) -> None:
        """Take note of a problem. Advisory; may come from any thread."""

    def snapshot_start(self, vbucket: int, start: int, end: int, flags: int) -> None:
        """Take note that a snapshot begins: the items up to the next one are in [start, end]."""

    def set_metadata(self, vbucket: int, metadata: bytes) -> None:
        """Store bytes for a vbucket, in one transaction with its data."""

    def get_metadata(self, vbucket: int) -> tuple[bytes | None, int]:
        """Give back what was stored, and the last seqno received; (None, 0) for a fresh start."""

    def rollback(self, vbucket: int, seqno: int) -> VBucketOffset | None:
        """Forget everything of a vbucket after `seqno`, in data and in metadata.

        It may go back farther than that, and may return where it went.
        """


class PositionReceiver(ABC):
    """Base of this package's receivers: they keep positions as they are, and no JSON of them."""

    __slots__ = ()

    @abstractmethod
    def store(self, vbucket: int, metadata: VBucketMetaData) -> None:
        """In place of :meth:`set_metadata`."""

    @abstractmethod
    def position(self, vbucket: int) -> VBucketOffset:
        """In place of :meth:`get_metadata`."""

    def set_metadata(self, vbucket: int, metadata: bytes) -> None:
        self.store(vbucket, VBucketMetaData.from_json(metadata))

    def get_metadata(self, vbucket: int) -> tuple[bytes | None, int]:
        position = self.position(vbucket)
        metadata = position.metadata
        return None if metadata is None else metadata.to_json(), position.seqno


@runtime_checkable
class Receiver(BaseReceiver, Protocol):
    """The reference's receiver: one call a document."""

    def data_update(self, vbucket: int, key: bytes, seqno: int, document: Document) -> None:
        """Take a mutation."""

    def data_delete(self, vbucket: int, key: bytes, seqno: int, document: Document) -> None:
        """Take a deletion or an expiration."""


@runtime_checkable
class ReceiverEx(Protocol):
    """A receiver that wants to know the history on a rollback."""

    def rollback_ex(self, vbucket: int, vbuuid: int, seqno: int) -> VBucketOffset | None:
        """Instead of `rollback`; `vbuuid` is the history that remains, 0 where nothing does."""


@runtime_checkable
class PreparingReceiver(Protocol):
    """A receiver that reads files before it can roll back: not in a callback, but on another thread."""

    def prepare_rollback(self, ready: Callable[[], None]) -> bool:
        """Whether `rollback` can be called at once; if not, `ready` is called when it can be.

        `ready` may be called from any thread. It does nothing if the connection has ended meanwhile: then
        the vbucket is rolled back by the next one.
        """


@runtime_checkable
class HoldingReceiver(Protocol):
    """A receiver that gives out nothing before it is on the disks of all copies, with ``only_persisted``."""

    def hold(self, want: Callable[[int, int, int], None]) -> None:
        """Take what has a vbucket asked about, given a history and a seqno of it; 0 ends it."""

    def on_persisted(self, floors: Mapping[int, tuple[int, int]]) -> None:
        """By vbucket, history and seqno up to which all copies have it on disk; from any thread."""


@runtime_checkable
class SystemEventReceiver(Protocol):
    """A receiver that wants to know of scopes and collections that come, go or change."""

    def system_event(self, vbucket: int, event: SystemEvent) -> None:
        """Take an event, in order with the documents; it has a seqno of its own.

        The documents of a collection that is dropped are not deleted one by one: all of the vbucket's
        with its id and a smaller seqno are gone with it.
        """


@runtime_checkable
class ProgressReceiver(Protocol):
    """A receiver that wants to know of progress without documents."""

    def seqno_advanced(self, vbucket: int, seqno: int) -> None:
        """Take note that everything up to `seqno` was received: it may be stored as the last seqno."""


@runtime_checkable
class BlockReceiver(BaseReceiver, Protocol):
    """A receiver that takes runs of documents as columns: the fast way.

    With an attribute ``takes_compressed = True`` it may get values as the server has them stored: the
    bit ``Datatype.SNAPPY`` in the block's ``datatype`` says which are Snappy blocks.
    :func:`cbframe.arrow.columns.record_batch` inflates them.
    """

    def on_block(self, block: DataBlock) -> None:
        """Take documents. The block is valid during the call only: copy what is to stay."""


class Receipt:
    """Documents that were handed over and are not consumed yet.

    Until :meth:`done` is called, their bytes count against the window of the connection
    (``feed_buffer_size_bytes``): the node sends no more than that beyond what is done.

    Attributes
    ----------
    nbytes
        Their length on the wire.
    """

    def __init__(self, nbytes: int, acknowledge: Callable[[int], None]) -> None:
        self.nbytes = nbytes
        # Popped by whoever is first: two threads may call at once.
        self._acknowledge = [acknowledge]

    def __repr__(self) -> str:
        return f"<Receipt of {self.nbytes} bytes{'' if self._acknowledge else ', done'}>"

    def split(self, nbytes: int) -> Receipt:
        """Take bytes of it off, as a receipt of their own; before any of it is done."""
        self.nbytes -= nbytes
        return Receipt(nbytes, self._acknowledge[0])

    def done(self) -> None:
        """Say that the documents are consumed; once is enough.

        May come from any thread, at any time. When the connection that brought the documents is gone,
        nobody waits for it any more.
        """
        acknowledge: Callable[[int], None] | None = None
        with suppress(IndexError):
            acknowledge = self._acknowledge.pop()
        if acknowledge is not None:
            acknowledge(self.nbytes)


@runtime_checkable
class DeferringReceiver(BaseReceiver, Protocol):
    """A receiver whose documents are consumed later, and elsewhere: flow control waits for it.

    What it holds back is bounded by one window a node; a batch that is to be larger than a window
    never comes together.
    """

    def take_block(self, block: DataBlock, receipt: Receipt) -> None:
        """Take documents, and have `receipt` done when they are consumed.

        The block is valid during the call only: copy what is to stay.
        """


class DiscardingReceiver(PositionReceiver):
    """Base of receivers that watch streams from the start, and want no documents."""

    __slots__ = ()

    def on_block(self, block: DataBlock) -> None: ...
    def on_error(self, error: CbframeError) -> None: ...
    def snapshot_start(self, vbucket: int, start: int, end: int, flags: int) -> None: ...
    def store(self, vbucket: int, metadata: VBucketMetaData) -> None: ...
    def rollback(self, vbucket: int, seqno: int) -> None: ...

    def position(self, vbucket: int) -> VBucketOffset:  # noqa: ARG002
        return VBucketOffset()


class AdaptedReceiver:
    """A :class:`Receiver` that takes blocks."""

    def __init__(self, receiver: Receiver) -> None:
        self._update = receiver.data_update
        self._delete = receiver.data_delete
        self.on_error = receiver.on_error
        self.snapshot_start = receiver.snapshot_start
        self.set_metadata = receiver.set_metadata
        self.get_metadata = receiver.get_metadata
        self.rollback = receiver.rollback
        if isinstance(receiver, ReceiverEx):
            self.rollback_ex = receiver.rollback_ex
        if isinstance(receiver, SystemEventReceiver):
            self.system_event = receiver.system_event
        if isinstance(receiver, ProgressReceiver):
            self.seqno_advanced = receiver.seqno_advanced

    def on_block(self, block: DataBlock) -> None:
        compressed = block.compressed()
        if compressed.any():
            raise ProtocolError(
                "a compressed value on a connection without compression",
                vbucket=int(block.vbucket[int(np.argmax(compressed))]),
            )
        columns = zip(
            block.vbucket.tolist(),
            block.seqno.tolist(),
            block.opcode.tolist(),
            (block.datatype & np.uint8(0xFF & ~int(Datatype.SNAPPY))).tolist(),
            block.cas.tolist(),
            block.rev_seqno.tolist(),
            block.flags.tolist(),
            block.expiry.tolist(),
            block.collection_id.tolist(),
            strict=True,
        )
        for row, (vbucket, seqno, *fields) in enumerate(columns):
            document = Document._make((*fields, block.value(row)))
            take = self._update if document.opcode == Opcode.DCP_MUTATION else self._delete
            take(vbucket, block.key(row), seqno, document)


def taker_of_blocks(
    receiver: Receiver | BlockReceiver | DeferringReceiver,
) -> BlockReceiver | DeferringReceiver:
    """The receiver itself, or what turns blocks into its calls."""
    if isinstance(receiver, BlockReceiver | DeferringReceiver):
        return receiver
    return AdaptedReceiver(receiver)


def _done_at_once(on_block: Callable[[DataBlock], None]) -> Callable[[DataBlock, Receipt], None]:
    """What a receiver that does not defer does: its documents are consumed when the call is over."""

    @wraps(on_block)
    def take_block(block: DataBlock, receipt: Receipt) -> None:
        on_block(block)
        receipt.done()

    return take_block


class Callbacks:
    """Calls a receiver on the thread of one connection, and counts.

    Every method raises what the receiver raises if it is a CbframeError, and a ReceiverError with
    the cause chained if it is anything else.
    """

    def __init__(
        self, receiver: BlockReceiver | DeferringReceiver, options: BucketDataSourceOptions, stats: NodeStats
    ) -> None:
        self.wanted = StreamFilter(options.collections, options.scope_id, options.stream_id)
        """What each stream request says about collections."""
        # Not STRICT_VBUUID: a fresh start has no history to insist on.
        self._flags = StreamFlag.ACTIVE_ONLY
        if options.ignore_purged_tombstones:
            self._flags |= StreamFlag.IGNORE_PURGED_TOMBSTONES
        self._stats = stats
        self._receiver = receiver
        # Chosen here: to ask what a receiver is takes as long as to deliver a small block.
        self._positions = receiver if isinstance(receiver, PositionReceiver) else None
        self._take_block = (
            receiver.take_block
            if isinstance(receiver, DeferringReceiver)
            else _done_at_once(receiver.on_block)
        )
        self._on_progress = receiver.seqno_advanced if isinstance(receiver, ProgressReceiver) else None
        self._on_event = receiver.system_event if isinstance(receiver, SystemEventReceiver) else None
        self._held: dict[int, VBucketOffset] = {}
        """Where vbuckets were requested from."""
        self._owner = -1

    def bind(self) -> None:
        """Belong to the present thread: callbacks of one connection come from one thread."""
        self._owner = threading.get_ident()

    def request(self, vbucket: int, end: int, session: Session | None) -> StreamRequest:
        """The stream request that continues where the receiver's data end."""
        position = self._held[vbucket] = self._position(vbucket)
        self._stats.tot_get_vbucket_metadata_ok += 1
        wanted = self.wanted
        if session and position.seqno and position.purge_seqno and _MARKERS in session.granted:
            # The snapshot that is resumed was made after that purge: no deletion in it is missed.
            wanted = replace(wanted, purge_seqno=position.purge_seqno)
        if session and position.seqno and position.manifest_uid and session.collections:
            wanted = replace(wanted, uid=position.manifest_uid)
        return request_from(vbucket, position, end, self._flags, wanted.encode())

    def _position(self, vbucket: int) -> VBucketOffset:
        receiver, stats = self._receiver, self._stats
        try:
            if self._positions is not None:
                return self._call(self._positions.position, vbucket)
            stored, seqno = self._call(receiver.get_metadata, vbucket)
        except CbframeError:
            stats.tot_get_vbucket_metadata_err += 1
            raise
        try:
            return VBucketOffset.of(None if stored is None else VBucketMetaData.from_json(stored), seqno)
        except ConfigurationError as exc:
            stats.tot_get_vbucket_metadata_unmarshal_err += 1
            exc.vbucket = vbucket
            raise

    def save(self, stream: Stream) -> int:
        """Give the receiver the failover log and the snapshot's range to store; the history it knew, or 0."""
        stats = self._stats
        held = self._held.get(stream.vbucket, _NOTHING)
        metadata = VBucketMetaData(
            snap_start=stream.snap_start,
            snap_end=stream.snap_end,
            failover_log=stream.failover_log,
            purge_seqno=stream.purge_seqno or held.purge_seqno,
            manifest_uid=stream.manifest_uid or held.manifest_uid,
        )
        store: Callable[..., object] = self._receiver.set_metadata
        stored: object = metadata
        if self._positions is not None:
            store = self._positions.store
        else:
            try:
                stored = metadata.to_json()
            except (TypeError, ValueError) as exc:
                stats.tot_set_vbucket_metadata_marshal_err += 1
                raise StreamError(f"the metadata has no JSON: {exc}", vbucket=stream.vbucket) from exc
        try:
            self._call(store, stream.vbucket, stored)
        except CbframeError:
            stats.tot_set_vbucket_metadata_err += 1
            raise
        stats.tot_set_vbucket_metadata_ok += 1
        return held.history

    def deliver(self, block: DataBlock, receipt: Receipt) -> None:
        """Give the receiver documents; `receipt` is done when they are consumed."""
        stats = self._stats
        mutations = int((block.opcode == np.uint8(Opcode.DCP_MUTATION)).sum())
        deletions = int((block.opcode == np.uint8(Opcode.DCP_DELETION)).sum())
        stats.mutations += mutations
        stats.deletions += deletions
        stats.expirations += len(block) - mutations - deletions
        stats.blocks += 1
        try:
            self._call(self._take_block, block, receipt)
        except CbframeError:
            stats.tot_upr_data_change_err += len(block)
            raise
        stats.tot_upr_data_change_ok += len(block)

    def snapshot(self, stream: Stream) -> None:
        """A snapshot begins."""
        span = stream.snap_start, stream.snap_end, stream.snap_flags
        try:
            self._call(self._receiver.snapshot_start, stream.vbucket, *span)
        except CbframeError:
            self._stats.tot_upr_snapshot_start_err += 1
            raise
        self._stats.tot_upr_snapshot_ok += 1

    def advanced(self, stream: Stream) -> None:
        """A stream got on without documents: for receivers that want to know."""
        if self._on_progress is not None and not stream.unordered:
            self._save_first(stream)
            self._call(self._on_progress, stream.vbucket, stream.seqno)

    def system_event(self, stream: Stream, event: SystemEvent) -> None:
        """A collection changed: for receivers that want to know."""
        if self._on_event is not None:
            self._save_first(stream)
            self._call(self._on_event, stream.vbucket, event)

    def _save_first(self, stream: Stream) -> None:
        """The first item of a snapshot comes with the snapshot's range."""
        if not stream.snap_saved:
            stream.snap_saved = True
            self.save(stream)

    def roll_back(self, stream: Stream, seqno: int, ready: Callable[[], None]) -> bool:
        """Have the receiver roll a vbucket back; False if it cannot yet, and calls `ready` when it can."""
        receiver, stats = self._receiver, self._stats
        if isinstance(receiver, PreparingReceiver) and not self._call(receiver.prepare_rollback, ready):
            return False
        if seqno >= stream.start:
            seqno = 0  # a rollback that leads nowhere back would repeat for ever
        stats.rollbacks += 1
        try:
            if isinstance(receiver, ReceiverEx):
                # The answer names no history; what remains belongs to one that was stored.
                vbuuid = vbuuid_at(self._held[stream.vbucket].failover_log, seqno)
                position = self._call(receiver.rollback_ex, stream.vbucket, vbuuid, seqno)
            else:
                position = self._call(receiver.rollback, stream.vbucket, seqno)
            if isinstance(position, VBucketOffset) and position.seqno > seqno:
                raise ReceiverError(
                    f"the receiver rolled back to seqno {position.seqno}, and not to {seqno} or before",
                    vbucket=stream.vbucket,
                    hint="rollback() deletes all that came after the seqno, and returns where the rest ends",
                )
        except CbframeError:
            stats.tot_upr_stream_req_res_rollback_err += 1
            raise
        stats.tot_upr_stream_req_res_want_after_rollback_err += 1
        return True

    def _call(self, callback: Callable[..., T], *args: object) -> T:
        assert threading.get_ident() == self._owner, "callbacks run on the node's thread"
        try:
            return callback(*args)
        except CbframeError:
            raise
        except Exception as exc:
            name = getattr(callback, "__name__", "a callback")
            # Its words may be a document's; whoever wants them finds them as the cause.
            raise ReceiverError(f"the receiver's {name} raised {type(exc).__name__}") from exc


class Handover(Generic[T]):
    """Items put in by many threads, taken out by one, numbered in the order of arrival.

    It never blocks a thread that puts in: flow control is the brake, not this queue. Waking the consumer has
    a price, so it is woken when there is `enough` in the sum of what the items count for.
    """

    def __init__(self) -> None:
        self._items: deque[T] = deque()
        self._count = 0
        self.enough = 0
        self._waiting = 0
        self._lock = threading.Lock()
        self._arrived = Event()

    def put(self, item: T, nbytes: int = 0) -> None:
        """Add an item that counts for a number of bytes; callable from any thread."""
        with self._lock:
            self._items.append(item)
            self._count += 1
            self._waiting += nbytes
            enough = self._waiting >= self.enough
        if enough and not self._arrived.is_set():
            self._arrived.set()

    def count(self) -> int:
        """How many items were put in so far: the number of the next one."""
        with self._lock:
            return self._count

    def take(self, timeout: float | None = None) -> list[T]:
        """All items since the last call, after waiting up to `timeout` seconds for enough of them."""
        waited(self._arrived.wait, timeout)
        with self._lock:
            self._arrived.clear()
            self._waiting = 0
            items = list(self._items)
            self._items.clear()
        return items

    def wake(self) -> None:
        """End the consumer's wait."""
        self._arrived.set()


class MergingHandover(Generic[T]):
    """Items put in by many threads, taken out by one; some of them replace what waits.

    For news that come again and again, of which only the last counts: however long the consumer stays
    away, they take room once for each key.
    """

    def __init__(self) -> None:
        self._items: deque[list[T]] = deque()
        self._open: dict[int, list[T]] = {}
        """By key: the news that may still be replaced."""
        self._lock = threading.Lock()
        self._arrived = Event()

    def put(self, item: T, keys: Iterable[int]) -> None:
        """Add an item; what waits for one of its keys is not replaced any more."""
        with self._lock:
            for key in keys:
                self._open.pop(key, None)
            self._items.append([item])
        self._arrived.set()

    def news(self, key: int, item: T) -> None:
        """Add an item, in place of the last one of this key if nothing else of the key came since."""
        with self._lock:
            place = self._open.get(key)
            if place is None:
                self._open[key] = place = [item]
                self._items.append(place)
            place[0] = item
        self._arrived.set()

    def wait(self, timeout: float | None = None) -> None:
        """Wait up to `timeout` seconds for an item, or for :meth:`wake`."""
        waited(self._arrived.wait, timeout)

    def take(self) -> list[T]:
        """All items since the last call."""
        with self._lock:
            self._arrived.clear()
            items = [place[0] for place in self._items]
            self._items.clear()
            self._open.clear()
        return items

    def wake(self) -> None:
        """End the consumer's wait."""
        self._arrived.set()
