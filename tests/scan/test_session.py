"""Some of the documents: a sample, by key, by number, a look."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import doors
import numpy as np
import pandas as pd
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
from cbframe.local.kv import KvConnection
from cbframe.scan import session
from cbframe.scan.session import _lowest, _ranks, sampled
from cbframe.scan.spec import ScanSpec
from cbframe.wire.messages import vbucket_of

from .kit import QUICK, fill, keys_of

DOCUMENTS = 5000


@pytest.fixture(scope="module")
def wide() -> Iterator[LocalCluster]:
    with LocalCluster(nodes=2, vbuckets=256, seed=1) as cluster:
        fill(cluster, DOCUMENTS)
        yield cluster


def sample(cluster: LocalCluster, n: int, seed: int = 0, **arguments: Any) -> pd.DataFrame:
    return scan_bucket(cluster, options=QUICK, timeout=30, **arguments).sample(n, seed=seed)


def test_it_is_of_a_few_vbuckets(wide: LocalCluster, asked: list[int]) -> None:
    frame = sample(wide, 10, seed=3)
    assert len(frame) == 10
    assert frame.index.is_unique
    assert list(frame.columns) == ["n", "text"]
    assert len(set(asked)) == len(asked) == 4
    about = frame.attrs["cbframe"]
    assert set(about["as_of"]) == set(asked)
    assert about["documents"] == 10
    assert {vbucket_of(key.encode(), 256) for key in frame.index} <= set(asked)
    for key, n in frame["n"].items():
        assert key == f"key-{n:06d}"


def test_the_seed_decides(wide: LocalCluster) -> None:
    first = sample(wide, 50, seed=1)
    pd.testing.assert_frame_equal(sample(wide, 50, seed=1), first)
    assert set(sample(wide, 50, seed=2).index) != set(first.index)
    # Fewer are the first of more, as long as these are of the same vbuckets; and not in the order of keys.
    assert list(sample(wide, 10, seed=1).index) == list(first.index[:10])
    assert list(first.index) != sorted(first.index)


@pytest.mark.parametrize("n", [1, 79, 200, 2000, DOCUMENTS - 1, DOCUMENTS, 2 * DOCUMENTS])
def test_as_many_as_are_wanted_and_there(wide: LocalCluster, asked: list[int], n: int) -> None:
    frame = sample(wide, n, seed=5)
    assert len(frame) == min(n, DOCUMENTS)
    assert frame.index.is_unique
    # What was read is not much more than what is given: about 20 documents are in a vbucket.
    assert len(frame.attrs["cbframe"]["as_of"]) <= max(8, 3 * n // 20)
    assert len(asked) <= 3 * max(8, 3 * n // 20)


def test_filters_have_it_read_on(wide: LocalCluster, asked: list[int]) -> None:
    """Also where no document so far has passed, or has the field at all."""
    wide.upsert("special", {"only_here": 1})
    try:
        frame = sample(wide, 30, filters=[("n", "<", 50)])
        assert len(frame) == 30
        assert frame["n"].max() < 50
        for arguments in ({"filters": [("only_here", "==", 1)]}, {"key_pattern": "special"}):
            assert list(sample(wide, 3, **arguments).index) == ["special"]
        assert set(asked) == set(range(256))
        assert "special" in sample(wide, 2 * DOCUMENTS, columns=["only_here"]).index
        with pytest.raises(ConfigurationError, match="'nowhere', which no document has"):
            sample(wide, 3, filters=[("nowhere", "==", 1)])
    finally:
        wide.delete("special")


def test_the_metadata_that_is_asked_for(wide: LocalCluster) -> None:
    assert list(sample(wide, 5, columns=["n"]).columns) == ["n"]
    frame = sample(wide, 5, columns=["n"], metadata=("key", "seqno"))
    assert list(frame.columns) == ["_cb_seqno", "n"]
    frame = sample(wide, 5, keys_only=True, metadata=("vbucket",), vbuckets=[7, 7, 9], dtype_backend=None)
    assert list(frame.columns) == ["_cb_vbucket"]
    assert set(frame["_cb_vbucket"]) <= {7, 9}
    assert sample(wide, 5, parse=False)["_cb_value"].map(len).min() > 0


def test_an_empty_bucket(cluster: LocalCluster) -> None:
    assert len(sample(cluster, 5)) == 0


@pytest.mark.parametrize("wrong", [{"n": 0}, {"n": 1.5}, {"n": 1, "seed": -1}, {"n": 1, "seed": "x"}])
def test_what_is_invalid(cluster: LocalCluster, wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        scan_bucket(cluster).sample(**wrong)
    with pytest.raises(ConfigurationError, match="n_rows"):
        scan_bucket(cluster, n_rows=5).sample(5)


def test_batches_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does how often what is kept is sorted, or the order in which vbuckets arrive."""
    rng = np.random.default_rng(1)
    rows = pa.table(
        {
            "_cb_vbucket": pa.array(np.repeat(np.arange(4, dtype=np.uint16), 250)),
            "_cb_seqno": pa.array(np.tile(np.arange(1, 251, dtype=np.uint64), 4)),
            "x": pa.array(range(1000)),
        }
    )
    found = []
    for spare, size in ((1 << 16, 1000), (1 << 16, 7), (10, 7), (0, 1)):
        monkeypatch.setattr(session, "_SPARE", spare)
        shuffled = rows.take(pa.array(rng.permutation(1000)))
        reader = pa.RecordBatchReader.from_batches(rows.schema, shuffled.to_batches(max_chunksize=size))
        table, came = _lowest(reader, 100, seed=9)
        assert came == 1000
        found.append(table["x"].to_pylist())
    assert found.count(found[0]) == len(found)
    assert len(set(found[0])) == 100


def test_every_row_and_every_vbucket_has_the_same_chance() -> None:
    """Chi-squared of 2000 seeds: its mean is 99, its standard deviation 14."""
    vbuckets = np.repeat(np.arange(10, dtype=np.uint16), 10)
    seqnos = np.tile(np.arange(1, 11, dtype=np.uint64), 10)
    rows, first = np.zeros(100), np.zeros(10)
    for seed in range(2000):
        rows[np.argsort(_ranks(seed, vbuckets, seqnos))[:10]] += 1
        first[np.argsort(_ranks(seed, np.arange(10), np.zeros(10, np.uint64)))[0]] += 1
    assert ((rows - 200) ** 2 / 200).sum() < 160
    assert ((first - 200) ** 2 / 200).sum() < 30
    # What is a sample today is one tomorrow, with any version of numpy.
    assert _ranks(7, np.array([3]), np.array([5], np.uint64)).tolist() == [17746397239880631399]


def test_means_have_no_bias(wide: LocalCluster) -> None:
    """Of 10 samples of 100: the standard error of their mean is about 46."""
    spec = ScanSpec.of(wide, options=QUICK, columns=["n"], progress=None)
    means = [np.mean(sampled(spec, 100, seed).table["n"].to_numpy()) for seed in range(10)]
    assert abs(np.mean(means) - (DOCUMENTS - 1) / 2) < 140


# --- Some of the documents: by key, by number, a look.


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalCluster]:
    with LocalCluster(nodes=2, vbuckets=256, seed=1) as cluster:
        monkeypatch.setenv("CB_USER", cluster.username)
        monkeypatch.setenv("CB_PASSWORD", cluster.password)
        fill(cluster, 5000)
        yield cluster


@pytest.mark.parametrize("prefix", ["key-0001", b"key-0001"])
@pytest.mark.parametrize("parse", [True, False])
def test_by_the_beginning_of_the_key(fresh: LocalCluster, prefix: str | bytes, parse: bool) -> None:
    fresh.upsert("other", {"odd": 1})
    for n in range(100, 110):
        fresh.delete(f"key-{n:06d}")
    table = scan_bucket(fresh, key_prefix=prefix, parse=parse, options=QUICK, timeout=30).to_arrow()
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
def test_by_a_pattern_of_the_key(
    fresh: LocalCluster, tmp_path: Path, pattern: KeyPattern, door: Door
) -> None:
    fresh.upsert("other-000150", {"odd": 1})
    fresh.delete("key-000150")
    how: dict[str, Any] = {"options": QUICK, "timeout": 30, "auth": EnvironmentAuth("CB_USER", "CB_PASSWORD")}
    found = door(fresh, tmp_path, key_pattern=pattern, **how)
    assert sorted(found) == [f"key-{n:06d}" for n in range(100, 200) if n != 150]


def test_a_pattern_is_looked_for_before_anything_is_parsed(fresh: LocalCluster) -> None:
    """What does not match has no part in columns, types or conflicts."""
    fresh.upsert("other", {"n": "text", "odd": 1})
    result = scan_bucket(fresh, key_pattern="key-00000?", key_prefix="key", options=QUICK, timeout=30).read()
    assert sorted(result.table["n"].to_pylist()) == list(range(10))
    assert (result.table["n"].type, result.conflicts) == (pa.int64(), ())
    assert "odd" not in result.table.column_names
    assert len(read_schema(fresh, key_pattern="other", options=QUICK).fields) == 2
    seen = scan_bucket(fresh, key_pattern="other", keys_only=True, options=QUICK).to_arrow()
    assert keys_of(seen) == [b"other"]


@pytest.mark.parametrize("door", [doors.stream, doors.snapshot, doors.delta])
def test_what_goes_on_takes_a_glob_and_holds_to_it(fresh: LocalCluster, tmp_path: Path, door: Door) -> None:
    expected = [f"key-{n:06d}" for n in range(100, 200)]
    assert sorted(door(fresh, tmp_path, key_pattern="key-0001*", options=QUICK)) == expected
    with pytest.raises(ConfigurationError):
        door(fresh, tmp_path, key_pattern=re.compile("x"), options=QUICK)


def test_a_snapshot_and_a_checkpoint_hold_to_their_pattern(fresh: LocalCluster, tmp_path: Path) -> None:
    write_snapshot(fresh, tmp_path / "s", key_pattern="key-00001?", options=QUICK)
    fresh.upsert("key-000010", {"n": -1})
    fresh.upsert("key-000020", {"n": -1})
    assert write_snapshot(fresh, tmp_path / "s", options=QUICK).upserted == 1
    with pytest.raises(ConfigurationError, match="was made with another key_pattern") as caught:
        write_snapshot(fresh, tmp_path / "s", key_pattern="key-00002?", options=QUICK)
    assert "key-0000" not in str(caught.value)
    with stream_bucket(fresh, key_pattern="key-00001?", options=QUICK) as stream:
        assert len(stream.to_pandas()) == 10
        start = Checkpoint.from_json(stream.checkpoint.to_json())
    assert start == stream.checkpoint
    assert start.key_pattern == "key-00001?"
    assert "key-0000" not in repr(start)
    with pytest.raises(ConfigurationError, match="a stream with another key_pattern"):
        stream_bucket(fresh, start=start, options=QUICK)
    fresh.upsert("key-000011", {"n": -2})
    fresh.upsert("key-000021", {"n": -2})
    with stream_bucket(fresh, key_pattern="key-00001?", start=start, options=QUICK) as stream:
        assert list(stream.to_pandas().index) == ["key-000011"]


def test_by_the_beginning_of_the_key_there_is_nothing(fresh: LocalCluster) -> None:
    assert len(read_bucket(fresh, key_prefix="none", options=QUICK, timeout=30)) == 0


@pytest.mark.parametrize("n", [1, 3, 100, 3000, 5000, 9000])
def test_at_most_so_many(fresh: LocalCluster, asked: list[int], n: int) -> None:
    scan = scan_bucket(fresh, n_rows=n, options=QUICK, timeout=30)
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


def test_a_look(fresh: LocalCluster, asked: list[int]) -> None:
    scan = scan_bucket(fresh, options=QUICK, timeout=30)
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


def test_of_some_vbuckets(fresh: LocalCluster, asked: list[int]) -> None:
    table = scan_bucket(fresh, vbuckets=[7, 9, 11], n_rows=30, metadata="vbucket", options=QUICK).to_arrow()
    assert len(table) == 30
    assert asked == [7, 9, 11]
    assert set(table["_cb_vbucket"].to_pylist()) <= {7, 9, 11}


def test_documents_that_were_deleted_are_not_looked_at(cluster: LocalCluster) -> None:
    for n in range(200):
        cluster.upsert(f"k{n}", {"n": n})
        cluster.delete(f"k{n}")
    cluster.upsert("left", {"n": 1})
    assert list(scan_bucket(cluster, options=QUICK, timeout=30).peek().index) == ["left"]
