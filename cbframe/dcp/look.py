"""One look at a bucket: who has which vbucket, and where each of them is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from cbframe.cluster.auth import AuthLike, as_authenticator
from cbframe.cluster.connstr import parse_connection_string
from cbframe.cluster.map import ClusterMap
from cbframe.cluster.tls import TLSLike
from cbframe.dcp import verdicts
from cbframe.dcp.dialer import Dialer
from cbframe.dcp.maps import MapSource, make_login
from cbframe.dcp.survey import Size, survey
from cbframe.options import BucketDataSourceOptions
from cbframe.typing import ServerURLs

_ATTEMPTS = 5
_PAUSE = 0.5
"""Seconds between two attempts, while vbuckets are on their way from node to node."""


@dataclass(frozen=True, slots=True)
class Look:
    """A bucket at one moment.

    Attributes
    ----------
    map
        Who has which vbucket.
    positions
        By vbucket: its newest history (vbuuid), and its high seqno.
    sizes
        About how much is in each; empty if that was not asked for.
    """

    map: ClusterMap
    positions: dict[int, tuple[int, int]]
    sizes: dict[int, Size]


def look_at(
    server_urls: ServerURLs,
    bucket: str,
    auth: AuthLike,
    options: BucketDataSourceOptions,
    tls: TLSLike = None,
    network: str = "auto",
    *,
    vbuckets: Iterable[int] | None = None,
    sizes: bool = False,
    sleep: Callable[[float], None] = time.sleep,
) -> Look:
    """Ask all nodes, one connection each, where their vbuckets are.

    Parameters
    ----------
    vbuckets
        Those to look at; None for all.
    sizes
        Ask how much is in them, too.
    sleep
        A stand-in for tests.

    Raises
    ------
    ConfigurationError
        The bucket has no such vbucket.
    ClusterMapError
        Nobody has one of the vbuckets, for seconds.
    CbframeError
        A node cannot be asked.
    """
    target = parse_connection_string(server_urls).on_network(network)
    authenticator = as_authenticator(auth)
    dialer = Dialer(options, tls, authenticator, encrypted=target.tls)
    source = MapSource(
        target,
        make_login(target, authenticator, bucket, allow_plain=options.allow_plain),
        authenticator,
        transport=dialer.transport(),
        clock=time.monotonic,
        timeout=options.connect_timeout,
        tls_context=dialer.context,
        connect_bucket=options.connect_bucket,
    )
    source.open()
    try:
        return _looked(source, None if vbuckets is None else set(vbuckets), sizes, sleep)
    finally:
        source.close()


def _looked(source: MapSource, wanted: set[int] | None, sizes: bool, sleep: Callable[[float], None]) -> Look:
    missing: set[int] = set()
    for attempt in range(_ATTEMPTS):
        if attempt:
            sleep(_PAUSE)
        found = source.fetch()
        chosen = set(range(found.vbuckets)) if wanted is None else wanted
        if (error := verdicts.bad_choice(chosen, found)) is not None:
            raise error
        positions: dict[int, tuple[int, int]] = {}
        told: dict[int, Size] = {}
        for node in sorted({owner for vb in chosen if (owner := found.node_of(vb)) is not None}):
            seen = source.query(node, partial(survey, wanted=chosen, sizes=sizes))
            positions |= seen.positions
            told |= seen.sizes
        missing = chosen - positions.keys()
        if not missing:
            return Look(found, dict(sorted(positions.items())), dict(sorted(told.items())))
    raise verdicts.ownerless(missing, found.vbuckets)
