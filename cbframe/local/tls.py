"""TLS at the server's side: what to show to clients, and a socket that a channel can use."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from typing import Any, TypeAlias, TypeVar

from cbframe.errors import ConfigurationError

T = TypeVar("T")
_RECORD = 16 * 1024
"""The longest TLS record: sending more at once gains nothing."""


@dataclass(frozen=True, slots=True)
class ServerTLS:
    """The certificates of a :class:`~cbframe.LocalCluster`, as paths of PEM files.

    Attributes
    ----------
    certificate
        The chain that every node shows, its own certificate first. It has to be valid for
        ``127.0.0.1``.
    key
        Its private key; None if it is in the same file.
    client_ca
        Authorities whose client certificates are taken in place of a password: the common name is
        the user. None asks for no certificate.
    mandatory
        Refuse clients without a certificate.

    Raises
    ------
    ConfigurationError
        Certificates are mandatory, but no authority says which.
    """

    certificate: str | PathLike[str]
    key: str | PathLike[str] | None = None
    client_ca: str | PathLike[str] | None = None
    mandatory: bool = False

    def __post_init__(self) -> None:
        if self.mandatory and self.client_ca is None:
            raise ConfigurationError("mandatory client certificates need client_ca")

    def options(self) -> dict[str, Any]:
        """The same as plain values, which can go to another process."""
        paths = {"certificate": self.certificate, "key": self.key, "client_ca": self.client_ca}
        plain = {name: None if path is None else fspath(path) for name, path in paths.items()}
        return {**plain, "mandatory": self.mandatory}

    def context(self) -> ssl.SSLContext:
        """The context of the listeners.

        Raises
        ------
        ConfigurationError
            A file cannot be read, or does not hold what it should.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self.certificate, self.key)
            if self.client_ca is not None:
                context.load_verify_locations(self.client_ca)
                context.verify_mode = ssl.CERT_REQUIRED if self.mandatory else ssl.CERT_OPTIONAL
        except OSError as exc:  # SSLError is one
            raise ConfigurationError(f"the cluster's certificates cannot be used: {exc}") from exc
        return context


class TlsSocket:
    """TLS over a non-blocking socket, with the methods that a channel uses.

    Whatever TLS waits for, it raises BlockingIOError as a plain socket does. If that is the
    permission to write, :attr:`wants_write` is set until the next attempt.
    """

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        self._tls = context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        self._secured = False
        self._unsent = b""
        self.wants_write = False
        self.on_secured: Callable[[str | None], None] = lambda _user: None
        """Called after the handshake with the common name of the client's certificate, if any."""

    def fileno(self) -> int:
        return self._tls.fileno()

    def close(self) -> None:
        self._tls.close()

    def recv(self, nbytes: int) -> bytes:
        """What there is, up to about `nbytes`.

        It takes all records that have come: the selector does not see what TLS has read already.
        """
        chunks: list[bytes] = []
        total = 0
        while total < nbytes:
            try:
                chunk = self._read()
            except BlockingIOError:
                if not chunks:
                    raise
                break
            if not chunk:
                break
            chunks.append(chunk)
            total += len(chunk)
        return b"".join(chunks)

    def sendmsg(self, buffers: Sequence[bytes | memoryview]) -> int:
        """Send the beginning of `buffers`; how many bytes of it."""
        # What TLS could not send has to be offered to it again, not shorter than before.
        if not self._unsent:
            self._unsent = _beginning(buffers)
        count = self._attempt(lambda: self._tls.send(self._unsent))
        self._unsent = b""
        return count

    def _read(self) -> bytes:
        if not self._secured:
            self._attempt(self._tls.do_handshake)
            self._secured = True
            self.on_secured(_common_name(self._tls))
        return self._attempt(lambda: self._tls.recv(_RECORD))

    def _attempt(self, call: Callable[[], T]) -> T:
        self.wants_write = False
        try:
            return call()
        except ssl.SSLWantReadError:
            raise BlockingIOError from None
        except ssl.SSLWantWriteError:
            self.wants_write = True
            raise BlockingIOError from None


AnySocket: TypeAlias = socket.socket | TlsSocket


def _beginning(buffers: Sequence[bytes | memoryview]) -> bytes:
    """One record's worth of bytes."""
    chunk = bytearray()
    for buffer in buffers:
        chunk += memoryview(buffer)[: _RECORD - len(chunk)]
        if len(chunk) == _RECORD:
            break
    return bytes(chunk)


def _common_name(tls: ssl.SSLSocket) -> str | None:
    """The common name in the subject of the client's certificate; None without a certificate."""
    certificate = tls.getpeercert() or {}
    subject: Any = certificate.get("subject", ())
    return next((value for part in subject for name, value in part if name == "commonName"), None)
