"""Prometheus' text format, as its documentation has it."""

from __future__ import annotations

import re

import pytest

from cbframe.testing import FakeClock
from cbframe.ui.model import StatsModel

from .doubles import Source

_LABEL = r'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\\\|\\n|\\")*"'
SAMPLE = re.compile(rf"([a-zA-Z_:][a-zA-Z0-9_:]*)\{{({_LABEL}(?:,{_LABEL})*)\}} (-?\d+(?:\.\d+)?(?:e-?\d+)?)")


def parse(text: str) -> dict[str, dict[str, float]]:
    """Values by metric and labels, after a check of every line and of their order."""
    assert text.endswith("\n")
    found: dict[str, dict[str, float]] = {}
    lines = iter(text.splitlines())
    name, kind = "", ""
    for line in lines:
        if line.startswith("# HELP "):
            name, about = line.removeprefix("# HELP ").split(" ", 1)
            assert about
            kind = next(lines).removeprefix(f"# TYPE {name} ")
            assert kind in {"counter", "gauge"}
            assert name.endswith("_total") is (kind == "counter")
            assert name not in found, "all samples of a metric stand together"
            found[name] = {}
            continue
        match = SAMPLE.fullmatch(line)
        assert match, line
        assert match[1] == name
        assert match[2] not in found[name]
        found[name][match[2]] = float(match[3])
    return found


def test_every_line_is_valid() -> None:
    clock = FakeClock()
    source = Source(clock, bounded=True)
    source.receive(12, 3456)
    source.held["n1:11210"] = 99
    model = StatsModel(source, clock=clock)
    model.sample()
    found = parse(model.to_prometheus())
    assert found["cbframe_documents_total"]['bucket="travel",node="n0:11210",kind="mutation"'] == 12
    assert found["cbframe_received_bytes_total"]['bucket="travel",node="n0:11210"'] == 3456
    assert found["cbframe_window_held_bytes"]['bucket="travel",node="n1:11210"'] == 99
    assert found["cbframe_vbuckets"]['bucket="travel",phase="running"'] == 8
    assert found["cbframe_lag_seqnos"]['bucket="travel"'] == 800
    assert found["cbframe_progress_ratio"]['bucket="travel"'] == 0
    assert found["cbframe_running"]['bucket="travel"'] == 1
    assert found["cbframe_events_total"]['bucket="travel",event="tot_kick"'] == 3


def test_what_is_not_known_is_left_out() -> None:
    clock = FakeClock()
    source = Source(clock)
    model = StatsModel(source, clock=clock)
    source.state = "closed"
    model.sample()
    found = parse(model.to_prometheus())
    assert "cbframe_lag_seqnos" not in found
    assert "cbframe_progress_ratio" not in found
    assert found["cbframe_running"]['bucket="travel"'] == 0


@pytest.mark.parametrize("name", ['quo"ted', "back\\slash", "two\nlines", "söme bücket 😀", "a,b}"])
def test_names_are_escaped(name: str) -> None:
    clock = FakeClock()
    source = Source(clock)
    source.bucket = name
    model = StatsModel(source, clock=clock)
    model.sample()
    parse(model.to_prometheus())


def test_nothing_runs_yet() -> None:
    class Idle:
        source = None

    found = parse(StatsModel(Idle()).to_prometheus())
    assert found["cbframe_running"]['bucket=""'] == 1
