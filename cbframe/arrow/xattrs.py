"""The sections of extended attributes in front of documents: split off for all rows at once.

A section is its length and pairs, each of them its length, a name, NUL, JSON text, NUL. Rows are walked
together, one pair of each at a time, so there are as many steps as the longest section has pairs.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cbframe.arrow.slices import copy_slices, layout
from cbframe.errors import ProtocolError

XATTRS_TYPE = pa.map_(pa.string(), pa.string())
"""JSON text by name, in the order in which the server sent the attributes."""

_I64 = npt.NDArray[np.int64]
_U8 = npt.NDArray[np.uint8]
_WORD = 4


class SplitValues(NamedTuple):
    """Documents without their attributes, and the attributes: an empty map where there are none."""

    bodies: pa.BinaryArray
    xattrs: pa.MapArray


def split_sections(
    values: pa.BinaryArray, has_section: npt.NDArray[np.bool_], vbuckets: npt.NDArray[np.uint16]
) -> SplitValues:
    """Take the sections off the values that have one.

    Raises
    ------
    ProtocolError
        A length leads out of its section, a terminator is missing, or a name or an attribute is not
        UTF-8. Names the vbucket.
    """
    octets, bounds = layout(values)
    rows = np.flatnonzero(has_section)
    if not len(rows):
        return SplitValues(values, _maps(octets, _no_pieces(), vbuckets))
    starts, stops = bounds[:-1].copy(), bounds[1:]
    ends = _section_ends(octets, starts[rows], stops[rows], vbuckets[rows])
    pairs = _pairs(octets, rows, starts[rows] + _WORD, ends, vbuckets)
    starts[rows] = ends
    return SplitValues(copy_slices(octets, starts, stops), _maps(octets, pairs, vbuckets))


class _Pieces(NamedTuple):
    """Where names and texts are, by row and position."""

    row: _I64
    name: _I64
    nul: _I64
    end: _I64


def _no_pieces() -> _Pieces:
    nothing = np.zeros(0, np.int64)
    return _Pieces(nothing, nothing, nothing, nothing)


def _words(octets: _U8, at: _I64) -> _I64:
    """The big-endian numbers of four bytes at these places."""
    word = np.zeros(len(at), np.int64)
    for i in range(_WORD):
        word = word << 8 | octets[at + i]
    return word


def _section_ends(octets: _U8, starts: _I64, stops: _I64, vbuckets: npt.NDArray[np.uint16]) -> _I64:
    _require(stops - starts >= _WORD, vbuckets, "a value is too short for its extended attributes")
    ends = starts + _WORD + _words(octets, starts)
    _require(ends <= stops, vbuckets, "extended attributes are longer than their value")
    return ends


def _pairs(octets: _U8, rows: _I64, at: _I64, ends: _I64, vbuckets: npt.NDArray[np.uint16]) -> _Pieces:
    """Walk the sections of all rows, a pair at a time."""
    # The first NUL behind any place.
    nuls = np.flatnonzero(octets == 0)
    found: list[_Pieces] = []
    while True:
        left = at < ends
        rows, at, ends = rows[left], at[left], ends[left]
        if not len(rows):
            break
        told = vbuckets[rows]
        _require(ends - at >= _WORD, told, "an extended attribute ends in the middle of its length")
        names = at + _WORD
        stops = names + _words(octets, at)
        _require((stops <= ends) & (stops - names >= 2), told, "an extended attribute does not fit")
        # Its last byte is a NUL; the one behind the name is another, and there is none in between.
        _require(octets[stops - 1] == 0, told, "an extended attribute without its end")
        first = np.searchsorted(nuls, names)
        nul = nuls[first]
        second = nuls[np.minimum(first + 1, len(nuls) - 1)]
        _require(
            (nul < stops - 1) & (second == stops - 1), told, "an extended attribute is not name and text"
        )
        found.append(_Pieces(rows, names, nul, stops - 1))
        at = stops
    if not found:
        return _no_pieces()
    pieces = _Pieces(*(np.concatenate(column) for column in zip(*found, strict=True)))
    order = np.argsort(pieces.name)
    return _Pieces(*(column[order] for column in pieces))


def _maps(octets: _U8, pairs: _Pieces, vbuckets: npt.NDArray[np.uint16]) -> pa.MapArray:
    offsets = np.zeros(len(vbuckets) + 1, np.int32)
    np.cumsum(np.bincount(pairs.row, minlength=len(vbuckets)), out=offsets[1:])
    names, texts = (
        _as_text(copy_slices(octets, starts, stops), vbuckets[pairs.row])
        for starts, stops in ((pairs.name, pairs.nul), (pairs.nul + 1, pairs.end))
    )
    return pa.MapArray.from_arrays(pa.array(offsets), names, texts, XATTRS_TYPE)


def _as_text(pieces: pa.BinaryArray, vbuckets: npt.NDArray[np.uint16]) -> pa.StringArray:
    try:
        return pieces.cast(pa.string())
    except pa.ArrowInvalid:
        sound = np.array([_is_text(piece) for piece in pieces.to_pylist()], bool)
    _require(sound, vbuckets, "an extended attribute is not UTF-8")
    raise AssertionError("Arrow and Python must agree on what is UTF-8")


def _is_text(piece: bytes) -> bool:
    try:
        piece.decode()
    except UnicodeDecodeError:
        return False
    return True


def _require(sound: npt.NDArray[np.bool_], vbuckets: npt.NDArray[np.uint16], message: str) -> None:
    if not sound.all():
        raise ProtocolError(message, vbucket=int(vbuckets[int(np.argmin(sound))]))
