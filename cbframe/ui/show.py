"""What a stream does, in a notebook or a terminal (``show_stats``), and the progress of a read.

Progress is one line of a terminal, rewritten in place, or the widget in a notebook. Importing this module
gives ``progress="auto"``, ``"text"`` and ``"widget"`` their meaning, which the floor below knows by name
only. All of it is drawn by the thread that reads.
"""

from __future__ import annotations

import logging
import os
import sys
import weakref
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Any, TextIO

from cbframe.dcp.source import BucketDataSource
from cbframe.errors import DependencyError
from cbframe.public import Closing, warn
from cbframe.scan.progress import ScanProgress, Watcher, bring_display, bring_form
from cbframe.system import Event, OwnThread
from cbframe.ui.drawing import as_html, as_text, duration
from cbframe.ui.model import StatsModel

if TYPE_CHECKING:
    from cbframe.ui.widget import StatsPanel


_log = logging.getLogger("cbframe.ui")
EVERY = 0.25
"""Seconds between two updates: four a second at most."""


class Ticker:
    """Calls a function again and again on a thread of its own, until the function has had enough."""

    def __init__(self, every: float, call: Callable[[], bool]) -> None:
        self._every = every
        self._call = call
        self._stopping = False
        self._bell = Event()
        self._thread = OwnThread(self._run, "cbframe-ticker")

    @property
    def running(self) -> bool:
        """Whether there may be another call."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Begin, once; ResourceError if there is no thread."""
        self._thread.start()

    def wake(self) -> None:
        """Have the next call now; callable from any thread."""
        self._bell.set()

    def stop(self) -> None:
        """Have no more calls, and wait for one that runs; from within that call it does not wait."""
        self._stopping = True
        self._bell.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._stopping and self._call():
                self._bell.wait(self._every)
                self._bell.clear()
        except Exception:  # noqa: BLE001 - what cannot be drawn is no reason to print, or to stop
            # Of another thread a notebook would print it into whichever cell ran last.
            _log.exception("what is shown of a stream is no longer updated")


def _shell() -> Any:
    """The interactive shell, if one runs; IPython is not loaded for the question."""
    module = sys.modules.get("IPython")
    return None if module is None else module.get_ipython()


def in_notebook() -> bool:
    """Whether there is a front end that shows more than text: a kernel, not a terminal."""
    return getattr(_shell(), "kernel", None) is not None


def hears_while_busy() -> bool:
    """Whether a click on a widget can come while a cell runs: the kernel has a thread for it."""
    kernel = getattr(_shell(), "kernel", None)
    return "kernel subshells" in getattr(kernel, "kernel_info", {}).get("supported_features", ())


class CellOutput:
    """Something in the output of the present cell, which can be changed later."""

    def __init__(self, bundle: dict[str, Any]) -> None:
        shell = _shell()
        self._cell = getattr(shell, "execution_count", None)
        self._handle: Any = None
        if shell is not None:
            from IPython.display import display  # noqa: PLC0415 - it is there: the shell is its

            show: Any = display
            self._handle = show(bundle, raw=True, display_id=True)

    def of_this_cell(self) -> bool:
        """Whether the cell that shows it is the one that runs now."""
        return self._handle is not None and getattr(_shell(), "execution_count", None) == self._cell

    def update(self, bundle: dict[str, Any]) -> None:
        """Put something else in its place; callable from any thread."""
        if self._handle is not None:
            self._handle.update(bundle, raw=True)


def panel_class() -> type[StatsPanel]:
    """What the widget is made of; half a second to import, and not installed everywhere."""
    try:
        from cbframe.ui.widget import StatsPanel  # noqa: PLC0415 - as above
    except ImportError as exc:
        hint = "pip install anywidget ipywidgets"
        raise DependencyError(f"the widget needs anywidget and ipywidgets: {exc}", hint=hint) from exc
    return StatsPanel


def show_stats(target: Any) -> StatsView:
    """Show what a stream does, live.

    In a notebook this is a widget: throughput, lag and the state of every vbucket, the nodes, the last
    problems with their hints, and buttons. A saved notebook shows how it ended. Elsewhere, ``print`` shows
    the state of the moment. A thread updates the model four times a second, until the stream ends, the
    view is closed, or nobody refers to it. A notebook without ipywidgets or anywidget is warned, and has a
    picture of the moment, which is drawn again where the view is shown again, and when the stream ends.

    Parameters
    ----------
    target
        A :class:`~cbframe.BucketDataSource`, a :class:`~cbframe.BucketScan`, a change stream, or anything
        that has ``stats()``, ``vbucket_states()`` and ``progress()``, or a ``source`` that has them.

    Returns
    -------
    StatsView
        ``.model`` has the last two minutes as numbers: ``.to_pandas()``, ``.per_vbucket()``,
        ``.to_prometheus()``.

    Raises
    ------
    ConfigurationError
        There is nothing to show of this.

    Examples
    --------
    >>> import cbframe
    >>> from cbframe.testing import RecordingReceiver
    >>> with cbframe.LocalCluster(vbuckets=8) as cluster:
    ...     source = cbframe.BucketDataSource(
    ...         cluster.connection_string, "default", "default", "", None,
    ...         (cluster.username, cluster.password), RecordingReceiver())
    ...     print(str(cbframe.show_stats(source)).splitlines()[0])
    default: not started
    """
    view = StatsView(target)
    if in_notebook():
        try:
            panel_class()
        except DependencyError as exc:
            warn(f"{exc.message}: shown is a picture, which does not follow the stream; hint: {exc.hint}")
        view.display()
    else:
        view.watch()
    return view


class StatsView:
    """What is shown of a stream. Made by :func:`show_stats`.

    Attributes
    ----------
    model
        The numbers behind it.

    Parameters
    ----------
    target, clock
        As of :class:`~cbframe.ui.model.StatsModel`.
    every
        Seconds between two updates.
    """

    def __init__(self, target: Any, *, clock: Callable[[], float] = monotonic, every: float = EVERY) -> None:
        self.model = StatsModel(target, clock=clock)
        self._every = every
        self.panel: StatsPanel | None = None
        """The widget; None where there is none."""
        self._ticker: Ticker | None = None
        self._output: CellOutput | None = None
        self._live = True
        self.model.sample()

    def __repr__(self) -> str:
        self._update()
        return as_text(self.model)

    def _repr_html_(self) -> str:
        self._update()
        return as_html(self.model)

    def _ipython_display_(self) -> None:
        # As the last expression of the cell that has made it, it is there already.
        if self._output is None or not self._output.of_this_cell():
            self.display()

    def _update(self) -> None:
        """Take a snapshot now; what a thread of its own shows in a notebook, it draws itself."""
        if self._ticker is not None and self._ticker.running:
            self.model.sample()
        else:
            self.refresh()

    def display(self, *, live: bool = True) -> None:
        """Show it in the output of the present cell.

        Parameters
        ----------
        live
            Whether a thread of its own keeps it up to date; else whoever has it calls :meth:`refresh`, and
            nobody else does.
        """
        if self.panel is None:
            with suppress(DependencyError):  # nobody has asked for a widget: HTML does
                self.panel = panel_class()(self.model, self._acted)
        self._live = live
        self._output = CellOutput(self.bundle())
        if live:
            self.watch()

    def watch(self) -> None:
        """Update the model, and what is shown of it, by a thread of its own."""
        if self._ticker is None and not self.model.latest.ended:
            refresh = weakref.WeakMethod(self.refresh)
            # The thread must not keep a view alive that nobody has any more.
            ticker = Ticker(self._every, lambda: (call := refresh()) is not None and call())
            ticker.start()
            self._ticker = ticker

    def bundle(self) -> dict[str, Any]:
        """The forms of the present state, by MIME type: the widget, HTML and text."""
        forms = {} if self.panel is None else self.panel.bundle()
        return {**forms, "text/html": as_html(self.model), "text/plain": as_text(self.model)}

    def refresh(self) -> bool:
        """Take a snapshot, and draw it; whether there is more to come."""
        ended = self.model.latest.ended
        latest = self.model.sample()
        if self.panel is not None:
            self.panel.show(self.model)
        if latest.ended and not ended:
            self._save()
        return not latest.ended

    def _acted(self) -> None:
        """A button was clicked: show what came of it."""
        if self._ticker is not None and self._ticker.running:
            self._ticker.wake()
        elif self._live:
            self.refresh()

    def close(self) -> None:
        """End the updates; what is shown stays. The stream goes on. Allowed more than once."""
        if self._ticker is not None:
            self._ticker.stop()
            self._ticker = None
            if self.refresh():
                self._save()

    def _save(self) -> None:
        """Have the notebook's file hold the present state: it is what is seen where no kernel runs."""
        if self._output is not None:
            self._output.update(self.bundle())

    def let_go(self) -> None:
        """Keep what is shown, and release what it was made from."""
        self.model.let_go()
        if self.panel is not None:
            self.panel.let_go()


# --- the progress of a read


_REDRAW_EVERY = 0.1
"""Seconds between two drawings; faster ones only flicker."""
_DEFAULT_WIDTH = 80
_BAR = 24
_SMALLEST_BAR = 8
_PARTS = " ▏▎▍▌▋▊▉█"
_QUICK = 0.5
"""Seconds: what takes no longer is done before anyone has looked."""


class TextProgress(Closing):
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
        self._newest: ScanProgress | None = None
        self._drawn_at: float | None = None
        self._length = 0
        self._open = False
        self._done = False

    def __call__(self, progress: ScanProgress) -> None:
        """Take note of how far the read is, and draw it if it is time."""
        if self._newest is not None and progress.seconds < self._newest.seconds:
            # The scan runs again: a new line.
            self.close()
            self._done = False
        self._newest = progress
        complete = progress.vbuckets_total > 0 and progress.vbuckets == progress.vbuckets_total
        if complete:
            # A complete read may report once more; the line has ended then.
            if not self._done:
                self._draw(progress, final=True)
                self._done = True
            return
        now = self._clock()
        if self._live and (self._drawn_at is None or now - self._drawn_at >= _REDRAW_EVERY):
            self._drawn_at = now
            self._draw(progress, final=False)

    def close(self) -> None:
        """End the line, if one is open; the next thing printed begins on its own line."""
        if self._open:
            self._open = False
            self._length = 0
            self._write("\n")
        self._drawn_at = None

    def _draw(self, progress: ScanProgress, *, final: bool) -> None:
        # The last column stays free: writing into it makes some terminals begin a new line.
        columns = self._columns() - 1
        line = self._line(progress, columns, final=final)
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

    def _line(self, newest: ScanProgress, columns: int, *, final: bool) -> str:
        share = f"{100 * newest.share:3.0f} %"
        if not final and newest.share < 1 and share == "100 %":
            share = " 99 %"
        begins = not newest.seqnos_total and not final
        parts = [share, "connecting" if begins and not newest.rows else f"{newest.rows:,} documents"]
        if not begins:
            if newest.seconds > 0:
                parts.append(f"{newest.rows / newest.seconds:,.0f}/s")
                parts.append(f"{newest.nbytes / newest.seconds / 1e6:.1f} MB/s")
            left = "" if newest.eta is None else f"{_duration(newest.eta)} left"
            parts.append(_duration(newest.seconds) if final else left)
        texts: list[str] = []
        for part in filter(None, parts):
            if len("  ".join([*texts, part])) > columns:
                break
            texts.append(part)
        text = "  ".join(texts)
        room = min(_BAR, columns - len(text) - 3)
        return f"{self._bar(newest.share, room)} {text}" if room >= _SMALLEST_BAR else text

    def _bar(self, share: float, room: int) -> str:
        full, eighths = divmod(int(share * room * 8), 8)
        if not self._blocks:
            return f"[{'#' * full}{'-' * (room - full)}]"
        bar = "█" * full + (_PARTS[eighths] if eighths else "")
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
    """A widget, or a line where there is no notebook; DependencyError if a notebook lacks its libraries."""
    if not in_notebook():
        return TextWatcher()
    panel_class()
    return WidgetWatcher()


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
