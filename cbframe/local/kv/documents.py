"""Document operations of the KV protocol: get, the writes, delete, touch, locks, counters."""

from __future__ import annotations

import math
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from cbframe.local.bucket import LocalBucket, absolute_expiry, is_json, to_json
from cbframe.local.kv import subdocument
from cbframe.local.vbucket import StoredDocument, VBucket
from cbframe.wire.constants import MAX_VALUE_LENGTH, Datatype, Opcode, Status
from cbframe.wire.framing import Frame
from cbframe.wire.messages import body_offset

_BARRIER, _DURABILITY, _STREAM_ID, _PRESERVE_TTL = 0, 1, 2, 5
_STRONGEST_LEVEL = 3
_MAX_DURABLE_REPLICAS = 2


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


def duration_frame(seconds: float) -> bytes:
    """The framing extras that tell how long the server had a request."""
    encoded = min(0xFFFF, round(math.pow(2e6 * max(seconds, 0.0), 1 / 1.74)))
    return b"\x02" + encoded.to_bytes(2, "big")


_FLAGS_EXPIRY = struct.Struct(">II")
_U32 = struct.Struct(">I")
_META = struct.Struct(">IIIQB")
_U64 = struct.Struct(">Q")
_COUNTER = struct.Struct(">QQI")
_TOKEN = struct.Struct(">QQ")
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
class OperationResult:
    """Answer to a document operation; ``seqno`` is set by writes."""

    status: Status = Status.SUCCESS
    extras: bytes = b""
    value: bytes = b""
    cas: int = 0
    datatype: int = 0
    seqno: int | None = None


_INVALID = OperationResult(Status.EINVAL)
_MISSING = OperationResult(Status.KEY_ENOENT)
_EXISTS = OperationResult(Status.KEY_EEXISTS)
_LOCKED = OperationResult(Status.LOCKED)


@dataclass(frozen=True, slots=True)
class _Lock:
    """A lock on one version of a document."""

    cas: int
    version: int
    until: float


class DocumentService:
    """Runs one operation on one vbucket; the bucket's lock is held."""

    def __init__(self, bucket: LocalBucket) -> None:
        self._bucket = bucket
        self._locks: dict[bytes, _Lock] = {}
        self._preserve_ttl = False
        self._packed = b""
        self._durability = 0
        self._operations: dict[
            int, Callable[[Frame, VBucket, bytes, StoredDocument | None], OperationResult]
        ] = {
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
        """Run the operation in `frame` on the document `key`, which has its prefix.

        `info` is what the framing extras ask for. `packed` is the value as it came, if that was a
        Snappy block: a new document is stored so.
        """
        self._preserve_ttl, self._durability = info.preserve_ttl, info.durability
        self._packed = packed
        vbucket = self._bucket.vbuckets[frame.vbucket]
        document = vbucket.document(key)
        if document is not None and 0 < document.expiry < self._bucket.now():
            self._bucket.expire_stored(vbucket, key)
            document = None
        if frame.opcode not in _READS and vbucket.pending(key) is not None:
            return OperationResult(Status.SYNC_WRITE_IN_PROGRESS)
        lock = self._lock_on(key, document)
        if lock is not None and document is not None:
            if frame.opcode in {Opcode.GET, Opcode.SUBDOC_MULTI_LOOKUP}:
                document = document._replace(cas=_LOCKED_CAS)
            elif frame.opcode not in _READS:
                if frame.cas != lock.cas:
                    return _LOCKED
                # Who has the lock may write, and the write ends it.
                document = document._replace(cas=lock.cas)
        return self._operations[frame.opcode](frame, vbucket, key, document)

    def _lock_on(self, key: bytes, document: StoredDocument | None) -> _Lock | None:
        """The lock, if it still holds and is on this very version."""
        lock = self._locks.get(key)
        if lock is None:
            return None
        if document is None or document.cas != lock.version or lock.until <= time.monotonic():
            del self._locks[key]
            return None
        return lock

    @staticmethod
    def _get(
        _frame: Frame, _vbucket: VBucket, _key: bytes, document: StoredDocument | None
    ) -> OperationResult:
        return _MISSING if document is None else _found(document)

    def _get_and_touch(
        self, frame: Frame, vbucket: VBucket, key: bytes, document: StoredDocument | None
    ) -> OperationResult:
        touched = self._touch(frame, vbucket, key, document)
        if document is None or touched.status:
            return touched
        found = _found(document)
        return OperationResult(
            extras=found.extras, value=found.value, cas=touched.cas, datatype=found.datatype
        )

    def _get_locked(
        self, frame: Frame, _vbucket: VBucket, key: bytes, document: StoredDocument | None
    ) -> OperationResult:
        if len(frame.extras) not in {0, _U32.size}:
            return _INVALID
        if document is None:
            return _MISSING
        if key in self._locks:
            return _LOCKED
        seconds = int.from_bytes(frame.extras, "big")
        if not 0 < seconds <= _LONGEST_LOCK:
            seconds = _DEFAULT_LOCK
        cas = self._bucket.next_cas()
        self._locks[key] = _Lock(cas, document.cas, time.monotonic() + seconds)
        return _found(document._replace(cas=cas))

    def _unlock(
        self, frame: Frame, _vbucket: VBucket, key: bytes, document: StoredDocument | None
    ) -> OperationResult:
        if not frame.cas:
            return _INVALID
        if document is None:
            return _MISSING
        lock = self._locks.get(key)
        if lock is None:
            return OperationResult(Status.ETMPFAIL)
        if frame.cas != lock.cas:
            return _LOCKED
        del self._locks[key]
        return OperationResult()

    def _touch(
        self, frame: Frame, vbucket: VBucket, key: bytes, document: StoredDocument | None
    ) -> OperationResult:
        if len(frame.extras) != _U32.size:
            return _INVALID
        if document is None:
            return _MISSING
        (expiry,) = _U32.unpack(frame.extras)
        written = self._write(
            vbucket, key, document.value, document.flags, absolute_expiry(expiry), document.datatype
        )
        # The one write whose answer has no mutation token.
        return OperationResult(cas=written.cas)

    @staticmethod
    def _get_meta(
        _frame: Frame, _vbucket: VBucket, _key: bytes, document: StoredDocument | None
    ) -> OperationResult:
        if document is None:
            return _MISSING
        extras = _META.pack(0, document.flags, document.expiry, document.rev, document.datatype)
        return OperationResult(extras=extras, cas=document.cas)

    def _store(
        self, frame: Frame, vbucket: VBucket, key: bytes, document: StoredDocument | None
    ) -> OperationResult:
        if len(frame.extras) != _FLAGS_EXPIRY.size:
            return _INVALID
        if len(frame.value) > MAX_VALUE_LENGTH:
            return OperationResult(Status.E2BIG)
        if frame.opcode == Opcode.ADD and document is not None:
            return _EXISTS
        if document is None and (frame.opcode == Opcode.REPLACE or frame.cas):
            return _MISSING
        if document is not None and frame.cas not in {0, document.cas}:
            return _EXISTS
        flags, expiry = _FLAGS_EXPIRY.unpack(frame.extras)
        expiry = absolute_expiry(expiry)
        if document is not None and self._preserve_ttl:
            expiry = document.expiry
        return self._write_body(vbucket, key, frame.value, flags, expiry, document, self._packed)

    def _extend(
        self, frame: Frame, vbucket: VBucket, key: bytes, document: StoredDocument | None
    ) -> OperationResult:
        if frame.extras:
            return _INVALID
        if document is None:
            return OperationResult(Status.NOT_STORED)
        if frame.cas not in {0, document.cas}:
            return _EXISTS
        body = body_of(document)
        body = body + frame.value if frame.opcode == Opcode.APPEND else frame.value + body
        if len(body) > MAX_VALUE_LENGTH:
            return OperationResult(Status.E2BIG)
        return self._write_body(vbucket, key, body, document.flags, document.expiry, document)

    def _count(
        self, frame: Frame, vbucket: VBucket, key: bytes, document: StoredDocument | None
    ) -> OperationResult:
        if len(frame.extras) != _COUNTER.size or frame.value:
            return _INVALID
        delta, number, expiry = _COUNTER.unpack(frame.extras)
        flags = 0
        if document is None:
            if expiry == _NO_INITIAL:
                return _MISSING
            expiry = absolute_expiry(expiry)
        else:
            if frame.cas not in {0, document.cas}:
                return _EXISTS
            body = body_of(document)
            if not body.isdigit() or len(body) > 20 or int(body) >= 1 << 64:
                return OperationResult(Status.DELTA_BADVAL)
            up = frame.opcode == Opcode.INCREMENT
            number = (int(body) + delta) % (1 << 64) if up else max(0, int(body) - delta)
            flags, expiry = document.flags, document.expiry
        written = self._write_body(vbucket, key, b"%d" % number, flags, expiry, document)
        return replace(written, value=_U64.pack(number))

    def _lookup_in(
        self, frame: Frame, vbucket: VBucket, key: bytes, document: StoredDocument | None
    ) -> OperationResult:
        try:
            specs = subdocument.parse_specs(frame.value, mutation=False, is_8=self._bucket.release.is_8)
        except subdocument.RefusedError as exc:
            return _refused(exc)
        if document is None:
            return _MISSING
        body = body_of(document)
        seqno = vbucket.latest[key]
        good, results = subdocument.lookup(
            specs, document, lambda: subdocument.virtual_attributes(document, body, vbucket, seqno)
        )
        status = Status.SUCCESS if good else Status.SUBDOC_MULTI_PATH_FAILURE
        return OperationResult(status, value=results, cas=document.cas)

    def _mutate_in(
        self, frame: Frame, vbucket: VBucket, key: bytes, document: StoredDocument | None
    ) -> OperationResult:
        extras = frame.extras
        if len(extras) not in {0, 1, 4, 5}:
            return _INVALID
        options = extras[-1] if len(extras) in {1, 5} else 0
        expiry = absolute_expiry(_U32.unpack_from(extras)[0]) if len(extras) >= 4 else 0
        if options & ~(_MAKE_DOCUMENT | _ADD_DOCUMENT):
            return OperationResult(Status.NOT_SUPPORTED)
        try:
            specs = subdocument.parse_specs(frame.value, mutation=True, is_8=self._bucket.release.is_8)
        except subdocument.RefusedError as exc:
            return _refused(exc)
        if document is None and not options:
            return _MISSING
        if document is not None and (options & _ADD_DOCUMENT or frame.cas not in {0, document.cas}):
            return _EXISTS
        content, cas = subdocument.Content.of(document), self._bucket.next_cas()
        try:
            results = subdocument.mutate(
                specs, content, subdocument.macro_values(cas, vbucket.high_seqno + 1, content.body)
            )
        except subdocument.FailedSpecError as exc:
            return OperationResult(Status.SUBDOC_MULTI_PATH_FAILURE, value=exc.answer)
        if self._bucket.release.is_8 and any(spec.flags & subdocument.XATTR for spec in specs):
            content.sort_attributes()
        value, datatype = content.encode()
        if len(value) > MAX_VALUE_LENGTH:
            return OperationResult(Status.E2BIG)
        if document is not None and self._preserve_ttl:
            expiry = document.expiry
        flags = 0 if document is None else document.flags
        return replace(self._write(vbucket, key, value, flags, expiry, datatype, cas), value=results)

    def _write_body(
        self,
        vbucket: VBucket,
        key: bytes,
        body: bytes,
        flags: int,
        expiry: int,
        document: StoredDocument | None,
        packed: bytes = b"",
    ) -> OperationResult:
        """Write a new body; attributes that the document has stay. `packed` is the body as it came."""
        datatype = int(Datatype.JSON) if is_json(body) else 0
        if document is not None and document.datatype & Datatype.XATTR:
            body = document.value[: body_offset(document.value)] + body
            datatype |= Datatype.XATTR
        elif packed:
            body, datatype = packed, datatype | Datatype.SNAPPY
        return self._write(vbucket, key, body, flags, expiry, datatype)

    def _write(
        self,
        vbucket: VBucket,
        key: bytes,
        value: bytes,
        flags: int,
        expiry: int,
        datatype: int,
        cas: int = 0,
    ) -> OperationResult:
        cas = cas or self._bucket.next_cas()
        prepared = 0
        if self._durability:
            prepared = vbucket.prepare(
                key,
                value,
                cas=cas,
                flags=flags,
                expiry=expiry,
                datatype=datatype,
                level=self._durability,
            )
        seqno = vbucket.put(
            key, value, cas=cas, flags=flags, expiry=expiry, datatype=datatype, prepared=prepared
        )
        self._bucket.written(vbucket.id)
        return OperationResult(cas=cas, seqno=seqno)

    def _delete(
        self, frame: Frame, vbucket: VBucket, key: bytes, document: StoredDocument | None
    ) -> OperationResult:
        if document is None:
            return _MISSING
        if frame.cas not in {0, document.cas}:
            return _EXISTS
        cas = self._bucket.next_cas()
        prepared = 0
        if self._durability:
            prepared = vbucket.prepare(key, b"", cas=cas, deleted=True, level=self._durability)
        seqno = vbucket.remove(key, cas=cas, when=self._bucket.now(), expired=False, prepared=prepared)
        self._bucket.written(vbucket.id)
        return OperationResult(cas=cas, seqno=seqno)


def _found(document: StoredDocument) -> OperationResult:
    return OperationResult(
        extras=_U32.pack(document.flags),
        value=body_of(document),
        cas=document.cas,
        # Plain gets never show attributes.
        datatype=document.datatype & ~Datatype.XATTR,
    )


def _refused(error: subdocument.RefusedError) -> OperationResult:
    if not error.context:
        return OperationResult(error.status)
    value = to_json({"error": {"context": error.context}})
    return OperationResult(error.status, value=value, datatype=int(Datatype.JSON))


def body_of(document: StoredDocument) -> bytes:
    """The document without its attributes."""
    return document.value[body_offset(document.value) if document.datatype & Datatype.XATTR else 0 :]


def mutation_token(vbuuid: int, seqno: int) -> bytes:
    """Extras of a write's answer on connections that asked for them."""
    return _TOKEN.pack(vbuuid, seqno)
