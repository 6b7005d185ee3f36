"""The forms that ``progress=`` has a name for, ``"auto"``, ``"widget"`` and ``"text"``, and that of streams.

To load this module brings them to the floor below, which cannot ask for it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from cbframe.dcp.handover import monotonic
from cbframe.dcp.source import BucketDataSource
from cbframe.scan.progress import ScanProgress, Watcher, bring_display, bring_form
from cbframe.ui.notebook import hears_while_busy, in_notebook
from cbframe.ui.progress import TextProgress, is_terminal
from cbframe.ui.show import EVERY, StatsView

_QUICK = 0.5
"""Seconds: what takes no longer is done before anyone has looked."""


class TextWatcher:
    """One line of a terminal."""

    def __init__(self, line: TextProgress | None = None) -> None:
        self._line = TextProgress() if line is None else line

    def begin(self, source: BucketDataSource) -> None:
        """Nothing is drawn before there is progress."""

    def __call__(self, progress: ScanProgress) -> None:
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
        self._view: StatsView | None = None
        self._drawn_at = 0.0
        self.source: BucketDataSource | None = None
        self.close: Callable[[], None] | None = self._close if hears_while_busy() else None

    def _close(self) -> None:
        if (source := self.source) is not None:
            source.close()

    @property
    def view(self) -> StatsView | None:
        """What is shown."""
        return self._view

    def begin(self, source: BucketDataSource) -> None:
        self.source = source
        if self._view is None:
            # Looked at from the begin, even if it is shown later: rates are those of the whole.
            self._view = StatsView(self, clock=self._clock)
            if self._after <= 0:
                self._show()

    def _show(self) -> None:
        if self._view is not None:
            self._shown = True
            self._view.display(live=False)

    def __call__(self, progress: ScanProgress) -> None:
        now = self._clock()
        if self._view is None or now - self._drawn_at < EVERY:
            return
        self._drawn_at = now
        self._view.refresh()
        if not self._shown and progress.seconds >= self._after:
            self._show()

    def end(self) -> None:
        try:
            if self._view is not None and self._shown:
                self._view.refresh()
        finally:
            # Of the read nothing is to stay in memory but its result.
            if self._view is not None:
                self._view.let_go()
            self.source = None


class Patient:
    """Another form, for reads that are worth it: nothing is shown of a quick one."""

    def __init__(self, form: Watcher) -> None:
        self._form = form
        self._source: BucketDataSource | None = None
        self._shown = False

    def begin(self, source: BucketDataSource) -> None:
        self._source = source
        if self._shown:
            self._form.begin(source)

    def __call__(self, progress: ScanProgress) -> None:
        if not self._shown and progress.seconds >= _QUICK and self._source is not None:
            self._shown = True
            self._form.begin(self._source)
        if self._shown:
            self._form(progress)

    def end(self) -> None:
        self._source = None
        if self._shown:
            self._form.end()


def make_auto() -> Watcher | None:
    """A widget in a notebook, a line in a terminal, nothing elsewhere."""
    if in_notebook():
        return WidgetWatcher(_QUICK)
    return Patient(TextWatcher()) if is_terminal(sys.stderr) else None


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
