"""What is seen without a widget: HTML by itself, and text."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from cbframe.dcp.records import VBucketPhase
from cbframe.testing import FakeClock
from cbframe.ui.drawing import as_html, as_text, duration
from cbframe.ui.model import StatsModel

from .doubles import Source, every


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


def test_nothing_runs_yet() -> None:
    class Idle:
        source = None

    assert as_text(StatsModel(Idle())).splitlines()[0] == "no bucket yet: waiting"
    assert "no bucket yet" in as_html(StatsModel(Idle()))


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (7.4, "0:07"), (59.6, "1:00"), (187, "3:07"), (7509, "2:05:09")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
