"""What goes to the browser: small, and exact where it matters."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cbframe.dcp.records import VBucketPhase
from cbframe.testing import FakeClock
from cbframe.ui.drawing import CELLS, MOVED, NOBODY, NODES, UNKNOWN_LAG, _short, grid_cells, pack
from cbframe.ui.model import StatsModel

from .doubles import Source, every

LIMIT = 10_000 - 1000
"""Around what we send, Jupyter's messages have less than 1000 bytes."""


def packed_size(packed: dict[str, object]) -> int:
    """Bytes on the wire: of the JSON, and of the buffers behind it."""
    buffers = [value for value in packed.values() if isinstance(value, bytes)]
    rest = {name: value for name, value in packed.items() if not isinstance(value, bytes)}
    return len(json.dumps(rest, ensure_ascii=False, allow_nan=False).encode()) + sum(map(len, buffers))


def worst_case(vbuckets: int = 1024, nodes: int = 300) -> StatsModel:
    """Many of everything, long names, large numbers, all of it changing."""
    clock = FakeClock()
    source = Source(clock, vbuckets=vbuckets, nodes=nodes, bounded=True)
    names = [
        f"a-node-with-a-long-name-{number:05d}.a-region.cloud.example.com:11210" for number in range(nodes)
    ]
    source.nodes = dict(zip(names, source.nodes.values(), strict=True))
    source.held = dict.fromkeys(names, 777)
    source.bucket = "b" * 100
    source.high[:] = 1 << 50
    rng = np.random.default_rng(1)
    model = StatsModel(source, clock=clock)
    for _ in every(20, clock, 7):
        for node in range(0, nodes, 7):
            source.receive(int(rng.integers(1 << 35)), int(rng.integers(1 << 45)), node)
        source.seqno = rng.integers(1 << 45, size=vbuckets)
        model.sample()
    for number in range(20):
        source.trouble("ä" * 900 + str(number), 'try "something" else ' * 100, names[0])
    source.vbuuid += np.uint64(1)
    model.sample()
    return model


def test_a_message_is_small_however_much_there_is() -> None:
    assert packed_size(pack(worst_case())) < LIMIT
    assert packed_size(pack(worst_case(vbuckets=65_536, nodes=2000))) < LIMIT


def test_an_ordinary_one_is_smaller() -> None:
    clock = FakeClock()
    model = StatsModel(Source(clock, vbuckets=1024, nodes=3), clock=clock)
    model.sample()
    assert packed_size(pack(model)) < 7000


def test_what_does_not_fit_is_counted() -> None:
    packed = pack(worst_case())
    assert (len(packed["nodes"]["rows"]), packed["nodes"]["more"]) == (NODES, 300 - NODES)
    assert (len(packed["problems"]["rows"]), packed["problems"]["more"]) == (3, 17)
    newest = packed["problems"]["rows"][0]
    assert newest[2].endswith("…")


@pytest.mark.parametrize("lag", [0, 1, 9, 2047, 2048, 99_999, 1 << 31, (1 << 41) - 1, 1 << 62])
def test_lag_in_16_bits(lag: int) -> None:
    code = int(_short(np.array([lag]))[0])
    value = (code & 2047) << (code >> 11)
    assert value <= lag
    if lag < 1 << 41:
        assert lag - value <= lag / 1024
    if lag < 2048:
        assert value == lag


def test_unknown_lag() -> None:
    assert _short(np.array([-1, (1 << 63) - 1])).tolist()[0] == UNKNOWN_LAG
    assert _short(np.array([(1 << 63) - 1]))[0] != UNKNOWN_LAG


def test_cells() -> None:
    clock = FakeClock()
    source = Source(clock, vbuckets=8)
    source.phase[:7] = list(VBucketPhase)
    source.owner[2] = -1
    model = StatsModel(source, clock=clock)
    model.sample()
    source.vbuuid[4] = 77
    model.sample()
    packed = pack(model)
    assert list(packed["cells"]) == [0, 1, 2, 3, 4 | MOVED, 5, 6, 4]
    assert packed["owners"][2] == NOBODY
    assert len(packed["lags"]) == 16


@pytest.mark.parametrize("vbuckets", [1, 16, 64, 128, 1024])
def test_each_vbucket_has_a_cell(vbuckets: int) -> None:
    clock = FakeClock()
    model = StatsModel(Source(clock, vbuckets=vbuckets), clock=clock)
    model.sample()
    assert len(pack(model)["cells"]) == vbuckets


@pytest.mark.parametrize("vbuckets", [2048, 4096, 65_536])
def test_beyond_that_a_cell_shows_the_worst_of_several(vbuckets: int) -> None:
    clock = FakeClock()
    source = Source(clock, vbuckets=vbuckets)
    source.high[:] = 5
    share = vbuckets // CELLS
    source.high[3 * share] = 700
    source.phase[share] = VBucketPhase.OWNERLESS
    source.phase[2 * share : 3 * share] = VBucketPhase.DONE
    source.phase[2 * share] = VBucketPhase.RUNNING
    model = StatsModel(source, clock=clock)
    model.sample()
    cells, lag = grid_cells(model)
    assert len(cells) == len(lag) == CELLS
    assert cells[:5].tolist() == [4, 2, 4, 4, 4]
    assert lag[:5].tolist() == [5, 5, 5, 700, 5]


def test_what_has_just_begun_fills_the_chart() -> None:
    clock = FakeClock()
    source = Source(clock)
    model = StatsModel(source, clock=clock)
    spans = []
    for _ in every(1, clock, 200):
        model.sample()
        packed = pack(model)
        spans.append(packed["head"]["span"])
        assert len(packed["spark"]) % 4 == 0
    assert sorted(set(spans)) == [5, 15, 30, 60, 120]
    assert spans == sorted(spans)


def test_nothing_runs_yet() -> None:
    class Idle:
        source = None

    packed = pack(StatsModel(Idle()))
    assert packed["head"]["state"] == "waiting"
    assert packed["cells"] == b""
    json.dumps(packed["head"], allow_nan=False)
