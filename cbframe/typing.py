"""Shapes that many floors pass on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias, runtime_checkable

ReadableBuffer: TypeAlias = bytes | bytearray | memoryview
ServerURLs: TypeAlias = str | Sequence[str]


@runtime_checkable
class Connectable(Protocol):
    """What ``read_bucket`` takes in place of a connection string: a ``LocalCluster``, for one."""

    @property
    def connection_string(self) -> str: ...
    @property
    def username(self) -> str: ...
    @property
    def password(self) -> str: ...
