"""Recorded conversations with a real node, held again with a :class:`LocalCluster`.

A :class:`Stage` prepares the cluster as the real node was, which it learns from the recording: what a
stream was sent is what the vbucket held. The client's side is then sent frame by frame, and what
comes back is compared with what came back then.

A change that reached the recorded client while it was waiting is made at that point. Numbers that a
server makes up (CAS, times, durations, nonces) are not compared; vbucket uuids are those of the
recording.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from cbframe.local import LocalCluster
from cbframe.local import items as stored
from cbframe.local.bucket import LocalBucket, Scope, VBucket
from cbframe.local.items import deflate, inflate
from cbframe.wire.constants import (
    Datatype,
    Feature,
    Magic,
    Opcode,
    OpenFlag,
    SnapshotFlag,
    Status,
    StreamEndReason,
    StreamFlag,
    SystemEventId,
)
from cbframe.wire.framing import Frame
from cbframe.wire.messages import (
    FailoverEntry,
    Hello,
    SnapshotMarker,
    StreamRequest,
    encode_leb128,
    parse_failover_log,
    parse_message,
    parse_request,
)

from .shapes import ITEMS, marker_of, seqno_of

GOLDEN = Path(__file__).parent.parent / "golden"
GOLDEN8 = GOLDEN.with_name("golden8")
VBUCKETS = 16
HOLE = 15
"""The vbucket that the recorded node did not have."""
_PAUSE = 0.15
"""Seconds after which the recorded server sent something new, not the rest of what it had."""
_BODY = b'{"id":1}'
PURGE_SEQNO = re.compile(rb'"purge_seqno": ?"(\d+)"')
_LARGEST = 10_000
_CREATION = {
    SystemEventId.DROP_COLLECTION: SystemEventId.CREATE_COLLECTION,
    SystemEventId.DROP_SCOPE: SystemEventId.CREATE_SCOPE,
}
_OTHERS = 9_999
"""A collection that no recorded stream asks for, for seqnos that it was not sent."""


def frames(name: str, side: str) -> Iterator[Frame]:
    """What one side of a conversation sent, up to the end or to what is no frame."""
    data, offset = (GOLDEN / f"{name}.{side}.bin").read_bytes(), 0
    while (parsed := Frame.parse(data, offset)) is not None:
        frame, offset = parsed
        yield frame


def _event(seqno: int, event: int, name: bytes, *ids: int) -> Change:
    value = struct.pack(f">Q{len(ids)}I", 0, *ids)
    return Change(stored.system_event(0, event, name, value, seqno=seqno, version=0))


def _mutation(vbucket: int, key: bytes, value: bytes, seqno: int, datatype: int) -> bytes:
    made_up = {"rev": 1, "cas": 1, "flags": 0, "expiry": 0}
    return stored.mutation(vbucket, key, value, seqno=seqno, datatype=datatype, **made_up)


class Step(NamedTuple):
    """One message of a conversation."""

    sent: bool
    """By the client."""
    time: float
    frame: Frame


def conversation(name: str, folder: Path = GOLDEN) -> list[Step]:
    """The messages of both sides in the order in which they were recorded."""
    order = json.loads((folder / f"{name}.json").read_text())["messages"]
    sides = {side: (folder / f"{name}.{side}.bin").read_bytes() for side in ("c2s", "s2c")}
    steps = []
    for message in order:
        if "op" not in message:
            continue
        parsed = Frame.parse(sides[message["dir"]], message["offset"])
        assert parsed is not None
        steps.append(Step(message["dir"] == "c2s", message["t"], parsed[0]))
    return steps


@dataclass
class Change:
    """What the recorded vbucket had at one seqno, in the stored form."""

    frame: bytes
    prepared: int = 0


_CREATED = {
    1: _event(1, SystemEventId.CREATE_SCOPE, b"inventory", 8),
    2: _event(2, SystemEventId.CREATE_COLLECTION, b"airline", 8, 8),
    3: _event(3, SystemEventId.CREATE_COLLECTION, b"hotel", 8, 9),
}


class Stage:
    """The cluster behind one conversation, and what the recording says about it.

    Parameters
    ----------
    cluster
        Made for this conversation.
    steps
        The conversation.
    source
        A conversation about the same data, where this one does not show what the data was; None for this
        one.
    """

    def __init__(self, cluster: LocalCluster, steps: list[Step], source: list[Step] | None = None) -> None:
        self.cluster = cluster
        self.steps = steps
        self.bucket: LocalBucket = cluster._engine.bucket
        self.collections = self.snappy = self.forced = False
        self.flags = 0
        self.changes: dict[int, dict[int, Change]] = {}
        self.visible: dict[int, int] = {}
        """Seqnos up to which a client without collections was told of changes, by vbucket."""
        inventory = Scope(8, {"airline": 8, "hotel": 9})
        self.bucket.manifest.scopes["inventory"] = inventory
        self.bucket.manifest.uid = 2
        self.bucket.map[HOLE] = [-1]
        for step in source or steps:
            if step.sent:
                self.listen(step)
            elif step.frame.opcode == Opcode.DCP_SYSTEM_EVENT and step.frame.extras[12] == 2:
                self.learn(_PLAIN_EVENTS[step.frame.vbucket, seqno_of(step.frame)])
            elif not step.frame.is_response:
                self.learn(step.frame)
        if any(step.frame.opcode == Opcode.GET_ALL_VB_SEQNOS for step in steps):
            # The collections of the scope are in every vbucket.
            for vbucket in self.bucket.vbuckets:
                self.changes.setdefault(vbucket.id, {}).update(_CREATED)
                self.advance(vbucket, len(_CREATED))

    # -- what the recording says

    def listen(self, step: Step) -> None:
        """Note what the client asked for on its connection."""
        frame = step.frame
        if frame.opcode == Opcode.HELLO:
            features = Hello.parse(frame).features
            self.collections = Feature.COLLECTIONS in features
            self.snappy = Feature.SNAPPY in features
        elif frame.opcode == Opcode.DCP_OPEN and len(frame.extras) == 8:
            self.flags = int.from_bytes(frame.extras[4:], "big")
        elif frame.opcode == Opcode.DCP_CONTROL and frame.key == b"force_value_compression":
            self.forced = True

    def learn(self, frame: Frame) -> None:
        """Note a change that the recorded server sent."""
        # The number of its stream is no part of it.
        frame = replace(frame, magic=Magic.REQUEST, framing_extras=b"")
        known = self.changes.setdefault(frame.vbucket, {})
        if frame.opcode == Opcode.DCP_COMMIT:
            prepared, seqno = struct.unpack(">QQ", frame.extras)
            pending = known[prepared].frame
            value, datatype = stored.value_of(pending), pending[5]
            known[seqno] = Change(_mutation(frame.vbucket, frame.key, value, seqno, datatype), prepared)
            return
        seqno = int.from_bytes(frame.extras[:8], "big")
        if frame.opcode == Opcode.DCP_SYSTEM_EVENT:
            known[seqno] = Change(replace(frame, opaque=0).encode())
            return
        if frame.opcode not in {*ITEMS, Opcode.DCP_PREPARE}:
            return
        key = frame.key if self.collections else b"\0" + frame.key
        value, datatype = self._as_stored(frame)
        extras = frame.extras
        if frame.opcode == Opcode.DCP_DELETION:
            extras = extras[:16] + bytes(5)
        change = replace(frame, opaque=0, key=key, value=value, datatype=datatype, extras=extras).encode()
        old = known.get(seqno)
        if old is None or len(old.frame) < len(change):
            known[seqno] = Change(change)

    def _as_stored(self, frame: Frame) -> tuple[bytes, int]:
        """A value that the connection's options make the recorded one of."""
        value, datatype = frame.value, frame.datatype
        without = self.flags & (OpenFlag.NO_VALUE | OpenFlag.NO_VALUE_WITH_UNDERLYING_DATATYPE)
        if frame.opcode != Opcode.DCP_MUTATION:
            if without and datatype & Datatype.XATTR and not value:
                # Some attribute of the system: that there was one is all that is known.
                value = _section(b"_a", b"1")
            return deflate(value) if without and datatype & Datatype.SNAPPY else value, datatype
        if without and datatype & Datatype.XATTR and not value:
            value = _section(b"_a", b"1")
        underlying = self.flags & OpenFlag.NO_VALUE_WITH_UNDERLYING_DATATYPE
        if without and not value.endswith(_BODY) and (datatype or not underlying):
            value += _BODY
            datatype |= 0 if underlying else Datatype.JSON
            if datatype & Datatype.SNAPPY:
                value = deflate(value)
        elif self.forced and datatype & Datatype.SNAPPY:
            value, datatype = inflate(value, 1 << 20), datatype & ~Datatype.SNAPPY
        elif not self.snappy and value:
            value, datatype = deflate(value), datatype | Datatype.SNAPPY
        return value, datatype

    # -- preparing

    def advance(self, vbucket: VBucket, high: int) -> None:
        """Let the recorded changes up to `high` happen that have not yet."""
        known = self.changes.get(vbucket.id, {})
        with self.bucket.lock:
            while vbucket.high_seqno < high:
                seqno = vbucket.high_seqno + 1
                change = known.get(seqno)
                if change is None:
                    change = Change(self._unseen(vbucket, seqno, high, known))
                if change.prepared:
                    vbucket.commits[seqno] = change.prepared
                key = stored.stored_key(change.frame)
                vbucket._append(key, change.frame, vbucket.find(key))
                self._manifest(change.frame)
            self.bucket.written(vbucket.id)

    def _unseen(self, vbucket: VBucket, seqno: int, high: int, known: dict[int, Change]) -> bytes:
        """A change that the client was not sent: superseded later, or of another collection."""
        for later in sorted(s for s in known if seqno < s <= high):
            frame = known[later].frame
            if frame[1] == stored.EVENT:
                event, scope, cid = stored.event_of(frame)
                if event in _CREATION:
                    value = struct.pack(">QII", 0, scope, cid)[: len(stored.value_of(frame))]
                    name = b"gone%d" % max(scope, cid)
                    created = _CREATION[event]
                    return stored.system_event(vbucket.id, created, name, value, seqno=seqno, version=0)
            elif frame[1] in ITEMS:
                key = stored.key_of(frame)
                break
        else:
            visible = not self.collections and seqno <= self.visible.get(vbucket.id, 0)
            key = b"\0%d" % seqno if visible else encode_leb128(_OTHERS) + b"%d" % seqno
        return _mutation(vbucket.id, key, b"{}", seqno, Datatype.JSON)

    def _manifest(self, frame: bytes) -> None:
        if frame[1] != stored.EVENT:
            return
        event, sid, cid = stored.event_of(frame)
        scopes, name = self.bucket.manifest.scopes, stored.key_of(frame).decode()
        if event == SystemEventId.CREATE_SCOPE:
            scopes.setdefault(name, Scope(sid))
            return
        (scope,) = [n for n, s in scopes.items() if s.id == sid] or [""]
        if not scope:
            return
        if event == SystemEventId.CREATE_COLLECTION:
            scopes[scope].collections[name] = cid
        elif event == SystemEventId.DROP_COLLECTION:
            left = {n: c for n, c in scopes[scope].collections.items() if c != cid}
            scopes[scope].collections = left
        elif event == SystemEventId.DROP_SCOPE:
            scopes.pop(scope, None)

    def before(self, at: int) -> None:
        """Prepare for what the client is about to send at step `at`."""
        frame = self.steps[at].frame
        if frame.opcode == Opcode.GET and (answer := self._answer(at)) is not None and not answer.status:
            self.cluster.upsert(frame.key, answer.value)
        if frame.opcode in {Opcode.DCP_GET_FAILOVER_LOG, Opcode.GET_FAILOVER_LOG}:
            self._set_log(frame, self._answer(at))
            return
        if frame.opcode != Opcode.DCP_STREAM_REQ:
            return
        answer = self._answer(at)
        if answer is None or frame.vbucket >= VBUCKETS or len(frame.extras) != 48:
            return
        vbucket = self.bucket.vbuckets[frame.vbucket]
        message = parse_request(frame)
        assert isinstance(message, StreamRequest)
        burst = list(self._burst(at))
        marked = [f for f in burst if f.opcode == Opcode.DCP_SNAPSHOT_MARKER]
        high = max([marker_of(f)[1] for f in marked], default=0)
        advanced = [f for f in burst if f.opcode == Opcode.DCP_SEQNO_ADVANCED]
        high = max([high, *(int.from_bytes(f.extras, "big") for f in advanced)])
        high = max([high, *(seqno_of(f) for f in burst if f.opcode in ITEMS)])
        ends = [f for f in burst if f.opcode == Opcode.DCP_STREAM_END]
        if ends and not int.from_bytes(ends[0].extras, "big"):
            high = max(high, min(message.end, _LARGEST))
        if not self.collections:
            high = max(high, self._checkpoint_after(at, high))
        failed = bool(ends) and ends[0].extras[-1] == StreamEndReason.BACKFILL_FAIL
        if failed:
            high = message.end
        self.visible[vbucket.id] = max([high if failed else 0, *(marker_of(f)[1] for f in marked)])
        self._set_state(message, answer)
        self._set_log(frame, answer)
        purged = [
            parsed.purge_seqno for f in marked if isinstance(parsed := parse_message(f), SnapshotMarker)
        ]
        if purged and purged[-1]:
            vbucket.purge_seqno = purged[-1]
        if answer.status == Status.ROLLBACK:
            self._explain_rollback(at, message, int.from_bytes(answer.value, "big"))
        vbucket.unreadable = failed
        if not answer.status:
            high = max(high, message.start)
            memory = [marker_of(f)[0] for f in marked if marker_of(f)[2] & SnapshotFlag.MEMORY]
            vbucket.memory_from = memory[0] if memory else None
            if memory and len(memory) == len(marked):
                vbucket.memory_from = 0
        self.advance(vbucket, high)

    def _checkpoint_after(self, at: int, high: int) -> int:
        """Where the checkpoint began from which the stream requested at step `at` got something later.

        Changes of other collections, which are no part of the snapshots, lie before it.
        """
        begins = 0
        for step in self.steps[at + 1 :]:
            if step.frame.opaque != self.steps[at].frame.opaque or step.sent:
                continue
            if _from_memory(step.frame) and marker_of(step.frame)[0] > high:
                begins = marker_of(step.frame)[0]
            elif begins and step.frame.opcode in ITEMS:
                return begins if seqno_of(step.frame) > begins else 0
        return 0

    def _explain_rollback(self, at: int, asked: StreamRequest, seqno: int) -> None:
        """Let the vbucket have what the request at step `at` was rolled back for."""
        vbucket = self.bucket.vbuckets[asked.vbucket]
        for later in range(at + 1, len(self.steps)):
            # The log as it was given to the next request of this vbucket that was granted.
            frame = self.steps[later].frame
            if self.steps[later].sent and frame.opcode == asked.frame().opcode:
                answer = self._answer(later)
                if frame.vbucket == asked.vbucket and answer is not None and not answer.status:
                    self._set_log(frame, answer)
                    break
        if asked.vbuuid not in {entry.vbuuid for entry in vbucket.failover}:
            return
        if seqno:
            self.advance(vbucket, seqno)
        elif asked.start:
            sent = (step.frame for step in self.steps[at:] if not step.sent)
            marked = (
                f for f in sent if f.opcode == Opcode.DCP_SNAPSHOT_MARKER and f.vbucket == asked.vbucket
            )
            self.advance(vbucket, next((marker_of(frame)[1] for frame in marked), 0))
            given = (PURGE_SEQNO.search(step.frame.value) for step in self.steps if step.sent)
            # Of several, the one that was right is the newest.
            known = max((int(match[1]) for match in given if match), default=0)
            vbucket.purge_seqno = max(asked.start + 1, known)

    def live(self, at: int) -> None:
        """Prepare for the server's message at step `at`: a snapshot of changes that are made now."""
        frame = self.steps[at].frame
        if frame.magic == Magic.SERVER_REQUEST:
            self.bucket.rev += 1
            self.cluster._engine._push()
        elif frame.opcode == Opcode.DCP_SNAPSHOT_MARKER:
            self.advance(self.bucket.vbuckets[frame.vbucket], marker_of(frame)[1])
        elif frame.opcode == Opcode.DCP_STREAM_END and frame.extras[-1] == StreamEndReason.STATE_CHANGED:
            self.cluster._engine._end_streams(frame.vbucket)

    def _answer(self, at: int) -> Frame | None:
        asked = self.steps[at].frame
        for step in self.steps[at + 1 :]:
            if not step.sent and step.frame.is_response and step.frame.opaque == asked.opaque:
                return step.frame
        return None

    def _burst(self, at: int) -> Iterator[Frame]:
        """What the stream requested at step `at` was sent at once."""
        opaque, last = self.steps[at].frame.opaque, self.steps[at].time
        for step in self.steps[at + 1 :]:
            if step.sent or step.frame.opaque != opaque:
                last = step.time
                continue
            late = step.time - last > _PAUSE
            if late and (step.frame.opcode == Opcode.DCP_STREAM_END or _from_memory(step.frame)):
                return
            last = step.time
            yield step.frame

    def _set_state(self, asked: StreamRequest, answer: Frame) -> None:
        """Make the vbucket what it was: active, a replica, or none of both."""
        if answer.status == Status.NOT_MY_VBUCKET:
            replica = asked.flags & StreamFlag.ACTIVE_ONLY
            self.bucket.map[asked.vbucket] = [-1, 0] if replica else [-1]
        elif 0 not in self.bucket.map[asked.vbucket]:
            self.bucket.map[asked.vbucket] = [0]

    def _set_log(self, asked: Frame, answer: Frame | None) -> None:
        if answer is None or answer.status or asked.vbucket >= VBUCKETS:
            return
        log = [FailoverEntry(uuid, seqno) for uuid, seqno in parse_failover_log(answer.value)]
        vbucket = self.bucket.vbuckets[asked.vbucket]
        self.advance(vbucket, log[0].seqno)
        vbucket.failover = log


def _section(name: bytes, value: bytes) -> bytes:
    pair = name + b"\0" + value + b"\0"
    return struct.pack(">II", len(pair) + 4, len(pair)) + pair


def _plain_events(name: str) -> dict[tuple[int, int], Frame]:
    """The system events of a conversation by vbucket and seqno."""
    events = (frame for frame in frames(name, "s2c") if frame.opcode == Opcode.DCP_SYSTEM_EVENT)
    return {(event.vbucket, seqno_of(event)): event for event in events}


def _from_memory(frame: Frame) -> bool:
    return frame.opcode == Opcode.DCP_SNAPSHOT_MARKER and bool(marker_of(frame)[2] & SnapshotFlag.MEMORY)


_PLAIN_EVENTS = _plain_events("disk_coll_events.0")
"""What the events of the one conversation with version 2 were: it holds the same vbucket."""
