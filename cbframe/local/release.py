"""The server releases whose behaviour is reproduced, and where they differ: features and statuses."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from cbframe.errors import ConfigurationError
from cbframe.wire.constants import Feature


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
    - {Feature.PITR, Feature.REPORT_UNIT_USAGE, Feature.SKIP_DELETIONS_IN_FIRST_BACKFILL}
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


_ERRORS_OF_7 = """
1 KEY_ENOENT: Not Found: item-only
2 KEY_EEXISTS: key already exists, or CAS mismatch: item-only
3 E2BIG: Value too large: item-only invalid-input
4 EINVAL: Invalid packet: internal invalid-input
7 NOT_MY_VBUCKET: Server does not know about this vBucket: fetch-config invalid-input
8 NO_BUCKET: Not connected to any bucket: conn-state-invalidated
20 AUTH_ERROR: Authentication failed: conn-state-invalidated auth
22 ERANGE: Range error: invalid-input
23 ROLLBACK: Roll back to the seqno in the value: dcp special-handling
24 EACCESS: Not authorized for command: support auth
80 UNKNOWN_FRAME_INFO: Unknown frame info: invalid-input
d ECONFIG_ONLY: Command can't be executed in a config-only bucket: fetch-config retry-now
81 UNKNOWN_COMMAND: Unknown command: support
83 NOT_SUPPORTED: Operation not supported: support
86 ETMPFAIL: Temporary failure: temp retry-now
88 UNKNOWN_COLLECTION: Operation on an unknown collection: item-only support
8c UNKNOWN_SCOPE: Operation on an unknown scope: item-only support
"""
"""Statuses that the embedded server sends: what 7.2 says they are, and their attributes."""
_ERRORS_OF_8 = """
success: 0 SUCCESS, a5 RangeScanCancelled, a6 RangeScanMore, a7 RangeScanComplete
item-only: 1 KEY_ENOENT, 2 KEY_EEXISTS, e NOT_LOCKED, f CAS_VALUE_INVALID, a3 SyncWriteAmbiguous
item-only invalid-input: 3 E2BIG, 6 DELTA_BADVAL, a1 DurabilityImpossible
internal invalid-input: 4 EINVAL
internal item-only: 5 NOT_STORED
fetch-config invalid-input: 7 NOT_MY_VBUCKET
conn-state-invalidated: 8 NO_BUCKET, a STREAM_NOT_FOUND, b OPAQUE_NO_MATCH, 25 NOT_INITIALIZED
item-locked item-only retry-now: 9 LOCKED
temp retry-later rate-limit: c EWOULD_THROTTLE, 30 RATE_LIMITED_NETWORK_INGRESS
temp retry-later rate-limit: 31 RATE_LIMITED_NETWORK_EGRESS, 33 RATE_LIMITED_MAX_COMMANDS
fetch-config retry-now: d ECONFIG_ONLY
conn-state-invalidated auth: 1f AUTH_STALE, 20 AUTH_ERROR
special-handling: 21 AUTH_CONTINUE, 26 ENCRYPTION_KEY_NOT_AVAILABLE, 27 CHECKSUM_MISMATCH
invalid-input: 22 ERANGE, 87 XATTR_EINVAL, 88 UNKNOWN_COLLECTION, 8a CANNOT_APPLY_COLLECTIONS_MANIFEST
invalid-input: 8c UNKNOWN_SCOPE, 8d DCP stream-ID invalid, a0 DurabilityInvalidLevel, a8 VbUuidNotEqual
dcp special-handling: 23 ROLLBACK
support: 24 EACCESS, 50 BUCKET_PAUSED, 80 UNKNOWN_FRAME_INFO, 81 UNKNOWN_COMMAND, 83 NOT_SUPPORTED
conn-state-invalidated rate-limit: 32 RATE_LIMITED_MAX_CONNECTIONS
item-only rate-limit: 34 SCOPE_SIZE_LIMIT_EXCEEDED
item-only system-constraint no-retry: 35 BUCKET_SIZE_LIMIT_EXCEEDED, 36 BUCKET_RESIDENT_RATIO_TOO_LOW
item-only system-constraint no-retry: 37 BUCKET_DATA_SIZE_TOO_BIG, 38 BUCKET_DISK_SPACE_TOO_LOW
item-only retry-now: 51 CANCELLED
temp retry-later: 82 ENOMEM
internal conn-state-invalidated: 84 EINTERNAL
temp retry-now: 85 EBUSY, 86 ETMPFAIL
retry-later: 89 NO_COLLECTIONS_MANIFEST
item-only retry-later: a2 SyncWriteInProgress, a4 SyncWriteReCommitInProgress
subdoc item-only: c0 SUBDOC_PATH_ENOENT, c1 SUBDOC_PATH_MISMATCH, c6 SUBDOC_DOC_NOTJSON
subdoc item-only: c7 SUBDOC_NUM_ERANGE, c8 SUBDOC_DELTA_EINVAL, c9 SUBDOC_PATH_EEXISTS
subdoc item-only: d6 SUBDOC_CAN_ONLY_REVIVE_DELETED_DOCUMENTS, d7 SUBDOC_DELETED_DOCUMENT_CANT_HAVE_VALUE
subdoc item-only: d8 SUBDOC_FIELD_NOT_BINARY_VALUE
subdoc invalid-input: c2 SUBDOC_PATH_EINVAL, c3 SUBDOC_PATH_E2BIG, c4 SUBDOC_PATH_E2DEEP
subdoc invalid-input: c5 SUBDOC_VALUE_CANTINSERT, cb SUBDOC_INVALID_COMBO
subdoc invalid-input: ce SUBDOC_XATTR_INVALID_FLAG_COMBO, cf SUBDOC_XATTR_INVALID_KEY_COMBO
subdoc invalid-input: d0 SUBDOC_XATTR_UNKNOWN_MACRO, d1 SUBDOC_XATTR_UNKNOWN_VATTR
subdoc invalid-input: d2 SUBDOC_XATTR_CANT_MODIFY_VATTR, d4 SUBDOC_INVALID_XATTR_ORDER
subdoc invalid-input: d5 SUBDOC_XATTR_UNKNOWN_VATTR_MACRO
subdoc invalid-input item-only: ca SUBDOC_VALUE_ETOODEEP
subdoc special-handling: cc SUBDOC_MULTI_PATH_FAILURE
item-deleted success subdoc: cd SUBDOC_SUCCESS_DELETED
item-deleted subdoc special-handling: d3 SUBDOC_MULTI_PATH_FAILURE_DELETED
"""
"""Attributes, and the statuses that have them."""
_SINCE_VERSION_2 = frozenset({"rate-limit", "system-constraint", "no-retry"})
_REVISIONS_OF_8 = {1: 10, 2: 6}


def error_map(request: bytes, *, is_8: bool) -> dict[str, Any]:
    """The answer to GET_ERROR_MAP; `request` is the version that the client knows, two bytes."""
    errors = {}
    if not is_8:
        for line in _ERRORS_OF_7.split("\n")[1:-1]:
            status, about, attributes = line.split(": ")
            code, name = status.split()
            errors[code] = {"name": name, "desc": about, "attrs": attributes.split()}
        return {"version": 2, "revision": 1, "errors": errors}
    version = max(1, min(int.from_bytes(request, "big"), 2))
    for line in _ERRORS_OF_8.split("\n")[1:-1]:
        attributes, _, statuses = line.partition(": ")
        attrs = [name for name in attributes.split() if version > 1 or name not in _SINCE_VERSION_2]
        for code, _, name in (status.partition(" ") for status in statuses.split(", ")):
            errors[code] = {"name": name, "desc": name.replace("_", " ").capitalize(), "attrs": attrs}
    return {"version": version, "revision": _REVISIONS_OF_8[version], "errors": errors}
