"""What becomes of documents as they come: only what is wanted of them is kept."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cbframe.arrow.columns import DATATYPE, KEY, OPCODE, VALUE, is_json
from cbframe.arrow.documents.filters import Matcher
from cbframe.arrow.documents.projection import Projection
from cbframe.frame.target import ScanTarget
from cbframe.wire.constants import Opcode


class Intake:
    """Cuts batches down to what is wanted."""

    def __init__(self, target: ScanTarget) -> None:
        self._prefix = target.key_prefix
        self._matcher = Matcher(target.filters) if target.filters else None
        self._projection = Projection(target.columns) if target.columns and target.parsed else None

    def reduce(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """A batch without what is not wanted; it may be empty."""
        if self._prefix is not None:
            batch = batch.filter(pc.starts_with(batch.column(KEY), self._prefix))
        if self._matcher is None and self._projection is None:
            return batch
        return self._reduced(batch)

    def _reduced(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Only what is wanted of the values.

        A document that is not wanted stands as a deletion: an older version of it must not count.
        """
        values, called_json = batch.column(VALUE), is_json(batch.column(DATATYPE).to_numpy())
        columns = {name: batch.column(name) for name in batch.schema.names}
        opcode = batch.column(OPCODE).to_numpy()
        mutation = opcode == Opcode.DCP_MUTATION
        if self._matcher is not None:
            wanted = self._matcher.mask(values, called_json & mutation)
            columns[OPCODE] = pa.array(np.where(wanted | ~mutation, opcode, np.uint8(Opcode.DCP_DELETION)))
            # Not if_else(): that of pyarrow 16 makes broken offsets of binary values and a null.
            values = values.filter(pa.array(wanted))
            if self._projection is not None:
                values = self._projection.apply(values, np.ones(len(values), bool))
            empty = pa.array([b""] * len(batch), values.type)
            columns[VALUE] = pc.replace_with_mask(empty, pa.array(wanted), values)
        elif self._projection is not None:
            columns[VALUE] = self._projection.apply(values, called_json & mutation)
        return pa.RecordBatch.from_arrays(list(columns.values()), schema=batch.schema)
