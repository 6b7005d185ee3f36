"""The progress line, drawn with a clock that stands still until it is told to move."""

from __future__ import annotations

import io
import os
import pty
import sys
from collections.abc import Iterator
from typing import Any

import pytest

import cbframe
from cbframe.scan.progress import ScanProgress
from cbframe.ui import show
from cbframe.ui.show import TextProgress, _duration


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    @property
    def lines(self) -> list[str]:
        """What was drawn, one drawing an item, without blanks over what was there."""
        drawn = self.getvalue().replace("\n", "\r\n")
        return [line.rstrip(" ") for line in drawn.split("\r") if line not in ("", "\n")]


class AsciiTerminal(Terminal):
    encoding = "ascii"


def at(
    seconds: float, share: float = 0.0, *, rows: int = 0, nbytes: int = 0, eta: float | None = None
) -> ScanProgress:
    done = round(share * 1000)
    return ScanProgress(rows, nbytes, done, 1000, done * 64 // 1000, 64, seconds, eta)


def drawn(*reports: ScanProgress, out: Any = None, width: int | None = 100, every: float = 1) -> Any:
    """What reports draw that come so many seconds one after the other."""
    out, clock = out or Terminal(), Clock()
    progress = TextProgress(out, clock, width=width)
    for report in reports:
        progress(report)
        clock.now += every
    return out


def test_a_line_shows_bar_share_documents_rates_and_time_to_go() -> None:
    line = "│██████                  │  25 %  25,000 documents  12,500/s  4.0 MB/s  3.0 s left"
    assert drawn(at(1, 0.0), at(2, 0.25, rows=25_000, nbytes=8_000_000, eta=3)).lines[-1] == line


def test_the_final_line_shows_the_whole_time_and_ends_with_a_newline() -> None:
    assert drawn(at(4, 1.0, rows=100_000, nbytes=40_000_000)).getvalue() == (
        "\r│████████████████████████│ 100 %  100,000 documents  25,000/s  10.0 MB/s  4.0 s\n"
    )


def test_a_shorter_line_leaves_nothing_of_a_longer_one() -> None:
    """Without escape sequences: older consoles of Windows print them."""
    rows = (25_000_000, 26_000_000)
    out = drawn(at(1, 0.0), *(at(2 + n, 0.25, rows=rows[n], nbytes=8_000_000) for n in range(2)))
    one, longer, shorter = out.getvalue().split("\r")[1:]
    assert len(one) < len(longer)
    assert len(shorter) == len(longer)
    assert shorter.endswith(" ")
    assert "\x1b" not in out.getvalue()


def test_a_second_final_report_draws_nothing() -> None:
    out = Terminal()
    progress = TextProgress(out, Clock())
    progress(at(4, 1.0))
    before = out.getvalue()
    progress(at(4.5, 1.0))
    progress.close()
    assert out.getvalue() == before


def test_drawings_are_a_tenth_of_a_second_apart() -> None:
    assert len(drawn(*(at(step / 100, step / 100) for step in range(30)), every=0.01).lines) == 3


def test_the_end_is_drawn_however_soon() -> None:
    assert "100 %" in drawn(at(0.01, 0.5), at(0.02, 1.0), every=0).lines[-1]


@pytest.mark.parametrize("width", range(1, 121))
def test_never_wider_than_the_terminal(width: int) -> None:
    reports = (
        at(3600 * share + 1, share, rows=int(share * 10**9), nbytes=int(share * 10**13))
        for share in (0.0, 0.1, 0.5, 0.99, 1.0)
    )
    lines = drawn(*reports, width=width).lines or [""]
    assert max(len(line.rstrip("\n")) for line in lines) < max(width, 2)


def test_what_does_not_fit_is_left_out_from_the_right() -> None:
    report = at(4, 1.0, rows=100_000, nbytes=40_000_000)
    assert drawn(report, width=24).lines[0] == "│███████████████│ 100 %"
    (line,) = drawn(report, width=30).lines
    assert line.startswith("100 %  100,000 documents")
    assert "MB" not in line


def test_without_a_terminal_only_the_final_line_is_written() -> None:
    steps = [at(step, step / 10, rows=step) for step in range(10)]
    assert drawn(*steps, out=io.StringIO()).getvalue() == ""
    out = drawn(*steps, at(10, 1.0, rows=10, nbytes=10**7), out=io.StringIO(), width=None)
    assert out.getvalue().count("\n") == 1
    assert "\r" not in out.getvalue()
    assert "\x1b" not in out.getvalue()
    assert "10 documents  1/s  1.0 MB/s  10 s" in out.getvalue()


def test_an_unfinished_read_without_a_terminal_leaves_nothing() -> None:
    out = io.StringIO()
    with TextProgress(out, Clock()) as progress:
        progress(at(1, 0.5))
    assert out.getvalue() == ""


def test_a_failed_read_leaves_the_cursor_on_its_own_line() -> None:
    out = Terminal()

    def read() -> None:
        with TextProgress(out, Clock()) as progress:
            progress(at(1, 0.5))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        read()
    assert out.getvalue().endswith("\n")
    assert out.getvalue().count("\n") == 1


def test_a_scan_that_runs_again_gets_a_new_line() -> None:
    assert drawn(at(4, 1.0), at(0.1, 0.5), at(0.2, 1.0)).getvalue().count("\n") == 2


@pytest.mark.parametrize(
    ("report", "words"),
    [
        (ScanProgress(0, 0, 0, 0, 1024, 1024, 0.0), "100 %  0 documents"),
        (ScanProgress(0, 0, 0, 0, 0, 0, 0.1), "  0 %  connecting"),
        (ScanProgress(999, 1, 9999, 10_000, 63, 64, 1.0), " 99 %"),
    ],
    ids=["an empty bucket is complete", "before the map is known", "almost done is not done"],
)
def test_the_share_that_is_done(report: ScanProgress, words: str) -> None:
    out = drawn(report)
    assert words in out.lines[-1]
    assert out.getvalue().endswith("\n") == (" 100 %" in out.getvalue())


def test_without_a_time_to_go_nothing_is_promised() -> None:
    assert "left" not in drawn(*(at(second, 0.5) for second in range(20)), width=120).lines[-1]


def test_a_terminal_without_block_characters_gets_plain_ones() -> None:
    out = drawn(at(1, 0.5), out=AsciiTerminal())
    assert out.lines[-1].startswith("[############------------]  50 %")
    out.getvalue().encode("ascii")


def test_the_width_is_asked_of_the_terminal() -> None:
    ours, theirs = pty.openpty()
    try:
        with os.fdopen(theirs, "w", closefd=False) as stream:
            progress = TextProgress(stream)
            assert progress._columns() in range(1, 1000)
            assert progress._live
    finally:
        os.close(ours)
        os.close(theirs)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1:00"),
        (187, "3:07"),
        (7509, "2:05:09"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert _duration(seconds) == text


# -- a standard error that cannot be written to


class Broken(io.StringIO):
    """Raises where it is told to."""

    def __init__(self, where: str, error: Exception) -> None:
        super().__init__()
        self._where, self._error = where, error

    def _may(self, where: str) -> None:
        if where == self._where:
            raise self._error

    def write(self, text: str) -> int:
        self._may("write")
        return super().write(text)

    def flush(self) -> None:
        self._may("flush")

    def isatty(self) -> bool:
        self._may("isatty")
        return True


class Mute:
    """Has no methods at all."""


def closed() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


ERRORS = [
    BrokenPipeError(32, "Broken pipe"),
    OSError(5, "Input/output error"),
    ValueError("I/O operation on closed file"),
    UnicodeEncodeError("ascii", "█", 0, 1, "ordinal not in range"),
]
UNUSABLE = [
    None,
    closed(),
    Mute(),
    *(Broken(where, error) for where in ("write", "flush", "isatty") for error in ERRORS),
]


@pytest.mark.parametrize("stream", UNUSABLE, ids=lambda stream: type(stream).__name__)
@pytest.mark.parametrize("progress", ["auto", "text", "widget", True])
def test_a_standard_error_that_cannot_be_used(
    stream: Any, progress: Any, monkeypatch: pytest.MonkeyPatch, bucket: cbframe.LocalCluster
) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    assert len(cbframe.read_bucket(bucket, progress=progress)) == 1


@pytest.mark.parametrize("stream", UNUSABLE[1:], ids=lambda stream: type(stream).__name__)
def test_a_line_on_what_cannot_be_used(stream: Any, bucket: cbframe.LocalCluster) -> None:
    with TextProgress(stream) as line:
        assert len(cbframe.read_bucket(bucket, progress=line)) == 1


def test_nothing_is_tried_again_once_it_has_failed() -> None:
    stream = Broken("flush", BrokenPipeError(32, "Broken pipe"))
    line = TextProgress(stream, width=60)
    for seconds in (1.0, 2.0, 3.0):
        line(ScanProgress(1, 1, 1, 10, 0, 8, seconds))
    assert stream.getvalue().count("\r") == 1


def test_a_display_that_fails(monkeypatch: pytest.MonkeyPatch, bucket: cbframe.LocalCluster) -> None:
    def fail() -> None:
        raise RuntimeError("no front end")

    monkeypatch.setattr(show, "in_notebook", fail)
    for progress in ("auto", "widget"):
        assert len(cbframe.read_bucket(bucket, progress=progress)) == 1  # type: ignore[call-overload]


@pytest.fixture(scope="module")
def bucket() -> Iterator[cbframe.LocalCluster]:
    with cbframe.LocalCluster(vbuckets=2) as cluster:
        cluster.upsert("k", {"a": 1})
        yield cluster
