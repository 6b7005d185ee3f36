from __future__ import annotations

import json
import time
from typing import Any

import pytest
import requests

from cbframe.local import LocalCluster

from .client import TIMEOUT, rest


def get(cluster: LocalCluster, path: str) -> Any:
    answer = rest(cluster, path)
    assert answer.status_code == 200
    return answer.json()


def test_the_walk_of_a_client() -> None:
    with LocalCluster(nodes=2, vbuckets=4, bucket="travel sample") as cluster:
        pool = get(cluster, get(cluster, "/pools")["pools"][0]["uri"])
        assert len(pool["nodes"]) == 2
        (bucket,) = get(cluster, pool["buckets"]["uri"])
        assert bucket["name"] == "travel sample"
        verbose = get(cluster, bucket["uri"])
        assert verbose["uuid"] == bucket["uuid"] == pool["bucketNames"][0]["uuid"]
        assert verbose["vBucketServerMap"]["serverList"] == cluster.kv_addresses
        assert verbose["vBucketServerMap"]["vBucketMap"] == [[0], [0], [1], [1]]
        terse = get(cluster, "/pools/default/b/travel%20sample")
        ports = [f"127.0.0.1:{node['services']['kv']}" for node in terse["nodesExt"]]
        assert ports == cluster.kv_addresses
        services = get(cluster, "/pools/default/nodeServices")
        assert [node.get("thisNode", False) for node in services["nodesExt"]] == [True, False]


def test_authentication(cluster: LocalCluster) -> None:
    answer = rest(cluster, "/pools", auth=(cluster.username, "wrong"))
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == 'Basic realm="Couchbase Server Admin / REST"'
    assert requests.get(f"{cluster.rest_urls[0]}/pools", timeout=TIMEOUT).status_code == 401


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/pools/default/buckets/other", b"Bucket not found"),
        ("/pools/default/b/other", b"Bucket not found"),
        ("/pools/default/bs/other", b"Bucket not found"),
        ("/pools/default/b/default?bucket_uuid=0", b"Bucket uuid does not match the requested."),
        ("/pools/default?uuid=0", b"Cluster uuid does not match the requested."),
        ("/nowhere", b""),
    ],
)
def test_not_found(cluster: LocalCluster, path: str, words: bytes) -> None:
    answer = rest(cluster, path)
    assert answer.status_code == 404
    assert words in answer.content


def test_other_methods(cluster: LocalCluster) -> None:
    assert rest(cluster, "/pools", "POST").status_code == 405


def test_scopes(cluster: LocalCluster) -> None:
    cluster.create_scope("s")
    assert cluster.create_collection("s", "c") == 8
    manifest = get(cluster, "/pools/default/buckets/default/scopes")
    assert manifest["uid"] == "2"
    assert [(c["name"], c["uid"]) for c in manifest["scopes"][1]["collections"]] == [("c", "8")]


@pytest.mark.parametrize("kind", ["bs", "bucketsStreaming"])
def test_streaming_follows_the_map_and_ends_with_the_cluster(kind: str) -> None:
    cluster = LocalCluster(nodes=2, vbuckets=2).start()
    with rest(cluster, f"/pools/default/{kind}/default", stream=True) as answer:
        chunks = answer.iter_content(None)
        assert json.loads(next(chunks))["vBucketServerMap"]["vBucketMap"] == [[0], [1]]
        cluster.move_vbucket(1, 0)
        assert json.loads(next(chunks))["vBucketServerMap"]["vBucketMap"] == [[0], [0]]
        cluster.close()


def test_heartbeats_of_a_stream(cluster: LocalCluster) -> None:
    """By the node's own clock: an empty configuration when there was nothing for so long."""
    loop = cluster._engine.nodes[0].loop
    now = [time.monotonic()]
    loop.call(lambda: setattr(loop, "clock", lambda: now[0]))
    with rest(cluster, "/pools/default/bs/default?heartbeat=7", stream=True) as answer:
        chunks = answer.iter_content(None)
        assert json.loads(next(chunks))["name"] == "default"
        for _ in range(2):
            now[0] += 7
            loop.wake()
            assert next(chunks) == b"\n\n\n\n"
