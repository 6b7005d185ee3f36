"""What is log of reads, streams and snapshots: each event once and whole, and nothing of documents."""

from __future__ import annotations

import json
import logging
import pickle
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from cbframe import CbframeError, ConfigurationError, LocalCluster, scan_bucket, stream_bucket, write_snapshot
from cbframe.dcp.stats import EventLog

from .kit import QUICK, fill, keys_in

Event = dict[str, Any]
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
LOG = logging.getLogger("cbframe.test")
PASSWORD = "hunter2-pass"


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(nodes=2, vbuckets=4, seed=1, password=PASSWORD) as running:
        fill(running, 100)
        yield running


def lines_of(path: Path) -> list[Event]:
    text = path.read_text(encoding="utf-8")
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def names(events: list[Event]) -> Counter[str]:
    for each in events:
        assert list(each)[:3] == ["time", "event", "bucket"]
        assert datetime.fromisoformat(each["time"]).tzinfo is not None
    return Counter(each["event"] for each in events)


def only(events: list[Event], name: str) -> list[Event]:
    """Those of one kind, without what they have in common."""
    return [{k: each[k] for k in list(each)[3:]} for each in events if each["event"] == name]


def test_a_file_has_a_line_for_each_event(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"before": 1}\n')
    one, other = (EventLog(path, bucket, LOG, now=lambda: NOON) for bucket in "ab")
    one.open()
    other.open()
    one.write("start", bounded=True)
    other.write("rollback", node="h:1", vbucket=3, seqno=5, hint=None)
    # It is there at once, not with the end.
    noon = "2026-03-01T12:00:00+00:00"
    assert lines_of(path) == [
        {"before": 1},
        {"time": noon, "event": "start", "bucket": "a", "bounded": True},
        {"time": noon, "event": "rollback", "bucket": "b", "node": "h:1", "vbucket": 3, "seqno": 5},
    ]
    one.close()
    other.close()


def test_a_listener_that_fails_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[Event] = []

    def listen(event: Event) -> None:
        calls.append(event)
        raise RuntimeError("no disk")

    log = EventLog(listen, "b", LOG)
    log.open()
    for _ in range(3):
        log.write("start")
    log.close()
    assert len(calls) == 1
    assert not log.active
    (record,) = caplog.records
    assert record.message == "the event log has failed: no further event goes there"
    assert not EventLog(None, "b", LOG).active


def test_a_line_that_is_cut_is_a_failure(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = EventLog(tmp_path / "e", "b", LOG)
    log.open()
    real = log._file

    class Full:
        def write(self, line: bytes) -> int:
            return real.write(line[:3])

        def close(self) -> None:
            real.close()

    log._file = Full()  # type: ignore[assignment]
    log.write("start")
    log.write("start")
    log.close()
    assert (tmp_path / "e").read_bytes() == b'{"t'
    assert "disk is full" in caplog.text


def test_a_read(cluster: LocalCluster) -> None:
    events: list[Event] = []
    scan_bucket(cluster, options=QUICK, event_log=events.append).to_arrow()
    assert names(events) == {"start": 1, "connected": 2, "stream_end": 4, "end": 1}
    assert (events[0]["event"], events[0]["bucket"]) == ("start", "default")
    assert (events[-1]["event"], events[-1]["state"]) == ("end", "complete")
    high = cluster.high_seqnos()
    ends = {each["vbucket"]: (each["reason"], each["seqno"]) for each in only(events, "stream_end")}
    assert ends == {vbucket: ("OK", high[vbucket]) for vbucket in range(4)}
    assert {each["node"] for each in only(events, "connected")} == set(cluster.kv_addresses)


def test_a_read_that_fails(cluster: LocalCluster) -> None:
    events: list[Event] = []
    scan = scan_bucket(cluster, auth=("Administrator", "wrong"), options=QUICK, event_log=events.append)
    with pytest.raises(CbframeError):
        scan.to_arrow()
    assert Counter({"problem": 1, "end": 1}) <= names(events)
    assert only(events, "problem")[-1]["kind"] == "AuthFailError"
    assert only(events, "end") == [{"state": "failed"}]


def test_a_log_that_cannot_be_written_is_an_error(cluster: LocalCluster, tmp_path: Path) -> None:
    path = tmp_path / "nowhere" / "events.jsonl"
    with pytest.raises(ConfigurationError, match=r"the event log '.*' cannot be written") as caught:
        scan_bucket(cluster, options=QUICK, event_log=path).to_arrow()
    assert caught.value.hint is not None
    for wrong in (5, "", b"x", True):
        with pytest.raises(ConfigurationError, match="event_log="):
            scan_bucket(cluster, event_log=wrong)  # type: ignore[arg-type]


def test_a_stream_through_all_that_can_happen(cluster: LocalCluster, tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    owner = {vbucket: cluster.kv_addresses.index(node) for vbucket, node in owners(cluster).items()}
    with stream_bucket(cluster, options=QUICK, event_log=path) as stream:
        assert len(stream.to_pandas()) == 100
        assert names(lines_of(path)) == {"start": 1, "connected": 2}
        # A rebalance.
        cluster.move_vbucket(0, 1 - owner[0])
        cluster.upsert(keys_in(0, 4, 1, b"key-%d")[0], {"n": 1})
        assert len(stream.to_pandas()) == 101
        (moved,) = only(lines_of(path), "moved")
        assert moved == {"vbuckets": 1, "nodes_joined": [], "nodes_left": []}
        assert only(lines_of(path), "stream_end")[0]["reason"] == "STATE_CHANGED"
        assert not {"failover", "rollback", "reconnected"} & names(lines_of(path)).keys()
        # A failover that loses changes.
        before, seqno = cluster.failover_log(1)[0][0], cluster.high_seqnos()[1]
        after = cluster.fail_over(1, lose=3, node=1 - owner[1])
        assert len(stream.to_pandas()) == 98
        (rollback,), (failover,) = (only(lines_of(path), name) for name in ("rollback", "failover"))
        assert (rollback["vbucket"], rollback["seqno"]) == (1, seqno - 3)
        assert failover == {
            "node": cluster.kv_addresses[1 - owner[1]],
            "vbucket": 1,
            "vbuuid": f"{after:016x}",
            "before": f"{before:016x}",
        }
        # A connection that is cut.
        cluster.cut(owner[2])
        cluster.upsert(keys_in(2, 4, 1, b"key-%d")[0], {"n": 1})
        assert len(stream.to_pandas()) == 99
    found = lines_of(path)
    assert {"disconnected", "reconnected", "problem"} <= names(found).keys()
    assert only(found, "reconnected")[-1] == {"node": cluster.kv_addresses[owner[2]]}
    assert only(found, "end") == [{"state": "closed"}]
    text = path.read_text(encoding="utf-8")
    assert "key-" not in text
    assert PASSWORD not in text


def owners(cluster: LocalCluster) -> dict[int, str]:
    scan = scan_bucket(cluster, options=QUICK)
    return {vb: part.node for part in scan.partitions(2, include_credentials=True) for vb in part.vbuckets}


def test_a_failover_between_a_checkpoint_and_its_stream(cluster: LocalCluster) -> None:
    with stream_bucket(cluster, options=QUICK) as stream:
        stream.to_pandas()
        start = stream.checkpoint
    vbuuid = cluster.fail_over(2)
    events: list[Event] = []
    with stream_bucket(cluster, options=QUICK, start=start, event_log=events.append) as stream:
        stream.to_pandas()
    (failover,) = only(events, "failover")
    assert (failover["vbucket"], failover["vbuuid"]) == (2, f"{vbuuid:016x}")
    assert "rollback" not in names(events)


def test_updates_of_a_snapshot_are_in_one_file(cluster: LocalCluster, tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    write_snapshot(cluster, tmp_path / "s", options=QUICK, event_log=path)
    assert names(lines_of(path))["stream_end"] == 4
    cluster.upsert("more", {"n": 1})
    write_snapshot(cluster, tmp_path / "s", options=QUICK, event_log=str(path))
    found = names(lines_of(path))
    assert (found["start"], found["end"]) == (2, 2)


def test_a_path_goes_with_partitions_and_a_function_does_not(cluster: LocalCluster, tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    scan = scan_bucket(cluster, options=QUICK, event_log=path)
    for part in pickle.loads(pickle.dumps(scan.partitions(2, include_credentials=True))):
        part.read()
    assert names(lines_of(path))["stream_end"] >= 4
    events: list[Event] = []
    parts = scan_bucket(cluster, options=QUICK, event_log=events.append).partitions(
        2, include_credentials=True, sample_rows=10
    )
    assert only(events, "end"), "the sample is read here"
    log = len(events)
    for part in pickle.loads(pickle.dumps(parts)):
        part.read()
    assert len(events) == log
