"""The widget: a canvas, and the buttons over the right end of its header."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets
import traitlets

from cbframe.dcp.stats import COUNTERS
from cbframe.ui.drawing import pack
from cbframe.ui.model import StatsModel

_STATIC = Path(__file__).parent / "static"
_ACTIONS = {"pause": ("Pause", "pause"), "resume": ("Resume", "play"), "close": ("Stop", "stop")}
"""What a button calls, with its label and icon."""


class StatsCanvas(anywidget.AnyWidget):
    """The display of a :class:`~cbframe.ui.model.StatsModel`, without the buttons.

    Everything travels in one message, and only a change of ``tick`` makes the browser draw.
    """

    _esm = _STATIC / "stats.js"
    _css = _STATIC / "stats.css"

    tick = traitlets.Int(0).tag(sync=True)
    head = traitlets.Dict().tag(sync=True)
    nodes = traitlets.Dict().tag(sync=True)
    problems = traitlets.Dict().tag(sync=True)
    cells = traitlets.Bytes().tag(sync=True)
    lags = traitlets.Bytes().tag(sync=True)
    owners = traitlets.Bytes().tag(sync=True)
    spark = traitlets.Bytes().tag(sync=True)
    counters = traitlets.Bytes().tag(sync=True)
    counter_names = traitlets.List(list(COUNTERS)).tag(sync=True)

    def __init__(self, model: StatsModel, **fields: Any) -> None:
        super().__init__(**pack(model), **fields)

    def show(self, model: StatsModel) -> None:
        """Have the browser draw what the model knows now."""
        packed = pack(model)
        with self.hold_sync():
            for name, value in packed.items():
                setattr(self, name, value)
            self.tick += 1


class StatsPanel(ipywidgets.VBox):  # type: ignore[misc]
    """Shows a model, and has buttons for what can be done with its target."""

    def __init__(self, model: StatsModel, on_action: Callable[[], None]) -> None:
        self.canvas = StatsCanvas(model)
        self._target = model.target
        self._on_action = on_action
        self.buttons: dict[str, ipywidgets.Button] = {}
        offered = [name for name in _ACTIONS if callable(getattr(model.target, name, None))]
        for name, (label, icon) in _ACTIONS.items() if offered else ():
            button = ipywidgets.Button(description=label, icon=icon, tooltip=f"{label} the stream")
            button.on_click(lambda _, name=name: self._act(name))
            _hear_while_busy(button)
            self.buttons[name] = button
        row = ipywidgets.HBox(list(self.buttons.values()))
        row.add_class("cbf-buttons")
        super().__init__([row, self.canvas] if offered else [self.canvas])
        self.add_class("cbf-view")
        self._enable(model)

    def show(self, model: StatsModel) -> None:
        """Draw what the model knows now."""
        self.canvas.show(model)
        self._enable(model)

    def _enable(self, model: StatsModel) -> None:
        latest = model.latest
        paused = latest.state == "paused"
        possible = {"pause": not paused, "resume": paused, "close": True}
        for name, button in self.buttons.items():
            has = callable(getattr(model.target, name, None))
            disabled = latest.ended or not has or not possible[name]
            if button.disabled != disabled:
                button.disabled = disabled

    def _act(self, name: str) -> None:
        getattr(self._target, name)()
        self._on_action()

    def let_go(self) -> None:
        """Release the target; what is shown stays."""
        self._target = None

    def bundle(self) -> dict[str, Any]:
        """What a notebook finds the living widget by."""
        found: dict[str, Any] = self._repr_mimebundle_()
        return found


def _hear_while_busy(widget: ipywidgets.Widget) -> None:
    """Have clicks come while a cell runs, as one does that iterates over the stream.

    JupyterLab sends them to a thread of the kernel that is there for such (a subshell). Some versions of
    ipykernel then hand them to the shell that has made the widget all the same, which is the busy one.
    """
    if hasattr(widget.comm, "_reply_subshell_for"):
        widget.comm._reply_subshell_for = lambda _, chosen: chosen  # noqa: SLF001 - there is no public way
