"""A block of documents as an Arrow record batch: keys and values copied once, by Arrow's own code."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cbframe.arrow.slices import copy_slices
from cbframe.arrow.snappy import inflate
from cbframe.arrow.xattrs import XATTRS_TYPE, split_sections
from cbframe.wire.blocks import DataBlock
from cbframe.wire.constants import MAX_BODY_LENGTH, Datatype

OURS = "_cb_"
"""Documents own every name that does not begin so."""
KEY = "_cb_key"
VALUE = "_cb_value"
REASON = "_cb_reason"
"""Why a value is no document; only of what was parsed."""
OPCODE = "_cb_opcode"
COLLECTION_ID = "_cb_collection_id"
VBUCKET = "_cb_vbucket"
SEQNO = "_cb_seqno"
DATATYPE = "_cb_datatype"
EXPIRY = "_cb_expiry"
XATTRS = "_cb_xattrs"

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


def is_json(datatypes: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Which values the server calls JSON."""
    flags: npt.NDArray[np.bool_] = (datatypes & Datatype.JSON) != 0
    return flags


_ALWAYS = (VBUCKET, SEQNO, DATATYPE)
"""What newest versions are found by, and what tells JSON from other bytes."""
_UNDONE = int(Datatype.SNAPPY | Datatype.XATTR)


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

    Raises
    ------
    ProtocolError
        A compressed value is broken, or longer than `max_value` bytes; or a section of extended
        attributes is broken.
    """
    values = copy_slices(block.buffer, block.value_start, block.value_end)
    values = inflate(values, block.compressed(), block.vbucket, max_value)
    keeps_xattrs = XATTRS in schema.names
    datatype = block.datatype & np.uint8(0xFF & ~(int(Datatype.SNAPPY) if keeps_xattrs else _UNDONE))
    arrays: dict[str, pa.Array] = {}
    sections = ((block.datatype & Datatype.XATTR) != 0) & (block.value_end > block.value_start)
    if keeps_xattrs or sections.any():
        values, arrays[XATTRS] = split_sections(values, sections, block.vbucket)
    arrays |= {
        KEY: copy_slices(block.buffer, block.key_start, block.value_start),
        VALUE: values,
        OPCODE: pa.array(block.opcode),
        COLLECTION_ID: pa.array(block.collection_id),
        DATATYPE: pa.array(datatype),
    }
    for name in schema.names:
        if name not in arrays:
            arrays[name] = pa.array(getattr(block, name.removeprefix("_cb_")))
    return pa.RecordBatch.from_arrays([arrays[name] for name in schema.names], schema=schema)
