"""Snapshot markers of version 2, for those who replicate, and for those who ask for purge seqnos."""

from __future__ import annotations

import struct
from typing import NamedTuple

from cbframe.wire.constants import Opcode
from cbframe.wire.frame import Frame, request

_V20 = struct.Struct(">QQIQQ")
_V22 = struct.Struct(">QQIQQQQ")


class LaterMarker(NamedTuple):
    """A snapshot and what the later versions say about it."""

    vbucket: int
    start: int
    end: int
    flags: int
    visible: int
    """The newest seqno that everybody may see."""
    completed: int
    """The newest prepared write that is committed; of disk snapshots only."""
    purged: int
    prepared: int
    """The newest prepared write that waits."""

    def frame(self, version: str, opaque: int) -> Frame:
        """The message in version ``v2.0`` or ``v2.2``."""
        fields = self.start, self.end, self.flags, self.visible, self.completed
        if version == "v2.0":
            extras, value = b"\0", _V20.pack(*fields)
        else:
            extras, value = b"\2", _V22.pack(*fields, self.purged, self.prepared)
        return request(
            Opcode.DCP_SNAPSHOT_MARKER, vbucket=self.vbucket, opaque=opaque, extras=extras, value=value
        )
