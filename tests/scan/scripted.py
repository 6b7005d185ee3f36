"""Servers that misbehave as they are told: memcached that answers, cuts and lies; HTTP; silence."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from cbframe.local.auth import MECHANISMS, Credentials, SaslServer
from cbframe.wire.constants import Opcode, Status
from cbframe.wire.framing import Frame, response
from cbframe.wire.messages import (
    FailoverEntry,
    Hello,
    SaslAuth,
    encode_failover_log,
    encode_vbucket_seqnos,
    parse_request,
)

USER, PASSWORD = "Administrator", "geheim-7f3a"
Answer = Callable[[Frame], bytes | None]
"""The bytes that answer a request; None closes the connection."""


class TcpServer:
    """Accepts on the loopback; each connection runs `serve` on a thread that ends with the server."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._closing = False
        self.accepted = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"couchbase://{self.address}/default"

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing = True
        # Ends accept(), which closing alone would not.
        socket.create_connection(("127.0.0.1", self.port)).close()
        for sock in self._open:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            sock, _ = self._listener.accept()
            if self._closing:
                sock.close()
                return
            self.accepted += 1
            self._open.append(sock)
            thread = threading.Thread(target=self._run, args=(sock,))
            self._threads.append(thread)
            thread.start()

    def _run(self, sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            self.serve(sock)

    def serve(self, sock: socket.socket) -> None:
        """Silence, until the other side or the server closes."""
        while sock.recv(65536):
            pass


class Garbage(TcpServer):
    """Sends the same bytes to whoever connects, then listens."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self._data = data

    def serve(self, sock: socket.socket) -> None:
        sock.sendall(self._data)
        super().serve(sock)


class Memcached(TcpServer):
    """A data node with one vbucket and one document, whose answers a test can replace.

    Parameters
    ----------
    answers
        By opcode: what to send in place of the right answer.
    close_after
        Close the connection in place of the answer to the n-th request; counted from 1 in each
        connection.
    """

    def __init__(self, answers: dict[int, Answer] | None = None, *, close_after: int = 0) -> None:
        super().__init__()
        self._answers = answers or {}
        self._close_after = close_after
        self.requests: list[int] = []

    def config(self) -> dict[str, Any]:
        return {
            "rev": 1,
            "name": "default",
            "uuid": "0123",
            "nodeLocator": "vbucket",
            "nodes": [{"hostname": "127.0.0.1:1", "ports": {"direct": self.port}}],
            "nodesExt": [{"services": {"kv": self.port, "mgmt": 1}, "hostname": "127.0.0.1"}],
            "bucketCapabilities": ["collections", "dcp", "xattr"],
            "vBucketServerMap": {
                "hashAlgorithm": "CRC",
                "numReplicas": 0,
                "serverList": [self.address],
                "vBucketMap": [[0]],
            },
        }

    def serve(self, sock: socket.socket) -> None:
        buffer = bytearray()
        sasl = SaslServer(Credentials(USER, PASSWORD))
        count = 0
        while data := sock.recv(65536):
            buffer += data
            while (parsed := Frame.parse(buffer)) is not None:
                frame, end = parsed
                del buffer[:end]
                if frame.is_response or frame.opcode == Opcode.DCP_BUFFER_ACK:
                    continue
                count += 1
                self.requests.append(frame.opcode)
                if count == self._close_after:
                    return
                special = self._answers.get(frame.opcode)
                answer = special(frame) if special is not None else self.right_answer(frame, sasl)
                if answer is None:
                    return
                sock.sendall(answer)

    def right_answer(self, frame: Frame, sasl: SaslServer) -> bytes:
        status, value = Status.SUCCESS, b""
        match frame.opcode:
            case Opcode.HELLO:
                value = b"".join(code.to_bytes(2, "big") for code in Hello.parse(frame).features)
            case Opcode.SASL_LIST_MECHS:
                value = MECHANISMS.encode()
            case Opcode.SASL_AUTH | Opcode.SASL_STEP:
                message = parse_request(frame)
                assert isinstance(message, SaslAuth)
                step = sasl.auth if frame.opcode == Opcode.SASL_AUTH else None
                result = step(message.mechanism, message.payload) if step else sasl.step(message.payload)
                status, value = result.status, result.value
            case Opcode.GET_CLUSTER_CONFIG:
                value = json.dumps(self.config()).encode()
            case Opcode.COLLECTIONS_GET_MANIFEST:
                value = b'{"uid":"0","scopes":[]}'
            case Opcode.GET_ALL_VB_SEQNOS:
                value = encode_vbucket_seqnos({0: 1})
            case Opcode.DCP_STREAM_REQ:
                value = encode_failover_log([FailoverEntry(77, 0)])
        return answer_to(frame, value, status=status)


def answer_to(frame: Frame, value: bytes = b"", *, status: int = 0) -> bytes:
    return response(frame.opcode, status=status, opaque=frame.opaque, value=value).encode()


class Http:
    """A real HTTP server that answers everything alike."""

    def __init__(self, status: int, body: bytes, content_type: str = "application/json") -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def version_string(self) -> str:
                return "Couchbase Server"

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = False
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self.address = f"127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
