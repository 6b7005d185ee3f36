"""What users call: how errors and warnings leave it."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

from cbframe.errors import CbframeError
from cbframe.limits import shortage

_HERE = str(Path(__file__).parent)
P = ParamSpec("P")
T = TypeVar("T")


def public(function: Callable[P, T]) -> Callable[P, T]:
    """Raise errors from here, without the frames below, and those of the system's limits as ours.

    The frames below belong to threads and libraries; they would bury the one line that says what
    happened. An error that nobody foresaw keeps those of its cause.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except CbframeError as exc:
            raise _bare(exc)  # noqa: B904 - it is the one that is handled
        except (OSError, MemoryError, RuntimeError) as exc:
            if (error := shortage(exc)) is None:
                raise
            raise error from None

    return call


def warn(text: str) -> None:
    """Warn in the line of the program that called us: the first frame outside of this package."""
    level, frame = 2, sys._getframe(1)  # noqa: SLF001 - Python 3.12 has it as an argument of warn()
    while frame.f_code.co_filename.startswith(_HERE) and frame.f_back is not None:
        level, frame = level + 1, frame.f_back
    warnings.warn(text, UserWarning, level)


def _bare(error: CbframeError) -> CbframeError:
    """The error and its causes that are ours, without their tracebacks."""
    cause: BaseException | None = error
    while isinstance(cause, CbframeError):
        cause.__traceback__ = None
        if cause.__cause__ is None:
            cause.__suppress_context__ = True
        cause = cause.__cause__
    return error
