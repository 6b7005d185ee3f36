"""The failover log: the histories that a vbucket has had, newest first."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import NamedTuple

from cbframe.errors import ProtocolError
from cbframe.typing import ReadableBuffer

_ENTRY = struct.Struct(">QQ")


class FailoverEntry(NamedTuple):
    """One history: its name, and the seqno at which it began."""

    vbuuid: int
    seqno: int


FailoverLog = tuple[FailoverEntry, ...]


def parse_failover_log(body: ReadableBuffer) -> FailoverLog:
    """Read the value of a STREAM_REQ or GET_FAILOVER_LOG answer.

    Returns
    -------
    tuple of FailoverEntry
        Newest first, as sent.

    Raises
    ------
    ProtocolError
        The length is no multiple of 16.
    """
    if len(body) % _ENTRY.size:
        raise ProtocolError(f"a failover log of {len(body)} bytes is no multiple of {_ENTRY.size}")
    return tuple(map(FailoverEntry._make, _ENTRY.iter_unpack(body)))


def encode_failover_log(log: Iterable[tuple[int, int]]) -> bytes:
    """The value of an answer, newest first."""
    return b"".join(_ENTRY.pack(vbuuid, seqno) for vbuuid, seqno in log)
