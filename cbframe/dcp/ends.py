"""Where each vbucket's stream may end: nowhere, where the caller said, or where the vbucket is now."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Literal

from cbframe.wire.constants import MAX_SEQNO


class ReachedEnds(dict[int, int]):
    """Ends by vbucket, as `seq_end`, that the vbuckets had reached when they were looked at.

    Other than with a plain mapping, a history that does not reach its end any more is read as far as it
    goes, and not waited for.
    """


class Ends:
    """The ends of all streams of a data source.

    With ``"now"`` all ends are pinned, to the high seqnos that the owners tell, before the first
    stream opens: the read is as of one moment.
    """

    def __init__(self, seq_end: Mapping[int, int] | Literal["now"] | None) -> None:
        self._given = seq_end
        self._unpinned: set[int] = set()
        self.pinned: dict[int, int] = {}
        """The ends, by vbucket; none of an unbounded source."""
        self.shortened: dict[int, int] = {}
        """Vbuckets whose history lost its end meanwhile, with the end that they have now."""

    @property
    def bounded(self) -> bool:
        return self._given is not None

    @property
    def now(self) -> bool:
        """Whether all ends were reached at some time: what the nodes tell shows whether they still are."""
        return self._given == "now" or isinstance(self._given, ReachedEnds)

    @property
    def known(self) -> bool:
        """Whether no end has to be pinned any more."""
        return not self._unpinned

    def begin(self, vbuckets: Collection[int]) -> None:
        """Take note of the wanted vbuckets."""
        if self._given == "now":
            self._unpinned = set(vbuckets)
        elif isinstance(self._given, Mapping):
            self.pinned = {vb: self._given.get(vb, MAX_SEQNO) for vb in vbuckets}

    def pin(self, vbuckets: Iterable[int], seqnos: Mapping[int, int]) -> None:
        """Pin those of `vbuckets` that are not pinned yet to their high seqnos."""
        for vb in self._unpinned.intersection(vbuckets):
            self.pinned[vb] = seqnos[vb]
            self._unpinned.discard(vb)

    def of(self, vb: int, seqnos: Mapping[int, int]) -> int:
        """The end to ask for, given the owner's high seqnos.

        A history that lost its pinned end would be waited for without end, so it is read as far as
        it goes now.
        """
        if not self.bounded:
            return MAX_SEQNO
        end = self.pinned[vb]
        if self.now and seqnos[vb] < end:
            end = self.shortened[vb] = seqnos[vb]
        return end
