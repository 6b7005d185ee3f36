"""One run of a bounded read of changes, and which of its vbuckets have to be given again."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace

import pyarrow as pa

from cbframe.dcp.ends import ReachedEnds
from cbframe.dcp.look import Look
from cbframe.errors import StreamError
from cbframe.scan.partition import PartSettings
from cbframe.scan.run import Run
from cbframe.scan.spans.offsets import BEGINNING, Range
from cbframe.scan.spans.rows import Kept, SpanReceiver, SpanSink


class Pass:
    """One run over some vbuckets, and what is to be said of each."""

    def __init__(
        self,
        settings: PartSettings,
        bucket_uuid: str,
        ranges: Sequence[Range],
        stack: ExitStack,
        *,
        look: Callable[[Collection[int]], Look],
        whole_snapshots: bool,
    ) -> None:
        self._look = look
        self._whole_snapshots = whole_snapshots
        self.reset: set[int] = set()
        self.again: list[Range] = []
        self.lost: set[int] = set()
        self.sent_back: set[int] = set()
        self._sink: SpanSink | None = None
        self._kept = Kept()
        # A vbucket that has nothing but a new history is not asked.
        some = [each for each in ranges if each.end.seqno]
        if not some:
            return
        spec = settings.spec
        run = Run(
            replace(
                spec,
                vbuckets=tuple(each.vbucket for each in some),
                options=replace(spec.options, out_of_order=False),
            ),
            bounded=True,
            bucket_uuid=bucket_uuid,
            ends=ReachedEnds({each.vbucket: each.end.seqno for each in some}),
        )
        receiver = SpanReceiver(run.names.wire_metadata, run.options.max_body_bytes)
        of_scope = spec.scope is not None and spec.collections is None
        starts = {each.vbucket: each.start if each.base else BEGINNING for each in some}
        receiver.begin(starts, of_scope=of_scope)
        enough = {} if whole_snapshots else {each.vbucket: each.end.seqno for each in some}
        sink = SpanSink(spec, run.names, receiver, settings.agreement, bounded=True, of_changes=True)
        stack.callback(sink.close)
        sink.stop_at(enough)
        ran = run.into(receiver, sink)
        self._sink = sink
        reached = {vb: seqno for vb, (_, seqno) in ran.as_of.items()}
        short = [
            each
            for each in some
            if not self._is_judged(each, receiver, reached.get(each.vbucket, sink.reached(each.vbucket)))
        ]
        if short:
            self._check_short(short)

    def _is_judged(self, given: Range, receiver: SpanReceiver, reached: int | None) -> bool:
        """Decide what becomes of a vbucket; not if it ended before the reported end of its history."""
        vb, end = given.vbucket, given.end
        # A vbucket that is empty now is not asked: then its history is another one, too.
        same = receiver.history(vb) == end.history
        fallen = vb in receiver.fallen
        if not same:
            self.lost.add(vb)
        elif fallen:
            self.sent_back.add(vb)
        whole = fallen or not given.base
        ended = any(given.base < seqno <= end.seqno for seqno in receiver.ends_of_collections(vb))
        if not whole and (not same or ended or reached is None):
            self.again.append(given)
            return True
        if reached is None:
            raise _on_its_way(given)
        if fallen or not same:
            self.reset.add(vb)
        most = end.seqno if same and not self._whole_snapshots else None
        self._kept.add(vb, 0 if whole else given.base, most)
        return not same or reached >= end.seqno

    def _check_short(self, short: Sequence[Range]) -> None:
        """See that there is nothing for us where vbuckets ended early; not all servers tell that.

        If a history does not have the seqno that it was reported to have, what is missing would
        be reported by nobody later on, so that cannot be passed over.
        """
        now = self._look({each.vbucket for each in short}).positions
        for each in short:
            at = now[each.vbucket]
            if at.history != each.end.history or at.seqno < each.end.seqno:
                raise _on_its_way(each)

    def tables(self) -> Iterator[pa.Table]:
        """The rows."""
        return iter(()) if self._sink is None else self._sink.changes(self._kept)


def _on_its_way(given: Range) -> StreamError:
    return StreamError(
        f"the vbucket did not come to seqno {given.end.seqno}, where it was before",
        vbucket=given.vbucket,
        hint="it is on its way from node to node: read again",
    )
