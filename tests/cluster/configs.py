"""What a cluster manager says of the bucket ``travel``."""

from __future__ import annotations

from typing import Any

from cbframe.cluster.cluster_map import ClusterMap

UUID = "8f0f4a7d1c2b3e4f5a6b7c8d9e0f1a2b"
VERBOSE = f"/pools/default/buckets/travel?bucket_uuid={UUID}"


def verbose_config(**changes: Any) -> dict[str, Any]:
    config = {
        "name": "travel",
        "uuid": UUID,
        "bucketType": "membase",
        "nodeLocator": "vbucket",
        "uri": VERBOSE,
        "bucketCapabilities": ["collections", "dcp"],
        "collectionsManifestUid": "1f",
        "vBucketServerMap": {
            "serverList": ["10.0.0.1:11210", "10.0.0.2:11210"],
            "vBucketMap": [[0, 1], [1, 0], [0, 1], [1, 0]],
        },
    }
    return config | changes


def terse_config(**changes: Any) -> dict[str, Any]:
    config = verbose_config(rev=7, revEpoch=1, nodesExt=nodes_ext())
    del config["bucketType"]
    return config | changes


def nodes_ext() -> list[dict[str, Any]]:
    return [
        {
            "hostname": f"10.0.0.{n}",
            "services": {"mgmt": 8091, "kv": 11210, "kvSSL": 11207},
            "alternateAddresses": {"external": {"hostname": f"ext{n}.example", "ports": {"kv": 30000 + n}}},
        }
        for n in (1, 2)
    ]


def walk(**more: Any) -> dict[str, Any]:
    """A server that knows only the reference's endpoints."""
    return {
        "/pools": {"pools": [{"name": "default", "uri": "/pools/default?uuid=c"}]},
        "/pools/default": {"buckets": {"uri": "/pools/default/buckets?v=1"}},
        "/pools/default/buckets": [verbose_config()],
        "/pools/default/buckets/travel": verbose_config(),
        "/pools/default/nodeServices": {"nodesExt": nodes_ext()[::-1]},
    } | more


def by_node(found: ClusterMap) -> dict[str, list[int]]:
    """The vbuckets of each owner."""
    nodes: dict[str, list[int]] = {}
    for vbucket, owner in enumerate(found.active.tolist()):
        if owner >= 0:
            nodes.setdefault(found.nodes[owner], []).append(vbucket)
    return nodes
