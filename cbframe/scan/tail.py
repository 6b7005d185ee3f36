"""The last changes of a stream, in bounded memory, and what they come to."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from math import inf, isnan, nan
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cbframe.arrow.batcher import newest
from cbframe.arrow.columns import COLLECTION_ID, KEY, SEQNO, VBUCKET
from cbframe.errors import ConfigurationError
from cbframe.json.layout import Place
from cbframe.json.typer import VALUE
from cbframe.scan.changes import ChangeBatch, typed

if TYPE_CHECKING:
    import pandas as pd

_BARE = re.compile(r"\s*[-+]?[0-9_.]*(e[-+]?[0-9]+)?\s*", re.IGNORECASE)
"""A number without a unit, or nothing."""
_UNITS = {"s": 1, "min": 60, "h": 3600, "d": 86400}
_PLAIN = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?) *(s|min|h|d)")
"""What needs no pandas."""


@dataclass(slots=True)
class _Piece:
    """Some changes that arrived together."""

    at: float
    rows: pa.RecordBatch
    datatype: npt.NDArray[np.uint8]
    collection: npt.NDArray[np.uint32]

    def where(self, keep: npt.NDArray[np.bool_]) -> None:
        """Forget the other rows."""
        self.rows = self.rows.filter(pa.array(keep))
        self.datatype, self.collection = self.datatype[keep], self.collection[keep]

    def without(self, first: int) -> None:
        """Forget the first rows."""
        self.rows = self.rows.slice(first)
        self.datatype, self.collection = self.datatype[first:], self.collection[first:]


class Tail:
    """The last changes: all of them, since a rollback brings older versions back to light."""

    def __init__(self, schema: pa.Schema, clock: Callable[[], float]) -> None:
        self._schema = schema
        self._clock = clock
        self._maps: set[Place] = set()
        self._pieces: deque[_Piece] = deque()
        self._count = 0

    def __len__(self) -> int:
        """How many changes there are."""
        return self._count

    @property
    def nbytes(self) -> int:
        """What they take in memory."""
        return sum(piece.rows.nbytes for piece in self._pieces)

    def add(self, batch: ChangeBatch, most: int) -> None:
        """Take a batch, and forget what is before the last `most` changes then."""
        if batch.rollbacks:
            self._take_back({each.vbucket: each.seqno for each in batch.rollbacks})
        rows = batch.record_batch
        if len(rows):
            self._pieces.append(_Piece(self._clock(), rows, batch.datatype, batch.collection_ids))
        for drop in batch.drops:
            self._forget(
                lambda piece, drop=drop: (  # type: ignore[misc]
                    (piece.collection != drop.collection_id)
                    | (_numpy(piece.rows, VBUCKET) != drop.vbucket)
                    | (_numpy(piece.rows, SEQNO) >= drop.seqno)
                )
            )
        self._count = sum(len(piece.rows) for piece in self._pieces)
        self._shorten(most)

    def _take_back(self, ends: dict[int, int]) -> None:
        limits = np.full(1 << 16, np.iinfo(np.uint64).max, np.uint64)
        limits[list(ends)] = list(ends.values())
        self._forget(lambda piece: _numpy(piece.rows, SEQNO) <= limits[_numpy(piece.rows, VBUCKET)])

    def _forget(self, keeps: Callable[[_Piece], npt.NDArray[np.bool_]]) -> None:
        for piece in self._pieces:
            keep = keeps(piece)
            if not keep.all():
                piece.where(keep)

    def _shorten(self, most: int) -> None:
        while self._count > most:
            piece = self._pieces[0]
            excess = self._count - most
            if len(piece.rows) <= excess:
                self._pieces.popleft()
                self._count -= len(piece.rows)
            else:
                piece.without(excess)
                self._count = most

    def to_pandas(
        self,
        age: float | None,
        most: int,
        *,
        columns: Sequence[str | tuple[str, ...]] | None,
        dtype_backend: str | None,
    ) -> pd.DataFrame:
        """Documents in their newest version, of changes that arrived within `age` seconds."""
        from cbframe.scan.dataframe import to_pandas  # noqa: PLC0415 - pandas is slow to import

        self._shorten(most)
        oldest = None if age is None else self._clock() - age
        while oldest is not None and self._pieces and self._pieces[0].at < oldest:
            self._count -= len(self._pieces.popleft().rows)
        table = pa.Table.from_batches([piece.rows for piece in self._pieces], self._schema)
        datatype = np.concatenate([np.zeros(0, np.uint8), *(piece.datatype for piece in self._pieces)])
        ids = np.concatenate([np.zeros(0, np.uint32), *(piece.collection for piece in self._pieces)])
        keep = newest(pa.table({KEY: table[KEY], COLLECTION_ID: pa.array(ids), SEQNO: table[SEQNO]}))
        keep &= np.asarray(table[VALUE].is_valid())
        result, conflicts, rejected = typed(
            table.filter(pa.array(keep)), datatype[keep], columns=columns, maps=self._maps
        )
        about = {"conflicts": [conflict.to_dict() for conflict in conflicts], "rejected": rejected}
        return to_pandas(result, dtype_backend, about)


def _numpy(rows: pa.RecordBatch, name: str) -> npt.NDArray[np.uint64]:
    return np.asarray(rows.column(name).to_numpy())


def seconds_of(name: str, span: str | float | timedelta) -> float:
    """Seconds of a span of time: ``"5min"``, a ``timedelta``, or a number of seconds."""
    hint = 'give a text with a unit such as "5min", a timedelta, or a number of seconds'
    given: object = span
    if isinstance(given, str | timedelta | np.timedelta64):
        seconds = _seconds(given)
    elif isinstance(given, int | float | np.integer | np.floating) and not isinstance(given, bool):
        seconds = float(given)
    else:
        seconds = nan
    if isnan(seconds):
        raise ConfigurationError(f"{name}={span!r} is no span of time", hint=hint)
    if not 0 <= seconds < inf:
        raise ConfigurationError(f"{name}={span!r} is negative or infinite", hint=hint)
    return seconds


def _seconds(span: str | timedelta | np.timedelta64) -> float:
    if isinstance(span, str):
        if (plain := _PLAIN.fullmatch(span)) is not None:
            return float(plain[1]) * _UNITS[plain[2]]
        # pandas takes a number without a unit for nanoseconds.
        if _BARE.fullmatch(span):
            return nan
    import pandas as pd  # noqa: PLC0415 - slow to import

    try:
        return float(pd.Timedelta(span).total_seconds())
    except (ValueError, OverflowError):
        return nan
