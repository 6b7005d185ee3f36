"""Where the frames of a receive buffer begin: the one loop that runs for every document.

It reads nothing but the length of each body. Everything else about the frames is gathered for all
of them at once, by numpy.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cbframe.errors import ProtocolError
from cbframe.wire.constants import DATA_OPCODES, HEADER_LENGTH, MAX_BODY_LENGTH, Magic
from cbframe.wire.frame import parse_header

_BODY_LENGTH = struct.Struct(">8xI").unpack_from
_REQUESTS = (Magic.REQUEST, Magic.FLEX_REQUEST)
_KNOWN_MAGIC = np.zeros(256, bool)
_KNOWN_MAGIC[[int(magic) for magic in Magic]] = True
_DATA_OPCODE = np.zeros(256, bool)
_DATA_OPCODE[[int(opcode) for opcode in DATA_OPCODES]] = True


class FrameIndex(NamedTuple):
    """Whole frames of a buffer.

    Attributes
    ----------
    bounds
        int64, one more than there are frames: frame i is ``buffer[bounds[i]:bounds[i + 1]]``.
    is_data
        bool, one a frame: a mutation, deletion or expiration.
    """

    bounds: npt.NDArray[np.int64]
    is_data: npt.NDArray[np.bool_]


def index_frames(buffer: bytearray | memoryview, stop: int, *, max_body: int = MAX_BODY_LENGTH) -> FrameIndex:
    """Find the whole frames in ``buffer[0:stop]``; a frame that ends later is left for next time.

    Raises
    ------
    ProtocolError
        A byte that must be a magic is none, a body is longer than `max_body`, or the parts of an
        incomplete frame do not fit its body. A bad frame is found as soon as its header is there:
        nothing waits for a body that cannot be read.
    """
    bounds = [0]
    append = bounds.append
    unpack = _BODY_LENGTH
    position = 0
    last_header = stop - HEADER_LENGTH
    while position <= last_header:
        (body,) = unpack(buffer, position)
        position += body + HEADER_LENGTH
        append(position)
    if position > stop:
        bounds.pop()
    array = np.array(bounds, np.int64)
    too_long = np.flatnonzero(array[1:] - array[:-1] > max_body + HEADER_LENGTH)
    if len(too_long):
        parse_header(buffer, bounds[too_long[0]], max_body=max_body)
    octets = np.frombuffer(buffer, np.uint8, stop)
    starts = array[:-1]
    magics = octets[starts]
    bad = np.flatnonzero(~_KNOWN_MAGIC[magics])
    if len(bad):
        _refuse_magic(octets, int(starts[bad[0]]))
    # A frame that is not complete yet is checked too, as far as it is there.
    tail = bounds[-1]
    if tail <= last_header:
        parse_header(buffer, tail, max_body=max_body)
    elif tail < stop and not _KNOWN_MAGIC[octets[tail]]:
        _refuse_magic(octets, tail)
    is_request = (magics == _REQUESTS[0]) | (magics == _REQUESTS[1])
    return FrameIndex(array, is_request & _DATA_OPCODE[octets[starts + 1]])


def _refuse_magic(octets: npt.NDArray[np.uint8], offset: int) -> None:
    raise ProtocolError(
        f"not the Couchbase protocol: 0x{int(octets[offset]):02x} is no magic byte",
        offset=offset,
        hint="check that the port is the data service (11210, or 11207 with TLS)",
    )
