"""Runs of data messages as columns: no Python object a document.

Keys and values are not copied: they are positions in the receive buffer, which must stay untouched
while a block is in use.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt

from cbframe.errors import ProtocolError
from cbframe.wire import leb128
from cbframe.wire.constants import HEADER_LENGTH, Datatype, Magic, Opcode

_U8 = npt.NDArray[np.uint8]
_U32 = npt.NDArray[np.uint32]
_U64 = npt.NDArray[np.uint64]
_I64 = npt.NDArray[np.int64]

_HEADER_DTYPE = np.dtype(
    [
        ("magic", "u1"),
        ("opcode", "u1"),
        ("key_length", ">u2"),
        ("extras_length", "u1"),
        ("datatype", "u1"),
        ("vbucket", ">u2"),
        ("body_length", ">u4"),
        ("opaque", ">u4"),
        ("cas", ">u8"),
    ]
)
_SEQNOS_DTYPE = np.dtype([("seqno", ">u8"), ("rev_seqno", ">u8")])
_MUTATION_DTYPE = np.dtype([*_SEQNOS_DTYPE.descr, ("flags", ">u4"), ("expiry", ">u4")])
_WIDE_DTYPE = np.dtype([*_HEADER_DTYPE.descr, *_MUTATION_DTYPE.descr])
_DELETE_TIME_DTYPE = np.dtype([*_SEQNOS_DTYPE.descr, ("delete_time", ">u4")])
_MUTATION_EXTRAS = 31
_DELETION_V1_EXTRAS = 18
_DELETION_V2_EXTRAS = 21
_EXPIRATION_EXTRAS = 20


@dataclass(frozen=True, slots=True)
class DataBlock:
    """Mutations, deletions and expirations in the order in which they arrived.

    All arrays have one entry a message.

    Attributes
    ----------
    buffer
        The bytes that ``key_start``, ``value_start`` and ``value_end`` point into.
    opcode
        uint8: DCP_MUTATION, DCP_DELETION or DCP_EXPIRATION.
    datatype
        uint8: bits of :class:`~cbframe.wire.constants.Datatype`.
    vbucket
        uint16.
    opaque
        uint32: that of the stream request which the message answers.
    cas, seqno, rev_seqno
        uint64.
    flags
        uint32: the item's flags; 0 for deletions and expirations.
    expiry
        uint32, Unix seconds: when a mutation expires (0: never), or when a deletion or expiration
        happened (0: not told).
    collection_id
        uint32: 0 on connections without collections.
    key_start, value_start, value_end
        int64: the key (without its collection prefix) ends where the value starts.
    """

    buffer: bytearray | memoryview
    opcode: _U8
    datatype: _U8
    vbucket: npt.NDArray[np.uint16]
    opaque: _U32
    cas: _U64
    seqno: _U64
    rev_seqno: _U64
    flags: _U32
    expiry: _U32
    collection_id: _U32
    key_start: _I64
    value_start: _I64
    value_end: _I64
    nbytes: int
    """Bytes of the whole messages on the wire: what flow control counts."""

    def __len__(self) -> int:
        return len(self.opcode)

    def __repr__(self) -> str:
        return f"DataBlock({len(self)} messages, {self.nbytes} bytes)"

    def key(self, row: int) -> bytes:
        """The document key of one message."""
        return bytes(self.buffer[int(self.key_start[row]) : int(self.value_start[row])])

    def value(self, row: int) -> bytes:
        """The value of one message, as transmitted."""
        return bytes(self.buffer[int(self.value_start[row]) : int(self.value_end[row])])

    def compressed(self) -> npt.NDArray[np.bool_]:
        """Which values are Snappy blocks.

        On connections without values the datatype is that of the stored document: the bit may come with
        an empty value, or with extended attributes that are not compressed. Their section begins with a
        zero byte, and a Snappy block that begins so is empty.
        """
        marked: npt.NDArray[np.bool_] = (self.datatype & Datatype.SNAPPY) != 0
        if not marked.any():
            return marked
        marked &= self.value_end > self.value_start
        rows = np.flatnonzero(marked & ((self.datatype & Datatype.XATTR) != 0))
        octets = np.frombuffer(self.buffer, np.uint8)
        marked[rows] = octets[self.value_start[rows]] != 0
        return marked

    def select(self, rows: slice | npt.NDArray[np.bool_]) -> DataBlock:
        """The block of some of the messages; ``nbytes`` stays that of the whole block."""
        columns = {name: getattr(self, name)[rows] for name in _COLUMNS}
        return replace(self, **columns)


_COLUMNS = tuple(f.name for f in fields(DataBlock) if f.name not in ("buffer", "nbytes"))


def decode_block(
    buffer: bytearray | memoryview,
    bounds: npt.NDArray[np.int64],
    *,
    frames: npt.NDArray[np.intp] | None = None,
    collections: bool,
) -> DataBlock:
    """Decode whole data messages.

    Parameters
    ----------
    buffer
        The receive buffer.
    bounds
        int64, one more than there are frames, as :class:`~cbframe.wire.index.FrameIndex` has them.
    frames
        Numbers of the frames to decode, ascending; None for all. Each must be a data message.
    collections
        Whether keys carry a collection id in front (HELLO granted ``Feature.COLLECTIONS``).

    Raises
    ------
    ProtocolError
        Extras have a length that the message cannot have, the parts of a body do not fit into it,
        or a collection id is broken. Names opcode, vbucket and offset of the first such message.
    """
    octets = np.frombuffer(buffer, np.uint8, int(bounds[-1]))
    starts, ends = bounds[:-1], bounds[1:]
    if frames is not None:
        starts, ends = starts[frames], ends[frames]
    # One gather for header and extras, unless a frame is too short: it could lead past the buffer.
    wide = bool((ends - starts >= _WIDE_DTYPE.itemsize).all())
    header = _at(octets, starts, _WIDE_DTYPE if wide else _HEADER_DTYPE)
    opcode = header["opcode"].copy()
    vbucket = header["vbucket"].astype(np.uint16)
    key_length = header["key_length"].astype(np.int64)
    extras_start = starts + HEADER_LENGTH
    flex = header["magic"] == Magic.FLEX_REQUEST
    any_flex = bool(flex.any())
    if any_flex:
        extras_start = extras_start + np.where(flex, key_length >> 8, 0)
        key_length = np.where(flex, key_length & 0xFF, key_length)
    extras_length = header["extras_length"].astype(np.int64)
    key_start = extras_start + extras_length
    value_start = key_start + key_length

    mutation = opcode == Opcode.DCP_MUTATION
    all_mutations = bool(mutation.all())
    if all_mutations:
        sound = extras_length == _MUTATION_EXTRAS
    else:
        deletion = opcode == Opcode.DCP_DELETION
        sound = np.where(
            mutation,
            extras_length == _MUTATION_EXTRAS,
            np.where(
                deletion,
                (extras_length == _DELETION_V1_EXTRAS) | (extras_length == _DELETION_V2_EXTRAS),
                extras_length == _EXPIRATION_EXTRAS,
            ),
        )
    sound = sound & (value_start <= ends)
    if not sound.all():
        row = int(np.argmin(sound))
        raise ProtocolError(
            f"extras of {int(extras_length[row])} bytes and a key of {int(key_length[row])} in a body "
            f"of {int(header['body_length'][row])}",
            opcode=int(opcode[row]),
            vbucket=int(vbucket[row]),
            offset=int(starts[row]),
        )

    extras = header
    if any_flex or not wide:
        extras = _at(octets, extras_start, _MUTATION_DTYPE if all_mutations else _SEQNOS_DTYPE)
    if all_mutations:
        flags, expiry = extras["flags"].astype(np.uint32), extras["expiry"].astype(np.uint32)
    else:
        flags, expiry = _mixed_words(octets, extras_start, extras_length, mutation)

    collection_id = np.zeros(len(opcode), np.uint32)
    if collections:
        collection_id, key_start = _split_prefix(octets, starts, key_start, value_start, opcode, vbucket)
    return DataBlock(
        buffer=buffer,
        opcode=opcode,
        datatype=header["datatype"].copy(),
        vbucket=vbucket,
        opaque=header["opaque"].astype(np.uint32),
        cas=header["cas"].astype(np.uint64),
        seqno=extras["seqno"].astype(np.uint64),
        rev_seqno=extras["rev_seqno"].astype(np.uint64),
        flags=flags,
        expiry=expiry,
        collection_id=collection_id,
        key_start=key_start,
        value_start=value_start,
        value_end=np.asarray(ends, np.int64),
        nbytes=int((ends - starts).sum()),
    )


def _at(octets: _U8, starts: _I64, dtype: np.dtype[np.void]) -> npt.NDArray[np.void]:
    """Copy one `dtype` from each of `starts`, through a view that begins anew at every byte."""
    # As plain bytes: numpy copies structures field by field, which takes ten times as long.
    plain = np.dtype((np.void, dtype.itemsize))
    everywhere = np.ndarray((len(octets) - dtype.itemsize + 1,), plain, octets, strides=(1,))
    return everywhere[starts].view(dtype)


def _mixed_words(
    octets: _U8, extras_start: _I64, extras_length: _I64, mutation: npt.NDArray[np.bool_]
) -> tuple[_U32, _U32]:
    """Flags and expiry of a run that is not of mutations only.

    Behind the seqnos, a mutation has both; a deletion v2 and an expiration have the time of the
    deletion; a deletion v1 has only two bytes more: nothing may be read past its extras.
    """
    flags = np.zeros(len(mutation), np.uint32)
    expiry = np.zeros(len(mutation), np.uint32)
    rows = np.flatnonzero(mutation)
    if len(rows):
        extras = _at(octets, extras_start[rows], _MUTATION_DTYPE)
        flags[rows], expiry[rows] = extras["flags"], extras["expiry"]
    rows = np.flatnonzero(~mutation & (extras_length >= _EXPIRATION_EXTRAS))
    if len(rows):
        expiry[rows] = _at(octets, extras_start[rows], _DELETE_TIME_DTYPE)["delete_time"]
    return flags, expiry


def _split_prefix(
    octets: _U8, starts: _I64, key_start: _I64, key_end: _I64, opcode: _U8, vbucket: npt.NDArray[np.uint16]
) -> tuple[_U32, _I64]:
    """Read the LEB128 collection id before each key: one pass a byte, almost always a single one."""
    number = np.zeros(len(key_start), np.uint64)
    position = key_start.copy()
    pending = np.arange(len(key_start))
    for shift in range(0, 35, 7):
        at = position[pending]
        if (at >= key_end[pending]).any():
            break
        byte = octets[at]
        if shift and not byte.all():
            break  # a zero at the end: not the shortest form
        number[pending] |= (byte & np.uint8(0x7F)).astype(np.uint64) << np.uint64(shift)
        position[pending] += 1
        pending = pending[byte >= 0x80]
        if not len(pending):
            if int(number.max()) > 0xFFFF_FFFF:
                break
            return number.astype(np.uint32), position
    # Which message it is takes a second look, in order.
    row = 0
    try:
        for row in range(len(key_start)):
            leb128.decode(octets[key_start[row] : key_end[row]].tobytes())
    except ProtocolError as exc:
        raise ProtocolError(
            "a key without a canonical collection id",
            opcode=int(opcode[row]),
            vbucket=int(vbucket[row]),
            offset=int(starts[row]),
        ) from exc
    raise AssertionError("both decoders of collection ids must agree")
