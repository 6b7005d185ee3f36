"""The front door to changes: ``stream_bucket``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Literal

from cbframe.arrow.keys import KeyForm
from cbframe.cluster.tls import TLSLike
from cbframe.dcp.now import sample_now
from cbframe.dcp.positions import Position
from cbframe.errors import ConfigurationError
from cbframe.options import BucketDataSourceOptions
from cbframe.public import public
from cbframe.scan.asof import AsOf
from cbframe.scan.changestream import ChangeStream, OnRollback
from cbframe.scan.checkpoint import Checkpoint
from cbframe.scan.names import Names, difference
from cbframe.scan.spec import Exclusion, ScanSpec, not_negative
from cbframe.typing import Connectable, ServerURLs

_ON_ROLLBACK = ("emit", "restart", "raise")
_WINDOW = 16 << 20
_BATCH = 4 << 20
_RECOVERY = 300.0


@public
def stream_bucket(
    conn: ServerURLs | Connectable,
    bucket: str | None = None,
    *,
    auth: Any = None,
    tls: TLSLike = None,
    network: str = "auto",
    scope: str | None = None,
    collections: str | Iterable[str] | None = None,
    keys: KeyForm = "text",
    key_prefix: str | bytes | None = None,
    vbuckets: Iterable[int] | None = None,
    metadata: str | Iterable[str] = ("key", "vbucket", "seqno", "scope", "collection"),
    start: Literal["beginning", "now"] | Checkpoint | AsOf = "beginning",
    on_rollback: OnRollback = "emit",
    batch_bytes: int | None = None,
    max_latency: float = 0.25,
    buffer_bytes: int | None = None,
    transaction_records: Exclusion = "drop",
    options: BucketDataSourceOptions | None = None,
) -> ChangeStream:
    """Stream the changes of a bucket: what is there from `start` on, and whatever comes later.

    Every change comes at least once, per vbucket in the order in which it happened. Of several changes
    of one document in quick succession, the server may send the last only. A consumer that stores the
    checkpoint together with the data, in one transaction, gets every change exactly once.

    A document whose expiry has passed is still a document here: no change reports that, until the server
    removes it.

    Cut connections, rebalances and failovers are followed. What no further attempt can heal is raised
    when the next batch is asked for.

    Parameters
    ----------
    conn, bucket, auth, tls, network, scope, collections, vbuckets
        As for :func:`cbframe.scan_bucket`. ``collections="visible"`` is looked up once: what the user may
        read later is not in the stream, and where the user loses the right to one of them, the stream ends
        with an :class:`~cbframe.AccessError`. The checkpoint has the names, and goes with no others.
    keys
        As for :func:`cbframe.scan_bucket`: ``_cb_key`` has this form in every batch.
    key_prefix
        Give out only documents whose key begins so.
    metadata
        Names as for :func:`cbframe.scan_bucket`; each becomes a column ``_cb_NAME``. Key, vbucket and seqno
        are always there.
    start
        ``"beginning"``: every document that exists, then what changes. ``"now"``: only what changes from
        now on; all nodes are asked where they are before this returns. Or a :class:`Checkpoint`, or the
        ``as_of`` of a read of the same scope and collections: then what changed since.
    on_rollback
        What is done when the server withdraws changes that were given out, after a failover that lost
        some. ``"emit"``: the next batch has it in ``rollbacks``, and the stream goes on at the end of the
        last snapshot that counts. ``"restart"``: the same, but the vbucket is streamed again from where the
        stream began; for those who keep only the newest version of a document. ``"raise"``: the stream ends
        with a :class:`~cbframe.RollbackError`. Or a function, called with each :class:`Rollback` before the
        batch that has it is given out; otherwise as ``"emit"``.
    batch_bytes
        A batch is given out when it has about this many bytes on the wire (by default 4 MiB, or a quarter of
        the window),
    max_latency
        or when its first change arrived this many seconds ago.
    buffer_bytes
        Flow-control window of each node's connection: what is not acknowledged is never more than that
        for each node, plus one item. By default that of `options`, but no more than 16 MiB. 0, which turns
        flow control off in reads, is refused: without a window nothing bounds what waits for the consumer.
    transaction_records
        As for :func:`cbframe.scan_bucket`; :attr:`ChangeStream.transaction_records` counts what is left out.
    options
        Finer settings of the connections. By default streams go on for five minutes while all attempts
        fail (``recovery_timeout``).

    Returns
    -------
    ChangeStream
        Iterate over it, or ask it with ``poll(timeout)``; use it in a ``with`` block.

    Raises
    ------
    ConfigurationError
        An argument cannot be meant, or the checkpoint is of another bucket.
    CbframeError
        ``start="now"``, or the names of collections, could not be looked up.

    Examples
    --------
    >>> import cbframe
    >>> with cbframe.LocalCluster(vbuckets=64) as cluster:
    ...     with cbframe.stream_bucket(cluster, start="now") as stream:
    ...         _ = cluster.upsert("airline_10", {"name": "40-Mile Air"})
    ...         batch = next(stream)
    >>> batch.to_pandas().loc["airline_10", "name"]
    '40-Mile Air'
    """
    if not callable(on_rollback) and on_rollback not in _ON_ROLLBACK:
        raise ConfigurationError(
            f"on_rollback={on_rollback!r}", hint=f"choose from: {', '.join(_ON_ROLLBACK)}, or give a function"
        )
    if options is None:
        options = BucketDataSourceOptions(recovery_timeout=_RECOVERY)
    spec = ScanSpec.of_arguments(locals())
    max_latency = not_negative("max_latency", max_latency)
    options = spec.options
    if options.seq_end is not None:
        raise ConfigurationError(
            "a change stream has no end", hint="leave seq_end out; scan_bucket() has one"
        )
    if options.out_of_order:
        raise ConfigurationError(
            "changes out of their order cannot be gone on from", hint="leave out_of_order out"
        )
    window = options.feed_buffer_size_bytes
    if buffer_bytes is None:
        window = min(window, _WINDOW)
    batch_bytes = spec.batch_bytes or max(1, min(_BATCH, window // 4))
    _check_window(batch_bytes, window)
    options = replace(
        options,
        endless_retry=False,
        receive_latency=min(max_latency, options.receive_latency),
        feed_buffer_size_bytes=window,
        # What a node thread hands over at a time is at most this.
        receive_buffer_bytes=min(options.receive_buffer_bytes, max(64 * 1024, batch_bytes)),
        include_xattrs=options.include_xattrs or "xattrs" in spec.metadata,
    )
    names = Names(spec, options)
    options = names.resolve_collections()
    spec = names.target
    positions, uuid = _start(start, spec, options)
    return ChangeStream(
        spec,
        options,
        names=names,
        start=positions,
        bucket_uuid=uuid,
        collection_names=start.collection_names if isinstance(start, Checkpoint) else {},
        on_rollback=on_rollback,
        batch_bytes=batch_bytes,
        max_latency=max_latency,
    )


def _check_window(batch_bytes: int, window: int) -> None:
    if window < 1:
        raise ConfigurationError(
            "a change stream needs a window",
            hint="without one, nodes send whatever they have: set buffer_bytes",
        )
    if window < 2 * batch_bytes:
        raise ConfigurationError(
            f"batch_bytes={batch_bytes} is more than half of the window of {window} bytes",
            hint="a batch that is larger than what nodes send ahead never comes together: raise buffer_bytes",
        )


def _start(
    start: object, target: ScanSpec, options: BucketDataSourceOptions
) -> tuple[dict[int, Position], str]:
    """Where streams begin, and the bucket that this is about."""
    if isinstance(start, AsOf):
        start = Checkpoint.after(start, target.bucket)
    elif isinstance(start, Checkpoint):
        _check_checkpoint(start, target)
    if isinstance(start, Checkpoint):
        return dict(start.offsets), start.bucket_uuid
    if start == "now":
        now = sample_now(
            target.server_urls,
            target.bucket,
            target.vbuckets,
            target.auth,
            options,
            tls=target.tls,
            network=target.network,
        )
        return now.positions, now.bucket_uuid
    if start != "beginning":
        raise ConfigurationError(
            f"start={start!r}", hint='"beginning", "now" or a Checkpoint: Checkpoint.load(path) reads one'
        )
    return {}, ""


def _check_checkpoint(start: Checkpoint, target: ScanSpec) -> None:
    if start.bucket != target.bucket:
        raise ConfigurationError(
            f"the checkpoint is of bucket {start.bucket!r}, not of {target.bucket!r}",
            hint="take the one that belongs to this bucket, or start again",
        )
    for name in ("scope", "collections", "key_prefix"):
        before, now = getattr(start, name), getattr(target, name)
        if before != now:
            choice = "another key_prefix" if name == "key_prefix" else f"{name}={before!r}"
            if name == "collections":
                choice += difference(before, now)
            raise ConfigurationError(
                f"the checkpoint is of a stream with {choice}",
                hint="what lies before it was not seen with other choices: make the same, or start again",
            )
