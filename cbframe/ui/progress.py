"""The progress of a read: one line of a terminal, rewritten in place, or the widget in a notebook.

Importing this module gives ``progress="auto"``, ``"text"`` and ``"widget"`` their meaning, which the floor
below knows by name only. All of it is drawn by the thread that reads.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable
from time import monotonic
from types import TracebackType
from typing import Self, TextIO

from cbframe.dcp.source import BucketDataSource
from cbframe.scan.progress import ScanProgress, Watcher, bring_display, bring_form
from cbframe.ui.drawing import duration
from cbframe.ui.show import EVERY, StatsView, hears_while_busy, in_notebook

_REDRAW_EVERY = 0.1
"""Seconds between two drawings; faster ones only flicker."""
_WINDOW = 4.0
"""Seconds of the past from which the remaining time is computed."""
_DEFAULT_WIDTH = 80
_BAR = 24
_SMALLEST_BAR = 8
_PARTS = " ▏▎▍▌▋▊▉█"
_QUICK = 0.5
"""Seconds: what takes no longer is done before anyone has looked."""


class TextProgress:
    """Draws a :class:`~cbframe.scan.progress.ScanProgress` as one line.

    On a terminal the line is rewritten in place: bar, share, documents, documents and megabytes a
    second, time to go. Elsewhere (a file, a pipe, a CI log) only the final line is written. It is
    never wider than the terminal; what does not fit is left out from the right, whole part by whole
    part. The line ends when the read does, or with :meth:`close`, whichever is first.

    Examples
    --------
    >>> import io, cbframe
    >>> out = io.StringIO()
    >>> with cbframe.LocalCluster(vbuckets=8) as cluster, TextProgress(out) as progress:
    ...     _ = cluster.upsert("greeting", {"text": "hello"})
    ...     df = cbframe.read_bucket(cluster, progress=progress)
    >>> out.getvalue().count("100 %")
    1
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        clock: Callable[[], float] = monotonic,
        *,
        width: int | None = None,
    ) -> None:
        self._stream: TextIO | None = sys.stderr if stream is None else stream
        self._clock = clock
        self._width = width
        self._live = is_terminal(self._stream)
        self._blocks = _can_write(self._stream, _PARTS)
        self._recent: deque[ScanProgress] = deque()
        self._drawn_at: float | None = None
        self._length = 0
        self._open = False
        self._done = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __call__(self, progress: ScanProgress) -> None:
        """Take note of how far the read is, and draw it if it is time."""
        if self._recent and progress.seconds < self._recent[-1].seconds:
            # The scan runs again: a new line.
            self.close()
            self._recent.clear()
            self._done = False
        self._recent.append(progress)
        while len(self._recent) > 2 and progress.seconds - self._recent[1].seconds >= _WINDOW:
            self._recent.popleft()
        complete = progress.vbuckets_total > 0 and progress.vbuckets == progress.vbuckets_total
        if complete:
            # A complete read may report once more; the line has ended then.
            if not self._done:
                self._draw(final=True)
                self._done = True
            return
        now = self._clock()
        if self._live and (self._drawn_at is None or now - self._drawn_at >= _REDRAW_EVERY):
            self._drawn_at = now
            self._draw(final=False)

    def close(self) -> None:
        """End the line, if one is open; the next thing printed begins on its own line."""
        if self._open:
            self._open = False
            self._length = 0
            self._write("\n")
        self._drawn_at = None

    def _draw(self, *, final: bool) -> None:
        # The last column stays free: writing into it makes some terminals begin a new line.
        columns = self._columns() - 1
        line = self._line(columns, final=final)
        if self._live:
            # Blanks over what an earlier, longer line has left: not every console knows escape sequences.
            left = " " * (min(self._length, columns) - len(line))
            self._length = len(line)
            line = f"\r{line}{left}"
        self._write(line)
        self._open = True
        if final:
            self.close()

    def _write(self, text: str) -> None:
        if self._stream is None:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError, AttributeError):  # gone, closed (or it has no such letters), no stream
            self._stream = None

    def _columns(self) -> int:
        if self._width is not None:
            return self._width
        try:
            return os.get_terminal_size(self._stream.fileno()).columns or _DEFAULT_WIDTH  # type: ignore[union-attr]
        except (OSError, ValueError, AttributeError):  # it has no file, or none of a terminal
            return _DEFAULT_WIDTH

    def _line(self, columns: int, *, final: bool) -> str:
        newest = self._recent[-1]
        share = f"{100 * newest.share:3.0f} %"
        if not final and newest.share < 1 and share == "100 %":
            share = " 99 %"
        if not newest.seqnos_total and not final:
            parts = [share, "connecting" if not newest.rows else f"{newest.rows:,} documents"]
        else:
            parts = [share, f"{newest.rows:,} documents"]
            if newest.seconds > 0:
                parts.append(f"{newest.rows / newest.seconds:,.0f}/s")
                parts.append(f"{newest.nbytes / newest.seconds / 1e6:.1f} MB/s")
            parts.append(_duration(newest.seconds) if final else self._remaining())
        texts: list[str] = []
        for part in filter(None, parts):
            if len("  ".join([*texts, part])) > columns:
                break
            texts.append(part)
        text = "  ".join(texts)
        room = min(_BAR, columns - len(text) - 3)
        return f"{self._bar(newest.share, room)} {text}" if room >= _SMALLEST_BAR else text

    def _remaining(self) -> str:
        """From the pace of the last seconds: reads begin slowly, while the streams are opened."""
        oldest, newest = self._recent[0], self._recent[-1]
        gained, seconds = newest.share - oldest.share, newest.seconds - oldest.seconds
        if gained <= 0 or seconds <= 0:
            return ""
        return f"{_duration((1 - newest.share) * seconds / gained)} left"

    def _bar(self, share: float, room: int) -> str:
        if not self._blocks:
            full = int(share * room)
            return f"[{'#' * full}{'-' * (room - full)}]"
        eighths = int(share * room * 8)
        full, rest = divmod(eighths, 8)
        bar = "█" * full + (_PARTS[rest] if rest else "")
        return f"│{bar.ljust(room)}│"


def _duration(seconds: float) -> str:
    """``0.8 s``, ``42 s``, ``3:07``, ``2:05:09``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    return f"{round(seconds)} s" if round(seconds) < 60 else duration(seconds)


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a stream is one; not where it is missing, closed or has no such method."""
    try:
        return bool(stream.isatty())  # type: ignore[union-attr]
    except (OSError, ValueError, AttributeError):
        return False


def _can_write(stream: TextIO | None, text: str) -> bool:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError, TypeError):
        return False
    return True


class TextWatcher:
    """One line of a terminal; nothing of a read that is over within `after` seconds."""

    def __init__(self, line: TextProgress | None = None, after: float = 0.0) -> None:
        self._line = TextProgress() if line is None else line
        self._after = after
        self._shown = False

    def begin(self, source: BucketDataSource) -> None:
        """Nothing is drawn before there is progress."""

    def __call__(self, progress: ScanProgress) -> None:
        self._shown = self._shown or progress.seconds >= self._after
        if self._shown:
            self._line(progress)

    def end(self) -> None:
        self._line.close()


class WidgetWatcher:
    """The live widget, drawn by the thread that reads: there is no other.

    Its button ends the read, where the kernel hears of clicks while it reads; the kernel's own interruption
    does so everywhere.
    """

    def __init__(self, after: float = 0.0, clock: Callable[[], float] = monotonic) -> None:
        self._after = after
        self._clock = clock
        self._shown = False
        self._drawn_at = 0.0
        self.view: StatsView | None = None
        """What is shown."""
        self.source: BucketDataSource | None = None
        self.close: Callable[[], None] | None = self._close if hears_while_busy() else None

    def _close(self) -> None:
        if (source := self.source) is not None:
            source.close()

    def begin(self, source: BucketDataSource) -> None:
        self.source = source
        if self.view is None:
            # Watched from the begin, even if it is shown later: rates are those of the whole.
            self.view = StatsView(self, clock=self._clock)
            if self._after <= 0:
                self._shown = True
                self.view.display(live=False)

    def __call__(self, progress: ScanProgress) -> None:
        now = self._clock()
        if self.view is None or now - self._drawn_at < EVERY:
            return
        self._drawn_at = now
        self.view.refresh()
        if not self._shown and progress.seconds >= self._after:
            self._shown = True
            self.view.display(live=False)

    def end(self) -> None:
        try:
            if self.view is not None and self._shown:
                self.view.refresh()
        finally:
            # Of the read nothing is to stay in memory but its result.
            if self.view is not None:
                self.view.let_go()
            self.source = None


def make_auto() -> Watcher | None:
    """A widget in a notebook, a line in a terminal, nothing elsewhere; nothing of a quick read."""
    if in_notebook():
        return WidgetWatcher(_QUICK)
    return TextWatcher(after=_QUICK) if is_terminal(sys.stderr) else None


def make_widget() -> Watcher:
    """A widget, or a line where there are none."""
    return WidgetWatcher() if in_notebook() else TextWatcher()


def show_itself(target: object) -> bool:
    """Show something live in the present cell, if this is a notebook."""
    if in_notebook():
        StatsView(target).display()
        return True
    return False


bring_form("auto", make_auto)
bring_form("widget", make_widget)
bring_form("text", TextWatcher)
bring_display(show_itself)
