"""The cluster manager: what the cluster says about itself, and a small HTTP/1.1 server for it.

Data nodes answer GET_CLUSTER_CONFIG with the same JSON.
"""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any, Protocol
from urllib.parse import parse_qs, quote, unquote, urlsplit

from cbframe.local.auth import Credentials, SaslServer, User
from cbframe.local.bucket import LocalBucket
from cbframe.local.loop import AnySocket, Channel, Loop

HOST = "127.0.0.1"
_CAPABILITIES = ["collections", "dcp", "cbhello", "touch", "cccp", "nodesExt", "xattr"]
_MAX_HEAD = 64 * 1024
_MAX_CONTENT = 1024 * 1024
_SEPARATOR = b"\n\n\n\n"
_JSON = "application/json"
_TEXT = "text/plain"


class ClusterConfig:
    """Builds every answer from the bucket and the nodes' ports; callers hold the bucket's lock."""

    def __init__(self, bucket: LocalBucket, internal_host: str | None = None) -> None:
        self.bucket = bucket
        self._host = HOST if internal_host is None else internal_host
        self._alternate = {"hostname": HOST} if internal_host else None
        self.alternates: dict[int, dict[str, Any]] = {}
        """Alternate addresses that nodes were given."""
        self.ports: list[dict[str, int]] = []
        """Of each node that ever was, by the name of the service."""
        self.members: list[int] = []
        """The nodes that the map names, in its order."""
        self.starting: set[int] = set()
        """Nodes that do not have the bucket yet."""
        self.config_only: set[int] = set()
        """Nodes that have the bucket's map, and not yet the bucket."""

    def _member_ports(self) -> Iterator[tuple[int, dict[str, int]]]:
        return ((node, self.ports[node]) for node in self.members)

    def _alternate_of(self, node: int) -> dict[str, Any]:
        external = self.alternates.get(node, self._alternate)
        return {"alternateAddresses": {"external": external}} if external else {}

    def _nodes_ext(self, this: int) -> list[dict[str, Any]]:
        return [
            {
                "services": ports,
                "hostname": self._host,
                **self._alternate_of(i),
                "nodeUUID": f"{i + 1:032x}",
                **({"thisNode": True} if i == this else {}),
            }
            for i, ports in self._member_ports()
        ]

    def _nodes(self, this: int) -> list[dict[str, Any]]:
        """The nodes of the cluster, in full."""
        return [
            {
                "hostname": f"{self._host}:{ports['mgmt']}",
                "ports": {"direct": ports["kv"]},
                "nodeUUID": f"{i + 1:032x}",
                "otpNode": f"n_{i}@{self._host}",
                "services": ["kv"],
                "status": "warmup" if i in self.starting | self.config_only else "healthy",
                "clusterMembership": "active",
                "version": self.bucket.release.build,
                "clusterCompatibility": self.bucket.release.compatibility,
                **({"thisNode": True} if i == this else {}),
            }
            for i, ports in self._member_ports()
        ]

    def _map(self) -> dict[str, Any]:
        if self.bucket.paused:
            return {"hashAlgorithm": "CRC", "numReplicas": 0, "serverList": [], "vBucketMap": []}
        places = {node: place for place, node in enumerate(self.members)}
        return {
            "hashAlgorithm": "CRC",
            "numReplicas": len(self.bucket.map[0]) - 1,
            "serverList": [f"{self._host}:{ports['kv']}" for _, ports in self._member_ports()],
            "vBucketMap": [[places.get(node, -1) for node in row] for row in self.bucket.map],
        }

    def _common(self) -> dict[str, Any]:
        bucket, path = self.bucket, quote(self.bucket.name, safe="")
        return {
            "name": bucket.name,
            "uuid": bucket.uuid,
            "nodeLocator": "vbucket",
            "uri": f"/pools/default/buckets/{path}?bucket_uuid={bucket.uuid}",
            "streamingUri": f"/pools/default/bucketsStreaming/{path}?bucket_uuid={bucket.uuid}",
            "ddocs": {"uri": f"/pools/default/buckets/{path}/ddocs"},
            "bucketCapabilitiesVer": "",
            # Views need files: those buckets have them that have disks.
            "bucketCapabilities": _CAPABILITIES + ([] if bucket.ephemeral else ["couchapi"]),
            "collectionsManifestUid": f"{bucket.manifest.uid:x}",
            "vBucketServerMap": self._map(),
        }

    def cluster(self, this: int) -> dict[str, Any]:
        """The configuration without a bucket, and ``nodeServices``."""
        return {
            "rev": self.bucket.rev,
            "revEpoch": 1,
            "nodesExt": self._nodes_ext(this),
            "clusterCapabilitiesVer": [1, 0],
            "clusterCapabilities": {},
        }

    def terse(self, this: int) -> dict[str, Any]:
        """The bucket configuration that data nodes hand out."""
        nodes = [
            {"hostname": f"{self._host}:{ports['mgmt']}", "ports": {"direct": ports["kv"]}}
            for _, ports in self._member_ports()
            if not self.bucket.paused
        ]
        return {**self.cluster(this), **self._common(), "nodes": nodes}

    def verbose(self, this: int) -> dict[str, Any]:
        """The bucket as ``/pools/default/buckets`` shows it."""
        return {
            **self._common(),
            "bucketType": "ephemeral" if self.bucket.ephemeral else "membase",
            "numVBuckets": len(self.bucket.vbuckets),
            "replicaNumber": len(self.bucket.map[0]) - 1,
            "storageBackend": "undefined" if self.bucket.ephemeral else "couchstore",
            "nodes": [] if self.bucket.paused else self._nodes(this),
            **({"hibernationState": "paused"} if self.bucket.paused else {}),
            "basicStats": {"itemCount": sum(vb.documents for vb in self.bucket.vbuckets)},
        }

    def pools(self) -> dict[str, Any]:
        uuid = self.bucket.cluster_uuid
        return {
            "pools": [
                {
                    "name": "default",
                    "uri": f"/pools/default?uuid={uuid}",
                    "streamingUri": f"/poolsStreaming/default?uuid={uuid}",
                }
            ],
            "uuid": uuid,
            "implementationVersion": self.bucket.release.build,
            "isAdminCreds": True,
            "isEnterprise": True,
        }

    def pool(self, this: int) -> dict[str, Any]:
        uuid = self.bucket.cluster_uuid
        return {
            "name": "default",
            "nodes": self._nodes(this),
            "buckets": {
                "uri": f"/pools/default/buckets?v=1&uuid={uuid}",
                "terseBucketsBase": "/pools/default/b/",
                "terseStreamingBucketsBase": "/pools/default/bs/",
            },
            "bucketNames": []
            if self.bucket.deleted
            else [{"bucketName": self.bucket.name, "uuid": self.bucket.uuid}],
            "nodeServicesUri": "/pools/default/nodeServices",
            "rebalanceStatus": "none",
            "balanced": True,
            "clusterName": "cbframe local",
        }


class ManagerNode(Protocol):
    """What a connection needs of its node."""

    index: int
    bucket: LocalBucket
    config: ClusterConfig
    credentials: Credentials
    loop: Loop
    rest_logins: dict[str, SaslServer]
    flush_bucket: Callable[[], None]

    def follow_config(self, stream: RestConnection, *, wanted: bool) -> None: ...


class RestConnection(Channel):
    """One HTTP connection; a streaming request keeps it until it closes."""

    def __init__(self, node: ManagerNode, sock: AnySocket) -> None:
        super().__init__(node.loop, sock)
        self._node = node
        self._buffer = bytearray()
        self._streaming: str | None = None
        self._last = b""
        self._heartbeat = 0.0
        self._certified: User | None = None
        self._login: dict[str, str] = {}

    def received(self, data: bytes) -> None:
        if self._streaming is not None:
            return
        self._buffer += data
        if not self._buffer[:1].isalpha():
            # No method begins like that: somebody speaks TLS, and would wait for ever.
            self._reply(HTTPStatus.BAD_REQUEST, b"Bad Request", _TEXT)
            self.closing = True
            return
        while not (self.closing or self._streaming is not None):
            head, blank, _ = self._buffer.partition(b"\r\n\r\n")
            if not blank:
                if len(self._buffer) > _MAX_HEAD:
                    self.close()
                return
            request_line, *lines = head.decode("latin-1").split("\r\n")
            headers = {
                name.strip().lower(): value.strip() for name, _, value in (x.partition(":") for x in lines)
            }
            length = headers.get("content-length", "0")
            if not length.isdecimal() or int(length) > _MAX_CONTENT:
                self.close()
                return
            end = len(head) + 4 + int(length)
            if len(self._buffer) < end:
                return
            del self._buffer[:end]
            parts = request_line.split(" ")
            if len(parts) != 3:
                self.close()
                return
            self._answer(parts[0], parts[1], headers)
            if headers.get("connection", "").lower() == "close" or parts[2] == "HTTP/1.0":
                self.closing = self._streaming is None

    def on_secured(self, user: str | None) -> None:
        self._certified = self._node.credentials.certified(user)

    def on_close(self) -> None:
        self._node.follow_config(self, wanted=False)

    # ------------------------------------------------------------------ routing

    def _answer(self, method: str, target: str, headers: dict[str, str]) -> None:
        self._login = {}
        user = self._certified or self._authorized(headers.get("authorization", ""))
        if user is None:
            challenge = 'Basic realm="Couchbase Server Admin / REST"'
            self._reply(HTTPStatus.UNAUTHORIZED, b"", _TEXT, {"WWW-Authenticate": challenge})
            return
        url = urlsplit(target)
        path = [unquote(part) for part in url.path.split("/") if part]
        if path[3:] and not user.may("data"):
            self._reply(HTTPStatus.FORBIDDEN, b'{"message":"Forbidden."}', _JSON)
            return
        if method == "POST" and path[4:] == ["controller", "doFlush"] and user.may("admin"):
            self._flush_bucket(path)
            return
        if method not in {"GET", "HEAD"}:
            self._reply(HTTPStatus.METHOD_NOT_ALLOWED, b"Method Not Allowed", _TEXT)
            return
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        bucket, config = self._node.bucket, self._node.config
        if query.get("uuid", bucket.cluster_uuid) != bucket.cluster_uuid:
            self._reply(HTTPStatus.NOT_FOUND, b"Cluster uuid does not match the requested.", _TEXT)
            return
        index = self._node.index
        with bucket.lock:
            match path:
                case []:
                    self._reply(HTTPStatus.OK, b"cbframe local cluster\n", _TEXT)
                case ["pools"]:
                    self._json(config.pools())
                case ["pools", "default"]:
                    self._json(config.pool(index))
                case ["pools", "default", "nodeServices"] | ["pools", "nodeServices"]:
                    self._json(config.cluster(index))
                case ["pools", "default", "buckets"]:
                    seen = user.may("data") and not bucket.deleted
                    self._json([config.verbose(index)] if seen else [])
                case ["pools", "default", kind, name, *rest]:
                    self._bucket(kind, name, rest, query, user)
                case _:
                    self._not_found()

    def _bucket(self, kind: str, name: str, rest: list[str], query: dict[str, str], user: User) -> None:
        bucket, config = self._node.bucket, self._node.config
        if kind not in {"buckets", "b", "bs", "bucketsStreaming"} or (
            rest and (kind, rest) != ("buckets", ["scopes"])
        ):
            self._not_found()
        elif name != bucket.name or bucket.deleted:
            self._no_bucket()
        elif query.get("bucket_uuid", bucket.uuid) != bucket.uuid:
            self._reply(HTTPStatus.NOT_FOUND, b"Bucket uuid does not match the requested.", _TEXT)
        elif rest:
            self._json(bucket.manifest.json(lambda *ids: user.sees(bucket.manifest, *ids)))
        elif kind == "buckets":
            self._json(config.verbose(self._node.index))
        elif kind == "b":
            self._json(config.terse(self._node.index))
        else:
            self._stream(kind, query.get("heartbeat", ""))

    def _flush_bucket(self, path: list[str]) -> None:
        bucket = self._node.bucket
        if path[:3] != ["pools", "default", "buckets"] or path[3] != bucket.name or bucket.deleted:
            self._no_bucket()
        elif not bucket.flush_enabled:
            refusal = {"_": "Flush is disabled for the bucket"}
            self._reply(HTTPStatus.BAD_REQUEST, json.dumps(refusal).encode(), _JSON)
        else:
            self._node.flush_bucket()
            self._reply(HTTPStatus.OK, b"", _TEXT)

    def _no_bucket(self) -> None:
        self._reply(HTTPStatus.NOT_FOUND, b'"Bucket not found"', _JSON)

    def _authorized(self, header: str) -> User | None:
        scheme, _, encoded = header.partition(" ")
        if scheme.upper().startswith("SCRAM-"):
            return self._scram(scheme, encoded)
        try:
            user, _, password = base64.b64decode(encoded, validate=True).decode().partition(":")
        except ValueError:
            return None
        return self._node.credentials.find(user, password) if scheme.lower() == "basic" else None

    def _scram(self, mechanism: str, fields: str) -> User | None:
        """RFC 7804: a challenge first; who answers it has logged in for this one request."""
        given = dict(part.split("=", 1) for part in fields.split(",") if "=" in part)
        try:
            data = base64.b64decode(given.get("data", ""), validate=True)
        except ValueError:
            return None
        sid, logins = given.get("sid"), self._node.rest_logins
        if sid is None:
            sid = base64.b64encode(secrets.token_bytes(12)).decode()
            logins[sid] = server = SaslServer(self._node.credentials)
            answer = server.auth(mechanism.upper().replace("SHA-", "SHA"), data)
            name, prefix = "WWW-Authenticate", f"{mechanism} "
        elif (known := logins.pop(sid, None)) is not None:
            server, name, prefix = known, "Authentication-Info", ""
            answer = server.step(data)
        else:
            return None
        if answer.value:
            self._login = {name: f"{prefix}sid={sid},data={base64.b64encode(answer.value).decode()}"}
        return server.user

    # ------------------------------------------------------------------ answers

    def _json(self, content: Any) -> None:
        self._reply(HTTPStatus.OK, json.dumps(content, separators=(",", ":")).encode(), _JSON)

    def _not_found(self) -> None:
        self._reply(HTTPStatus.NOT_FOUND, b"Not found.", _TEXT)

    def _reply(
        self, status: HTTPStatus, body: bytes, content_type: str, more: dict[str, str] | None = None
    ) -> None:
        headers = {
            "Server": "Couchbase Server",
            "Content-Type": content_type,
            "Content-Length": str(len(body)),
            **(more or {}),
            **self._login,
        }
        self.send(_head(status, headers) + body)

    def _stream(self, kind: str, heartbeat: str) -> None:
        self._streaming = kind
        if heartbeat.isdecimal() and int(heartbeat):
            self._heartbeat = float(heartbeat)
            self.deadline = self.loop.clock() + self._heartbeat
        self.send(_head(HTTPStatus.OK, {"Content-Type": _JSON, "Transfer-Encoding": "chunked"}))
        self._node.follow_config(self, wanted=True)
        self.push_config()

    def on_timer(self, now: float) -> None:
        self.deadline = now + self._heartbeat
        self._chunk(_SEPARATOR)

    def _chunk(self, data: bytes) -> None:
        self.send(b"%x\r\n%s\r\n" % (len(data), data))

    def push_config(self) -> None:
        """Send the configuration if it is another than the one sent last."""
        config, index = self._node.config, self._node.index
        with self._node.bucket.lock:
            content = config.terse(index) if self._streaming == "bs" else config.verbose(index)
        body = json.dumps(content, separators=(",", ":")).encode()
        if body != self._last:
            self._last = body
            self._chunk(body + _SEPARATOR)
            self.flush()


def _head(status: HTTPStatus, headers: dict[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status.value} {status.phrase}", *(f"{k}: {v}" for k, v in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
