"""Arrow types by what they are called: by pyarrow, pandas, numpy and Python, and as our reads print them."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa

from cbframe.errors import ConfigurationError

_PYTHON: dict[type, pa.DataType] = {
    bool: pa.bool_(),
    int: pa.int64(),
    float: pa.float64(),
    str: pa.string(),
    bytes: pa.binary(),
    Decimal: pa.decimal128(38, 18),
    dt.date: pa.date32(),
    dt.datetime: pa.timestamp("us"),
    dt.time: pa.time64("us"),
}
_HINT = (
    "give a type of pyarrow, pandas, numpy or Python, or its name, such as 'int64', 'timestamp[us, tz=UTC]', "
    "'decimal128(38, 2)', 'list<string>', 'struct<a: int64, b: string>' or 'map<string, double>'"
)
_ATOM = re.compile(r"([A-Za-z][A-Za-z0-9_]*)(?:\[([^\]]*)\]|\(([^)]*)\))?")
_ITEM = re.compile(r"[^<>:,]*: ")
_NOT_NULL = " not null"
_STRINGS = {"string[python]", "string[pyarrow]", "string[pyarrow_numpy]"}
_MOST = 64
"""Types inside of one another."""


def arrow_type(kind: Any, field: str) -> pa.DataType:
    """The Arrow type that is meant."""
    if isinstance(kind, pa.DataType):
        return kind
    if isinstance(getattr(kind, "pyarrow_dtype", None), pa.DataType):
        return kind.pyarrow_dtype
    if isinstance(kind, type) and kind in _PYTHON:
        return _PYTHON[kind]
    try:
        if isinstance(kind, str):
            return named(kind)
        if hasattr(kind, "numpy_dtype"):
            return pa.from_numpy_dtype(kind.numpy_dtype)
        if hasattr(kind, "na_value"):
            return named(str(kind))  # pandas' own, of which numpy knows nothing
        # None is a double to numpy.
        return pa.from_numpy_dtype(np.dtype(kind if kind is not None else ""))
    except (ValueError, TypeError, pa.ArrowException) as exc:
        raise ConfigurationError(f"schema= has {kind!r} for {field!r}, which is no type", hint=_HINT) from exc


def named(text: str) -> pa.DataType:
    """The type of a name."""
    if text.lower() in _STRINGS:
        return pa.string()
    text = text.removesuffix("[pyarrow]")
    try:
        kind, end = _parse(text, 0, _MOST)
        if end == len(text):
            return kind
    except (ValueError, pa.ArrowException):
        if "<" in text[1:]:
            raise
    return pa.from_numpy_dtype(np.dtype(text))


def _parse(text: str, at: int, most: int) -> tuple[pa.DataType, int]:
    """The type at a place of a text, and where it ends."""
    atom = _ATOM.match(text, at)
    if atom is None or not most:
        raise ValueError(f"no type at {text[at:]!r}")
    name, at = atom[1].lower(), atom.end()
    if text[at : at + 1] == "<" and name in _NESTED:
        return _NESTED[name](text, at + 1, most - 1)
    inside = atom[2] if atom[2] is not None else atom[3]
    return _plain(name, [part.strip() for part in inside.split(",")] if inside else []), at


def _plain(name: str, arguments: list[str]) -> pa.DataType:
    match name, arguments:
        case (("timestamp" | "datetime64"), [unit, zone]):
            return pa.timestamp(unit, zone.removeprefix("tz="))
        case (("timestamp" | "datetime64"), [unit]):
            return pa.timestamp(unit)
        case "fixed_size_binary", [size]:
            return pa.binary(int(size))
        case "decimal128" | "decimal256", [precision, scale]:
            return (pa.decimal128 if name == "decimal128" else pa.decimal256)(int(precision), int(scale))
        case _, []:
            return pa.type_for_alias(name)
    return pa.type_for_alias(f"{name}[{', '.join(arguments)}]")


def _expect(text: str, at: int, token: str) -> int:
    if not text.startswith(token, at):
        raise ValueError(f"no {token!r} at {text[at:]!r}")
    return at + len(token)


def _item(text: str, at: int, most: int) -> tuple[pa.Field, int]:
    """A type, with or without a name before it."""
    name = _ITEM.match(text, at)
    kind, at = _parse(text, at if name is None else name.end(), most)
    nullable = not text.startswith(_NOT_NULL, at)
    field = pa.field("item" if name is None else name[0][:-2], kind, nullable=nullable)
    return field, at if nullable else at + len(_NOT_NULL)


def _list(make: Callable[[pa.Field], pa.DataType]) -> Callable[[str, int, int], tuple[pa.DataType, int]]:
    def parse(text: str, at: int, most: int) -> tuple[pa.DataType, int]:
        item, at = _item(text, at, most)
        return make(item), _expect(text, at, ">")

    return parse


def _fixed(text: str, at: int, most: int) -> tuple[pa.DataType, int]:
    item, at = _item(text, at, most)
    at = _expect(text, at, ">[")
    end = text.index("]", at)
    return pa.list_(item, int(text[at:end])), end + 1


def _map(text: str, at: int, most: int) -> tuple[pa.DataType, int]:
    key, at = _parse(text, at, most)
    at = _expect(text, at, ",")
    item, at = _parse(text, at + (text[at : at + 1] == " "), most)
    keys_sorted = text.startswith(", keys_sorted", at)
    at += len(", keys_sorted") if keys_sorted else 0
    return pa.map_(key, item, keys_sorted), _expect(text, at, ">")


def _dictionary(text: str, at: int, most: int) -> tuple[pa.DataType, int]:
    values, at = _parse(text, _expect(text, at, "values="), most)
    indices, at = _parse(text, _expect(text, at, ", indices="), most)
    at = _expect(text, at, ", ordered=")
    return pa.dictionary(indices, values, text[at : at + 1] == "1"), _expect(text, at + 1, ">")


def _struct(text: str, at: int, most: int) -> tuple[pa.DataType, int]:
    members: list[pa.Field] = []
    while text[at : at + 1] != ">":
        member, at = _member(text, at, most)
        members.append(member)
        if text[at : at + 1] != ">":
            at = _expect(text, at, ",")
            at += text[at : at + 1] == " "
    return pa.struct(members), at + 1


def _member(text: str, at: int, most: int) -> tuple[pa.Field, int]:
    """A name and a type; a name may have colons and commas in it."""
    begin = end = at
    while True:
        end = text.index(":", end)
        try:
            kind, at = _parse(text, end + 1 + (text[end + 1 : end + 2] == " "), most)
        except (ValueError, pa.ArrowException):
            end += 1
            continue
        nullable = not text.startswith(_NOT_NULL, at)
        at += 0 if nullable else len(_NOT_NULL)
        if text[at : at + 1] in (",", ">"):
            return pa.field(text[begin:end], kind, nullable=nullable), at
        end += 1


_NESTED: dict[str, Callable[[str, int, int], tuple[pa.DataType, int]]] = {
    "list": _list(pa.list_),
    "large_list": _list(pa.large_list),
    "fixed_size_list": _fixed,
    "map": _map,
    "dictionary": _dictionary,
    "struct": _struct,
}
