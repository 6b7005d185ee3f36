"""What public functions share: types of arguments, how errors and warnings leave them, tables of rows."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from functools import wraps
from html import escape
from pathlib import Path
from types import TracebackType
from typing import ParamSpec, Protocol, Self, TypeAlias, TypeVar, runtime_checkable

from cbframe.errors import CbframeError
from cbframe.system import shortage

_SEE = "  see: cbframe/docs/troubleshooting.md#"
_HERE = str(Path(__file__).parent)
P = ParamSpec("P")
T = TypeVar("T")
ServerURLs: TypeAlias = str | Sequence[str]


@runtime_checkable
class Connectable(Protocol):
    """What ``read_bucket`` takes in place of a connection string: a ``LocalCluster``, for one."""

    @property
    def connection_string(self) -> str: ...
    @property
    def username(self) -> str: ...
    @property
    def password(self) -> str: ...


class Closing:
    """Something that is closed at the end of a ``with`` block."""

    __slots__ = ()

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


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
            raise _bare(error) from None

    return call


def warn(text: str) -> None:
    """Warn in the line of the program that called us: the first frame outside of this package."""
    level, frame = 2, sys._getframe(1)  # noqa: SLF001 - Python 3.12 has it as an argument of warn()
    while frame.f_code.co_filename.startswith(_HERE) and frame.f_back is not None:
        level, frame = level + 1, frame.f_back
    warnings.warn(text, UserWarning, level)


def _bare(error: CbframeError) -> CbframeError:
    """The error and its causes that are ours, without their tracebacks; one note says where to read on."""
    cause: BaseException | None = error
    while isinstance(cause, CbframeError):
        cause.__traceback__ = None
        notes = [note for note in getattr(cause, "__notes__", ()) if not note.startswith(_SEE)]
        cause.__notes__ = [*notes, f"{_SEE}{error.anchor()}"] if cause is error else notes
        if cause.__cause__ is None:
            cause.__suppress_context__ = True
        cause = cause.__cause__
    return error


Rows = Sequence[Sequence[str]]

_CELL = "text-align:left;vertical-align:top;padding:2px 12px 2px 0"
_CODE = "font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace"


def as_text(title: str, head: Sequence[str], rows: Rows, *, width: int = 110) -> str:
    """A title, and columns as wide as their cells; lines are cut at `width` characters."""
    rows = [[cell if cell.isprintable() else repr(cell)[1:-1] for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(size) for cell, size in zip(row, widths, strict=True)).rstrip()
        for row in (head, *rows)
    ]
    cut = [line if len(line) <= width else line[: width - 1] + "…" for line in lines]
    return "\n".join([title, *(cut if rows else ())])


def as_html(title: str, head: Sequence[str], rows: Rows) -> str:
    """The same in the notebook's own colours; all text is escaped."""
    names = "".join(f'<th style="{_CELL};white-space:nowrap">{escape(name)}</th>' for name in head)
    body = "".join(f"<tr>{_cells(row)}</tr>" for row in rows)
    table = f"<table><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table>" if rows else ""
    return f"<div><p><strong>{escape(title)}</strong></p>{table}</div>"


def _cells(row: Sequence[str]) -> str:
    """The first is a name, the last may be long."""
    styles = [f"{_CELL};{_CODE}", *[f"{_CELL};white-space:nowrap"] * (len(row) - 2), _CELL][: len(row)]
    cells = zip(styles, row, strict=True)
    return "".join(f'<td style="{style}">{escape(cell)}</td>' for style, cell in cells)
