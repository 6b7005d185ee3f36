r"""Document keys as a column: text for every possible key, or the bytes themselves.

The server accepts any bytes as a key. As text, a key that is UTF-8 is itself, and a byte that is not part
of valid UTF-8 is written ``\xHH`` (two hex digits). Where a key contains such an escape literally, its
backslash is written ``\x5c``. So no two keys have the same text, and the text of a key depends on nothing
else: not on the batch, the file or the partition that it is in.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal, TypeAlias, TypeVar, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cbframe.arrow.columns import KEY
from cbframe.errors import ConfigurationError

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
    keys = [_ESCAPED.sub(_unescaped, text) for text in texts.filter(odd).to_pylist()]
    return pc.replace_with_mask(texts, odd, pa.array(keys, pa.binary()))


def _unescaped(escape: re.Match[bytes]) -> bytes:
    return bytes.fromhex(escape[1].decode())


def _has_literals(keys: pa.Array) -> bool:
    # Most keys have no backslash, and to look for one in all of them at once takes next to nothing.
    return _has_backslash(keys) and bool(pc.any(pc.match_substring_regex(keys, _LITERAL)).as_py())


def _has_backslash(keys: pa.Array) -> bool:
    _, bounds, data = keys.buffers()
    if not len(keys) or data is None:
        return False
    start, stop = np.frombuffer(bounds, np.int32)[[keys.offset, keys.offset + len(keys)]]
    return bool((np.frombuffer(data, np.uint8)[start:stop] == ord("\\")).any())
