"""The figures of a model in three forms: a message for the canvas in the browser, HTML, and text.

The HTML needs no script, no style sheet and no address: it is what a saved notebook shows. The message is
small however large the cluster is: at most :data:`CELLS` cells, :data:`NODES` nodes, :data:`ERRORS` errors.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt

from cbframe.dcp.stats import Problem, VBucketPhase
from cbframe.ui.model import NodeRow, StatsModel

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
_P = VBucketPhase
_BY_SEVERITY = np.array(
    [_P.UNWANTED, _P.DONE, _P.RUNNING, _P.CLOSING, _P.REQUESTED, _P.WAITING, _P.OWNERLESS], np.uint8
)
"""From what needs no attention to what does: a cell shows the worst of its vbuckets."""
_SEVERITY = np.argsort(_BY_SEVERITY).astype(np.uint8)
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


# --- the message for the canvas


def pack(model: StatsModel) -> dict[str, Any]:
    """The traits of the canvas."""
    latest, table = model.latest, model.latest.table
    cells, lag = grid_cells(model)
    documents, nbytes = model.rates()
    share, eta = latest.share, model.eta()
    counts = model.phases()
    span, bins = next((each for each in _SPANS if each[0] >= model.elapsed), _SPANS[-1])
    rows, problems = model.nodes(), model.problems()
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
            "eta": None if eta is None else round(eta, 1),
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
        # Rows in the order of the map, so that `owners` mean them, too; further ones have numbers only.
        "nodes": {
            "rows": [
                [
                    _cut(row.node, 56),
                    row.vbuckets,
                    row.done if latest.bounded else row.streams,
                    row.documents,
                    round(row.documents_per_second, 1),
                    round(row.bytes_per_second),
                    row.lag,
                    round(row.fill, 3),
                    row.reconnects,
                ]
                for row in rows[:NODES]
            ],
            "more": max(0, len(rows) - NODES),
        },
        "problems": {
            "rows": [[round(at), *problem_texts(problem)] for at, problem in problems[-ERRORS:][::-1]],
            "more": max(0, len(problems) - ERRORS),
        },
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
    first = owner[:: max(1, -(-len(owner) // CELLS))]
    return np.where((first < 0) | (first >= NOBODY), NOBODY, first).astype(np.uint8)


def _short(lag: npt.NDArray[np.int64]) -> npt.NDArray[np.uint16]:
    """Floating point of 16 bits: 11 of the number, then how often it was halved. Exact up to 2047."""
    lag = np.minimum(lag, 0x7FF << 30)
    halved = np.maximum(0, np.frexp(np.maximum(lag, 0).astype(np.float64))[1] - 11)
    packed = (np.maximum(lag, 0) >> halved) | (halved << 11)
    return np.where(lag < 0, UNKNOWN_LAG, packed).astype("<u2")


def problem_texts(problem: Problem) -> tuple[str, str, str]:
    """Where something went wrong, what, and what to do about it."""
    place = [] if problem.node is None else [problem.node]
    if problem.vbucket is not None:
        place.append(f"vbucket {problem.vbucket}")
    return _cut(", ".join(place), 80), _cut(problem.message, TEXT), _cut(problem.hint or "", TEXT)


def _cut(text: str, longest: int) -> str:
    encoded = text.encode()
    if len(encoded) <= longest:
        return text
    return encoded[: longest - 3].decode(errors="ignore") + "…"


# --- figures that people read


def _title(model: StatsModel) -> tuple[str, str]:
    """The bucket, and ``running for 0:42``."""
    latest = model.latest
    state = _STATES.get(latest.state, latest.state)
    if model.elapsed:
        state = f"{state} {'after' if latest.ended else 'for'} {duration(model.elapsed)}"
    return latest.bucket or "no bucket yet", state


def _figures(model: StatsModel) -> list[tuple[str, str]]:
    """The large figures: name and value."""
    latest = model.latest
    documents, nbytes = model.rates()
    found = [
        ("documents", f"{latest.documents:,}"),
        ("documents/s", f"{documents:,.0f}"),
        ("MB/s", f"{nbytes / 1e6:,.1f}"),
        ("behind", _count(latest.total_lag)),
    ]
    if latest.unpersisted:
        found.append(("not on all disks", f"{latest.unpersisted:,}"))
    if latest.share is not None:
        found.append(("received", f"{int(100 * latest.share)} %"))
        if (eta := model.eta()) is not None:
            found.append(("to go", duration(eta)))
    return found


def _streams(row: NodeRow, *, bounded: bool) -> str:
    return f"{row.done if bounded else row.streams:,} of {row.vbuckets:,}"


def duration(seconds: float) -> str:
    """``0:07``, ``3:07``, ``2:05:09``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _count(number: int | None) -> str:
    return "–" if number is None else f"{number:,}"


def as_text(model: StatsModel) -> str:
    """The state as some lines for a terminal."""
    bounded, rows = model.latest.bounded, model.nodes()
    lines = [": ".join(_title(model))]
    lines.append("  " + "  ".join(f"{value} {name}" for name, value in _figures(model)))
    for row in rows[:NODES]:
        streams = f"{_streams(row, bounded=bounded)} vbuckets {'complete' if bounded else 'streaming'}"
        parts = [row.node, streams, f"{row.documents:,} documents", f"{row.nbytes / 1e6:,.1f} MB"]
        if row.reconnects:
            parts.append(f"{row.reconnects} reconnects")
        lines.append("  " + "  ".join(parts))
    if len(rows) > NODES:
        lines.append(f"  and {len(rows) - NODES} more nodes")
    for seconds, problem in model.problems()[-ERRORS:]:
        place, message, hint = problem_texts(problem)
        lines.append(f"  {duration(seconds)} {message}" + (f" [{place}]" if place else ""))
        if hint:
            lines.append(f"    hint: {hint}")
    return "\n".join(lines)


def as_html(model: StatsModel) -> str:
    """The state as HTML without a script, a style sheet or any address; readable on light and on dark."""
    return f'<div style="{_CARD}">{"".join(_html(model))}</div>'


def _html(model: StatsModel) -> Iterator[str]:
    bounded, rows = model.latest.bounded, model.nodes()
    bucket, state = map(escape, _title(model))
    yield f"<div><b>{bucket}</b> · {state}</div>"
    cells = "".join(
        f'<td style="padding:8px 28px 8px 0;border:0;text-align:left;background:none"><span style="{_MUTED}">'
        f'{escape(name)}</span><br><b style="font-size:18px">{escape(value)}</b></td>'
        for name, value in _figures(model)
    )
    yield f'<table style="border:0;margin:0"><tr style="background:none">{cells}</tr></table>'
    if len(model.latest.table):
        yield _svg(model)
    if rows:
        heads = ("node", "complete" if bounded else "streaming", "documents", "MB", "behind", "reconnects")
        yield '<table style="border:0;margin:8px 0 0">'
        yield _line("th", f";{_MUTED}", heads)
        for row in rows[:NODES]:
            numbers = f"{row.documents:,}", f"{row.nbytes / 1e6:,.1f}", _count(row.lag), f"{row.reconnects:,}"
            yield _line("td", "", (row.node, _streams(row, bounded=bounded), *numbers))
        yield "</table>"
        if len(rows) > NODES:
            yield f'<div style="{_MUTED}">and {len(rows) - NODES} more nodes</div>'
    for seconds, problem in model.problems()[-ERRORS:][::-1]:
        place, message, hint = map(escape, problem_texts(problem))
        yield f'<div style="margin-top:6px"><span style="{_MUTED}">{duration(seconds)}</span> {message}'
        yield f' <span style="{_MUTED}">{place}</span>'
        yield f'<br><span style="{_MUTED}">{hint}</span></div>' if hint else "</div>"


def _line(tag: str, style: str, texts: tuple[str, ...]) -> str:
    """A line of a table: the first cell to the left, the others to the right."""
    cells = (
        f'<{tag} style="padding:2px 24px 2px 0;border:0;text-align:{"right" if at else "left"};'
        f'font-weight:400;background:none{style}">{escape(text)}</{tag}>'
        for at, text in enumerate(texts)
    )
    return f'<tr style="background:none">{"".join(cells)}</tr>'


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
            start = f"M{column * _PITCH} {row * _PITCH + _PITCH // 2}"
            paths.setdefault(colour, []).append(f"{start}h{run * _PITCH - 1}")
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
