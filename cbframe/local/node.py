"""One node: a loop thread with a data port and a cluster manager port, and its faults."""

from __future__ import annotations

import ssl
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import TypeAlias

from cbframe.local.auth import NOBODY, Credentials, SaslServer, User
from cbframe.local.bucket import LocalBucket
from cbframe.local.cluster_manager import ClusterConfig, RestConnection
from cbframe.local.documents import DocumentService
from cbframe.local.kv import KvConnection
from cbframe.local.loop import AnySocket, Channel, Loop
from cbframe.wire.constants import StreamEndReason

_IDLE_TIMEOUT = 360.0
"""Seconds without a byte from a client that does not answer NOOPs before it is dropped."""

_Service: TypeAlias = tuple[Callable[[AnySocket], Channel | None], ssl.SSLContext | None]


class LocalNode:
    """A member of the embedded cluster.

    Everything but the constructor, ``start``, ``stop`` and ``on_write`` runs on the loop's thread.
    """

    def __init__(
        self,
        index: int,
        bucket: LocalBucket,
        config: ClusterConfig,
        credentials: Credentials,
        noop_interval: float | None,
        tls: ssl.SSLContext | None = None,
        ports: Mapping[str, int] | None = None,
    ) -> None:
        wanted = ports or {}
        self.index = index
        self.bucket = bucket
        self.config = config
        self.credentials = credentials
        self.noop_interval = noop_interval
        self.documents = DocumentService(bucket)
        self.rest_logins: dict[str, SaslServer] = {}
        """SCRAM over HTTP, between its two requests, by session id."""
        self.refusing = False
        self.flush_bucket: Callable[[], None] = lambda: None
        """What REST's doFlush does."""
        self.idle_timeout = _IDLE_TIMEOUT
        self.cut_after: int | None = None
        """DCP bytes left to send before a connection is cut."""
        self.garble_after: int | None = None
        """DCP bytes left to send before the one that is garbled."""
        self.dropping_acks = False
        self._watched: Counter[int] = Counter()
        self._dirty: deque[int] = deque()
        self._connections: set[KvConnection] = set()
        self._config_streams: set[RestConnection] = set()
        self.loop: Loop = _NodeLoop(self)
        services: dict[str, _Service] = {"mgmt": (self._accept_rest, None), "kv": (self._accept_kv, None)}
        if tls is not None:
            services |= {"mgmtSSL": (self._accept_rest, tls), "kvSSL": (self._accept_kv, tls)}
        self.alive = True
        """Whether the node's process lives."""
        try:
            self.ports = {
                service: self.loop.listen(accept, context, wanted.get(service, 0))
                for service, (accept, context) in services.items()
            }
        except OSError:
            self.stop()
            raise

    def start(self) -> None:
        self.loop.start()

    def stop(self) -> None:
        self.alive = False
        self.loop.stop()

    def _accept_kv(self, sock: AnySocket) -> Channel | None:
        if self.refusing:
            return None
        connection = KvConnection(self, sock)
        self._connections.add(connection)
        return connection

    def _accept_rest(self, sock: AnySocket) -> Channel:
        return RestConnection(self, sock)

    def forget(self, connection: KvConnection) -> None:
        self._connections.discard(connection)

    # ------------------------------------------------------------------ changes of data

    def watch(self, vbucket: int, change: int) -> None:
        """A stream of the vbucket came (+1) or went (-1); the bucket's lock guards the wake-up."""
        self._watched[vbucket] += change

    def on_write(self, vbucket: int) -> None:
        """From any thread: the vbucket has a new change."""
        if self._watched[vbucket]:
            self._dirty.append(vbucket)
            self.loop.wake()

    def feed(self) -> None:
        """Hand new changes to the streams that wait for them."""
        woken = set()
        while self._dirty:
            vbucket = self._dirty.popleft()
            for connection in self._connections:
                if connection.producer is not None and connection.producer.wake(vbucket):
                    woken.add(connection)
        for connection in woken:
            connection.flush()

    # ------------------------------------------------------------------ changes of topology

    def end_streams(self, vbucket: int, *, only_if_lost: bool) -> None:
        """The vbucket is no longer what it was: its streams end."""
        if only_if_lost and self.index == self.bucket.map[vbucket][0]:
            return
        for connection in list(self._connections):
            if connection.producer is not None:
                connection.producer.end_stream(vbucket, StreamEndReason.STATE_CHANGED)
                connection.flush()

    def end_all_streams(self) -> None:
        """No vbucket is what it was."""
        for vbucket in range(len(self.bucket.vbuckets)):
            self.end_streams(vbucket, only_if_lost=False)

    def change_user(self, name: str, user: User | None) -> None:
        """A user has other rights; None: there is no such user any more."""
        for connection in list(self._connections):
            if connection.user is not None and connection.user.name == name:
                connection.change_user(user or NOBODY)

    def close_bucket(self) -> None:
        """The bucket is not on this node: the connections that use it close."""
        for connection in list(self._connections):
            if connection.selected:
                connection.close()

    def close_config_streams(self) -> None:
        """The bucket is not in the cluster: the connections that follow its map close."""
        for stream in list(self._config_streams):
            stream.close()

    def push_config(self) -> None:
        """The map changed: tell the clients that follow it."""
        for stream in list(self._config_streams):
            stream.push_config()
        for connection in list(self._connections):
            connection.push_config()

    def follow_config(self, stream: RestConnection, *, wanted: bool) -> None:
        (self._config_streams.add if wanted else self._config_streams.discard)(stream)

    def close_namesake(self, name: str) -> None:
        """A connection name is unique on a node: the older connection goes."""
        for connection in list(self._connections):
            if connection.producer is not None and connection.producer.name == name:
                connection.close()

    # ------------------------------------------------------------------ faults

    def cut(self, after_bytes: int) -> int:
        """Close the DCP connections now, or one of them after that many more bytes."""
        if after_bytes:
            self.cut_after = after_bytes
            return 0
        victims = [c for c in self._connections if c.producer is not None]
        for connection in victims:
            connection.close()
        return len(victims)

    def count_sent(self, nbytes: int) -> None:
        if self.cut_after is not None:
            self.cut_after -= nbytes
            if self.cut_after <= 0:
                self.cut_after = None
        if self.garble_after is not None:
            self.garble_after -= nbytes
            if self.garble_after < 0:
                self.garble_after = None

    def dcp_connections(self) -> int:
        return sum(c.producer is not None for c in self._connections)


class _NodeLoop(Loop):
    def __init__(self, node: LocalNode) -> None:
        super().__init__(f"cbframe-local-{node.index}")
        self._node = node

    def on_wake(self) -> None:
        self._node.feed()
