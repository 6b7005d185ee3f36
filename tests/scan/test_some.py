"""Some of the documents: by key, by number, a look."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import doors
import pyarrow as pa
import pytest
from contrib.delta.conftest import _runtime  # noqa: F401 - a fixture that is used by itself
from doors import Door

from cbframe import (
    Checkpoint,
    ConfigurationError,
    EnvironmentAuth,
    LocalCluster,
    read_bucket,
    read_schema,
    scan_bucket,
    stream_bucket,
    write_snapshot,
)
from cbframe.arrow.current_rows import KeyPattern
from cbframe.arrow.receivers import DeferringBatchReceiver
from cbframe.local.dcp import Producer
from cbframe.local.kv import KvConnection
from cbframe.wire.framing import Frame
from cbframe.wire.messages import StreamRequest

from .kit import QUICK, fill, keys_of


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalCluster]:
    with LocalCluster(nodes=2, vbuckets=256, seed=1) as cluster:
        monkeypatch.setenv("CB_USER", cluster.username)
        monkeypatch.setenv("CB_PASSWORD", cluster.password)
        fill(cluster, 5000)
        yield cluster


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Vbuckets whose streams were asked for."""
    found: list[int] = []
    stream_request = Producer.stream_request

    def spy(self: Producer, frame: Frame, message: StreamRequest) -> None:
        found.append(message.vbucket)
        stream_request(self, frame, message)

    monkeypatch.setattr(Producer, "stream_request", spy)
    return found


@pytest.mark.parametrize("prefix", ["key-0001", b"key-0001"])
@pytest.mark.parametrize("parse", [True, False])
def test_by_the_beginning_of_the_key(wide: LocalCluster, prefix: str | bytes, parse: bool) -> None:
    wide.upsert("other", {"odd": 1})
    for n in range(100, 110):
        wide.delete(f"key-{n:06d}")
    table = scan_bucket(wide, key_prefix=prefix, parse=parse, options=QUICK, timeout=30).to_arrow()
    assert sorted(keys_of(table)) == [b"key-%06d" % n for n in range(110, 200)]
    if parse:
        assert sorted(table["n"].to_pylist()) == list(range(110, 200))
        assert "odd" not in table.column_names


PATTERNS: list[KeyPattern] = [
    "key-0001*",
    "key-??01??",
    re.compile(r"^key-0001\d\d$"),
    re.compile(rb"y-0001..$"),
]


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("door", [doors.read, doors.batches, doors.partitions])
def test_by_a_pattern_of_the_key(wide: LocalCluster, tmp_path: Path, pattern: KeyPattern, door: Door) -> None:
    wide.upsert("other-000150", {"odd": 1})
    wide.delete("key-000150")
    how: dict[str, Any] = {"options": QUICK, "timeout": 30, "auth": EnvironmentAuth("CB_USER", "CB_PASSWORD")}
    found = door(wide, tmp_path, key_pattern=pattern, **how)
    assert sorted(found) == [f"key-{n:06d}" for n in range(100, 200) if n != 150]


def test_a_pattern_is_looked_for_before_anything_is_parsed(wide: LocalCluster) -> None:
    """What does not match has no part in columns, types or conflicts."""
    wide.upsert("other", {"n": "text", "odd": 1})
    result = scan_bucket(wide, key_pattern="key-00000?", key_prefix="key", options=QUICK, timeout=30).read()
    assert sorted(result.table["n"].to_pylist()) == list(range(10))
    assert (result.table["n"].type, result.conflicts) == (pa.int64(), ())
    assert "odd" not in result.table.column_names
    assert len(read_schema(wide, key_pattern="other", options=QUICK).fields) == 2
    seen = scan_bucket(wide, key_pattern="other", keys_only=True, options=QUICK).to_arrow()
    assert keys_of(seen) == [b"other"]


@pytest.mark.parametrize("door", [doors.stream, doors.snapshot, doors.delta])
def test_what_goes_on_takes_a_glob_and_holds_to_it(wide: LocalCluster, tmp_path: Path, door: Door) -> None:
    expected = [f"key-{n:06d}" for n in range(100, 200)]
    assert sorted(door(wide, tmp_path, key_pattern="key-0001*", options=QUICK)) == expected
    with pytest.raises(ConfigurationError):
        door(wide, tmp_path, key_pattern=re.compile("x"), options=QUICK)


def test_a_snapshot_and_a_checkpoint_hold_to_their_pattern(wide: LocalCluster, tmp_path: Path) -> None:
    write_snapshot(wide, tmp_path / "s", key_pattern="key-00001?", options=QUICK)
    wide.upsert("key-000010", {"n": -1})
    wide.upsert("key-000020", {"n": -1})
    assert write_snapshot(wide, tmp_path / "s", options=QUICK).upserted == 1
    with pytest.raises(ConfigurationError, match="was made with another key_pattern") as caught:
        write_snapshot(wide, tmp_path / "s", key_pattern="key-00002?", options=QUICK)
    assert "key-0000" not in str(caught.value)
    with stream_bucket(wide, key_pattern="key-00001?", options=QUICK) as stream:
        assert len(stream.to_pandas()) == 10
        start = Checkpoint.from_json(stream.checkpoint.to_json())
    assert start == stream.checkpoint
    assert start.key_pattern == "key-00001?"
    assert "key-0000" not in repr(start)
    with pytest.raises(ConfigurationError, match="a stream with another key_pattern"):
        stream_bucket(wide, start=start, options=QUICK)
    wide.upsert("key-000011", {"n": -2})
    wide.upsert("key-000021", {"n": -2})
    with stream_bucket(wide, key_pattern="key-00001?", start=start, options=QUICK) as stream:
        assert list(stream.to_pandas().index) == ["key-000011"]


def test_by_the_beginning_of_the_key_there_is_nothing(wide: LocalCluster) -> None:
    assert len(read_bucket(wide, key_prefix="none", options=QUICK, timeout=30)) == 0


@pytest.mark.parametrize("n", [1, 3, 100, 3000, 5000, 9000])
def test_at_most_so_many(wide: LocalCluster, asked: list[int], n: int) -> None:
    scan = scan_bucket(wide, n_rows=n, options=QUICK, timeout=30)
    table = scan.to_arrow()
    assert len(table) == min(n, 5000)
    assert len(set(keys_of(table))) == len(table)
    assert dict(scan.as_of or {}) == {}
    assert len(asked) == len(set(asked)) <= 256
    if n <= 3:
        assert asked == [0]
    if n == 100:
        assert len(asked) <= 9


@pytest.mark.parametrize("n", [1, 20, 99, 100, 200])
@pytest.mark.parametrize("streamed", [False, True])
def test_what_is_left_out_is_not_counted(asked: list[int], n: int, streamed: bool) -> None:
    """Most values are no objects: it goes on until there are as many rows, or no more documents."""
    with LocalCluster(nodes=1, vbuckets=16, seed=1) as cluster:
        cluster.bulk_load((b"binary-%d" % number, b"\xff") for number in range(2000))
        fill(cluster, 100)
        scan = scan_bucket(cluster, n_rows=n, errors="drop", options=QUICK, timeout=30)
        table = scan.to_reader().read_all() if streamed else scan.to_arrow()
        assert len(set(keys_of(table))) == len(table) == min(n, 100)
        if n == 1:
            assert len(set(asked)) < 16


def test_a_look(wide: LocalCluster, asked: list[int]) -> None:
    scan = scan_bucket(wide, options=QUICK, timeout=30)
    frame = scan.peek()
    assert len(frame) == 5
    assert set(frame.columns) == {"n", "text"}
    assert asked == [0]
    assert scan.last is None
    assert len(scan.peek(2)) == 2
    assert len(scan.to_arrow()) == 5000


def test_a_look_ends_before_its_vbuckets_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """A single vbucket, with far more than is wanted, and a node that sends as much as is consumed."""
    received = []
    on_block = DeferringBatchReceiver.take_block

    def spy(self: DeferringBatchReceiver, block: object, receipt: object) -> None:
        received.append(len(block))  # type: ignore[arg-type]
        on_block(self, block, receipt)  # type: ignore[arg-type]

    monkeypatch.setattr(DeferringBatchReceiver, "take_block", spy)
    sent: list[int] = []
    count = KvConnection.sent
    monkeypatch.setattr(KvConnection, "sent", lambda self, n: (sent.append(n), count(self, n)))
    with LocalCluster(vbuckets=1, seed=1) as cluster:
        fill(cluster, 50_000, 300)
        frame = scan_bucket(cluster, options=QUICK, buffer_bytes=100_000, timeout=30).peek(10)
    assert len(frame) == 10
    assert sum(received) < 50_000
    assert sum(sent) < 50_000 * 300 / 2


def test_of_some_vbuckets(wide: LocalCluster, asked: list[int]) -> None:
    table = scan_bucket(wide, vbuckets=[7, 9, 11], n_rows=30, metadata="vbucket", options=QUICK).to_arrow()
    assert len(table) == 30
    assert asked == [7, 9, 11]
    assert set(table["_cb_vbucket"].to_pylist()) <= {7, 9, 11}


def test_documents_that_were_deleted_are_not_looked_at(cluster: LocalCluster) -> None:
    for n in range(200):
        cluster.upsert(f"k{n}", {"n": n})
        cluster.delete(f"k{n}")
    cluster.upsert("left", {"n": 1})
    assert list(scan_bucket(cluster, options=QUICK, timeout=30).peek().index) == ["left"]


@pytest.mark.parametrize("n", [0, -1])
def test_no_rows_cannot_be_meant(cluster: LocalCluster, n: int) -> None:
    with pytest.raises(ConfigurationError, match="n_rows"):
        scan_bucket(cluster, n_rows=n)
