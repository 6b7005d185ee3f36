"""The versions of a snapshot, and the positions to which a vbucket can be taken back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np

from cbframe.dcp.positions import Position
from cbframe.errors import ConfigurationError, SnapshotError
from cbframe.snapshot.manifest import FOLDER, DamagedManifestError, Manifest, name_of, version_of
from cbframe.snapshot.store import Store

AsOf = int | str | date | None
_STEP = timedelta(milliseconds=1)
"""Between the times of two versions, at least."""
_LAST = datetime.max.replace(tzinfo=UTC)


def following(before: datetime | None, now: datetime) -> datetime:
    """The time of a version that is made at `now`, after one of the time `before`: never earlier."""
    return now if before is None else max(now, before + _STEP)


def lag(before: datetime | None, now: datetime) -> timedelta:
    """How far the clock that says `now` is behind the one that said `before`."""
    return timedelta() if before is None else max(before - now, timedelta())


class History:
    """The versions that there are. A manifest never changes: each is read once."""

    def __init__(self, store: Store) -> None:
        self.root = store.root
        self._store = store
        self._loaded: dict[int, Manifest] = {}

    def numbers(self) -> list[int]:
        """Versions, oldest first; also those whose manifest is damaged."""
        found = map(version_of, self._store.names(FOLDER))
        return sorted(number for number in found if number is not None)

    def load(self, version: int) -> Manifest:
        """One version."""
        if version not in self._loaded:
            name = name_of(version)
            try:
                data = self._store.read(name)
            except FileNotFoundError:
                raise SnapshotError(
                    f"there is no version {version}",
                    path=self._store.root,
                    hint="Snapshot(path).versions lists them; older ones are deleted by vacuum()",
                ) from None
            except OSError as exc:
                raise SnapshotError(
                    f"cannot read a manifest: {exc.strerror or exc}",
                    path=self._store.where(name),
                    hint="try again when the cause is gone",
                ) from exc
            self._loaded[version] = Manifest.from_bytes(data, self._store.where(name))
        return self._loaded[version]

    def latest(self) -> Manifest | None:
        """The newest version; None before the first."""
        numbers = self.numbers()
        return self.load(numbers[-1]) if numbers else None

    def at(self, as_of: AsOf) -> Manifest:
        """The version that was the newest one then."""
        numbers = self.numbers()
        if not numbers:
            raise SnapshotError(
                "there is no snapshot", path=self._store.root, hint="write_snapshot() makes one"
            )
        if as_of is None:
            return self.load(numbers[-1])
        if isinstance(as_of, int | np.integer) and not isinstance(as_of, bool):  # those of numpy, too
            return self.load(int(as_of))
        moment = _moment(as_of)
        times = self.times(moment)
        found = max((number for number, time in times.items() if time <= moment), default=None)
        if found is None:
            oldest = self.load(numbers[0])  # a damaged one may be that of the time
            raise ConfigurationError(
                f"as_of={as_of!s} is before the oldest version, which is of {oldest.created}",
                hint="Snapshot(path).versions lists what there is",
            )
        later = next((number for number in numbers if number > found), None)
        if later is not None and times[found] != moment:
            self.load(later)  # a damaged one may be that of the time
            if later != found + 1:
                raise SnapshotError(
                    f"as_of={as_of!s} is between versions {found} and {later}, and what was there is gone",
                    path=self._store.root,
                    hint=f"vacuum() deletes versions: give as_of={found} for the one before",
                )
        return self.load(found)

    def times(self, moment: datetime | None = None) -> dict[int, datetime]:
        """The times of the versions that can be read, oldest first: later versions have later times.

        Earlier releases wrote down what the clock said, also where it was behind that of another writer. A
        version that is not after the one before counts as 1 ms after it.
        """
        line: list[Manifest] = []
        for number in reversed(self.numbers()):
            try:
                line.append(self.load(number))
            except DamagedManifestError:
                continue
            if moment is not None and line[-1].ordered and line[-1].created <= moment:
                break
        found: dict[int, datetime] = {}
        latest: datetime | None = None
        for manifest in reversed(line):
            created = manifest.created
            latest = created if latest is None or created > latest else latest + _STEP
            found[manifest.version] = latest
        return found

    def time_of(self, manifest: Manifest) -> datetime:
        """The time of one of these versions."""
        return manifest.created if manifest.ordered else self.times()[manifest.version]

    def latest_time(self) -> datetime | None:
        """The time of the newest version that can be read; None if there is none."""
        return max(self.times(_LAST).values(), default=None)

    def ancestors(self, manifest: Manifest) -> Iterator[Manifest]:
        """A version, and what it was made from, newest first, as far as they are still there.

        Another beginning (mode="overwrite") is no ancestor. A damaged manifest ends the line.
        """
        numbers = set(self.numbers())
        each: Manifest | None = manifest
        while each is not None:
            yield each
            if each.kind == "create" or each.parent not in numbers:
                return
            try:
                each = self.load(each.parent)
            except SnapshotError:
                return


class Boundaries:
    """Where each vbucket was whole before: what it can be taken back to.

    A server that rolls a vbucket back to some seqno sends only what lies behind it. Versions of documents
    at or before that seqno which a withdrawn change had replaced may never have been sent: within a
    snapshot, only the newest version of a document is. So a vbucket is taken back to the end of a read,
    where nothing is missing, and read again from there.
    """

    def __init__(self, manifest: Manifest, ancestors: Iterable[Manifest]) -> None:
        self._manifest = manifest
        self._line = ancestors

    @property
    def loaded(self) -> bool:
        """Whether the ancestors have been read."""
        return isinstance(self._line, list)

    def load(self) -> None:
        """Read the ancestors, once."""
        if not self.loaded:
            self._line = [*self._line]

    def below(self, vbucket: int, seqno: int, *, before: int | None = None) -> Position:
        """The last position at or before `seqno` at which the vbucket was whole; its start if none."""
        found = self.version_below(vbucket, seqno, before=before)
        return Position() if found is None else found.positions[vbucket]

    def version_below(self, vbucket: int, seqno: int, *, before: int | None = None) -> Manifest | None:
        """The newest version that has that position; None for the start."""
        taken_back = [
            (each.version, each.vbuckets[vbucket])
            for each in self._manifest.rollbacks
            if vbucket in each.vbuckets
        ]
        floor = self._manifest.floors[vbucket]
        self.load()
        found: Manifest | None = None
        reached = 0
        for each in self._line:
            position = each.positions[vbucket]
            void = any(version > each.version and position.seqno > limit for version, limit in taken_back)
            if (
                reached < position.seqno <= seqno
                and position.seqno >= floor
                and not void
                and (before is None or each.version < before)
            ):
                found, reached = each, position.seqno
        return found


def _moment(as_of: Any) -> datetime:
    try:
        moment = datetime.fromisoformat(as_of.isoformat() if isinstance(as_of, date) else as_of)
    except (TypeError, ValueError) as exc:
        raise ConfigurationError(
            f"as_of={as_of!r} is no time", hint="give a version, or a time such as 2026-01-31T12:00+00:00"
        ) from exc
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
