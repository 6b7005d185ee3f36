"""Servers on the loopback that say what a test wants: silence, bytes, a data node, a cluster manager, TLS.

What speaks with :class:`~cbframe.testing.ScriptedTransport` needs none of them.
"""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
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
READER = ("reader", "pässwort:hunter2")
"""Whom a :class:`Manager` knows."""
Answer = Callable[[Frame], bytes | None]
"""The bytes that answer a request; None closes the connection."""


def free_port() -> int:
    """One on which nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class TcpServer:
    """Accepts on the loopback; each connection runs `serve` on a thread that ends with the server.

    Parameters
    ----------
    talk
        In place of `serve`.
    """

    def __init__(self, talk: Callable[[socket.socket], object] | None = None) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._talk = talk or self.serve
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
            self.run(self._run, sock)

    def run(self, work: Callable[..., object], *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments)
        self._threads.append(thread)
        thread.start()

    def _run(self, sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            self._talk(sock)

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


class TlsServer(TcpServer):
    """Shows a certificate; then `talk` goes on, or one byte is waited for."""

    def __init__(
        self, certificate: Path, talk: Callable[[ssl.SSLSocket], object] = lambda secured: secured.recv(1)
    ) -> None:
        super().__init__()
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(certificate)
        self._secured = talk
        self.error: OSError | None = None

    def serve(self, sock: socket.socket) -> None:
        try:
            with self.context.wrap_socket(sock, server_side=True) as secured:
                self._secured(secured)
        except OSError as exc:
            self.error = exc


class Proxy(TcpServer):
    """An HTTP proxy that answers every request with `answer`; None connects through."""

    def __init__(self, answer: bytes | None) -> None:
        super().__init__()
        self._answer = answer
        self.heard: list[bytes] = []

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    def serve(self, sock: socket.socket) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n") and (data := sock.recv(4096)):
            head += data
        if not head:
            return
        self.heard.append(head)
        if self._answer is not None:
            sock.sendall(self._answer)
            return
        host, _, port = head.split(b" ")[1].decode().rpartition(":")
        with socket.create_connection((host, int(port))) as ahead:
            self._open.append(ahead)
            sock.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            self.run(_pump, ahead, sock)
            _pump(sock, ahead)


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):  # the other side has gone
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


# --- a data node


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


# --- a cluster manager


@dataclass
class Reply:
    """`body` may be bytes or anything that JSON can hold."""

    status: int = 200
    body: Any = None
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    length: int | None = None
    before: Callable[[], object] = lambda: None


NOT_FOUND = Reply(404, b'"Requested resource not found."')


class Manager:
    """`pages` maps a path without its query to a `Reply`, or to JSON; one reply is that of every path."""

    def __init__(self, pages: dict[str, Any] | Reply) -> None:
        self.pages = pages
        self.requests: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def version_string(self) -> str:
                return "Couchbase Server"

            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port: int = self.server.server_address[1]
        self.node = self.address = f"127.0.0.1:{self.port}"
        self.url = f"http://{self.node}"

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        self.requests.append(handler.path)
        reply = self.reply_to(handler)
        reply.before()
        body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        # A body that is shorter than announced ends here; and who got one answer alike needs no more.
        handler.close_connection = reply.length is not None or isinstance(self.pages, Reply)
        with contextlib.suppress(OSError):  # the client gave up, as some tests want
            handler.send_response(reply.status)
            handler.send_header("Content-Type", reply.content_type)
            handler.send_header("Content-Length", str(len(body) if reply.length is None else reply.length))
            for name, value in reply.headers.items():
                handler.send_header(name, value)
            handler.end_headers()
            handler.wfile.write(body)

    def reply_to(self, handler: BaseHTTPRequestHandler) -> Reply:
        if isinstance(self.pages, Reply):
            return self.pages
        token = base64.b64encode(":".join(READER).encode()).decode()
        if handler.headers.get("Authorization") != f"Basic {token}":
            return Reply(401, b"", headers={"WWW-Authenticate": 'Basic realm="Couchbase"'})
        page = self.pages.get(handler.path.partition("?")[0], NOT_FOUND)
        return page if isinstance(page, Reply) else Reply(body=page)


@contextmanager
def manager(pages: dict[str, Any] | Reply) -> Iterator[Manager]:
    served = Manager(pages)
    served.server.daemon_threads = isinstance(pages, dict)  # clients may keep their connections
    thread = threading.Thread(target=served.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield served
    finally:
        served.server.shutdown()
        served.server.server_close()
        thread.join()
