"""What becomes of the rows of a table: what the bucket reported, what counts again, what goes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cbframe.arrow.batcher import of_dropped
from cbframe.arrow.columns import COLLECTION_ID, KEY
from cbframe.arrow.documents.unify import Columns
from cbframe.arrow.documents.widen import widen
from cbframe.arrow.keys import formed
from cbframe.contrib.delta.commit import CHANGE
from cbframe.contrib.delta.rows import Documents, Mask, Waiting
from cbframe.contrib.delta.shape import Shape
from cbframe.snapshot.sink import CHANGE_TYPE, UPSERT


@dataclass(slots=True)
class Back:
    """What is to be done to the rows of the table besides what changed."""

    lost: list[pa.Table] = field(default_factory=list)  # rows that the server took back
    dropped: list[pa.Table] = field(default_factory=list)  # rows of collections that went
    restored: list[pa.Table] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class News:
    """What the bucket reported."""

    waiting: Waiting  # changes, of each document one
    columns: Columns  # what the fields of the documents are
    upserted: int  # how many there are
    deleted: int
    dead: frozenset[int]  # collections that were dropped, now or before
    ended: dict[tuple[int, int], int]

    def of_dropped(self, head: pa.Table) -> Mask:
        """Which rows are of a collection that was dropped, or emptied since."""
        gone = of_dropped(head, set(self.dead), self.ended)
        return np.zeros(len(head), bool) if gone is None else gone

    def upserts(self, shape: Shape) -> Iterator[pa.Table]:
        """Documents, as they will be stored."""
        for table in self.waiting.tables():
            some = table.filter(pc.equal(table[CHANGE_TYPE], UPSERT))
            documents = widen(some.select(self.columns.schema.names), self.columns, shape.columns)
            yield shape.stored(some, documents)

    def heads(self, *, upserts: bool) -> Iterator[pa.Table]:
        """What changed: documents, or deletions."""
        for table in self.waiting.tables():
            is_upsert = pc.equal(table[CHANGE_TYPE], UPSERT)
            yield table.filter(is_upsert if upserts else pc.invert(is_upsert)).select([KEY, COLLECTION_ID])


class Source:
    """What becomes of the table: of each document that is touched, one row or none.

    What the bucket reported comes first, then what counts again, then what goes.
    """

    def __init__(self, shape: Shape, news: News, back: Back) -> None:
        self._shape = shape
        self._news = news
        upserts, deletions = [*news.heads(upserts=True)], [*news.heads(upserts=False)]
        told_of = Documents([*upserts, *deletions])
        self._restored = [rows.filter(pa.array(~told_of.have(rows))) for rows in back.restored]
        covered = Documents([*upserts, *deletions, *self._restored])
        gone = [*back.lost, *back.dropped]
        self._deleted = [
            *deletions,
            *(head.filter(pa.array(~covered.have(head))).select([KEY, COLLECTION_ID]) for head in gone),
        ]
        self._touched = Documents([*upserts, *self._restored, *self._deleted])
        self.some = any(map(len, (*upserts, *self._restored, *self._deleted)))

    def changes(self) -> tuple[pa.Schema, Iterator[pa.Table]]:
        """Rows with what to do with them, for a MERGE."""
        return self._shape.schema.append(pa.field(CHANGE, pa.string())), self._changes()

    def _changes(self) -> Iterator[pa.Table]:
        for rows in (*self._news.upserts(self._shape), *self._restored):
            yield rows.append_column(CHANGE, _repeated("upsert", len(rows)))
        schema = self._shape.schema
        seen: list[pa.Table] = []
        for head in self._deleted:
            # One that was lost and dropped is there twice.
            some = head.filter(pa.array(~Documents(seen).have(head))) if seen else head
            seen.append(some)
            known = {
                KEY: formed(some[KEY], self._shape.keys),
                COLLECTION_ID: some[COLLECTION_ID].cast(schema.field(COLLECTION_ID).type),
            }
            columns = [known.get(each.name, pa.nulls(len(some), each.type)) for each in schema]
            rows = pa.Table.from_arrays(columns, schema=schema)
            yield rows.append_column(CHANGE, _repeated("delete", len(rows)))

    def untouched(self, current: Iterator[tuple[pa.Table, pa.Table]], narrow: Columns) -> Iterator[pa.Table]:
        """Rows that stay what they are, as they will be stored, of metadata and fields (`narrow`) of all."""
        for head, documents in current:
            some = pa.array(~self._touched.have(head))
            wide = widen(documents.filter(some), narrow, self._shape.columns)
            yield self._shape.stored(head.filter(some), wide)

    def all_rows(self, untouched: Iterator[pa.Table]) -> Iterator[pa.Table]:
        """The whole table as it will be."""
        yield from self._news.upserts(self._shape)
        yield from self._restored
        yield from untouched


def _repeated(text: str, count: int) -> pa.Array:
    return pa.array([text]).take(pa.array(np.zeros(count, np.int8)))
