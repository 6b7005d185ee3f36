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
"""The statuses that the embedded server sends, for GET_ERROR_MAP."""
