"""The calls of a receiver from the thread of a node: counted, and their exceptions made errors."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import wraps
from typing import TypeVar

import numpy as np

from cbframe.dcp.counters import NodeStats
from cbframe.dcp.positions import Position, VBucketMetaData, vbuuid_at
from cbframe.dcp.receiver import (
    BlockReceiver,
    DeferringReceiver,
    PositionReceiver,
    PreparingReceiver,
    ProgressReceiver,
    Receipt,
    ReceiverEx,
    SystemEventReceiver,
)
from cbframe.dcp.streams import Stream, request_from
from cbframe.errors import CbframeError, ConfigurationError, ReceiverError, StreamError
from cbframe.wire.blocks import DataBlock
from cbframe.wire.constants import Opcode, StreamFlag
from cbframe.wire.messages import SystemEvent
from cbframe.wire.requests import StreamFilter, StreamRequest

T = TypeVar("T")
_MARKERS = "max_marker_version"
_NOTHING = Position()


class Callbacks:
    """Calls a receiver on one thread.

    Every method raises what the receiver raises if it is a CbframeError, and a ReceiverError with
    the cause chained if it is anything else.
    """

    def __init__(
        self,
        receiver: BlockReceiver | DeferringReceiver,  # who is called
        stats: NodeStats,  # counters of the node
        wanted: StreamFilter,  # what each stream request says about collections
        flags: StreamFlag,  # flags of each stream request
    ) -> None:
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
        self._stats = stats
        self._wanted = wanted
        self._flags = flags
        self._held: dict[int, Position] = {}
        """Where vbuckets were asked for from."""
        self._owner = -1

    def bind(self) -> None:
        """Belong to the present thread: callbacks of one connection come from one thread."""
        self._owner = threading.get_ident()

    def request(
        self, vbucket: int, end: int, granted: Collection[str] = (), *, collections: bool = False
    ) -> StreamRequest:
        """The stream request that continues where the receiver's data end.

        `granted` are the options that the node granted to the connection, which may have `collections`.
        """
        stats = self._stats
        stats.tot_get_vbucket_metadata += 1
        position = self._held[vbucket] = self._position(vbucket)
        stats.tot_get_vbucket_metadata_ok += 1
        wanted = self._wanted
        if position.seqno and position.purge_seqno and _MARKERS in granted:
            # The snapshot that is resumed was made after that purge: no deletion in it is missed.
            wanted = replace(wanted, purge_seqno=position.purge_seqno)
        if position.seqno and position.manifest_uid and collections:
            wanted = replace(wanted, uid=position.manifest_uid)
        return request_from(
            vbucket,
            vbuuid=position.vbuuid,
            seqno=position.seqno,
            snap_start=position.snap_start,
            snap_end=position.snap_end,
            end=end,
            flags=self._flags,
            value=wanted.encode(),
        )

    def _position(self, vbucket: int) -> Position:
        receiver, stats = self._receiver, self._stats
        try:
            if self._positions is not None:
                return self._call(self._positions.position, vbucket)
            stored, seqno = self._call(receiver.get_metadata, vbucket)
        except CbframeError:
            stats.tot_get_vbucket_metadata_err += 1
            raise
        try:
            return Position.of(None if stored is None else VBucketMetaData.from_json(stored), seqno)
        except ConfigurationError as exc:
            stats.tot_get_vbucket_metadata_unmarshal_err += 1
            exc.vbucket = vbucket
            raise

    def save(self, stream: Stream) -> None:
        """Give the receiver the failover log and the snapshot's range to store."""
        receiver, stats = self._receiver, self._stats
        stats.tot_set_vbucket_metadata += 1
        held = self._held.get(stream.vbucket, _NOTHING)
        metadata = VBucketMetaData(
            snap_start=stream.snap_start,
            snap_end=stream.snap_end,
            failover_log=stream.failover_log,
            purge_seqno=stream.purge_seqno or held.purge_seqno,
            manifest_uid=stream.manifest_uid or held.manifest_uid,
        )
        positions = self._positions
        try:
            encoded = metadata.to_json() if positions is None else b""
        except (TypeError, ValueError) as exc:
            stats.tot_set_vbucket_metadata_marshal_err += 1
            raise StreamError(f"the metadata has no JSON: {exc}", vbucket=stream.vbucket) from exc
        try:
            if positions is None:
                self._call(receiver.set_metadata, stream.vbucket, encoded)
            else:
                self._call(positions.store, stream.vbucket, metadata)
        except CbframeError:
            stats.tot_set_vbucket_metadata_err += 1
            raise
        stats.tot_set_vbucket_metadata_ok += 1

    def deliver(self, block: DataBlock, receipt: Receipt) -> None:
        """Give the receiver documents; `receipt` is done when they are consumed."""
        stats = self._stats
        mutations = int((block.opcode == np.uint8(Opcode.DCP_MUTATION)).sum())
        deletions = int((block.opcode == np.uint8(Opcode.DCP_DELETION)).sum())
        stats.tot_upr_data_change_mutation += mutations
        stats.tot_upr_data_change_deletion += deletions
        stats.tot_upr_data_change_expiration += len(block) - mutations - deletions
        stats.blocks += 1
        try:
            self._call(self._take_block, block, receipt)
        except CbframeError:
            stats.tot_upr_data_change_err += len(block)
            raise
        stats.tot_upr_data_change_ok += len(block)

    def snapshot(self, stream: Stream) -> None:
        """Tell the receiver that a snapshot begins."""
        stats = self._stats
        stats.tot_upr_snapshot += 1
        stats.tot_upr_snapshot_start += 1
        try:
            self._call(
                self._receiver.snapshot_start,
                stream.vbucket,
                stream.snap_start,
                stream.snap_end,
                stream.snap_flags,
            )
        except CbframeError:
            stats.tot_upr_snapshot_start_err += 1
            raise
        stats.tot_upr_snapshot_ok += 1

    def advanced(self, stream: Stream) -> None:
        """Tell a receiver that wants to know that a stream got on without documents."""
        if self._on_progress is not None and not stream.unordered:
            self._save_first(stream)
            self._call(self._on_progress, stream.vbucket, stream.seqno)

    def system_event(self, stream: Stream, event: SystemEvent) -> None:
        """Tell a receiver that wants to know of a change of the collections."""
        if self._on_event is not None:
            self._save_first(stream)
            self._call(self._on_event, stream.vbucket, event)

    def _save_first(self, stream: Stream) -> None:
        """The first of a snapshot that the receiver gets to know comes with the snapshot's range."""
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
        stats.tot_upr_stream_req_res_rollback_start += 1
        try:
            if isinstance(receiver, ReceiverEx):
                # The answer names no history; what remains belongs to one that was stored.
                vbuuid = vbuuid_at(self._held[stream.vbucket].failover_log, seqno)
                position = self._call(receiver.rollback_ex, stream.vbucket, vbuuid, seqno)
            else:
                position = self._call(receiver.rollback, stream.vbucket, seqno)
            if isinstance(position, Position) and position.seqno > seqno:
                raise ReceiverError(
                    f"the receiver rolled back to seqno {position.seqno}, and not to {seqno} or before",
                    vbucket=stream.vbucket,
                    hint="rollback() returns where the data end: forget all that came after the seqno",
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


def _done_at_once(on_block: Callable[[DataBlock], None]) -> Callable[[DataBlock, Receipt], None]:
    """What a receiver that does not defer does: its documents are consumed when the call is over."""

    @wraps(on_block)
    def take_block(block: DataBlock, receipt: Receipt) -> None:
        on_block(block)
        receipt.done()

    return take_block
