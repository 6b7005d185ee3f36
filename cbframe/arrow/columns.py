"""A block of documents as an Arrow record batch: keys and values copied once, out of the receive buffer.

Columns have the names that they have in results, ``_cb_…``, and the wire's own widths. Keys are bytes here;
what is handed out has them as bytes or as text (:func:`formed`), in which bytes that are no UTF-8 are
escaped.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Literal, TypeAlias, TypeVar, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cbframe.core import COMPILED
from cbframe.errors import ConfigurationError, ProtocolError
from cbframe.json.typer import VALUE
from cbframe.wire.blocks import DataBlock
from cbframe.wire.constants import DATA_OPCODES, MAX_BODY_LENGTH, Datatype
from cbframe.wire.messages import split_pairs

_I64: TypeAlias = npt.NDArray[np.int64]
Pairs: TypeAlias = list[tuple[str, str]]
Mask: TypeAlias = npt.NDArray[np.bool_]
"""Which of some rows."""
"""Extended attributes: JSON text by name."""
KEY = "_cb_key"
OPCODE = "_cb_opcode"
COLLECTION_ID = "_cb_collection_id"
VBUCKET = "_cb_vbucket"
SEQNO = "_cb_seqno"
DATATYPE = "_cb_datatype"
EXPIRY = "_cb_expiry"
XATTRS = "_cb_xattrs"
COLLECTION_NAMES = ("_cb_scope", "_cb_collection")
"""Columns with the names of a collection."""
XATTRS_TYPE = pa.map_(pa.string(), pa.string())
"""JSON text by name, in the order in which the server sent the attributes."""
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
_ALWAYS = (VBUCKET, SEQNO, DATATYPE)
"""What newest versions are found by, and what tells JSON from other bytes."""

KeyForm: TypeAlias = Literal["text", "binary"]
KEY_FORMS: tuple[str, ...] = get_args(KeyForm)
KEY_TYPES: dict[str, pa.DataType] = {"text": pa.string(), "binary": pa.binary()}
"""The type of the column, by form."""

_LITERAL = r"\\(x[0-9a-fA-F]{2})"
_ESCAPED = re.compile(rb"\\x([0-9a-fA-F]{2})")
_UTF8 = (
    r"\A(?:[\x00-\x7f]|[\xc2-\xdf][\x80-\xbf]|\xe0[\xa0-\xbf][\x80-\xbf]|[\xe1-\xec\xee\xef][\x80-\xbf]{2}"
    r"|\xed[\x80-\x9f][\x80-\xbf]|\xf0[\x90-\xbf][\x80-\xbf]{2}|[\xf1-\xf3][\x80-\xbf]{3}"
    r"|\xf4[\x80-\x8f][\x80-\xbf]{2})*\z"
)
_Column = TypeVar("_Column", pa.Array, pa.ChunkedArray)


def _choose() -> pa.MemoryPool:
    try:
        return pa.jemalloc_memory_pool()
    except NotImplementedError:  # a build of Arrow without it: Windows, for one
        return pa.system_memory_pool()


POOL: pa.MemoryPool = _choose()
"""The allocator of everything that is as large as the bucket.

Arrow's default allocator asks for huge pages, and the system clears each of them whole, at a cost of
up to a third of the CPU time of a read; for memory that is filled once and kept, others do better.
"""


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
    keeps_xattrs = XATTRS in schema.names
    arrays: dict[str, pa.Array]
    if COMPILED is None:
        arrays = _copied(block, keeps_xattrs, max_value)
    else:
        spans = block.key_start, block.value_start, block.value_end, block.datatype
        found = COMPILED.copy_documents(block.buffer, *spans, max_value, keeps_xattrs)
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


def copy_slices(buffer: object, starts: _I64, stops: _I64) -> pa.BinaryArray:
    """Copy ``buffer[starts[i]:stops[i]]`` for all i; each begins where the one before ends, or later.

    One binary array is laid over the buffer, whose elements are in turn a piece and what lies between
    it and the next one. ``take`` then copies the pieces in C++.

    It reserves the mean length of *all* elements for each one taken. Pieces are longer than gaps, as a
    rule, so it would grow its memory again and again, at four times the cost of the copy itself. Taking
    the last element, which is empty, often enough besides makes the reservation fit.
    """
    rows = len(starts)
    if not rows:
        return pa.array([], pa.binary())
    bounds = np.empty(2 * rows + 1, np.int32)
    bounds[0:-1:2] = starts
    bounds[1::2] = stops
    bounds[-1] = bounds[-2]
    elements = 2 * rows
    pieces = pa.BinaryArray.from_buffers(
        pa.binary(), elements, [None, pa.py_buffer(bounds), pa.py_buffer(buffer)]
    )
    wanted = int((bounds[1::2] - bounds[0:-1:2]).sum())
    total = max(int(bounds[-1] - bounds[0]), 1)
    indices = np.full(max(rows, -(-wanted * elements // total)), elements - 1, np.int32)
    indices[:rows] = np.arange(0, elements, 2)
    return pc.take(pieces, pa.array(indices), boundscheck=False, memory_pool=POOL).slice(0, rows)


def check_key_form(keys: str | None) -> None:
    """Refuse what is no form of keys."""
    if keys is not None and keys not in KEY_FORMS:
        raise ConfigurationError(f"keys={keys!r}", hint=f"choose from: {', '.join(KEY_FORMS)}")


def form_of(kind: pa.DataType) -> KeyForm:
    """The form that a column of this type has."""
    return "binary" if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) else "text"


def formed(column: _Column, form: KeyForm) -> _Column:
    """Keys in the form that was asked for."""
    keys = column if pa.types.is_binary(column.type) else column.cast(pa.binary())
    return _by_chunk(keys, _text, pa.string()) if form == "text" else keys


def with_keys(table: pa.Table, form: KeyForm) -> pa.Table:
    """A table whose keys have the form that was asked for."""
    return table.set_column(table.column_names.index(KEY), KEY, formed(table[KEY], form))


def key_bytes(column: _Column) -> _Column:
    """Keys as the server has them, of a column of either form: the opposite of :func:`formed`."""
    if pa.types.is_binary(column.type):
        return column
    return _by_chunk(column.cast(pa.binary()), _bytes, pa.binary())


def formed_key(key: bytes, form: KeyForm) -> str | bytes:
    """One key in the form that was asked for."""
    found: str | bytes = _text(pa.array([key], pa.binary()))[0].as_py() if form == "text" else key
    return found


def key_of_text(text: str) -> str | bytes:
    """The key that has this text; as it is where the text is the key itself."""
    key: bytes = key_bytes(pa.array([text]))[0].as_py()
    if formed_key(key, "text") != text:
        raise ConfigurationError(
            "filters= compares _cb_key with the text of no key",
            hint=r"the text of a key has \x5c for a backslash before xHH (two hex digits); or give bytes",
        )
    return text if key == text.encode() else key


def has_literals(column: pa.Array | pa.ChunkedArray) -> bool:
    """Whether the text of a key is not the key itself, though all are UTF-8."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    return any(_has_literals(chunk.cast(pa.binary())) for chunk in chunks)


def _by_chunk(column: _Column, convert: Callable[[pa.Array], pa.Array], kind: pa.DataType) -> _Column:
    if isinstance(column, pa.ChunkedArray):
        return pa.chunked_array([convert(chunk) for chunk in column.chunks], kind)
    return convert(column)


def _text(keys: pa.Array) -> pa.Array:
    if _has_literals(keys):
        keys = pc.replace_substring_regex(keys, _LITERAL, r"\\x5c\1")
    try:
        return keys.cast(pa.string())
    except pa.ArrowInvalid:
        odd = pc.invert(pc.match_substring_regex(keys, _UTF8))
    texts = [key.decode(errors="backslashreplace") for key in keys.filter(odd).to_pylist()]
    return pc.replace_with_mask(keys, odd, pa.array(texts, pa.string()).cast(pa.binary())).cast(pa.string())


def _bytes(texts: pa.Array) -> pa.Array:
    if not _has_literals(texts):
        return texts
    odd = pc.match_substring_regex(texts, _LITERAL)
    keys = [
        _ESCAPED.sub(lambda escape: bytes.fromhex(escape[1].decode()), text)
        for text in texts.filter(odd).to_pylist()
    ]
    return pc.replace_with_mask(texts, odd, pa.array(keys, pa.binary()))


def _has_literals(keys: pa.Array) -> bool:
    _, bounds, data = keys.buffers()
    if not len(keys) or data is None:
        return False
    start, stop = np.frombuffer(bounds, np.int32)[[keys.offset, keys.offset + len(keys)]]
    # Most keys have no backslash, and to look for one in all of them at once takes next to nothing.
    if not (np.frombuffer(data, np.uint8)[start:stop] == ord("\\")).any():
        return False
    return bool(pc.any(pc.match_substring_regex(keys, _LITERAL)).as_py())
