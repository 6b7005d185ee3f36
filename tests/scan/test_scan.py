"""Every document is what was written, in the version that counts, and so is its metadata."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import numpy as np
import pyarrow as pa
import pytest

from cbframe import BucketDataSource, BucketDataSourceOptions, LocalCluster, read_bucket, scan_bucket
from cbframe.errors import ConfigurationError, ConversionError
from cbframe.local.items import prefixed
from cbframe.scan.result import AsOf
from cbframe.scan.spec import METADATA_NAMES
from cbframe.testing import RecordingReceiver
from cbframe.wire.constants import MAX_VALUE_LENGTH, Datatype
from cbframe.wire.messages import vbucket_of

from .kit import QUICK, WIRE_METADATA, create, keys_of, read_rows, truth, values_of

U64, U32 = 2**64 - 1, 2**32 - 1
LETTERS = 'aZ0 é€𝄞🦉\x00\n"\\/'


def key_of_length(rng: random.Random, length: int) -> bytes:
    """A UTF-8 key of exactly that many bytes, of characters of 1 to 4 bytes."""
    key = b""
    while len(key) < length:
        letter = rng.choice(LETTERS).encode()
        if len(key) + len(letter) <= length:
            key += letter
    return key


def test_two_nodes_and_1024_vbuckets() -> None:
    rng = random.Random(7)
    pairs = {}
    for number in range(6000):
        key = key_of_length(rng, rng.randint(4, 250))
        pairs[key] = rng.randbytes(rng.choice((0, 1, 2, 17, 255, 256, 3000)))
        if number < 250:
            pairs[key_of_length(rng, number + 1)] = b"%d" % number
    pairs[b"largest"] = rng.randbytes(MAX_VALUE_LENGTH)
    pairs[b"large"] = rng.randbytes(MAX_VALUE_LENGTH // 2 + 1)
    pairs[b"buffer"] = bytes(2 * 1024 * 1024)
    with LocalCluster(nodes=2, vbuckets=1024, seed=1) as cluster:
        cluster.bulk_load(pairs.items(), datatype=0)
        found = read_rows(cluster)
        assert {key: row.value for key, row in found.items()} == pairs
        assert found == truth(cluster)
        assert len({row.vbucket for row in found.values()}) > 1000


@pytest.mark.parametrize("window", [0, 64 * 1024, 20_000_000])
def test_the_largest_values_pass_any_window(window: int) -> None:
    with LocalCluster(vbuckets=1) as cluster:
        for number in range(3):
            cluster.upsert(f"large {number}", bytes([number]) * MAX_VALUE_LENGTH)
        options = BucketDataSourceOptions(noop_interval_secs=20, receive_buffer_bytes=64 * 1024)
        found = read_rows(cluster, options=options, buffer_bytes=window)
        assert found == truth(cluster)


@pytest.mark.parametrize(
    ("nodes", "vbuckets"),
    [(2, 1), (3, 2), (2, 64), (2, 1023), (1, 64), (3, 64), (5, 64), (3, 128), (3, 1024)],
)
def test_any_number_of_nodes_and_vbuckets(nodes: int, vbuckets: int) -> None:
    """The count is what the map says: it depends on the server, its platform and its storage."""
    with LocalCluster(nodes=nodes, vbuckets=vbuckets, replicas=min(nodes - 1, 2), seed=1) as cluster:
        cluster.bulk_load((b"k%d" % n, b"v%d" % n) for n in range(2000))
        if nodes == 3:
            cluster.rebalance(eject=[2])
        found = read_rows(cluster)
        assert found == truth(cluster)
        assert len(found) == 2000
        assert len({row.vbucket for row in found.values()}) > vbuckets // 2


def test_an_empty_bucket(pair: LocalCluster) -> None:
    scan = scan_bucket(pair, timeout=20)
    table = scan.to_arrow()
    assert table.num_rows == 0
    assert table.column_names == ["_cb_key"]
    assert list(scan.iter_batches()) == []
    assert dict(scan.as_of or {}) == dict.fromkeys(range(16), (0, 0))
    frame = read_bucket(pair)
    assert len(frame) == 0
    assert frame.index.name == "_cb_key"
    assert len(scan_bucket(pair, parse=False, metadata=METADATA_NAMES).to_arrow()) == 0


def test_keys_that_are_not_utf8(cluster: LocalCluster) -> None:
    keys = [b"plain", b"\xff\xfe", b"\xed\xa0\x80", b"\xc0\x80", bytes(range(1, 251))]
    for key in keys:
        cluster.upsert(key, {"a": key.hex()})
    table = scan_bucket(cluster).to_arrow()
    assert table["_cb_key"].type == pa.string()
    assert dict(zip(keys_of(table), table["a"].to_pylist(), strict=True)) == {k: k.hex() for k in keys}
    frame = read_bucket(cluster)
    assert frame["a"]["plain"] == b"plain".hex()
    assert frame["a"]["\\xff\\xfe"] == "fffe"
    assert frame.index.is_unique


def test_keys_are_text_where_they_can_be(cluster: LocalCluster) -> None:
    keys = {"a", "ü", "€", "𝄞🦉", "nul\0nul", "new\nline", "🦉" * 62 + "ab"}
    for key in keys:
        cluster.upsert(key, {"a": 1})
    table = scan_bucket(cluster).to_arrow()
    assert table["_cb_key"].type == pa.string()
    assert set(table["_cb_key"].to_pylist()) == keys


def test_metadata_to_the_last_bit(cluster: LocalCluster) -> None:
    bucket = cluster._engine.bucket
    extremes = [
        (U64, U32, U32, 0xFF & ~0x06),
        (U64 - 1, 0, U32 - 1, 0),
        (2**63, 2**31, 2**31, 1),
        (2**63 - 1, 2**31 - 1, 2**31 - 1, 1),
        (2**53 + 1, 1, 1, 0),
        (1, 0x0200_0006, 0, 1),
        (0, 0, 0, 0),
    ]
    with bucket.lock:
        for number, (cas, flags, expiry, datatype) in enumerate(extremes):
            key = b"extreme %d" % number
            vbucket = bucket.vbucket_for(key)
            for _ in range(number + 1):
                vbucket.put(prefixed(0, key), b"{}", cas=cas, flags=flags, expiry=expiry, datatype=datatype)
    found = read_rows(cluster)
    assert found == truth(cluster)
    got = {(row.cas, row.flags, row.expiry, row.datatype) for row in found.values()}
    assert got == set(extremes)
    assert {row.rev_seqno for row in found.values()} == set(range(1, 8))
    kinds = scan_bucket(cluster, parse=False, metadata=WIRE_METADATA).to_arrow().schema
    assert {name: str(kinds.field(f"_cb_{name}").type) for name in WIRE_METADATA} == {
        "key": "string",
        "vbucket": "uint16",
        "seqno": "uint64",
        "cas": "uint64",
        "rev_seqno": "uint64",
        "expiry": "uint32",
        "flags": "uint32",
        "datatype": "uint8",
    }


def test_metadata_in_pandas_loses_nothing(cluster: LocalCluster) -> None:
    bucket = cluster._engine.bucket
    with bucket.lock:
        bucket.vbuckets[0].put(prefixed(0, b"k"), b"{}", cas=U64, flags=U32, expiry=U32, datatype=1)
    for backend in ("pyarrow", "numpy_nullable", None):
        frame = read_bucket(cluster, metadata=METADATA_NAMES, dtype_backend=backend)
        assert int(frame.loc["k", "_cb_cas"]) == U64
        assert int(frame.loc["k", "_cb_flags"]) == U32
        assert int(frame.loc["k", "_cb_expiry"]) == U32


def test_integers_with_nulls_are_no_other_numbers_in_pandas(cluster: LocalCluster) -> None:
    cluster.upsert("a", {"i": 2**53 + 1, "u": U64, "l": [2**53 + 1, None], "o": {"i": 2**53 + 1}, "few": 1})
    cluster.upsert("b", {})
    for backend in ("pyarrow", "numpy_nullable", None):
        frame = read_bucket(cluster, dtype_backend=backend)
        assert list(frame.columns) == ["i", "u", "l", "o", "few"]
        assert (frame["i"]["a"], frame["u"]["a"]) == (2**53 + 1, U64)
        assert list(frame["l"]["a"]) == [2**53 + 1, None]
        assert frame["o"]["a"] == {"i": 2**53 + 1}
        assert backend != "pyarrow" or str(frame["u"].dtype) == "uint64[pyarrow]"
        assert frame.loc["b"].isna().all()
    # Where every value is the same as a float, numpy's own way.
    assert frame["few"].dtype == "float64"


def test_declared_types_in_nullable_pandas(cluster: LocalCluster) -> None:
    cluster.upsert("a", {"i8": 1, "i16": 1, "i32": 1, "f32": 0.5})
    cluster.upsert("b", {})
    schema = {"i8": "int8", "i16": "int16", "i32": "int32", "f32": "float32"}
    frame = read_bucket(cluster, dtype_backend="numpy_nullable", schema=schema)
    assert [str(kind) for kind in frame.dtypes] == ["Int8", "Int16", "Int32", "Float32"]


def test_datatypes_as_the_server_tells_them(cluster: LocalCluster) -> None:
    cluster.upsert("json", b"[1]")
    cluster.upsert("binary", b"\x00\xff")
    cluster.upsert("lies", b"no json", datatype=1)
    cluster.upsert("attributes", {"a": 1}, xattrs={"_sync": {"rev": 1}, "user": 2})
    table = scan_bucket(cluster, parse=False, metadata="datatype").to_arrow()
    datatypes = dict(zip(keys_of(table), table["_cb_datatype"].to_pylist(), strict=True))
    assert datatypes == {b"json": 1, b"binary": 0, b"lies": 1, b"attributes": 1}
    assert values_of(table)[b"attributes"] == b'{"a":1}'


def test_many_rows_in_small_receive_buffers() -> None:
    """Frames cross the buffer's end at every place."""
    rng = random.Random(3)
    with LocalCluster(vbuckets=4) as cluster:
        cluster.bulk_load((b"%d" % n, rng.randbytes(rng.randint(0, 700))) for n in range(3000))
        options = BucketDataSourceOptions(
            noop_interval_secs=20, receive_buffer_bytes=64 * 1024, feed_buffer_size_bytes=30_000
        )
        assert read_rows(cluster, options=options) == truth(cluster)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_random_buckets(seed: int) -> None:
    rng = random.Random(seed)
    with LocalCluster(nodes=rng.randint(1, 4), vbuckets=rng.choice((1, 7, 64, 1024))) as cluster:
        keys = [key_of_length(rng, rng.randint(1, 250)) for _ in range(20_000)]
        sizes = np.random.default_rng(seed).pareto(1.0, len(keys)) * 50
        cluster.bulk_load(
            (key, rng.randbytes(min(int(size), MAX_VALUE_LENGTH)))
            for key, size in zip(keys, sizes, strict=True)
        )
        for key in rng.sample(keys, 3000):
            cluster.delete(key)
        for key in rng.sample(keys, 3000):
            cluster.upsert(key, rng.randbytes(rng.randint(0, 100)), flags=rng.randint(0, U32))
        assert read_rows(cluster) == truth(cluster)


@pytest.mark.parametrize("version", ["7.2", "8.0"])
@pytest.mark.parametrize("skip_deletions", [False, True])
def test_deletions_that_delete_nothing_are_not_sent(
    version: Literal["7.2", "8.0"], skip_deletions: bool
) -> None:
    """Where the server can leave them out of the first backfill; those that come later are."""
    with LocalCluster(vbuckets=4, version=version, skip_deletions=skip_deletions) as cluster:
        cluster.bulk_load((b"k%d" % n, b"{}") for n in range(300))
        for number in range(100):
            cluster.delete(f"k{number}")
        found = scan_bucket(cluster).read()
        assert len(found.table) == 200
        assert (found.stats.total.deletions > 0) == (not skip_deletions)
        assert read_rows(cluster) == truth(cluster)
        # What is in memory comes after the backfill, and may delete what that has brought.
        vbucket = vbucket_of(b"k150", 4)
        cluster.hold_in_memory(vbucket, cluster.delete("k150"))
        held = scan_bucket(cluster).read()
        assert len(held.table) == 199
        assert held.stats.total.deletions > 0


# --- Which documents are there, in which version, and what becomes of those that are no JSON objects.


@pytest.fixture
def named(pair: LocalCluster) -> LocalCluster:
    """The same key in three collections, and some more."""
    create(pair, "shop", "orders", "users")
    for name, count in (("_default._default", 2), ("shop.orders", 3), ("shop.users", 1)):
        for number in range(count):
            pair.upsert(f"k{number}", {"where": name}, collection=name)
    return pair


def test_deletions_and_expirations_do_not_appear(cluster: LocalCluster) -> None:
    for number in range(90):
        cluster.upsert(f"k{number}", {"n": number})
    for number in range(30):
        cluster.delete(f"k{number}")
        cluster.expire(f"k{number + 30}")
    cluster.upsert("k5", {"n": 500})
    frame = read_bucket(cluster)
    assert sorted(frame["n"]) == [*range(60, 90), 500]
    assert set(keys_of(scan_bucket(cluster, keys_only=True).to_arrow())) == {
        *(b"k%d" % n for n in range(60, 90)),
        b"k5",
    }


def test_a_bucket_of_deletions_only(cluster: LocalCluster) -> None:
    for number in range(40):
        cluster.upsert(f"k{number}", {"n": number})
        cluster.delete(f"k{number}")
    for arguments in ({}, {"parse": False}, {"keys_only": True}):
        assert len(read_bucket(cluster, **arguments)) == 0


def test_what_is_no_object_is_kept_and_counted(cluster: LocalCluster) -> None:
    values = {
        "object": b'{"a":1}',
        "binary": b"\x00\xff\x01",
        "text": b"only text",
        "number": b"17",
        "string": b'"s"',
        "array": b"[1,2]",
        "null": b"null",
        "empty": b"",
    }
    for key, value in values.items():
        cluster.upsert(key, value)
    broken = {"broken": b'{"a":', "latin": b'{"a":"\xe9"}', "deep": b'{"a":' * 300 + b"1" + b"}" * 300}
    for key, value in broken.items():
        cluster.upsert(key, value, datatype=1)
    frame = read_bucket(cluster)
    assert frame.attrs["cbframe"]["rejected"] == {
        "binary": 3,
        "not_utf8": 1,
        "too_deep": 1,
        "invalid_json": 1,
        "not_an_object": 4,
    }
    for key, value in {**values, **broken}.items():
        found = frame.loc[key, "_cb_value"]
        assert found == value if key != "object" else frame["_cb_value"].isna()[key]
    assert frame["a"].dropna().to_dict() == {"object": 1}


def test_a_deleted_binary_document_is_not_counted(cluster: LocalCluster) -> None:
    cluster.upsert("gone", b"\x00binary")
    cluster.delete("gone")
    cluster.upsert("stays", {"a": 1})
    frame = read_bucket(cluster)
    assert frame.attrs["cbframe"]["rejected"] == {}
    assert list(frame.columns) == ["a"]


def test_conflicting_types_become_text_and_are_told(cluster: LocalCluster) -> None:
    cluster.upsert("a", b'{"mixed":1.50,"sound":1,"inner":{"x":1}}')
    cluster.upsert("b", b'{"mixed":"1.50","sound":2,"inner":{"x":"s"}}')
    cluster.upsert("c", b'{"mixed":{"deep":[1, 2]},"sound":3}')
    scan = scan_bucket(cluster)
    frame = scan.to_pandas()
    assert frame["mixed"].to_dict() == {"a": "1.50", "b": '"1.50"', "c": '{"deep":[1, 2]}'}
    assert str(frame["sound"].dtype) == "int64[pyarrow]"
    assert frame.loc["b", "inner"] == {"x": "s"}
    assert frame.loc["a", "inner"] == {"x": "1"}
    told = {conflict["path"]: conflict for conflict in frame.attrs["cbframe"]["conflicts"]}
    assert set(told) == {"mixed", "inner.x"}
    assert told["mixed"]["action"] == "json"
    assert sum(told["mixed"]["types"].values()) == 3
    assert told["mixed"]["samples"] == {"double": ["a"], "string": ["b"], "object": ["c"]}
    assert told["inner.x"]["action"] == "text"
    assert [c.path for c in scan.conflicts] == [c["path"] for c in frame.attrs["cbframe"]["conflicts"]]
    assert "['a']" not in repr(scan.conflicts)
    assert "samples" not in repr(scan.conflicts)


def test_as_of_is_where_the_cluster_is(pair: LocalCluster) -> None:
    for number in range(100):
        pair.upsert(f"k{number % 60}", {"n": number})
    pair.delete("k3")
    scan = scan_bucket(pair)
    assert scan.as_of is None
    frame = scan.to_pandas()
    as_of = frame.attrs["cbframe"]["as_of"]
    assert isinstance(as_of, AsOf)
    high = pair.high_seqnos()
    assert {vb: seqno for vb, (_, seqno) in as_of.items()} == high
    assert all(uuid == pair.failover_log(vb)[0][0] for vb, (uuid, seqno) in as_of.items() if seqno)
    assert as_of.changes == sum(high.values()) == 101
    assert as_of == scan.as_of
    with pytest.raises(TypeError, match="cannot be changed"):
        as_of[0] = (1, 2)


# ---------------------------------------------------------------------- collections


def test_names_appear_where_there_are_named_collections(named: LocalCluster) -> None:
    table = scan_bucket(named).to_arrow()
    names = ("_cb_key", "_cb_scope", "_cb_collection", "where")
    found = set(zip(*(table[name].to_pylist() for name in names), strict=True))
    assert table.num_rows == len(found) == 6
    assert all(f"{scope}.{name}" == where for _, scope, name, where in found)
    assert sum(key == "k0" for key, *_ in found) == 3
    assert len(read_bucket(named).loc["k0"]) == 3


def test_no_names_for_the_default_collection_alone(cluster: LocalCluster) -> None:
    cluster.upsert("k", {"a": 1})
    assert scan_bucket(cluster).to_arrow().column_names == ["_cb_key", "a"]
    asked = scan_bucket(cluster, metadata=("collection", "scope")).to_arrow()
    assert asked["_cb_scope"].to_pylist() == asked["_cb_collection"].to_pylist() == ["_default"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"scope": "shop"}, {"shop.orders": 3, "shop.users": 1}),
        ({"scope": "_default"}, {"_default._default": 2}),
        ({"scope": "shop", "collections": "orders"}, {"shop.orders": 3}),
        ({"scope": "shop", "collections": ["orders", "users"]}, {"shop.orders": 3, "shop.users": 1}),
        ({"collections": "shop.users"}, {"shop.users": 1}),
        ({"collections": ["shop.users", "_default"]}, {"shop.users": 1, "_default._default": 2}),
        ({"collections": "_default"}, {"_default._default": 2}),
    ],
)
def test_filters(named: LocalCluster, arguments: dict[str, object], expected: dict[str, int]) -> None:
    frame = read_bucket(named, timeout=20, **arguments)
    assert frame["where"].value_counts().to_dict() == expected
    rest = scan_bucket(named.rest_urls, named.bucket, auth=("Administrator", "password"), **arguments)
    assert rest.to_pandas()["where"].value_counts().to_dict() == expected


def test_an_empty_collection(named: LocalCluster) -> None:
    named.create_collection("shop", "empty")
    assert len(read_bucket(named, collections="shop.empty", timeout=20)) == 0


@pytest.mark.parametrize(
    ("arguments", "missing", "listed"),
    [
        ({"collections": "shop.nothing"}, "shop.nothing", "shop.orders"),
        ({"collections": "orders"}, "_default.orders", "shop.orders"),
        ({"scope": "nowhere"}, "nowhere", "shop"),
        ({"scope": "nowhere", "collections": "orders"}, "nowhere.orders", "shop.orders"),
    ],
)
def test_unknown_names_list_what_there_is(
    named: LocalCluster, arguments: dict[str, str], missing: str, listed: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read_bucket(named, **arguments)
    assert missing in caught.value.message
    assert listed in str(caught.value.hint)


def test_dropped_collections_leave_no_trace(named: LocalCluster) -> None:
    named.create_collection("shop", "gone")
    for number in range(20):
        named.upsert(f"k{number}", b"\x00binary", collection="shop.gone")
        named.upsert(f"j{number}", {"where": 17}, collection="shop.gone")
    named.drop_collection("shop", "gone")
    frame = read_bucket(named)
    assert len(frame) == 6
    assert frame.attrs["cbframe"]["rejected"] == {}
    assert frame.attrs["cbframe"]["conflicts"] == []


# ---------------------------------------------------------------------- compression


@pytest.mark.parametrize("wish", [True, False, "force"])
@pytest.mark.parametrize("keys_only", [False, True])
def test_documents_that_the_server_has_compressed(
    came: dict[str, list[int]], wish: bool | Literal["force"], keys_only: bool
) -> None:
    """Mixed with others: what comes is the same, however it came."""
    codec = pa.Codec("snappy")
    texts = {f"k{n}": b'{"n":%d,"text":"%s"}' % (n, b"ab" * n) for n in range(100)}
    with LocalCluster(vbuckets=4, seed=1) as cluster:
        for n, (key, text) in enumerate(texts.items()):
            packed = n % 3 == 0
            value = bytes(codec.compress(text, asbytes=True)) if packed else text
            cluster.upsert(key, value, datatype=int(Datatype.JSON | Datatype.SNAPPY * packed))
        options = replace(QUICK, compression=wish)
        scan = scan_bucket(cluster, metadata="datatype", options=options, keys_only=keys_only, timeout=30)
        table = scan.to_arrow()
    packed = sum(bool(each & Datatype.SNAPPY) for each in came["datatype"])
    assert len(came["datatype"]) == 100
    if not keys_only:
        assert packed == {True: 34, False: 0}.get(wish, packed)
        assert packed > 34 or wish != "force"
        assert dict(zip(table["_cb_key"].to_pylist(), table["text"].to_pylist(), strict=True)) == {
            key: json.loads(text)["text"] for key, text in texts.items()
        }
        assert set(table["_cb_datatype"].to_pylist()) == {1}
    assert sorted(table["_cb_key"].to_pylist()) == sorted(texts)


# ---------------------------------------------------------------------- extended attributes


@pytest.mark.parametrize("compress", [False, True])
def test_extended_attributes(cluster: LocalCluster, compress: bool) -> None:
    """In a column of their own, and out of the way of the documents."""
    sync = {"rev": "1-a", "n": [1.50, None]}
    cluster.upsert("plain", {"n": 1})
    cluster.upsert("tagged", {"n": 2}, xattrs={"_sync": sync, "user": 17}, compress=compress)
    cluster.upsert("binary", b"\x00\xff", xattrs={"_sync": {}}, compress=compress)
    cluster.upsert("gone", {"n": 4}, xattrs={"_sync": sync})
    cluster.delete("gone")
    table = scan_bucket(cluster, metadata=("xattrs", "datatype"), timeout=20).to_arrow()
    rows = {row["_cb_key"]: row for row in table.to_pylist()}
    assert {key: row["n"] for key, row in rows.items()} == {"plain": 1, "tagged": 2, "binary": None}
    assert rows["plain"]["_cb_xattrs"] == []
    found = {name: json.loads(text) for name, text in rows["tagged"]["_cb_xattrs"]}
    assert found == {"_sync": sync, "user": 17}
    assert rows["binary"]["_cb_xattrs"] == [("_sync", "{}")]
    assert [rows[key]["_cb_datatype"] for key in ("plain", "tagged", "binary")] == [1, 5, 4]
    frame = read_bucket(cluster, metadata="xattrs", timeout=20)
    assert dict(frame.loc["tagged", "_cb_xattrs"]) == dict(rows["tagged"]["_cb_xattrs"])
    frame = read_bucket(cluster, metadata="xattrs", dtype_backend=None, timeout=20)
    assert frame.loc["tagged", "_cb_xattrs"] == dict(rows["tagged"]["_cb_xattrs"])


def test_extended_attributes_that_are_only_let_through(cluster: LocalCluster) -> None:
    cluster.upsert("tagged", {"n": 2}, xattrs={"_sync": {}})
    options = replace(QUICK, include_xattrs=True)
    assert scan_bucket(cluster, options=options, timeout=20).to_arrow().to_pylist() == [
        {"_cb_key": "tagged", "n": 2}
    ]
    raw = scan_bucket(cluster, options=options, parse=False, timeout=20).to_arrow()
    assert raw["_cb_value"].to_pylist() == [b'{"n":2}']


def test_keys_and_extended_attributes_only(cluster: LocalCluster) -> None:
    cluster.upsert("plain", {"n": 1})
    cluster.upsert("tagged", {"n": 2}, xattrs={"_sync": {"a": 1}})
    table = scan_bucket(cluster, keys_only=True, metadata="xattrs", timeout=20).to_arrow()
    assert sorted(table["_cb_xattrs"].to_pylist(), key=len) == [[], [("_sync", '{"a":1}')]]


@pytest.fixture(scope="module")
def deleted() -> Iterator[LocalCluster]:
    """A server whose disk backfills of keys alone have deleted documents, with metadata nobody wrote."""
    with LocalCluster(vbuckets=4, version="8.0", seed=1) as cluster:
        cluster.upsert("tagged", {"n": 1}, xattrs={"_sync": {"a": 1}}, compress=True)
        cluster.upsert("binary", b"\x00\x01")
        for number in range(20):
            cluster.upsert(f"k{number}", {"n": number}, flags=7)
        for number in range(0, 20, 3):
            cluster.delete(f"k{number}")
        yield cluster


@pytest.mark.parametrize("names", [WIRE_METADATA, (*WIRE_METADATA, "xattrs")], ids=["", "xattrs"])
def test_without_values_the_rows_are_the_same(deleted: LocalCluster, names: tuple[str, ...]) -> None:
    metadata = ("key", *names)
    whole = scan_bucket(deleted, parse=False, metadata=metadata, timeout=20).to_arrow().drop(["_cb_value"])
    keys = scan_bucket(deleted, keys_only=True, metadata=metadata, timeout=20)
    wanted = whole.sort_by("_cb_key")
    assert wanted.num_rows == 15
    # Raw bytes, JSON, and JSON with extended attributes, where these were asked for.
    assert set(wanted["_cb_datatype"].to_pylist()) == ({0, 1, 5} if "xattrs" in names else {0, 1})
    assert keys.to_arrow().sort_by("_cb_key").select(whole.column_names).equals(wanted)
    parts = scan_bucket(deleted, metadata=metadata, timeout=20).partitions(2)
    select = [name for name in whole.column_names if name != "_cb_key"]
    table = pa.concat_tables([part.select(select).read().replace_schema_metadata() for part in parts])
    assert table.sort_by("_cb_key").select(whole.column_names).equals(wanted)


def test_a_source_without_values_sees_deletions(deleted: LocalCluster) -> None:
    options = BucketDataSourceOptions(noop_interval_secs=20, seq_end="now", no_value=True)
    receiver = RecordingReceiver()
    auth = (deleted.username, deleted.password)
    with BucketDataSource(
        deleted.connection_string, "default", deleted.bucket, "", None, auth, receiver, options
    ) as source:
        source.wait(20)
    assert len(receiver.values()) == 15
    assert all(document.cas for found in receiver.documents.values() for document in found.values())


# ---------------------------------------------------------------------- what is no document, what is nested


@pytest.fixture
def odd(cluster: LocalCluster) -> LocalCluster:
    cluster.upsert("good", {"n": 1, "geo": {"lat": 1.5, "at": {"x": 1}}, "tags": [1]})
    cluster.upsert("also", b'{"n":2,"geo":{ "lat":2.50 }}')
    cluster.upsert("array", [1, 2])
    cluster.upsert("bytes", b"\x00\xff")
    cluster.upsert("more", b"\xff")
    return cluster


def test_the_reason_stands_beside_the_value(odd: LocalCluster) -> None:
    frame = read_bucket(odd, timeout=20)
    reasons = dict(zip(frame.index, frame["_cb_reason"], strict=True))
    assert {key: reason for key, reason in reasons.items() if isinstance(reason, str)} == {
        "array": "not_an_object",
        "bytes": "binary",
        "more": "binary",
    }


def test_what_is_no_document_may_be_left_out(odd: LocalCluster) -> None:
    frame = read_bucket(odd, errors="drop", metadata="vbucket", timeout=20)
    assert sorted(frame.index) == ["also", "good"]
    assert not {"_cb_value", "_cb_reason"} & set(frame.columns)
    assert frame.attrs["cbframe"]["rejected"] == {"binary": 2, "not_an_object": 1}


def test_what_is_no_document_may_be_an_error(odd: LocalCluster) -> None:
    with pytest.raises(ConversionError, match="3 of 5 values are no JSON objects") as caught:
        read_bucket(odd, errors="raise", timeout=20)
    assert "2 binary, 1 not_an_object" in str(caught.value)
    assert "errors=" in str(caught.value.hint)
    assert "array" not in str(caught.value)
    for key in ("array", "bytes", "more"):
        odd.delete(key)
    assert len(read_bucket(odd, errors="raise", timeout=20)) == 2


def test_fields_of_objects_as_columns(odd: LocalCluster) -> None:
    table = scan_bucket(odd, nested="flatten", errors="drop", timeout=20).to_arrow()
    rows = {row.pop("_cb_key"): row for row in table.to_pylist()}
    assert rows == {
        "good": {"n": 1, "geo.lat": 1.5, "geo.at.x": 1, "tags": [1]},
        "also": {"n": 2, "geo.lat": 2.5, "geo.at.x": None, "tags": None},
    }


def test_flattened_names_that_are_taken(cluster: LocalCluster) -> None:
    cluster.upsert("k", {"a": {"b": 1, "b.c": 2}, "a.b": 3, "e": {}, "a.b_": 4})
    (row,) = scan_bucket(cluster, nested="flatten", timeout=20).to_arrow().to_pylist()
    assert row == {"_cb_key": "k", "a.b__": 1, "a.b.c": 2, "a.b": 3, "e": "{}", "a.b_": 4}


def test_objects_and_arrays_as_they_were_written(odd: LocalCluster) -> None:
    table = scan_bucket(odd, nested="json", errors="drop", timeout=20).to_arrow()
    rows = {row.pop("_cb_key"): row for row in table.to_pylist()}
    assert rows["also"] == {"n": 2, "geo": '{ "lat":2.50 }', "tags": None}
    assert json.loads(rows["good"]["geo"]) == {"lat": 1.5, "at": {"x": 1}}
    assert scan_bucket(odd, nested="json", timeout=20).to_arrow().schema.field("tags").type == pa.string()
