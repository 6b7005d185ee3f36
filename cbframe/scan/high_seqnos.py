"""The high seqnos of a bucket at one moment, as its nodes report them on the connections that stream."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from cbframe.dcp.positions import Position
from cbframe.dcp.source import BucketDataSource

_AGAIN = 1.0
"""Seconds after which nodes are asked again: a failover may have shortened a history meanwhile."""


class HighSeqnos:
    """The high seqnos at the moment at which this object is made.

    No node is asked twice at a time. So of each node the first report after that moment may have been asked
    for before it, and the second one was not.
    """

    def __init__(self, source: BucketDataSource, clock: Callable[[], float]) -> None:
        self._source = source
        self._clock = clock
        self._before = {node: count for node, (count, _) in source.seqno_reports().items()}
        self._seqnos: dict[int, int] = {}
        self._asked = float("-inf")
        self.known = False

    def missing(self, reached: Mapping[int, Position]) -> int | None:
        """How many vbuckets are not there yet; None while there is no cluster map."""
        source = self._source
        done, reports = source.as_of, source.seqno_reports()
        if source.map is None:
            return None
        short, self.known = 0, True
        for vbucket in source.wanted:
            if vbucket in done:
                continue
            node = source.connection_of(vbucket) or ""
            count, seqnos = reports.get(node, (0, {}))
            if count >= self._before.get(node, 0) + 2 and vbucket in seqnos:
                # It is lower than before only where a history was shortened.
                self._seqnos[vbucket] = min(seqnos[vbucket], self._seqnos.get(vbucket, seqnos[vbucket]))
            wanted = self._seqnos.get(vbucket)
            self.known &= wanted is not None
            position = reached.get(vbucket)
            short += wanted is None or (0 if position is None else position.seqno) < wanted
        if not self.known or (short and self._clock() >= self._asked + _AGAIN):
            self._asked = self._clock()
            source.sample_seqnos()
        return short
