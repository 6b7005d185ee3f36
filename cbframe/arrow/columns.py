"""A block of documents as an Arrow record batch: keys and values copied once, by Arrow's own code."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cbframe.arrow.memory import POOL
from cbframe.errors import ProtocolError
from cbframe.wire.blocks import DataBlock
from cbframe.wire.constants import Datatype

KEY = "_cb_key"
VALUE = "_cb_value"
OPCODE = "_cb_opcode"
COLLECTION_ID = "_cb_collection_id"
VBUCKET = "_cb_vbucket"
SEQNO = "_cb_seqno"
DATATYPE = "_cb_datatype"

METADATA_TYPES: dict[str, pa.DataType] = {
    VBUCKET: pa.uint16(),
    SEQNO: pa.uint64(),
    "_cb_cas": pa.uint64(),
    "_cb_rev_seqno": pa.uint64(),
    "_cb_expiry": pa.uint32(),
    "_cb_flags": pa.uint32(),
    DATATYPE: pa.uint8(),
}
"""Metadata columns that a caller may ask for, with the wire's own widths."""

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


def record_batch(block: DataBlock, schema: pa.Schema) -> pa.RecordBatch:
    """Copy a block out of its receive buffer.

    One binary array is laid over the whole buffer, its offsets being all boundaries of keys and
    values; every third element of it is a key, and the one behind each key is its value. ``take``
    then copies both in C++: no Python object a document.

    Raises
    ------
    ProtocolError
        A value is compressed, which was never asked for.
    """
    if (block.datatype & Datatype.SNAPPY).any():
        row = int(np.argmax(block.datatype & Datatype.SNAPPY))
        raise ProtocolError(
            "a compressed value on a connection without compression", vbucket=int(block.vbucket[row])
        )
    rows = len(block)
    bounds = np.empty(3 * rows + 1, np.int32)
    bounds[0:-1:3] = block.key_start
    bounds[1::3] = block.value_start
    bounds[2::3] = block.value_end
    bounds[-1] = bounds[-2]
    pieces = pa.BinaryArray.from_buffers(
        pa.binary(), 3 * rows, [None, pa.py_buffer(bounds), pa.py_buffer(block.buffer)]
    )
    arrays = {
        KEY: _take_thirds(pieces, 0, rows, bounds),
        VALUE: _take_thirds(pieces, 1, rows, bounds),
        OPCODE: pa.array(block.opcode),
        COLLECTION_ID: pa.array(block.collection_id),
    }
    for name in schema.names[len(arrays) :]:
        arrays[name] = pa.array(getattr(block, name.removeprefix("_cb_")))
    return pa.RecordBatch.from_arrays([arrays[name] for name in schema.names], schema=schema)


def _take_thirds(
    pieces: pa.BinaryArray, first: int, rows: int, bounds: npt.NDArray[np.int32]
) -> pa.BinaryArray:
    """Copy the elements `first`, `first` + 3, …

    ``take`` reserves the mean length of *all* elements for each one taken. Values are longer than
    that, so it would grow its memory again and again, at four times the cost of the copy itself.
    Taking the last element, which is empty, often enough besides makes the reservation fit.
    """
    wanted = int((bounds[first + 1 :: 3] - bounds[first:-1:3]).sum())
    total = int(bounds[-1] - bounds[0])
    elements = len(pieces)
    indices = np.full(max(rows, -(-wanted * elements // total)), elements - 1, np.int32)
    indices[:rows] = np.arange(first, elements, 3)
    return pc.take(pieces, pa.array(indices), boundscheck=False, memory_pool=POOL).slice(0, rows)
