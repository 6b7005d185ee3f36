"""How far a read is, and to whom that is reported: a function, or one of the forms that have names.

This floor draws nothing. The forms are brought by a floor above, which :mod:`cbframe` loads together
with this one; where it is not loaded, only functions are called.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, runtime_checkable

from cbframe.dcp.source import BucketDataSource
from cbframe.errors import DependencyError

_log = logging.getLogger("cbframe.ui")
_MAKERS: dict[str, Callable[[], Watcher | None]] = {}
"""Forms of progress by name, brought by the floor above."""
_SHOWS: list[Callable[[object], bool]] = []
"""What shows an object in a notebook, brought by the floor above."""
_LEAST, _WINDOW = 1.0, 4.0
"""Seconds of the past, at least and at most, from which the remaining time is computed."""
_MOST = 10 * 86400.0
"""Seconds beyond which nobody waits for a read: hardly anything has come yet."""


@dataclass(frozen=True, slots=True)
class ScanProgress:
    """How far a read is.

    Attributes
    ----------
    rows, nbytes
        Messages with documents received, and their bytes on the wire.
    seqnos, seqnos_total
        Summed over all vbuckets: reached, and to be reached. Exact; de-duplicated changes count.
    vbuckets, vbuckets_total
        Complete, and wanted.
    seconds
        Since the read began.
    eta
        Seconds until it is complete, by the seqnos of the last seconds. None while nobody can tell: within
        a second after streams were requested, in a stall, and with `n_rows`.
    """

    rows: int
    nbytes: int
    seqnos: int
    seqnos_total: int
    vbuckets: int
    vbuckets_total: int
    seconds: float
    eta: float | None = None

    @property
    def share(self) -> float:
        """Between 0 and 1."""
        if self.seqnos_total:
            return min(1.0, self.seqnos / self.seqnos_total)
        return float(self.vbuckets_total > 0 and self.vbuckets == self.vbuckets_total)


class Pace:
    """How long a bounded source still takes, by its pace in the last seconds. It has no clock of its own."""

    def __init__(self) -> None:
        self._recent: deque[tuple[float, int]] = deque()
        self._even: tuple[int, int] | None = None

    def add(self, seconds: float, reached: int, total: int, requests: int) -> float | None:
        """Take note of how far it is; seconds to go, or None."""
        # A stream that is requested stands where it was before, and that is no pace.
        recent, even = self._recent, (total, requests)
        if even != self._even or (recent and reached < recent[-1][1]):
            recent.clear()
            self._even = even
        recent.append((seconds, reached))
        while len(recent) > 2 and seconds - recent[1][0] >= _WINDOW:
            recent.popleft()
        passed, gained = seconds - recent[0][0], reached - recent[0][1]
        if passed < _LEAST or gained <= 0:
            return None
        left = (total - reached) * passed / gained
        return left if 0 <= left <= _MOST else None


ProgressCallback: TypeAlias = Callable[[ScanProgress], None]
ProgressForm: TypeAlias = Literal["auto", "widget", "text"]
Progress: TypeAlias = ProgressCallback | ProgressForm | bool | None
FORMS: tuple[str, ...] = ("auto", "widget", "text")


@runtime_checkable
class Watcher(Protocol):
    """A form of progress: made for one run, and called at its begin and end.

    A run may look at several sources, one after the other.
    """

    def begin(self, source: BucketDataSource) -> None:
        """Take note that a source is about to start."""

    def __call__(self, progress: ScanProgress) -> None:
        """Take note of how far the run is; about ten times a second."""

    def end(self) -> None:
        """Take note that the run is over, well or not."""


def bring_form(name: ProgressForm, make: Callable[[], Watcher | None]) -> None:
    """Have ``progress=name`` mean what `make` gives; None shows nothing."""
    _MAKERS[name] = make


class Harmless:
    """A form that never ends the run: what it raises is logged once, and nothing more is shown.

    Only a form that cannot be made, since a library is absent, is an error: before anything is read.
    """

    def __init__(self, make: Callable[[], Watcher | None]) -> None:
        self._form: Watcher | None = None
        self._try(lambda: setattr(self, "_form", make()))

    def begin(self, source: BucketDataSource) -> None:
        if (form := self._form) is not None:
            self._try(lambda: form.begin(source))

    def __call__(self, progress: ScanProgress) -> None:
        if (form := self._form) is not None:
            self._try(lambda: form(progress))

    def end(self) -> None:
        if (form := self._form) is not None:
            self._try(form.end)

    def _try(self, draw: Callable[[], object]) -> None:
        try:
            draw()
        except DependencyError:
            raise
        except Exception:  # noqa: BLE001 - the read is what matters, and whatever a display raises, it goes on
            _log.warning("the progress of a read is no longer shown", exc_info=True)
            form, self._form = self._form, None
            with suppress(Exception):
                if form is not None:
                    form.end()


def teller_of(progress: Progress) -> ProgressCallback | None:
    """To whom a run is reported: a :class:`Watcher`, a function, or nobody."""
    if progress is None or progress is False:
        return None
    if callable(progress):
        return progress
    make = _MAKERS.get("auto" if progress is True else progress)
    return None if make is None else Harmless(make)


# --- what a notebook shows by itself when it is the last expression of a cell


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
