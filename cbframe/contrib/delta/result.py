"""What a write of a Delta table tells of itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from html import escape

from cbframe.scan.asof import AsOf
from cbframe.scan.conflicts import Conflict
from cbframe.snapshot.result import behind, count, some


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaResult:
    """A Delta table that was written.

    Attributes
    ----------
    uri
        Where it is.
    bucket
        What it mirrors.
    version
        Of the table, now.
    changed
        Whether there was anything new; if not, there is no commit.
    rewritten
        Whether the whole table was written, since types got wider, or at first.
    upserted, deleted
        Documents that the bucket reported, and deletions or expirations; each document counts once.
    retracted
        Rows that went, or gave way to older ones: the server took them back.
    rolled_back
        Vbuckets that the server rolled back, and the seqno to which.
    read_again
        Vbuckets that were read again from an earlier position than the table's, and that position; 0 is
        the start.
    seconds
        How long it took.
    as_of
        The vbucket positions of the table now.
    conflicts, rejected
        As of a read, of the documents that came.
    transaction_records
        As of :class:`~cbframe.SnapshotResult`.
    clock_behind
        As of :class:`~cbframe.SnapshotResult`.
    """

    uri: str
    bucket: str
    version: int
    changed: bool
    rewritten: bool
    upserted: int
    deleted: int
    retracted: int
    rolled_back: dict[int, int] = field(repr=False)
    read_again: dict[int, int] = field(repr=False)
    seconds: float
    as_of: AsOf
    conflicts: tuple[Conflict, ...] = field(default=(), repr=False)
    rejected: dict[str, int] = field(default_factory=dict, repr=False)
    transaction_records: int = 0
    clock_behind: timedelta = timedelta()

    def __str__(self) -> str:
        return "\n".join(f"{name:<12}{value}" for name, value in self._lines())

    def _lines(self) -> list[tuple[str, str]]:
        how = "" if self.changed else ", nothing new"
        lines = [
            ("table", f"{self.uri}, bucket {self.bucket!r}"),
            ("version", f"{self.version}{how}" + (", rewritten" if self.rewritten else "")),
            ("rows", f"{self.upserted:,} upserted, {self.deleted:,} deleted, {self.retracted:,} retracted"),
            ("seconds", f"{self.seconds:.1f}"),
            ("as of", f"{len(self.as_of):,} vbuckets, {self.as_of.changes:,} changes"),
        ]
        if self.rolled_back:
            lines.append(("rolled back", f"{some(self.rolled_back)} by the server"))
        if self.read_again:
            lines.append(("read again", some(self.read_again)))
        conflicts = [each for each in self.conflicts if each.names is None]
        if conflicts:
            lines.append(("conflicts", f"no common type: {len(conflicts):,} fields"))
        if self.rejected:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.rejected.items())
            lines.append(("_cb_value", reasons))
        if self.transaction_records:
            lines.append(("left out", f"{count(self.transaction_records, 'change')} of transaction records"))
        if self.clock_behind:
            lines.append(("clock", behind(self.clock_behind)))
        return lines

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{escape(name)}</th>"
            f"<td style='text-align:left'>{escape(value)}</td></tr>"
            for name, value in self._lines()
        )
        return f"<table>{rows}</table>"
