"""Snapshots in an object store that speaks S3: moto's server on this machine, by s3fs and by pyarrow."""

from __future__ import annotations

from typing import Any

import pyarrow.fs as pafs
import pytest
from object_store import BUCKET, KEY, REGION, SECRET
from scan.kit import QUICK, fill, truth

from cbframe import LocalCluster, Snapshot, SnapshotError, write_snapshot
from cbframe.scan.store import RemoteStore, Store, open_store, writing

pytestmark = [pytest.mark.s3, pytest.mark.filterwarnings("default")]
pytest.importorskip("s3fs")


@pytest.fixture(scope="module", autouse=True)
def nothing_left() -> None:
    """Instead of the one that looks for threads: s3fs keeps its own."""


@pytest.fixture(params=["s3fs", "pyarrow"])
def place(request: pytest.FixtureRequest, endpoint: str, outside: Any) -> tuple[str, dict[str, Any]]:
    """A path, and how it is reached."""
    if request.param == "s3fs":
        options = {
            "key": KEY,
            "secret": SECRET,
            "endpoint_url": f"http://{endpoint}",
            "client_kwargs": {"region_name": REGION},
        }
        return f"s3://{BUCKET}/travel", {"storage_options": options}
    filesystem = pafs.S3FileSystem(
        access_key=KEY, secret_key=SECRET, endpoint_override=endpoint, scheme="http", region=REGION
    )
    return f"{BUCKET}/travel", {"filesystem": filesystem}


@pytest.fixture
def store(place: tuple[str, dict[str, Any]]) -> Store:
    path, how = place
    return open_store(path, **how)


def test_a_snapshot_from_first_to_last(cluster: LocalCluster, place: tuple[str, dict[str, Any]]) -> None:
    path, how = place
    fill(cluster, 300)
    arguments: dict[str, Any] = {"options": QUICK, "parse": False, **how}
    write_snapshot(cluster, path, **arguments)
    for version in range(2, 5):
        cluster.delete(f"key-{version:06}")
        cluster.upsert(f"key-{version + 10:06}", {"version": version})
        if version == 3:
            cluster.fail_over(2, lose=3)
        assert write_snapshot(cluster, path, **arguments).version == version
    snapshot = Snapshot(path, **how)
    assert snapshot.verify().ok
    expected = {(key.decode(), row.seqno) for key, row in truth(cluster).items()}

    def rows() -> list[tuple[str, int]]:
        found = Snapshot(path, **how).to_arrow(metadata=("key", "seqno"))
        return list(zip(*(found[name].to_pylist() for name in ("_cb_key", "_cb_seqno")), strict=True))

    assert len(rows()) == len(expected)
    assert {*rows()} == expected
    snapshot.compact(keep="0s")
    assert snapshot.vacuum()
    assert Snapshot(path, **how).verify().ok
    assert {*rows()} == expected


def test_what_another_machine_wrote(store: Store, outside: Any) -> None:
    """A list of files that is kept in memory would show neither."""
    store.publish("manifest/1", b"one")
    assert store.names("manifest") == {"1": 3}
    outside.put_object(Bucket=BUCKET, Key="travel/manifest/2", Body=b"more")
    assert store.names("manifest") == {"1": 3, "2": 4}
    outside.put_object(Bucket=BUCKET, Key="travel/manifest/3", Body=b"most")
    assert store.read("manifest/3") == b"most"
    outside.put_object(Bucket=BUCKET, Key="travel/lock.json", Body=b"long before")
    assert store.read("lock.json") == b"long before"
    outside.put_object(Bucket=BUCKET, Key="travel/lock.json", Body=b"short")
    assert store.read("lock.json") == b"short"
    with store.input("manifest/2") as source:
        assert source.read() == b"more"
    outside.delete_object(Bucket=BUCKET, Key="travel/manifest/1")
    assert store.names("manifest") == {"2": 4, "3": 4}
    with pytest.raises(FileNotFoundError):
        store.read("manifest/1")


@pytest.mark.parametrize("place", ["s3fs"], indirect=True)  # pyarrow has no conditional put
def test_of_two_writers_one_is_told(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both saw no such version: the object store decides."""
    assert isinstance(store, RemoteStore)
    store.publish("manifest/1", b"another's")
    absent = pafs.FileInfo("manifest/1", pafs.FileType.NotFound)
    blind = type("Blind", (), {"get_file_info": lambda *_: absent, "create_dir": lambda *_, **__: None})
    monkeypatch.setattr(store, "_filesystem", blind())
    with pytest.raises(FileExistsError):
        store.publish("manifest/1", b"mine")
    monkeypatch.undo()
    assert store.read("manifest/1") == b"another's"


def test_one_writer_at_a_time(store: Store) -> None:
    with writing(store), pytest.raises(SnapshotError, match="being written by"), writing(store):
        pass
    with writing(store):
        pass


def test_messages_name_the_place_and_no_secret(place: tuple[str, dict[str, Any]], store: Store) -> None:
    path, how = place
    with pytest.raises(SnapshotError) as caught:
        Snapshot(path, **how).to_arrow()
    assert f"{BUCKET}/travel" in str(caught.value)
    assert store.where("data/1") == f"s3://{BUCKET}/travel/data/1"
    assert SECRET not in f"{caught.value} {store!r}"
