"""One pass over the seeds: the first that works wins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from cbframe.cluster.address import strip_userinfo
from cbframe.errors import (
    AllServerURLsConnectBucketError,
    BucketNotFoundError,
    CbframeError,
    ConfigurationError,
    ConnectError,
    ProtocolError,
)

_T = TypeVar("_T")


def first_success(seeds: Sequence[str], attempt: Callable[[str], _T]) -> _T:
    """The result of `attempt` for the first of `seeds` that does not fail."""
    if not seeds:
        raise ConfigurationError("missing at least 1 server address", hint='pass "couchbase://host"')
    causes: list[tuple[str, CbframeError]] = []
    for seed in seeds:
        try:
            return attempt(seed)
        except CbframeError as error:
            if error.permanent and (len(seeds) == 1 or not _is_of_one_node(error)):
                raise
            inner = error.__cause__
            if (
                isinstance(error, AllServerURLsConnectBucketError)
                and isinstance(inner, CbframeError)
                and error.server_urls == [strip_userinfo(seed)]
            ):
                error = inner  # it says the same of the same seed
            causes.append((strip_userinfo(seed), error))
    last = causes[-1][1]
    if all(isinstance(error, BucketNotFoundError) for _, error in causes):
        raise last
    told = "; ".join(f"{seed}: {strip_userinfo(error.message)}" for seed, error in causes)
    failure = AllServerURLsConnectBucketError(
        [seed for seed, _ in causes],
        f"could not connect to the bucket through any seed: {told}",
        hint=last.hint,
    )
    failure.permanent = all(error.permanent for _, error in causes)
    raise failure from last


def _is_of_one_node(error: CbframeError) -> bool:
    # Not the subclasses: those are about the user, the bucket and the cluster.
    return isinstance(error, ProtocolError) or type(error) is ConnectError
