"""The rows of a read in memory, and which of them count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cbframe.arrow.batcher import GatheringReceiver
from cbframe.arrow.columns import COLLECTION_ID, OPCODE
from cbframe.arrow.exclusion import LeftOut
from cbframe.arrow.spill import Progressed
from cbframe.cluster.manifest import Manifest
from cbframe.frame.intake import Intake
from cbframe.frame.names import Names, alive
from cbframe.scan.spec import ScanSpec
from cbframe.wire.constants import Opcode


class Rows:
    """What arrived so far.

    Parameters
    ----------
    schema
        Of the rows: that of the receiver, or a part of it.

    Attributes
    ----------
    left_out
        How many documents were left out; known once all are gathered.
    """

    def __init__(self, target: ScanSpec, names: Names, schema: pa.Schema) -> None:
        self._target = target
        self._names = names
        self._schema = schema
        self.left_out = LeftOut()
        self._documents = 0
        self._batches: list[pa.RecordBatch] = []

    def add(self, batch: pa.RecordBatch) -> None:
        """Take the next batch, also if it is empty: batches are known by their number."""
        self._batches.append(batch.select(self._schema.names))
        if self._target.n_rows is not None:
            self._documents += int((batch.column(OPCODE).to_numpy() == Opcode.DCP_MUTATION).sum())

    def has_enough(self) -> bool:
        """Whether as many documents came as were asked for."""
        wanted = self._target.n_rows
        return wanted is not None and self._documents >= wanted

    def gathered(
        self, receiver: GatheringReceiver[Any]
    ) -> tuple[pa.Table, npt.NDArray[np.bool_] | None, Manifest | None]:
        """All rows, which of them count (None for all), and the collections that they are of.

        Raises
        ------
        ConfigurationError
            A collection that was asked for is gone.
        """
        self._names.refuse_dropped(receiver)
        keep = receiver.surviving(self._batches)
        raw = pa.Table.from_batches(self._batches, self._schema)
        self._batches.clear()
        manifest = self._names.manifest_of(raw[COLLECTION_ID].to_numpy(), receiver)
        if manifest is not None and not (living := alive(raw, manifest)).all():
            keep = living if keep is None else keep & living
        opcode = raw[OPCODE].to_numpy()
        self.left_out = LeftOut.of(opcode if keep is None else opcode[keep])
        if self.left_out != LeftOut():
            wanted = opcode == Opcode.DCP_MUTATION
            keep = wanted if keep is None else keep & wanted
        return raw, keep, manifest


class RawSink:
    """Takes the documents of one run as they are; `moment` as of :class:`~cbframe.frame.intake.Intake`."""

    def __init__(
        self,
        target: ScanSpec,
        names: Names,
        receiver: GatheringReceiver[pa.RecordBatch],
        moment: Callable[[], int] | None = None,
    ) -> None:
        self._target = target
        self._receiver = receiver
        self._intake = Intake(target, names, receiver, moment)
        self._rows = Rows(target, names, receiver.schema)

    def add(self, arrived: list[pa.RecordBatch]) -> None:
        """Take batches in the order in which they arrived."""
        for batch in arrived:
            self._rows.add(self._intake.reduce(batch))

    def has_enough(self) -> bool:
        """Whether as many documents came as were asked for."""
        return self._rows.has_enough()

    def foresee(self, progress: Progressed) -> None:
        """Nothing is put on disk."""

    @property
    def left_out(self) -> LeftOut:
        """How many documents were left out; known once it is finished."""
        return self._rows.left_out

    def finish(self) -> tuple[pa.Table, Manifest | None]:
        """The rows that count, and the collections that they are of."""
        enough = self.has_enough()
        raw, keep, manifest = self._rows.gathered(self._receiver)
        if not enough:
            self._intake.refuse_filters()
        return filtered(raw, keep).slice(0, self._target.n_rows), manifest


def filtered(table: pa.Table, keep: npt.NDArray[np.bool_] | None) -> pa.Table:
    """The rows that are kept; None for all."""
    return table if keep is None or keep.all() else table.filter(pa.array(keep))
