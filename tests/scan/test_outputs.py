"""All ways out of a scan agree, and each does what it says."""

from __future__ import annotations

import copy
import json
import pickle
import sys
import time
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cbframe import BucketScan, LocalCluster, ScanProgress, Snapshot, read_bucket, scan_bucket, write_snapshot
from cbframe.errors import ConfigurationError, ConversionError, DependencyError, ReadTimeoutError
from cbframe.scan.parquet import whole_file

from .kit import WIRE_METADATA, fill, keys_of, truth


@pytest.fixture
def filled(pair: LocalCluster) -> LocalCluster:
    for n in range(200):
        document: dict[str, Any] = {"n": n, "half": n / 2, "even": n % 2 == 0, "name": f"näme {n}"}
        document["nested"] = {"list": [n, n + 1], "text": "x"}
        pair.upsert(f"k{n:03d}", document | ({"sometimes": n} if n % 3 == 0 else {}))
    return pair


def by_key(table: pa.Table) -> pa.Table:
    return table.replace_schema_metadata(None).sort_by("_cb_key").combine_chunks()


def test_all_ways_out_agree(filled: LocalCluster, tmp_path: Path) -> None:
    scan = scan_bucket(filled)
    table = by_key(scan.to_arrow())
    assert table.num_rows == 200
    assert by_key(scan.to_reader().read_all()) == table
    batches = list(scan.iter_batches())
    assert all(batch.num_rows for batch in batches)
    assert by_key(pa.Table.from_batches(batches)) == table
    assert by_key(pa.table(scan)) == table
    assert by_key(pa.RecordBatchReader.from_stream(scan).read_all()) == table
    assert by_key(pq.read_table(scan.to_parquet(tmp_path / "a.parquet"))) == table
    frame = scan.to_pandas().sort_index()
    assert list(frame.index) == table["_cb_key"].to_pylist()
    assert by_key(pa.Table.from_pandas(frame.reset_index(), preserve_index=False)).to_pylist() == (
        table.to_pylist()
    )
    pd.testing.assert_frame_equal(read_bucket(filled).sort_index(), frame)


def test_a_scan_reads_anew_each_time(cluster: LocalCluster) -> None:
    scan = scan_bucket(cluster)
    assert scan.last is None
    assert repr(scan) == "<BucketScan of 'default'>"
    assert scan.stats is None
    cluster.upsert("a", {"x": 1})
    assert scan.to_arrow().num_rows == 1
    first = scan.as_of
    cluster.upsert("b", {"y": 2})
    table = scan.to_arrow()
    told = json.loads(table.schema.metadata[b"cbframe"])
    assert (table.num_rows, told["bucket"]) == (2, "default")
    assert told["as_of"] == {str(vb): list(at) for vb, at in scan.as_of.items()}
    assert (first.changes, scan.as_of.changes) == (1, 2)
    assert "2 changes" in repr(scan)
    assert scan.stats.total.mutations == 2


def test_polars_and_duckdb_read_a_scan(filled: LocalCluster) -> None:
    scan = scan_bucket(filled)
    frame = pl.DataFrame(scan)
    assert frame.shape == (200, 7)
    assert frame["n"].sum() == sum(range(200))
    assert frame.filter(pl.col("_cb_key") == "k007")["nested"].to_list() == [{"list": [7, 8], "text": "x"}]
    found = duckdb.sql("select count(*), sum(n), count(sometimes) from scan where half >= 50").fetchall()
    assert found == [(100, sum(range(100, 200)), 33)]


def test_a_query_of_duckdb_reads_the_bucket_once(pair: LocalCluster) -> None:
    for number in range(64):
        pair.upsert(f"k{number}", {"n": number, "mixed": number if number % 8 else "text"})
    scan = scan_bucket(pair, progress=None)
    started = reads_of(scan)
    assert duckdb.sql("select sum(n), count(mixed) from scan").fetchall() == [(2016, 64)]
    assert len(started) == 1
    assert duckdb.sql("from scan where n = 7").fetchall()[0][1:] == (7, "7")
    assert len(started) == 2, "the next query reads again"


def test_scans_and_snapshots_can_be_pickled(pair: LocalCluster, tmp_path: Path) -> None:
    """Also while a read waits for a consumer that has asked for its schema."""
    pair.upsert("a", {"n": 1})
    write_snapshot(pair, tmp_path)
    for source in (scan_bucket(pair), Snapshot(tmp_path)):
        source.__arrow_c_schema__()
        again = pickle.loads(pickle.dumps(source))
        assert again.to_arrow().num_rows == 1


@pytest.mark.skipif(duckdb.__version__.startswith("1."), reason="DuckDB 1 takes a scan once in a query")
def test_a_query_of_duckdb_reads_the_bucket_once_for_each_reference(pair: LocalCluster) -> None:
    pair.upsert("k", {"n": 1})
    scan = scan_bucket(pair, progress=None)
    started = reads_of(scan)
    assert duckdb.sql("select count(*) from scan a join scan b using (n)").fetchall() == [(1,)]
    assert len(started) <= 2


def reads_of(scan: BucketScan) -> list[int]:
    """Grows with every read of a scan."""
    started: list[int] = []
    to_reader = scan.to_reader

    def counted() -> pa.RecordBatchReader:
        started.append(len(started))
        return to_reader()

    scan.to_reader = counted  # type: ignore[method-assign]
    return started


def test_a_type_that_changes_during_a_query_is_an_error(pair: LocalCluster) -> None:
    pair.upsert("a", {"n": 1})
    scan = scan_bucket(pair, progress=None)
    assert pa.schema(scan).field("n").type == pa.int64()
    first = pa.RecordBatchReader.from_stream(scan)
    assert first.read_all()["n"].to_pylist() == [1]
    pair.upsert("b", {"n": "one"})
    with pytest.raises(ConversionError, match="'n' was int64 and is string"):
        pa.table(scan)
    assert len(pa.table(scan)) == 2


def test_partitions_have_a_schema_without_a_read(filled: LocalCluster) -> None:
    part = scan_bucket(filled, progress=None).partitions(2)[0]
    before = filled.dcp_connections()
    assert pa.schema(part) == part.schema
    assert filled.dcp_connections() == before
    assert duckdb.sql("select count(*) from part").fetchall() == [(part.read().num_rows,)]


# ---------------------------------------------------------------------- parquet


@pytest.mark.parametrize("compression", ["zstd", "snappy", "none"])
def test_parquet_comes_back_equal(filled: LocalCluster, tmp_path: Path, compression: str) -> None:
    path = scan_bucket(filled).to_parquet(str(tmp_path / "docs.parquet"), compression=compression)
    assert path == tmp_path / "docs.parquet"
    found = pd.read_parquet(path, dtype_backend="pyarrow").set_index("_cb_key").sort_index()
    expected = read_bucket(filled).sort_index()
    pd.testing.assert_frame_equal(found, expected)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("workers", [None, 2])
def test_parquet_of_an_unknown_compression(filled: LocalCluster, tmp_path: Path, workers: int | None) -> None:
    """It is refused before the bucket is read."""
    scan = scan_bucket(filled)
    with pytest.raises(ConfigurationError, match="compression='zip'"):
        scan.to_parquet(tmp_path / "docs.parquet", compression="zip", workers=workers)
    assert scan.last is None
    assert not [*tmp_path.iterdir()]


def test_parquet_at_home(filled: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert scan_bucket(filled).to_parquet("~/docs.parquet") == tmp_path / "docs.parquet"
    assert (tmp_path / "docs.parquet").exists()


KINDS: dict[str, list[bytes]] = {
    "null": [b"null"],
    "bool": [b"true", b"null"],
    "int64": [b"-1"],
    "uint64": [b"18446744073709551615"],
    "decimal": [b"18446744073709551617", b"-1"],
    "digits": [b"1" * 60],
    "double": [b"1.5", b"1"],
    "text": [b'"x"', b"1"],
    "struct": [b'{"a":[{"b":1.5}]}', b"null"],
    "list": [b"[18446744073709551617,null]", b"[]"],
    "empty lists": [b"[]"],
    "lists of null": [b"[null,null]", b"null"],
    "empty objects": [b"{}", b"null"],
    "empty objects inside": [b'[{"y":{}},null,{"y":null}]', b"null", b"[]"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_type_can_be_read_by_everyone(kind: str, tmp_path: Path) -> None:
    with LocalCluster(vbuckets=2) as cluster:
        for at, cell in enumerate(KINDS[kind]):
            cluster.upsert(f"k{at}", b'{"x":' + cell + b"}")
        scan = scan_bucket(cluster)
        expected = by_key(scan.to_arrow())
        path = scan.to_parquet(tmp_path / "a.parquet")
        assert len(pl.DataFrame(scan)) == len(pl.read_parquet(path)) == len(expected)
        if kind in ("decimal", "digits", "uint64"):
            wanted = [str(cell) for cell in expected["x"].to_pylist()]
            assert [str(cell) for cell in pl.read_parquet(path).sort("_cb_key")["x"]] == wanted
            for source in ("scan", f"read_parquet('{path}')"):
                found = duckdb.sql(f"select x from {source} order by _cb_key").fetchall()
                assert [str(cell) for (cell,) in found] == wanted
        for backend in ("pyarrow", "numpy_nullable", None):
            assert len(read_bucket(cluster, dtype_backend=backend)) == len(expected)
        written = by_key(pq.read_table(path))["x"].to_pylist()
        if kind == "empty objects":
            assert written == ["{}", None]
        elif kind == "empty objects inside":
            assert written == [[{"y": "{}"}, None, {"y": None}], None, []]
        else:
            assert written == expected["x"].to_pylist()
        assert len(pd.read_parquet(path)) == len(expected)
        assert len(duckdb.sql(f"select * from read_parquet('{path}')").fetchall()) == len(expected)


def test_parquet_is_there_whole_or_not_at_all(
    filled: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "docs.parquet"

    def half(*_: object, **__: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", half)
    for before in (None, b"of years"):
        if before is not None:
            target.write_bytes(before)
        with pytest.raises(OSError, match="no space"):
            scan_bucket(filled).to_parquet(target, overwrite=before is not None)
        assert [path.read_bytes() for path in tmp_path.iterdir()] == ([] if before is None else [before])


def test_two_writers_of_one_file_do_not_share_what_is_not_complete(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    with whole_file(path) as first:
        first.write(b"first")
        with whole_file(path) as second:
            second.write(b"2")
        assert path.read_bytes() == b"2"
    assert path.read_bytes() == b"first"
    assert [each.name for each in tmp_path.iterdir()] == ["x.parquet"]


def test_a_failed_read_writes_no_file(filled: LocalCluster, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError):
        scan_bucket(filled, columns=["nothing"]).to_parquet(tmp_path / "docs.parquet")
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------- pandas


def test_attrs_survive(filled: LocalCluster, tmp_path: Path) -> None:
    """They are copied by reference, and pickled by value."""
    filled.upsert("other", {"n": "text"})
    frame = read_bucket(filled)
    told = frame.attrs["cbframe"]
    read = {"bucket", "as_of", "conflicts", "rejected", "documents", "bytes", "seconds"}
    assert set(told) == read | {"expired", "transaction_records", "moment"}
    assert told["conflicts"]
    for other in (
        *(frame[frame["half"] > 5], frame.head(), frame.assign(a=1), frame.sort_index(), frame["n"]),
        *(frame[["n"]], copy.deepcopy(frame), frame.copy(deep=True)),
    ):
        assert other.attrs["cbframe"] is told
    pickled = pickle.loads(pickle.dumps(frame)).attrs["cbframe"]
    assert pickled == told
    assert pickled is not told
    assert json.loads(json.dumps(told))["bucket"] == "default"
    # Without nested columns: pandas cannot read its own files of those.
    frame.drop(columns="nested").to_parquet(tmp_path / "a.parquet")
    found = pd.read_parquet(tmp_path / "a.parquet").attrs["cbframe"]
    assert found["rejected"] == {}
    assert len(found["as_of"]) == 16


@pytest.mark.parametrize(
    ("backend", "kinds"),
    [
        ("pyarrow", ["int64[pyarrow]", "double[pyarrow]", "bool[pyarrow]", "int64[pyarrow]"]),
        ("numpy_nullable", ["Int64", "Float64", "boolean", "Int64"]),
        (None, ["int64", "float64", "bool", "float64"]),
    ],
)
def test_dtype_backends(filled: LocalCluster, backend: str | None, kinds: list[str]) -> None:
    frame = read_bucket(filled, dtype_backend=backend).sort_index()
    assert [str(frame[name].dtype) for name in ("n", "half", "even", "sometimes")] == kinds
    assert frame["sometimes"].dropna().astype(int).tolist() == list(range(0, 200, 3))
    assert frame["name"].tolist() == [f"näme {n}" for n in range(200)]


# ---------------------------------------------------------------------- what is read


def test_keys_only(filled: LocalCluster) -> None:
    scan = scan_bucket(filled, keys_only=True, metadata=("key", "seqno"))
    table = scan.to_arrow()
    assert table.column_names == ["_cb_key", "_cb_seqno"]
    assert set(keys_of(table)) == set(truth(filled))
    whole = scan_bucket(filled)
    whole.to_arrow()
    assert scan.stats.total.bytes_received < whole.stats.total.bytes_received - 200 * 50


@pytest.fixture
def places(cluster: LocalCluster) -> LocalCluster:
    cluster.upsert("a", {"type": "hotel", "geo": {"lat": 1.5, "lon": 2}, "x.y": 1, "odd": 1})
    cluster.upsert("b", {"type": "hotel", "geo": None, "odd": "x"})
    cluster.upsert("c", {"type": "route", "stops": 3, "geo": "nowhere", "odd": [1]})
    cluster.upsert("d", b"no document")
    return cluster


def test_columns_by_their_path(places: LocalCluster) -> None:
    table = scan_bucket(places, columns=["geo.lat", "type", ("x.y",)]).to_arrow().sort_by("_cb_key")
    assert table.to_pydict() == {
        "_cb_key": ["a", "b", "c", "d"],
        "geo.lat": [1.5, None, None, None],
        "type": ["hotel", "hotel", "route", None],
        "x.y": [1, None, None, None],
    }
    # What is not wanted has no part in anything.
    scan = scan_bucket(places, columns=["type"])
    scan.to_arrow()
    assert scan.conflicts == ()


def test_fields_that_are_called_as_ours_are(cluster: LocalCluster) -> None:
    cluster.upsert("k", {"_cb_key": 1, "_cb_cas": {"b": 2}})
    told = {"_cb_key": ["k"], "_cb_key_": [1]}
    assert scan_bucket(cluster, columns=["_cb_key"]).to_arrow().to_pydict() == told
    told["_cb_cas.b_"] = [2]
    table = scan_bucket(cluster, columns=["_cb_key", "_cb_cas.b"]).to_arrow()
    assert table.to_pydict() == scan_bucket(cluster, nested="flatten").to_arrow().to_pydict() == told
    frame = read_bucket(cluster, metadata=("key", "cas"))
    assert (frame.index.tolist(), frame.loc["k", "_cb_key_"]) == (["k"], 1)
    assert frame.loc["k", "_cb_cas_"] == {"b": 2}
    assert frame.loc["k", "_cb_cas"] > 2**60
    split = scan_bucket(cluster, columns=["_cb_key"]).split("_cb_key")
    assert split["1"].table["_cb_key_"].to_pylist() == [1]


def test_what_is_in_text_is_not_said_to_be_nowhere(places: LocalCluster) -> None:
    for read in (
        scan_bucket(places, columns=["geo", "geo.lat"]).to_arrow,
        lambda: scan_bucket(places, columns=["geo", "geo.lat"]).split("none"),
    ):
        with pytest.raises(ConfigurationError, match=r"'geo\.lat', and 'geo' is text"):
            read()


def test_filters_before_types(places: LocalCluster) -> None:
    table = scan_bucket(places, filters=[("type", "==", "hotel")], columns=["geo", "odd"]).to_arrow()
    assert table.sort_by("_cb_key").to_pydict() == {
        "_cb_key": ["a", "b"],
        "geo": [{"lat": 1.5, "lon": 2}, None],
        "odd": ["1", "x"],
    }
    route = scan_bucket(places, filters=[[("stops", ">", 2)], [("stops", "<", 0)]]).to_arrow()
    assert route.to_pylist() == [{"_cb_key": "c", "type": "route", "stops": 3, "geo": "nowhere", "odd": [1]}]
    raw = scan_bucket(places, filters=[("stops", "==", 3)], parse=False).to_arrow()
    assert [json.loads(value) for value in raw["_cb_value"].to_pylist()] == [
        {"type": "route", "stops": 3, "geo": "nowhere", "odd": [1]}
    ]
    assert scan_bucket(places, filters=[("stops", "==", 4)]).to_arrow().num_rows == 0


@pytest.mark.parametrize("name", WIRE_METADATA)
def test_each_metadata_by_its_name(filled: LocalCluster, name: str) -> None:
    names = scan_bucket(filled, metadata=name, parse=False).to_arrow().column_names
    assert names == list(dict.fromkeys(["_cb_key", f"_cb_{name}", "_cb_value"]))


def test_some_vbuckets(filled: LocalCluster) -> None:
    wanted = [3, 3, 0, 15]
    table = scan_bucket(filled, vbuckets=wanted, metadata="vbucket").to_arrow()
    expected = {key for key, row in truth(filled).items() if row.vbucket in wanted}
    assert set(keys_of(table)) == expected
    assert set(table["_cb_vbucket"].to_pylist()) == set(wanted)
    scan = scan_bucket(filled, vbuckets=(n for n in wanted))
    assert scan.to_arrow().num_rows == scan.to_arrow().num_rows == len(expected)
    assert set(scan.as_of or {}) == set(wanted)
    assert scan_bucket(filled, vbuckets=np.array(wanted)).to_arrow().num_rows == len(expected)
    assert scan_bucket(filled, vbuckets=[]).to_arrow().num_rows == 0


@pytest.mark.parametrize("vbuckets", [[16], [-1], [3, 1024]])
def test_vbuckets_that_do_not_exist(filled: LocalCluster, vbuckets: list[int]) -> None:
    with pytest.raises(ConfigurationError, match="does not exist"):
        read_bucket(filled, vbuckets=vbuckets)


# ---------------------------------------------------------------------- time


def test_timeout_of_a_stalled_cluster(filled: LocalCluster) -> None:
    began = time.monotonic()
    with filled.stall(0), pytest.raises(ReadTimeoutError):
        read_bucket(filled, timeout=0.3)
    assert 0.3 <= time.monotonic() - began < 3


def test_timeout_in_the_middle(cluster: LocalCluster) -> None:
    """The cluster stalls while it streams: the error counts what is complete."""
    fill(cluster, 3000)
    stalled = []

    def stall(progress: ScanProgress) -> None:
        if not stalled:
            node = cluster._engine.nodes[0]
            stalled.append(node)
            node.loop.call(lambda: node.loop.set_stalled(True))

    scan = scan_bucket(cluster, timeout=1, progress=stall, buffer_bytes=100)
    try:
        began = time.monotonic()
        with pytest.raises(ReadTimeoutError, match=r"not complete after 1 s: \d+ of 16 vbuckets") as caught:
            scan.to_arrow()
        assert 1 <= time.monotonic() - began < 4
        assert caught.value.hint
        assert scan.last is None
    finally:
        stalled[0].loop.call(lambda: stalled[0].loop.set_stalled(False))


@pytest.mark.parametrize("batch_bytes", [1, 1000, 10**9])
def test_the_size_of_batches_changes_nothing(filled: LocalCluster, batch_bytes: int) -> None:
    expected = by_key(scan_bucket(filled).to_arrow())
    assert by_key(scan_bucket(filled, batch_bytes=batch_bytes, buffer_bytes=3000).to_arrow()) == expected


def test_many_scans_at_once(filled: LocalCluster) -> None:
    scans: list[BucketScan] = [scan_bucket(filled) for _ in range(3)]
    readers = [scan.to_reader() for scan in scans]
    tables = [by_key(reader.read_all()) for reader in readers]
    assert tables[0] == tables[1] == tables[2]


def test_as_what_is_asked_for(filled: LocalCluster) -> None:
    arrow = read_bucket(filled, return_type="arrow")
    assert isinstance(arrow, pa.Table)
    polars = read_bucket(filled, return_type="polars")
    assert isinstance(polars, pl.DataFrame)
    assert sorted(polars["_cb_key"]) == sorted(arrow["_cb_key"].to_pylist())
    assert read_bucket(filled, return_type="pandas").index.name == "_cb_key"
    with pytest.raises(ConfigurationError, match="return_type") as caught:
        read_bucket(filled, return_type="spark")  # type: ignore[call-overload]
    assert "polars" in str(caught.value.hint)


def test_without_polars(filled: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(DependencyError, match="polars is not installed") as caught:
        scan_bucket(filled).to_polars()
    assert caught.value.hint == "pip install 'cbframe[polars]'"
