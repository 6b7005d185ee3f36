"""The answer that never ends: a cluster manager that sends each new configuration of a bucket.

Only the bytes: who has a socket feeds what comes from it. Sources: RFC 9112 (chunks), and the cluster
manager's separator, four line feeds.
"""

from __future__ import annotations

import base64
from urllib.parse import quote

from cbframe.cluster.auth import Authenticator
from cbframe.errors import AccessError, AuthFailError, BucketNotFoundError, ConnectError, ProtocolError

_SEPARATOR = b"\n\n\n\n"
_MAX_HEAD = 64 * 1024
_MAX_CONFIG = 32 * 1024 * 1024
_MAX_SIZE_LINE = 1024
_END = b"\r\n"


def feed_request(host: str, bucket: str, auth: Authenticator, heartbeat: int) -> bytes:
    """The request for a bucket's configurations, with an empty one every `heartbeat` seconds."""
    lines = [
        f"GET /pools/default/bs/{quote(bucket, safe='')}?heartbeat={heartbeat} HTTP/1.1",
        f"Host: {host}",
        "Accept: application/json",
    ]
    credentials = auth.credentials()
    if credentials is not None:
        token = base64.b64encode(":".join(credentials).encode()).decode()
        lines.append(f"Authorization: Basic {token}")
    return "\r\n".join([*lines, "", ""]).encode()


class ConfigFeed:
    """Takes the bytes of one such answer, and gives the configurations in them."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._buffer = bytearray()
        self._body = bytearray()
        self._in_body = False
        self._left: int | None = None
        """Bytes of the present chunk that are still to come, with its end of line."""

    def receive(self, data: bytes | memoryview) -> list[bytes]:
        """The configurations that are whole now."""
        self._buffer += data
        if not self._in_body and not self._take_head():
            return []
        while self._take_chunk():
            pass
        *found, rest = self._body.split(_SEPARATOR)
        self._body = rest
        if len(rest) > _MAX_CONFIG:
            raise ProtocolError(f"a configuration of more than {_MAX_CONFIG} bytes", node=self._node)
        return [bytes(config) for config in found if config.strip()]

    def _take_head(self) -> bool:
        head, blank, rest = bytes(self._buffer).partition(b"\r\n\r\n")
        if not blank:
            if len(head) > _MAX_HEAD or not b"HTTP/".startswith(head[:5]):
                raise ProtocolError("the cluster manager speaks no HTTP", node=self._node)
            return False
        status, *lines = head.decode("latin-1").split("\r\n")
        self._check(status.split(" "))
        headers = {
            name.strip().lower(): value.strip().lower()
            for name, _, value in (x.partition(":") for x in lines)
        }
        if headers.get("transfer-encoding") != "chunked":
            raise ProtocolError("the cluster manager's answer is no stream", node=self._node)
        self._buffer = bytearray(rest)
        self._in_body = True
        return True

    def _check(self, status: list[str]) -> None:
        code = status[1] if len(status) > 1 and status[0].startswith("HTTP/1.") else ""
        if len(code) != 3 or not code.isdecimal():
            raise ProtocolError("the cluster manager speaks no HTTP", node=self._node)
        match int(code):
            case 200:
                return
            case 401:
                raise AuthFailError("the cluster manager does not accept the credentials", node=self._node)
            case 403:
                raise AccessError("the user may not see the bucket", node=self._node)
            case 404:
                raise BucketNotFoundError("the cluster manager has no such bucket", node=self._node)
            case other:
                raise ConnectError(f"the cluster manager answered with status {other}", node=self._node)

    def _take_chunk(self) -> bool:
        """Move what is there of a chunk to the body; whether there may be more."""
        if self._left is None:
            line, end, rest = self._buffer.partition(_END)
            if not end:
                if len(line) > _MAX_SIZE_LINE:
                    raise self._broken()
                return False
            size = self._size(bytes(line))
            if size == 0:
                raise ConnectError("the cluster manager ended its answer", node=self._node)
            self._buffer, self._left = rest, size + len(_END)
        piece = self._buffer[: self._left]
        del self._buffer[: len(piece)]
        self._left -= len(piece)
        self._body += piece
        if self._left:
            return False
        if not self._body.endswith(_END):
            raise self._broken()
        del self._body[-len(_END) :]
        self._left = None
        return bool(self._buffer)

    def _size(self, line: bytes) -> int:
        text = line.partition(b";")[0].strip()
        if not text or len(text) > 8 or any(byte not in b"0123456789abcdefABCDEF" for byte in text):
            raise self._broken()
        size = int(text, 16)
        if size > _MAX_CONFIG:
            raise ProtocolError(
                f"a chunk of {size} bytes is over the limit of {_MAX_CONFIG}", node=self._node
            )
        return size

    def _broken(self) -> ProtocolError:
        return ProtocolError("the cluster manager's answer is broken", node=self._node)
