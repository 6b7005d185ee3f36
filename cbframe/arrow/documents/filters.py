"""Which documents are wanted, decided before anything else is made of them.

A filter is written as pyarrow and pandas have it for Parquet: ``[("type", "==", "hotel"),
("geo.alt", ">", 100)]``, all of which must hold; or a list of such lists, one of which must. A value
is compared with values of its own kind: numbers with numbers, exactly, strings with strings. It is
different from (``!=``, ``not in``) any value of another kind. A field that is missing or null passes
no filter.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from math import isinf
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cbframe.arrow.columns import OURS
from cbframe.arrow.documents.facts import exact
from cbframe.arrow.documents.guard import Reason, inspect, screen
from cbframe.arrow.documents.projection import Path, Projection, path_of
from cbframe.arrow.documents.result import TypedColumns
from cbframe.arrow.documents.typer import JsonTyper
from cbframe.errors import ConfigurationError

_COMPARE: dict[str, tuple[Callable[[Any, Any], bool], Callable[[Any, Any], pa.Array]]] = {
    "==": (operator.eq, pc.equal),
    "!=": (operator.ne, pc.not_equal),
    "<": (operator.lt, pc.less),
    "<=": (operator.le, pc.less_equal),
    ">": (operator.gt, pc.greater),
    ">=": (operator.ge, pc.greater_equal),
}
_SETS = ("in", "not in")
_DECODE = msgspec.json.Decoder().decode
_DEPTH = 200


@dataclass(frozen=True, slots=True)
class Predicate:
    """One comparison: the field, ``== != < <= > >= in`` or ``not in``, and a scalar or a tuple of them."""

    path: Path
    op: str
    value: Any


Filters = tuple[tuple[Predicate, ...], ...]
"""One of these has to hold, each of them as a whole."""


def make_filters(filters: Any) -> Filters:
    """Check filters as they were written.

    Raises
    ------
    ConfigurationError
        They cannot be meant.
    """
    try:
        groups = [list(filters)] if _is_predicate(filters[0]) else [list(group) for group in filters]
        made = tuple(tuple(_predicate(*each) for each in group) for group in groups)
        if not all(made):
            raise ValueError("an empty list")  # noqa: TRY301 - told in the same words as the others
    except (TypeError, ValueError, IndexError, KeyError) as exc:
        raise ConfigurationError(
            f"filters={filters!r} are no filters ({exc})",
            hint='write filters=[("type", "==", "hotel"), ("geo.alt", ">", 100)], or a list of such lists',
        ) from exc
    return made


def _is_predicate(each: Any) -> bool:
    return len(each) == 3 and isinstance(each[1], str)


def _predicate(column: Any, op: str, value: Any) -> Predicate:
    op = "==" if op == "=" else op
    if op in _SETS:
        if isinstance(value, str | bytes):
            raise TypeError(f"{op!r} needs a list of values")
        value = tuple(value)
    elif op not in _COMPARE:
        raise ValueError(f"there is no {op!r}")
    plain = tuple(map(_plain, value)) if op in _SETS else _plain(value)
    for each in plain if op in _SETS else (plain,):
        if not isinstance(each, str | int | float):
            raise TypeError(f"a {type(each).__name__} is not compared with values of JSON")
        if isinstance(each, str):
            each.encode()  # half of a surrogate pair is in no document
    return Predicate(path_of(column), op, plain)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


class Matcher:
    """Finds the documents that pass filters."""

    def __init__(self, filters: Filters) -> None:
        self._filters = filters
        self._projection = Projection(predicate.path for group in filters for predicate in group)

    def mask(self, values: pa.Array, is_json: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Which values are documents that pass."""
        if not len(values):
            return np.zeros(0, bool)
        documents = self._projection.apply(values, is_json)
        typer = JsonTyper()
        typer.add(documents, is_json)
        typed = typer.finish()
        told = {conflict.path for conflict in typed.conflicts}
        slow: list[Any] | None = None
        passed = np.zeros(len(values), bool)
        for group in self._filters:
            passing = np.ones(len(values), bool)
            for predicate in group:
                cells = None if told else _column(typed, predicate.path)
                fast = None if cells is None else _fast(cells, predicate)
                if fast is None:
                    if slow is None:
                        slow = _decoded(documents, is_json)
                    fast = np.array([_holds(_at(document, predicate.path), predicate) for document in slow])
                passing &= fast
            passed |= passing
        return passed


def compare(cells: pa.ChunkedArray, predicate: Predicate) -> npt.NDArray[np.bool_]:
    """Which values of a column pass; those of no type that JSON has are not compared."""
    fast = _fast(cells, predicate)
    if fast is None:
        fast = np.array([_holds(value, predicate) for value in cells.to_pylist()], bool)
    return fast


def _column(typed: TypedColumns, path: Path) -> pa.ChunkedArray | None:
    """The column of a path; nulls where no document has it, None if it cannot be told apart."""
    nothing = pa.chunked_array([pa.nulls(typed.rows)])
    name, *rest = path
    if name.startswith(OURS):
        return None
    if name not in typed.table.column_names:
        return nothing
    column = typed.table[name]
    for member in rest:
        at = column.type.get_field_index(member) if pa.types.is_struct(column.type) else -1
        if at < 0:
            return nothing
        column = pc.struct_field(column, [at])
    return column


def _fast(cells: pa.ChunkedArray, predicate: Predicate) -> npt.NDArray[np.bool_] | None:
    """Compare in one call; None where Arrow would not compare exactly."""
    if pa.types.is_null(cells.type):
        return np.zeros(len(cells), bool)
    literals = predicate.value if predicate.op in _SETS else (predicate.value,)
    if not literals or not all(_comparable(cells.type, literal) for literal in literals):
        return None
    if pa.types.is_floating(cells.type):
        literals = tuple(map(float, literals))
        if predicate.op in _SETS and 0.0 in literals:
            # To is_in() they are different.
            literals += (0.0, -0.0)
    if predicate.op in _SETS:
        found = pc.is_in(cells, value_set=pa.array(literals, cells.type))
        if predicate.op == "not in":
            found = pc.and_(pc.invert(found), cells.is_valid())
    else:
        found = _COMPARE[predicate.op][1](cells, pa.scalar(literals[0], cells.type))
    mask: npt.NDArray[np.bool_] = found.fill_null(False).to_numpy()
    return mask


def _comparable(kind: pa.DataType, literal: Any) -> bool:
    if isinstance(literal, bool) or pa.types.is_boolean(kind):
        return isinstance(literal, bool) and pa.types.is_boolean(kind)
    if isinstance(literal, str):
        return bool(pa.types.is_string(kind))
    if pa.types.is_integer(kind):
        bits = kind.bit_width
        low, high = (-(1 << bits - 1), 1 << bits - 1) if pa.types.is_signed_integer(kind) else (0, 1 << bits)
        return isinstance(literal, int) and low <= literal < high
    return pa.types.is_floating(kind) and (isinstance(literal, float) or exact(literal))


def _decoded(documents: pa.Array, is_json: npt.NDArray[np.bool_]) -> list[Any]:
    verdicts = inspect(documents, screen(documents, is_json), _DEPTH)
    return [
        _decode(document) if verdict == Reason.GOOD else None
        for document, verdict in zip(documents.to_pylist(), verdicts, strict=True)
    ]


def _decode(document: bytes) -> Any:
    try:
        return _DECODE(document)
    except msgspec.ValidationError:
        # It has numbers beyond a double, or of very many digits.
        return _EXACTLY(document.decode())


def _double(token: str) -> float | Decimal:
    number = float(token)
    if not isinf(number):
        return number
    try:
        return Decimal(token)
    except InvalidOperation:
        return number  # beyond even that


_EXACTLY = json.JSONDecoder(parse_int=Decimal, parse_float=_double).decode


def _at(document: Any, path: Path) -> Any:
    for name in path:
        if not isinstance(document, dict):
            return None
        document = document.get(name)
    return document


def _holds(value: Any, predicate: Predicate) -> bool:
    if value is None:
        return False
    literals: Sequence[Any] = predicate.value if predicate.op in _SETS else (predicate.value,)
    if predicate.op in ("==", "in"):
        return any(_kind(value) is _kind(literal) and value == literal for literal in literals)
    if predicate.op in ("!=", "not in"):
        return not any(_kind(value) is _kind(literal) and value == literal for literal in literals)
    return _kind(value) is _kind(literals[0]) and _COMPARE[predicate.op][0](value, literals[0])


def _kind(value: Any) -> type:
    return float if type(value) in (int, Decimal) else type(value)
