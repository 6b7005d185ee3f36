"""States of a vbucket that no upsert or delete leads to.

Prepared writes, data that is still in memory, a damaged file, modified collections.
The engine's half is :class:`EngineStates`; :class:`ClusterStates` is what users call.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Protocol

from cbframe.errors import ConfigurationError
from cbframe.local.bucket import FLAGS_JSON, LocalBucket, Value, is_json, to_bytes
from cbframe.local.items import MUTATION, expiry_of, flags_of, prefixed, value_of
from cbframe.local.vbucket import VBucket
from cbframe.wire.constants import Datatype


class EngineStates:
    """The engine's methods; it has the bucket and finds vbuckets and collections."""

    bucket: LocalBucket
    _cid: Callable[[str | int], int]
    _vbucket: Callable[[int], VBucket]

    def prepare(self, key: bytes, value: Value | None, collection: str | int) -> int:
        body = b"" if value is None else to_bytes(value)
        bucket, stored = self.bucket, prefixed(self._cid(collection), key)
        with bucket.lock:
            vbucket = bucket.vbucket_for(key)
            if vbucket.pending(stored) is not None:
                raise ConfigurationError("the document has a prepared write", hint="commit or abort that one")
            seqno = vbucket.prepare(
                stored,
                body,
                cas=bucket.next_cas(),
                flags=FLAGS_JSON if is_json(body) else 0,
                datatype=int(Datatype.JSON) if is_json(body) else 0,
                deleted=value is None,
            )
            bucket.written(vbucket.id)
        return seqno

    def complete(self, key: bytes, collection: str | int, *, commit: bool) -> int:
        bucket, stored = self.bucket, prefixed(self._cid(collection), key)
        with bucket.lock:
            vbucket = bucket.vbucket_for(key)
            found = vbucket.pending(stored)
            if found is None:
                raise ConfigurationError("the document has no prepared write", hint="prepare() one first")
            seqno = complete(bucket, vbucket, stored, *found, commit=commit)
            bucket.written(vbucket.id)
        return seqno

    def hold_in_memory(self, vbucket: int, seqno: int | None) -> None:
        with self.bucket.lock:
            self._vbucket(vbucket).memory_from = seqno

    def corrupt(self, vbucket: int, *, corrupt: bool) -> None:
        with self.bucket.lock:
            self._vbucket(vbucket).unreadable = corrupt

    def modify_collection(self, scope: str, name: str, max_ttl: int) -> None:
        with self.bucket.lock:
            self.bucket.record([self.bucket.manifest.modify_collection(scope, name, max_ttl)])


def complete(
    bucket: LocalBucket, vbucket: VBucket, key: bytes, prepared: int, frame: bytes, *, commit: bool
) -> int:
    """Commit or abort a prepared write, under the bucket's lock; the seqno."""
    if not commit:
        return vbucket.abort(key, prepared)
    deleted = frame[24 + 29]
    old = vbucket.find(key)
    if deleted and old is not None and old[1] == MUTATION:
        seqno = vbucket.remove(
            key, cas=bucket.next_cas(), when=bucket.now(), expired=False, prepared=prepared
        )
        assert seqno is not None
        return seqno
    if deleted:
        raise ConfigurationError("the prepared write deletes a document that does not exist")
    return vbucket.put(
        key,
        value_of(frame),
        cas=bucket.next_cas(),
        flags=flags_of(frame),
        expiry=expiry_of(frame),
        datatype=frame[5],
        prepared=prepared,
    )


class _Engine(Protocol):
    """The engine, in this process or another."""

    def prepare(self, key: bytes, value: Value | None, collection: str | int) -> int: ...
    def complete(self, key: bytes, collection: str | int, *, commit: bool) -> int: ...
    def hold_in_memory(self, vbucket: int, seqno: int | None) -> None: ...
    def corrupt(self, vbucket: int, *, corrupt: bool) -> None: ...
    def modify_collection(self, scope: str, name: str, max_ttl: int) -> None: ...


class ClusterStates(ABC):
    """Methods of :class:`cbframe.local.LocalCluster`."""

    @property
    @abstractmethod
    def _engine(self) -> Any:
        """The running engine."""

    @property
    def _states(self) -> _Engine:
        engine: _Engine = self._engine
        return engine

    def prepare(self, key: str | bytes, value: Value | None, *, collection: str | int = 0) -> int:
        """Begin a durable write, None for a delete, and leave it waiting; the seqno of the prepare.

        Nobody sees the value before :meth:`commit`, and other writes of the document are refused. A
        durable write of an SDK is prepared and committed in one go.
        """
        return self._states.prepare(as_key(key), value, collection)

    def commit(self, key: str | bytes, *, collection: str | int = 0) -> int:
        """Let the prepared write of a document happen; the seqno of the commit."""
        return self._states.complete(as_key(key), collection, commit=True)

    def abort(self, key: str | bytes, *, collection: str | int = 0) -> int:
        """Let the prepared write of a document never have happened; the seqno of the abort."""
        return self._states.complete(as_key(key), collection, commit=False)

    def hold_in_memory(self, vbucket: int, seqno: int | None) -> None:
        """Streams get what is at or above `seqno` in memory snapshots of its own; None for no such part.

        As on a node that has not yet written it to disk: a backfill ends below, and a stream that
        begins there has none.
        """
        self._states.hold_in_memory(vbucket, seqno)

    def corrupt(self, vbucket: int) -> None:
        """Damage the file of a vbucket: backfills end with BACKFILL_FAIL until :meth:`mend`."""
        self._states.corrupt(vbucket, corrupt=True)

    def mend(self, vbucket: int) -> None:
        """The opposite of :meth:`corrupt`."""
        self._states.corrupt(vbucket, corrupt=False)

    def modify_collection(self, scope: str, name: str, *, max_ttl: int) -> None:
        """Give a collection another highest expiry."""
        self._states.modify_collection(scope, name, max_ttl)


def as_key(key: str | bytes) -> bytes:
    return key.encode() if isinstance(key, str) else key
