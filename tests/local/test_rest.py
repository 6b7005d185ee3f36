from __future__ import annotations

import base64
import json
import time
from http.client import HTTPConnection, HTTPResponse
from typing import Any

import pytest
import requests

from cbframe.local import LocalCluster


def ask(
    cluster: LocalCluster, path: str, *, node: int = 0, password: str | None = None, method: str = "GET"
) -> tuple[int, bytes, dict[str, str]]:
    connection, response = begin(cluster, path, node=node, password=password, method=method)
    try:
        return response.status, response.read(), dict(response.getheaders())
    finally:
        connection.close()


def begin(
    cluster: LocalCluster, path: str, *, node: int = 0, password: str | None = None, method: str = "GET"
) -> tuple[HTTPConnection, HTTPResponse]:
    connection = HTTPConnection(cluster.rest_urls[node].removeprefix("http://"), timeout=20)
    login = f"{cluster.username}:{password or cluster.password}".encode()
    connection.request(method, path, headers={"Authorization": "Basic " + base64.b64encode(login).decode()})
    return connection, connection.getresponse()


def get(cluster: LocalCluster, path: str) -> Any:
    status, body, _ = ask(cluster, path)
    assert status == 200
    return json.loads(body)


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
    status, _, headers = ask(cluster, "/pools", password="wrong")
    assert status == 401
    assert headers["WWW-Authenticate"] == 'Basic realm="Couchbase Server Admin / REST"'
    connection = HTTPConnection(cluster.rest_urls[0].removeprefix("http://"), timeout=20)
    connection.request("GET", "/pools")
    response = connection.getresponse()
    assert response.status == 401
    response.read()
    connection.close()


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
    status, body, _ = ask(cluster, path)
    assert status == 404
    assert words in body


def test_other_methods(cluster: LocalCluster) -> None:
    assert ask(cluster, "/pools", method="POST")[0] == 405


def test_scopes(cluster: LocalCluster) -> None:
    cluster.create_scope("s")
    assert cluster.create_collection("s", "c") == 8
    manifest = get(cluster, "/pools/default/buckets/default/scopes")
    assert manifest["uid"] == "2"
    assert [(c["name"], c["uid"]) for c in manifest["scopes"][1]["collections"]] == [("c", "8")]


@pytest.mark.parametrize("kind", ["bs", "bucketsStreaming"])
def test_streaming_follows_the_map_and_ends_with_the_cluster(kind: str) -> None:
    cluster = LocalCluster(nodes=2, vbuckets=2).start()
    connection, response = begin(cluster, f"/pools/default/{kind}/default")
    try:

        def next_map() -> Any:
            data = b""
            while not data.endswith(b"\n\n\n\n"):
                data += response.read1(1)
            return json.loads(data)["vBucketServerMap"]["vBucketMap"]

        assert next_map() == [[0], [1]]
        cluster.move_vbucket(1, 0)
        assert next_map() == [[0], [0]]
    finally:
        cluster.close()
        connection.close()


def test_heartbeats_of_a_stream() -> None:
    """By the node's own clock: an empty configuration when there was nothing for so long."""
    with LocalCluster(vbuckets=1, seed=1) as cluster:
        loop = cluster._engine.nodes[0].loop
        now = [time.monotonic()]
        loop.call(lambda: setattr(loop, "clock", lambda: now[0]))
        auth = cluster.username, cluster.password
        url = f"{cluster.rest_urls[0]}/pools/default/bs/default?heartbeat=7"
        with requests.get(url, auth=auth, stream=True, timeout=20) as answer:
            chunks = answer.iter_content(None)
            assert json.loads(next(chunks))["name"] == "default"
            for _ in range(2):
                now[0] += 7
                loop.wake()
                assert next(chunks) == b"\n\n\n\n"
