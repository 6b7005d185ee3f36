"""Documents cut down to the fields that are wanted, before anything is made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cbframe.arrow.documents.guard import Reason, inspect, screen

Path = tuple[str, ...]
"""Names of members, from the outside in."""
Tree = dict[str, "Tree | None"]
"""Wanted members: all of a member's value, or only some of its members."""

_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_ENCODE = msgspec.json.Encoder().encode
_OBJECT = ord("{")


def path_of(column: str | Iterable[str]) -> Path:
    """The path that a column's name means: ``"geo.lat"``, or its parts as a tuple."""
    return tuple(column.split(".")) if isinstance(column, str) else tuple(column)


class Projection:
    """Cuts documents down.

    Parameters
    ----------
    paths
        What to keep. Where a path leads through something that is no object, there is nothing.
    max_depth
        Documents that nest deeper are left as they are: they will be rejected.
    """

    def __init__(self, paths: Iterable[Path], *, max_depth: int = 200) -> None:
        self._tree: Tree = {}
        for path in sorted(set(paths)):
            _plant(self._tree, path)
        self._max_depth = max_depth
        self._decode: Callable[[bytes], Any] = _refuse
        # Members of structs have plain names, so that a field may have any name, but for those with quotes,
        # backslashes or control characters.
        with suppress(ValueError):
            self._decode = msgspec.json.Decoder(_struct(self._tree)).decode

    def apply(self, values: pa.Array, is_json: npt.NDArray[np.bool_]) -> pa.Array:
        """Cut down values; those that are no documents are left as they are.

        Parameters
        ----------
        values
            Binary array without nulls.
        is_json
            What the server says of each row.
        """
        sources = values.to_pylist()
        if is_json.all() and not self._may_be_deep(values, sources):
            try:
                # Bytes of a string are checked where it is looked at only.
                values.cast(pa.string())
                return pa.array([_ENCODE(self._decode(source)) for source in sources], values.type)
            except (msgspec.DecodeError, pa.ArrowInvalid):
                pass
        verdicts = inspect(values, screen(values, is_json), self._max_depth)
        for row in np.flatnonzero(verdicts == Reason.GOOD).tolist():
            try:
                sources[row] = _ENCODE(self._decode(sources[row]))
            except msgspec.ValidationError:
                sources[row] = _ENCODE(_cut(sources[row], self._tree))
        return pa.array(sources, values.type)

    def _may_be_deep(self, values: pa.Array, sources: list[bytes]) -> bool:
        """Whether any value can nest deeper than allowed: that takes so many brackets."""
        longest = pc.max(pc.binary_length(values)).as_py() or 0
        limit = self._max_depth
        if longest <= 2 * limit:
            return False
        return any(
            len(source) > 2 * limit and source.count(b"[") + source.count(b"{") > limit for source in sources
        )


def _plant(tree: Tree, path: Path) -> None:
    """Add a path; paths come sorted, so what contains another one comes first."""
    name, *rest = path
    if not rest:
        tree[name] = None
        return
    inner = tree.setdefault(name, {})
    if inner is not None:
        _plant(inner, tuple(rest))


def _struct(tree: Tree) -> type[msgspec.Struct]:
    fields: list[tuple[str, Any, Any]] = []
    names: dict[str, str] = {}
    for number, (name, inner) in enumerate(tree.items()):
        member = f"m{number}"
        names[member] = name
        kind = msgspec.Raw if inner is None else _struct(inner) | None
        fields.append((member, kind | msgspec.UnsetType, msgspec.field(default=msgspec.UNSET)))
    return msgspec.defstruct("Wanted", fields, rename=names, gc=False)


def _refuse(source: bytes) -> Any:
    """Leave a document to :func:`_cut`."""
    raise msgspec.ValidationError(source)


def _cut(source: bytes, tree: Tree) -> dict[str, Any]:
    """The slow way, for documents with something else where an object should be."""
    fields = _FIELDS(source)
    kept: dict[str, Any] = {}
    for name, inner in tree.items():
        raw = fields.get(name)
        if raw is None:
            continue
        if inner is not None and bytes(raw)[0] == _OBJECT:
            kept[name] = _cut(bytes(raw), inner)
        elif inner is None or bytes(raw) == b"null":
            kept[name] = raw
    return kept
