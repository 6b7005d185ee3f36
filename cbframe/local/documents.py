"""Document operations of the KV protocol: get, the writes, delete, touch, locks, counters, sub-documents."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from cbframe.local import subdocument
from cbframe.local.bucket import LocalBucket, StoredDocument, VBucket, absolute_expiry, json_datatype, to_json
from cbframe.local.subdocument import RefusedError
from cbframe.wire.constants import MAX_VALUE_LENGTH, Datatype, Opcode, Status
from cbframe.wire.framing import Frame
from cbframe.wire.messages import body_offset

_BARRIER, _DURABILITY, _STREAM_ID, _PRESERVE_TTL = 0, 1, 2, 5
_STRONGEST_LEVEL = 3
_MAX_DURABLE_REPLICAS = 2

_FLAGS_EXPIRY = struct.Struct(">II")
_U32 = struct.Struct(">I")
_META = struct.Struct(">IIIQB")
_COUNTER = struct.Struct(">QQI")
_LOCKED_CAS = 0xFFFF_FFFF_FFFF_FFFF
"""Shown to readers of a locked document."""
_DEFAULT_LOCK, _LONGEST_LOCK = 15, 30
_NO_INITIAL = 0xFFFF_FFFF
"""The expiry of a counter operation that must find its document."""
_MAKE_DOCUMENT, _ADD_DOCUMENT = 0x01, 0x02
"""Options of a sub-document change: make the document if it is missing, or only if it is."""
_READS = frozenset({Opcode.GET, Opcode.SUBDOC_MULTI_LOOKUP, Opcode.GET_META, Opcode.ADD, Opcode.UNLOCK_KEY})
"""These do not care whether the document is locked, or look themselves."""


@dataclass(frozen=True, slots=True)
class FrameInfo:
    """The framing extras of a request."""

    preserve_ttl: bool = False
    durability: int = 0
    """Level that a write waits for; 0 for none."""
    sid: int = 0
    """Number of the DCP stream that is meant; 0 for none."""


def parse_frame_info(frame: Frame, replicas: int) -> FrameInfo | Status:
    """What the framing extras ask for, or why the request is refused.

    The barrier needs nothing: requests are done one at a time. Nothing waits for durability: the
    embedded cluster's replicas have a change at the same moment as its owner.
    """
    extras, offset, info = frame.framing_extras, 0, FrameInfo()
    while offset < len(extras):
        kind, length = extras[offset] >> 4, extras[offset] & 0x0F
        content = extras[offset + 1 : offset + 1 + length]
        offset += 1 + length
        if len(content) < length:
            return Status.EINVAL
        if kind == _DURABILITY:
            if length not in {1, 3}:
                return Status.EINVAL
            if not 1 <= content[0] <= _STRONGEST_LEVEL:
                return Status.DURABILITY_INVALID_LEVEL
            if replicas > _MAX_DURABLE_REPLICAS:
                return Status.DURABILITY_IMPOSSIBLE
            info = replace(info, durability=content[0])
        elif kind == _STREAM_ID and length == 2:
            info = replace(info, sid=int.from_bytes(content, "big"))
        elif kind == _PRESERVE_TTL and not length:
            info = replace(info, preserve_ttl=True)
        elif kind != _BARRIER or length:
            return Status.UNKNOWN_FRAME_INFO
    return info


@dataclass(frozen=True, slots=True)
class OperationResult:
    """Answer to a document operation; ``seqno`` is set by writes."""

    status: Status = Status.SUCCESS
    extras: bytes = b""
    value: bytes = b""
    cas: int = 0
    datatype: int = 0
    seqno: int | None = None


@dataclass(frozen=True, slots=True)
class _Lock:
    """A lock on one version of a document."""

    cas: int
    version: int
    until: float


@dataclass(slots=True)
class _Operation:
    """One request for one document."""

    frame: Frame
    vbucket: VBucket
    key: bytes  # with its prefix
    info: FrameInfo
    packed: bytes  # the value as it came, if that was a Snappy block: a new document is stored so
    document: StoredDocument | None

    def existing(self, *, missing: Status = Status.KEY_ENOENT) -> StoredDocument:
        """The document, which has to be there, in the version that the request names, if it names one."""
        if self.document is None:
            raise RefusedError(missing)
        if self.frame.cas not in {0, self.document.cas}:
            raise RefusedError(Status.KEY_EEXISTS)
        return self.document

    def extras(self, *lengths: int) -> bytes:
        if len(self.frame.extras) not in lengths:
            raise RefusedError(Status.EINVAL)
        return self.frame.extras

    def expiry(self, wanted: int) -> int:
        """The expiry that a write sets: another one, unless the document keeps its own."""
        if self.document is not None and self.info.preserve_ttl:
            return self.document.expiry
        return absolute_expiry(wanted)


class DocumentService:
    """Runs one operation on one vbucket; the bucket's lock is held."""

    def __init__(self, bucket: LocalBucket) -> None:
        self._bucket = bucket
        self._locks: dict[bytes, _Lock] = {}
        self._operations: dict[int, Callable[[_Operation], OperationResult]] = {
            Opcode.GET: self._get,
            Opcode.GAT: self._get_and_touch,
            Opcode.TOUCH: self._touch,
            Opcode.GET_META: self._get_meta,
            Opcode.SET: self._store,
            Opcode.ADD: self._store,
            Opcode.REPLACE: self._store,
            Opcode.DELETE: self._delete,
            Opcode.APPEND: self._extend,
            Opcode.PREPEND: self._extend,
            Opcode.INCREMENT: self._count,
            Opcode.DECREMENT: self._count,
            Opcode.GET_LOCKED: self._get_locked,
            Opcode.UNLOCK_KEY: self._unlock,
            Opcode.SUBDOC_MULTI_LOOKUP: self._lookup_in,
            Opcode.SUBDOC_MULTI_MUTATION: self._mutate_in,
        }

    def knows(self, opcode: int) -> bool:
        return opcode in self._operations

    def run(self, frame: Frame, key: bytes, info: FrameInfo, packed: bytes = b"") -> OperationResult:
        """Run the operation in `frame` on the document `key`, which has its prefix."""
        vbucket = self._bucket.vbuckets[frame.vbucket]
        document = self._bucket.read(vbucket, key)
        if frame.opcode not in _READS and vbucket.pending(key) is not None:
            return OperationResult(Status.SYNC_WRITE_IN_PROGRESS)
        lock = self._lock_on(key, document)
        if lock is not None and document is not None:
            if frame.opcode in {Opcode.GET, Opcode.SUBDOC_MULTI_LOOKUP}:
                document = document._replace(cas=_LOCKED_CAS)
            elif frame.opcode not in _READS:
                if frame.cas != lock.cas:
                    return OperationResult(Status.LOCKED)
                # Who has the lock may write, and the write ends it.
                document = document._replace(cas=lock.cas)
        try:
            return self._operations[frame.opcode](_Operation(frame, vbucket, key, info, packed, document))
        except RefusedError as exc:
            if not exc.context:
                return OperationResult(exc.status)
            value = to_json({"error": {"context": exc.context}})
            return OperationResult(exc.status, value=value, datatype=int(Datatype.JSON))

    def _lock_on(self, key: bytes, document: StoredDocument | None) -> _Lock | None:
        """The lock, if it still holds and is on this very version."""
        lock = self._locks.get(key)
        if lock is None:
            return None
        if document is None or document.cas != lock.version or lock.until <= time.monotonic():
            del self._locks[key]
            return None
        return lock

    # ------------------------------------------------------------------ reads, and locks

    @staticmethod
    def _get(op: _Operation) -> OperationResult:
        if op.document is None:
            raise RefusedError(Status.KEY_ENOENT)
        return _found(op.document)

    def _get_and_touch(self, op: _Operation) -> OperationResult:
        touched = self._touch(op)
        assert op.document is not None
        return replace(_found(op.document), cas=touched.cas)

    def _get_locked(self, op: _Operation) -> OperationResult:
        seconds = int.from_bytes(op.extras(0, _U32.size), "big")
        if op.document is None:
            raise RefusedError(Status.KEY_ENOENT)
        if op.key in self._locks:
            raise RefusedError(Status.LOCKED)
        if not 0 < seconds <= _LONGEST_LOCK:
            seconds = _DEFAULT_LOCK
        cas = self._bucket.next_cas()
        self._locks[op.key] = _Lock(cas, op.document.cas, time.monotonic() + seconds)
        return _found(op.document._replace(cas=cas))

    def _unlock(self, op: _Operation) -> OperationResult:
        if not op.frame.cas:
            raise RefusedError(Status.EINVAL)
        if op.document is None:
            raise RefusedError(Status.KEY_ENOENT)
        lock = self._locks.get(op.key)
        if lock is None:
            raise RefusedError(Status.ETMPFAIL)
        if op.frame.cas != lock.cas:
            raise RefusedError(Status.LOCKED)
        del self._locks[op.key]
        return OperationResult()

    @staticmethod
    def _get_meta(op: _Operation) -> OperationResult:
        document = op.document
        if document is None:
            raise RefusedError(Status.KEY_ENOENT)
        extras = _META.pack(0, document.flags, document.expiry, document.rev, document.datatype)
        return OperationResult(extras=extras, cas=document.cas)

    # ------------------------------------------------------------------ writes

    def _touch(self, op: _Operation) -> OperationResult:
        (expiry,) = _U32.unpack(op.extras(_U32.size))
        document = op.document
        if document is None:
            raise RefusedError(Status.KEY_ENOENT)
        expiry = absolute_expiry(expiry)
        written = self._write(op, document.value, document.flags, expiry, document.datatype)
        # The one write whose answer has no mutation token.
        return OperationResult(cas=written.cas)

    def _store(self, op: _Operation) -> OperationResult:
        flags, expiry = _FLAGS_EXPIRY.unpack(op.extras(_FLAGS_EXPIRY.size))
        _check_size(op.frame.value)
        if op.frame.opcode == Opcode.ADD and op.document is not None:
            raise RefusedError(Status.KEY_EEXISTS)
        if op.document is not None or op.frame.opcode == Opcode.REPLACE or op.frame.cas:
            op.existing()
        return self._write_body(op, op.frame.value, flags, op.expiry(expiry), op.packed)

    def _extend(self, op: _Operation) -> OperationResult:
        op.extras(0)
        document = op.existing(missing=Status.NOT_STORED)
        body, more = body_of(document), op.frame.value
        body = body + more if op.frame.opcode == Opcode.APPEND else more + body
        _check_size(body)
        return self._write_body(op, body, document.flags, document.expiry)

    def _count(self, op: _Operation) -> OperationResult:
        delta, number, expiry = _COUNTER.unpack(op.extras(_COUNTER.size))
        if op.frame.value:
            raise RefusedError(Status.EINVAL)
        flags, expiry = 0, expiry if expiry == _NO_INITIAL else absolute_expiry(expiry)
        if op.document is not None or expiry == _NO_INITIAL:
            document = op.existing()
            body = body_of(document)
            if not body.isdigit() or len(body) > 20 or int(body) >= 1 << 64:
                raise RefusedError(Status.DELTA_BADVAL)
            up = op.frame.opcode == Opcode.INCREMENT
            number = (int(body) + delta) % (1 << 64) if up else max(0, int(body) - delta)
            flags, expiry = document.flags, document.expiry
        return replace(self._write_body(op, b"%d" % number, flags, expiry), value=number.to_bytes(8, "big"))

    def _delete(self, op: _Operation) -> OperationResult:
        op.existing()
        cas, prepared = self._bucket.next_cas(), 0
        if level := op.info.durability:
            prepared = op.vbucket.prepare(op.key, b"", cas=cas, deleted=True, level=level)
        now = self._bucket.now()
        seqno = op.vbucket.remove(op.key, cas=cas, when=now, expired=False, prepared=prepared)
        self._bucket.written(op.vbucket.id)
        return OperationResult(cas=cas, seqno=seqno)

    def _write_body(
        self, op: _Operation, body: bytes, flags: int, expiry: int, packed: bytes = b""
    ) -> OperationResult:
        """Write a new body; attributes that the document has stay. `packed` is the body as it came."""
        datatype = json_datatype(body)
        if op.document is not None and op.document.datatype & Datatype.XATTR:
            body = op.document.value[: body_offset(op.document.value)] + body
            datatype |= Datatype.XATTR
        elif packed:
            body, datatype = packed, datatype | Datatype.SNAPPY
        return self._write(op, body, flags, expiry, datatype)

    def _write(
        self, op: _Operation, value: bytes, flags: int, expiry: int, datatype: int, cas: int = 0
    ) -> OperationResult:
        cas, prepared = cas or self._bucket.next_cas(), 0
        if level := op.info.durability:
            prepared = op.vbucket.prepare(
                op.key, value, cas=cas, flags=flags, expiry=expiry, datatype=datatype, level=level
            )
        seqno = op.vbucket.put(
            op.key, value, cas=cas, flags=flags, expiry=expiry, datatype=datatype, prepared=prepared
        )
        self._bucket.written(op.vbucket.id)
        return OperationResult(cas=cas, seqno=seqno)

    # ------------------------------------------------------------------ sub-documents

    def _lookup_in(self, op: _Operation) -> OperationResult:
        specs = subdocument.parse_specs(op.frame.value, mutation=False, is_8=self._bucket.is_8)
        document, vbucket = op.document, op.vbucket
        if document is None:
            raise RefusedError(Status.KEY_ENOENT)
        body, seqno = body_of(document), vbucket.latest[op.key]
        good, results = subdocument.lookup(
            specs, document, lambda: subdocument.virtual_attributes(document, body, vbucket, seqno)
        )
        status = Status.SUCCESS if good else Status.SUBDOC_MULTI_PATH_FAILURE
        return OperationResult(status, value=results, cas=document.cas)

    def _mutate_in(self, op: _Operation) -> OperationResult:
        extras = op.extras(0, 1, 4, 5)
        options = extras[-1] if len(extras) in {1, 5} else 0
        expiry = _U32.unpack_from(extras)[0] if len(extras) >= 4 else 0
        if options & ~(_MAKE_DOCUMENT | _ADD_DOCUMENT):
            raise RefusedError(Status.NOT_SUPPORTED)
        specs = subdocument.parse_specs(op.frame.value, mutation=True, is_8=self._bucket.is_8)
        if op.document is not None and options & _ADD_DOCUMENT:
            raise RefusedError(Status.KEY_EEXISTS)
        if op.document is not None or not options:
            op.existing()
        content, cas = subdocument.Content.of(op.document), self._bucket.next_cas()
        macros = subdocument.macro_values(cas, op.vbucket.high_seqno + 1, content.body)
        try:
            results = subdocument.mutate(specs, content, macros)
        except subdocument.FailedSpecError as exc:
            return OperationResult(Status.SUBDOC_MULTI_PATH_FAILURE, value=exc.answer)
        if self._bucket.is_8 and any(spec.flags & subdocument.XATTR for spec in specs):
            content.sort_attributes()
        value, datatype = content.encode()
        _check_size(value)
        flags = 0 if op.document is None else op.document.flags
        return replace(self._write(op, value, flags, op.expiry(expiry), datatype, cas), value=results)


def _check_size(value: bytes) -> None:
    if len(value) > MAX_VALUE_LENGTH:
        raise RefusedError(Status.E2BIG)


def _found(document: StoredDocument) -> OperationResult:
    return OperationResult(
        extras=_U32.pack(document.flags),
        value=body_of(document),
        cas=document.cas,
        # Plain gets never show attributes.
        datatype=document.datatype & ~Datatype.XATTR,
    )


def body_of(document: StoredDocument) -> bytes:
    """The document without its attributes."""
    return document.value[body_offset(document.value) if document.datatype & Datatype.XATTR else 0 :]
