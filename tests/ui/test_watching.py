"""``progress=`` by name: in a notebook, on a terminal, and elsewhere."""

from __future__ import annotations

import gc
import io
import weakref
from typing import Any

import pytest

import cbframe
from cbframe import LocalCluster
from cbframe.dcp.source import BucketDataSource
from cbframe.errors import CbframeError, ConfigurationError
from cbframe.scan.progress import ScanProgress, ShowsItself
from cbframe.testing import FakeClock
from cbframe.ui import show
from cbframe.ui.show import StatsView, TextProgress, TextWatcher, WidgetWatcher, make_auto, make_widget

from .doubles import Source, Stream
from .test_show import Outputs


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Form:
    """Takes note of its calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def begin(self, source: BucketDataSource) -> None:
        self.calls.append("begin")

    def __call__(self, progress: ScanProgress) -> None:
        self.calls.append(f"{progress.seconds:g}")

    def end(self) -> None:
        self.calls.append("end")


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> list[Outputs]:
    Outputs.made = []
    monkeypatch.setattr(show, "CellOutput", Outputs)
    monkeypatch.setattr(show, "in_notebook", lambda: True)
    return Outputs.made


def at(seconds: float) -> ScanProgress:
    return ScanProgress(10, 1000, 5, 10, 4, 8, seconds)


def test_auto(monkeypatch: pytest.MonkeyPatch, notebook: list[Outputs]) -> None:
    assert isinstance(make_auto(), WidgetWatcher)
    assert isinstance(make_widget(), WidgetWatcher)
    monkeypatch.setattr(show, "in_notebook", lambda: False)
    monkeypatch.setattr("sys.stderr", Terminal())
    assert isinstance(make_auto(), TextWatcher)
    assert isinstance(make_widget(), TextWatcher)
    monkeypatch.setattr("sys.stderr", io.StringIO())
    assert make_auto() is None


def test_of_a_quick_read_nothing_is_shown() -> None:
    out = io.StringIO()
    watcher = TextWatcher(TextProgress(out), after=0.5)
    watcher.begin(Source(FakeClock()))  # type: ignore[arg-type]
    for seconds in (0.1, 0.4):
        watcher(at(seconds))
    watcher.end()
    assert not out.getvalue()


def test_of_a_longer_one_all_is_shown_from_then_on() -> None:
    clock = FakeClock(0.0)
    out = Terminal()
    watcher = TextWatcher(TextProgress(out, clock), after=0.5)
    lines = []
    for _ in range(2):
        watcher.begin(Source(clock))  # type: ignore[arg-type]
        for seconds in (0.4, 0.5, 0.6):
            clock.advance(1)
            written = len(out.getvalue())
            watcher(at(seconds))
            lines.append(len(out.getvalue()) > written)
    watcher.end()
    assert lines == [False, True, True, True, True, True]
    assert out.getvalue().endswith("\n")


def test_a_widget_is_drawn_four_times_a_second_by_the_reader(
    notebook: list[Outputs], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    refresh = StatsView.refresh
    monkeypatch.setattr(StatsView, "refresh", lambda self: (drawn.append(clock()), refresh(self))[1])
    clock = FakeClock(0.0)
    watcher = WidgetWatcher(clock=clock)
    watcher.begin(Source(clock, bounded=True))  # type: ignore[arg-type]
    for step in range(40):
        clock.now = step / 10
        watcher(at(clock.now))
    watcher.end()
    assert 10 < len(drawn) < 17
    assert watcher.source is None


def test_in_a_notebook_a_quick_read_shows_nothing(notebook: list[Outputs]) -> None:
    clock = FakeClock(0.0)
    watcher = WidgetWatcher(0.5, clock)
    watcher.begin(Source(clock, bounded=True))  # type: ignore[arg-type]
    clock.now = 0.4
    watcher(at(0.4))
    watcher.end()
    assert not notebook


def test_what_is_shown_later_counts_from_the_begin(notebook: list[Outputs]) -> None:
    clock = FakeClock(100.0)
    source = Source(clock, bounded=True)
    watcher = WidgetWatcher(0.5, clock)
    watcher.begin(source)  # type: ignore[arg-type]
    for step in range(1, 11):
        clock.now = 100 + step / 5
        source.receive(1000)
        watcher(at(step / 5))
    source.state = "complete"
    watcher.end()
    assert len(notebook) == 1
    last = notebook[0].bundles[-1]["text/plain"]
    assert "complete after 0:02" in last
    assert "10,000 documents  5,000 documents/s" in last


def test_a_fault_of_the_picture_does_not_end_the_read(
    cluster: LocalCluster,
    notebook: list[Outputs],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refresh(_: StatsView) -> bool:
        raise RuntimeError("the front end is gone")

    monkeypatch.setattr(StatsView, "refresh", refresh)
    assert len(cbframe.read_bucket(cluster, progress="widget")) == 2000
    assert caplog.text.count("no longer shown") == 1


@pytest.fixture(scope="module")
def cluster() -> Any:
    with LocalCluster(nodes=2, vbuckets=64, seed=3) as running:
        running.bulk_load((b"k%d" % n, b'{"n":%d}' % n) for n in range(2000))
        yield running


def test_a_read_shows_itself(cluster: LocalCluster, notebook: list[Outputs]) -> None:
    df = cbframe.read_bucket(cluster, progress="widget")
    assert len(df) == 2000
    [output] = notebook
    assert "application/vnd.jupyter.widget-view+json" in output.bundles[0]
    assert "complete after" in output.bundles[-1]["text/plain"]
    assert "2,000 documents" in output.bundles[-1]["text/plain"]
    assert "100 % received" in output.bundles[-1]["text/plain"]


def test_a_click_ends_a_read(
    cluster: LocalCluster, notebook: list[Outputs], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[WidgetWatcher] = []
    begin = WidgetWatcher.begin

    def begin_and_click(self: WidgetWatcher, source: BucketDataSource) -> None:
        begin(self, source)
        made.append(self)
        assert self.view is not None
        assert self.view.panel is not None
        self.view.panel.buttons["close"].click()

    monkeypatch.setattr(WidgetWatcher, "begin", begin_and_click)
    monkeypatch.setattr(show, "hears_while_busy", lambda: True)
    with pytest.raises(CbframeError):
        cbframe.read_bucket(cluster, progress="widget")
    assert made[0].source is None


def test_nobody_hears_a_click_so_there_is_no_button(notebook: list[Outputs]) -> None:
    clock = FakeClock()
    watcher = WidgetWatcher(clock=clock)
    watcher.begin(Source(clock))  # type: ignore[arg-type]
    assert watcher.view is not None
    assert watcher.view.panel is not None
    assert not watcher.view.panel.buttons


def test_a_read_that_fails_shows_how(cluster: LocalCluster, notebook: list[Outputs]) -> None:
    with pytest.raises(CbframeError):
        cbframe.read_bucket(
            cluster.connection_string, cluster.bucket, auth=("Administrator", "wrong"), progress="widget"
        )
    last = notebook[0].bundles[-1]["text/plain"]
    assert "failed" in last
    assert "hint: " in last
    assert "wrong" not in last.replace("wrong user", "")


def test_no_document_is_held_by_what_was_shown(
    cluster: LocalCluster, notebook: list[Outputs], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[weakref.ref[Any]] = []
    begin = WidgetWatcher.begin

    def watch(self: WidgetWatcher, source: BucketDataSource) -> None:
        seen.append(weakref.ref(source))
        begin(self, source)

    monkeypatch.setattr(WidgetWatcher, "begin", watch)
    scan = cbframe.scan_bucket(cluster, progress="widget")
    scan.to_arrow()
    gc.collect()
    assert [ref() for ref in seen] == [None]
    assert scan.source is None


def test_text_is_drawn_at_once(cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    out = Terminal()
    monkeypatch.setattr("sys.stderr", out)
    cbframe.read_bucket(cluster, progress="text")
    assert "100 %  2,000 documents" in out.getvalue()
    assert out.getvalue().endswith("\n")


@pytest.mark.parametrize("progress", [None, False, "auto", True])
def test_silence(cluster: LocalCluster, progress: Any, capsys: pytest.CaptureFixture[str]) -> None:
    cbframe.read_bucket(cluster, progress=progress)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("progress", ["bar", 7, object()])
def test_what_is_no_progress_is_refused(cluster: LocalCluster, progress: Any) -> None:
    with pytest.raises(ConfigurationError, match="progress="):
        cbframe.scan_bucket(cluster, progress=progress)


def test_what_shows_itself(notebook: list[Outputs], monkeypatch: pytest.MonkeyPatch) -> None:
    class Showing(Stream, ShowsItself):
        pass

    stream = Showing(Source(FakeClock()))
    stream.close()
    stream._ipython_display_()
    assert "stopped" in notebook[0].bundles[0]["text/plain"]
    monkeypatch.setattr(show, "in_notebook", lambda: False)
    with pytest.raises(NotImplementedError):
        stream._ipython_display_()


def test_a_form_of_ones_own_is_told_of_begin_and_end(cluster: LocalCluster) -> None:
    form = Form()
    cbframe.read_bucket(cluster, progress=form)
    assert (form.calls[0], form.calls[-1]) == ("begin", "end")
    form = Form()
    cbframe.scan_bucket(cluster, progress=form, n_rows=1900).to_arrow()
    assert form.calls.count("begin") > 1
    assert form.calls.count("end") == 1
