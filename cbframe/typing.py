"""Names for the numbers of the protocol, and the shapes that many floors pass on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NewType, Protocol, TypeAlias, runtime_checkable

VBucketId = NewType("VBucketId", int)
"""Number of a vbucket (partition), 0 up to the length of the bucket's map."""
Seqno = NewType("Seqno", int)
"""Position in the history of one vbucket, unsigned 64 bit."""
VBucketUUID = NewType("VBucketUUID", int)
"""Name of one history of one vbucket, unsigned 64 bit."""

ReadableBuffer: TypeAlias = bytes | bytearray | memoryview
ServerURLs: TypeAlias = str | Sequence[str]
SeqEnd: TypeAlias = Mapping[int, int]


@runtime_checkable
class Connectable(Protocol):
    """What ``read_bucket`` takes in place of a connection string: a ``LocalCluster``, for one."""

    @property
    def connection_string(self) -> str: ...
    @property
    def username(self) -> str: ...
    @property
    def password(self) -> str: ...
