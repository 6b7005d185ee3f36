"""What earlier versions wrote loads, and updates: snapshots, a checkpoint, a Spark offset, a Delta table.

``files/`` was written by cbframe 0.1.0 (commit 982fc37) of one bucket on a LocalCluster with two nodes:

- ``rolled_back``: a snapshot of three versions; before the third, vbuckets 1 and 2 failed over and lost
  three changes each. Its second version has a key that is not UTF-8.
- ``widened``: a snapshot of the scope ``inventory``, in whose second version ``price`` became text.
- ``checkpoint.json``, ``spark_offset.json``: positions of a stream when ``rolled_back`` had two versions.
- ``delta``: a Delta table of two versions, before and after the failover.
- ``bucket.json``: the bucket afterwards, as failover logs and DCP messages.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable

import cbframe
from cbframe import Checkpoint, EnvironmentAuth, LocalCluster
from cbframe.arrow.columns import key_bytes
from cbframe.contrib.delta import update_delta
from cbframe.scan.microbatch import Offset, micro_batch_reader
from cbframe.snapshot.manifest import Manifest

from .restored import FILES, documents_of, restored_cluster

HOTELS = 8
ALL = {0, HOTELS}
COLLECTIONS = {"_default": 0, "hotel": HOTELS}
Documents = dict[tuple[int, bytes], dict[str, Any]]


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    with restored_cluster() as found:
        yield found


def copied(name: str, folder: Path) -> Path:
    return Path(shutil.copytree(FILES / name, folder / name))


def change(cluster: LocalCluster) -> None:
    """A new document, a new version, a deletion and a field of another type."""
    cluster.upsert("airline_30", {"id": 30, "name": "Thirty"})
    cluster.upsert("airline_4", {"id": 4, "name": "Four"})
    cluster.delete("airline_10")
    cluster.upsert("hotel_3", {"id": 3, "price": 2**53 + 1}, collection="inventory.hotel")
    cluster.delete("hotel_5", collection="inventory.hotel")
    cluster.upsert("hotel_30", {"id": 30, "price": 7}, collection="inventory.hotel")


def comparable(documents: Documents, *names: str) -> Documents:
    return {place: {name: fields.get(name) for name in names} for place, fields in documents.items()}


def bytes_of(key: str | bytes) -> bytes:
    found: bytes = key_bytes(pa.array([key]))[0].as_py()
    return found


def documents_in(table: pa.Table) -> Documents:
    found: Documents = {}
    for row in table.to_pylist():
        place = COLLECTIONS[row.get("_cb_collection") or "_default"], bytes_of(row["_cb_key"])
        assert place not in found, "no document comes twice"
        found[place] = {"seqno": row.get("_cb_seqno"), **row}
    return found


def snapshot_documents(path: Path, **arguments: Any) -> Documents:
    metadata = "key", "vbucket", "seqno", "scope", "collection"
    arguments = {"expired": "keep", **arguments}
    return documents_in(cbframe.read_snapshot(path, metadata=metadata, return_type="arrow", **arguments))


def replayed(documents: Documents, rows: list[dict[str, Any]]) -> Documents:
    """Documents after changes, of which each vbucket's come in order."""
    documents = dict(documents)
    for row in rows:
        place = COLLECTIONS[row["_cb_collection"]], bytes_of(row["_cb_key"])
        if row["_change_type"] == "upsert":
            documents[place] = {"seqno": row["_cb_seqno"], **row}
        else:
            documents.pop(place, None)
    return documents


# --- positions


@pytest.mark.parametrize("name", ["rolled_back", "widened"])
def test_positions_of_manifests_are_written_as_they_were(name: str) -> None:
    for path in sorted((FILES / name / "manifest").iterdir()):
        data = path.read_bytes()
        again = Manifest.from_bytes(data, path.name).to_bytes()
        assert json.dumps(json.loads(again)["vbuckets"]) == json.dumps(json.loads(data)["vbuckets"])


def test_a_checkpoint_is_written_as_it_was() -> None:
    written = json.loads(Checkpoint.load(FILES / "checkpoint.json").to_json())
    assert written.pop("collection_names") == {}, "0.1.0 had none"
    assert json.dumps(written) == (FILES / "checkpoint.json").read_text()


def test_an_offset_of_spark_is_written_as_it_was() -> None:
    text = (FILES / "spark_offset.json").read_text()
    assert json.dumps(Offset.from_dict(json.loads(text)).to_dict()) + "\n" == text


# --- snapshots


def test_a_snapshot_with_a_rollback_reads_as_the_bucket_was(cluster: LocalCluster) -> None:
    names = "seqno", "id", "name", "fleet", "active", "tags"
    want = comparable(documents_of(cluster, collections=ALL), *names)
    assert comparable(snapshot_documents(FILES / "rolled_back"), *names) == want


@pytest.mark.parametrize(("version", "rows"), [(1, 20), (2, 20), (3, 22)])
def test_each_version_of_a_snapshot_can_be_read(version: int, rows: int) -> None:
    documents = snapshot_documents(FILES / "rolled_back", as_of=version)
    assert len(documents) == rows
    # The files have a record of a transaction, and a document that had expired.
    assert not any(key.startswith(b"_txn:") for _, key in documents)
    left = snapshot_documents(FILES / "rolled_back", as_of=version, expired="drop")
    assert documents.keys() - left.keys() == {(0, b"session")}


def test_a_snapshot_with_a_rollback_verifies() -> None:
    assert cbframe.Snapshot(FILES / "rolled_back").verify().ok


def test_a_snapshot_with_a_rollback_updates(cluster: LocalCluster, tmp_path: Path) -> None:
    path = copied("rolled_back", tmp_path)
    change(cluster)
    result = cbframe.write_snapshot(cluster, path, progress=None)
    assert (result.version, result.upserted, result.deleted, result.rolled_back) == (4, 4, 2, {})
    names = "seqno", "id", "name", "fleet", "active", "tags"
    want = comparable(documents_of(cluster, collections=ALL), *names)
    assert comparable(snapshot_documents(path), *names) == want


def test_a_snapshot_with_widened_columns_keeps_its_digits() -> None:
    prices = {key: fields["price"] for (_, key), fields in snapshot_documents(FILES / "widened").items()}
    assert prices == {
        b"hotel_0": "0",
        b"hotel_2": "on request",
        b"hotel_3": "30",
        b"hotel_4": "40",
        b"hotel_5": "50",
        b"hotel_9": "1.5",
    }


def test_filters_of_a_snapshot_with_widened_columns() -> None:
    """Its manifest does not say which text was a number."""

    def keys(*filters: Any) -> list[str]:
        return sorted(cbframe.read_snapshot(FILES / "widened", filters=[*filters]).index)

    assert keys(("price", ">", 20)) == ["hotel_3", "hotel_4", "hotel_5"]
    assert keys(("price", "==", "on request"), ("type", "==", "hotel")) == ["hotel_2"]
    assert keys(("id", "==", 2**53 + 1)) == ["hotel_9"]
    assert keys(("price", "is not", None), ("geo.lat", "<", 1)) == ["hotel_0"]
    with pytest.raises(
        cbframe.ConfigurationError, match="'price' with numbers, and version 2 of the snapshot"
    ):
        keys(("price", "<", 20))


def test_a_snapshot_with_widened_columns_updates(cluster: LocalCluster, tmp_path: Path) -> None:
    path = copied("widened", tmp_path)
    change(cluster)
    result = cbframe.write_snapshot(cluster, path, progress=None)
    # The failover came after its second version.
    assert result.rolled_back
    got = snapshot_documents(path)
    want = documents_of(cluster, collections={HOTELS})
    assert comparable(got, "seqno", "id") == comparable(want, "seqno", "id")
    prices = {
        place: None if "price" not in fields else str(fields["price"]) for place, fields in want.items()
    }
    assert {place: fields["price"] for place, fields in got.items()} == prices


# --- positions


def test_a_checkpoint_continues_and_reports_the_failover(cluster: LocalCluster) -> None:
    documents = snapshot_documents(FILES / "rolled_back", as_of=2)
    start = cbframe.Checkpoint.load(FILES / "checkpoint.json")
    change(cluster)
    want = comparable(documents_of(cluster, collections=ALL), "seqno", "id", "name")
    rolled_back = []
    with cbframe.stream_bucket(cluster, start=start, on_rollback="restart") as stream:
        while comparable(documents, "seqno", "id", "name") != want:
            batch = stream.poll(30)
            assert batch is not None, "the stream did not reach the bucket's state"
            for rollback in batch.rollbacks:
                rolled_back.append(rollback.vbucket)
                documents = {
                    place: fields
                    for place, fields in documents.items()
                    if fields["_cb_vbucket"] != rollback.vbucket or fields["seqno"] <= rollback.seqno
                }
            documents = replayed(documents, batch.to_arrow().to_pylist())
            stream.ack(batch)
    assert sorted(rolled_back) == [1, 2]


def test_a_spark_offset_continues_after_the_failover(
    cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CB_USER", cluster.username)
    monkeypatch.setenv("CB_PASSWORD", cluster.password)
    schema = pa.schema(
        [
            ("_change_type", pa.string()),
            ("_cb_key", pa.binary()),
            ("_cb_scope", pa.string()),
            ("_cb_collection", pa.string()),
            ("_cb_vbucket", pa.int32()),
            ("_cb_seqno", pa.int64()),
            ("id", pa.int64()),
        ]
    )
    auth = EnvironmentAuth("CB_USER", "CB_PASSWORD")
    start = Offset.from_dict(json.loads((FILES / "spark_offset.json").read_text()))
    change(cluster)
    spans = micro_batch_reader(cluster.connection_string, None, auth=auth, schema=schema)
    end = spans.ahead(start, spans.look(), None)
    rows = [
        row
        for part in spans.parts(start, end, spans.look(), 2)
        for batch in part.read()
        for row in batch.to_pylist()
    ]
    reset = {row["_cb_vbucket"] for row in rows if row["_change_type"] == "reset"}
    assert reset == {1, 2}
    before = snapshot_documents(FILES / "rolled_back", as_of=2)
    kept = {place: row for place, row in before.items() if row["_cb_vbucket"] not in reset}
    changes = [row for row in rows if row["_change_type"] != "reset"]
    got = replayed(kept, sorted(changes, key=lambda row: row["_cb_seqno"]))
    want = comparable(documents_of(cluster, collections=ALL), "seqno", "id")
    assert comparable(got, "seqno", "id") == want


# --- Delta


def test_a_delta_table_updates(cluster: LocalCluster, tmp_path: Path) -> None:
    path = copied("delta", tmp_path)
    names = "seqno", "id", "name"
    want = comparable(documents_of(cluster, collections=ALL), *names)
    before = comparable(documents_in(DeltaTable(path).to_pyarrow_table()), *names)
    # Version 0.1.0 mirrored records of transactions; an update deletes them.
    assert before.keys() - want.keys() == {(0, b"_txn:atr-3-#1")}
    assert {place: before[place] for place in want} == want
    change(cluster)
    update_delta(cluster, path, progress=None)
    want = comparable(documents_of(cluster, collections=ALL), *names)
    assert comparable(documents_in(DeltaTable(path).to_pyarrow_table()), *names) == want
