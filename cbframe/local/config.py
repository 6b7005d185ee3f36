"""What the cluster says about itself: the JSON of REST and of GET_CLUSTER_CONFIG."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from cbframe.local.bucket import Bucket

HOST = "127.0.0.1"
_CAPABILITIES = ["collections", "dcp", "cbhello", "touch", "cccp", "nodesExt", "xattr"]


class ClusterConfig:
    """Builds every answer from the bucket and the nodes' ports; callers hold the bucket's lock."""

    def __init__(self, bucket: Bucket, internal_host: str | None = None) -> None:
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
            "bucketCapabilities": _CAPABILITIES,
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


ERROR_MAP: dict[str, Any] = {
    "version": 2,
    "revision": 1,
    "errors": {
        code: {"name": name, "desc": desc, "attrs": attrs}
        for code, name, desc, attrs in (
            ("1", "KEY_ENOENT", "Not Found", ["item-only"]),
            ("2", "KEY_EEXISTS", "key already exists, or CAS mismatch", ["item-only"]),
            ("3", "E2BIG", "Value too large", ["item-only", "invalid-input"]),
            ("4", "EINVAL", "Invalid packet", ["internal", "invalid-input"]),
            (
                "7",
                "NOT_MY_VBUCKET",
                "Server does not know about this vBucket",
                ["fetch-config", "invalid-input"],
            ),
            ("8", "NO_BUCKET", "Not connected to any bucket", ["conn-state-invalidated"]),
            ("20", "AUTH_ERROR", "Authentication failed", ["conn-state-invalidated", "auth"]),
            ("22", "ERANGE", "Range error", ["invalid-input"]),
            ("23", "ROLLBACK", "Roll back to the seqno in the value", ["dcp", "special-handling"]),
            ("24", "EACCESS", "Not authorized for command", ["support", "auth"]),
            ("80", "UNKNOWN_FRAME_INFO", "Unknown frame info", ["invalid-input"]),
            (
                "d",
                "ECONFIG_ONLY",
                "Command can't be executed in a config-only bucket",
                ["fetch-config", "retry-now"],
            ),
            ("81", "UNKNOWN_COMMAND", "Unknown command", ["support"]),
            ("83", "NOT_SUPPORTED", "Operation not supported", ["support"]),
            ("86", "ETMPFAIL", "Temporary failure", ["temp", "retry-now"]),
            ("88", "UNKNOWN_COLLECTION", "Operation on an unknown collection", ["item-only", "support"]),
            ("8c", "UNKNOWN_SCOPE", "Operation on an unknown scope", ["item-only", "support"]),
        )
    },
}
"""What 7.2 answers to GET_ERROR_MAP: the statuses that the embedded server sends."""
_ERRORS_OF_8 = """
success: 0 SUCCESS, a5 RangeScanCancelled, a6 RangeScanMore, a7 RangeScanComplete
item-only: 1 KEY_ENOENT, 2 KEY_EEXISTS, e NOT_LOCKED, f CAS_VALUE_INVALID, a3 SyncWriteAmbiguous
item-only invalid-input: 3 E2BIG, 6 DELTA_BADVAL, a1 DurabilityImpossible
internal invalid-input: 4 EINVAL
internal item-only: 5 NOT_STORED
fetch-config invalid-input: 7 NOT_MY_VBUCKET
conn-state-invalidated: 8 NO_BUCKET, a STREAM_NOT_FOUND, b OPAQUE_NO_MATCH, 25 NOT_INITIALIZED
item-locked item-only retry-now: 9 LOCKED
temp retry-later rate-limit: c EWOULD_THROTTLE, 30 RATE_LIMITED_NETWORK_INGRESS
temp retry-later rate-limit: 31 RATE_LIMITED_NETWORK_EGRESS, 33 RATE_LIMITED_MAX_COMMANDS
fetch-config retry-now: d ECONFIG_ONLY
conn-state-invalidated auth: 1f AUTH_STALE, 20 AUTH_ERROR
special-handling: 21 AUTH_CONTINUE, 26 ENCRYPTION_KEY_NOT_AVAILABLE, 27 CHECKSUM_MISMATCH
invalid-input: 22 ERANGE, 87 XATTR_EINVAL, 88 UNKNOWN_COLLECTION, 8a CANNOT_APPLY_COLLECTIONS_MANIFEST
invalid-input: 8c UNKNOWN_SCOPE, 8d DCP stream-ID invalid, a0 DurabilityInvalidLevel, a8 VbUuidNotEqual
dcp special-handling: 23 ROLLBACK
support: 24 EACCESS, 50 BUCKET_PAUSED, 80 UNKNOWN_FRAME_INFO, 81 UNKNOWN_COMMAND, 83 NOT_SUPPORTED
conn-state-invalidated rate-limit: 32 RATE_LIMITED_MAX_CONNECTIONS
item-only rate-limit: 34 SCOPE_SIZE_LIMIT_EXCEEDED
item-only system-constraint no-retry: 35 BUCKET_SIZE_LIMIT_EXCEEDED, 36 BUCKET_RESIDENT_RATIO_TOO_LOW
item-only system-constraint no-retry: 37 BUCKET_DATA_SIZE_TOO_BIG, 38 BUCKET_DISK_SPACE_TOO_LOW
item-only retry-now: 51 CANCELLED
temp retry-later: 82 ENOMEM
internal conn-state-invalidated: 84 EINTERNAL
temp retry-now: 85 EBUSY, 86 ETMPFAIL
retry-later: 89 NO_COLLECTIONS_MANIFEST
item-only retry-later: a2 SyncWriteInProgress, a4 SyncWriteReCommitInProgress
subdoc item-only: c0 SUBDOC_PATH_ENOENT, c1 SUBDOC_PATH_MISMATCH, c6 SUBDOC_DOC_NOTJSON
subdoc item-only: c7 SUBDOC_NUM_ERANGE, c8 SUBDOC_DELTA_EINVAL, c9 SUBDOC_PATH_EEXISTS
subdoc item-only: d6 SUBDOC_CAN_ONLY_REVIVE_DELETED_DOCUMENTS, d7 SUBDOC_DELETED_DOCUMENT_CANT_HAVE_VALUE
subdoc item-only: d8 SUBDOC_FIELD_NOT_BINARY_VALUE
subdoc invalid-input: c2 SUBDOC_PATH_EINVAL, c3 SUBDOC_PATH_E2BIG, c4 SUBDOC_PATH_E2DEEP
subdoc invalid-input: c5 SUBDOC_VALUE_CANTINSERT, cb SUBDOC_INVALID_COMBO
subdoc invalid-input: ce SUBDOC_XATTR_INVALID_FLAG_COMBO, cf SUBDOC_XATTR_INVALID_KEY_COMBO
subdoc invalid-input: d0 SUBDOC_XATTR_UNKNOWN_MACRO, d1 SUBDOC_XATTR_UNKNOWN_VATTR
subdoc invalid-input: d2 SUBDOC_XATTR_CANT_MODIFY_VATTR, d4 SUBDOC_INVALID_XATTR_ORDER
subdoc invalid-input: d5 SUBDOC_XATTR_UNKNOWN_VATTR_MACRO
subdoc invalid-input item-only: ca SUBDOC_VALUE_ETOODEEP
subdoc special-handling: cc SUBDOC_MULTI_PATH_FAILURE
item-deleted success subdoc: cd SUBDOC_SUCCESS_DELETED
item-deleted subdoc special-handling: d3 SUBDOC_MULTI_PATH_FAILURE_DELETED
"""
"""Attributes, and the statuses that have them."""
_SINCE_VERSION_2 = frozenset({"rate-limit", "system-constraint", "no-retry"})
_REVISIONS_OF_8 = {1: 10, 2: 6}


def error_map(request: bytes, *, is_8: bool) -> dict[str, Any]:
    """The answer to GET_ERROR_MAP; `request` is the version that the client knows, two bytes."""
    if not is_8:
        return ERROR_MAP
    version = max(1, min(int.from_bytes(request, "big"), 2))
    errors = {}
    for line in _ERRORS_OF_8.split("\n")[1:-1]:
        attributes, _, statuses = line.partition(": ")
        attrs = [name for name in attributes.split() if version > 1 or name not in _SINCE_VERSION_2]
        for code, _, name in (status.partition(" ") for status in statuses.split(", ")):
            errors[code] = {"name": name, "desc": name.replace("_", " ").capitalize(), "attrs": attrs}
    return {"version": version, "revision": _REVISIONS_OF_8[version], "errors": errors}
