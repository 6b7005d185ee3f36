"""What a read tells of fields whose values have no common type."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cbframe.arrow.documents.census import Disagreement

_SAMPLES = 3


@dataclass(frozen=True, slots=True)
class Conflict:
    """A field whose values have no common type.

    Attributes
    ----------
    path
        Where in the document: ``total``, ``customer.id``, ``items[].price``; a name that has dots, brackets
        or backquotes itself is in backquotes.
    types
        Kinds of values there, and how many, over all documents.
    action
        What became of the values: ``"text"`` (strings as they are, other scalars as they are
        written), ``"json"`` (JSON text), or ``"null"``: values that do not fit are gone. ``"map"``: there is
        no conflict, but names of objects are data.
    samples
        For each kind the keys of a few documents that have it; not in the ``repr``.
    names
        How many different names the objects have, where names are data: they are a map, or JSON text where
        values have no common type. None elsewhere. Of several partitions the largest number.
    """

    path: str
    types: dict[str, int]
    action: str
    samples: dict[str, tuple[str | bytes, ...]] = field(repr=False)
    names: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as in ``df.attrs``."""
        told = {
            "path": self.path,
            "types": dict(self.types),
            "action": self.action,
            "samples": {kind: list(keys) for kind, keys in self.samples.items()},
        }
        return told if self.names is None else told | {"names": self.names}

    @classmethod
    def of_dict(cls, told: Mapping[str, Any]) -> Conflict:
        """What :meth:`to_dict` gave."""
        samples = {kind: tuple(keys) for kind, keys in told["samples"].items()}
        return cls(told["path"], dict(told["types"]), told["action"], samples, told.get("names"))


def merged(parts: Iterable[Iterable[Conflict]]) -> tuple[Conflict, ...]:
    """What several parts of a bucket tell, as one report: in order of first appearance."""
    found: dict[tuple[str, str], Conflict] = {}
    for conflict in (conflict for part in parts for conflict in part):
        place = conflict.path, conflict.action
        before = found.get(place, Conflict(conflict.path, {}, conflict.action, {}))
        kinds = dict.fromkeys([*before.types, *conflict.types])
        samples = {
            kind: (*before.samples.get(kind, ()), *conflict.samples.get(kind, ()))[:_SAMPLES]
            for kind in kinds
        }
        found[place] = Conflict(
            conflict.path,
            {kind: before.types.get(kind, 0) + conflict.types.get(kind, 0) for kind in kinds},
            conflict.action,
            {kind: keys for kind, keys in samples.items() if keys},
            max(filter(None, (before.names, conflict.names)), default=None),
        )
    return tuple(found.values())


def named(found: Iterable[Disagreement], key_of: Callable[[Any], str | bytes]) -> tuple[Conflict, ...]:
    """Put document keys in the place of rows."""
    return tuple(
        Conflict(
            each.path,
            each.types,
            each.action,
            {kind: tuple(map(key_of, rows)) for kind, rows in each.samples.items()},
            each.names,
        )
        for each in found
    )
