"""``show_stats``: what a stream does, in a notebook or a terminal."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Any

from cbframe.dcp.threads import Ticker
from cbframe.ui.drawing import as_html, as_text
from cbframe.ui.model import StatsModel

if TYPE_CHECKING:
    from cbframe.ui.widget import StatsPanel

EVERY = 0.25
"""Seconds between two updates: four a second at most."""


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


def show_stats(target: Any) -> StatsView:
    """Show what a stream does, live.

    In a notebook this is a widget: throughput, lag and the state of every vbucket, the nodes, the last
    problems with their hints, and buttons. A saved notebook shows how it ended. Elsewhere, ``print`` shows
    the state of the moment. A thread updates the model four times a second, until the stream ends, the
    view is closed, or nobody refers to it.

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
        self._panel: StatsPanel | None = None
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

    @property
    def panel(self) -> StatsPanel | None:
        """The widget; None where there is none."""
        return self._panel

    def display(self, *, live: bool = True) -> None:
        """Show it in the output of the present cell.

        Parameters
        ----------
        live
            Whether a thread of its own keeps it up to date; else whoever has it calls :meth:`refresh`, and
            nobody else does.
        """
        if self._panel is None:
            with suppress(ImportError):
                from cbframe.ui.widget import StatsPanel  # noqa: PLC0415 - half a second, and not everywhere

                self._panel = StatsPanel(self.model, self._acted)
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
        forms = {} if self._panel is None else self._panel.bundle()
        return {**forms, "text/html": as_html(self.model), "text/plain": as_text(self.model)}

    def refresh(self) -> bool:
        """Take a snapshot, and draw it; whether there is more to come."""
        ended = self.model.latest.ended
        latest = self.model.sample()
        if self._panel is not None:
            self._panel.show(self.model)
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
        if self._panel is not None:
            self._panel.let_go()
