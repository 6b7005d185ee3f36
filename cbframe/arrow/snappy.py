"""Values that came compressed, inflated all at once.

The elements of a Snappy block refer to what the block itself put out before. So blocks can be joined
without their lengths in front, and inflated as a single one: no Python object a document. Between them
goes a literal of known bytes. Where it does not come out at its place, some block is not as long as it
says, and no row can be trusted. One thing is not found so: a block that is as long as it says and refers
to what lies before its beginning. Servers let no such block be written.

Source: google/snappy ``format_description.txt``.
"""

from __future__ import annotations

import secrets

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cbframe.arrow.slices import POOL, copy_slices, layout
from cbframe.errors import ProtocolError
from cbframe.wire import leb128

_MARK = secrets.token_bytes(16)
_LITERAL = bytes([(len(_MARK) - 1) << 2]) + _MARK
_LONGEST_VARINT = 5
_MOST_BYTES_A_BYTE = 22
"""Three bytes of a block put out at most 64: who claims more is not to be believed."""

_I64 = npt.NDArray[np.int64]


def inflate(
    values: pa.BinaryArray,
    compressed: npt.NDArray[np.bool_],
    vbuckets: npt.NDArray[np.uint16],
    limit: int,
) -> pa.BinaryArray:
    """The values with the compressed ones inflated.

    Parameters
    ----------
    values
        Without nulls.
    compressed
        Which of them are Snappy blocks.
    vbuckets
        Of each value, for error messages.
    limit
        Bytes that none may be longer than.

    Raises
    ------
    ProtocolError
        A block is broken, or says that it is longer than `limit`: before memory is taken for it.
    """
    if not compressed.any():
        return values
    blocks = values if compressed.all() else values.filter(pa.array(compressed))
    rows = np.flatnonzero(compressed)
    octets, bounds = layout(blocks)
    lengths, bodies = _preambles(octets, bounds)
    packed = bounds[1:] - bodies
    bad = (lengths < 0) | (lengths > limit) | (lengths > packed * _MOST_BYTES_A_BYTE)
    if bad.any():
        row = int(np.argmax(bad))
        length = int(lengths[row])
        told = "without a length" if length < 0 else f"of {int(packed[row])} bytes that claims {length}"
        raise ProtocolError(f"a compressed value {told}", vbucket=int(vbuckets[rows[row]]))
    inflated = _inflate_all(octets, bodies, bounds[1:], lengths)
    if inflated is None:
        raise _broken_one(octets, bodies, bounds[1:], lengths, vbuckets[rows])
    return inflated if len(inflated) == len(values) else pc.replace_with_mask(values, compressed, inflated)


def _preambles(octets: npt.NDArray[np.uint8], bounds: _I64) -> tuple[_I64, _I64]:
    """How long each block says that it is, -1 where it does not; and where its elements begin."""
    lengths = np.zeros(len(bounds) - 1, np.int64)
    at = bounds[:-1].copy()
    pending = np.arange(len(lengths))
    for place in range(_LONGEST_VARINT):
        ended = at[pending] >= bounds[pending + 1]
        lengths[pending[ended]] = -1
        pending = pending[~ended]
        byte = octets[at[pending]].astype(np.int64)
        lengths[pending] |= (byte & 0x7F) << (7 * place)
        at[pending] += 1
        pending = pending[byte >= 0x80]
    lengths[pending] = -1
    return lengths, at


def _inflate_all(
    octets: npt.NDArray[np.uint8], starts: _I64, stops: _I64, lengths: _I64
) -> pa.BinaryArray | None:
    """All blocks as one; None if they are not what they say."""
    bodies = copy_slices(octets, starts, stops)
    joined = pc.binary_join_element_wise(bodies, pa.scalar(_LITERAL, pa.binary()), b"", memory_pool=POOL)
    stream, bounds = layout(joined)
    total = int(lengths.sum()) + len(_MARK) * len(lengths)
    block = b"".join((leb128.encode(total), stream[bounds[0] : bounds[-1]].data))
    try:
        plain = pa.decompress(block, total, codec="snappy", memory_pool=POOL)
    except OSError:
        return None
    ends = np.cumsum(lengths + len(_MARK)) - len(_MARK)
    found = np.frombuffer(plain, np.uint8)
    if not all((found[ends + i] == byte).all() for i, byte in enumerate(_MARK)):
        return None
    return copy_slices(plain, ends - lengths, ends)


def _broken_one(
    octets: npt.NDArray[np.uint8],
    starts: _I64,
    stops: _I64,
    lengths: _I64,
    vbuckets: npt.NDArray[np.uint16],
) -> ProtocolError:
    """Which block it is takes a second look, in order."""
    for row in range(len(lengths)):
        piece = slice(row, row + 1)
        if _inflate_all(octets, starts[piece], stops[piece], lengths[piece]) is None:
            return ProtocolError("a compressed value is broken", vbucket=int(vbuckets[row]))
    return ProtocolError("compressed values are broken")
