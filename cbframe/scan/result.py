"""A finished read."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from cbframe.dcp.stats import BucketDataSourceStats
from cbframe.errors import DependencyError
from cbframe.scan.asof import AsOf
from cbframe.scan.conflicts import Conflict
from cbframe.scan.moment import Moment
from cbframe.scan.report import ReadReport, left_out

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl


@dataclass(frozen=True, slots=True)
class ReadResult:
    """A finished read.

    Attributes
    ----------
    table
        The documents.
    bucket
        Where they are from.
    as_of
        The vbucket positions of the table.
    conflicts
        Fields whose values had no common type.
    rejected
        Documents that are no JSON objects, by reason.
    stats
        Counters of the connections.
    seconds
        How long it took.
    documents
        How many there are, where the table is not kept, too; None if they were handed on without being
        counted.
    expired
        How many documents were left out since their expiry had passed; the server removes them later.
    transaction_records
        How many records of transactions were left out: documents whose keys begin with ``_txn:``.
    moment
        By when documents had expired, and whose clock that was; None with ``expired="keep"``.
    """

    table: pa.Table
    bucket: str
    as_of: AsOf
    conflicts: tuple[Conflict, ...]
    rejected: dict[str, int]
    stats: BucketDataSourceStats
    seconds: float
    documents: int | None = None
    expired: int = 0
    transaction_records: int = 0
    moment: Moment | None = None

    def __repr__(self) -> str:
        rows, columns = self.table.shape
        excluded = left_out(self.expired, self.transaction_records)
        more = f", left out: {excluded}" if excluded else ""
        return f"<ReadResult of {self.bucket!r}: {rows:,} rows, {columns} columns, {self.as_of!r}{more}>"

    def labelled(self, *, report: bool) -> ReadResult:
        """The same; the metadata of the table's schema tells its vbucket positions.

        Parameters
        ----------
        report
            It tells of conflicts and rejected documents, too, but of no document's key.
        """
        about: dict[str, Any] = {"bucket": self.bucket, "as_of": self.as_of}
        if report:
            excluded = [
                {name: value for name, value in each.to_dict().items() if name != "samples"}
                for each in self.conflicts
            ]
            about |= {
                "conflicts": excluded,
                "rejected": self.rejected,
                "expired": self.expired,
                "transaction_records": self.transaction_records,
            }
        metadata = {b"cbframe": json.dumps(about).encode()}
        return replace(self, table=self.table.replace_schema_metadata(metadata))

    @property
    def report(self) -> ReadReport:
        """All of this but the documents and the counters; those of partitions can be merged."""
        return ReadReport(
            self.bucket,
            self.as_of,
            self.conflicts,
            self.rejected,
            self.documents,
            self.stats.bytes_received,
            self.seconds,
            self.expired,
            self.transaction_records,
            self.moment,
        )

    def to_pandas(self, dtype_backend: str | None = "pyarrow") -> pd.DataFrame:
        """The table as a DataFrame whose index is the document key.

        ``df.attrs["cbframe"]`` holds the :attr:`report`: ``as_of``, ``conflicts``, ``rejected`` and the rest.
        """
        from cbframe.scan.convert import to_pandas  # noqa: PLC0415 - pandas is slow to import

        return to_pandas(self.table, dtype_backend, self.report.to_dict())

    def to_polars(self) -> pl.DataFrame:
        """The table as a polars DataFrame; the key is the column ``_cb_key``.

        Raises
        ------
        DependencyError
            polars is not installed.
        """
        try:
            import polars as pl  # noqa: PLC0415 - optional
        except ImportError as exc:
            raise DependencyError("polars is not installed", hint="pip install 'cbframe[polars]'") from exc
        frame = pl.from_arrow(self.table)
        assert isinstance(frame, pl.DataFrame), "a table is no series"
        return frame

    def __arrow_c_schema__(self) -> Any:
        """The table's schema."""
        return self.table.schema.__arrow_c_schema__()

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        """Hand the table over to any Arrow consumer."""
        return self.table.__arrow_c_stream__(requested_schema)
