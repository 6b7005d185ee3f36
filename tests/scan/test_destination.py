"""`BucketScan.to_parquet()`: files and folders, here and elsewhere, whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from cbframe import CbframeError, ConfigurationError, LocalCluster, scan_bucket

NOWHERE = "couchbase://127.0.0.1:1/b"


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(1, vbuckets=8) as cluster:
        for n in range(20):
            cluster.upsert(f"k{n}", {"n": n})
        yield cluster


@pytest.fixture
def memory() -> Iterator[Any]:
    found = fsspec.filesystem("memory")
    yield found
    found.rm("/", recursive=True)


def numbers(table: Any) -> list[int]:
    return sorted(table["n"].to_pylist())


def unreachable(place: Any, **how: Any) -> None:
    scan_bucket(NOWHERE, auth=("u", "p"), timeout=0.5).to_parquet(place, **how)


@pytest.mark.parametrize("workers", [None, 2])
def test_what_is_there_is_refused_before_anything_is_read(tmp_path: Path, workers: int | None) -> None:
    taken = tmp_path / "years"
    taken.write_bytes(b"of work")
    with pytest.raises(ConfigurationError, match="there is something") as caught:
        unreachable(taken, workers=workers)
    assert "overwrite=True" in str(caught.value)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "mine").write_bytes(b"x")
    with pytest.raises(ConfigurationError, match=r"there is something|is a folder"):
        unreachable(folder, workers=workers)
    assert taken.read_bytes() == b"of work"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["folder", "mine", "years"]


def test_overwrite(cluster: LocalCluster, tmp_path: Path) -> None:
    path = tmp_path / "mine.parquet"
    path.write_bytes(b"old")
    with pytest.raises(ConfigurationError):
        scan_bucket(cluster).to_parquet(path)
    assert scan_bucket(cluster).to_parquet(path, overwrite=True) == path
    assert numbers(pq.read_table(path)) == list(range(20))
    assert [each.name for each in tmp_path.iterdir()] == ["mine.parquet"]


def test_a_read_that_fails_leaves_what_was_there(tmp_path: Path, memory: Any) -> None:
    path = tmp_path / "mine.parquet"
    path.write_bytes(b"old")
    memory.pipe("/b/mine.parquet", b"old")
    for place in (path, "memory://b/mine.parquet"):
        with pytest.raises(CbframeError):
            unreachable(place, overwrite=True)
    assert path.read_bytes() == memory.cat("/b/mine.parquet") == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["mine.parquet"]
    assert memory.find("/") == ["/b/mine.parquet"]


def test_a_file_that_comes_during_the_read_is_not_replaced(cluster: LocalCluster, tmp_path: Path) -> None:
    path = tmp_path / "mine.parquet"
    with pytest.raises(ConfigurationError, match="came during the read"):
        scan_bucket(cluster, progress=lambda _: path.write_bytes(b"theirs")).to_parquet(path)
    assert path.read_bytes() == b"theirs"


@pytest.mark.parametrize("how", ["uri", "storage_options", "filesystem"])
def test_an_object_store(cluster: LocalCluster, memory: Any, how: str) -> None:
    uri, more = "memory://bucket/x.parquet", {}
    if how == "storage_options":
        more = {"storage_options": {}}
    if how == "filesystem":
        uri, more = "/bucket/x.parquet", {"filesystem": pafs.PyFileSystem(pafs.FSSpecHandler(memory))}
    scan = scan_bucket(cluster)
    assert str(scan.to_parquet(uri, **more)) == uri
    with memory.open("/bucket/x.parquet") as file:
        assert numbers(pq.read_table(file)) == list(range(20))
    assert memory.find("/") == ["/bucket/x.parquet"]
    assert scan.last is not None
    assert scan.last.documents == 20
    with pytest.raises(ConfigurationError, match="there is something"):
        scan.to_parquet(uri, **more)
    scan.to_parquet(uri, overwrite=True, **more)
    assert memory.find("/") == ["/bucket/x.parquet"]


def test_a_uri_of_a_file(cluster: LocalCluster, tmp_path: Path) -> None:
    path = tmp_path / "a b.parquet"
    assert scan_bucket(cluster).to_parquet(path.as_uri()) == path.as_uri()
    assert numbers(pq.read_table(path)) == list(range(20))


@pytest.mark.parametrize(
    ("path", "how"),
    [
        ("", {}),
        (None, {}),
        (5, {}),
        ("nothing://x/y", {}),
        ("x", {"overwrite": "yes"}),
        ("x", {"filesystem": "s3"}),
        ("x", {"filesystem": pafs.LocalFileSystem(), "storage_options": {}}),
        ("x", {"compression": "rar"}),
        ("x", {"workers": "2"}),
        ("x", {"workers": 0}),
    ],
)
def test_invalid_places(
    path: Any, how: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError):
        unreachable(path, **how)
    assert not list(tmp_path.iterdir())


def test_a_folder_of_workers(cluster: LocalCluster, tmp_path: Path, memory: Any) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    cluster.upsert("_txn:record", {"n": 20})
    scan = scan_bucket(cluster)
    scan.to_parquet(folder, workers=1)
    assert scan.last is not None
    assert (scan.last.documents, scan.last.transaction_records) == (20, 1)
    assert scan.last.moment is not None
    assert numbers(pq.read_table(folder)) == list(range(20))
    (folder / "stale.parquet").write_bytes(b"old")
    scan_bucket(cluster).to_parquet(folder, workers=1, overwrite=True)
    assert numbers(pq.read_table(folder)) == list(range(20))
    assert [each.name for each in tmp_path.iterdir()] == ["parts"]
    scan_bucket(cluster).to_parquet("memory://bucket/parts", workers=1)
    remote = pafs.PyFileSystem(pafs.FSSpecHandler(memory))
    assert numbers(pq.read_table("/bucket/parts", filesystem=remote)) == list(range(20))
    with pytest.raises(ConfigurationError, match="there is something"):
        scan_bucket(cluster).to_parquet("memory://bucket/parts", workers=1)


# --- a folder for each collection


@pytest.fixture
def shop() -> Iterator[LocalCluster]:
    """Three collections with documents, whose fields of one name have three types; and one without any."""
    with LocalCluster(nodes=2, vbuckets=8, seed=1) as cluster:
        cluster.create_scope("shop")
        for name in ("orders", "people", "nobody", "gone"):
            cluster.create_collection("shop", name)
        for n in range(40):
            cluster.upsert(f"key-{n}", {"id": n / 2})
            cluster.upsert(f"key-{n}", {"id": n, "lines": [{"sku": str(n)}]}, collection="shop.orders")
            cluster.upsert(f"key-{n}", {"id": f"p{n}", "at": "2026-01-01"}, collection="shop.people")
            cluster.upsert(f"key-{n}", {"other": n}, collection="shop.gone")
        for n in range(10):
            cluster.delete(f"key-{n}", collection="shop.orders")
            cluster.upsert(f"key-{n}", {"id": f"new {n}"}, collection="shop.people")
        cluster.upsert("old", {}, collection="shop.people", expiry=1_700_000_000)
        cluster.drop_collection("shop", "gone")
        yield cluster


def tables_in(folder: Path) -> dict[str, pa.Table]:
    return {path.parent.name: pq.read_table(path) for path in folder.glob("*/part-00000.parquet")}


@pytest.mark.parametrize("how", [{}, {"parse": False}, {"batch_bytes": 300, "spill_bytes": 0}])
def test_a_folder_for_each_collection(shop: LocalCluster, tmp_path: Path, how: dict[str, Any]) -> None:
    scan = scan_bucket(shop, metadata=("key", "seqno", "collection"), **how)
    path = scan.to_parquet(tmp_path / "all", table_per="collection")
    found = tables_in(Path(path))
    assert sorted(found) == ["_default._default", "shop.orders", "shop.people"]
    for name, table in found.items():
        alone = scan_bucket(shop, collections=[name], metadata=("key", "seqno", "collection"), **how)
        wanted = alone.to_arrow().replace_schema_metadata(None)
        assert table.replace_schema_metadata(None).schema == wanted.schema
        assert table.sort_by("_cb_key").to_pylist() == wanted.sort_by("_cb_key").to_pylist()
    last = scan.last
    assert last is not None
    assert (last.documents, last.expired, len(last.as_of)) == (110, 1, 8)
    # One position for all.
    assert dict(last.as_of) == dict(scan_bucket(shop).read().as_of)


def test_a_field_of_one_collection(shop: LocalCluster, tmp_path: Path) -> None:
    scan = scan_bucket(shop, columns=["id", "lines"], parse_dates=["at"])
    with pytest.raises(ConfigurationError, match="parse_dates= names 'at', which no document has"):
        scan.to_parquet(tmp_path / "all", table_per="collection")
    scan = scan_bucket(shop, columns=["id", "at"], filters=[("id", "!=", 3)], parse_dates=["at"])
    scan.to_parquet(tmp_path / "all", table_per="collection")
    found = tables_in(tmp_path / "all")
    assert str(found["shop.people"].schema.field("at").type) == "timestamp[us]"
    assert found["shop.people"]["at"].null_count == 10
    with pytest.raises(ConfigurationError, match="columns= names 'nothing', which no document has"):
        scan_bucket(shop, columns=["nothing"]).to_parquet(tmp_path / "other", table_per="collection")
    assert [path.name for path in tmp_path.iterdir()] == ["all"]


def test_folders_of_collections_take_the_place_of_others(
    shop: LocalCluster, tmp_path: Path, memory: Any
) -> None:
    for place, more in ((tmp_path / "all", {}), ("memory://bucket/all", {"storage_options": {}})):
        scan_bucket(shop).to_parquet(place, table_per="collection", **more)
        with pytest.raises(ConfigurationError, match="there is something"):
            scan_bucket(shop).to_parquet(place, table_per="collection", **more)
        scan_bucket(shop, collections=["shop.orders"]).to_parquet(
            place, table_per="collection", overwrite=True, **more
        )
    assert sorted(tables_in(tmp_path / "all")) == ["shop.orders"]
    assert memory.find("/bucket/all") == ["/bucket/all/shop.orders/part-00000.parquet"]


def test_what_does_not_go_with_folders_of_collections(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="table_per='scope'"):
        unreachable(tmp_path / "all", table_per="scope")
    with pytest.raises(ConfigurationError, match="exclude each other"):
        unreachable(tmp_path / "all", table_per="collection", workers=2)
    with pytest.raises(ConfigurationError, match="n_rows= is for one table"):
        scan_bucket(NOWHERE, auth=("u", "p"), n_rows=5).to_parquet(tmp_path / "all", table_per="collection")
