"""What has to be known of values, besides their type, to tell which type would hold others as well."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cbframe.arrow.documents.parse import as_lists
from cbframe.json.layout import Place, is_list

_EXACT = 1 << 53
_NANOSECONDS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
_LAST_NANOSECOND = (1 << 63) - 1


class Marks:
    """Where values do not fit the type that others may need."""

    def __init__(self) -> None:
        self.inexact: set[Place] = set()
        self.negative: set[Place] = set()
        self.far: set[Place] = set()

    def look(self, array: pa.Array, place: Place) -> None:
        """Take in values; below nulls there are none, whatever stands there."""
        if array.null_count == len(array):
            return
        kind = array.type
        if pa.types.is_dictionary(kind):
            self.look(array.cast(kind.value_type), place)
        elif pa.types.is_struct(kind):
            for member, values in zip(kind, array.flatten(), strict=True):
                self.look(values, (*place, member.name))
        elif is_list(kind):
            self.look(array.flatten(), (*place, None))
        elif pa.types.is_map(kind):
            self.look(as_lists(array).flatten().field(1), (*place, None))
        elif pa.types.is_integer(kind):
            self._integers(array, place)
        elif pa.types.is_decimal(kind):
            # Such large numbers are rare.
            if place not in self.inexact and not all(map(_exact, array.drop_null().to_pylist())):
                self.inexact.add(place)
        elif pa.types.is_timestamp(kind):
            least, most = _bounds(array.view(pa.int64()))
            last = _LAST_NANOSECOND // _NANOSECONDS[kind.unit]
            if least < -last or most > last:
                self.far.add(place)

    def _integers(self, array: pa.Array, place: Place) -> None:
        least, most = _bounds(array)
        if least < 0:
            self.negative.add(place)
        if least < -_EXACT or most > _EXACT:
            numbers = array.drop_null().to_numpy()
            sizes = np.abs(numbers).view(np.uint64)  # that of the least int64 is right as unsigned, too
            sizes = sizes[sizes > _EXACT]
            # Without the zeros at its end, what a double holds has no more than 53 bits.
            if (sizes // (sizes & (~sizes + np.uint64(1))) > _EXACT).any():
                self.inexact.add(place)


def _bounds(array: pa.Array) -> tuple[int, int]:
    bounds = pc.min_max(array)
    return bounds["min"].as_py(), bounds["max"].as_py()


def _exact(number: Decimal) -> bool:
    return Decimal(float(number)) == number
