"""Documents taken apart: fields that stay JSON text are cut out, what is left can be typed."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import msgspec
import pyarrow as pa

_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_ENCODE = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Split:
    """A range of documents without the fields that stay text.

    Attributes
    ----------
    documents
        The typed fields only, as documents again.
    texts
        For each field that stays text, its value's exact source text; null where the field is
        missing or null.
    rest
        The fields beyond the limit as one JSON object a row; null where there are none. None if
        the range has none at all.
    """

    documents: pa.Array
    texts: dict[str, pa.Array]
    rest: pa.Array | None


def split(documents: pa.Array, text: Collection[str], known: Collection[str], *, overflow: bool) -> Split:
    """Take sound documents apart.

    Parameters
    ----------
    documents
        JSON objects, all of them.
    text
        Fields that stay text.
    known
        All fields that have columns.
    overflow
        Whether there may be fields that have no columns.
    """
    cells: dict[str, list[msgspec.Raw | None]] = {name: [] for name in text}
    rest: list[bytes | None] = []
    typed = []
    for document in documents.to_pylist():
        fields = _FIELDS(document)
        for name, column in cells.items():
            column.append(fields.pop(name, None))
        if overflow:
            more = {name: fields.pop(name) for name in list(fields) if name not in known}
            rest.append(_ENCODE(more) if more else None)
        typed.append(_ENCODE(fields))
    return Split(
        pa.array(typed, documents.type),
        {name: texts(column) for name, column in cells.items()},
        pa.array(rest, pa.binary()).cast(pa.string()) if any(rest) else None,
    )


def texts(cells: list[msgspec.Raw | None]) -> pa.Array:
    """JSON text cells: the null of JSON is null."""
    sources = (None if cell is None else bytes(cell) for cell in cells)
    return pa.array([None if source == b"null" else source for source in sources], pa.binary()).cast(
        pa.string()
    )


def extract(documents: pa.Array, name: str) -> pa.Array:
    """The source text of one field of sound documents."""
    return texts([_FIELDS(document).get(name) for document in documents.to_pylist()])
