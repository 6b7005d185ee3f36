"""Documents as they come, cut down to what is wanted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cbframe.arrow.batcher import GatheringReceiver
from cbframe.arrow.columns import (
    COLLECTION_ID,
    DATATYPE,
    DELETION,
    EXPIRY,
    KEY,
    MUTATION,
    OPCODE,
    distinct,
    is_json,
)
from cbframe.arrow.documents.filters import METADATA, predicates
from cbframe.arrow.documents.filters import NAMES as FILTER_NAMES
from cbframe.arrow.documents.matcher import Matcher
from cbframe.arrow.exclusion import EXPIRED, TRANSACTION_RECORD, has_expired, of_transactions
from cbframe.json.typer import VALUE
from cbframe.public import warn
from cbframe.scan.names import Names
from cbframe.scan.spec import ScanSpec


class Intake:
    """Cuts batches down to what is wanted."""

    def __init__(
        self,
        target: ScanSpec,
        names: Names,  # know the collections of documents
        receiver: GatheringReceiver[Any],
        moment: Callable[[], int] | None = None,
        *,
        of_changes: bool = False,
    ) -> None:
        self._prefix = target.key_prefix
        self._names = names
        self._receiver = receiver
        self.matcher = Matcher(target.filters) if target.filters else None
        named = {each.path[0] for each in predicates(target.filters) if each.of_metadata}
        self._metadata = [name for name in METADATA if name in named and name not in FILTER_NAMES]
        self._by_name = not named.isdisjoint(FILTER_NAMES)
        self._collections: set[int] = set()
        self._drops_transactions = target.transaction_records == "drop"
        self._moment = moment
        self._of_changes = of_changes
        self.transaction_records = 0

    def reduce(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """A batch without what is not wanted; it may be empty."""
        if self._prefix is not None:
            batch = batch.filter(pc.starts_with(batch.column(KEY), self._prefix))
        if self._drops_transactions:
            batch = self._without_transactions(batch)
        if self._moment is not None:
            batch = self._without_expired(batch, self._moment)
        return batch if self.matcher is None else self._matched(batch, self.matcher)

    def _without_transactions(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        theirs = of_transactions(batch.column(KEY))
        if not theirs.any():
            return batch
        if self._of_changes:
            self.transaction_records += int(theirs.sum())
            return batch.filter(pa.array(~theirs))
        return _marked(batch, theirs, TRANSACTION_RECORD)

    @staticmethod
    def _without_expired(batch: pa.RecordBatch, moment: Callable[[], int]) -> pa.RecordBatch:
        expiry = batch.column(EXPIRY).to_numpy()
        if not len(expiry) or not expiry.max():  # faster than any()
            return batch
        gone = has_expired(expiry, moment())
        return _marked(batch, gone, EXPIRED) if gone.any() else batch

    def refuse_filters(self) -> None:
        """Everything was read: raise where it shows that the filters are a mistake."""
        if self.matcher is not None and self.saw_documents():
            self.matcher.refuse()

    def warn_of_filters(self) -> None:
        """The same as a warning, since earlier changes may have been others."""
        if self.matcher is not None and self.saw_documents():
            for error in self.matcher.errors():
                warn(f"in what has changed, and no document has passed the filters so far: {error}")

    def saw_documents(self) -> bool:
        """Whether there was a document, filtered or not."""
        return self._names.any_visible(self._collections, self._receiver)

    def _matched(self, batch: pa.RecordBatch, matcher: Matcher) -> pa.RecordBatch:
        """Only documents that pass the filters.

        One that does not stands as a deletion: an older version of it must not count.
        """
        values, called_json = batch.column(VALUE), is_json(batch.column(DATATYPE).to_numpy())
        opcode = batch.column(OPCODE).to_numpy()
        mutation = opcode == MUTATION
        wanted = matcher.mask(values, called_json & mutation, self._of(batch, mutation), mutation)
        columns = {name: batch.column(name) for name in batch.schema.names}
        columns[OPCODE] = pa.array(np.where(wanted | ~mutation, opcode, DELETION))
        # Not if_else(): that of pyarrow 16 makes broken offsets of binary values and a null.
        empty = pa.array([b""] * len(batch), values.type)
        columns[VALUE] = pc.replace_with_mask(empty, pa.array(wanted), values.filter(pa.array(wanted)))
        return pa.RecordBatch.from_arrays(list(columns.values()), schema=batch.schema)

    def _of(self, batch: pa.RecordBatch, mutation: npt.NDArray[np.bool_]) -> dict[str, pa.Array]:
        """The metadata that filters name."""
        ids = batch.column(COLLECTION_ID).to_numpy()
        self._collections.update(distinct(ids[mutation]))
        found = {name: batch.column(name) for name in self._metadata}
        return found | self._names.of_collections(ids, self._receiver) if self._by_name else found


def _marked(batch: pa.RecordBatch, rows: npt.NDArray[np.bool_], mark: np.uint8) -> pa.RecordBatch:
    """The batch with some of its documents marked as left out."""
    opcode = batch.column(OPCODE).to_numpy()
    marked = np.where(rows & (opcode == MUTATION), mark, opcode)
    columns = {name: batch.column(name) for name in batch.schema.names} | {OPCODE: pa.array(marked)}
    return pa.RecordBatch.from_arrays(list(columns.values()), schema=batch.schema)
