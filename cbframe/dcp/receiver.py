"""Who takes the documents: the reference's callbacks, and the fast one that takes blocks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from cbframe.dcp.positions import Position, VBucketMetaData
from cbframe.errors import CbframeError, ProtocolError
from cbframe.wire.blocks import DataBlock
from cbframe.wire.constants import Datatype, Opcode
from cbframe.wire.items import split_xattrs
from cbframe.wire.messages import SystemEvent


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

    def rollback(self, vbucket: int, seqno: int) -> Position | None:
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
    def position(self, vbucket: int) -> Position:
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

    def rollback_ex(self, vbucket: int, vbuuid: int, seqno: int) -> Position | None:
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
