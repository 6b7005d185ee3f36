"""A model as a small message for the browser: numbers as bytes, the rest as short JSON.

One message with everything in it stays below 10 KB, however many vbuckets, nodes and errors there are:
several vbuckets then share a cell, further nodes are counted, and long texts are cut.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cbframe.dcp.table import VBucketPhase
from cbframe.dcp.view import Problem
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
