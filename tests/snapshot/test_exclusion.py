"""Documents that have expired, and records of transactions: what of them a snapshot has, and what is read."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cbframe import ConfigurationError, LocalCluster, Snapshot, read_snapshot, write_snapshot
from cbframe.scan.store import LocalStore
from cbframe.snapshot.manifest import History, Manifest, name_of

PAST = 1_700_000_000
"""Seconds since the epoch: long before any test is run."""
FUTURE = 4_000_000_000


def keys(path: Path, **wanted: Any) -> list[str]:
    return sorted(read_snapshot(path, **wanted).index)


def manifest(path: Path, version: int) -> Manifest:
    return History(LocalStore(path)).load(version)


def rewritten(path: Path, version: int, **changes: Any) -> None:
    """Write a manifest as another release, or another clock, would have."""
    changed = replace(manifest(path, version), **changes)
    (path / name_of(version)).write_bytes(changed.to_bytes())


@pytest.fixture
def mixed(cluster: LocalCluster) -> LocalCluster:
    """With documents of which some have expired, and are not removed yet."""
    for n in range(4):
        cluster.upsert(f"never-{n}", {"n": n})
        cluster.upsert(f"gone-{n}", {"n": n}, expiry=PAST + n)
    cluster.upsert("later", {"n": 9}, expiry=FUTURE)
    return cluster


LIVE = ["later", *(f"never-{n}" for n in range(4))]
GONE = [f"gone-{n}" for n in range(4)]


def test_expired_documents_are_kept_and_not_read(mixed: LocalCluster, path: Path, tmp_path: Path) -> None:
    assert write_snapshot(mixed, path).upserted == 9
    assert keys(path) == LIVE
    assert keys(path, expired="keep") == sorted([*GONE, *LIVE])
    frame = read_snapshot(path)
    assert frame.attrs["cbframe"]["expired"] == 4
    snapshot = Snapshot(path)
    assert len(snapshot) == 5
    assert "5 documents and 0 tombstones" in repr(snapshot)
    assert snapshot.to_reader(columns=["n"]).read_all().num_rows == 5
    plain = {expired: snapshot.export(tmp_path / expired, expired=expired) for expired in ("drop", "keep")}
    assert {name: pq.read_table(folder).num_rows for name, folder in plain.items()} == {"drop": 5, "keep": 9}
    with pytest.raises(ConfigurationError, match="expired='no'"):
        read_snapshot(path, expired="no")  # type: ignore[arg-type]
    # Nothing says that they expire, but that the server removes them does.
    mixed.expire_due()
    write_snapshot(mixed, path)
    changed = Snapshot(path).changes(since=1)["_change_type"].to_dict()
    assert changed.keys() == set(GONE)
    assert set(changed.values()) <= {"delete", "expire"}
    assert keys(path) == keys(path, expired="keep") == LIVE
    assert keys(path, as_of=1) == LIVE


def test_they_expire_by_the_clock_of_the_nodes(mixed: LocalCluster, path: Path) -> None:
    """Also where that of the writer goes wrong; and of versions of earlier releases, by their time."""
    wrong = datetime(2000, 1, 1, tzinfo=UTC)
    before = datetime.now(UTC).replace(microsecond=0)
    write_snapshot(mixed, path, clock=lambda: wrong)
    first = manifest(path, 1)
    assert first.created == wrong
    assert before <= first.node_time <= datetime.now(UTC)
    assert keys(path) == LIVE
    # A node that is behind: the latest time that was reported counts.
    ahead = first.node_time + timedelta(days=1)
    rewritten(path, 1, node_time=ahead)
    mixed.upsert("never-0", {"n": 0})
    write_snapshot(mixed, path)
    assert manifest(path, 2).node_time == ahead
    # The time of the version, where no node has reported any.
    between = datetime.fromtimestamp(PAST + 2, UTC)
    rewritten(path, 1, node_time=None, created=between)
    assert keys(path, as_of=1) == sorted(["gone-2", "gone-3", *LIVE])
    rewritten(path, 1, created=between, ordered=False)
    assert keys(path, as_of=1) == sorted(["gone-2", "gone-3", *LIVE])


def test_a_writer_who_may_not_see_statistics(mixed: LocalCluster, path: Path) -> None:
    mixed.add_user("reader", "secret", access="dcp")
    write_snapshot(mixed, path, auth=("reader", "secret"))
    assert manifest(path, 1).node_time is None
    assert keys(path) == LIVE


def test_an_expired_version_of_a_document_hides_older_ones(cluster: LocalCluster, path: Path) -> None:
    cluster.upsert("a", {"n": 1})
    write_snapshot(cluster, path)
    cluster.upsert("a", {"n": 2}, expiry=PAST)
    write_snapshot(cluster, path)
    assert keys(path) == []
    assert keys(path, as_of=1) == ["a"]
    # It is left out of reads, and not of what is written.
    Snapshot(path).compact(keep="0s")
    assert keys(path) == []
    assert read_snapshot(path, expired="keep")["n"].to_dict() == {"a": 2}


def test_files_without_expiries_are_not_looked_into(
    cluster: LocalCluster, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, expiry in enumerate((0, FUTURE)):
        cluster.upsert(f"k{number}", {"n": 1}, expiry=expiry)
        write_snapshot(cluster, path, file_bytes=1)
    columns: list[Any] = []
    read = pq.ParquetFile.read_row_groups
    monkeypatch.setattr(
        pq.ParquetFile,
        "read_row_groups",
        lambda self, *args, **named: columns.append(named["columns"]) or read(self, *args, **named),
    )
    assert len(Snapshot(path)) == 2
    assert columns
    assert not any("_cb_expiry" in each for each in columns)


# --- records of transactions


RECORDS = ["_txn:atr-17-#10", "_txn:client-record"]


def with_records(cluster: LocalCluster, number: int) -> None:
    for key in RECORDS:
        cluster.upsert(key, {"attempts": {str(number): 1}})
    cluster.upsert("order", {"n": number})


def test_records_of_transactions_are_left_out(cluster: LocalCluster, path: Path) -> None:
    with_records(cluster, 1)
    result = write_snapshot(cluster, path)
    assert (result.upserted, result.transaction_records) == (1, 2)
    assert "left out    2 changes of transaction records" in str(result)
    assert manifest(path, 1).options == {"transaction_records": "drop"}
    assert list(Snapshot(path).schema.names) == ["_cb_key", "n"]
    # The position goes on, so that they do not come again.
    for key in RECORDS:
        cluster.upsert(key, {"attempts": {}})
    cluster.delete(RECORDS[0])
    result = write_snapshot(cluster, path)
    assert (result.upserted, result.deleted, result.transaction_records) == (0, 0, 2)
    assert not write_snapshot(cluster, path).changed
    with pytest.raises(ConfigurationError, match="was made with transaction_records='drop'"):
        write_snapshot(cluster, path, transaction_records="keep")


def test_records_of_transactions_that_are_asked_for(cluster: LocalCluster, path: Path) -> None:
    with_records(cluster, 1)
    assert write_snapshot(cluster, path, transaction_records="keep").transaction_records == 0
    cluster.delete(RECORDS[1])
    write_snapshot(cluster, path)
    assert keys(path) == [RECORDS[0], "order"]
    assert Snapshot(path).changes(since=1).index.tolist() == [RECORDS[1]]


def test_snapshots_of_earlier_releases(cluster: LocalCluster, path: Path) -> None:
    """They have such records: these are hidden, and never come back."""
    with_records(cluster, 1)
    write_snapshot(cluster, path, transaction_records="keep")
    with_records(cluster, 2)
    write_snapshot(cluster, path)
    for version in (1, 2):
        rewritten(path, version, options={}, ordered=False)
    snapshot = Snapshot(path)
    assert keys(path) == keys(path, as_of=1) == ["order"]
    assert len(snapshot) == 1
    assert "1 document and 0 tombstones in 2 files" in repr(snapshot)
    assert snapshot.changes(since=1).index.tolist() == ["order"]
    assert snapshot.verify().ok
    # What is written now has none, and the deletion of one is no change.
    with_records(cluster, 3)
    cluster.delete(RECORDS[0])
    assert write_snapshot(cluster, path).transaction_records == 2
    assert "transaction_records" not in manifest(path, 3).options
    assert keys(path) == ["order"]
    assert Snapshot(path).changes(since=1)["n"].tolist() == [2, 3]
    # A compaction leaves them out for good.
    done = Snapshot(path).compact(keep="0s")
    assert (done.changed, done.rows) == (True, (7, 1))
    assert manifest(path, 4).options == {"transaction_records": "drop"}
    Snapshot(path).vacuum()
    assert keys(path) == ["order"]
    assert Snapshot(path).verify().ok
