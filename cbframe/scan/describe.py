"""What the fields of documents look like: how often they are there, how many values they have, which."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cbframe.arrow.documents.parse import as_lists
from cbframe.json.typer import OURS, quoted

_SMALLEST = 1024
"""Hashes that are kept of a field: fewer different values are counted exactly, more within some 3 %."""
_EXAMPLES = 3
_LENGTH = 60
"""Characters of an example."""


@dataclass(slots=True)
class Field:
    """What is known of one field."""

    path: str
    type: pa.DataType  # of the values; that of the last table
    places: int = 0
    values: int = 0  # where one is
    _hashes: npt.NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))
    _examples: dict[int, str] = field(default_factory=dict)

    @property
    def exact(self) -> bool:
        """Whether :attr:`distinct` is no estimate."""
        return len(self._hashes) < _SMALLEST

    @property
    def distinct(self) -> int | None:
        """How many different values there are, about; None of structs and lists."""
        if pa.types.is_nested(self.type):
            return None
        if self.exact:
            return len(self._hashes)
        # That many hashes out of all that are spread evenly lie below the largest of the smallest.
        share = int(self._hashes[-1]) / 2.0**64
        return min(self.values, round((_SMALLEST - 1) / share))

    @property
    def examples(self) -> tuple[str, ...]:
        """Some values as text: which ones depends on the values alone."""
        return tuple(self._examples[at] for at in sorted(self._examples))

    def add(self, array: pa.Array) -> None:
        """Take in the values of one more table."""
        self.type = array.type
        self.places += len(array)
        self.values += len(array) - array.null_count
        if pa.types.is_nested(array.type) or array.null_count == len(array):
            return
        values = pc.unique(array.drop_null())
        hashes = _hashes(values)
        smallest = np.argsort(hashes, kind="stable")
        self._hashes = np.union1d(self._hashes, hashes[smallest[:_SMALLEST]])[:_SMALLEST]
        for at in smallest[:_EXAMPLES].tolist():
            self._examples.setdefault(int(hashes[at]), _shown(values[at]))
        for at in sorted(self._examples)[_EXAMPLES:]:
            del self._examples[at]


class Description:
    """The fields of any number of tables with one schema."""

    def __init__(self, is_path: Callable[[str], bool] = lambda name: False) -> None:  # noqa: ARG005
        self._is_path = is_path
        self.rows = 0
        self.fields: dict[str, Field] = {}

    def add(self, batch: pa.RecordBatch) -> None:
        """Take in some rows."""
        self.rows += len(batch)
        for name, array in zip(batch.schema.names, batch.columns, strict=True):
            if not name.startswith(OURS) or name.endswith("_"):
                self._visit(name if self._is_path(name) else quoted(name), array)

    def _visit(self, path: str, array: pa.Array) -> None:
        self.fields.setdefault(path, Field(path, array.type)).add(array)
        if pa.types.is_struct(array.type):
            # What is inside of nothing is not missing.
            inside = array.filter(array.is_valid())
            for at, member in enumerate(array.type):
                self._visit(f"{path}.{quoted(member.name)}", inside.field(at))
        elif pa.types.is_list(array.type):
            self._visit(f"{path}[]", array.flatten())
        elif pa.types.is_map(array.type):
            self._visit(f"{path}[]", as_lists(array).flatten().field(1))


def _hashes(values: pa.Array) -> npt.NDArray[np.uint64]:
    from pandas.util import hash_array  # noqa: PLC0415 - pandas is slow to import

    if pa.types.is_decimal(values.type):
        values = values.cast(pa.string())
    found = values.to_numpy(zero_copy_only=False)
    hashes: npt.NDArray[np.uint64] = hash_array(found, categorize=False)
    return hashes


def _shown(value: pa.Scalar) -> str:
    text = str(value.as_py())
    return text if len(text) <= _LENGTH else text[: _LENGTH - 1] + "…"


def short_type(kind: pa.DataType) -> str:
    """A type without what is inside of it."""
    if pa.types.is_struct(kind):
        return "struct"
    if pa.types.is_map(kind):
        return "map"
    return "list" if pa.types.is_list(kind) else str(kind)


def leaves_of(schema: pa.Schema) -> dict[str, str]:
    """Every field by its path, with its type."""
    found: dict[str, str] = {}

    def visit(path: str, kind: Any) -> None:
        found[path] = short_type(kind)
        if pa.types.is_struct(kind):
            for member in kind:
                visit(f"{path}.{quoted(member.name)}", member.type)
        elif pa.types.is_list(kind):
            visit(f"{path}[]", kind.value_type)
        elif pa.types.is_map(kind):
            visit(f"{path}[]", kind.item_type)

    for each in schema:
        if not each.name.startswith(OURS) or each.name.endswith("_"):
            visit(quoted(each.name), each.type)
    return found
