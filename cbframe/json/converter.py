"""JSON documents to typed columns, by the core that runs.

:data:`Converter` and :data:`Facts` are those of the compiled core where it is installed, and of
:mod:`cbframe.json.reference` otherwise: the same interface, the same results.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cbframe import core
from cbframe.json import reference
from cbframe.json.reference import Configuration, Layout, type_of


class CompiledConverter:
    """The compiled converter; see :class:`cbframe.json.reference.Converter`."""

    def __init__(
        self, max_members: int, known: Configuration | None = None, *, keeps_rest: bool = False
    ) -> None:
        self._core = core.compiled().Converter(max_members, known, keeps_rest=keeps_rest)

    def shred(
        self,
        data: Any,
        offsets: npt.NDArray[np.int32],
        reasons: npt.NDArray[np.uint8],
        vbuckets: npt.NDArray[np.uint16],
        seqnos: npt.NDArray[np.uint64],
    ) -> npt.NDArray[np.uint8]:
        """Take in a batch, and forget the one before; the reasons with those of what is no document."""
        return np.frombuffer(self._core.shred(data, offsets, reasons, vbuckets, seqnos), np.uint8)

    def facts(self) -> Any:
        """What the batch's documents have in common; to be asked for before :meth:`build`."""
        return self._core.facts()

    def build(self, columns: Sequence[tuple[bytes, Layout]]) -> list[pa.Array]:
        """Columns of the batch; ValueError if one cannot hold its values."""
        parts = self._core.build(columns)
        return [array_of(type_of(layout), each) for (_, layout), each in zip(columns, parts, strict=True)]

    def rest(self) -> pa.Array:
        """The members that are no columns, as JSON text; null where there is none."""
        return array_of(pa.string(), self._core.rest())

    def rows_by_kind(self, place: Sequence[bytes | None]) -> list[tuple[str, npt.NDArray[np.uint32]]]:
        """The documents with a value of each kind in a place: names of members, None for items and values."""
        return [(kind, np.frombuffer(rows, np.uint32)) for kind, rows in self._core.rows_by_kind(place)]


Converter: Any = reference.Converter if core.compiled() is None else CompiledConverter
"""That of the core that runs."""
Facts: Any = reference.Facts if core.compiled() is None else core.compiled().Facts
"""What its :meth:`~cbframe.json.reference.Converter.facts` gives."""


def array_of(kind: pa.DataType, parts: tuple[int, int, list[Any], list[Any]]) -> pa.Array:
    """An array of what the compiled core has built."""
    length, nulls, buffers, children = parts
    if pa.types.is_null(kind):
        return pa.nulls(length)
    inner: list[pa.Array] | None = None
    if pa.types.is_struct(kind):
        inner = [array_of(member.type, each) for member, each in zip(kind, children, strict=True)]
    elif pa.types.is_map(kind):
        inner = [array_of(pa.struct([kind.key_field, kind.item_field]), children[0])]
    elif pa.types.is_list(kind):
        inner = [array_of(kind.value_type, children[0])]
    held = [None if buffer is None else pa.py_buffer(buffer) for buffer in buffers]
    return pa.Array.from_buffers(kind, length, held, nulls, children=inner)
