"""Doubles for tests of programs that use cbframe, and of cbframe itself.

==========================  ==================================================================================
double                      stands in for
==========================  ==================================================================================
:class:`RecordingReceiver`  a program that takes documents: keeps them, and every call
:class:`ScriptedTransport`  the network, in this process and without a thread: a function for each node
                            answers frame by frame, and waits take time of a :class:`FakeClock` only
:class:`FaultProxy`         a network that fails: a proxy between clients and a ``LocalCluster``, which breaks
                            connections at the byte that a test names
:class:`LocalCapella`       a cluster of Couchbase's cloud: names, certificates and rights as there
==========================  ==================================================================================
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import TypeAlias

from cbframe.dcp.receiver import Document
from cbframe.dcp.transport import Stream, Waker
from cbframe.errors import CbframeError, ConnectError
from cbframe.testing.capella import LocalCapella
from cbframe.testing.proxy import FaultProxy
from cbframe.wire.framing import Frame

__all__ = ["FakeClock", "FaultProxy", "LocalCapella", "RecordingReceiver", "ScriptedTransport"]

Peer: TypeAlias = Callable[[Frame], bytes | None]
"""Bytes that follow a frame from the client; None hangs up."""


class RecordingReceiver:
    """Holds the newest version of each document, and reads a vbucket again after a rollback.

    Attributes
    ----------
    documents
        By vbucket and key (without collection): what exists now.
    errors
        What `on_error` was given.
    rollbacks
        Vbucket and seqno of each rollback.
    threads
        Names of the threads that called, by vbucket.
    """

    def __init__(self) -> None:
        self.documents: defaultdict[int, dict[bytes, Document]] = defaultdict(dict)
        self.seqnos: dict[int, int] = {}
        self.metadata: dict[int, bytes] = {}
        self.snapshots: list[tuple[int, int, int, int]] = []
        self.errors: list[CbframeError] = []
        self.rollbacks: list[tuple[int, int]] = []
        self.threads: defaultdict[int, set[str]] = defaultdict(set)
        self.changed = threading.Condition()

    def data_update(self, vbucket: int, key: bytes, seqno: int, document: Document) -> None:
        with self.changed:
            self.documents[vbucket][key] = document
            self._took(vbucket, seqno)

    def data_delete(self, vbucket: int, key: bytes, seqno: int, document: Document) -> None:  # noqa: ARG002
        with self.changed:
            self.documents[vbucket].pop(key, None)
            self._took(vbucket, seqno)

    def _took(self, vbucket: int, seqno: int) -> None:
        self.seqnos[vbucket] = seqno
        self.threads[vbucket].add(threading.current_thread().name)
        self.changed.notify_all()

    def on_error(self, error: CbframeError) -> None:
        with self.changed:
            self.errors.append(error)
            self.changed.notify_all()

    def snapshot_start(self, vbucket: int, start: int, end: int, flags: int) -> None:
        self.snapshots.append((vbucket, start, end, flags))

    def set_metadata(self, vbucket: int, metadata: bytes) -> None:
        self.metadata[vbucket] = metadata

    def get_metadata(self, vbucket: int) -> tuple[bytes | None, int]:
        return self.metadata.get(vbucket), self.seqnos.get(vbucket, 0)

    def rollback(self, vbucket: int, seqno: int) -> None:
        with self.changed:
            self.rollbacks.append((vbucket, seqno))
            self.documents.pop(vbucket, None)
            self.seqnos.pop(vbucket, None)
            self.metadata.pop(vbucket, None)
            self.changed.notify_all()

    def values(self) -> dict[bytes, bytes]:
        """Key and value of every document there is."""
        with self.changed:
            return {key: doc.value for docs in self.documents.values() for key, doc in docs.items()}


class FakeClock:
    """Seconds since some moment; call it to read it."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds


class ScriptedTransport:
    """Connects to peers by address; any other address cannot be reached.

    Waiting for bytes that do not come moves the clock on by the whole wait.
    """

    def __init__(self, peers: Mapping[str, Peer], clock: FakeClock) -> None:
        self._peers = dict(peers)
        self._clock = clock
        self.connected: list[str] = []
        self.closed = 0
        self.on_connect: Callable[[Stream], object] | None = None
        """Called with each stream before it is used."""

    def forget(self, node: str) -> None:
        """A node cannot be reached any more."""
        del self._peers[node]

    def connect(self, node: str, waker: Waker, timeout: float) -> Stream:  # noqa: ARG002
        self.connected.append(node)
        if node not in self._peers:
            raise ConnectError("cannot connect", node=node)
        stream = _ScriptedStream(self, self._peers[node], self._clock)
        if self.on_connect is not None:
            self.on_connect(stream)
        return stream


class _ScriptedStream:
    def __init__(self, transport: ScriptedTransport, peer: Peer, clock: FakeClock) -> None:
        self._transport = transport
        self._peer = peer
        self._clock = clock
        self._incoming = bytearray()
        self._over = False

    def receive_into(self, view: memoryview) -> int | None:
        count = min(len(view), len(self._incoming))
        if not count:
            return 0 if self._over else None
        view[:count] = self._incoming[:count]
        del self._incoming[:count]
        return count

    def send_all(self, data: bytes, timeout: float) -> None:  # noqa: ARG002
        offset = 0
        while (parsed := Frame.parse(data, offset)) is not None:
            frame, offset = parsed
            answer = self._peer(frame)
            if answer is None:
                self._over = True
                return
            self._incoming += answer

    def wait(self, timeout: float | None, least: int = 1) -> bool:
        if len(self._incoming) >= least or self._over:
            return True
        self._clock.advance(timeout or 0.0)
        return False

    def close(self) -> None:
        self._transport.closed += 1
