"""Documents typed in batches, with the rows of samples instead of where these stand in the bucket."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cbframe.json.layout import Column, Policy
from cbframe.json.typer import Disagreement, Documents, Piece, Typer, fetched


@dataclass(frozen=True)
class Places:
    vbucket: npt.NDArray[np.uint16]
    seqno: npt.NDArray[np.uint64]


@dataclass(frozen=True)
class TypedColumns:
    table: pa.Table
    rows: int
    rejected: dict[str, int]
    conflicts: tuple[Disagreement, ...]
    root: Column = field(compare=False)


class JsonTyper:
    def __init__(self, policy: Policy | None = None) -> None:
        self._typer = Typer(policy)
        self._parts: list[Documents] = []
        self._pieces: list[Piece] = []
        self._rows: dict[tuple[int, int], int] = {}
        self.read_again = 0
        """How many batches were."""

    def add(
        self, values: pa.Array, is_json: npt.NDArray[np.bool_] | None = None, places: Places | None = None
    ) -> None:
        before = len(self._rows)
        if places is None:
            seqnos = np.arange(before, before + len(values), dtype=np.uint64)
            places = Places(np.zeros(len(values), np.uint16), seqnos)
        where = zip(places.vbucket.tolist(), places.seqno.tolist(), strict=True)
        self._rows |= {each: before + row for row, each in enumerate(where)}
        called = np.ones(len(values), bool) if is_json is None else is_json
        documents = Documents(values, called, places.vbucket, places.seqno)
        for part in self._typer.split(documents):
            self._parts.append(part)
            self._pieces.append(self._typer.convert(part))

    def finish(self) -> TypedColumns:
        settled = self._typer.settle(self._pieces, lambda places: fetched(self._parts, places))

        def load(part: Documents) -> Documents:
            self.read_again += 1
            return part

        tables = [
            self._typer.table(piece, settled, lambda part=part: load(part))  # type: ignore[misc]
            for piece, part in zip(self._pieces, self._parts, strict=True)
        ]
        conflicts = tuple(
            replace(
                each,
                samples={
                    kind: tuple(self._rows[where] for where in some) for kind, some in each.samples.items()
                },
            )
            for each in settled.disagreements()
        )
        empty = settled.empty()
        table = pa.concat_tables([empty, *tables]) if empty.num_columns else empty
        return TypedColumns(table, len(self._rows), settled.reasons(), conflicts, settled.layout.root)


def typed_values(values: list[Any], step: int = 1 << 30, **policy: Any) -> TypedColumns:
    """Some documents, in batches of `step`."""
    typer = JsonTyper(Policy(**policy))
    for start in range(0, len(values), step):
        typer.add(pa.array(values[start : start + step], pa.binary()))
    return typer.finish()
