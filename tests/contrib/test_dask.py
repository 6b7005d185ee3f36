"""A bucket as a Dask DataFrame, read by two worker processes."""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pyarrow as pa
import pytest
import trustme
from scan.kit import QUICK, Sent, fill

import cbframe
from cbframe import AccessError, EnvironmentAuth, LocalCluster
from cbframe.contrib.dask import as_of, read_bucket, report
from cbframe.local import ServerTLS

pytestmark = [
    pytest.mark.dask,
    pytest.mark.timeout(300),
    # Of sockets and processes that Dask ends in its own time.
    pytest.mark.filterwarnings("default"),
]
dask = pytest.importorskip("dask")
dd = pytest.importorskip("dask.dataframe")
distributed = pytest.importorskip("distributed")
FromMapProjectable = pytest.importorskip("dask.dataframe.dask_expr.io").FromMapProjectable

USER, SECRET = "reader", "a-word-that-is-secret"
ENVIRONMENT = {"CB_USER": USER, "CB_PASSWORD": SECRET}


def cluster_of(nodes: int = 1, vbuckets: int = 64, version: Literal["7.2", "8.0"] = "7.2") -> LocalCluster:
    return LocalCluster(
        nodes=nodes, vbuckets=vbuckets, seed=1, username=USER, password=SECRET, version=version
    )


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        with (
            distributed.LocalCluster(
                n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, host="127.0.0.1"
            ) as workers,
            distributed.Client(workers) as found,
        ):
            yield found


def lazily(cluster: LocalCluster, **arguments: Any) -> Any:
    arguments.setdefault("npartitions", 6)
    return read_bucket(cluster, auth=EnvironmentAuth(), timeout=60, options=QUICK, **arguments)


def same(frame: pd.DataFrame, whole: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(frame.sort_index(), whole.sort_index(), check_index_type=False)


def test_a_user_of_some_collections(client: Any) -> None:
    with cluster_of() as cluster:
        cluster.create_collection("_default", "a")
        for n in range(20):
            cluster.upsert(f"inside-{n}", {"n": n}, collection="_default.a")
            cluster.upsert(f"outside-{n}", {"n": n})
        cluster.add_user(USER, SECRET, collections=["a"])
        with pytest.raises(AccessError, match=r"collections=.visible"):
            lazily(cluster)
        assert sorted(lazily(cluster, collections="visible").compute().index) == sorted(
            f"inside-{n}" for n in range(20)
        )


@pytest.mark.parametrize(("nodes", "vbuckets"), [(1, 64), (2, 64), (3, 64), (1, 1024), (3, 1024)])
def test_the_union_is_the_read(client: Any, nodes: int, vbuckets: int) -> None:
    with cluster_of(nodes, vbuckets) as cluster:
        fill(cluster, 3000)
        frame = lazily(cluster)
        assert frame.npartitions == 6
        assert not frame.known_divisions
        whole = cbframe.read_bucket(cluster)
        assert as_of(frame) == whole.attrs["cbframe"]["as_of"]
        assert frame.dtypes.equals(whole.dtypes)
        assert frame.index.name == "_cb_key"
        same(frame.compute(), whole)
        workers = frame.map_partitions(lambda part: pd.Series([os.getpid()]), meta=(None, "int64")).compute()
        assert os.getpid() not in set(workers)


def test_only_columns_that_are_used_are_read(client: Any) -> None:
    with cluster_of(2) as cluster:
        fill(cluster, 1000)
        frame = lazily(cluster)
        assert frame["n"].sum().compute() == sum(range(1000))
        assert len(frame) == 1000
        assert frame[frame["n"] < 10]["text"].compute().size == 10
        loader = next(frame["n"].optimize(fuse=False).find_operations(FromMapProjectable))
        assert loader.operand("columns") == ["n"]
        nothing = frame[[]].compute()
        assert nothing.shape == (1000, 0)
        assert sorted(nothing.index) == sorted(frame.index.compute())


def test_deleted_documents_are_not_counted(client: Any) -> None:
    """A partition of no columns is read without values, where later servers have deleted documents."""
    with cluster_of(version="8.0") as cluster:
        fill(cluster, 20)
        cluster.upsert("gone", {"n": 1})
        frame = lazily(cluster, npartitions=2)
        cluster.delete("gone")
        assert len(frame) == 20


@pytest.mark.parametrize("backend", ["pyarrow", "numpy_nullable", None])
def test_values_stay_what_they_are(client: Any, backend: str | None) -> None:
    """Dask would make text of Python objects."""
    with cluster_of() as cluster:
        cluster.upsert("a", {"tags": ["x"], "geo": {"lat": 1.5}})
        cluster.upsert("b", b"\xff")
        frame = lazily(cluster, npartitions=1, dtype_backend=backend)
        whole = cbframe.read_bucket(cluster, dtype_backend=backend)
        assert frame.dtypes.equals(whole.dtypes)
        found = frame.compute()
        same(found, whole)
        assert found["geo"]["a"] == {"lat": 1.5}
        assert found["_cb_value"]["b"] == b"\xff"


@pytest.mark.parametrize(
    ("name", "value"),
    [("npartitions", "4"), ("npartitions", 0), ("sample_rows", "all"), ("include_credentials", "yes")],
)
def test_invalid_arguments(name: str, value: Any) -> None:
    with pytest.raises(cbframe.ConfigurationError):
        read_bucket("couchbase://127.0.0.1:1/b", auth=EnvironmentAuth(), **{name: value})


BACKENDS = ["pyarrow", "numpy_nullable", None]


def with_gaps(cluster: LocalCluster) -> None:
    """Fields of every kind; each is missing in one document, so that partitions without gaps differ."""
    for number in range(200):
        fields = {
            "large": 2**60 + number,
            "small": number % 7,
            "flag": number % 3 == 0,
            "share": number / 8,
            "text": f"text {number % 5}",
            "tags": [number],
        }
        fields.pop([*fields][number % 6] if number < 6 else "", None)
        cluster.upsert(f"k{number}", {"id": number, **fields})


@pytest.fixture(scope="module")
def gaps() -> Iterator[LocalCluster]:
    with cluster_of() as cluster:
        with_gaps(cluster)
        yield cluster


DICTIONARY = {"text": pa.dictionary(pa.int32(), pa.string())}


@pytest.mark.parametrize(
    ("backend", "schema"), [*((backend, None) for backend in BACKENDS), (None, DICTIONARY)]
)
def test_dtypes_of_all_partitions_are_those_of_the_frame(
    client: Any, gaps: LocalCluster, backend: str | None, schema: Any
) -> None:
    frame = lazily(gaps, npartitions=16, dtype_backend=backend, schema=schema)
    for part in dask.compute(*frame.to_delayed()):
        pd.testing.assert_series_equal(part.dtypes, frame.dtypes)
        assert part.index.dtype == frame.index.dtype


def exact(frame: pd.DataFrame) -> list[tuple[Any, ...]]:
    """Rows as Python has them: what is missing is None."""
    rows = frame.astype(object).where(frame.notna(), None)
    return sorted((tuple(row) for row in rows.itertuples()), key=repr)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_dask_does_with_partitions_is_what_pandas_does(
    client: Any, gaps: LocalCluster, backend: str | None, tmp_path: Any
) -> None:
    columns = ["id", "large", "small", "flag", "share", "text"]
    frame = lazily(gaps, npartitions=16, dtype_backend=backend, columns=columns)
    whole = pd.concat(part.to_pandas() for part in partitions_of(gaps, backend, columns))
    assert exact(frame.set_index("id").compute()) == exact(whole.set_index("id"))
    assert exact(frame.shuffle("small").compute()) == exact(whole)
    assert exact(frame.repartition(npartitions=3).compute()) == exact(whole)
    other = whole[["id", "large"]].rename(columns={"large": "same"})
    merged = frame.merge(dd.from_pandas(other, npartitions=2), on="id")
    assert exact(merged.compute().set_index("id")) == exact(whole.merge(other, on="id").set_index("id"))
    grouped = frame.groupby("text")[["large", "small"]].max().compute()
    assert exact(grouped) == exact(whole.groupby("text")[["large", "small"]].max())
    frame.to_parquet(tmp_path)
    again = pd.read_parquet(tmp_path, dtype_backend="numpy_nullable")
    assert exact(again) == exact(whole)


def partitions_of(cluster: LocalCluster, backend: str | None, columns: list[str]) -> list[Any]:
    scan = cbframe.scan_bucket(cluster, dtype_backend=backend, columns=columns, options=QUICK, progress=None)
    return scan.partitions(3)


def test_workers_write_parquet(client: Any, tmp_path: Any) -> None:
    with cluster_of(2) as cluster:
        fill(cluster, 500)
        lazily(cluster).to_parquet(tmp_path)
        again = pd.read_parquet(tmp_path, dtype_backend="pyarrow")
        assert sorted(again["n"]) == list(range(500))


def test_a_worker_is_killed(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of a partition: it is read again by another, and the rows are the same."""
    with cluster_of(2) as cluster:
        fill(cluster, 20_000, size=300)
        frame = lazily(cluster, npartitions=4)
        whole = cbframe.read_bucket(cluster)
        victim = next(iter(client.run(os.getpid).values()))
        sent = Sent(monkeypatch, cluster)
        sent.at(500_000, lambda: os.kill(victim, signal.SIGKILL))
        found = frame.compute()
        assert not sent.pending
        same(found, whole)
        assert sent.total > 0
        assert victim not in client.run(os.getpid).values()


def test_a_plain_password_is_refused(client: Any) -> None:
    with cluster_of() as cluster:
        fill(cluster, 10)
        with pytest.raises(cbframe.ConfigurationError, match="with a password in it"):
            read_bucket(cluster)
        assert len(read_bucket(cluster, include_credentials=True)) == 10
        assert SECRET.encode() not in pickle.dumps(lazily(cluster).dask)


def test_the_authority_as_text(client: Any, tmp_path: Path) -> None:
    """The workers need no file: it is gone when they read."""
    authority, certificate = trustme.CA(), tmp_path / "server.pem"
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(certificate)
    tls = ServerTLS(certificate)
    with LocalCluster(1, 16, seed=1, username=USER, password=SECRET, tls=tls) as cluster:
        certificate.unlink()
        fill(cluster, 200)
        text = authority.cert_pem.bytes().decode()
        frame = read_bucket(cluster.tls_connection_string, auth=EnvironmentAuth(), tls=text, npartitions=4)
        assert len(frame.compute()) == 200


def mixed(cluster: LocalCluster) -> None:
    """Documents that do not fit what a sample of the first of them says, and some that are none."""
    fill(cluster, 600)
    for n in range(0, 600, 10):
        cluster.upsert(f"key-{n:06d}", {"n": n, "text": "t", "later": n})
    for n in range(20):
        cluster.upsert(f"bad-{n}", b"\xff")


@pytest.mark.parametrize("where", ["processes", "threads"])
@pytest.mark.parametrize("persisted", [False, True])
def test_one_report(client: Any, where: str, persisted: bool) -> None:
    """Of what did not fit in any of the partitions."""
    with cluster_of(2) as cluster, dask.config.set({} if where == "processes" else {"scheduler": "threads"}):
        mixed(cluster)
        for n in range(1, 600, 20):
            cluster.upsert(f"key-{n:06d}", {"n": {"a": 1}, "text": "t"})
        schema = {"n": pa.int64()}
        frame = lazily(cluster, on_conflict="null", schema=schema)
        whole = cbframe.scan_bucket(cluster, on_conflict="null", schema=schema).read()
        if persisted:
            frame = frame.persist()
        told = report(frame)
        assert told.bucket == "default"
        assert told.as_of == whole.as_of == as_of(frame)
        assert told.rejected == whole.rejected == {"binary": 20}
        assert told.documents == len(frame) == len(whole.table)
        assert told.bytes > 10_000
        assert told.seconds > 0
        assert {(each.path, each.action) for each in told.conflicts} == {
            (each.path, each.action) for each in whole.conflicts
        }
        assert [each.types for each in told.conflicts] == [each.types for each in whole.conflicts]
        assert told.conflicts[0].types == {"integer": 570, "object": 30}
        assert len(told.conflicts[0].samples["object"]) == 3


def test_a_persisted_frame_is_read_once(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with cluster_of(2) as cluster:
        mixed(cluster)
        frame = lazily(cluster).persist()
        first = report(frame)
        for n in range(5):
            cluster.upsert(f"new-{n}", {"n": n})
        assert report(frame) == first
        assert first.documents == 620


def test_a_frame_without_reports(client: Any) -> None:
    with cluster_of() as cluster:
        fill(cluster, 50)
        frame = lazily(cluster)
        assert report(frame[["n"]]).documents == 50
        with pytest.raises(cbframe.ConfigurationError, match="without a report of their read"):
            report(dd.from_pandas(pd.DataFrame({"a": [1]}), npartitions=1))


def test_an_error_arrives(client: Any) -> None:
    with cluster_of() as cluster:
        fill(cluster, 10)
        frame = lazily(cluster, consistency="strict", npartitions=1)
        cluster.upsert("key-000003", {"n": 1})
        with pytest.raises(cbframe.StreamError, match="were written to since the partitions were made"):
            frame.compute()


def test_types_are_arrows(client: Any) -> None:
    with cluster_of() as cluster:
        cluster.upsert("a", {"big": 2**60 + 1, "tags": ["x"], "geo": {"lat": 1.5}})
        row = lazily(cluster).compute().loc["a"]
        assert row["big"] == 2**60 + 1
        kinds = lazily(cluster).dtypes
        assert kinds["geo"].pyarrow_dtype == pa.struct([("lat", pa.float64())])


def test_what_is_left_out(client: Any) -> None:
    """By one moment for all partitions; the report counts it."""
    with cluster_of() as cluster:
        cluster.upsert("a", {"n": 1})
        cluster.upsert("gone", {"n": 2}, expiry=1_700_000_000)
        cluster.upsert("_txn:client-record", {"records": {}})
        frame = lazily(cluster)
        assert frame.compute()["n"].to_dict() == {"a": 1}
        told = report(frame)
        assert (told.documents, told.expired, told.transaction_records) == (1, 1, 1)
        assert told.moment is not None
        assert told.moment.clock == "node"
        kept = lazily(cluster, expired="keep", transaction_records="keep", columns=["n"])
        assert set(kept.compute().index) == {"a", "gone", "_txn:client-record"}
