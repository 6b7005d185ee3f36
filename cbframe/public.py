"""What users call: how errors leave it."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from cbframe.errors import CbframeError
from cbframe.limits import shortage

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


def _bare(error: CbframeError) -> CbframeError:
    """The error and its causes that are ours, without their tracebacks."""
    cause: BaseException | None = error
    while isinstance(cause, CbframeError):
        cause.__traceback__ = None
        if cause.__cause__ is None:
            cause.__suppress_context__ = True
        cause = cause.__cause__
    return error
