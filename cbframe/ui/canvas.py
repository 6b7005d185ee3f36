"""The canvas in the browser: traits that are sent to it, once for each redraw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anywidget
import traitlets

from cbframe.dcp.stats import COUNTERS
from cbframe.ui.model import StatsModel
from cbframe.ui.packing import pack

_STATIC = Path(__file__).parent / "static"


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
