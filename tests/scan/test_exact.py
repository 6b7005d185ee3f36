"""Every document is what was written, to the last byte, and so is its metadata."""

from __future__ import annotations

import random
from typing import Literal

import numpy as np
import pyarrow as pa
import pytest

from cbframe import BucketDataSourceOptions, LocalCluster, read_bucket, scan_bucket
from cbframe.local.items import prefixed
from cbframe.scan.spec import METADATA_NAMES
from cbframe.wire.constants import MAX_VALUE_LENGTH
from cbframe.wire.messages import vbucket_of

from .kit import WIRE_METADATA, keys_of, read_rows, truth, values_of

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


@pytest.mark.parametrize("vbuckets", [1, 2, 64, 1023])
def test_any_number_of_vbuckets(vbuckets: int) -> None:
    with LocalCluster(nodes=2, vbuckets=vbuckets) as cluster:
        cluster.bulk_load((b"k%d" % n, b"v%d" % n) for n in range(500))
        found = read_rows(cluster)
        assert len(found) == 500
        assert found == truth(cluster)


@pytest.mark.parametrize("nodes", [1, 3, 5])
def test_any_number_of_nodes(nodes: int) -> None:
    with LocalCluster(nodes=nodes, vbuckets=64, replicas=min(nodes - 1, 2)) as cluster:
        cluster.bulk_load((b"k%d" % n, b"v%d" % n) for n in range(500))
        found = read_rows(cluster)
        assert found == truth(cluster)
        assert len(found) == 500


def test_more_nodes_than_vbuckets() -> None:
    with LocalCluster(nodes=3, vbuckets=2) as cluster:
        cluster.bulk_load((b"k%d" % n, b"v%d" % n) for n in range(50))
        found = read_rows(cluster)
        assert found == truth(cluster)
        assert len(found) == 50


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


def test_vbuckets_without_data(pair: LocalCluster) -> None:
    pair.upsert("only", {"a": 1})
    assert read_rows(pair) == truth(pair)
    assert read_bucket(pair).loc["only", "a"] == 1


def test_keys_that_are_not_utf8(cluster: LocalCluster) -> None:
    keys = [b"plain", b"\xff\xfe", b"\xed\xa0\x80", b"\xc0\x80", bytes(range(1, 251))]
    for key in keys:
        cluster.upsert(key, {"a": key.hex()})
    table = scan_bucket(cluster).to_arrow()
    assert table["_cb_key"].type == pa.string()
    assert dict(zip(keys_of(table), table["a"].to_pylist(), strict=True)) == {k: k.hex() for k in keys}
    frame = read_bucket(cluster)
    assert frame.loc["plain", "a"] == b"plain".hex()
    assert frame.loc["\\xff\\xfe", "a"] == "fffe"
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
    for backend in ("numpy_nullable", None):
        frame = read_bucket(cluster, dtype_backend=backend)
        assert list(frame.columns) == ["i", "u", "l", "o", "few"]
        assert (frame["i"]["a"], frame["u"]["a"]) == (2**53 + 1, U64)
        assert list(frame["l"]["a"]) == [2**53 + 1, None]
        assert frame["o"]["a"] == {"i": 2**53 + 1}
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
