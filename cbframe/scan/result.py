"""What a read reports besides its documents: as of what it is, what did not fit, what was left out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Self, TypeAlias

import pyarrow as pa

from cbframe.dcp.positions import VBucketOffset
from cbframe.dcp.stats import BucketDataSourceStats
from cbframe.errors import ConfigurationError, DependencyError

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

Clock: TypeAlias = Callable[[], datetime]
ClockOwner: TypeAlias = Literal["node", "client"]
_SAMPLES = 3
"""Keys that are kept for each kind of value of a conflict."""


def utc_now() -> datetime:
    """The time of day, with its zone."""
    return datetime.now(UTC)


class AsOf(dict[int, tuple[int, int]]):
    """An immutable mapping of vbucket to ``(vbuuid, seqno)``.

    It is consistent within each vbucket, not across vbuckets: Couchbase orders changes per vbucket only. A
    plain dict to JSON, so that pandas can store it; copies are the object itself, since pandas copies
    ``DataFrame.attrs`` at every step.

    Parameters
    ----------
    positions
        By vbucket: vbuuid, and seqno.
    time
        When the read began: every change that was there at this time is in it.

    Attributes
    ----------
    time
        As above; None if it is not known.
    """

    __slots__ = ("time",)

    def __init__(self, positions: Mapping[int, tuple[int, int]], time: datetime | None = None) -> None:
        super().__init__(positions)
        self.time = time

    @classmethod
    def of(cls, positions: Mapping[int, VBucketOffset], time: datetime | None = None) -> AsOf:
        """Where vbuckets are, in order of their numbers."""
        return cls({vb: (at.vbuuid, at.seqno) for vb, at in sorted(positions.items())}, time)

    @property
    def changes(self) -> int:
        """The seqnos of all vbuckets, summed: how many changes the bucket had seen."""
        return sum(seqno for _, seqno in self.values())

    def __repr__(self) -> str:
        time = "" if self.time is None else f"{self.time.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC, "
        return f"AsOf({time}{len(self):,} vbuckets, {self.changes:,} changes)"

    def __copy__(self) -> AsOf:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> AsOf:
        return self

    def __reduce__(self) -> tuple[type[AsOf], tuple[dict[int, tuple[int, int]], datetime | None]]:
        return AsOf, (dict(self), self.time)

    def _refuse(self, *_: object) -> NoReturn:
        raise TypeError("an AsOf cannot be changed")

    __setitem__ = __delitem__ = update = pop = popitem = clear = setdefault = __ior__ = _refuse


@dataclass(frozen=True, slots=True)
class Moment:
    """A time of day, in whole seconds.

    Attributes
    ----------
    time
        The time, in UTC.
    clock
        ``"node"``: a data node reported it. ``"client"``: no node did, since the user may not see statistics
        of the bucket, and it is that of this machine.
    """

    time: datetime
    clock: ClockOwner

    @classmethod
    def of(cls, node_time: int | None) -> Self:
        """That of a node, in seconds since the epoch, or else of this machine."""
        if node_time is not None:
            return cls(datetime.fromtimestamp(node_time, UTC), "node")
        return cls(utc_now().replace(microsecond=0), "client")

    @property
    def seconds(self) -> int:
        """Since the epoch, as expiries are counted."""
        return int(self.time.timestamp())

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"time": self.time.isoformat(), "clock": self.clock}

    @classmethod
    def of_dict(cls, fields: dict[str, Any]) -> Self:
        """What :meth:`to_dict` gave."""
        return cls(datetime.fromisoformat(fields["time"]), fields["clock"])


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
        plain = {each.name: getattr(self, each.name) for each in fields(self)}
        plain["conflicts"] = [conflict.to_dict() for conflict in self.conflicts]
        plain["rejected"] = dict(self.rejected)
        plain["moment"] = None if self.moment is None else self.moment.to_dict()
        return plain

    @classmethod
    def of_dict(cls, stored: Mapping[str, Any]) -> ReadReport:
        """What :meth:`to_dict` gave; others may have put more beside it."""
        own = {each.name: stored[each.name] for each in fields(cls) if each.name in stored}
        own["conflicts"] = tuple(map(Conflict.of_dict, stored["conflicts"]))
        if own.get("moment") is not None:
            own["moment"] = Moment.of_dict(own["moment"])
        return cls(**own)


def left_out(expired: int, transaction_records: int) -> str:
    """How many documents were left out, for people to read; empty if none were."""
    parts = [f"{expired:,} expired"] if expired else []
    if transaction_records:
        what = "record of transactions" if transaction_records == 1 else "records of transactions"
        parts.append(f"{transaction_records:,} {what}")
    return " and ".join(parts)


_COMMON = tuple(each.name for each in fields(ReadReport) if each.name != "bytes")
"""What a report has of a result."""


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

        With `report`, of conflicts and rejected documents, too, but of no document's key.
        """
        about: dict[str, Any] = {"bucket": self.bucket, "as_of": self.as_of}
        if report:
            about |= {
                "conflicts": [
                    {name: value for name, value in each.to_dict().items() if name != "samples"}
                    for each in self.conflicts
                ],
                "rejected": self.rejected,
                "expired": self.expired,
                "transaction_records": self.transaction_records,
            }
        metadata = {b"cbframe": json.dumps(about).encode()}
        return replace(self, table=self.table.replace_schema_metadata(metadata))

    @property
    def report(self) -> ReadReport:
        """All of this but the documents and the counters; those of partitions can be merged."""
        common = {name: getattr(self, name) for name in _COMMON}
        return ReadReport(bytes=self.stats.bytes_received, **common)

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


def result_of(report: ReadReport, table: pa.Table, stats: BucketDataSourceStats) -> ReadResult:
    """The result that a report is of."""
    return ReadResult(table=table, stats=stats, **{name: getattr(report, name) for name in _COMMON})
