"""A batch of changes: what happened to which documents, and how far the stream is after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cbframe.arrow.columns import SEQNO, VBUCKET, is_json
from cbframe.arrow.documents.rendered import rendered
from cbframe.dcp.positions import Position, VBucketOffset
from cbframe.dcp.receiver import Receipt
from cbframe.errors import ConfigurationError
from cbframe.json.layout import Place, Policy, tree_of
from cbframe.json.typer import VALUE, Documents
from cbframe.json.typer import typed as typed_documents
from cbframe.scan import shape
from cbframe.scan.conflicts import Conflict, keys_at, named
from cbframe.scan.spec import NESTED, Nested, paths_of
from cbframe.wire.messages import SystemEvent

if TYPE_CHECKING:
    import pandas as pd

CHANGE_TYPE = "_change_type"
UPSERT, DELETE, EXPIRE = "upsert", "delete", "expire"
CHANGE_TYPES = pa.array([UPSERT, DELETE, EXPIRE])


@dataclass(frozen=True, slots=True)
class Rollback:
    """The server has withdrawn a part of a vbucket's history, after a failover for one.

    All changes of the vbucket behind `seqno` that came before are void. Whoever has kept every change
    takes those back, and what is left is the vbucket's state at that moment. Whoever has kept only the
    newest version of each document has lost what withdrawn changes replaced: ``on_rollback="restart"``
    then makes `seqno` the beginning of the stream, and all of the vbucket comes again.

    Attributes
    ----------
    vbucket
        Whose history.
    seqno
        Where the stream goes on from: the end of a snapshot.
    server_seqno
        Where the server's history was cut off, at or behind `seqno`.
    """

    vbucket: int
    seqno: int
    server_seqno: int


@dataclass(frozen=True, slots=True)
class CollectionDrop:
    """A collection's documents are gone: those of this vbucket with a smaller seqno.

    The names are None where nobody knows them any more.
    """

    vbucket: int
    seqno: int
    collection_id: int
    scope: str | None
    collection: str | None


@dataclass(slots=True, eq=False)
class Given:
    """What is said when a batch is consumed."""

    positions: dict[int, Position] = field(default_factory=dict)  # where vbuckets are then
    receipts: list[Receipt] = field(default_factory=list)  # of its documents


@dataclass(frozen=True, eq=False)
class ChangeBatch:
    """Some changes in the order in which they happened, per vbucket.

    Attributes
    ----------
    record_batch
        One row a change: ``_change_type`` (upsert, delete or expire), ``_cb_key``, ``_cb_vbucket`` and
        ``_cb_seqno``, the metadata that was asked for, and the document as bytes in ``_cb_value``, null
        where it is gone.
    rollbacks
        What was withdrawn: to be taken back before the rows of this batch.
    events
        Scopes and collections that came, went or changed.
    drops
        Collections that went, or were emptied: of the documents nothing else tells.
    given
        For acknowledging it.
    datatype, collection_ids
        Of each row, as the server has it.
    maps
        Where names of objects were data in any batch of the stream that was typed: from then on they are.
    """

    record_batch: pa.RecordBatch = field(repr=False)
    rollbacks: tuple[Rollback, ...]
    events: tuple[SystemEvent, ...]
    drops: tuple[CollectionDrop, ...]
    given: Given = field(repr=False)
    datatype: npt.NDArray[np.uint8] = field(repr=False)
    collection_ids: npt.NDArray[np.uint32] = field(repr=False)
    maps: set[Place] = field(default_factory=set, repr=False)

    def __len__(self) -> int:
        """How many changes there are."""
        return int(self.record_batch.num_rows)

    def __bool__(self) -> bool:
        # One without rows may have a rollback.
        return True

    def __repr__(self) -> str:
        parts = [f"{len(self):,} changes", f"{len(self.given.positions)} vbuckets"]
        if self.rollbacks:
            parts.append(f"{len(self.rollbacks)} rollbacks")
        if self.events:
            parts.append(f"{len(self.events)} events")
        return f"<ChangeBatch: {', '.join(parts)}, {self.nbytes:,} bytes>"

    @property
    def nbytes(self) -> int:
        """Size in memory."""
        return int(self.record_batch.nbytes)

    @cached_property
    def offsets(self) -> dict[int, VBucketOffset]:
        """How far the vbuckets of this batch are after it; those of others have not changed."""
        return dict(sorted(self.given.positions.items()))

    def __arrow_c_schema__(self) -> Any:
        """The schema of the batch's rows."""
        return self.record_batch.schema.__arrow_c_schema__()

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        """Hand the rows over to any Arrow consumer."""
        return pa.Table.from_batches([self.record_batch]).__arrow_c_stream__(requested_schema)

    def to_arrow(
        self,
        *,
        columns: Sequence[str | tuple[str, ...]] | None = None,
        nested: Literal["struct", "flatten", "json"] = "struct",
    ) -> pa.Table:
        """A table with a typed column for each field of the batch's documents; null where they are gone.

        Types follow from this batch alone.

        Parameters
        ----------
        columns, nested
            As for :func:`cbframe.scan_bucket`, but a field that no document has is null.

        Raises
        ------
        ConfigurationError
            An argument cannot be meant.
        """
        return self._typed(columns, nested)[0]

    def to_pandas(
        self,
        *,
        columns: Sequence[str | tuple[str, ...]] | None = None,
        nested: Literal["struct", "flatten", "json"] = "struct",
        dtype_backend: str | None = "pyarrow",
    ) -> pd.DataFrame:
        """A DataFrame whose index is the document key, typed as :meth:`to_arrow` does it.

        ``df.attrs["cbframe"]`` has ``conflicts`` and ``rejected``, as of a read, and ``rollbacks``.
        """
        from cbframe.scan.convert import to_pandas  # noqa: PLC0415 - pandas is slow to import

        table, conflicts, rejected = self._typed(columns, nested)
        about = {
            "conflicts": [conflict.to_dict() for conflict in conflicts],
            "rejected": rejected,
            "rollbacks": [[each.vbucket, each.seqno] for each in self.rollbacks],
        }
        return to_pandas(table, dtype_backend, about)

    def _typed(
        self, columns: Sequence[str | tuple[str, ...]] | None, nested: Nested
    ) -> tuple[pa.Table, tuple[Conflict, ...], dict[str, int]]:
        batch = pa.Table.from_batches([self.record_batch])
        return typed(batch, self.datatype, columns=columns, nested=nested, maps=self.maps)


def typed(
    changes: pa.Table,  # as in record_batch
    datatype: npt.NDArray[np.uint8],  # of each row, as the server has it
    *,
    columns: Sequence[str | tuple[str, ...]] | None = None,
    nested: Nested = "struct",
    maps: set[Place],  # where names of objects are data in any case; those that are found out are added
) -> tuple[pa.Table, tuple[Conflict, ...], dict[str, int]]:
    """Rows of changes with their documents as columns, conflicts, and how many are no documents."""
    rows = len(changes)
    values = changes[VALUE]
    there = np.asarray(values.is_valid())
    if nested not in NESTED:
        raise ConfigurationError(f"nested={nested!r}", hint=f"choose from: {', '.join(NESTED)}")
    paths = None if columns is None else paths_of(columns, nested)
    documents: list[Documents] = []
    if there.any():
        some = values.filter(pa.array(there)).combine_chunks()
        if isinstance(some, pa.ChunkedArray):
            some = pa.concat_arrays(some.chunks)
        vbucket, seqno = changes[VBUCKET].to_numpy()[there], changes[SEQNO].to_numpy()[there]
        documents.append(Documents(some, is_json(datatype[there]), vbucket, seqno))
    wanted = tree_of(paths) if paths else None
    policy = Policy(nested_as_text=nested == "json", maps=frozenset(maps), wanted=wanted)
    table, settled = typed_documents(documents, policy)
    rows_typed = int(there.sum())
    maps.update(place for place, column in settled.layout.root.conflicts() if column.data)
    if paths is not None:
        table = shape.selected(table, paths, rows=rows_typed, lenient=True)
    if nested == "flatten":
        table = shape.flattened(table)
    table = rendered(table)
    if rows_typed != rows and table.num_columns:
        # Each row takes its document; where there is none, there is no index, and so null.
        table = table.take(pa.array(np.cumsum(there) - 1, mask=~there))
    # The only name without our prefix, since others who tell of changes use it: a document's own makes way.
    names = [_free(name, table.column_names) if name == CHANGE_TYPE else name for name in table.column_names]
    table = table.rename_columns(names)
    conflicts = named(settled.disagreements(), lambda places: keys_at([changes], places, None))
    return _beside(changes.drop_columns([VALUE]), table), conflicts, settled.reasons()


def _free(name: str, taken: Sequence[str]) -> str:
    while name in taken:
        name += "_"
    return name


def _beside(head: pa.Table, table: pa.Table) -> pa.Table:
    columns = {}
    for name, column in zip(head.column_names, head.columns, strict=True):
        columns[name] = column.cast(pa.string()) if pa.types.is_dictionary(column.type) else column
    schema = pa.schema([*(pa.field(name, column.type) for name, column in columns.items()), *table.schema])
    return pa.table([*columns.values(), *table.columns], schema=schema)
