"""What a notebook shows by itself when it is the last expression of a cell.

As with :mod:`cbframe.scan.progress`, the form comes from a floor above.
"""

from __future__ import annotations

from collections.abc import Callable

_SHOWS: list[Callable[[object], bool]] = []


def bring_display(show: Callable[[object], bool]) -> None:
    """Have `show` show what shows itself; it says whether it could here."""
    _SHOWS[:] = [show]


class ShowsItself:
    """Something with ``.source`` or with stats of its own: a notebook shows it live."""

    __slots__ = ()

    def _ipython_display_(self) -> None:
        if not any(show(self) for show in _SHOWS):
            # IPython takes this for: show it as anything else.
            raise NotImplementedError
