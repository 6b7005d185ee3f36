"""What is told of all documents together: order of columns, conflicts, rejects. Batch by batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

import numpy as np

from cbframe.arrow.documents.chunks import Batch
from cbframe.arrow.documents.density import Widths, merge, widths_of
from cbframe.arrow.documents.facts import load
from cbframe.arrow.documents.guard import Reason
from cbframe.arrow.documents.order import Order, Path, Places, firsts
from cbframe.arrow.documents.plan import Place, Plan
from cbframe.arrow.documents.rewrite import FAMILIES, Rows

_SAMPLES = 3
_SPECIAL = frozenset(".[]`")
_Where = tuple[int, int]
"""Vbucket and seqno."""


@dataclass(frozen=True, slots=True)
class Disagreement:
    """Values of a field that have no common type.

    Attributes
    ----------
    path
        Where in the document: ``total``, ``customer.id``, ``items[].price``.
    types
        Kinds of values there, and how many, over all documents.
    action
        What became of the values: ``"text"``, ``"json"``, or ``"null"``: those of other kinds than the
        column's are gone. ``"map"``: nothing happened to the values, and names are keys.
    samples
        For each kind the few documents that have it and stand first in the bucket.
    names
        How many different names its objects have, where these are data; else None.
    """

    path: str
    types: dict[str, int]
    action: str
    samples: dict[str, tuple[Any, ...]] = field(repr=False)
    names: int | None = None


@dataclass(slots=True)
class Census:
    """What batches tell, added up.

    Attributes
    ----------
    rejected
        Rows that are no documents, by reason.
    rest
        Some document has fields that are no columns.
    counts
        How many values of each kind there are where there is no common type.
    widths
        How many names there are where names of objects may be data.
    """

    rejected: Counter[int] = field(default_factory=Counter)
    rest: bool = False
    counts: dict[Place, Counter[str]] = field(default_factory=dict)
    widths: Widths = field(default_factory=dict)
    _best: dict[Path, tuple[_Where, bytes]] = field(default_factory=dict)
    _samples: dict[tuple[Place, str], list[tuple[_Where, Any]]] = field(default_factory=dict)

    def add(self, batch: Batch, plan: Plan, name: Callable[[int], Any]) -> None:
        """Take in a batch that is converted.

        Parameters
        ----------
        plan
            To which all chunks can be promoted.
        name
            What a row of the batch is called in samples.
        """
        if batch.verdicts.any():
            self.rejected.update(batch.verdicts[batch.verdicts != Reason.GOOD].tolist())
        merge(self.widths, widths_of(batch, plan))
        for chunk in batch.chunks:
            self.rest |= chunk.rest is not None and chunk.rest.null_count < len(chunk)
            places = batch.places[chunk.start : chunk.stop]
            for path, row in firsts(chunk.columns, places).items():
                where = places.of(row)
                if path not in self._best or where < self._best[path][0]:
                    self._best[path] = where, batch.values[chunk.start + row].as_py()
            for place, tally in chunk.tallies.items():
                for kind, rows in tally.items():
                    self.counts.setdefault(place, Counter())[kind] += len(rows)
                    samples = self._samples.setdefault((place, kind), [])
                    if len(samples) == _SAMPLES and samples[-1][0][0] < places.vbucket.min():
                        continue
                    some = _earliest(rows, places)
                    samples += [(places.of(row), name(chunk.start + row)) for row in some]
                    samples.sort(key=itemgetter(0))
                    del samples[_SAMPLES:]

    def order(self, plan: Plan) -> Order:
        """The order of first appearance: that of the documents in which something appears first."""
        order = Order()
        for _, document in sorted(set(self._best.values())):
            order.add(load(document), plan.type)
        return order

    def reasons(self) -> dict[str, int]:
        """Rows that are no documents, by the name of the reason."""
        return {Reason(reason).name.lower(): count for reason, count in sorted(self.rejected.items())}

    def disagreements(self, plan: Plan, names: list[str]) -> Iterator[Disagreement]:
        """What there is to say of the fields without a common type, in the order of the columns."""
        told = [
            (names.index(str(place[0])), shown(place), place, member) for place, member in plan.conflicts()
        ]
        for _, path, place, member in sorted(told, key=itemgetter(0, 1)):
            width = self.widths.get(place) if member.data else None
            if member.how == "map" and width is not None:
                yield Disagreement(path, {"object": width.objects}, "map", {}, len(width.names))
                continue
            kinds = dict(sorted(self.counts.get(place, {}).items()))
            if member.only is not None and all(FAMILIES[kind] == member.only for kind in kinds):
                continue
            samples = {kind: tuple(name for _, name in self._samples[place, kind]) for kind in kinds}
            count = None if width is None or kinds.keys() != {"object"} else len(width.names)
            yield Disagreement(path, kinds, "null" if member.only else member.how, samples, count)


def shown(place: Place) -> str:
    """A place as it is written: ``items[].price``; names that would look like a path are quoted."""
    return "".join("[]" if name is None else f".{quoted(name)}" for name in place).removeprefix(".")


def quoted(name: str) -> str:
    """A name within a path: in backquotes, as in SQL++, where it has dots, brackets or backquotes itself."""
    if name and not _SPECIAL.intersection(name):
        return name
    return "`" + name.replace("`", "``") + "`"


def _earliest(rows: Rows, places: Places) -> list[int]:
    """The few rows that stand first in the bucket."""
    unique = np.asarray(rows, np.int64)
    if (unique[1:] <= unique[:-1]).any():
        unique = np.unique(unique)
    vbucket = places.vbucket[unique]
    if len(unique) > _SAMPLES:
        # Only the first vbuckets that have so many rows together are worth sorting.
        first = vbucket <= np.partition(vbucket, _SAMPLES - 1)[_SAMPLES - 1]
        unique, vbucket = unique[first], vbucket[first]
    order = np.lexsort((places.seqno[unique], vbucket))
    some: list[int] = unique[order[:_SAMPLES]].tolist()
    return some
