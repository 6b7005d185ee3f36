"""What an update tells of itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from html import escape

from cbframe.scan.result import AsOf, Conflict


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotResult:
    """A finished update of a snapshot.

    Attributes
    ----------
    path
        Where the snapshot is.
    bucket
        What it is a copy of.
    version
        The newest version now; the one before if there was nothing new.
    changed
        Whether there was anything new.
    upserted, deleted
        Rows written: documents, and deletions or expirations.
    retracted
        Rows of earlier versions that do not count any more: the server took them back.
    rolled_back
        Vbuckets that the server rolled back, and the seqno to which.
    read_again
        Vbuckets that were read again from an earlier position than the snapshot's end, and that position;
        0 is the start.
    nbytes
        Written, the manifest included.
    seconds
        How long it took.
    as_of
        The vbucket positions of the snapshot now.
    conflicts, rejected
        As of a read, of the documents of this update.
    transaction_records
        How many changes of records of transactions were left out: keys that begin with ``_txn:``.
    clock_behind
        How far this machine's clock is behind the time of the version before. Versions have ascending times
        in any case: the new one is 1 ms after the one before.
    """

    path: str
    bucket: str
    version: int
    changed: bool
    upserted: int
    deleted: int
    retracted: int
    rolled_back: dict[int, int] = field(repr=False)
    read_again: dict[int, int] = field(repr=False)
    nbytes: int
    seconds: float
    as_of: AsOf
    conflicts: tuple[Conflict, ...] = field(default=(), repr=False)
    rejected: dict[str, int] = field(default_factory=dict, repr=False)
    transaction_records: int = 0
    clock_behind: timedelta = timedelta()

    def __str__(self) -> str:
        return "\n".join(f"{name:<12}{value}" for name, value in self._lines())

    def _lines(self) -> list[tuple[str, str]]:
        lines = [
            ("snapshot", f"{self.path}, bucket {self.bucket!r}"),
            ("version", f"{self.version}" + ("" if self.changed else ", nothing new")),
            (
                "rows",
                f"{self.upserted:,} upserted, {self.deleted:,} deleted, {self.retracted:,} retracted",
            ),
            ("written", f"{size(self.nbytes)} in {self.seconds:.1f} s"),
            ("as of", f"{len(self.as_of):,} vbuckets, {self.as_of.changes:,} changes"),
        ]
        if self.rolled_back:
            lines.append(("rolled back", f"{some(self.rolled_back)} by the server"))
        if self.read_again:
            lines.append(("read again", f"{some(self.read_again)}"))
        for label, some_conflicts in (
            ("no common type", [each for each in self.conflicts if each.names is None]),
            ("names are data", [each for each in self.conflicts if each.names is not None]),
        ):
            if some_conflicts:
                fields = ", ".join(each.path for each in some_conflicts[:5])
                more = f" and {len(some_conflicts) - 5} more" if len(some_conflicts) > 5 else ""
                lines.append(("conflicts", f"{label}: {fields}{more}"))
        if self.rejected:
            shown = ", ".join(f"{count:,} {reason}" for reason, count in self.rejected.items())
            lines.append(("_cb_value", shown))
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


def behind(span: timedelta) -> str:
    """What to say of a clock that is behind."""
    return f"{span} behind the time of the version before: check the clocks of the machines that write"


def count(number: int, what: str) -> str:
    """A number of things: "1 file", "2 files"."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def some(seqnos: dict[int, int]) -> str:
    """A few vbuckets of many."""
    shown = ", ".join(f"vbucket {vbucket} to {seqno}" for vbucket, seqno in sorted(seqnos.items())[:3])
    return shown if len(seqnos) <= 3 else f"{len(seqnos):,} vbuckets: {shown}, …"


def size(nbytes: int) -> str:
    """For people to read."""
    for size, unit in ((1 << 30, "GB"), (1 << 20, "MB"), (1 << 10, "kB")):
        if nbytes >= size:
            return f"{nbytes / size:.1f} {unit}"
    return f"{nbytes} bytes"
