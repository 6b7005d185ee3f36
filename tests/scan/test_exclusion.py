"""Documents that have expired, and records of transactions, are left out of reads, and counted."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pyarrow as pa
import pytest

from cbframe import (
    BucketScan,
    ChangeStream,
    ConfigurationError,
    LocalCluster,
    ReadReport,
    read_bucket,
    read_schema,
    scan_bucket,
    stream_bucket,
)
from cbframe.local.bucket import LocalBucket

from .consumers import take

PAST, FUTURE = 1_700_000_000, 4_000_000_000
"""Seconds since the epoch."""


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    """Six documents: three that a GET would find, one that has expired, and two records of transactions."""
    with LocalCluster(nodes=2, vbuckets=16, seed=1) as running:
        running.upsert("never", {"n": 1})
        running.upsert("later", {"n": 2}, expiry=FUTURE)
        running.upsert("binary", b"\x00", datatype=0)
        running.upsert("gone", {"only_in_gone": 1}, expiry=PAST)
        for key in ("_txn:atr-17-#10", "_txn:client-record"):
            running.upsert(key, {"attempts": {}})
        yield running


LIVE = ["binary", "later", "never"]
RECORDS = ["_txn:atr-17-#10", "_txn:client-record"]


def _parts(scan: BucketScan, streamed: bool = False) -> pa.Table:
    parts = scan.partitions(3, include_credentials=True)
    return pa.concat_tables([part.to_reader().read_all() if streamed else part.read() for part in parts])


DOORS: dict[str, Callable[[BucketScan], pa.Table]] = {
    "read": lambda scan: scan.read().table,
    "reader": lambda scan: scan.to_reader().read_all(),
    "parts": _parts,
    "readers of parts": partial(_parts, streamed=True),
    "split": lambda scan: pa.concat_tables(
        [result.table.select(["_cb_key"]) for result in scan.split("n").values()]
    ),
}


def keys(table: pa.Table) -> list[str]:
    return sorted(table["_cb_key"].to_pylist())


@pytest.mark.parametrize("door", DOORS)
def test_every_door(door: str, cluster: LocalCluster) -> None:
    found = DOORS[door](scan_bucket(cluster))
    assert keys(found) == LIVE
    assert not {"only_in_gone", "attempts"} & set(found.column_names)
    both: dict[str, Any] = {"expired": "keep", "transaction_records": "keep"}
    for more, kept in ((["gone"], {"expired": "keep"}), (RECORDS, {"transaction_records": "keep"})):
        assert keys(DOORS[door](scan_bucket(cluster, **kept))) == sorted([*more, *LIVE])
    assert keys(DOORS[door](scan_bucket(cluster, **both))) == sorted(["gone", *RECORDS, *LIVE])


@pytest.mark.parametrize("arguments", [{"keys_only": True}, {"parse": False}, {"metadata": ("seqno",)}])
@pytest.mark.parametrize("door", ["read", "reader", "parts"])
def test_whatever_is_read_of_them(door: str, arguments: Any, cluster: LocalCluster) -> None:
    found = DOORS[door](scan_bucket(cluster, **arguments))
    assert keys(found) == LIVE
    assert "_cb_expiry" not in found.column_names


def test_they_are_counted(cluster: LocalCluster) -> None:
    scan = scan_bucket(cluster)
    before = datetime.now(UTC).replace(microsecond=0)
    result = scan.read()
    assert (result.documents, result.expired, result.transaction_records) == (3, 1, 2)
    assert result.moment.clock == "node"
    assert before <= result.moment.time <= datetime.now(UTC)
    assert "left out: 1 expired and 2 records of transactions" in repr(result)
    scan.to_reader().read_all()
    assert (scan.last.expired, scan.last.transaction_records) == (1, 2)
    parts = scan.partitions(3, include_credentials=True)
    report = ReadReport.merged(part.result().report for part in parts)
    assert (report.documents, report.expired, report.transaction_records) == (3, 1, 2)
    assert len({part.result().moment for part in parts}) == 1
    frame = read_bucket(cluster)
    told = frame.attrs["cbframe"]
    assert (told["expired"], told["transaction_records"]) == (1, 2)
    assert ReadReport.of_dict(told).moment is not None
    kept = scan_bucket(cluster, expired="keep", transaction_records="keep").read()
    assert (kept.expired, kept.transaction_records, kept.moment) == (0, 0, None)
    assert "left out" not in repr(kept)
    schema = read_schema(cluster)
    assert schema.rows == 3
    assert [field.path for field in schema.fields] == ["n"]
    assert (schema.expired, schema.transaction_records) == (1, 2)
    assert schema.moment is not None
    assert "left out: 1 expired and 2 records of transactions" in str(schema).splitlines()[0]
    kept = read_schema(cluster, expired="keep", transaction_records="keep", n_rows=100)
    assert (kept.rows, kept.expired, kept.moment) == (6, 0, None)
    assert "left out" not in str(kept)


def test_they_have_no_part_in_filters(cluster: LocalCluster) -> None:
    result = scan_bucket(cluster, filters=[("n", ">", 1)]).read()
    assert (keys(result.table), result.expired, result.transaction_records) == (["later"], 1, 2)
    with pytest.raises(ConfigurationError, match="only_in_gone"):
        scan_bucket(cluster, filters=[("only_in_gone", "==", 1)]).read()
    result = scan_bucket(cluster, filters=[("only_in_gone", "==", 1)], expired="keep").read()
    assert keys(result.table) == ["gone"]


def test_the_clock_is_that_of_the_nodes(cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalBucket, "now", staticmethod(lambda: PAST - 1))
    result = scan_bucket(cluster).read()
    assert "gone" in keys(result.table)
    assert result.moment.time == datetime.fromtimestamp(PAST - 1, UTC)
    assert keys(_parts(scan_bucket(cluster))) == keys(result.table)
    # Within the second of its expiry a node still returns it.
    monkeypatch.setattr(LocalBucket, "now", staticmethod(lambda: PAST))
    assert "gone" in keys(scan_bucket(cluster).read().table)
    monkeypatch.setattr(LocalBucket, "now", staticmethod(lambda: PAST + 1))
    assert "gone" not in keys(scan_bucket(cluster).read().table)
    # Who may not see statistics goes by the own clock, and is told so.
    monkeypatch.setattr(LocalBucket, "now", staticmethod(lambda: PAST - 1))
    cluster.add_user("reader", "secret", access="dcp")
    scan = scan_bucket(cluster, auth=("reader", "secret"), progress=None)
    result = scan.read()
    assert keys(result.table) == keys(_parts(scan)) == LIVE
    assert result.moment.clock == "client"
    assert abs(result.moment.time.timestamp() - time.time()) < 60


def test_one_moment_for_all_partitions(cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are read later, and are as of when they were made."""
    monkeypatch.setattr(LocalBucket, "now", staticmethod(lambda: PAST - 1))
    parts = scan_bucket(cluster).partitions(2, include_credentials=True)
    monkeypatch.setattr(LocalBucket, "now", staticmethod(lambda: PAST + 1))
    assert "gone" in keys(pa.concat_tables([part.read() for part in parts]))


def keys_of(stream: ChangeStream, count: int) -> list[str]:
    """Keys of so many changes, which are acknowledged."""
    found: list[str] = []
    while len(found) < count:
        batch = take(stream)
        found += batch.to_arrow()["_cb_key"].to_pylist()
        stream.ack(batch)
    return sorted(found)


def test_streams_have_expired_documents_and_no_records(cluster: LocalCluster) -> None:
    with stream_bucket(cluster) as stream:
        assert keys_of(stream, 4) == sorted(["gone", *LIVE])
        # One more change comes after whatever is left out, of every vbucket that has any.
        for number in range(100):
            cluster.upsert(f"more-{number}", {"n": 1})
        assert len(keys_of(stream, 100)) == 100
        assert stream.transaction_records == 2
        assert "2 changes of transaction records left out" in repr(stream)
        # What was left out is behind the checkpoint, too.
        assert stream.checkpoint.as_of.changes == 106
    with stream_bucket(cluster, transaction_records="keep") as stream:
        assert set(RECORDS) < set(keys_of(stream, 106))
        assert stream.transaction_records == 0


def test_a_prefix_of_what_is_left_out(cluster: LocalCluster) -> None:
    """It would find nothing, and say nothing."""
    with pytest.raises(ConfigurationError, match="names records of transactions") as caught:
        scan_bucket(cluster, key_prefix="_txn:atr")
    assert 'transaction_records="keep"' in caught.value.hint
    with pytest.raises(ConfigurationError, match="key_pattern= names records of transactions"):
        scan_bucket(cluster, key_pattern="_txn:*")
    scan = scan_bucket(cluster, key_prefix="_txn:atr", transaction_records="keep", progress=None)
    assert keys(scan.read().table) == RECORDS[:1]
