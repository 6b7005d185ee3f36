"""The server releases whose behaviour is reproduced, and where they differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cbframe.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Release:
    """What distinguishes one server release from another."""

    build: str  # the version as nodes report it
    compatibility: int  # the same as `clusterCompatibility` in the cluster map
    marker_version: str  # the newest version of snapshot markers that clients may ask for
    is_8: bool  # whether nodes answer as 8.0.2 where it differs from 7.2.9
    messages_per_send: Mapping[str, int]


RELEASES = {
    "7.2": Release(
        "7.2.9-0000-enterprise",
        0x7_0002,
        "2.0",
        is_8=False,
        messages_per_send={"low": 1, "medium": 1, "high": 1},
    ),
    "8.0": Release(
        "8.0.2-0000-enterprise",
        0x8_0000,
        "2.2",
        is_8=True,
        messages_per_send={"low": 1, "medium": 5, "high": 50},
    ),
}


def check_release(version: str) -> None:
    """Raise ConfigurationError if no such release is reproduced."""
    if version not in RELEASES:
        raise ConfigurationError(
            f"version={version!r} is not reproduced by the local cluster",
            hint=f"use one of {', '.join(RELEASES)}",
        )
