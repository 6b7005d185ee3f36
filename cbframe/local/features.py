"""What HELLO grants, and what a request may ask for in its framing extras."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace

from cbframe.wire.constants import Feature, Status
from cbframe.wire.framing import Frame

GRANTED = frozenset(
    {
        Feature.TCP_NODELAY,
        Feature.MUTATION_SEQNO,
        Feature.XATTR,
        Feature.XERROR,
        Feature.SELECT_BUCKET,
        Feature.SNAPPY,
        Feature.JSON,
        Feature.DUPLEX,
        Feature.CLUSTERMAP_CHANGE_NOTIFICATION,
        Feature.UNORDERED_EXECUTION,
        Feature.TRACING,
        Feature.ALT_REQUEST,
        Feature.SYNC_REPLICATION,
        Feature.COLLECTIONS,
        Feature.PRESERVE_TTL,
        Feature.VATTR,
    }
)
"""What 7.2 grants, and 8.0 too."""
_ADDED_IN_8 = (
    frozenset(Feature)
    - GRANTED
    - {
        Feature.PITR,
        Feature.REPORT_UNIT_USAGE,
        Feature.SKIP_DELETIONS_IN_FIRST_BACKFILL,
    }
)
_NEEDS: dict[int, tuple[frozenset[int], str]] = {
    Feature.CLUSTERMAP_CHANGE_NOTIFICATION: (
        frozenset({Feature.DUPLEX}),
        "Clustermap change notification needs Duplex",
    ),
    Feature.VATTR: (frozenset({Feature.XATTR}), "VAttr needs XATTR"),
    Feature.SUBDOC_DOC_MACRO: (frozenset({Feature.XATTR}), "SubdocDocumentMacroSupport needs XATTR"),
    Feature.CLUSTERMAP_CHANGE_NOTIFICATION_BRIEF: (
        frozenset({Feature.DUPLEX}),
        "ClustermapChangeNotificationBrief needs Duplex",
    ),
    Feature.RANGE_SCAN_INCLUDE_XATTR: (frozenset({Feature.XATTR}), "RangeScanIncludeXattr needs XATTR"),
    Feature.GET_RANDOM_KEY_INCLUDE_XATTR: (
        frozenset({Feature.XATTR, Feature.JSON, Feature.SNAPPY_EVERYWHERE}),
        "GetRandomKeyIncludeXattr needs XATTR, JSON and SnappyEverywhere",
    ),
}
"""In the order of the codes, in which a node looks; later codes are unknown to 7.2."""
_LAST_7_2 = Feature.SUBDOC_DOC_MACRO
_BARRIER, _DURABILITY, _STREAM_ID, _PRESERVE_TTL = 0, 1, 2, 5
_STRONGEST_LEVEL = 3
_MAX_DURABLE_REPLICAS = 2


def missing_need(wanted: Collection[int], *, is_8: bool) -> str:
    """Why the HELLO as a whole is refused; empty if it is not."""
    for feature, (needed, context) in _NEEDS.items():
        if feature in wanted and not needed <= set(wanted) and (is_8 or feature <= _LAST_7_2):
            return context
    return ""


def granted_in_8(wanted: Collection[int], granted: frozenset[int]) -> frozenset[int]:
    """What 8.0 grants where 7.2 grants `granted`."""
    found = granted | _ADDED_IN_8.intersection(wanted)
    if Feature.CLUSTERMAP_CHANGE_NOTIFICATION_BRIEF in found:
        found -= {Feature.CLUSTERMAP_CHANGE_NOTIFICATION}
    return found


@dataclass(frozen=True, slots=True)
class FrameInfo:
    """The framing extras of a request."""

    preserve_ttl: bool = False
    durability: int = 0
    """Level that a write waits for; 0 for none."""
    sid: int = 0
    """Number of the DCP stream that is meant; 0 for none."""


def parse_frame_info(frame: Frame, replicas: int) -> FrameInfo | Status:
    """What the framing extras ask for, or why the request is refused.

    The barrier needs nothing: requests are done one at a time. Nothing waits for durability: the
    embedded cluster's replicas have a change at the same moment as its owner.
    """
    extras, offset, info = frame.framing_extras, 0, FrameInfo()
    while offset < len(extras):
        kind, length = extras[offset] >> 4, extras[offset] & 0x0F
        content = extras[offset + 1 : offset + 1 + length]
        offset += 1 + length
        if len(content) < length:
            return Status.EINVAL
        if kind == _DURABILITY:
            if length not in {1, 3}:
                return Status.EINVAL
            if not 1 <= content[0] <= _STRONGEST_LEVEL:
                return Status.DURABILITY_INVALID_LEVEL
            if replicas > _MAX_DURABLE_REPLICAS:
                return Status.DURABILITY_IMPOSSIBLE
            info = replace(info, durability=content[0])
        elif kind == _STREAM_ID and length == 2:
            info = replace(info, sid=int.from_bytes(content, "big"))
        elif kind == _PRESERVE_TTL and not length:
            info = replace(info, preserve_ttl=True)
        elif kind != _BARRIER or length:
            return Status.UNKNOWN_FRAME_INFO
    return info


def duration_frame(seconds: float) -> bytes:
    """The framing extras that tell how long the server had a request."""
    encoded = min(0xFFFF, round(math.pow(2e6 * max(seconds, 0.0), 1 / 1.74)))
    return b"\x02" + encoded.to_bytes(2, "big")
