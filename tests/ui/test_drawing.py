"""The message for the browser: small, and exact where it matters; HTML by itself, and text."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from cbframe.dcp.stats import VBucketPhase
from cbframe.testing import FakeClock
from cbframe.ui.drawing import (
    CELLS,
    MOVED,
    NOBODY,
    NODES,
    UNKNOWN_LAG,
    _short,
    as_html,
    as_text,
    duration,
    grid_cells,
    pack,
)
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


def test_a_source_that_was_not_started_has_no_time() -> None:
    clock = FakeClock()
    source = Source(clock)
    source.state = "new"
    model = StatsModel(source, clock=clock)
    for _ in every(1, clock, 3):
        model.sample()
    assert as_text(model).splitlines()[0] == "travel: not started"
    clock.advance(5)
    source.state = "complete"
    model.sample()
    assert as_text(model).splitlines()[0] == "travel: complete after 0:05"


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


@pytest.fixture
def model() -> StatsModel:
    clock = FakeClock()
    source = Source(clock, vbuckets=1024)
    model = StatsModel(source, clock=clock)
    model.sample()
    for _ in every(1, clock, 60):
        source.receive(1500, 2_000_000)
        model.sample()
    source.phase[300:302], source.owner[300:302] = VBucketPhase.OWNERLESS, -1
    source.high[:] = 4
    source.trouble("the node <closed> the connection", "is it & was it there?", "n1:11210")
    model.sample()
    return model


def test_text(model: StatsModel) -> None:
    assert as_text(model) == (
        "travel: running for 1:00\n"
        "  90,000 documents  1,500 documents/s  2.0 MB/s  4,096 behind\n"
        "  n0:11210  510 of 510 vbuckets streaming  90,000 documents  120.0 MB\n"
        "  n1:11210  512 of 512 vbuckets streaming  0 documents  0.0 MB\n"
        "  1:00 the node <closed> the connection [n1:11210]\n"
        "    hint: is it & was it there?"
    )


def test_html_is_well_formed_and_needs_nothing(model: StatsModel) -> None:
    html = as_html(model)
    root = ET.fromstring(html.replace("<br>", "<br/>"))
    shown = "".join(root.itertext())
    for text in (
        "travel",
        "running for 1:00",
        "90,000",
        "the node <closed> the connection",
        "is it & was it",
    ):
        assert text in shown
    assert not {element.tag for element in root.iter()} & {"script", "style", "link", "img"}
    assert "http" not in html
    assert "url(" not in html
    assert len(html) < 15_000


def test_the_grid_has_a_line_for_each_run_of_a_colour(model: StatsModel) -> None:
    root = ET.fromstring(as_html(model).replace("<br>", "<br/>"))
    paths = {path.get("stroke"): path.get("d", "") for path in root.iter("path")}
    assert len(paths) == 2
    runs = [each for d in paths.values() for each in d.split("M")[1:]]
    assert len(runs) == 18  # a row each, and one row cut in three
    assert sum((int(run.split("h")[1]) + 1) // 7 for run in runs) == 1024


@pytest.mark.parametrize("vbuckets", [1, 8, 64, 1024, 4096])
def test_any_number_of_vbuckets(vbuckets: int) -> None:
    clock = FakeClock()
    model = StatsModel(Source(clock, vbuckets=vbuckets, bounded=True), clock=clock)
    model.sample()
    ET.fromstring(as_html(model).replace("<br>", "<br/>"))
    assert "0 % received" in as_text(model)


def test_many_nodes_are_counted() -> None:
    clock = FakeClock()
    model = StatsModel(Source(clock, vbuckets=64, nodes=40), clock=clock)
    model.sample()
    assert as_text(model).splitlines()[-1] == "  and 28 more nodes"
    assert "and 28 more nodes" in as_html(model)


def test_of_nothing_there_is_text_and_html() -> None:
    class Idle:
        source = None

    assert as_text(StatsModel(Idle())).splitlines()[0] == "no bucket yet: waiting"
    assert "no bucket yet" in as_html(StatsModel(Idle()))


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (7.4, "0:07"), (59.6, "1:00"), (187, "3:07"), (7509, "2:05:09")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
