"""A finished read."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from cbframe.dcp.stats import BucketDataSourceStats
from cbframe.errors import ConfigurationError, DependencyError
from cbframe.scan.agreement import Conflict, merged
from cbframe.scan.asof import AsOf, Moment

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl


@dataclass(frozen=True, slots=True)
class ReadReport:
    """What there is to say about a read, or about several that together are one.

    Attributes
    ----------
    bucket
        Where the documents are from.
    as_of
        The vbucket positions that were read.
    conflicts
        Fields whose values had no common type.
    rejected
        Documents that are no JSON objects, by reason.
    documents
        Rows that came of it; None if they were handed on without being counted.
    bytes
        What the nodes sent.
    seconds
        How long it took; of several reads the sum, even if they ran side by side.
    expired, transaction_records, moment
        As of :class:`~cbframe.ReadResult`.
    """

    bucket: str
    as_of: AsOf
    conflicts: tuple[Conflict, ...]
    rejected: dict[str, int]
    documents: int | None
    bytes: int
    seconds: float
    expired: int = 0
    transaction_records: int = 0
    moment: Moment | None = None

    @classmethod
    def merged(cls, reports: Iterable[ReadReport]) -> ReadReport:
        """One report of the partitions of a read.

        A field that is in conflict in several of them is named once: its values are counted over all, and
        each kind keeps the keys of a few documents. So is one whose values became text in one of them
        for the sake of others. What is text in a partition in any case was not counted there: of a read of
        the whole bucket, the report may count more strings.

        Raises
        ------
        ConfigurationError
            They are not the parts of one read: there is none, there are several buckets, or a vbucket
            comes twice.
        """
        parts = list(reports)
        buckets = {part.bucket for part in parts}
        if len(buckets) != 1:
            raise ConfigurationError(
                f"reports of {len(buckets)} buckets cannot be merged",
                hint="give those of one read's partitions",
            )
        as_of = {vb: at for part in parts for vb, at in part.as_of.items()}
        if len(as_of) < sum(len(part.as_of) for part in parts):
            raise ConfigurationError(
                "several of the reports are of the same vbucket",
                hint="give one report of each partition: what was read twice would be counted twice",
            )
        rejected: Counter[str] = Counter()
        for part in parts:
            rejected.update(part.rejected)
        times = [part.as_of.time for part in parts if part.as_of.time is not None]
        moments = [part.moment for part in parts if part.moment is not None]
        documents = [part.documents for part in parts if part.documents is not None]
        return cls(
            buckets.pop(),
            AsOf(dict(sorted(as_of.items())), min(times, default=None)),
            merged(part.conflicts for part in parts),
            dict(rejected),
            sum(documents) if len(documents) == len(parts) else None,
            sum(part.bytes for part in parts),
            sum(part.seconds for part in parts),
            sum(part.expired for part in parts),
            sum(part.transaction_records for part in parts),
            min(moments, key=lambda moment: moment.time, default=None),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as in ``df.attrs["cbframe"]``."""
        return {
            "bucket": self.bucket,
            "as_of": self.as_of,
            "conflicts": [conflict.to_dict() for conflict in self.conflicts],
            "rejected": dict(self.rejected),
            "documents": self.documents,
            "bytes": self.bytes,
            "seconds": self.seconds,
            "expired": self.expired,
            "transaction_records": self.transaction_records,
            "moment": None if self.moment is None else self.moment.to_dict(),
        }

    @classmethod
    def of_dict(cls, stored: Mapping[str, Any]) -> ReadReport:
        """What :meth:`to_dict` gave; others may have put more beside it."""
        own = {each.name: stored[each.name] for each in fields(cls) if each.name in stored}
        conflicts = tuple(Conflict.of_dict(conflict) for conflict in stored["conflicts"])
        moment = stored.get("moment")
        return cls(
            **{**own, "conflicts": conflicts, "moment": None if moment is None else Moment.of_dict(moment)}
        )


def left_out(expired: int, transaction_records: int) -> str:
    """How many documents were left out, for people to read; empty if none were."""
    stored = [
        f"{count:,} {what}"
        for count, what in (
            (expired, "expired"),
            (
                transaction_records,
                "record of transactions" if transaction_records == 1 else "records of transactions",
            ),
        )
        if count
    ]
    return " and ".join(stored)


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
        from cbframe.scan.dataframe import to_pandas  # noqa: PLC0415 - pandas is slow to import

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
