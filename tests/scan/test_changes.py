"""The tail of a stream, and its changes in Parquet files."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from failovers import until

from cbframe import ChangeStream, Checkpoint, LocalCluster
from cbframe.arrow.columns import key_bytes
from cbframe.errors import AccessError, AuthFailError, ConfigurationError, ReadTimeoutError
from cbframe.local import kv
from cbframe.scan.spec import seconds_of
from cbframe.testing import FakeClock
from cbframe.wire.constants import Opcode, Status
from cbframe.wire.framing import Frame
from cbframe.wire.messages import vbucket_of

from .consumers import has_caught_up, open_stream, truth_of
from .kit import QUICK, background, create, fill


def tail_of(stream: ChangeStream, cluster: LocalCluster, **arguments: Any) -> pd.DataFrame:
    """The tail, once everything has come."""
    frames: list[pd.DataFrame] = []

    def whole() -> bool:
        frames.append(stream.to_pandas(**arguments))
        return has_caught_up(cluster, stream.checkpoint)

    until(whole, lambda: stream)
    return frames[-1]


def documents(frame: pd.DataFrame) -> dict[bytes, int]:
    assert frame.index.is_unique
    return {} if frame.empty else {key.encode(): int(n) for key, n in frame["n"].items()}


def numbers(cluster: LocalCluster) -> dict[bytes, int]:
    return {key: int(value[5:-1]) for key, value in truth_of(cluster).items()}


@pytest.mark.parametrize("connections", [1, 3])
def test_the_newest_of_the_last_changes(pair: LocalCluster, connections: int) -> None:
    fill(pair, 100)
    options = replace(QUICK, connections_per_node=connections)
    with open_stream(pair, start="now", options=options) as stream:
        assert len(stream.to_pandas()) == 0
        pair.upsert("a", {"n": 1})
        pair.upsert("b", {"n": 1})
        tail_of(stream, pair)
        pair.upsert("a", {"n": 2})
        pair.delete("b")
        frame = tail_of(stream, pair)
        assert documents(frame) == {b"a": 2}
        pair.upsert("c", {"n": 3})
        tail_of(stream, pair)
        assert documents(tail_of(stream, pair, rows=1)) == {b"c": 3}


def test_a_batch_that_is_not_acknowledged_is_not_waited_for(cluster: LocalCluster) -> None:
    cluster.upsert("a", {"n": 1})
    with open_stream(cluster) as stream:
        batch = next(stream)
        assert stream.to_pandas(timeout=5).empty
        assert not stream.checkpoint.offsets
        cluster.upsert("b", {"n": 2})
        assert list(stream.to_pandas(timeout=5).index) == ["b"]
        stream.ack(batch)


def test_what_is_old_is_forgotten(cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock()
    with open_stream(cluster, start="now") as stream:
        cluster.upsert("a", {"n": 1})
        tail_of(stream, cluster)
        monkeypatch.setattr(stream._tail, "_clock", clock)
        for piece in stream._tail._pieces:
            piece.at = clock.now
        clock.advance(200)
        cluster.upsert("b", {"n": 2})
        assert documents(tail_of(stream, cluster, last="5min")) == {b"a": 1, b"b": 2}
        clock.advance(101)
        assert documents(stream.to_pandas(last="5min")) == {b"b": 2}
        assert documents(stream.to_pandas(last=300)) == {b"b": 2}
        assert documents(stream.to_pandas(last=50)) == {}


SPANS: dict[float, list[Any]] = {
    300: ["5min", 300, timedelta(minutes=5), pd.Timedelta("5min"), np.timedelta64(5, "m")],
    5400: ["1h30min"],
    86400: ["1d"],
    2: ["2 s"],
    0.5: [0.5],
    7: [np.int64(7)],
}


@pytest.mark.parametrize("seconds", SPANS)
def test_spans_of_time(seconds: float) -> None:
    assert {seconds_of("last", span) for span in SPANS[seconds]} == {seconds}


NO_SPANS = [
    *("soon", "", " ", "5", "5.5", "1e3", "-5", "+5", "nan", "NaT", "-5min", -1, float("nan"), float("inf")),
    *(True, False, None, b"5min", [5], timedelta(-1), pd.NaT, "99999999999999h"),
]


@pytest.mark.parametrize("span", NO_SPANS)
def test_what_is_no_span_of_time(span: Any) -> None:
    with pytest.raises(ConfigurationError, match="last="):
        seconds_of("last", span)


def test_what_is_there_while_it_connects(pair: LocalCluster) -> None:
    fill(pair, 500)
    with open_stream(pair) as stream:
        assert {key.encode() for key in stream.to_pandas(columns=["n"]).index} == set(truth_of(pair))
    with open_stream(pair, start="now") as stream:
        assert stream.to_pandas().empty
        for number in range(20):
            pair.upsert(f"new-{number}", {"n": number})
            assert f"new-{number}" in stream.to_pandas().index


def test_what_is_there_is_waited_for_no_longer_than_was_asked(cluster: LocalCluster) -> None:
    fill(cluster, 50)
    with open_stream(cluster, vbuckets=[1, 2]) as stream:
        with pytest.raises(ReadTimeoutError, match=r"when to_pandas|still connecting"):
            stream.to_pandas(timeout=0)
        assert len(stream.to_pandas()) > 0
        stream.pause()
        assert len(stream.to_pandas(timeout=0)) > 0
        for bad in ("5", -1, True):
            with pytest.raises(ConfigurationError, match="timeout="):
                stream.to_pandas(timeout=bad)  # type: ignore[arg-type]
        for rows in ("5", -1, None):
            with pytest.raises(ConfigurationError, match="rows="):
                stream.to_pandas(rows=rows)  # type: ignore[arg-type]


def test_a_failover_while_it_is_waited_for(cluster: LocalCluster) -> None:
    """The history that the nodes reported first may end earlier now: it is not waited for in vain."""
    with open_stream(cluster) as stream:
        cluster.upsert("a", {"n": 1})
        cluster.upsert("a", {"n": 2})
        stream.to_pandas()
        cluster.fail_over(vbucket_of(b"a", 16), lose=1)
        assert documents(tail_of(stream, cluster)) == {b"a": 1}


@pytest.mark.parametrize("node", [None, 1])
@pytest.mark.parametrize(
    "arguments", [{}, {"scope": "_default", "collections": "_default"}, {"only_persisted": True}]
)
def test_what_a_failover_lost_is_not_what_the_bucket_has(
    monkeypatch: pytest.MonkeyPatch, node: int | None, arguments: dict[str, Any]
) -> None:
    """The stream is as far as the bucket by its seqnos, and has not heard of the rollback."""
    held = threading.Event()
    original = kv.KvConnection.dcp

    def dcp(connection: kv.KvConnection, frame: Frame) -> None:
        if held.is_set():
            connection.respond(frame, Status.ETMPFAIL)
        else:
            original(connection, frame)

    monkeypatch.setitem(kv.HANDLERS, Opcode.DCP_STREAM_REQ, dcp)
    with LocalCluster(vbuckets=4, nodes=2, replicas=1, seed=1) as cluster:
        vbucket = vbucket_of(b"a", 4)
        cluster.move_vbucket(vbucket, 0)
        with open_stream(cluster, **arguments) as stream:
            for n in range(3):
                cluster.upsert("a", {"n": n})
                assert documents(stream.to_pandas()) == {b"a": n}
            held.set()
            cluster.fail_over(vbucket, lose=1, node=node)
            with pytest.raises(ReadTimeoutError, match=r"vbuckets are not where the bucket was"):
                stream.to_pandas(timeout=0.3)
            held.clear()
            assert documents(stream.to_pandas()) == {b"a": 1}
            cluster.upsert("a", {"n": 4})
            # Nothing is lost by a failover: there is no rollback to wait for.
            cluster.fail_over(vbucket)
            assert documents(stream.to_pandas()) == {b"a": 4}
            assert stream.stats.total.rollbacks == 1


def test_a_rollback_brings_older_versions_back_to_light(cluster: LocalCluster) -> None:
    with open_stream(cluster) as stream:
        cluster.upsert("a", {"n": 1})
        tail_of(stream, cluster)
        cluster.upsert("a", {"n": 2})
        assert documents(tail_of(stream, cluster)) == {b"a": 2}
        cluster.fail_over(vbucket_of(b"a", 16), lose=1)
        assert documents(tail_of(stream, cluster)) == {b"a": 1}


def test_a_collection_that_is_dropped() -> None:
    with LocalCluster(vbuckets=4, seed=1) as cluster:
        create(cluster, "shop", "orders")
        with open_stream(cluster) as stream:
            cluster.upsert("a", {"n": 1}, collection="shop.orders")
            cluster.upsert("a", {"n": 2})
            frame = tail_of(stream, cluster)
            assert sorted(frame["_cb_collection"]) == ["_default", "orders"]
            cluster.drop_collection("shop", "orders")
            assert documents(tail_of(stream, cluster)) == {b"a": 2}


def churn(cluster: LocalCluster, rounds: int, changes: int) -> None:
    """Write and look, again and again: memory stays, and the tail is the truth."""
    rng = random.Random(rounds)
    keys = [b"key-%03d" % n for n in range(300)]
    number = 0
    most = 2000
    sizes = []
    with open_stream(cluster) as stream:
        for _ in range(rounds):
            for _ in range(changes):
                number += 1
                if rng.random() < 0.1:
                    cluster.delete(rng.choice(keys))
                else:
                    cluster.upsert(rng.choice(keys), b'{"n":%d}' % number)
            if rng.random() < 0.2:
                cluster.cut()
            frame = tail_of(stream, cluster, rows=most)
            tail = stream._tail
            assert tail._count <= most
            sizes.append(sum(piece.rows.nbytes for piece in tail._pieces))
            found = documents(frame)
            expected = numbers(cluster)
            assert found.items() <= expected.items()
            if number > 20 * len(keys):
                # Every document was written among the last changes, or is so old that it is not there.
                assert len(found) > 0.9 * len(expected)
    assert max(sizes) < 3 * (sizes[len(sizes) // 2] + 100_000)


def test_memory_stays_and_the_tail_is_the_truth(cluster: LocalCluster) -> None:
    churn(cluster, 15, 600)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_memory_stays_for_long(pair: LocalCluster) -> None:
    """Half an hour's churn at a hundred changes a second, as fast as it goes."""
    churn(pair, 300, 600)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_the_process_does_not_grow() -> None:
    """Six hundred thousand changes of twenty thousand documents, in a cluster of its own process."""
    sizes = []
    with LocalCluster(vbuckets=64, process=True) as cluster, open_stream(cluster) as stream:
        for turn in range(60):
            cluster.bulk_load(
                (b"key-%05d" % n, b'{"n":%d,"x":"%s"}' % (turn, b"x" * 300)) for n in range(10_000)
            )
            frame = stream.to_pandas(rows=20_000)
            while not reached(stream, cluster):
                frame = stream.to_pandas(rows=20_000)
            assert set(frame["n"]) == {turn}
            assert len(frame) == 10_000
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            sizes.append(pages * os.sysconf("SC_PAGE_SIZE"))
    assert max(sizes[20:]) < sizes[19] + (32 << 20), [size >> 20 for size in sizes]


def reached(stream: ChangeStream, cluster: LocalCluster) -> bool:
    """Whether it has what the cluster has, by seqnos alone."""
    offsets = stream.checkpoint.offsets
    high = cluster.high_seqnos().items()
    return all(vb in offsets and offsets[vb].seqno >= seqno for vb, seqno in high if seqno)


# --- Parquet


def close_when(stream: ChangeStream, done: Callable[[], bool]) -> AbstractContextManager[None]:
    def look(stop: threading.Event) -> None:
        while not done() and not stop.wait(0.01):
            pass
        stream.close()

    return background(look)


def write(stream: ChangeStream, cluster: LocalCluster, folder: Path) -> list[Path]:
    """Have everything written that there is now."""
    with close_when(stream, lambda: reached(stream, cluster)):
        return list(stream.to_parquet(folder, rotate={"seconds": 0.02}))


def replay(folder: Path) -> dict[bytes, bytes]:
    """The documents that the log comes to."""
    table = pa.concat_tables(pq.read_table(path) for path in sorted(folder.glob("*.parquet")))
    log: list[dict[str, Any]] = []
    for row in table.to_pylist():
        vbucket, seqno = row["_cb_vbucket"], row["_cb_seqno"]
        if row["_change_type"] == "rollback":
            log = [each for each in log if each["_cb_vbucket"] != vbucket or each["_cb_seqno"] <= seqno]
        elif row["_change_type"] == "drop":
            log = [
                each
                for each in log
                if (each["_cb_vbucket"], each["_cb_collection"]) != (vbucket, row["_cb_collection"])
                or each["_cb_seqno"] > seqno
            ]
        else:
            log.append(row)
    places = [(row["_cb_vbucket"], row["_cb_seqno"]) for row in log]
    assert len(set(places)) == len(places), "a change is there twice"
    state = {key_bytes(pa.array([row["_cb_key"]]))[0].as_py(): row["_cb_value"] for row in log}
    return {key: value for key, value in state.items() if value is not None}


def test_changes_in_files(pair: LocalCluster, tmp_path: Path) -> None:
    folder = tmp_path / "changes"
    fill(pair, 300)
    with open_stream(pair) as stream:
        files = write(stream, pair, folder)
    assert files == sorted(folder.iterdir())
    assert replay(folder) == truth_of(pair)
    pair.upsert("key-000001", b'{"n":1}')
    pair.delete("key-000002")
    vbucket = vbucket_of(b"key-000003", 16)
    pair.upsert("key-000003", b'{"n":"rolled back"}')
    (folder / ".changes-000000000009.parquet.tmp").write_bytes(b"of a process that was killed")
    with open_stream(pair, start=Checkpoint.load(folder)) as stream:
        more = write(stream, pair, folder)
    assert not set(more) & set(files)
    pair.fail_over(vbucket, lose=1)
    pair.upsert("last", b"{}")
    with open_stream(pair, start=Checkpoint.load(folder)) as stream:
        write(stream, pair, folder)
    assert replay(folder) == truth_of(pair)
    assert not list(folder.glob(".*"))
    frame = pd.read_parquet(more[0], dtype_backend="pyarrow")
    assert set(frame["_change_type"]) <= {"upsert", "delete"}


def test_a_folder_keeps_the_type_of_its_keys(cluster: LocalCluster, tmp_path: Path) -> None:
    """Earlier versions of cbframe wrote bytes: whoever reads the folder finds one type."""
    cluster.upsert("a", b"1")
    with open_stream(cluster, keys="binary") as stream:
        write(stream, cluster, tmp_path)
    cluster.upsert(b"\xff", b"2")
    cluster.upsert("\\xff", b"3")
    with open_stream(cluster, start=Checkpoint.load(tmp_path)) as stream:
        write(stream, cluster, tmp_path)
    table = pq.read_table(tmp_path)
    assert table["_cb_key"].type == pa.binary()
    assert sorted(table["_cb_key"].to_pylist()) == [b"\\xff", b"a", b"\xff"]


@pytest.mark.parametrize(
    "rotate", [{"seconds": float("nan")}, {"bytes": float("nan")}, {"rows": "5"}, {"rows": True}]
)
def test_rotation_that_is_none(cluster: LocalCluster, tmp_path: Path, rotate: Any) -> None:
    with open_stream(cluster) as stream:
        with pytest.raises(ConfigurationError, match="rotate="):
            stream.to_parquet(tmp_path, rotate=rotate)
        with pytest.raises(ConfigurationError, match="seconds="):
            stream.to_parquet(tmp_path, seconds="5")  # type: ignore[arg-type]


def test_files_by_rows_and_bytes(cluster: LocalCluster, tmp_path: Path) -> None:
    fill(cluster, 3000, size=500)
    # Files are larger than the window: the rows of one that is being written hold nothing up.
    with (
        open_stream(cluster, batch_bytes=65536, buffer_bytes=200_000) as stream,
        close_when(stream, lambda: stream.stats.total.documents == 3000),
    ):
        files = stream.to_parquet(tmp_path, rotate={"rows": 1400, "seconds": 600})
    counts = [pq.read_metadata(path).num_rows for path in files]
    assert min(counts[:-1]) >= 1400
    assert sum(counts) == 3000


def test_a_folder_that_goes_on_elsewhere(cluster: LocalCluster, tmp_path: Path) -> None:
    fill(cluster, 10)
    with open_stream(cluster) as stream:
        write(stream, cluster, tmp_path)
    match = "does not begin where they end"
    with open_stream(cluster) as stream, pytest.raises(ConfigurationError, match=match) as caught:
        stream.to_parquet(tmp_path)
    assert "Checkpoint.load" in str(caught.value.hint)
    with open_stream(cluster) as stream:
        for rotate in ({"lines": 5}, {"rows": 0}):
            with pytest.raises(ConfigurationError, match="rotate="):
                stream.to_parquet(tmp_path / "new", rotate=rotate)
        assert stream.to_parquet(tmp_path / "new", seconds=0) == []
    pq.write_table(pa.table({"a": [1]}), tmp_path / "changes-999.parquet")
    with pytest.raises(ConfigurationError, match="no file of changes"):
        Checkpoint.load(tmp_path)


def test_what_has_come_is_kept_when_the_stream_fails(cluster: LocalCluster, tmp_path: Path) -> None:
    fill(cluster, 10)
    cluster.add_user("ann", "secret-word")
    with open_stream(cluster, auth=("ann", "secret-word")) as stream:

        def revoke(stop: threading.Event) -> None:
            while stream.stats.total.documents < 10 and not stop.wait(0.01):
                pass
            cluster.revoke("ann")

        with background(revoke), pytest.raises((AccessError, AuthFailError)):
            stream.to_parquet(tmp_path)
    assert replay(tmp_path) == truth_of(cluster)


def test_ctrl_c_keeps_what_has_come(
    cluster: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(cluster, 10)
    with open_stream(cluster) as stream:
        original = stream._next

        def poll(timeout: float | None) -> Any:
            if stream.stats.total.documents == 10 and (batch := original(0)) is not None:
                return batch
            if stream.stats.total.documents == 10:
                raise KeyboardInterrupt
            return original(timeout)

        monkeypatch.setattr(stream, "_next", poll)
        with pytest.raises(KeyboardInterrupt):
            stream.to_parquet(tmp_path)
    assert replay(tmp_path) == truth_of(cluster)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_leaves_no_part_of_a_file(
    cluster: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(cluster, 10)

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with open_stream(cluster) as stream:
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            stream.to_parquet(tmp_path, rotate={"rows": 1})
        assert not any(offset.seqno for offset in stream.checkpoint.offsets.values())
    assert not list(tmp_path.iterdir())
