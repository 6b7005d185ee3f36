"""What a read tells of fields whose values have no common type."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from cbframe.arrow.columns import KEY, SEQNO, VBUCKET
from cbframe.arrow.keys import KeyForm, formed_key
from cbframe.json.typer import Disagreement, Where

KeysAt: TypeAlias = Callable[[Collection[Where]], Mapping[Where, str | bytes]]
"""Gives the keys of the documents at some places."""
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
        stored = {
            "path": self.path,
            "types": dict(self.types),
            "action": self.action,
            "samples": {kind: list(keys) for kind, keys in self.samples.items()},
        }
        return stored if self.names is None else stored | {"names": self.names}

    @classmethod
    def of_dict(cls, stored: Mapping[str, Any]) -> Conflict:
        """What :meth:`to_dict` gave."""
        samples = {kind: tuple(keys) for kind, keys in stored["samples"].items()}
        return cls(stored["path"], dict(stored["types"]), stored["action"], samples, stored.get("names"))


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


def named(found: Iterable[Disagreement], keys_at: KeysAt) -> tuple[Conflict, ...]:
    """What there is to say, with keys in place of where documents stand."""
    found = list(found)
    keys = keys_at({where for each in found for some in each.samples.values() for where in some})
    return tuple(
        Conflict(
            each.path,
            each.types,
            each.action,
            {kind: tuple(keys[where] for where in some) for kind, some in each.samples.items()},
            each.names,
        )
        for each in found
    )


def keys_at(
    tables: Iterable[pa.Table], places: Collection[Where], form: KeyForm | None
) -> dict[Where, str | bytes]:
    """The keys of the rows at some places; in their own form, if none is asked for."""
    found: dict[Where, str | bytes] = {}
    wanted = set(places)
    seqnos = np.array([seqno for _, seqno in wanted], np.uint64)
    for table in tables if wanted else ():
        seqno = table[SEQNO].to_numpy()
        for row in np.flatnonzero(np.isin(seqno, seqnos)).tolist():
            where = table[VBUCKET][row].as_py(), int(seqno[row])
            if where in wanted:
                key = table[KEY][row].as_py()
                found[where] = key if form is None else formed_key(key, form)
    return found
