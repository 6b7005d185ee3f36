"""Partitions: how vbuckets are divided, one schema for all, and together they are one read."""

from __future__ import annotations

import json
import os
import pickle
import signal
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cbframe
from cbframe import AsOf, BucketDataSourceOptions, EnvironmentAuth, LocalCluster, ScanPartition, scan_bucket
from cbframe.cluster.cluster_map import ClusterMap, parse_bucket_config
from cbframe.cluster.connection_string import HostPort
from cbframe.dcp.positions import VBucketOffset
from cbframe.dcp.survey import BucketState, Size
from cbframe.errors import CbframeError, ConfigurationError, ConversionError, RollbackError, StreamError
from cbframe.local.kv import HANDLERS
from cbframe.scan.partition import in_processes, shares, spread
from cbframe.scan.result import merged
from cbframe.scan.session import Pins
from cbframe.wire.constants import Opcode, Status
from cbframe.wire.messages import FailoverEntry, vbucket_of

from .kit import QUICK, background, create, fill, keys_in, keys_of, values_of
from .test_writers import Writer

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


def table_of(part: ScanPartition, streamed: bool) -> pa.Table:
    return part.to_reader().read_all() if streamed else part.read()


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
    keys, whole = (each.result().stats.total.bytes_received for each in (part.select([]), part))
    assert keys < whole * 0.8


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
                at_start = writer.at_start()
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


# --- One schema for all partitions: agreed from a sample, kept by each, or an error that names the field.


LATER = 1000
LAST = spread(range(64))[-1]
"""The vbucket that a sample sees last, where the first one has more documents than a few."""


def filled(cluster: LocalCluster, documents: Iterable[dict[str, Any]], name: str = "plain") -> None:
    cluster.bulk_load(
        (b"%s-%05d" % (name.encode(), n), json.dumps(each).encode()) for n, each in enumerate(documents)
    )


def plain(count: int = LATER) -> list[dict[str, Any]]:
    return [{"n": n, "price": n / 4, "geo": {"lat": 1.5}, "tags": ["a"]} for n in range(count)]


def odd(**fields: Any) -> LocalCluster:
    """A bucket in which one document is unlike the others, and in a vbucket that no small sample sees."""
    cluster = LocalCluster(nodes=2, vbuckets=64, seed=1).start()
    filled(cluster, plain())
    (key,) = keys_in(LAST, 64, 1, b"odd-%d")
    cluster.upsert(key, {**plain(1)[0], **fields})
    return cluster


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n": "text"}, "'n' is int64 there and has to be string"),
        ({"n": 1.5}, "'n' is int64 there and has to be double"),
        ({"more": 1}, r"'more' \(int64\) is not in it"),
        ({"geo": {"lat": 1.0, "lon": 2}}, r"'geo.lon' \(int64\) is not in it"),
        ({"tags": 1}, "'tags' is list<item: string> there and has to be JSON text"),
        ({"geo": 5}, "'geo' is struct<lat: double> there and has to be JSON text"),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_what_does_not_fit_is_an_error(fields: dict[str, Any], message: str, streamed: bool) -> None:
    with odd(**fields) as cluster:
        *good, bad = sorted(parts_of(cluster, 4, sample_rows=50), key=lambda part: LAST in part.vbuckets)
        assert all(part.read().schema.equals(bad.schema) for part in good)
        with pytest.raises(ConversionError, match=message) as caught:
            bad.to_reader() if streamed else bad.read()
        assert "sample_rows=None" in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "null", "path", "kind"),
    [
        ({"n": "text"}, {"n": None}, "n", "string"),
        ({"n": 1.5}, {"n": None}, "n", "misfit"),
        ({"more": 1}, {}, "more", "unexpected"),
        ({"geo": {"lat": 1.0, "lon": 2}}, {"geo": {"lat": 1.0}}, "geo.lon", "unexpected"),
        ({"geo": {"lat": "x"}}, {"geo": {"lat": None}}, "geo.lat", "string"),
        ({"geo": 5}, {"geo": None}, "geo", "integer"),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_or_null_and_reported(
    fields: dict[str, Any], null: dict[str, Any], path: str, kind: str, streamed: bool
) -> None:
    with odd(**fields) as cluster:
        parts = parts_of(cluster, 4, sample_rows=50, on_conflict="null")
        tables = [table_of(part, streamed) for part in parts]
        assert all(table.schema.equals(parts[0].schema) for table in tables)
        rows = {row["_cb_key"]: row for table in tables for row in table.to_pylist()}
        assert len(rows) == LATER + 1
        key = next(key for key in rows if key.startswith("odd"))
        assert rows[key] == {"_cb_key": key, **plain(1)[0], **null}
        reports = [conflict for table in tables for conflict in told(table)["conflicts"]]
        assert [(each["path"], each["action"]) for each in reports] == [(path, "null")]
        assert reports[0]["types"][kind] == 1


@pytest.mark.parametrize("fields", [{"n": "text"}, {"n": 1.5}, {"more": 1}, {"geo": {"lon": 2}}, {"geo": 5}])
def test_who_looks_at_all_agrees_on_all(fields: dict[str, Any]) -> None:
    with odd(**fields) as cluster:
        parts = parts_of(cluster, 4, sample_rows=None)
        table, whole = union(parts), scan_bucket(cluster, options=QUICK).to_arrow()
        table = table.select(whole.schema.names)
        assert table.schema.equals(whole.schema)
        assert sorted_rows(table) == sorted_rows(whole)


@pytest.mark.parametrize(
    ("here", "there", "nested"),
    [
        ("1.50", '"x"', "struct"),
        ("1e400", '"x"', "struct"),
        ("-0", "0.5", "struct"),
        ('{"a": 1, "b": null}', "5", "struct"),
        ("[1.50, null]", "true", "struct"),
        ('{"x": 1.50}', '{"x": "t"}', "struct"),
        ('[{"x": [1, 2]}]', '[{"x": 5}]', "struct"),
        ('[1, "x"]', "5", "json"),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_values_are_as_they_were_written(here: str, there: str, nested: Any, streamed: bool) -> None:
    """Where others have text it is kept, whatever else a part has, and though nothing of it is text."""
    with LocalCluster(nodes=1, vbuckets=2, seed=1) as cluster:
        for n in range(40):
            other = there if vbucket_of(b"k%d" % n, 2) else here
            mixed = other if other is there else ("5", '"x"', "12345678901234567890")[n % 3]
            cluster.upsert(f"k{n}", f'{{"n": {other}, "mixed": {mixed}}}'.encode())
        scan = scan_bucket(cluster, options=QUICK, nested=nested)
        parts = scan.partitions(2, sample_rows=None)
        tables = [table_of(part, streamed) for part in parts]
        table = pa.concat_tables(each.replace_schema_metadata() for each in tables)
        assert sorted_rows(table) == sorted_rows(scan.to_arrow())


@pytest.mark.parametrize("on_conflict", ["widen", "json"])
@pytest.mark.parametrize(
    "values",
    [
        ("1", '"x"'),
        ("9007199254740993", "0.5"),
        ("18446744073709551616", "1e400", "2"),
        ("1", "true", '"1"', "1.50"),
        ('{"x": 1}', '{"x": "1"}'),
        ('{"x": [1.50]}', '{"x": ["t", true]}'),
        ("[1]", '["x"]', "[null]"),
        ('{"a": 1}', "5", '"x"'),
    ],
)
def test_who_looks_at_all_reads_what_the_scan_reads(values: tuple[str, ...], on_conflict: Any) -> None:
    """Kinds that meet in one part, in another or in none: text, and text that is JSON."""
    with LocalCluster(nodes=1, vbuckets=4, seed=1) as cluster:
        for n in range(60):
            # One vbucket has each kind, others have one.
            vbucket = vbucket_of(b"k%d" % n, 4)
            cluster.upsert(
                f"k{n}", b'{"f": %s}' % values[(n if vbucket == 3 else vbucket) % len(values)].encode()
            )
        scan = scan_bucket(cluster, options=QUICK, on_conflict=on_conflict)
        whole = scan.to_arrow()
        for count in (1, 2, 4):
            table = union(scan.partitions(count, sample_rows=None))
            assert table.schema.equals(whole.schema)
            assert sorted_rows(table) == sorted_rows(whole)


def test_a_part_with_less_gets_the_rest() -> None:
    """Types are widened, columns that no document of the part has are null."""
    with LocalCluster(nodes=1, vbuckets=8, seed=1) as cluster:
        filled(cluster, [{"a": n} for n in range(50)])
        cluster.upsert("wide", {"a": 0.5, "b": "x"})
        parts = parts_of(cluster, 8)
        fields = [("_cb_key", pa.string()), ("a", pa.float64()), ("b", pa.string())]
        assert parts[0].schema.remove_metadata() == pa.schema(fields)
        assert sorted_rows(union(parts)) == sorted_rows(scan_bucket(cluster, options=QUICK).to_arrow())


def test_a_given_schema_needs_no_sample() -> None:
    schema = pa.schema([("n", pa.int32()), ("absent", pa.string())])
    with odd(more=1) as cluster:
        parts = parts_of(cluster, 3, schema=schema)
        assert parts[0].schema.field("n").type == pa.int32()
        table = union(parts)
        assert table.schema.names == ["_cb_key", "n", "absent"]
        assert table.num_rows == LATER + 1


def test_some_declared() -> None:
    with odd(n=1.5) as cluster:
        parts = parts_of(cluster, 3, sample_rows=50, schema={"n": "double"})
        table = union(parts)
        assert table.schema.field("n").type == pa.float64()
        assert 1.5 in table["n"].to_pylist()


def test_chosen_columns() -> None:
    with odd(more=1) as cluster:
        table = union(parts_of(cluster, 3, sample_rows=50, columns=["geo.lat", "n"]))
        assert table.schema.names == ["_cb_key", "geo.lat", "n"]
        with pytest.warns(UserWarning, match="names 'more', which no document has"):
            parts = parts_of(cluster, 3, sample_rows=50, columns=["more"])
        with pytest.raises(ConversionError, match="'more'"):
            union(parts)


def test_values_that_are_no_documents() -> None:
    with odd() as cluster:
        cluster.upsert(keys_in(LAST, 64, 1)[0], b"\xff")
        with pytest.raises(ConversionError, match="'_cb_value'"):
            union(parts_of(cluster, 2, sample_rows=50))
        for sample in (50, 10_000):  # which has seen it, too
            table = union(parts_of(cluster, 2, sample_rows=sample, errors="drop"))
            assert table.num_rows == LATER + 1
            assert table.schema.names == scan_bucket(cluster, errors="drop").to_arrow().schema.names
        table = union(parts_of(cluster, 2))
        assert table["_cb_reason"].drop_null().to_pylist() == ["binary"]


def test_no_common_type_with_raise() -> None:
    with odd(n="text") as cluster, pytest.raises(ConversionError, match="no common type"):
        parts_of(cluster, 2, on_conflict="raise")
    with LocalCluster(nodes=1, vbuckets=2, seed=1) as cluster:
        for number in range(20):
            key = b"%d" % number
            cluster.upsert(key, {"n": "text" if vbucket_of(key, 2) else 5})
        parts = parts_of(cluster, 2, sample_rows=None, on_conflict="raise")
        with pytest.raises(ConversionError, match="'n' is int64 here and string in other partitions"):
            union(parts)
        assert sorted_rows(union(parts_of(cluster, 2, sample_rows=None))) == sorted_rows(
            scan_bucket(cluster, options=QUICK).to_arrow()
        )


def test_collections_that_come_later() -> None:
    with LocalCluster(nodes=1, vbuckets=8, seed=1) as cluster:
        filled(cluster, plain(20))
        parts = parts_of(cluster, 1)
        create(cluster, "s", "c")
        cluster.upsert("new", {"n": 1}, collection="s.c")
        with pytest.raises(ConversionError, match="no column for them"):
            parts[0].read()
        parts = parts_of(cluster, 8)
        assert union(parts).schema.equals(scan_bucket(cluster, options=QUICK).to_arrow().schema)
        (part,) = parts_of(cluster, 1, collections=["s.c"])
        assert part.read()["_cb_collection"].to_pylist() == ["c"]


def test_keys_that_are_no_text() -> None:
    with odd() as cluster:
        cluster.upsert(b"\xff\xfe", plain(1)[0])
        for sample in (1, 10_000):
            found = union(parts_of(cluster, 2, sample_rows=sample))["_cb_key"]
            assert found.type == pa.string()
            assert "\\xff\\xfe" in found.to_pylist()


@pytest.mark.parametrize(
    "arguments", [{"n_rows": 5}, {"infer_schema_length": 5}, {"parse_dates": True}, {"vbuckets": []}]
)
def test_what_cannot_be_divided(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="cannot be divided"):
        scan_bucket("couchbase://127.0.0.1/none", auth=("a", "b"), **arguments).partitions(2)


APART = [
    ("n", 1, "t", "integer", "text"),
    ("n", 0.5, "t", "double", "text"),
    ("n", 1 << 64, "t", "integer", "text"),
    ("d.x", {"x": True}, {"x": "no"}, "boolean", "text"),
    ("l[]", [1.5, 2.5], ["x"], "double", "text"),
    ("o", 5, {"a": 1}, "integer", "json"),
    ("o", "x", {"a": 1}, "string", "json"),
    ("o[].y", [{"y": 5}], [{"y": {"a": 1}}], "integer", "json"),
]


@pytest.mark.parametrize(("path", "one", "other", "kind", "action"), APART)
@pytest.mark.parametrize("streamed", [False, True])
def test_kinds_that_are_apart(
    path: str, one: Any, other: Any, kind: str, action: str, streamed: bool
) -> None:
    """What is of one kind in each part, and of another one in the next, is not widened without a word."""
    name = path.partition(".")[0].removesuffix("[]")
    with LocalCluster(nodes=1, vbuckets=2, seed=1) as cluster:
        kinds: Counter[int] = Counter()
        for n in range(40):
            vbucket = vbucket_of(b"k%d" % n, 2)
            kinds[vbucket] += 1
            cluster.upsert(
                f"k{n}", {name: other if vbucket else one, "same": n, "none": None if vbucket else "z"}
            )
        scan = scan_bucket(cluster, options=QUICK)
        whole = scan.read()
        found: Counter[str] = Counter()
        for part in scan.partitions(2, sample_rows=None):
            table = table_of(part, streamed)
            for each in told(table)["conflicts"]:
                assert (each["path"], each["action"]) == (path, action)
                found.update(each["types"])
        count = kinds[0] * (2 if path == "l[]" else 1)
        assert [(each.path, each.action) for each in whole.conflicts] == [(path, action)]
        assert whole.conflicts[0].types[kind] == count
        # What is text in a part in any case is not counted there.
        assert found == ({kind: count} if action == "text" else whole.conflicts[0].types)


def test_kinds_that_meet_in_a_part() -> None:
    """What a part has counted is not counted again."""
    with LocalCluster(nodes=1, vbuckets=2, seed=1) as cluster:
        for n in range(40):
            vbucket = vbucket_of(b"k%d" % n, 2)
            cluster.upsert(f"k{n}", {"n": {"a": 1} if vbucket else ("x" if n % 2 else n)})
        scan = scan_bucket(cluster, options=QUICK)
        reports = [each.result().report for each in scan.partitions(2, sample_rows=None)]
        (both,) = merged(report.conflicts for report in reports)
        (whole,) = scan.read().conflicts
        assert (both.path, both.action, both.types) == (whole.path, whole.action, whole.types)


# --- How vbuckets are divided: evenly, by whatever is known of them, and each share of one node.


NOTHING = Size(None, None)


def map_of(owners: list[int]) -> ClusterMap:
    nodes = [f"n{node}:11210" for node in range(max(owners) + 1)]
    config = {
        "name": "bucket",
        "uuid": "u",
        "rev": 1,
        "nodesExt": [{"services": {"kv": 11210}, "hostname": node.split(":")[0]} for node in nodes],
        "vBucketServerMap": {"serverList": nodes, "vBucketMap": [[owner] for owner in owners]},
    }
    return parse_bucket_config(config, origin=HostPort("n0"), network="auto", tls=False)


def look_of(owners: list[int], seqnos: list[int], sizes: list[Size] | None = None) -> BucketState:
    found = {} if sizes is None else dict(enumerate(sizes))
    return BucketState(
        map_of(owners), {vb: VBucketOffset.at(1, seqno) for vb, seqno in enumerate(seqnos)}, found
    )


def weighed(look: BucketState, weights: list[int], n: int) -> list[int]:
    return [sum(weights[vb] for vb in share.vbuckets) for share in shares(look, n)]


def test_by_bytes() -> None:
    """A few large vbuckets among many small ones."""
    sizes = [Size(10, 90_000 if vb < 4 else 1000) for vb in range(64)]
    look = look_of([0] * 64, [10] * 64, sizes)
    totals = weighed(look, [size.bytes or 0 for size in sizes], 4)
    assert max(totals) - min(totals) <= 1000


def test_by_documents() -> None:
    """Where one node does not tell of bytes, or has not written any yet."""
    for stored in ([None, 5], [0, 0]):
        sizes = [Size(900 if vb < 4 else 10, stored[vb % 2]) for vb in range(64)]
        totals = weighed(look_of([0] * 64, [10] * 64, sizes), [size.documents or 0 for size in sizes], 4)
        assert max(totals) - min(totals) <= 10


@pytest.mark.parametrize("sizes", [None, [NOTHING] * 64, [Size(5, 5)] * 63 + [NOTHING]])
def test_by_changes(sizes: list[Size] | None) -> None:
    seqnos = [900 if vb < 4 else 10 for vb in range(64)]
    totals = weighed(look_of([0] * 64, seqnos, sizes), seqnos, 4)
    assert max(totals) - min(totals) <= 10


def test_fewer_shares_than_nodes() -> None:
    """Whole nodes go together."""
    owners = [vb % 3 for vb in range(12)]
    look = look_of(owners, [1 + 10 * (owner == 1) for owner in owners])
    assert [share.vbuckets for share in shares(look, 2)] == [(1, 4, 7, 10), (0, 2, 3, 5, 6, 8, 9, 11)]


def test_one_large_node() -> None:
    """It gets as many shares as it is worth."""
    owners = [0] * 60 + [1] * 4
    found = shares(look_of(owners, [10] * 64), 8)
    assert [share.node for share in found].count("n1:11210") == 1
    assert {share.node for share in found[:2]} == {"n0:11210", "n1:11210"}, "by turns"


sized = st.integers(0, 10**12)


@given(st.lists(st.tuples(st.integers(0, 3), sized, sized), min_size=1, max_size=80), st.integers(1, 100))
def test_any_bucket(vbuckets: list[tuple[int, int, int]], n: int) -> None:
    owners = [owner for owner, _, _ in vbuckets]
    sizes = [Size(documents, stored) for _, documents, stored in vbuckets]
    look = look_of(owners, [documents for _, documents, _ in vbuckets], sizes)
    found = shares(look, n)
    assert found == shares(look, n)
    assert sorted(vb for share in found for vb in share.vbuckets) == [*range(len(vbuckets))]
    assert len(found) == min(n, len(vbuckets)) or len(found) == min(n, len(set(owners)))
    assert all(share.vbuckets == tuple(sorted(share.vbuckets)) for share in found)
    if n >= len(set(owners)):
        weights = [1 + size.bytes for size in sizes if size.bytes is not None]
        if not any(size.bytes for size in sizes):
            weights = [1 + size.documents for size in sizes if size.documents is not None]
        for node in {share.node for share in found}:
            mine = [share for share in found if share.node == node]
            assert {f"n{owners[vb]}:11210" for share in mine for vb in share.vbuckets} == {node}
            totals = [sum(weights[vb] for vb in share.vbuckets) for share in mine]
            most = max(weights[vb] for share in mine for vb in share.vbuckets)
            assert max(totals) - min(totals) <= most


# --- A folder of Parquet files, written by processes: whole or not at all.


def test_a_folder(tmp_path: Path) -> None:
    with LocalCluster(nodes=2, vbuckets=64, seed=1) as cluster:
        fill(cluster, 1000)
        scan = scan_bucket(cluster, options=QUICK)
        folder = scan.to_parquet(tmp_path / "bucket", workers=2)
        files = sorted(folder.iterdir())
        assert [file.name for file in files] == [f"part-{n:05d}.parquet" for n in range(8)]
        assert [each.name for each in tmp_path.iterdir()] == ["bucket"]
        schemas = [pq.read_schema(file) for file in files]
        assert all(schema.equals(schemas[0]) for schema in schemas)
        assert scan.last is not None
        last = scan.last
        whole = scan.to_arrow()
        assert last.as_of == scan.as_of
        assert last.table.schema.equals(whole.schema)
        assert sorted_rows(pq.read_table(folder)) == sorted_rows(whole)
        assert len(pd.read_parquet(folder)) == 1000
        with pytest.raises(ConfigurationError, match="there is something at"):
            scan.to_parquet(folder, workers=2)


def test_or_none(tmp_path: Path) -> None:
    """A document of which the sample knows nothing is found by a worker."""
    with LocalCluster(nodes=1, vbuckets=1024, seed=1) as cluster:
        fill(cluster, 20_000, size=1)
        cluster.upsert(keys_in(spread(range(1024))[-1], 1024, 1)[0], {"n": "text"})
        scan = scan_bucket(cluster, options=QUICK)
        with pytest.raises(ConversionError, match="'n' is int64 there and has to be string"):
            scan.to_parquet(tmp_path / "bucket", workers=1)
        assert [*tmp_path.iterdir()] == []
        assert scan.last is None
        with pytest.raises(ConfigurationError, match="workers=0"):
            scan.to_parquet(tmp_path / "bucket", workers=0)


def test_reports_are_merged(tmp_path: Path) -> None:
    with LocalCluster(nodes=1, vbuckets=8, seed=1) as cluster:
        for number in range(60):
            cluster.upsert(f"k{number}", {"n": "x" if number % 3 else 1})
            cluster.upsert(f"bad{number}", b"\xff")
        scan = scan_bucket(cluster, options=QUICK)
        scan.to_parquet(tmp_path / "bucket", workers=1)
        assert scan.last is not None
        merged = scan.last
        whole = scan.read()
        assert merged.rejected == whole.rejected == {"binary": 60}
        assert [each.types for each in merged.conflicts] == [each.types for each in whole.conflicts]


def _die(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _pid(_: int) -> int:
    return os.getpid()


def _fail(number: int) -> int:
    raise ConfigurationError(f"item {number}")


def test_processes() -> None:
    pids = in_processes(_pid, range(4), 2)
    assert len(pids) == 4
    assert os.getpid() not in pids
    with pytest.raises(CbframeError, match="a worker process ended") as caught:
        in_processes(_die, [1], 1)
    assert "__main__" in str(caught.value)
    with pytest.raises(ConfigurationError, match="item 7"):
        in_processes(_fail, [7, 8], 1)
