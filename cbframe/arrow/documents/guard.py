"""Which values are sound documents: decided before the parser in C++ sees them.

``pyarrow.json`` alone lets invalid UTF-8 and NaN pass, and crashes the process on deep nesting.
"""

from __future__ import annotations

import re
from enum import IntEnum

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Verdicts = npt.NDArray[np.uint8]
"""One :class:`Reason` a row."""

_DECODE = msgspec.json.Decoder(msgspec.Raw).decode
_BLANK = b" \t\r\n"
# Linear on any input: a string without an end is taken to the end of the document.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)', re.DOTALL)
_STEP = np.zeros(256, np.int8)
_STEP[list(b"[{")] = 1
_STEP[list(b"]}")] = -1


class Reason(IntEnum):
    """Why a value has no columns; the name in lower case is the key of ``rejected``."""

    GOOD = 0
    BINARY = 1
    """The server does not call it JSON."""
    EMPTY = 2
    """No bytes, or blanks only."""
    NOT_UTF8 = 3
    TOO_DEEP = 4
    INVALID_JSON = 5
    """Also NaN and Infinity, lone surrogates, and two documents in one value."""
    NOT_AN_OBJECT = 6
    """A JSON array or scalar."""


def screen(values: pa.Array, is_json: npt.NDArray[np.bool_] | None) -> Verdicts:
    """Judge what can be judged without parsing: all rows at once."""
    verdicts = np.zeros(len(values), np.uint8)
    verdicts[pc.equal(pc.binary_length(values), 0).to_numpy(zero_copy_only=False)] = Reason.EMPTY
    if not _is_utf8(values):
        for row, value in enumerate(values.to_pylist()):
            try:
                value.decode()
            except UnicodeDecodeError:
                verdicts[row] = Reason.NOT_UTF8
    if is_json is not None:
        verdicts[~is_json] = Reason.BINARY
    return verdicts


def _is_utf8(values: pa.Array) -> bool:
    text = pa.large_string() if pa.types.is_large_binary(values.type) else pa.string()
    try:
        values.cast(text)
    except pa.ArrowInvalid:
        return False
    return True


def inspect(values: pa.Array, verdicts: Verdicts, max_depth: int) -> Verdicts:
    """Judge the rows that are good so far one by one: about half a microsecond each."""
    verdicts = verdicts.copy()
    good = verdicts == Reason.GOOD
    for row, value in zip(
        np.flatnonzero(good).tolist(), values.filter(pa.array(good)).to_pylist(), strict=True
    ):
        # A sound document of so few bytes cannot nest that deep; an unsound one not far deeper.
        if len(value) > 2 * max_depth and deeper(value, max_depth):
            verdicts[row] = Reason.TOO_DEEP
            continue
        try:
            _DECODE(value)
        except msgspec.DecodeError:
            verdicts[row] = Reason.INVALID_JSON if value.strip(_BLANK) else Reason.EMPTY
            continue
        if value[0] != 0x7B and value.lstrip(_BLANK)[0] != 0x7B:
            verdicts[row] = Reason.NOT_AN_OBJECT
    return verdicts


def deeper(value: bytes, limit: int) -> bool:
    """Whether arrays and objects nest deeper than `limit`; exact for sound documents."""
    if value.count(b"[") + value.count(b"{") <= limit:
        return False
    brackets = _STEP[np.frombuffer(_STRING.sub(b"", value), np.uint8)]
    return int(np.cumsum(brackets, dtype=np.int64).max(initial=0)) > limit


def blank(values: pa.Array, verdicts: Verdicts) -> pa.Array:
    """The values with ``{}`` in place of every rejected one: a row of nulls, so no row shifts."""
    if not verdicts.any():
        return values
    rejected = pa.array(verdicts != Reason.GOOD)
    return pc.if_else(rejected, pa.scalar(b"{}", values.type), values)
