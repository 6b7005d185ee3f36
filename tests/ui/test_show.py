"""The widget from Python's side: what it sends, how often, and that nothing of it stays."""

from __future__ import annotations

import gc
import json
import logging
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cbframe.dcp.stats import VBucketPhase
from cbframe.errors import ConfigurationError
from cbframe.testing import FakeClock
from cbframe.ui import show
from cbframe.ui.show import EVERY, StatsView, show_stats

from .doubles import Source, Stream, every

LONG = 30.0


class Outputs:
    """Stands in for the outputs of cells."""

    made: list[Outputs]

    def __init__(self, bundle: dict[str, Any]) -> None:
        self.bundles = [bundle]
        self.cell = 1
        self.made.append(self)

    def of_this_cell(self) -> bool:
        return self.cell == 1

    def update(self, bundle: dict[str, Any]) -> None:
        self.bundles.append(bundle)


@pytest.fixture
def outputs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Outputs]]:
    """As in a notebook; what was displayed. No thread may be left."""
    Outputs.made = []
    monkeypatch.setattr(show, "CellOutput", Outputs)
    monkeypatch.setattr(show, "in_notebook", lambda: True)
    yield Outputs.made
    assert not [thread for thread in threading.enumerate() if thread.name == "cbframe-ticker"]


def sent(view: StatsView) -> list[int]:
    """Sizes of the messages to the browser from now on."""
    assert view.panel is not None
    sizes: list[int] = []

    def send(message: dict[str, Any], buffers: Any = None) -> None:
        body = json.dumps(message, ensure_ascii=False, allow_nan=False).encode()
        sizes.append(len(body) + sum(len(buffer) for buffer in buffers or ()))

    view.panel.canvas._send = send
    return sizes


def until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread does."""
    passed = threading.Event()
    for _ in range(int(LONG / 0.01)):
        if condition():
            return
        passed.wait(0.01)
    raise AssertionError("it does not come")


def documents_of(exposition: str) -> list[int]:
    lines = [line for line in exposition.splitlines() if line.startswith("cbframe_documents_total")]
    return [int(float(line.split()[-1])) for line in lines]


def ended(view: StatsView) -> None:
    """Wait for the thread that updates."""
    assert view._ticker is not None
    view._ticker._thread.join(LONG)
    assert not view._ticker.running


def test_one_message_for_each_update_and_none_is_large(outputs: list[Outputs]) -> None:
    clock = FakeClock()
    source = Source(clock, vbuckets=1024, nodes=20)
    view = StatsView(source, clock=clock)
    view.display(live=False)
    sizes = sent(view)
    for number in every(EVERY, clock, 40):
        source.receive(10_000, 5_000_000)
        source.seqno += number
        source.high[:] = 1000
        source.trouble("x" * 1000, "y" * 1000, "n1:11210")
        source.owner[number] = 3
        view.refresh()
    assert len(sizes) == 40
    assert max(sizes) < 9000
    assert pytest.approx(0.25) == EVERY


def test_a_quiet_stream_costs_next_to_nothing(outputs: list[Outputs]) -> None:
    clock = FakeClock()
    view = StatsView(Source(clock, vbuckets=1024), clock=clock)
    view.display(live=False)
    view.refresh()
    sizes = sent(view)
    view.refresh()
    assert max(sizes) < 300


def test_it_is_updated_until_the_stream_ends(outputs: list[Outputs]) -> None:
    source = Source(FakeClock())
    view = show_stats(source)
    assert view._ticker is not None
    assert view._ticker.running
    source.receive(5)
    source.state = "complete"
    ended(view)
    [output] = outputs
    assert len(output.bundles) == 2
    assert "complete" in output.bundles[-1]["text/plain"]
    assert "5" in output.bundles[-1]["text/html"]
    assert "application/vnd.jupyter.widget-view+json" in output.bundles[-1]


def test_it_can_be_closed_before(outputs: list[Outputs]) -> None:
    view = show_stats(Source(FakeClock()))
    view.close()
    view.close()
    assert "running" in outputs[0].bundles[-1]["text/plain"]


def test_of_what_has_ended_only_a_picture_is_shown(outputs: list[Outputs]) -> None:
    source = Source(FakeClock())
    source.state = "closed"
    view = show_stats(source)
    assert view._ticker is None
    assert "closed" not in outputs[0].bundles[0]["text/plain"]
    assert "stopped" in outputs[0].bundles[0]["text/plain"]


def test_as_the_last_expression_of_its_cell_it_is_shown_once(outputs: list[Outputs]) -> None:
    source = Source(FakeClock())
    source.state = "closed"
    view = show_stats(source)
    view._ipython_display_()
    assert len(outputs) == 1
    outputs[0].cell = 0
    view._ipython_display_()
    assert len(outputs) == 2


def test_many_at_a_time(outputs: list[Outputs]) -> None:
    sources = [Source(FakeClock()) for _ in range(12)]
    views = [show_stats(source) for source in sources]
    for source in sources:
        source.state = "closed"
    for view in views:
        ended(view)
    assert len(outputs) == 12


def test_buttons_do_what_the_stream_can(outputs: list[Outputs]) -> None:
    clock = FakeClock()
    stream = Stream(Source(clock))
    view = StatsView(stream, clock=clock)
    view.display(live=False)
    view._live = True  # without the thread: clicks are drawn at once
    assert view.panel is not None
    buttons = view.panel.buttons
    assert {name: button.disabled for name, button in buttons.items()} == {
        "pause": False,
        "resume": True,
        "close": False,
    }
    buttons["pause"].click()
    assert (buttons["pause"].disabled, buttons["resume"].disabled) == (True, False)
    assert view.panel.canvas.head["state"] == "paused"
    buttons["resume"].click()
    assert (buttons["pause"].disabled, buttons["resume"].disabled) == (False, True)
    buttons["close"].click()
    assert stream.calls == ["pause", "resume", "close"]
    assert all(button.disabled for button in buttons.values())
    assert "stopped" in outputs[0].bundles[-1]["text/plain"]


def test_a_click_wakes_the_thread_that_updates(outputs: list[Outputs]) -> None:
    stream = Stream(Source(FakeClock()))
    view = StatsView(stream, every=3600)
    view.display()
    assert view.panel is not None
    view.panel.buttons["close"].click()
    ended(view)
    assert view.panel.canvas.head["state"] == "closed"


def test_what_a_source_cannot_do_cannot_be_clicked(outputs: list[Outputs]) -> None:
    clock = FakeClock()

    class Closeable(Source):
        def close(self) -> None: ...

    view = StatsView(Closeable(clock), clock=clock)
    view.display(live=False)
    assert view.panel is not None
    assert [button.disabled for button in view.panel.buttons.values()] == [True, True, False]
    view = StatsView(Source(clock), clock=clock)
    view.display(live=False)
    assert view.panel is not None
    assert not view.panel.buttons
    assert len(view.panel.children) == 1


def test_a_fault_of_the_picture_is_logged_and_the_stream_goes_on(
    outputs: list[Outputs], caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Source):
        def progress(self) -> tuple[int, int]:
            if threading.current_thread().name == "cbframe-ticker":
                raise RuntimeError("no progress today")
            return super().progress()

    with caplog.at_level(logging.ERROR, "cbframe.ui"):
        ended(show_stats(Broken(FakeClock())))
    assert "no longer updated" in caplog.text


HIDDEN = """
import sys, warnings
sys.modules[sys.argv[1]] = None  # importing it fails, as where it is not installed
import cbframe
from cbframe.ui import show

with cbframe.LocalCluster(vbuckets=4) as cluster:
    cluster.upsert("a", {"n": 1})
    assert len(cbframe.read_bucket(cluster, progress="text")) == 1
    show.in_notebook = lambda: True
    assert len(cbframe.read_bucket(cluster)) == 1
    try:
        cbframe.read_bucket(cluster, progress="widget")
    except cbframe.DependencyError as error:
        print(error)
    with cbframe.stream_bucket(cluster) as stream, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert len(next(stream)) == 1
        for target in (cbframe.scan_bucket(cluster), stream):
            assert {*cbframe.show_stats(target).bundle()} == {"text/html", "text/plain"}
    for warning in told:
        assert warning.category is UserWarning
        assert warning.filename == "<string>"
        print(warning.message)
"""


@pytest.mark.parametrize("name", ["ipywidgets", "anywidget"])
def test_without_the_libraries_of_the_widget_all_else_works(name: str) -> None:
    done = subprocess.run([sys.executable, "-c", HIDDEN, name], capture_output=True, text=True, check=True)
    said = "the widget needs anywidget and ipywidgets: "
    error, hint, *told = done.stdout.splitlines()
    assert hint == "  hint: pip install anywidget ipywidgets"
    assert len(told) == 2
    assert all(line.startswith(said) and name in line.removeprefix(said) for line in (error, *told))
    assert all(line.endswith(f"which does not follow the stream;{hint[1:]}") for line in told)


def test_what_shows_itself_is_html_without_them(
    outputs: list[Outputs], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cbframe.ui.widget", None)
    source = Source(FakeClock())
    source.state = "closed"
    assert show.show_itself(source)
    assert set(outputs[0].bundles[0]) == {"text/html", "text/plain"}
    view = StatsView(Source(FakeClock()))
    view.display()
    assert view.panel is None
    assert set(outputs[1].bundles[0]) == {"text/html", "text/plain"}
    view.close()


def test_who_asks_for_a_widget_has_html_and_a_warning_without_them(
    outputs: list[Outputs], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cbframe.ui.widget", None)
    source = Source(FakeClock())
    with pytest.warns(UserWarning, match="hint: pip install anywidget ipywidgets") as told:
        view = show_stats(source)
    assert [each.filename for each in told] == [__file__]
    [output] = outputs
    source.state = "closed"
    ended(view)
    assert [{*bundle} for bundle in output.bundles] == [{"text/html", "text/plain"}] * 2
    assert "stopped" in output.bundles[-1]["text/html"]


def test_elsewhere_it_is_text() -> None:
    source = Source(FakeClock())
    view = show_stats(source)
    source.receive(17)
    assert "17 documents" in repr(view)
    assert "17" in view._repr_html_()
    view.close()


def test_elsewhere_the_model_is_updated_by_a_thread_until_the_stream_ends() -> None:
    clock = FakeClock()
    source = Source(clock)
    view = StatsView(source, clock=clock, every=0)
    view.watch()
    source.receive(17)
    clock.advance(1)
    until(lambda: view.model.latest.documents == 17)
    source.state = "finished"
    ended(view)
    assert view.model.latest.ended


def test_numbers_are_those_of_the_moment_without_a_display_or_a_thread() -> None:
    clock = FakeClock()
    source = Source(clock)
    view = StatsView(source, clock=clock)
    source.receive(17)
    clock.advance(1)
    assert view.model.to_pandas()["documents"].tolist() == [0, 17]
    source.receive(3)
    clock.advance(1)
    assert sum(documents_of(view.model.to_prometheus())) == 20
    assert len(view.model.to_pandas()) == 3


def test_a_view_that_nobody_has_ends_its_thread() -> None:
    view = StatsView(Source(FakeClock()), every=0)
    view.watch()
    ticker, gone = view._ticker, weakref.ref(view)
    assert ticker is not None
    del view
    gc.collect()
    ticker._thread.join(LONG)
    assert not ticker.running
    assert gone() is None


def test_nothing_of_what_was_looked_at_is_held(outputs: list[Outputs]) -> None:
    clock = FakeClock()
    source = Source(clock)
    gone = weakref.ref(source)
    view = StatsView(source, clock=clock)
    view.display(live=False)
    source.receive(3)
    view.refresh()
    view.let_go()
    del source
    gc.collect()
    assert gone() is None
    assert "3 documents" in repr(view)


def test_what_cannot_be_shown_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="a dict has no stats"):
        show_stats({})


def test_a_cell_is_drawn_where_no_node_has_a_vbucket(outputs: list[Outputs]) -> None:
    clock = FakeClock()
    source = Source(clock)
    view = StatsView(source, clock=clock)
    view.display(live=False)
    assert view.panel is not None
    before = view.panel.canvas.cells
    source.phase[5], source.owner[5] = VBucketPhase.OWNERLESS, -1
    view.refresh()
    after = view.panel.canvas.cells
    assert [at for at in range(8) if before[at] != after[at]] == [5]


def test_looking_loads_neither_widgets_nor_pandas() -> None:
    script = (
        "import sys, cbframe; cbframe.show_stats;"
        "print([m for m in ('ipywidgets', 'anywidget', 'IPython', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
