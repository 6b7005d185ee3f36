"""Which rows of a snapshot's files count: not taken back, not of a dropped collection, the newest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cbframe.arrow.batcher import newest, of_dropped
from cbframe.arrow.columns import COLLECTION_ID, EXPIRY, KEY, SEQNO, VBUCKET
from cbframe.arrow.current_rows import has_expired, of_transactions
from cbframe.snapshot.files import heads, may_have
from cbframe.snapshot.manifest import FileEntry, Manifest, Rollback
from cbframe.snapshot.sink import CHANGE_TYPE, UPSERT
from cbframe.snapshot.store import Store
from cbframe.wire.constants import MAX_SEQNO

Mask = npt.NDArray[np.bool_]
_Counting = dict[str, list[tuple[pa.Table, Mask]]]
"""By file: rows, and which of them were not taken back."""


@dataclass(frozen=True, slots=True)
class Part:
    """The rows of a file that count."""

    entry: FileEntry  # the file
    keep: Mask | None  # one entry a row; None for all

    @property
    def count(self) -> int:
        """How many they are."""
        return self.entry.rows if self.keep is None else int(self.keep.sum())


def shown(store: Store, manifest: Manifest, part: Part) -> Part:
    """A part without records of transactions: snapshots of earlier releases have them."""
    if manifest.knows_transactions or not part.count:
        return part
    hidden = np.concatenate([of_transactions(table[KEY]) for table in heads(store, part.entry, (KEY,))])
    return Part(part.entry, ~hidden if part.keep is None else part.keep & ~hidden) if hidden.any() else part


class Ceilings:
    """Above which seqnos rows do not count any more, by the version in which they were written."""

    def __init__(self, rollbacks: Sequence[Rollback]) -> None:
        self._rollbacks = rollbacks
        self._of: dict[int, npt.NDArray[np.uint64] | None] = {}

    def of(self, version: int) -> npt.NDArray[np.uint64] | None:
        """By vbucket; None if nothing of this version was taken back."""
        if version not in self._of:
            limits: dict[int, int] = {}
            for each in self._rollbacks:
                if each.version > version:
                    for vbucket, seqno in each.vbuckets.items():
                        limits[vbucket] = min(seqno, limits.get(vbucket, seqno))
            self._of[version] = _by_vbucket(limits) if limits else None
        return self._of[version]

    def touch(self, entry: FileEntry) -> bool:
        """Whether rows of a file may have been taken back."""
        ceiling = self.of(entry.version)
        if ceiling is None:
            return False
        low, high = entry.vbuckets
        return bool((ceiling[low : high + 1] < entry.seqnos[1]).any())

    def mask(self, version: int, table: pa.Table) -> Mask | None:
        """Which rows of a version count; None for all."""
        ceiling = self.of(version)
        if ceiling is None:
            return None
        counts: Mask = table[SEQNO].to_numpy() <= ceiling[table[VBUCKET].to_numpy()]
        return counts


def _by_vbucket(limits: Mapping[int, int]) -> npt.NDArray[np.uint64]:
    ceiling = np.full(0x10000, MAX_SEQNO, np.uint64)
    ceiling[list(limits)] = np.array(list(limits.values()), np.uint64)
    return ceiling


class Live:
    """Finds the rows that are the documents of a version."""

    def __init__(
        self, store: Store, manifest: Manifest, *, deletions: bool = False, moment: int | None = None
    ) -> None:
        self._store = store
        self._manifest = manifest
        self._deletions = deletions
        self._moment = moment
        self.expired = 0
        self._ceilings = Ceilings(manifest.rollbacks)
        self._dead = set(manifest.dead)
        self._emptied: dict[tuple[int, int], int] = {}
        for drop in manifest.drops:
            for vbucket, seqno in drop.vbuckets.items():
                place = vbucket, drop.collection
                self._emptied[place] = max(seqno, self._emptied.get(place, 0))

    def parts(self) -> list[Part]:
        """Files with what counts of them, oldest first."""
        found = [shown(self._store, self._manifest, part) for part in self._newest()]
        if self._moment is None:
            return found
        return [self._without_expired(part, self._moment) for part in found]

    def _without_expired(self, part: Part, moment: int) -> Part:
        # 0 is never, and most often there is nothing else.
        if not part.count or not may_have(self._store, part.entry, EXPIRY, 1, moment - 1):
            return part
        gone = np.concatenate(
            [
                has_expired(table[EXPIRY].to_numpy(), moment)
                for table in heads(self._store, part.entry, (EXPIRY,))
            ]
        )
        keep = ~gone if part.keep is None else part.keep & ~gone
        left = Part(part.entry, keep)
        self.expired += part.count - left.count
        return left

    def _newest(self) -> list[Part]:
        """Files with the newest versions of documents."""
        entries = self._manifest.files
        base = self._base()
        others = [entry for entry in entries if base is None or entry.version != base]
        plain = not self._dead and not self._emptied and not any(map(self._ceilings.touch, entries))
        if not others and plain and (self._deletions or all(e.rows == e.upserts for e in entries)):
            return [Part(entry, None) for entry in entries]
        counting = {entry.name: [*self._counting(entry)] for entry in others}
        if base is not None and self._goes_by_version(base):
            masks = self._newest_by_version(counting)
        else:
            masks = self._newest_by_seqno(base, counting)
        return [Part(entry, np.concatenate(masks[entry.name] or [np.ones(0, bool)])) for entry in entries]

    def _goes_by_version(self, base: int) -> bool:
        """Whether of two rows of one key, the one of the later version is always the newer one."""
        return (
            len({*self._manifest.collections, *self._dead}) <= 1
            and all(entry.unique for entry in self._manifest.files)
            and base == min(entry.version for entry in self._manifest.files)
        )

    def _newest_by_version(self, counting: _Counting) -> dict[str, list[Mask]]:
        later = [(table, mask) for some in counting.values() for table, mask in some]
        keys = pa.chunked_array(
            [chunk for table, mask in later for chunk in _some(table, mask)[KEY].chunks], pa.binary()
        )
        encoded = _encoded(keys)
        codes = np.asarray(encoded.indices)
        last = np.zeros(len(encoded.dictionary), np.int64)
        last[codes] = np.arange(len(codes))  # of several assignments to one place, the last counts
        newest = last[codes] == np.arange(len(codes))
        masks: dict[str, list[Mask]] = {}
        start = 0
        for entry in self._manifest.files:
            masks[entry.name] = []
            for table, mask in counting.get(entry.name) or self._counting(entry):
                counts = mask.copy()
                if entry.name in counting:
                    counts[mask] = newest[start : start + int(mask.sum())]
                    start += int(mask.sum())
                else:
                    counts &= ~pc.is_in(table[KEY], value_set=encoded.dictionary).to_numpy()
                masks[entry.name].append(self._documents(table, counts))
        return masks

    def _newest_by_seqno(self, base: int | None, counting: _Counting) -> dict[str, list[Mask]]:
        keys = [table[KEY].filter(pa.array(mask)) for some in counting.values() for table, mask in some]
        named = pa.chunked_array([chunk for key in keys for chunk in key.chunks], pa.binary())
        masks: dict[str, list[Mask]] = {}
        suspects: list[tuple[str, int, npt.NDArray[np.int64], pa.Table]] = []
        for entry in self._manifest.files:
            masks[entry.name] = []
            # The newest is looked for among documents that are in several versions; of the one with most
            # rows, only those are taken up that others have, too.
            for number, (table, mask) in enumerate(counting.get(entry.name) or self._counting(entry)):
                again = mask
                if entry.version == base:
                    again = mask & pc.is_in(table[KEY], value_set=named).to_numpy()
                rows = np.flatnonzero(again)
                if len(rows):
                    some = table.select([KEY, COLLECTION_ID, SEQNO]).take(pa.array(rows))
                    suspects.append((entry.name, number, rows, some))
                masks[entry.name].append(self._documents(table, mask))
        self._leave_older_out(masks, suspects)
        return masks

    @staticmethod
    def _documents(table: pa.Table, mask: Mask) -> Mask:
        """Without deletions, where they are kept apart."""
        if CHANGE_TYPE not in table.column_names:
            return mask
        upserts: Mask = pc.equal(table[CHANGE_TYPE], UPSERT).to_numpy()
        return mask & upserts

    def _base(self) -> int | None:
        """The version with most rows among those in which no document occurs twice."""
        rows: Counter[int] = Counter()
        for entry in self._manifest.files:
            if entry.unique:
                rows[entry.version] += entry.rows
        return rows.most_common(1)[0][0] if rows else None

    def _counting(self, entry: FileEntry) -> Iterator[tuple[pa.Table, Mask]]:
        """Rows of a file, a part after the other, and which of them were not taken back."""
        columns = [KEY, COLLECTION_ID, SEQNO]
        if self._emptied or self._ceilings.of(entry.version) is not None:
            columns.append(VBUCKET)
        if not self._deletions and entry.rows != entry.upserts:
            columns.append(CHANGE_TYPE)
        for table in heads(self._store, entry, columns):
            mask = self._ceilings.mask(entry.version, table)
            if mask is None:
                mask = np.ones(len(table), bool)
            gone = of_dropped(table, self._dead, self._emptied)
            yield table, mask if gone is None else mask & ~gone

    @staticmethod
    def _leave_older_out(
        masks: dict[str, list[Mask]], suspects: list[tuple[str, int, npt.NDArray[np.int64], pa.Table]]
    ) -> None:
        if not suspects:
            return
        stale = ~newest(pa.concat_tables([table for *_, table in suspects]))
        start = 0
        for name, number, rows, table in suspects:
            masks[name][number][rows[stale[start : start + len(table)]]] = False
            start += len(table)


def _some(table: pa.Table, mask: Mask) -> pa.Table:
    return table if mask.all() else table.filter(pa.array(mask))


def _encoded(keys: pa.ChunkedArray) -> pa.DictionaryArray:
    """A number for each key."""
    # Not chunk by chunk: to unify the dictionaries afterwards takes longer than all the rest.
    whole = keys.combine_chunks()
    if isinstance(whole, pa.ChunkedArray):  # more bytes than one array holds
        return whole.dictionary_encode().unify_dictionaries().combine_chunks()
    return whole.dictionary_encode()


def taken_back(store: Store, before: Manifest, limits: Mapping[int, int]) -> int:
    """How many rows of a version a rollback takes back."""
    if not limits:
        return 0
    ceilings, ceiling = Ceilings(before.rollbacks), _by_vbucket(limits)
    count = 0
    for entry in before.files:
        low, high = entry.vbuckets
        if (ceiling[low : high + 1] >= entry.seqnos[1]).all():
            continue
        for table in heads(store, entry, (VBUCKET, SEQNO)):
            void = table[SEQNO].to_numpy() > ceiling[table[VBUCKET].to_numpy()]
            counted = ceilings.mask(entry.version, table)
            count += int((void if counted is None else void & counted).sum())
    return count
