"""Faults on command: nodes that cut, refuse, stall, dribble, dawdle, forget or garble.

The engine's half is :class:`EngineFaults`; :class:`ClusterFaults` is what users call. A
:class:`cbframe.testing.FaultProxy` breaks connections from outside, whatever they carry.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from cbframe.errors import ConfigurationError
from cbframe.local.node import LocalNode


class EngineFaults:
    """The engine's methods."""

    _living: Callable[[int], LocalNode]

    def cut(self, node: int, after_bytes: int) -> int:
        member = self._living(node)
        return member.loop.call(lambda: member.cut(after_bytes))

    def set_refusing(self, node: int, refusing: bool) -> None:
        self._set(node, "refusing", refusing)

    def set_stalled(self, node: int, stalled: bool) -> None:
        loop = self._living(node).loop
        loop.call(lambda: loop.set_stalled(stalled))

    def set_chop(self, node: int, nbytes: int | None) -> None:
        if nbytes is not None and nbytes < 1:
            raise ConfigurationError(f"chop needs at least 1 byte, not {nbytes}")
        loop = self._living(node).loop
        loop.call(lambda: setattr(loop, "chop", nbytes))

    def set_delay(self, node: int, seconds: float) -> None:
        if seconds < 0:
            raise ConfigurationError(f"a delay of {seconds} s cannot be")
        loop = self._living(node).loop
        loop.call(lambda: setattr(loop, "delay", seconds))

    def set_dropping_acks(self, node: int, dropping: bool) -> None:
        self._set(node, "dropping_acks", dropping)

    def garble(self, node: int, at: int) -> None:
        if at < 0:
            raise ConfigurationError(f"byte {at} lies in the past")
        self._set(node, "garble_after", at)

    def dcp_connections(self, node: int) -> int:
        member = self._living(node)
        return member.loop.call(member.dcp_connections)

    def _set(self, node: int, name: str, value: object) -> None:
        member = self._living(node)
        member.loop.call(partial(setattr, member, name, value))


class ClusterFaults(ABC):
    """The verbs of :class:`cbframe.local.LocalCluster` that break things."""

    @property
    @abstractmethod
    def _engine(self) -> Any: ...

    def cut(self, node: int = 0, *, after_bytes: int = 0) -> int:
        """Cut DCP connections of a node.

        Parameters
        ----------
        node
            Number of the node.
        after_bytes
            0 cuts all of them now. Otherwise one is cut, once, when the node's DCP connections
            have sent that many more bytes, be it in the middle of a message.

        Returns
        -------
        int
            How many were cut now.
        """
        return int(self._engine.cut(node, after_bytes))

    @contextmanager
    def refuse(self, node: int = 0) -> Iterator[None]:
        """New data connections to a node are closed at once."""
        self._engine.set_refusing(node, refusing=True)
        try:
            yield
        finally:
            self._engine.set_refusing(node, refusing=False)

    @contextmanager
    def stall(self, node: int = 0) -> Iterator[None]:
        """A node sends nothing; it reads, and its sockets stay open."""
        self._engine.set_stalled(node, stalled=True)
        try:
            yield
        finally:
            self._engine.set_stalled(node, stalled=False)

    @contextmanager
    def chop(self, nbytes: int, node: int = 0) -> Iterator[None]:
        """A node sends at most that many bytes with each write."""
        self._engine.set_chop(node, nbytes)
        try:
            yield
        finally:
            self._engine.set_chop(node, None)

    @contextmanager
    def delay(self, seconds: float, node: int = 0) -> Iterator[None]:
        """Whatever a node has to send, it sends so many seconds later."""
        self._engine.set_delay(node, seconds)
        try:
            yield
        finally:
            self._engine.set_delay(node, 0)

    @contextmanager
    def drop_acks(self, node: int = 0) -> Iterator[None]:
        """A node forgets what clients acknowledge: once their windows are full, it only asks if they live.

        What was forgotten stays so: those connections are of no more use.
        """
        self._engine.set_dropping_acks(node, dropping=True)
        try:
            yield
        finally:
            self._engine.set_dropping_acks(node, dropping=False)

    def garble(self, at: int = 0, *, node: int = 0) -> None:
        """Turn over all bits of one byte, once: the node's DCP connections send `at` others before it."""
        self._engine.garble(node, at)

    def dcp_connections(self, node: int = 0) -> int:
        """How many DCP connections a node has open."""
        return int(self._engine.dcp_connections(node))
