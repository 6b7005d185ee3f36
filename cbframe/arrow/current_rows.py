"""Which rows of a read count: the newest version of each document, in a collection that exists.

That is known only when the read is complete: rows are rolled back, a later snapshot replaces them, their
collection is dropped or emptied. :class:`CurrentRows` finds the rows of batches that wait; :func:`newest`,
:func:`of_dropped` and :func:`rolled_back` serve other rows as well, such as those of files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cbframe.arrow.columns import COLLECTION_ID, KEY, SEQNO, VBUCKET, Mask
from cbframe.arrow.receivers import GatheringReceiver
from cbframe.core import COMPILED
from cbframe.errors import ConfigurationError
from cbframe.wire.constants import MAX_SEQNO

VERSION = [KEY, COLLECTION_ID, SEQNO]
"""Columns that tell a version of a document."""
ARRIVED = "_cb_number"
"""The number of the batch in which a row arrived."""
EXPIRED, TRANSACTION_RECORD = np.uint8(0xF0), np.uint8(0xF1)
"""Marks in the column of opcodes; DCP has none of these."""
TRANSACTION_PREFIX = b"_txn:"
KeyPattern: TypeAlias = str | re.Pattern[str] | re.Pattern[bytes]
_GLOB = re.compile(r"\*+|\?|\[!?+(?:\][^\]]*|[^\]]+)\]|.", re.DOTALL)
_SPECIAL = re.compile(r"([\\.+*?()|\[\]{}^$])")
_FLAGS = {re.IGNORECASE: "i", re.MULTILINE: "m", re.DOTALL: "s"}
_TRAPS = ("{,", "[:")
"""What RE2 takes for something else than Python does."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """How many documents were left out."""

    expired: int = 0  # their expiry had passed, and the server had not removed them yet
    transaction_records: int = 0  # their keys begin with `_txn:`

    @classmethod
    def of(cls, marked: npt.NDArray[np.uint8]) -> LeftOut:
        """Of the opcodes of the newest versions of documents."""
        return cls(int((marked == EXPIRED).sum()), int((marked == TRANSACTION_RECORD).sum()))

    def __add__(self, other: LeftOut) -> LeftOut:
        return LeftOut(self.expired + other.expired, self.transaction_records + other.transaction_records)


NOTHING = LeftOut()


def of_transactions(keys: pa.Array | pa.ChunkedArray) -> Mask:
    """Which keys are those of records that transactions keep in the bucket."""
    # Of text the prefix is text.
    prefix = TRANSACTION_PREFIX if pa.types.is_binary(keys.type) else TRANSACTION_PREFIX.decode()
    found: Mask = pc.starts_with(keys, prefix).to_numpy(zero_copy_only=False)
    return found


def key_test(pattern: KeyPattern) -> tuple[bytes, str | bytes | None]:
    """How all keys begin that match, and what RE2 is to find in them: as text in UTF-8, or in their bytes."""
    try:
        prefix, regex = _of_glob(pattern) if isinstance(pattern, str) else (b"", _of_regex(pattern))
        if regex is not None:
            _found(pa.array([b""]), regex)
    except (pa.ArrowInvalid, UnicodeEncodeError):
        # Nothing of the pattern is shown: it may hold a key.
        raise ConfigurationError(
            "key_pattern= is no pattern of keys",
            hint='give a glob such as "hotel::*", in which [ begins a set, or a regular expression that RE2 '
            "takes: without lookaround, back-references, {,n}, [:name:] and flags other than I, M and S",
        ) from None
    return prefix, regex


def _of_glob(glob: str) -> tuple[bytes, str | None]:
    prefix, parts = "", []
    for piece in _GLOB.findall(glob):
        if piece[0] == "*":
            parts.append(r"\C*")  # also of bytes that are no UTF-8
        elif piece == "?":
            parts.append("(?s:.)")
        elif len(piece) > 1:
            mark = "^" if piece[1] == "!" else ""
            parts.append(f"[{mark}{_literal(piece[1:-1].removeprefix('!'))}]")
        elif parts:
            parts.append(_literal(piece))
        else:
            prefix += piece
    regex = rf"\A{_literal(prefix)}{''.join(parts)}\z"
    return prefix.encode(), None if parts == [r"\C*"] else regex


def _literal(text: str) -> str:
    return _SPECIAL.sub(r"\\\1", text)


def _of_regex(pattern: re.Pattern[str] | re.Pattern[bytes]) -> str | bytes:
    text = pattern.pattern if isinstance(pattern.pattern, str) else pattern.pattern.decode("latin-1")
    if pattern.flags & ~(sum(_FLAGS) | re.UNICODE | re.ASCII) or any(trap in text for trap in _TRAPS):
        raise pa.ArrowInvalid
    flags = "".join(letter for flag, letter in _FLAGS.items() if pattern.flags & flag)
    text = f"(?{flags}){text}" if flags else text
    return text if isinstance(pattern.pattern, str) else text.encode("latin-1")


def _found(keys: pa.Array, regex: str | bytes) -> pa.Array:
    return pc.match_substring_regex(keys.view(pa.string()) if isinstance(regex, str) else keys, regex)


class KeyFilter:
    """Leaves out rows by their keys: those that do not match, and records of transactions."""

    def __init__(
        self, prefix: bytes | None, pattern: KeyPattern | None = None, *, drops_transactions: bool
    ) -> None:
        start, self._regex = (b"", None) if pattern is None else key_test(pattern)
        self._prefixes = [each for each in (prefix, start) if each]
        self._drops_transactions = drops_transactions
        self.transaction_records = 0  # how many :meth:`reduce` has left out

    def split(self, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, Mask | None]:
        """Rows that match, and which of them are records that are to be left out; None if none is."""
        for prefix in self._prefixes:
            batch = batch.filter(pc.starts_with(batch.column(KEY), prefix))
        if self._regex is not None and len(batch):
            batch = batch.filter(_found(batch.column(KEY), self._regex))
        if self._drops_transactions and (theirs := of_transactions(batch.column(KEY))).any():
            return batch, theirs
        return batch, None

    def reduce(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The rows that are wanted."""
        batch, theirs = self.split(batch)
        if theirs is None:
            return batch
        self.transaction_records += int(theirs.sum())
        return batch.filter(pa.array(~theirs))


def has_expired(expiry: npt.NDArray[np.uint32], moment: int) -> Mask:
    """Which documents a GET does not find any more at a moment, in seconds since the epoch; 0 is never.

    Within the second of its expiry a node still returns a document.
    """
    found: Mask = (expiry != 0) & (expiry < moment)
    return found


class CurrentRows:
    """Which rows of some batches count.

    Keys are held in memory only of documents that came in a vbucket's second snapshot or later: of what
    changed while the bucket was read.
    """

    def __init__(
        self,
        heads: Sequence[Callable[[], pa.RecordBatch]],  # keys and metadata of each batch, with ARRIVED
        receiver: GatheringReceiver[Any],  # what the batches came by; nothing more comes
        *,
        versions: bool = False,  # older versions of documents count, too
        ended: dict[tuple[int, int], int] | None = None,
        dropped: set[int] | None = None,
    ) -> None:
        self._heads = heads
        self._dropped = receiver.dropped if dropped is None else dropped
        self._ended = receiver.ended() if ended is None else ended
        self._several = receiver.several_versions()
        self._rolled_back_before = receiver.rolled_back_before
        self._later_from = receiver.later_from()
        self._stale = self._find_stale() if self._several.any() and not versions else {}

    def mask(self, number: int, heads: pa.RecordBatch) -> Mask:
        """Which rows of a batch count, deletions and documents that are left out among them."""
        keep = ~self._rolled_back(heads)
        gone = of_dropped(pa.Table.from_batches([heads]), self._dropped, self._ended)
        if gone is not None:
            keep &= ~gone
        if number in self._stale:
            keep[self._stale[number]] = False
        return keep

    def _rolled_back(self, heads: pa.RecordBatch) -> Mask:
        if not self._rolled_back_before.any():
            return np.zeros(len(heads), bool)
        found: Mask = _numpy(heads, ARRIVED) < self._rolled_back_before[_numpy(heads, VBUCKET)]
        return found

    def _suspects(self) -> Iterator[tuple[int, pa.RecordBatch, Mask]]:
        """Batches with rows that may have several versions, and which rows these are."""
        for number, load in enumerate(self._heads):
            heads = load()
            suspects: Mask = self._several[_numpy(heads, VBUCKET)] & ~self._rolled_back(heads)
            if suspects.any():
                yield number, heads, suspects

    def _find_stale(self) -> dict[int, npt.NDArray[np.int64]]:
        """Rows of which there is a newer version, be it a deletion, by batch."""
        later = [
            heads.column(KEY).filter(
                pa.array(suspects & (_numpy(heads, ARRIVED) >= self._later_from[_numpy(heads, VBUCKET)]))
            )
            for _, heads, suspects in self._suspects()
        ]
        keys = pa.chunked_array(later, pa.binary()).unique()
        some = []
        numbers: list[npt.NDArray[np.int64]] = []
        rows: list[npt.NDArray[np.int64]] = []
        for number, heads, suspects in self._suspects():
            named = pc.is_in(heads.column(KEY), value_set=keys).to_numpy(zero_copy_only=False)
            found = np.flatnonzero(suspects & named)
            some.append(heads.select(VERSION).take(pa.array(found)))
            numbers.append(np.full(len(found), number))
            rows.append(found)
        if not some:
            return {}
        stale = ~newest(pa.Table.from_batches(some))
        where, row = np.concatenate(numbers)[stale], np.concatenate(rows)[stale]
        return {int(each): row[where == each] for each in np.unique(where)}


def by_vbucket(rollback_seqnos: Mapping[int, int]) -> npt.NDArray[np.uint64]:
    """Rollback seqnos as an array; of vbuckets that were not rolled back the highest seqno there is.

    The rollback seqno of a vbucket is the highest one that still counts.
    """
    found = np.full(0x10000, MAX_SEQNO, np.uint64)
    found[list(rollback_seqnos)] = np.array(list(rollback_seqnos.values()), np.uint64)
    return found


def rolled_back(rows: pa.Table | pa.RecordBatch, rollback_seqnos: npt.NDArray[np.uint64]) -> Mask:
    """Which rows have a higher seqno than the rollback seqno of their vbucket, as of :func:`by_vbucket`."""
    found: Mask = _numpy(rows, SEQNO) > rollback_seqnos[_numpy(rows, VBUCKET)]
    return found


def of_dropped(table: pa.Table, dropped: set[int], ended: Mapping[tuple[int, int], int]) -> Mask | None:
    """Which rows are older than the end of their collection, or than its emptying; None if none."""
    if not dropped and not ended:
        return None
    collection = _numpy(table, COLLECTION_ID)
    gone: Mask = np.isin(collection, list(dropped))
    if ended:
        vbuckets, ids = np.array(list(ended), np.uint64).T
        places = vbuckets << np.uint64(32) | ids
        order = np.argsort(places)
        seqnos = np.array(list(ended.values()), np.uint64)[order]
        rows = np.flatnonzero(np.isin(collection, ids))
        wanted = _numpy(table, VBUCKET)[rows].astype(np.uint64) << np.uint64(32) | collection[rows]
        at = np.minimum(np.searchsorted(places[order], wanted), len(order) - 1)
        before = (places[order][at] == wanted) & (_numpy(table, SEQNO)[rows] < seqnos[at])
        gone[rows[before]] = True
    return gone


def newest(some: pa.Table) -> Mask:
    """Which of some rows has the highest seqno of its document; of equal ones the last.

    They have the columns of `VERSION`. A document is a key in a collection; its vbucket follows from the key.
    """
    key = some[KEY].combine_chunks()
    if COMPILED is None or not len(key) or isinstance(key, pa.ChunkedArray):
        return _newest(some)
    _, offsets, data = key.buffers()
    bounds = np.frombuffer(offsets, np.int32)[key.offset : key.offset + len(key) + 1]
    keys = np.frombuffer(data, np.uint8) if data is not None and data.size else np.zeros(0, np.uint8)
    versions = COMPILED.newest_versions(_numpy(some, COLLECTION_ID), _numpy(some, SEQNO), bounds, keys)
    # Copied: callers change it.
    return np.frombuffer(versions, bool).copy()


def _newest(some: pa.Table) -> Mask:
    """The same, in Python."""
    key = some[KEY].combine_chunks().dictionary_encode()
    if isinstance(key, pa.ChunkedArray):
        key = key.unify_dictionaries().combine_chunks()
    codes = np.asarray(key.indices)
    collection = _numpy(some, COLLECTION_ID)
    order = np.lexsort((_numpy(some, SEQNO), codes, collection))
    last = np.ones(len(order), bool)
    if len(order) > 1:
        same = (codes[order][1:] == codes[order][:-1]) & (collection[order][1:] == collection[order][:-1])
        last[:-1] = ~same
    found = np.empty(len(order), bool)
    found[order] = last
    return found


def _numpy(rows: pa.Table | pa.RecordBatch, name: str) -> npt.NDArray[Any]:
    return np.asarray(rows.column(name).to_numpy())
