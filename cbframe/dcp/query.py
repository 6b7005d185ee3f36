"""A few questions over an ordinary connection: the cluster map, the collections manifest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from cbframe.dcp.handshake import Steps, T
from cbframe.dcp.transport import Transport, Waker
from cbframe.errors import (
    CbframeError,
    ConnectError,
    ProtocolError,
    ReadCancelledError,
    ReadTimeoutError,
)
from cbframe.wire.constants import MAX_BODY_LENGTH
from cbframe.wire.frame import Frame

_PORTS = "is this port the data service (couchbase:// is 11210, couchbases:// is 11207)?"


def ask(
    node: str,
    steps: Steps[T],
    *,
    transport: Transport,
    waker: Waker,
    clock: Callable[[], float],
    timeout: float,
) -> T:
    """Run a handshake to its result on a connection of its own, and close it.

    Raises
    ------
    ReadTimeoutError
        The whole took longer than `timeout` seconds.
    ReadCancelledError
        The waker rang.
    ConnectError, ProtocolError, ServerError
        As the handshake and the transport raise them, naming the node.
    """
    deadline = clock() + timeout
    stream = transport.connect(node, waker, timeout)
    try:
        buffer = bytearray()
        view = memoryview(bytearray(256 * 1024))
        frame = next(steps)
        opaque = 0
        while True:
            opaque += 1
            asked = replace(frame, opaque=opaque)
            stream.send_all(asked.encode(), timeout)
            answer = None
            while answer is None:
                parsed = Frame.parse(buffer, max_body=MAX_BODY_LENGTH)
                if parsed is not None:
                    candidate, end = parsed
                    del buffer[:end]
                    if candidate.is_response:
                        if (candidate.opaque, candidate.opcode) != (opaque, frame.opcode):
                            raise ProtocolError(
                                "an answer to nothing that was asked", opcode=candidate.opcode
                            )
                        answer = candidate
                    continue
                left = deadline - clock()
                if left <= 0:
                    raise ReadTimeoutError(
                        f"no answer within {timeout:g} s",
                        hint="the port is open but silent: is it the data service?",
                    )
                if not stream.wait(left):
                    if clock() < deadline:
                        # Nothing to read, and time is left: the waker rang.
                        raise ReadCancelledError("cancelled while waiting for an answer")
                    continue
                count = stream.receive_into(view)
                if count == 0:
                    raise ConnectError(
                        "the node closed the connection during the handshake",
                        hint=_PORTS,
                    )
                if count:
                    buffer += view[:count]
            try:
                frame = steps.send(answer)
            except StopIteration as done:
                result: T = done.value
                return result
    except CbframeError as exc:
        _complete(exc, node)
        raise
    finally:
        steps.close()
        stream.close()


def _complete(error: CbframeError, node: str) -> None:
    """Say of an error where it was, and whether another attempt may do better."""
    error.node = error.node or node
    if type(error) in (ConnectError, ProtocolError):
        # A TLS port resets the connection of a client that speaks in plain text.
        error.hint = error.hint or _PORTS
    if isinstance(error, ProtocolError):
        error.permanent = True  # what speaks another protocol now will not speak ours next time
    if isinstance(error, ReadTimeoutError):
        error.permanent = False
