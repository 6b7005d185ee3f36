"""A random sample: the same for the same seed, of few vbuckets, and without bias where none is promised."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from cbframe import ConfigurationError, LocalCluster, scan_bucket
from cbframe.local.dcp import Producer
from cbframe.scan import session
from cbframe.scan.session import _lowest, _ranks, sampled
from cbframe.scan.spec import ScanSpec
from cbframe.wire.framing import Frame
from cbframe.wire.messages import StreamRequest, vbucket_of

from .kit import QUICK, fill

DOCUMENTS = 5000


@pytest.fixture(scope="module")
def wide() -> Iterator[LocalCluster]:
    with LocalCluster(nodes=2, vbuckets=256, seed=1) as cluster:
        fill(cluster, DOCUMENTS)
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
