"""Documents that pass filters, found before they are typed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cbframe.arrow.documents.comparison import Mask, compared, decoded, families_of, family, holds, value_at
from cbframe.arrow.documents.filters import (
    Filters,
    Moment,
    Predicate,
    never,
    predicates,
    unknown,
)
from cbframe.errors import ConfigurationError
from cbframe.json.layout import Column, Path, Policy, Tree, tree_of
from cbframe.json.typer import OURS, REASON, Documents, typed


@dataclass(slots=True)
class Seen:
    """What documents hold in a field."""

    present: bool = False  # one has it, if only as null
    families: set[str] = field(default_factory=set)  # the kinds of its values

    def update(self, other: Seen) -> None:
        """Take in what others hold."""
        self.present |= other.present
        self.families |= other.families


class Matcher:
    """Finds the documents that pass filters, and learns what they hold in the fields that are compared."""

    def __init__(self, filters: Filters) -> None:
        self._filters = filters
        paths = [each.path for each in predicates(filters) if not each.of_metadata]
        self._wanted = tree_of(paths)
        self._dates = {
            each.path for each in predicates(filters) if any(isinstance(at, Moment) for at in each.literals)
        }
        self.seen: dict[Path, Seen] = {path: Seen() for path in paths}

    def mask(
        self,
        values: pa.Array,  # binary array without nulls
        is_json: npt.NDArray[np.bool_],  # what the server says of each
        metadata: Mapping[str, pa.Array] | None = None,  # the columns of metadata that the filters name
        documents: npt.NDArray[np.bool_] | None = None,
    ) -> Mask:
        """Which rows pass."""
        if not len(values):
            return np.zeros(0, bool)
        fields = _Fields(values, is_json, self._wanted) if self.seen else None
        for path, seen in self.seen.items():
            assert fields is not None
            seen.update(fields.seen(path, dates=path in self._dates))
        passed = np.zeros(len(values), bool)
        for group in self._filters:
            passing = np.ones(len(values), bool)
            for predicate in group:
                if predicate.of_metadata:
                    assert metadata is not None
                    passing &= compared(pa.chunked_array([metadata[predicate.path[0]]]), predicate)
                else:
                    assert fields is not None
                    passing &= fields.passing(predicate)
            passed |= passing
        return passed if documents is None else passed & documents

    def update(self, other: Matcher) -> None:
        """Take in what another one with the same filters learned."""
        for path, seen in other.seen.items():
            self.seen[path].update(seen)

    def errors(self) -> list[ConfigurationError]:
        """What the documents show to be a mistake: fields that none has, comparisons that are never true."""
        found = []
        for predicate in self._of_fields():
            seen = self.seen[predicate.path]
            error = never(predicate, sorted(seen.families)) if seen.present else unknown(predicate)
            if error is not None:
                found.append(error)
        return found

    def refuse(self) -> None:
        """Raise the first of :meth:`errors`: there was a document at least."""
        for error in self.errors():
            raise error

    def _of_fields(self) -> list[Predicate]:
        return [each for each in predicates(self._filters) if not each.of_metadata]


class _Fields:
    """The fields of some documents: as columns, and decoded where their values have no common type."""

    def __init__(self, values: pa.Array, is_json: npt.NDArray[np.bool_], wanted: Tree) -> None:
        self._documents = values
        rows = np.arange(len(values), dtype=np.uint64)
        documents = Documents(values, is_json, np.zeros(len(values), np.uint16), rows)
        self._table, settled = typed([documents], Policy(wanted=wanted))
        self._root = settled.layout.root
        self.sound: Mask = np.ones(len(values), bool)
        """Which rows are JSON objects."""
        if settled.rejected:
            self.sound = self._table[REASON].is_null().to_numpy()
        self._columns: dict[Path, pa.ChunkedArray | _Nowhere | None] = {}
        self._slow: list[Any] | None = None

    def passing(self, predicate: Predicate) -> Mask:
        """Which pass one comparison."""
        cells = self._column(predicate.path)
        if isinstance(cells, _Nowhere):
            found = np.full(len(self._documents), predicate.op == "is")
        elif cells is not None:
            found = compared(cells, predicate)
        else:
            values = self._values(predicate.path)
            found = np.fromiter((holds(value, predicate) for value in values), bool, len(values))
        return found & self.sound if predicate.op == "is" else found

    def seen(self, path: Path, *, dates: bool) -> Seen:
        """What they hold in a field."""
        cells = self._column(path)
        if cells is None:
            return Seen(self._is_present(path), families_of(self._values(path)))
        if isinstance(cells, _Nowhere):
            return Seen()
        if cells.null_count == len(cells):
            return Seen(present=True)
        held = family(cells.type)
        families = {held} if held is not None else set()
        if held == "string" and dates:
            families |= families_of(cells.drop_null().to_pylist())
        return Seen(present=True, families=families)

    def _column(self, path: Path) -> pa.ChunkedArray | _Nowhere | None:
        if path not in self._columns:
            self._columns[path] = column_of(self._table, self._root, path)
        return self._columns[path]

    def _decoded(self) -> list[Any]:
        if self._slow is None:
            self._slow = [
                decoded(document) if sound else None
                for document, sound in zip(self._documents.to_pylist(), self.sound, strict=True)
            ]
        return self._slow

    def _values(self, path: Path) -> list[Any]:
        return [value_at(document, path) for document in self._decoded()]

    def _is_present(self, path: Path) -> bool:
        """Whether a document has a field, if only as null."""
        *outer, name = path
        for document in self._decoded():
            inside = value_at(document, tuple(outer))
            if isinstance(inside, dict) and name in inside:
                return True
        return False


class _Nowhere:
    """No document has the field."""


_NOWHERE = _Nowhere()


def column_of(table: pa.Table, root: Column, path: Path) -> pa.ChunkedArray | _Nowhere | None:
    """The column of a path; None where it does not have the values as they are in the documents."""
    name, *rest = path
    if name.startswith(OURS) or "\0" in name:
        return None
    plan = root.members.get(name)
    if plan is None:
        return _NOWHERE
    column = table[name]
    for member in rest:
        if not _is_plain(column, plan):
            return None
        plan = plan.members.get(member)
        if plan is None:
            return _NOWHERE
        column = pc.struct_field(column, [column.type.get_field_index(member)])
    return column if _is_plain(column, plan) else None


def _is_plain(column: pa.ChunkedArray, plan: Column) -> bool:
    if plan.how != "plain" or pa.types.is_map(plan.type):
        return False
    return family(column.type) == family(plan.type)
