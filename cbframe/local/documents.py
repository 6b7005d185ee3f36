"""Document operations of the KV protocol: get, the writes, delete, touch."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from cbframe.local.bucket import Bucket, absolute_expiry, is_json
from cbframe.local.store import Document, VBucket
from cbframe.wire.constants import MAX_KEY_LENGTH, MAX_VALUE_LENGTH, Datatype, Opcode, Status
from cbframe.wire.frame import Frame
from cbframe.wire.xattrs import body_offset

_FLAGS_EXPIRY = struct.Struct(">II")
_U32 = struct.Struct(">I")
_META = struct.Struct(">IIIQB")
_TOKEN = struct.Struct(">QQ")


@dataclass(frozen=True, slots=True)
class Outcome:
    """Answer to a document operation; ``seqno`` is set by writes."""

    status: Status = Status.SUCCESS
    extras: bytes = b""
    value: bytes = b""
    cas: int = 0
    datatype: int = 0
    seqno: int | None = None


_INVALID = Outcome(Status.EINVAL)
_MISSING = Outcome(Status.KEY_ENOENT)
_EXISTS = Outcome(Status.KEY_EEXISTS)


class DocumentService:
    """Runs one operation on one vbucket; the bucket's lock is held."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._operations: dict[int, Callable[[Frame, VBucket, bytes, Document | None], Outcome]] = {
            Opcode.GET: self._get,
            Opcode.GAT: self._get_and_touch,
            Opcode.TOUCH: self._touch,
            Opcode.GET_META: self._get_meta,
            Opcode.SET: self._store,
            Opcode.ADD: self._store,
            Opcode.REPLACE: self._store,
            Opcode.DELETE: self._delete,
        }

    def knows(self, opcode: int) -> bool:
        return opcode in self._operations

    def run(self, frame: Frame, key: bytes) -> Outcome:
        """Run the operation in `frame` on the document `key`, which has its prefix."""
        if not 0 < len(key) <= MAX_KEY_LENGTH + 1:
            return _INVALID
        vbucket = self._bucket.vbuckets[frame.vbucket]
        document = vbucket.document(key)
        if document is not None and 0 < document.expiry <= self._bucket.now():
            self._bucket.expire_stored(vbucket, key)
            document = None
        return self._operations[frame.opcode](frame, vbucket, key, document)

    @staticmethod
    def _get(_frame: Frame, _vbucket: VBucket, _key: bytes, document: Document | None) -> Outcome:
        return _MISSING if document is None else _found(document)

    def _get_and_touch(
        self, frame: Frame, vbucket: VBucket, key: bytes, document: Document | None
    ) -> Outcome:
        touched = self._touch(frame, vbucket, key, document)
        if document is None or touched.status:
            return touched
        found = _found(document)
        return Outcome(
            extras=found.extras, value=found.value, cas=touched.cas, datatype=found.datatype, seqno=None
        )

    def _touch(self, frame: Frame, vbucket: VBucket, key: bytes, document: Document | None) -> Outcome:
        if len(frame.extras) != _U32.size:
            return _INVALID
        if document is None:
            return _MISSING
        (expiry,) = _U32.unpack(frame.extras)
        return self._write(
            vbucket, key, document.value, document.flags, absolute_expiry(expiry), document.datatype
        )

    @staticmethod
    def _get_meta(_frame: Frame, _vbucket: VBucket, _key: bytes, document: Document | None) -> Outcome:
        if document is None:
            return _MISSING
        extras = _META.pack(0, document.flags, document.expiry, document.rev, document.datatype)
        return Outcome(extras=extras, cas=document.cas)

    def _store(self, frame: Frame, vbucket: VBucket, key: bytes, document: Document | None) -> Outcome:
        if len(frame.extras) != _FLAGS_EXPIRY.size:
            return _INVALID
        if len(frame.value) > MAX_VALUE_LENGTH:
            return Outcome(Status.E2BIG)
        if frame.opcode == Opcode.ADD and document is not None:
            return _EXISTS
        if document is None and (frame.opcode == Opcode.REPLACE or frame.cas):
            return _MISSING
        if document is not None and frame.cas not in {0, document.cas}:
            return _EXISTS
        flags, expiry = _FLAGS_EXPIRY.unpack(frame.extras)
        datatype = int(Datatype.JSON) if is_json(frame.value) else 0
        return self._write(vbucket, key, frame.value, flags, absolute_expiry(expiry), datatype)

    def _write(
        self, vbucket: VBucket, key: bytes, value: bytes, flags: int, expiry: int, datatype: int
    ) -> Outcome:
        cas = self._bucket.next_cas()
        seqno = vbucket.put(key, value, cas=cas, flags=flags, expiry=expiry, datatype=datatype)
        self._bucket.written(vbucket.id)
        return Outcome(cas=cas, seqno=seqno)

    def _delete(self, frame: Frame, vbucket: VBucket, key: bytes, document: Document | None) -> Outcome:
        if document is None:
            return _MISSING
        if frame.cas not in {0, document.cas}:
            return _EXISTS
        cas = self._bucket.next_cas()
        seqno = vbucket.remove(key, cas=cas, when=self._bucket.now(), expired=False)
        self._bucket.written(vbucket.id)
        return Outcome(cas=cas, seqno=seqno)


def _found(document: Document) -> Outcome:
    value, datatype = document.value, document.datatype
    if datatype & Datatype.XATTR:
        # Plain gets never show attributes.
        value, datatype = value[body_offset(value) :], datatype & ~Datatype.XATTR
    return Outcome(extras=_U32.pack(document.flags), value=value, cas=document.cas, datatype=datatype)


def mutation_token(vbuuid: int, seqno: int) -> bytes:
    """Extras of a write's answer on connections that asked for them."""
    return _TOKEN.pack(vbuuid, seqno)
