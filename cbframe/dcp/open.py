"""DCP on a socket that someone else has connected and logged in: the reference's ``UPROpen``."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from cbframe.dcp.controls import DcpSettings
from cbframe.dcp.handshake import open_producer
from cbframe.errors import ConnectError, ProtocolError
from cbframe.options import BucketDataSourceOptions
from cbframe.public import public
from cbframe.wire.constants import HEADER_LENGTH, MAX_BODY_LENGTH, Opcode
from cbframe.wire.framing import Frame, parse_header
from cbframe.wire.requests import noop_reply


class ByteSocket(Protocol):
    """What is needed of a blocking socket."""

    def sendall(self, data: bytes, /) -> None: ...
    def recv(self, size: int, /) -> bytes: ...


@public
def upr_open(
    sock: ByteSocket,
    name: str,
    buffer_size: int = 20_000_000,
    *,
    options: BucketDataSourceOptions | None = None,
) -> dict[str, str]:
    """Open DCP on a connection of your own, with NOOPs, flow control and whatever the options say.

    For programs that speak the protocol themselves, with :mod:`cbframe.wire`; a
    :class:`~cbframe.BucketDataSource` does this and all the rest by itself.

    Parameters
    ----------
    sock
        A blocking socket to a data node: HELLO and authentication are done, the bucket is selected.
    name
        Of the connection, 1 to 200 characters of printable ASCII without braces: the server closes an older
        one of the same name.
    buffer_size
        Flow-control window in bytes; 0 for none.
    options
        Finer settings of the connection.

    Returns
    -------
    dict
        Options that the node granted, with their values.

    Raises
    ------
    AccessError, ServerError
        The node refuses.
    ConnectError, ProtocolError
        The connection has ended, or something else than an answer came.

    Examples
    --------
    >>> upr_open(sock, "audit:1")["enable_noop"]  # doctest: +SKIP
    'true'
    """
    settings = DcpSettings.of(options or BucketDataSourceOptions(), name)
    steps = open_producer(replace(settings, buffer_size=buffer_size), "the user", "the selected bucket")
    sent = answered = 0
    frames = next(steps)
    while True:
        numbered = [replace(frame, opaque=number) for number, frame in enumerate(frames, sent + 1)]
        if numbered:
            sock.sendall(b"".join(frame.encode() for frame in numbered))
        sent += len(numbered)
        answered += 1
        try:
            frames = steps.send(_answer(sock, answered))
        except StopIteration as done:
            granted: dict[str, str] = done.value
            return granted


def _answer(sock: ByteSocket, opaque: int) -> Frame:
    """The next answer; not a byte more is taken."""
    while True:
        head = _exactly(sock, HEADER_LENGTH)
        header = parse_header(head, max_body=MAX_BODY_LENGTH)
        parsed = Frame.parse(head + _exactly(sock, header.body_length))
        assert parsed is not None, "it is whole"
        frame = parsed[0]
        if frame.opcode == Opcode.DCP_NOOP and not frame.is_response:
            sock.sendall(noop_reply(frame).encode())
        elif frame.is_response:
            if frame.opaque != opaque:
                raise ProtocolError("an answer to nothing that was asked", opcode=frame.opcode)
            return frame


def _exactly(sock: ByteSocket, count: int) -> bytes:
    found = b""
    while len(found) < count:
        data = sock.recv(count - len(found))
        if not data:
            raise ConnectError("the node closed the connection while DCP was opened")
        found += data
    return found
