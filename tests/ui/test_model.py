"""Rates, lag and time to go, from sources that do as they are told, by a clock that does, too."""

from __future__ import annotations

import re
import sys
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from cbframe.dcp.stats import VBucketPhase
from cbframe.dcp.streams import VBucketState
from cbframe.errors import ConfigurationError
from cbframe.testing import FakeClock
from cbframe.ui.drawing import as_text
from cbframe.ui.model import StatsModel
from cbframe.wire.messages import FailoverEntry

from .doubles import Plain, Source, Stream, every


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def watched(clock: FakeClock, **fields: Any) -> tuple[Source, StatsModel]:
    source = Source(clock, **fields)
    return source, StatsModel(source, clock=clock)


def test_rates_are_those_of_the_last_two_seconds(clock: FakeClock) -> None:
    source, model = watched(clock)
    model.sample()
    assert model.rates() == (0.0, 0.0)
    for _ in every(0.25, clock, 40):
        source.receive(1000, 1_000_000)
        model.sample()
    for _ in every(0.25, clock, 12):
        source.receive(25, 5000)
        source.receive(25, 5000, node=1)
        model.sample()
    assert model.rates() == (pytest.approx(200), pytest.approx(40_000))
    assert [row.documents_per_second for row in model.nodes()] == [pytest.approx(100)] * 2
    assert model.latest.documents == 40_600
    assert model.elapsed == pytest.approx(13)


def test_how_often_it_is_looked_does_not_change_the_rates(clock: FakeClock) -> None:
    source, model = watched(clock)
    model.sample()
    for _ in every(0.001, clock, 5000):
        source.receive(1)
        model.sample()
    assert model.rates()[0] == pytest.approx(1000)
    assert len(model._recent) < 12


def test_memory_is_constant(clock: FakeClock) -> None:
    source, model = watched(clock, vbuckets=1024)
    for _ in every(0.25, clock, 600):
        source.receive(10)
        model.sample()
    size, recent = model._history.nbytes, len(model._recent)
    for _ in every(0.25, clock, 2000):
        source.receive(10)
        model.sample()
    assert (model._history.nbytes, len(model._recent)) == (size, recent)
    history = model.history()
    assert len(history) == 481
    assert history["at"][-1] - history["at"][0] == pytest.approx(120)
    assert (np.diff(history["documents"]) == 10).all()
    assert sys.getsizeof(model._history) < 50_000


def test_lag_of_a_bounded_read(clock: FakeClock) -> None:
    source = Source(clock, bounded=True)
    source.phase[:] = VBucketPhase.WAITING
    source.seqno[:] = -1
    model = StatsModel(source, clock=clock)
    model.sample()
    assert model.latest.total_lag == 800
    source.phase[:4], source.seqno[:4] = VBucketPhase.RUNNING, [0, 40, 100, 130]
    source.phase[4], source.seqno[4] = VBucketPhase.DONE, 131
    model.sample()
    assert model.latest.lag.tolist() == [100, 60, 0, 0, 0, 100, 100, 100]
    assert model.phases() == {
        "waiting": 3, "ownerless": 0, "requested": 0, "running": 4, "closing": 0, "done": 1,
    }  # fmt: skip
    assert model.latest.share == pytest.approx((0 + 40 + 100 + 100 + 100 - 3) / 800)
    with pytest.raises(ValueError, match="read-only"):
        model.latest.lag[0] = 1


def test_lag_without_an_end_is_asked_for(clock: FakeClock) -> None:
    source, model = watched(clock)
    model.sample()
    assert (model.latest.total_lag, source.asked) == (None, 1)
    source.high[:] = 50
    source.seqno[:] = 20
    for _ in every(0.25, clock, 16):
        model.sample()
    assert (model.latest.total_lag, source.asked) == (240, 3)
    source.state = "closed"
    for _ in every(0.25, clock, 16):
        model.sample()
    assert source.asked == 3
    bounded = Source(clock, bounded=True)
    StatsModel(bounded, clock=clock).sample()
    assert bounded.asked == 0


def test_a_vbucket_without_a_stream_stays_where_it_was(clock: FakeClock) -> None:
    source = Source(clock)
    source.seqno[:], source.high[:] = 70, 90
    model = StatsModel(source, clock=clock)
    model.sample()
    source.phase[2], source.seqno[2], source.high[2], source.vbuuid[2] = VBucketPhase.WAITING, -1, -1, 0
    model.sample()
    row = model.per_vbucket().loc[2]
    assert (row["phase"], row["seqno"], row["high"], row["lag"]) == ("waiting", 70, 90, 20)
    assert row["vbuuid"] == "0000000000000003"


def test_vbuckets_that_moved_are_told_for_a_while(clock: FakeClock) -> None:
    source, model = watched(clock)
    model.sample()
    assert not model.latest.reopened().any()
    clock.advance(1)
    source.owner[0] = 1  # another node
    source.vbuuid[5] = 99  # another history
    source.owner[6], source.phase[6] = -1, VBucketPhase.OWNERLESS  # has not arrived anywhere
    model.sample()
    assert np.flatnonzero(model.latest.reopened()).tolist() == [0, 5]
    clock.advance(1)
    source.owner[6], source.phase[6] = 0, VBucketPhase.RUNNING
    model.sample()
    assert np.flatnonzero(model.latest.reopened()).tolist() == [0, 5, 6]
    clock.advance(14.5)
    model.sample()
    assert np.flatnonzero(model.latest.reopened()).tolist() == [6]


def test_a_node_that_joins_moves_nothing(clock: FakeClock) -> None:
    source, model = watched(clock)
    model.sample()
    # Before the others, so that all indices change.
    source.nodes = {"m:11210": type(source.nodes["n0:11210"])(), **source.nodes}
    source.owner += 1
    model.sample()
    assert not model.latest.reopened().any()
    assert [row.vbuckets for row in model.nodes()] == [0, 4, 4]


def test_time_to_go_follows_the_recent_pace(clock: FakeClock) -> None:
    source = Source(clock, bounded=True)
    source.high[:] = 1000
    model = StatsModel(source, clock=clock)
    model.sample()
    assert model.eta() is None
    for _ in every(1, clock, 30):  # slow at first
        source.seqno += 1
        model.sample()
    for _ in every(1, clock, 10):
        source.seqno += 50
        model.sample()
    assert model.eta() == pytest.approx((1000 - 530) / 50)
    for _ in every(1, clock, 11):  # a stall promises nothing
        model.sample()
    assert model.eta() is None
    source.state = "complete"
    model.sample()
    assert model.eta() is None


def test_once_it_has_ended_rates_are_those_of_the_whole(clock: FakeClock) -> None:
    source, model = watched(clock, bounded=True)
    model.sample()
    for _ in every(0.5, clock, 10):
        source.receive(100, 1000)
        model.sample()
    source.state = "complete"
    for _ in every(0.5, clock, 10):
        model.sample()
    assert model.elapsed == pytest.approx(5.5)
    assert len(model.history()) == 12
    assert model.rates() == (pytest.approx(1000 / 5.5), pytest.approx(10_000 / 5.5))
    assert model.nodes()[0].documents_per_second == pytest.approx(1000 / 5.5)


def test_the_past_for_drawing(clock: FakeClock) -> None:
    source, model = watched(clock)
    assert np.isnan(model.throughput()).all()
    model.sample()
    for second in every(1, clock, 10):
        source.receive(100 * second, 1000)
        model.sample()
    documents, nbytes = model.throughput(bins=120, seconds=120)
    assert np.isnan(documents[:110]).all()
    assert documents[110:].tolist() == pytest.approx([100 * second for second in range(10)])
    assert nbytes[110:].tolist() == pytest.approx([1000] * 10)


def test_problems_are_told_by_when_they_came(clock: FakeClock) -> None:
    source, model = watched(clock)
    model.sample()
    clock.advance(5)
    source.trouble("the node closed the connection", node="n1:11210")
    clock.advance(3)
    model.sample()
    [(seconds, problem)] = model.problems()
    assert (seconds, problem.node) == (pytest.approx(5), "n1:11210")


def test_reconnects_rollbacks_and_windows(clock: FakeClock) -> None:
    source = Source(clock)
    first, second = source.nodes.values()
    first.reconnects, first.errors = 2, 2
    second.rollbacks = 4
    source.held["n1:11210"] = 750
    model = StatsModel(source, clock=clock)
    model.sample()
    assert (model.latest.reconnects, model.latest.fill) == (2, 0.75)
    assert [(row.errors, row.reconnects, row.rollbacks, row.fill) for row in model.nodes()] == [
        (2, 2, 0, 0.0),
        (0, 0, 4, 0.75),
    ]


def test_a_scan_that_runs_and_ends_and_runs_again(clock: FakeClock) -> None:
    stream = Stream(None)
    del stream.state  # as a scan, which says nothing of itself
    model = StatsModel(stream, clock=clock)
    clock.advance(5)
    assert model.sample().state == "waiting"
    assert model.elapsed == 0
    source = stream.source = Source(clock, bounded=True)
    model.sample()
    clock.advance(2)
    source.receive(10)
    model.sample()
    stream.source, source.state = None, "complete"
    clock.advance(1)
    assert model.sample().state == "complete"
    assert (model.latest.documents, model.elapsed) == (10, 3)
    stream.source = Source(clock, bounded=True)
    clock.advance(1)
    model.sample()
    assert (model.latest.state, model.latest.documents, model.elapsed) == ("running", 0, 0)


def test_a_stream_counts_on_where_a_source_takes_the_place_of_another(clock: FakeClock) -> None:
    """A member of a group has another source when others join, or leave."""
    first, second = Source(clock), Source(clock, nodes=3)
    stream = Stream(first)
    stream.stats = first.stats()
    model = StatsModel(stream, clock=clock)
    model.sample()
    clock.advance(2)
    first.receive(10)
    stream.stats = first.stats()
    model.sample()
    clock.advance(1)
    stream.source = second
    second.receive(3, node=2)
    stream.stats = second.stats() + first.stats()
    latest = model.sample()
    assert (latest.documents, model.elapsed, len(model.history())) == (13, 3, 3)
    assert [row.documents for row in model.nodes()] == [10, 0, 3]
    assert latest.stats.tot_kick == 6
    clock.advance(2)
    assert model.sample().documents == 13
    # Also after all of its collections were gone for a while.
    second.state = stream.state = "finished"
    model.sample()
    third = stream.source = Source(clock)
    stream.state = "running"
    stream.stats = third.stats() + second.stats() + first.stats()
    clock.advance(2)
    found = parse(model.to_prometheus())["cbframe_documents_total"]
    assert sum(found.values()) == 13
    assert not model.latest.ended


def test_what_is_held_back_is_behind(clock: FakeClock) -> None:
    source = Source(clock)
    stream = Stream(source)
    stream.unpersisted = 69
    model = StatsModel(stream, clock=clock)
    assert model.sample().total_lag is None
    source.high[:] = 0
    assert model.sample().total_lag == 69
    assert "69 not on all disks" in as_text(model)


def test_a_stream_says_its_state(clock: FakeClock) -> None:
    stream = Stream(Source(clock))
    model = StatsModel(stream, clock=clock)
    stream.pause()
    assert model.sample().state == "paused"
    stream.close()
    assert model.sample().ended


def test_what_was_let_go_is_not_looked_at(clock: FakeClock) -> None:
    _, model = watched(clock)
    before = model.sample()
    model.let_go()
    assert model.sample() is before
    assert model.target is None


def test_three_methods_are_enough(clock: FakeClock) -> None:
    states = {
        vb: VBucketState("running", 0, 20, (FailoverEntry(7, 0),), True, f"n{vb % 2}:1", 10 + vb)
        for vb in range(5)
    }
    states[4] = VBucketState("requested", 0, (1 << 64) - 1, (), True, "n0:1", 0)
    model = StatsModel(Plain(states), clock=clock)
    latest = model.sample()
    assert len(latest.table) == 8
    assert latest.lag.tolist() == [10, 9, 8, 7, -1, -1, -1, -1]
    assert (latest.bounded, latest.share, latest.documents, latest.state) == (True, 0.75, 7, "running")
    assert [row.node for row in model.nodes()] == ["n0:1", "n1:1", "n0:11210"]
    assert StatsModel(Plain({}), clock=clock).sample().total_lag is None


def test_anything_else_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="a list has no stats to show"):
        StatsModel([])


def test_as_a_frame(clock: FakeClock) -> None:
    source, model = watched(clock)
    assert len(model.to_pandas()) == 0
    for second in every(1, clock, 5):
        source.receive(100, 2_000_000)
        source.high[:] = 10 if second > 1 else -1
        model.sample()
    frame = model.to_pandas()
    assert frame.index.tolist() == [0, 1, 2, 3, 4]
    assert frame["documents_per_second"].tolist()[1:] == [100.0] * 4
    assert frame["mb_per_second"].tolist()[1:] == [2.0] * 4
    assert frame["lag"].isna().tolist() == [True, True, False, False, False]
    assert frame["lag"].iloc[-1] == 80


def test_samples_at_the_same_time_have_no_pace(clock: FakeClock) -> None:
    """Before Python 3.13, Windows' clock moves in steps of 15.6 ms."""
    source, model = watched(clock)
    model.sample()
    source.receive(100, 2_000_000)
    model.sample()
    frame = model.to_pandas()
    assert len(frame) == 2
    assert frame[["documents_per_second", "mb_per_second"]].isna().all(axis=None)
    assert model.rates() == (0.0, 0.0)


def test_vbuckets_as_a_frame(clock: FakeClock) -> None:
    source = Source(clock, vbuckets=4)
    source.phase[3], source.owner[3] = VBucketPhase.OWNERLESS, -1
    source.high[0] = 5
    model = StatsModel(source, clock=clock)
    model.sample()
    frame = model.per_vbucket()
    assert frame["phase"].tolist() == ["running"] * 3 + ["ownerless"]
    assert frame["node"].tolist()[:3] == ["n0:11210", "n0:11210", "n1:11210"]
    assert frame["node"].isna().tolist() == [False] * 3 + [True]
    assert frame["lag"].isna().tolist() == [False, True, True, True]
    assert frame.index.name == "vbucket"


def test_snapshots_do_not_change(clock: FakeClock) -> None:
    source, model = watched(clock)
    seen = []
    for _ in every(0.5, clock, 4):
        source.receive(10)
        source.seqno += 1
        seen.append(model.sample())
    assert [each.documents for each in seen] == [10, 20, 30, 40]
    assert all(b.table.seqno[0] - a.table.seqno[0] == 1 for a, b in pairwise(seen))


def test_without_a_stream_it_connects(clock: FakeClock) -> None:
    source = Source(clock)
    source.phase[:] = VBucketPhase.WAITING
    model = StatsModel(source, clock=clock)
    assert model.sample().state == "connecting"
    source.phase[3] = VBucketPhase.REQUESTED
    assert model.sample().state == "running"
    assert StatsModel(Plain({}), clock=clock).sample().state == "connecting"


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
    source, model = watched(clock)
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


def test_nothing_runs_yet_for_prometheus() -> None:
    class Idle:
        source = None

    found = parse(StatsModel(Idle()).to_prometheus())
    assert found["cbframe_running"]['bucket=""'] == 1


def test_counters_are_those_of_all_sources() -> None:
    clock = FakeClock()
    first = Source(clock, nodes=2, bounded=True)
    stream = Stream(first)
    model = StatsModel(stream, clock=clock)
    first.receive(5, node=0)
    first.receive(7, node=1)
    first.nodes["n1:11210"].reconnects = 2
    clock.advance(1)
    model.sample()
    first.receive(1, node=0)  # after it was looked at last
    second = stream.source = Source(clock, nodes=1)
    clock.advance(1)
    found = parse(model.to_prometheus())
    documents, reconnects = found["cbframe_documents_total"], found["cbframe_reconnects_total"]
    assert documents['bucket="travel",node="n0:11210",kind="mutation"'] == 6
    assert documents['bucket="travel",node="n1:11210",kind="mutation"'] == 7, "a node that has left"
    assert reconnects['bucket="travel",node="n0:11210"'] == 0, "each source has a first connection"
    assert reconnects['bucket="travel",node="n1:11210"'] == 2
    assert found["cbframe_events_total"]['bucket="travel",event="tot_kick"'] == 6
    second.receive(4)
    clock.advance(1)
    found = parse(model.to_prometheus())
    assert found["cbframe_documents_total"]['bucket="travel",node="n0:11210",kind="mutation"'] == 10
    assert found["cbframe_events_total"]['bucket="travel",event="tot_upr_data_change_mutation"'] == 17
    assert set(found["cbframe_window_size_bytes"]) == {'bucket="travel",node="n0:11210"'}
    assert "cbframe_lag_seqnos" not in found, "gauges are those of the last source"
    stream.source = None
    clock.advance(1)
    assert parse(model.to_prometheus()) == found, "it is over"
