"""What there is to say about a read besides its documents, and about several as if they were one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from cbframe.errors import ConfigurationError
from cbframe.scan.asof import AsOf
from cbframe.scan.conflicts import Conflict, merged
from cbframe.scan.moment import Moment


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
