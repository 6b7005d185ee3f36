"""Small tables for people: as text, and as HTML for notebooks."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

Rows = Sequence[Sequence[str]]

_CELL = "text-align:left;vertical-align:top;padding:2px 12px 2px 0"
_CODE = "font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace"


def as_text(title: str, head: Sequence[str], rows: Rows, *, width: int = 110) -> str:
    """A title, and columns as wide as their cells; lines are cut at `width` characters."""
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
