"""Partitions: together they are one read, wherever and however often each is read."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest

import cbframe
from cbframe import AsOf, BucketDataSourceOptions, EnvironmentAuth, LocalCluster, ScanPartition, scan_bucket
from cbframe.errors import ConfigurationError, RollbackError, StreamError
from cbframe.local.kv import HANDLERS
from cbframe.scan.session import Pins
from cbframe.wire.constants import Opcode, Status
from cbframe.wire.messages import FailoverEntry, vbucket_of

from .kit import QUICK, background, fill, keys_of, values_of
from .test_writers import KEYS, Writer

USER, SECRET = "reader", "a-word-that-is-secret"


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CB_USER", USER)
    monkeypatch.setenv("CB_PASSWORD", SECRET)


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(nodes=2, vbuckets=64, seed=3, username=USER, password=SECRET) as found:
        fill(found, 500)
        yield found


def parts_of(cluster: LocalCluster, n: int, **arguments: Any) -> list[ScanPartition]:
    names = ("consistency", "sample_rows", "include_credentials")
    how = {name: arguments.pop(name) for name in names if name in arguments}
    return scan_bucket(cluster, timeout=60, options=QUICK, **arguments).partitions(n, **how)


def union(parts: list[ScanPartition]) -> pa.Table:
    return pa.concat_tables([part.read().replace_schema_metadata() for part in parts])


def told(table: pa.Table) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(table.schema.metadata[b"cbframe"])
    return found


def sorted_rows(table: pa.Table) -> list[dict[str, Any]]:
    return sorted(table.to_pylist(), key=lambda row: row["_cb_key"])


@pytest.mark.parametrize("n", [1, 2, 3, 7, 64, 1000])
def test_together_they_are_the_read(cluster: LocalCluster, n: int) -> None:
    parts = parts_of(cluster, n)
    assert len(parts) == min(n, 64)
    assert sorted(vb for part in parts for vb in part.vbuckets) == list(range(64))
    whole = scan_bucket(cluster).read()
    assert {vb: at for part in parts for vb, at in part.as_of.items()} == dict(whole.as_of)
    table = union(parts)
    assert table.schema.equals(parts[0].schema)
    assert table.schema.equals(whole.table.schema)
    assert sorted_rows(table) == sorted_rows(whole.table)


@pytest.mark.parametrize(("nodes", "vbuckets"), [(1, 64), (3, 64), (3, 1024)])
def test_each_is_of_one_node(nodes: int, vbuckets: int) -> None:
    with LocalCluster(nodes=nodes, vbuckets=vbuckets, seed=1) as cluster:
        fill(cluster, 2000)
        parts = parts_of(cluster, 2 * nodes)
        owners = cluster._engine.bucket.map
        for part in parts:
            assert len({owners[vb][0] for vb in part.vbuckets}) == 1
        assert len({part.node for part in parts[:nodes]}) == nodes, "by turns"
        changes = [part.changes for part in parts]
        assert max(changes) < 1.5 * min(changes)
        assert len(set(keys_of(union(parts)))) == 2000


def test_fewer_than_nodes() -> None:
    with LocalCluster(nodes=3, vbuckets=64, seed=1) as cluster:
        fill(cluster, 300)
        parts = parts_of(cluster, 2)
        assert len(parts) == 2
        assert union(parts).num_rows == 300


def test_the_ways_to_read_agree(cluster: LocalCluster) -> None:
    part = parts_of(cluster, 3)[0]
    table = part.read()
    assert part.to_reader().read_all().schema.equals(part.schema)
    assert sorted_rows(part.to_reader().read_all()) == sorted_rows(table)
    assert sorted_rows(pa.table(part)) == sorted_rows(table)
    frame = part.to_pandas()
    assert sorted(frame.index) == sorted(table["_cb_key"].to_pylist())
    assert frame.attrs["cbframe"]["as_of"] == part.as_of
    assert {int(vb): tuple(at) for vb, at in told(table)["as_of"].items()} == dict(part.as_of)


@pytest.mark.parametrize(
    "arguments",
    [{"keys_only": True}, {"parse": False, "metadata": ("cas", "collection")}, {"columns": ["n"]}],
)
def test_other_scans(cluster: LocalCluster, arguments: dict[str, Any]) -> None:
    table = union(parts_of(cluster, 3, **arguments))
    whole = scan_bucket(cluster, **arguments).to_arrow()
    assert table.schema.equals(whole.schema)
    assert sorted_rows(table) == sorted_rows(whole)


def test_an_empty_bucket() -> None:
    with LocalCluster(nodes=1, vbuckets=8) as cluster:
        parts = parts_of(cluster, 3)
        assert [part.read().num_rows for part in parts] == [0, 0, 0]
        assert parts[0].schema.names == ["_cb_key"]


@pytest.mark.parametrize(
    ("arguments", "columns"),
    [
        ({}, ["text"]),
        ({}, ["text", "n"]),
        ({}, []),
        ({"metadata": ("cas", "seqno")}, ["_cb_seqno", "n"]),
        ({"metadata": ("cas", "seqno")}, ["_cb_seqno"]),
        ({"errors": "drop"}, []),
        ({"columns": ["n", "text"], "filters": [("n", ">", 250)]}, ["text"]),
        ({"filters": [("n", ">", 250)]}, []),
        ({"keys_only": True}, []),
        ({"parse": False}, ["_cb_value"]),
        ({"nested": "flatten"}, ["text"]),
        ({"nested": "json", "on_conflict": "null"}, ["text"]),
        ({"schema": {"n": "double"}}, ["n"]),
    ],
)
def test_some_columns(cluster: LocalCluster, arguments: dict[str, Any], columns: list[str]) -> None:
    whole = scan_bucket(cluster, **arguments).to_arrow().select(["_cb_key", *columns])
    parts = [part.select(columns) for part in parts_of(cluster, 3, **arguments)]
    table = union(parts)
    assert table.schema.equals(whole.schema)
    assert sorted_rows(table) == sorted_rows(whole)
    streamed = parts[0].to_reader().read_all()
    assert sorted_rows(streamed) == sorted_rows(parts[0].read())
    with pytest.raises(ConfigurationError, match="no column 'other'"):
        parts[0].select(["other"])


def test_what_is_not_needed_is_not_read(cluster: LocalCluster) -> None:
    part = parts_of(cluster, 1)[0]
    assert (
        part.select([]).result().stats.total.bytes_received < part.result().stats.total.bytes_received * 0.8
    )


# -- estimates


def test_estimates(cluster: LocalCluster) -> None:
    """Of the whole vbuckets; of a bucket at rest they are what is there."""
    parts = parts_of(cluster, 4, filters=[("n", "<", 3)])
    assert [part.documents for part in parts] == [
        scan_bucket(cluster, vbuckets=part.vbuckets).to_arrow().num_rows for part in parts
    ]
    for part in parts:
        stored = [cluster._engine.bucket.vbuckets[vb].stored_bytes for vb in part.vbuckets]
        assert part.bytes == sum(stored) > 0
        assert f"about {part.documents} documents, {part.bytes:,} bytes>" in repr(part)
    again = pickle.loads(pickle.dumps(parts_of(cluster, 4, include_credentials=True)[0]))
    assert (again.documents, again.bytes) == (parts[0].documents, parts[0].bytes)
    assert again.select(["n"]).documents == again.documents


def test_large_vbuckets() -> None:
    """Of few documents, but large ones, as much is read in each partition."""
    with LocalCluster(nodes=2, vbuckets=64, seed=1) as cluster:
        for n in range(1200):
            key = f"key-{n}"
            large = vbucket_of(key.encode(), 64) % 8 == 0
            cluster.upsert(key, {"text": "x" * (5000 if large else 10)})
        parts = parts_of(cluster, 8)
        sizes = [part.bytes or 0 for part in parts]
        assert max(sizes) < 1.2 * min(sizes)
        changes = [part.changes for part in parts]
        assert max(changes) > 1.2 * min(changes)


@pytest.mark.parametrize("status", [Status.EACCESS, Status.KEY_ENOENT, Status.ETMPFAIL])
def test_nodes_that_do_not_tell(
    cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch, status: Status
) -> None:
    monkeypatch.setitem(HANDLERS, Opcode.STAT, lambda conn, frame: conn.respond(frame, status))
    parts = parts_of(cluster, 3)
    assert {(part.documents, part.bytes) for part in parts} == {(None, None)}
    assert "at most" in repr(parts[0])
    assert union(parts).num_rows == 500


def test_a_field_that_begins_like_our_names() -> None:
    with LocalCluster(vbuckets=4) as cluster:
        cluster.upsert("a", {"_cb_own": 1, "n": 1})
        cluster.upsert("b", {"_cb_own": 2})
        assert sorted_rows(union(parts_of(cluster, 2, on_conflict="null"))) == [
            {"_cb_key": "a", "_cb_own_": 1, "n": 1},
            {"_cb_key": "b", "_cb_own_": 2, "n": None},
        ]


# -- secrets


@pytest.mark.usefixtures("environment")
def test_pickled_without_a_secret(cluster: LocalCluster) -> None:
    parts = parts_of(cluster, 3, auth=EnvironmentAuth())
    data = [pickle.dumps(part) for part in parts]
    assert not any(SECRET.encode() in each for each in data)
    assert max(map(len, data)) < 8000
    again: list[ScanPartition] = [pickle.loads(each) for each in data]
    assert sorted_rows(union(again)) == sorted_rows(scan_bucket(cluster).to_arrow())
    assert [part.as_of for part in again] == [part.as_of for part in parts]


def test_a_password_is_not_pickled_unasked(cluster: LocalCluster) -> None:
    part = parts_of(cluster, 1)[0]
    with pytest.raises(ConfigurationError, match="with a password in it") as caught:
        pickle.dumps(part)
    assert "EnvironmentAuth" in str(caught.value)
    asked = parts_of(cluster, 1, include_credentials=True)[0]
    assert pickle.loads(pickle.dumps(asked)).read().num_rows == 500
    assert SECRET not in repr(part) + repr(asked) + repr(asked._scan) + repr(asked._scan.spec)


def test_a_password_in_the_connection_string(cluster: LocalCluster) -> None:
    seed = cluster.rest_urls[0].replace("http://", f"http://{USER}:{SECRET}@")
    part = scan_bucket(seed, "default").partitions(1)[0]
    assert SECRET not in repr(part)
    with pytest.raises(ConfigurationError, match="with a password in it"):
        pickle.dumps(part)


@pytest.mark.usefixtures("environment")
def test_the_password_of_a_proxy(cluster: LocalCluster) -> None:
    options = BucketDataSourceOptions(proxies={"https": f"http://user:{SECRET}@proxy:3128"})
    scan = scan_bucket(cluster.connection_string, auth=EnvironmentAuth(), options=options)
    with pytest.raises(ConfigurationError, match="the password of a proxy") as caught:
        pickle.dumps(scan.partitions(1)[0])
    assert SECRET not in str(caught.value)
    assert SECRET.encode() in pickle.dumps(scan.partitions(1, include_credentials=True)[0])


def test_an_environment_without_the_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CB_USER", raising=False)
    with pytest.raises(ConfigurationError, match="CB_USER is not set in this process"):
        EnvironmentAuth()()


def test_errors_can_be_pickled() -> None:
    for error in (
        cbframe.ServerError("refused", status=4, node="n", vbucket=3),
        cbframe.AllServerURLsConnectBucketError(["a", "b"], hint="do"),
        cbframe.ProtocolError("bad", opcode=1, offset=2),
        cbframe.SnapshotError("bad", path="p"),
        cbframe.DependencyError("absent", hint="install"),
        cbframe.SpoolError("full"),
    ):
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error)
        assert str(again) == str(error)
        assert again.__dict__ == error.__dict__


# -- writes meanwhile


def test_written_to_since() -> None:
    with LocalCluster(nodes=2, vbuckets=16, seed=1) as cluster:
        fill(cluster, 200)
        parts, strict = parts_of(cluster, 4), parts_of(cluster, 4, consistency="strict")
        before = {part.number: part.read() for part in strict}
        cluster.upsert("key-000007", {"n": -7, "text": "new"})
        passed = [part for part in parts if told(part.read())["as_of"] != as_told(part.as_of)]
        assert len(passed) == 1
        rows = {row["_cb_key"]: row for row in passed[0].read().to_pylist()}
        assert rows["key-000007"]["n"] == -7, "the older version is gone"
        for part in strict:
            if part.vbuckets == passed[0].vbuckets:
                with pytest.raises(StreamError, match="1 vbuckets were written to") as caught:
                    part.read()
                assert caught.value.vbucket in part.vbuckets
                with pytest.raises(StreamError, match="1 vbuckets were written to"):
                    part.to_reader()
            else:
                assert sorted_rows(part.read()) == sorted_rows(before[part.number])


def test_what_was_empty_stays_empty() -> None:
    """Of a vbucket without any change nothing is read: that is its state at the pinned moment."""
    with LocalCluster(nodes=1, vbuckets=4) as cluster:
        part = parts_of(cluster, 1, consistency="strict")[0]
        cluster.upsert("later", {"n": 1})
        assert part.read().num_rows == 0


def as_told(as_of: AsOf) -> dict[str, list[int]]:
    return {str(vb): list(at) for vb, at in as_of.items()}


def test_under_a_writer() -> None:
    """No older than the pinned moment, and as one document each."""
    with LocalCluster(nodes=2, vbuckets=64, seed=1) as cluster:
        writer = Writer(cluster, 5)
        with background(writer.run):
            assert writer.going.wait(20)
            for _ in range(2):
                at_start = {
                    key: len(written) for key, written in writer.history.copy().items() if key in KEYS
                }
                parts = parts_of(cluster, 3, parse=False)
                tables = [part.read() for part in [*parts, *parts]]
                for some in (tables[:3], tables[3:]):
                    whole = pa.concat_tables([table.replace_schema_metadata() for table in some])
                    writer.check(values_of(whole), at_start)
                for part, table in zip([*parts, *parts], tables, strict=True):
                    reached = told(table)["as_of"]
                    assert all(reached[str(vb)][1] >= seqno for vb, (_, seqno) in part.as_of.items())


@pytest.mark.parametrize("lose", [0, 1])
def test_another_history(lose: int) -> None:
    with LocalCluster(nodes=2, vbuckets=8, replicas=1, seed=1) as cluster:
        fill(cluster, 200)
        parts = {how: parts_of(cluster, 1, consistency=how)[0] for how in ("snapshot", "strict")}
        cluster.failover(1, lose=lose)
        reached = told(parts["snapshot"].read())["as_of"]
        pinned = as_told(parts["snapshot"].as_of)
        changed = {vb for vb in pinned if reached[vb][0] != pinned[vb][0]}
        assert len(changed) == 4
        assert all(reached[vb][1] == pinned[vb][1] - lose * (vb in changed) for vb in pinned)
        if lose:
            with pytest.raises(RollbackError, match="the history of 4 vbuckets is not that"):
                parts["strict"].read()
        else:
            # The new histories have all of the old ones.
            assert parts["strict"].read().num_rows == 200


A, B, C = 11, 22, 33


@pytest.mark.parametrize(
    ("reached", "log", "same"),
    [
        ((A, 100), (), True),
        ((A, 150), (), True),
        ((A, 99), (), False),
        ((B, 120), (), False),
        ((B, 120), ((B, 100), (A, 0)), True),
        ((B, 120), ((B, 99), (A, 0)), False),
        ((C, 130), ((C, 120), (B, 110), (A, 0)), True),
        ((C, 130), ((B, 100), (A, 0)), False),
        ((B, 120), ((B, 100), (C, 0)), False),
    ],
)
def test_histories(reached: tuple[int, int], log: tuple[tuple[int, int], ...], same: bool) -> None:
    pins = Pins(AsOf({0: (A, 100)}), "", "strict")
    assert pins._has(0, reached, tuple(FailoverEntry(*entry) for entry in log)) is same


def test_another_bucket() -> None:
    with LocalCluster(nodes=1, vbuckets=8) as cluster:
        fill(cluster, 20)
        part = parts_of(cluster, 1)[0]
        pins = Pins(part.as_of, "0" * 32, "snapshot")
        other = replace(part, _pins=pins)
        with pytest.raises(cbframe.CbframeError, match="uuid"):
            other.read()
