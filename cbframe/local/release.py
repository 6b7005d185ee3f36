"""The server releases whose behaviour is reproduced, and where they differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cbframe.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Release:
    """What distinguishes one server release from another.

    Attributes
    ----------
    build
        The version as nodes report it.
    compatibility
        The same as ``clusterCompatibility`` in the cluster map.
    marker_version
        The newest version of snapshot markers that clients may ask for.
    key_only_backfills
        Whether a disk backfill without values and XATTRs has a mutation for each key, deletions included.
    packed_on_disk
        Whether datatypes in disk backfills without values have the Snappy bit.
    placeholders
        Whether a node that gets a bucket's map before the bucket answers CONFIG_ONLY meanwhile.
    scram_for_all
        Whether a user that the cluster does not know gets a SCRAM challenge also where it asks a directory.
    messages_per_send
        DCP messages that go into one call of ``send``, by the priority of the connection.
    """

    build: str
    compatibility: int
    marker_version: str
    key_only_backfills: bool
    packed_on_disk: bool
    placeholders: bool
    scram_for_all: bool
    messages_per_send: Mapping[str, int]


RELEASES = {
    "7.2": Release(
        "7.2.9-0000-enterprise",
        0x7_0002,
        "2.0",
        key_only_backfills=False,
        packed_on_disk=False,
        placeholders=False,
        scram_for_all=True,
        messages_per_send={"low": 1, "medium": 1, "high": 1},
    ),
    "8.0": Release(
        "8.0.2-0000-enterprise",
        0x8_0000,
        "2.2",
        key_only_backfills=True,
        packed_on_disk=True,
        placeholders=True,
        scram_for_all=False,
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
