"""Names to addresses, without being held up: a look-up that hangs can be left."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

from cbframe.cluster.connection_string import is_capella
from cbframe.cluster.seeds import NO_NAME, zone_of
from cbframe.errors import CbframeError, ConnectError, ReadCancelledError
from cbframe.limits import OwnThread, reported, shortage
from cbframe.system import EVENT_READ, ready

Address: TypeAlias = tuple[int, int, int, str, tuple[Any, ...]]
"""Family, kind, protocol, canonical name, and what ``connect`` takes."""


class Bell(Protocol):
    """What can be waited for beside an answer; readable when it rings."""

    def fileno(self) -> int: ...


def resolve(host: str, port: int, bell: Bell, timeout: float, node: str) -> Sequence[Address]:
    """The addresses of a host.

    The system's look-up knows no timeout and cannot be interrupted. So it runs on a thread of its own,
    which is left alone when nobody waits for it any more, and ends when the system gives up.
    """
    if _is_address(host):
        return _look_up(host, port, node)
    return _Lookup(host, port, node).wait(bell, timeout)


class _Lookup:
    """One look-up on its thread; its pipe closes when it is done."""

    def __init__(self, host: str, port: int, node: str) -> None:
        self._host, self._port, self._node = host, port, node
        self._found: Sequence[Address] = []
        self._error: CbframeError | None = None
        self._thread = OwnThread(self._run, "cbframe-resolve")
        with reported(node), contextlib.ExitStack() as undo:
            self._done, self._tell = socket.socketpair()
            undo.callback(self._done.close)
            undo.callback(self._tell.close)
            self._thread.start()
            undo.pop_all()

    def _run(self) -> None:
        try:
            self._found = _look_up(self._host, self._port, self._node)
        except CbframeError as exc:
            self._error = exc
        finally:
            self._tell.close()

    def wait(self, bell: Bell, timeout: float) -> Sequence[Address]:
        with contextlib.closing(self._done):
            found = ready(max(0.0, timeout), (self._done, EVENT_READ), (bell, EVENT_READ))
            if self._done not in found:
                if bell in found:
                    raise ReadCancelledError("cancelled while the name was resolved", node=self._node)
                raise _unresolved(self._host, self._node, f"no answer within {timeout:g} s")
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._found


def _look_up(host: str, port: int, node: str) -> Sequence[Address]:
    if (zone := zone_of(host)) is not None:
        if host.lower() not in zone.hosts:
            raise _unresolved(host, node, NO_NAME)
        host = zone.hosts[host.lower()]
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError, MemoryError) as exc:
        with reported(node):
            # The look-up opens files and sockets, and says only that it failed where it may not.
            socket.socket().close()
        again = isinstance(exc, socket.gaierror) and exc.errno == socket.EAI_AGAIN
        said = "no name server answers" if again else NO_NAME
        raise shortage(exc, node) or _unresolved(host, node, said) from None


def _unresolved(host: str, node: str, said: str) -> ConnectError:
    hint = "check the host name, and DNS; a name with SRV records only is given alone, without a port"
    if is_capella(host):
        hint = "give the connection string of the cluster's Connect page in Capella: one name, without a port"
    error = ConnectError(f"the name {host!r} cannot be resolved: {said}", node=node, hint=hint)
    error.unresolved = said
    return error


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True
