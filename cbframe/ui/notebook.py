"""Where this runs: a notebook, and which of its cells."""

from __future__ import annotations

import sys
from typing import Any


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


class Output:
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
