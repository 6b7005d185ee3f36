"""The order of columns, and of members in structs: that of first appearance in the bucket.

A field appears first in the document with the smallest vbucket and seqno that has a value for it;
fields that appear first in the same document stand as they stand there. Fields that are null
wherever they are come last, by name. So the order is that of the bucket, whatever the order in which
its documents arrived.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cbframe.arrow.documents.parse import as_lists

Path = tuple[str, ...]
"""Names of members, from the outside in. Items of lists and values of maps are where these are."""
Rows = npt.NDArray[np.int64]


class Order(dict[str, "Order"]):
    """Names in order of first appearance, each with the order of what is inside."""

    def add(self, value: Any, kind: pa.DataType) -> None:
        """Take in one more value, later than all before; only what the type has is looked at."""
        if isinstance(value, dict) and pa.types.is_map(kind):
            for member in value.values():
                self.add(member, kind.item_type)
        elif isinstance(value, dict) and pa.types.is_struct(kind):
            for name, member in value.items():
                at = -1 if member is None else kind.get_field_index(name)
                if at >= 0:
                    self.setdefault(name, Order()).add(member, kind.field(at).type)
        elif isinstance(value, list) and pa.types.is_list(kind):
            for item in value:
                self.add(item, kind.value_type)

    def names(self, known: Iterable[str]) -> list[str]:
        """The names that are known, in this order, then those that have not appeared."""
        known = set(known)
        return [*(name for name in self if name in known), *sorted(known - self.keys())]

    def of(self, kind: pa.DataType) -> pa.DataType:
        """A type with the members of its structs in this order."""
        if pa.types.is_list(kind):
            return pa.list_(self.of(kind.value_type))
        if pa.types.is_map(kind):
            return pa.map_(kind.key_type, self.of(kind.item_type))
        if pa.types.is_struct(kind):
            members = {member.name: member.type for member in kind}
            return pa.struct(
                [(name, self.get(name, Order()).of(members[name])) for name in self.names(members)]
            )
        return kind


@dataclass(frozen=True, slots=True)
class Places:
    """Where documents stand in the bucket, a row each.

    Attributes
    ----------
    vbucket
        uint16.
    seqno
        uint64; with the vbucket it is unique.
    """

    vbucket: npt.NDArray[np.uint16]
    seqno: npt.NDArray[np.uint64]

    def __getitem__(self, rows: slice) -> Places:
        return Places(self.vbucket[rows], self.seqno[rows])

    def where(self, keep: npt.NDArray[np.bool_]) -> Places:
        """Those of the rows that are kept."""
        return Places(self.vbucket[keep], self.seqno[keep])

    def first(self, rows: Rows | None) -> int:
        """Which of some rows, or of all, stands first."""
        vbucket = self.vbucket if rows is None else self.vbucket[rows]
        least = np.flatnonzero(vbucket == vbucket.min())
        first = least if rows is None else rows[least]
        return int(first[np.argmin(self.seqno[first])])

    def of(self, row: int) -> tuple[int, int]:
        """Vbucket and seqno of a row."""
        return int(self.vbucket[row]), int(self.seqno[row])


def firsts(columns: Mapping[str, pa.Array], places: Places) -> dict[Path, int]:
    """The row in which each field appears first, for those that appear."""
    found: dict[Path, int] = {}
    if not len(places.vbucket):
        return found
    whole = places.first(None)

    def visit(array: pa.Array, path: Path, rows: Rows | None) -> None:
        if array.null_count == len(array):
            return
        valid = rows
        if array.null_count:
            nth = np.flatnonzero(array.is_valid().to_numpy(zero_copy_only=False))
            valid = nth if rows is None else rows[nth]
        row = whole if valid is None else places.first(valid)
        # Items of a list are at the list's own path: what counts is their members.
        found.setdefault(path, row)
        _inside(array, path, rows, visit)

    for name, array in columns.items():
        visit(array, (name,), None)
    return found


def _inside(
    array: pa.Array, path: Path, rows: Rows | None, visit: Callable[[pa.Array, Path, Rows | None], None]
) -> None:
    kind = array.type
    if pa.types.is_struct(kind):
        # Below a null, members need not be null; flatten() makes them so.
        members = array.flatten() if array.null_count else [array.field(i) for i in range(len(kind))]
        for member, cells in zip(kind, members, strict=True):
            visit(cells, (*path, member.name), rows)
    elif _has_members(kind):
        lists = as_lists(array) if pa.types.is_map(kind) else array
        lengths = lists.value_lengths().fill_null(0).to_numpy()
        every = np.arange(len(array)) if rows is None else rows
        items = lists.flatten().field(1) if pa.types.is_map(kind) else lists.flatten()
        visit(items, path, np.repeat(every, lengths))


def _has_members(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind):
        return _has_members(kind.value_type)
    if pa.types.is_map(kind):
        return _has_members(kind.item_type)
    return bool(pa.types.is_struct(kind))
