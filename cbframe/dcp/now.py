"""Where every vbucket of a bucket is at one moment: seqno, and the histories that name it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from cbframe.cluster.auth import AuthLike
from cbframe.cluster.tls import TLSLike
from cbframe.dcp.positions import Position, VBucketMetaData
from cbframe.dcp.receiver import PositionReceiver
from cbframe.dcp.source import BucketDataSource
from cbframe.errors import CbframeError, StreamError
from cbframe.options import BucketDataSourceOptions
from cbframe.typing import ServerURLs
from cbframe.wire.blocks import DataBlock
from cbframe.wire.constants import MAX_VBUCKETS

_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Now:
    """One moment of a bucket."""

    bucket_uuid: str  # of this life of the bucket
    positions: dict[int, Position]  # by vbucket; streams that go on from there bring what changes later


@dataclass(slots=True)
class _Logs(PositionReceiver):
    """A receiver that keeps failover logs, of streams that have nothing in them."""

    logs: dict[int, VBucketMetaData] = field(default_factory=dict)

    def on_block(self, block: DataBlock) -> None:
        """Not called: the streams end where they begin."""

    def on_error(self, error: CbframeError) -> None:
        """What matters is raised by the source."""

    def snapshot_start(self, vbucket: int, start: int, end: int, flags: int) -> None:
        """Nothing to do."""

    def store(self, vbucket: int, metadata: VBucketMetaData) -> None:
        self.logs[vbucket] = metadata

    def position(self, vbucket: int) -> Position:  # noqa: ARG002
        return Position()

    def rollback(self, vbucket: int, seqno: int) -> None:
        """Nothing was received."""


def sample_now(
    server_urls: ServerURLs,
    bucket: str,
    vbuckets: Iterable[int] | None,
    auth: AuthLike,
    options: BucketDataSourceOptions,
    *,
    tls: TLSLike = None,
    network: str = "auto",
) -> Now:
    """Ask all nodes for their high seqnos, and for the failover logs.

    Every node is asked once, when it is connected, and no stream begins before.
    """
    for _ in range(_ATTEMPTS):
        receiver = _Logs()
        # Streams from 0 to 0 end as soon as they are granted, with the failover log. All are asked at once.
        wanted = replace(
            options,
            seq_end=dict.fromkeys(range(MAX_VBUCKETS), 0),
            stream_id=None,
            connections_per_node=1,  # a question needs no more
        )
        source = BucketDataSource(
            server_urls,
            "default",
            bucket,
            "",
            vbuckets,
            auth,
            receiver,
            wanted,
            tls_context=tls,
            network=network,
        )
        try:
            source.start()
            source.wait()
            seqnos, found = source.high_seqnos, source.map
        finally:
            source.close()
        assert found is not None, "it is complete"
        logs = receiver.logs
        if logs.keys() <= seqnos.keys():
            return Now(found.uuid, {vb: _position(log, seqnos[vb]) for vb, log in logs.items()})
    raise StreamError(
        "vbuckets went from node to node while all were asked where they are",
        hint="wait for the end of the rebalance, and try again",
    )


def _position(log: VBucketMetaData, seqno: int) -> Position:
    return Position.of(replace(log, snap_start=seqno, snap_end=seqno), seqno, base=seqno)
