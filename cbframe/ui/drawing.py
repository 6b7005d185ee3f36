"""What is shown where no widget lives: HTML that needs nothing, and text."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt

from cbframe.dcp.records import VBucketPhase
from cbframe.dcp.source import Problem
from cbframe.ui.model import StatsModel

CELLS = 1024
"""Most cells of a grid."""
MOVED = 0x80
"""Bit of a cell: its stream came from elsewhere a short while ago."""
UNKNOWN_LAG = 0xFFFF
NOBODY = 0xFF
NODES = 12
ERRORS = 3
TEXT = 180
"""Bytes of an error's message, and of its hint."""
_SPANS = ((5, 40), (15, 60), (30, 60), (60, 60), (120, 120))
"""Seconds that the chart shows, and in how many steps: what has just begun fills more than a corner."""
_SEVERITY = np.zeros(len(VBucketPhase), np.uint8)
_BY_SEVERITY = np.array(
    [
        VBucketPhase.UNWANTED,
        VBucketPhase.DONE,
        VBucketPhase.RUNNING,
        VBucketPhase.CLOSING,
        VBucketPhase.REQUESTED,
        VBucketPhase.WAITING,
        VBucketPhase.OWNERLESS,
    ],
    np.uint8,
)
"""From what needs no look to what needs one: a cell shows the worst of its vbuckets."""
_SEVERITY[_BY_SEVERITY] = np.arange(len(_BY_SEVERITY))


def pack(model: StatsModel) -> dict[str, Any]:
    """The traits of the canvas."""
    latest, table = model.latest, model.latest.table
    cells, lag = grid_cells(model)
    documents, nbytes = model.rates()
    share = latest.share
    counts = model.phases()
    span, bins = next((each for each in _SPANS if each[0] >= model.elapsed), _SPANS[-1])
    return {
        "head": {
            "bucket": _cut(latest.bucket, 100),
            "state": latest.state,
            "ended": latest.ended,
            "elapsed": round(model.elapsed, 1),
            "documents": latest.documents,
            "nbytes": latest.stats.total.bytes_received,
            "rate": round(documents, 1),
            "bytesRate": round(nbytes),
            "lag": latest.total_lag,
            "eta": None if (eta := model.eta()) is None else round(eta, 1),
            "share": None if share is None else round(share, 5),
            "bounded": latest.bounded,
            "vbuckets": len(table),
            "running": counts["running"],
            "done": counts["done"],
            "wanted": sum(counts.values()),
            "reconnects": latest.reconnects,
            "rollbacks": latest.stats.total.rollbacks,
            "errors": latest.stats.total.errors,
            "fill": round(latest.fill, 3),
            "span": span,
        },
        "nodes": _nodes(model),
        "problems": _problems(model),
        "cells": cells.tobytes(),
        "lags": _short(lag).tobytes(),
        "owners": _owners(table.owner).tobytes(),
        "spark": model.throughput(bins, span)[0].astype(np.float32).tobytes(),
        "counters": np.array(list(latest.stats.counts().values()), np.float64).tobytes(),
    }


def grid_cells(model: StatsModel) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """What each cell of the grid shows, and its lag."""
    latest = model.latest
    phase, lag, moved = latest.table.phase, latest.lag, latest.reopened()
    share = -(-len(phase) // CELLS)
    if share > 1:
        padding = -len(phase) % share
        phase = np.pad(phase, (0, padding)).reshape(-1, share)
        phase = _BY_SEVERITY[_SEVERITY[phase].max(axis=1)]
        lag = np.pad(lag, (0, padding), constant_values=-1).reshape(-1, share).max(axis=1)
        moved = np.asarray(np.pad(moved, (0, padding)).reshape(-1, share).any(axis=1))
    return phase | np.where(moved, np.uint8(MOVED), np.uint8(0)), lag


def _owners(owner: npt.NDArray[np.int16]) -> npt.NDArray[np.uint8]:
    share = max(1, -(-len(owner) // CELLS))
    first = owner[::share]
    return np.where((first < 0) | (first >= NOBODY), NOBODY, first).astype(np.uint8)


def _short(lag: npt.NDArray[np.int64]) -> npt.NDArray[np.uint16]:
    """Floating point of 16 bits: 11 of the number, then how often it was halved. Exact up to 2047."""
    lag = np.minimum(lag, 0x7FF << 30)
    halved = np.maximum(0, np.frexp(np.maximum(lag, 0).astype(np.float64))[1] - 11)
    packed = (np.maximum(lag, 0) >> halved) | (halved << 11)
    return np.where(lag < 0, UNKNOWN_LAG, packed).astype("<u2")


def _nodes(model: StatsModel) -> dict[str, Any]:
    """Rows in the order of the map, so that `owners` mean them, too; further ones have numbers only."""
    rows = model.nodes()
    table = [
        [
            _cut(row.node, 56),
            row.vbuckets,
            row.done if model.latest.bounded else row.streams,
            row.documents,
            round(row.documents_per_second, 1),
            round(row.bytes_per_second),
            row.lag,
            round(row.fill, 3),
            row.reconnects,
        ]
        for row in rows[:NODES]
    ]
    return {"rows": table, "more": len(rows) - len(table)}


def _problems(model: StatsModel) -> dict[str, Any]:
    rows = model.problems()
    return {
        "rows": [
            [round(seconds), *problem_texts(problem, TEXT)] for seconds, problem in rows[-ERRORS:][::-1]
        ],
        "more": max(0, len(rows) - ERRORS),
    }


def problem_texts(problem: Problem, longest: int) -> tuple[str, str, str]:
    """Where something went wrong, what, and what to do about it."""
    place = [] if problem.node is None else [problem.node]
    if problem.vbucket is not None:
        place.append(f"vbucket {problem.vbucket}")
    return _cut(", ".join(place), 80), _cut(problem.message, longest), _cut(problem.hint or "", longest)


def _cut(text: str, longest: int) -> str:
    encoded = text.encode()
    if len(encoded) <= longest:
        return text
    return encoded[: longest - 3].decode(errors="ignore") + "…"


_PROBLEMS = ERRORS
_NODES = 12
_PITCH = 7
_LAGS = ("#2a78b5", "#7fbad6", "#e6c84f", "#ee9a2e", "#c84e00")
"""As in the style sheet of the widget, by the digits of the lag."""
_DONE, _MOVED, _WAITING, _OWNERLESS = "#0b8f6f", "#a63c87", "#9aa4af55", "#c23b0099"
_CARD = (
    "box-sizing:border-box;max-width:1080px;padding:14px 18px;border:1px solid #8886;border-radius:10px;"
    "font:13px/1.45 system-ui,sans-serif;font-variant-numeric:tabular-nums"
)
_MUTED = "opacity:.65"
_STATES = {"closed": "stopped", "new": "not started"}


def as_html(model: StatsModel) -> str:
    """The state as HTML without a script, a style sheet or any address; readable on light and on dark."""
    return f'<div style="{_CARD}">{"".join(_html(model))}</div>'


def _html(model: StatsModel) -> Iterator[str]:
    latest = model.latest
    yield f"<div><b>{escape(latest.bucket or 'no bucket yet')}</b> · {escape(state_of(model))}</div>"
    cells = "".join(
        f'<td style="padding:8px 28px 8px 0;border:0;text-align:left;background:none"><span style="{_MUTED}">'
        f'{escape(name)}</span><br><b style="font-size:18px">{escape(value)}</b></td>'
        for name, value in figures_of(model)
    )
    yield f'<table style="border:0;margin:0"><tr style="background:none">{cells}</tr></table>'
    if len(latest.table):
        yield _svg(model)
    rows = model.nodes()
    if rows:
        heads = (
            "node",
            "complete" if latest.bounded else "streaming",
            "documents",
            "MB",
            "behind",
            "reconnects",
        )
        yield '<table style="border:0;margin:8px 0 0"><tr style="background:none">'
        yield "".join(f'<th style="{_cell(at)};{_MUTED}">{name}</th>' for at, name in enumerate(heads))
        yield "</tr>"
        for row in rows[:_NODES]:
            values = (
                row.node,
                f"{row.done if latest.bounded else row.streams:,} of {row.vbuckets:,}",
                f"{row.documents:,}",
                f"{row.nbytes / 1e6:,.1f}",
                _count(row.lag),
                f"{row.reconnects:,}",
            )
            yield '<tr style="background:none">'
            yield "".join(f'<td style="{_cell(at)}">{escape(value)}</td>' for at, value in enumerate(values))
            yield "</tr>"
        yield "</table>"
        if len(rows) > _NODES:
            yield f'<div style="{_MUTED}">and {len(rows) - _NODES} more nodes</div>'
    for seconds, problem in model.problems()[-_PROBLEMS:][::-1]:
        place, message, hint = map(escape, problem_texts(problem, TEXT))
        yield f'<div style="margin-top:6px"><span style="{_MUTED}">{duration(seconds)}</span> {message}'
        yield f' <span style="{_MUTED}">{place}</span>'
        yield f'<br><span style="{_MUTED}">{hint}</span></div>' if hint else "</div>"


def _cell(column: int) -> str:
    side = "left" if column == 0 else "right"
    return f"padding:2px 24px 2px 0;border:0;text-align:{side};font-weight:400;background:none"


def _svg(model: StatsModel) -> str:
    """The grid: one path for each colour, and in it a dashed line for neighbours of one row."""
    cells, lag = grid_cells(model)
    columns = 64 if len(cells) >= CELLS // 4 else min(32, len(cells))
    colours = [_colour(cell, behind) for cell, behind in zip(cells.tolist(), lag.tolist(), strict=True)]
    paths: dict[str, list[str]] = {}
    for at, colour in enumerate(colours):
        row, column = divmod(at, columns)
        if colour and (column == 0 or colours[at - 1] != colour):
            run = 1
            while column + run < columns and at + run < len(colours) and colours[at + run] == colour:
                run += 1
            paths.setdefault(colour, []).append(
                f"M{column * _PITCH} {row * _PITCH + _PITCH // 2}h{run * _PITCH - 1}"
            )
    height = -(-len(colours) // columns) * _PITCH
    dashes = f'stroke-width="{_PITCH - 1}" stroke-dasharray="{_PITCH - 1} 1"'
    drawn = "".join(
        f'<path stroke="{colour}" {dashes} d="{"".join(each)}"/>' for colour, each in paths.items()
    )
    return (
        f'<svg width="{columns * _PITCH}" height="{height}" role="img" style="display:block">'
        f"<title>{len(model.latest.table):,} vbuckets</title>{drawn}</svg>"
    )


def _colour(cell: int, lag: int) -> str:
    phase = cell & ~MOVED
    if phase == VBucketPhase.UNWANTED:
        return ""
    if phase in (VBucketPhase.WAITING, VBucketPhase.REQUESTED):
        return _WAITING
    if phase == VBucketPhase.OWNERLESS:
        return _OWNERLESS
    if cell & MOVED:
        return _MOVED
    if phase == VBucketPhase.DONE:
        return _DONE
    return _LAGS[0] if lag < 1 else _LAGS[min(4, len(str(lag)))]


def as_text(model: StatsModel) -> str:
    """The state as some lines for a terminal."""
    latest = model.latest
    lines = [f"{latest.bucket or 'no bucket yet'}: {state_of(model)}"]
    lines.append("  " + "  ".join(f"{value} {name}" for name, value in figures_of(model)))
    rows = model.nodes()
    lines += [
        f"  {row.node}  {row.done if latest.bounded else row.streams:,} of {row.vbuckets:,} vbuckets "
        f"{'complete' if latest.bounded else 'streaming'}  {row.documents:,} documents  "
        f"{row.nbytes / 1e6:,.1f} MB" + (f"  {row.reconnects} reconnects" if row.reconnects else "")
        for row in rows[:_NODES]
    ]
    if len(rows) > _NODES:
        lines.append(f"  and {len(rows) - _NODES} more nodes")
    for seconds, problem in model.problems()[-_PROBLEMS:]:
        place, message, hint = problem_texts(problem, TEXT)
        lines.append(f"  {duration(seconds)} {message}" + (f" [{place}]" if place else ""))
        if hint:
            lines.append(f"    hint: {hint}")
    return "\n".join(lines)


def state_of(model: StatsModel) -> str:
    """``running for 0:42``."""
    state = model.latest.state
    state = _STATES.get(state, state)
    if not model.elapsed:
        return state
    return f"{state} {'after' if model.latest.ended else 'for'} {duration(model.elapsed)}"


def figures_of(model: StatsModel) -> list[tuple[str, str]]:
    """The large figures: name and value."""
    latest = model.latest
    documents, nbytes = model.rates()
    found = [
        ("documents", f"{latest.documents:,}"),
        ("documents/s", f"{documents:,.0f}"),
        ("MB/s", f"{nbytes / 1e6:,.1f}"),
        ("behind", _count(latest.total_lag)),
    ]
    if latest.share is not None:
        found.append(("received", f"{int(100 * latest.share)} %"))
        if (eta := model.eta()) is not None:
            found.append(("to go", duration(eta)))
    return found


def duration(seconds: float) -> str:
    """``0:07``, ``3:07``, ``2:05:09``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _count(number: int | None) -> str:
    return "–" if number is None else f"{number:,}"
