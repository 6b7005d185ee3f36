"""A block of documents as an Arrow record batch: keys and values copied once, out of the receive buffer."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cbframe.arrow.slices import copy_slices
from cbframe.core import compiled
from cbframe.errors import ProtocolError
from cbframe.json.typer import VALUE
from cbframe.wire.blocks import DataBlock
from cbframe.wire.constants import DATA_OPCODES, MAX_BODY_LENGTH, Datatype
from cbframe.wire.items import split_pairs

KEY = "_cb_key"
OPCODE = "_cb_opcode"
COLLECTION_ID = "_cb_collection_id"
VBUCKET = "_cb_vbucket"
SEQNO = "_cb_seqno"
DATATYPE = "_cb_datatype"
EXPIRY = "_cb_expiry"
XATTRS = "_cb_xattrs"
XATTRS_TYPE = pa.map_(pa.string(), pa.string())
"""JSON text by name, in the order in which the server sent the attributes."""
Pairs: TypeAlias = list[tuple[str, str]]
_LONGEST_VARINT = 5
_MOST_BYTES_A_BYTE = 22
"""Three bytes of a Snappy block put out at most 64: who claims more is not to be believed."""

METADATA_TYPES: dict[str, pa.DataType] = {
    VBUCKET: pa.uint16(),
    SEQNO: pa.uint64(),
    "_cb_cas": pa.uint64(),
    "_cb_rev_seqno": pa.uint64(),
    EXPIRY: pa.uint32(),
    "_cb_flags": pa.uint32(),
    DATATYPE: pa.uint8(),
    XATTRS: XATTRS_TYPE,
}
"""Metadata columns that a caller may ask for, with the wire's own widths."""


MUTATION, DELETION, EXPIRATION = (np.uint8(opcode) for opcode in DATA_OPCODES)
"""The opcode of a row. An IntEnum would make NumPy widen a column of bytes before it compares."""
_JSON = np.uint8(Datatype.JSON)
_FEW = 1 << 16


def distinct(numbers: npt.NDArray[np.unsignedinteger[Any]]) -> list[int]:
    """The different values of a column, in order."""
    few = len(numbers) > 0 and numbers.max() < _FEW
    # np.unique() takes ten times as long.
    found: list[int] = (np.flatnonzero(np.bincount(numbers)) if few else np.unique(numbers)).tolist()
    return found


def is_json(datatypes: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Which values the server calls JSON."""
    flags: npt.NDArray[np.bool_] = (datatypes & _JSON) != 0
    return flags


_ALWAYS = (VBUCKET, SEQNO, DATATYPE)
"""What newest versions are found by, and what tells JSON from other bytes."""


def raw_schema(metadata: tuple[str, ...] = ()) -> pa.Schema:
    """The schema of :func:`record_batch`: key, value, opcode, collection id and metadata."""
    names = [*_ALWAYS, *(name for name in metadata if name in METADATA_TYPES and name not in _ALWAYS)]
    return pa.schema(
        [
            pa.field(KEY, pa.binary(), nullable=False),
            pa.field(VALUE, pa.binary(), nullable=False),
            pa.field(OPCODE, pa.uint8(), nullable=False),
            pa.field(COLLECTION_ID, pa.uint32(), nullable=False),
            *(pa.field(name, METADATA_TYPES[name], nullable=False) for name in names),
        ]
    )


def record_batch(block: DataBlock, schema: pa.Schema, *, max_value: int = MAX_BODY_LENGTH) -> pa.RecordBatch:
    """Copy a block out of its receive buffer: values inflated, without extended attributes in front.

    The datatype describes the document: never SNAPPY, and XATTR only where extended attributes are kept.
    """
    core = compiled()
    keeps_xattrs = XATTRS in schema.names
    arrays: dict[str, pa.Array]
    if core is None:
        arrays = _copied(block, keeps_xattrs, max_value)
    else:
        spans = block.key_start, block.value_start, block.value_end, block.datatype
        found = core.copy_documents(block.buffer, *spans, max_value, keeps_xattrs)
        if isinstance(found, int):
            raise _broken(block, found, max_value)
        arrays = _taken_over(len(block), [pa.py_buffer(column) for column in found], keeps_xattrs)
    for name in schema.names:
        if name not in arrays:
            column = getattr(block, name.removeprefix("_cb_"))
            arrays[name] = pa.Array.from_buffers(
                schema.field(name).type, len(block), [None, pa.py_buffer(column)]
            )
    return pa.RecordBatch.from_arrays([arrays[name] for name in schema.names], schema=schema)


def _taken_over(rows: int, buffers: list[pa.Buffer], keeps_xattrs: bool) -> dict[str, pa.Array]:
    """The buffers of the core as arrays."""
    datatype, *binaries, offsets = buffers
    text, binary, counts = pa.string(), pa.binary(), pa.int32()
    arrays = {
        KEY: pa.Array.from_buffers(binary, rows, [None, *binaries[0:2]]),
        VALUE: pa.Array.from_buffers(binary, rows, [None, *binaries[2:4]]),
        DATATYPE: pa.Array.from_buffers(pa.uint8(), rows, [None, datatype]),
    }
    if keeps_xattrs:
        pairs = binaries[4].size // counts.byte_width - 1
        names, texts = (
            pa.Array.from_buffers(text, pairs, [None, *both]) for both in (binaries[4:6], binaries[6:8])
        )
        bounds = pa.Array.from_buffers(counts, rows + 1, [None, offsets])
        arrays[XATTRS] = pa.MapArray.from_arrays(bounds, names, texts, XATTRS_TYPE)
    return arrays


def _copied(block: DataBlock, keeps_xattrs: bool, max_value: int) -> dict[str, pa.Array]:
    """The same, in Python."""
    done = int(Datatype.SNAPPY) if keeps_xattrs else int(Datatype.SNAPPY | Datatype.XATTR)
    xattrs: list[Pairs] = [[]] * len(block)
    if ((block.datatype & (Datatype.SNAPPY | Datatype.XATTR)) != 0).any():
        packed = block.compressed()
        documents = [_document(block, row, bool(packed[row]), max_value) for row in range(len(block))]
        xattrs = [pairs for pairs, _ in documents]
        values = pa.array([body for _, body in documents], pa.binary())
    else:
        values = copy_slices(block.buffer, block.value_start, block.value_end)
    arrays = {
        KEY: copy_slices(block.buffer, block.key_start, block.value_start),
        VALUE: values,
        DATATYPE: pa.array(block.datatype & np.uint8(0xFF & ~done)),
    }
    if keeps_xattrs:
        arrays[XATTRS] = pa.array(xattrs, XATTRS_TYPE)
    return arrays


def _document(block: DataBlock, row: int, packed: bool, max_value: int) -> tuple[Pairs, bytes]:
    """The extended attributes and the value of one message."""
    value = block.value(row)
    has_section = bool(value) and bool(block.datatype[row] & Datatype.XATTR)
    vbucket = int(block.vbucket[row])
    try:
        if packed:
            value = _inflated(value, max_value)
        if not has_section:
            return [], value
        pairs, value = split_pairs(value)
        return [(name, text.decode()) for name, text in pairs], value
    except UnicodeDecodeError:
        raise ProtocolError("an extended attribute is not UTF-8", vbucket=vbucket) from None
    except ProtocolError as exc:
        exc.vbucket = vbucket
        raise


def _inflated(block: bytes, max_value: int) -> bytes:
    """What is in a Snappy block; source: google/snappy ``format_description.txt``."""
    length = place = 0
    for place, byte in enumerate(block[:_LONGEST_VARINT]):
        length |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            break
    else:
        raise ProtocolError("a compressed value without a length")
    packed = len(block) - place - 1
    if length > max_value or length > packed * _MOST_BYTES_A_BYTE:
        raise ProtocolError(f"a compressed value of {packed} bytes that claims {length}")
    try:
        return bytes(pa.decompress(block, length, codec="snappy", asbytes=True))
    except OSError:
        raise ProtocolError("a compressed value is broken") from None


def _broken(block: DataBlock, row: int, max_value: int) -> ProtocolError:
    """What is wrong with the first document that the core cannot take."""
    try:
        _document(block, row, bool(block.compressed()[row]), max_value)
    except ProtocolError as exc:
        return exc
    return ProtocolError("the documents of a block take more than 2 GiB", vbucket=int(block.vbucket[row]))
