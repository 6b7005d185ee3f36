"""Values compared with those of a filter: a column at a time where Arrow is exact, else one by one."""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal, InvalidOperation
from math import floor, isinf
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cbframe.arrow.documents.filters import ORDER, SETS, Moment, Predicate, family_of
from cbframe.json.layout import Path, is_list

Mask = npt.NDArray[np.bool_]
_COMPARE: dict[str, tuple[Callable[[Any, Any], bool], Callable[[Any, Any], pa.Array]]] = {
    "==": (operator.eq, pc.equal),
    "!=": (operator.ne, pc.not_equal),
    "<": (operator.lt, pc.less),
    "<=": (operator.le, pc.less_equal),
    ">": (operator.gt, pc.greater),
    ">=": (operator.ge, pc.greater_equal),
}
_NANOSECONDS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
_DECODE = msgspec.json.Decoder().decode


def exact(integer: int) -> bool:
    """Whether an integer has an exact double."""
    try:
        return int(float(integer)) == integer
    except OverflowError:
        return False


def family(kind: pa.DataType) -> str | None:
    """The kind of the values of a column; None of nulls, and of types that no value of JSON becomes."""
    if pa.types.is_boolean(kind):
        return "boolean"
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return "number"
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind):
        return "string"
    if pa.types.is_timestamp(kind):
        return "clock" if kind.tz is None else "moment"
    if pa.types.is_struct(kind) or pa.types.is_map(kind):
        return "object"
    return "array" if is_list(kind) else None


def families_of(values: Iterable[Any]) -> set[str]:
    """The kinds of decoded values; text that is a date or a time is that, too."""
    found: set[str] = set()
    for value in values:
        if isinstance(value, str):
            found.add("string")
            if (moment := Moment.of_text(value)) is not None:
                found.add(family_of(moment))
        elif value is not None:
            found.add(_family(value))
    return found


def compared(cells: pa.ChunkedArray, predicate: Predicate) -> Mask:
    """Which values of a column pass: booleans, numbers, text, bytes, timestamps, or nested ones."""
    valid: Mask = cells.is_valid().to_numpy()
    if predicate.op == "is":
        return ~valid
    held = family(cells.type)
    literals = tuple(each for each in predicate.literals if family_of(each) == held)
    dates = held == "string" and any(isinstance(each, Moment) for each in predicate.literals)
    if predicate.op == "is not" or held is None or not (literals or dates):
        # Of another kind than all of them.
        return valid if predicate.negative else np.zeros(len(cells), bool)
    fast = None if dates else _fast(cells, predicate.op, literals)
    if fast is None:
        return np.fromiter((holds(value, predicate) for value in cells.to_pylist()), bool, len(cells))
    mask: Mask = fast.fill_null(False).to_numpy() if isinstance(fast, pa.ChunkedArray) else fast & valid
    return mask & valid


def holds(value: Any, predicate: Predicate) -> bool:
    """Whether one decoded value passes."""
    if value is None:
        return predicate.op == "is"
    if predicate.op in ("is", "is not"):
        return predicate.negative
    compare = _COMPARE["==" if predicate.op not in ORDER else predicate.op][0]
    found = False
    for literal in predicate.literals:
        mine = value
        if isinstance(literal, Moment) and isinstance(value, str):
            mine = Moment.of_text(value)
        if mine is None or _family(mine) != family_of(literal):
            continue
        if isinstance(literal, Moment):
            found |= compare(mine.nanoseconds, literal.nanoseconds)
        else:
            found |= compare(mine, literal)
    return found != predicate.negative


def decoded(text: str | bytes) -> Any:
    """Sound JSON as Python's values: numbers with a fraction are doubles, integers are exact."""
    try:
        return _DECODE(text)
    except msgspec.ValidationError:
        # It has numbers beyond a double, or of very many digits.
        return _EXACTLY(text if isinstance(text, str) else text.decode())


def value_at(document: Any, path: Path) -> Any:
    """What a decoded value has at a path; None where it has nothing."""
    for name in path:
        if not isinstance(document, dict):
            return None
        document = document.get(name)
    return document


def _double(token: str) -> float | Decimal:
    number = float(token)
    if not isinf(number):
        return number
    try:
        return Decimal(token)
    except InvalidOperation:
        return number  # beyond even that


_EXACTLY = json.JSONDecoder(parse_int=Decimal, parse_float=_double).decode


def _family(value: Any) -> str:
    if isinstance(value, dict):
        return "object"
    return "array" if isinstance(value, list | tuple) else family_of(value)


def _fast(cells: pa.ChunkedArray, op: str, literals: Sequence[Any]) -> pa.ChunkedArray | Mask | None:
    """Compare in one call; None where Arrow would not compare exactly."""
    kind = cells.type
    if pa.types.is_timestamp(kind):
        unit = _NANOSECONDS[kind.unit]
        parts = [divmod(each.nanoseconds, unit) for each in literals]
        return _integers(cells.cast(pa.int64()), op, [(whole, not rest) for whole, rest in parts])
    if pa.types.is_integer(kind):
        if any(isinstance(each, float) and isinf(each) for each in literals):
            return None
        return _integers(cells, op, [(floor(each), each == floor(each)) for each in literals])
    if pa.types.is_floating(kind):
        doubles = all(isinstance(each, float) or exact(each) for each in literals)
        if not doubles or not pa.types.is_float64(kind):
            return None
        literals = tuple(map(float, literals))
        if op in SETS and 0.0 in literals:
            # To is_in() they are different.
            literals += (0.0, -0.0)
    elif pa.types.is_decimal(kind) or pa.types.is_nested(kind):
        return None
    if pa.types.is_binary(kind):
        literals = tuple(each.encode() if isinstance(each, str) else each for each in literals)
    elif any(isinstance(each, bytes) for each in literals):
        return None
    return _in_arrow(cells, op, literals)


def _in_arrow(cells: pa.ChunkedArray, op: str, literals: Sequence[Any]) -> pa.ChunkedArray:
    if op in SETS:
        found = pc.is_in(cells, value_set=pa.array(literals, cells.type))
        return pc.invert(found) if op == "not in" else found
    return _COMPARE[op][1](cells, pa.scalar(literals[0], cells.type))


def _integers(
    cells: pa.ChunkedArray, op: str, literals: Sequence[tuple[int, bool]]
) -> pa.ChunkedArray | Mask:
    """Integers compared with numbers, of each the next integer below and whether that is all of it."""
    kind = cells.type
    low, high = 0, (1 << kind.bit_width) - 1
    if pa.types.is_signed_integer(kind):
        low, high = -(high + 1) // 2, high // 2
    if op not in ORDER:
        some = [whole for whole, all_of_it in literals if all_of_it and low <= whole <= high]
        return _in_arrow(cells, "not in" if op in ("!=", "not in") else "in", some)
    ((whole, all_of_it),) = literals
    if not all_of_it:
        op = {"<": "<=", ">=": ">"}.get(op, op)
    if not low <= whole <= high:
        return np.full(len(cells), (whole > high) == (op in ("<", "<=")))
    return _in_arrow(cells, op, [whole])
