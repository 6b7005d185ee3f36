"""What the cluster manager answers: one document, or a stream of configurations; and the fields in them.

Only bytes and values: who has a session or a socket hands them over.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

from cbframe.cluster.auth import Authenticator, basic_header
from cbframe.errors import (
    ROLES_HINT,
    AccessError,
    AuthFailError,
    BucketNotFoundError,
    CbframeError,
    ClusterMapError,
    ConnectError,
    ProtocolError,
)

_SHOWN = 200
"""Characters of a server's own words that an error repeats."""
_HEX = re.compile(r"[0-9A-Fa-f]{1,16}")
_SEPARATOR = b"\n\n\n\n"
_MAX_HEAD = 64 * 1024
_MAX_CONFIG = 32 * 1024 * 1024
_MAX_SIZE_LINE = 1024
_END = b"\r\n"
_FEED_ERRORS: dict[str, tuple[type[CbframeError], str]] = {
    "401": (AuthFailError, "the cluster manager does not accept the credentials"),
    "403": (AccessError, "the user may not see the bucket"),
    "404": (BucketNotFoundError, "the cluster manager has no such bucket"),
}


# --- one answer


@dataclass(frozen=True, slots=True)
class RestAnswer:
    """Status, the headers that matter, and the whole body."""

    node: str
    path: str
    status: int
    content_type: str
    location: str
    body: bytes
    server: str = ""
    challenge: str = ""

    def json_object(self) -> dict[str, object]:
        """The JSON object of a good answer."""
        value = self._json()
        if not isinstance(value, dict):
            raise self._not_json(f"a JSON {type(value).__name__} where an object was expected")
        return value

    def json_array(self) -> list[object]:
        """As :meth:`json_object`, for an array."""
        value = self._json()
        if not isinstance(value, list):
            raise self._not_json(f"a JSON {type(value).__name__} where an array was expected")
        return value

    def _json(self) -> object:
        self.check()
        try:
            value: object = json.loads(self.body)
        # A hostile depth of brackets is a RecursionError, not a ValueError.
        except (ValueError, RecursionError) as error:
            raise self._not_json("something that is not JSON") from error
        return value

    def _not_json(self, what: str) -> ConnectError:
        return ConnectError(
            f"{self.path} answered with {what} (content type {self.content_type[:_SHOWN] or 'unknown'})",
            node=self.node,
            hint="check that this is the cluster manager (8091, or 18091 with TLS) and not a proxy",
        )

    def check(self) -> None:
        """Raise unless the status is 200."""
        if self.status == 200:
            return
        if self.status in (401, 403, 407) and not self._is_of_cluster():
            raise ConnectError(
                f"{self.path} answered with HTTP status {self.status}, but not as a cluster manager does",
                node=self.node,
                hint="a proxy or another server is in between: check host and port, and what the network "
                "does with requests",
            )
        if self.status == 401:
            raise AuthFailError(
                "the cluster manager refused the user name or the password",
                node=self.node,
                hint="check both; the user must exist in this cluster",
            )
        if self.status == 403:
            raise AccessError(
                f"the user may not read {self.path}",
                node=self.node,
                hint=f"{ROLES_HINT}{self._permissions()}",
            )
        if self.status == 404 and b"uuid does not match" in self.body:
            raise uuid_mismatch(self.node)
        if 300 <= self.status < 400:
            raise ConnectError(
                f"{self.path} redirects to {self._target()}, and credentials are not sent elsewhere",
                node=self.node,
                hint="name that host as the seed, if it is the cluster's",
            )
        raise ConnectError(
            f"{self.path} answered with HTTP status {self.status}",
            node=self.node,
            hint="the node may be starting, or leaving the cluster: try again"
            if self.status >= 500
            else None,
        )

    def _is_of_cluster(self) -> bool:
        """Whether the cluster itself refuses: its answers have its name, or are JSON objects."""
        if self.status == 407:
            return False
        if self.server.startswith("Couchbase") or "Couchbase" in self.challenge:
            return True
        return self._refusal() is not None

    def _permissions(self) -> str:
        named = (self._refusal() or {}).get("permissions")
        if not isinstance(named, list) or not named:
            return ""
        return f" (missing: {', '.join(map(str, named))[:_SHOWN]})"

    def _refusal(self) -> dict[str, object] | None:
        """The JSON object of a refusal; None if the body is no such thing."""
        try:
            value: object = json.loads(self.body)
        except (ValueError, RecursionError):
            return None
        return value if isinstance(value, dict) else None

    def _target(self) -> str:
        try:
            target = urlsplit(self.location)
        except ValueError:
            return "an invalid address"
        # Only host and port: the rest may carry a user name or a token.
        return target.netloc.rpartition("@")[2][:_SHOWN] or "another path"


def uuid_mismatch(node: str) -> ClusterMapError:
    """The bucket was deleted and created again. Asking again cannot bring the old one back."""
    error = ClusterMapError(
        "the bucket's uuid is not the one asked for",
        fault="other bucket",
        node=node,
        hint="the bucket was deleted and created again: start over without the old checkpoint",
    )
    error.permanent = True
    return error


# --- fields that nobody has checked yet: the right type, or a ClusterMapError


def text_field(source: Mapping[str, object], name: str, default: str | None = None) -> str:
    """A string; `default` stands for an absent one, None means that it must be there."""
    return _as_text(source.get(name, default), name, "a string")


def _as_text(value: object, name: str, wanted: str) -> str:
    if not isinstance(value, str):
        raise _wrong(name, value, wanted)
    try:
        value.encode()
    except UnicodeEncodeError as exc:  # half of a surrogate pair, escaped
        raise ClusterMapError(f"the cluster's answer has {name!r} with half of a character") from exc
    return value


def integer_field(source: Mapping[str, object], name: str, default: int | None = None) -> int:
    value = source.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool):
        raise _wrong(name, value, "a whole number")
    return value


def hexadecimal_field(source: Mapping[str, object], name: str) -> int:
    """A number that the cluster manager writes as hex digits without ``0x``."""
    value = text_field(source, name)
    # int() alone would also take "0x1f", "1_f" and " 1f".
    if not _HEX.fullmatch(value):
        raise _wrong(name, value, "a hexadecimal number")
    return int(value, 16)


def mapping_field(source: Mapping[str, object], name: str) -> Mapping[str, object]:
    """An object; an absent one is empty."""
    return as_mapping(source.get(name, {}), name)


def sequence_field(source: Mapping[str, object], name: str) -> Sequence[object]:
    """An array; an absent one is empty."""
    value = source.get(name, [])
    if not isinstance(value, list | tuple):
        raise _wrong(name, value, "an array")
    return value


def mappings_field(source: Mapping[str, object], name: str) -> list[Mapping[str, object]]:
    """An array of objects; an absent one is empty."""
    return [as_mapping(item, name) for item in sequence_field(source, name)]


def texts_field(source: Mapping[str, object], name: str) -> list[str]:
    """An array of strings; an absent one is empty."""
    return [_as_text(item, name, "an array of strings") for item in sequence_field(source, name)]


def as_mapping(value: object, name: str) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise _wrong(name, value, "an object")
    return value


def _wrong(name: str, value: object, wanted: str) -> ClusterMapError:
    return ClusterMapError(f"the cluster's answer has {name!r} of type {type(value).__name__}, not {wanted}")


# --- the answer that never ends: each new configuration of a bucket
# RFC 9112 (chunks), and the cluster manager's separator, four line feeds


def feed_request(host: str, bucket: str, auth: Authenticator, heartbeat: int) -> bytes:
    """The request for a bucket's configurations, with an empty one every `heartbeat` seconds."""
    lines = [
        f"GET /pools/default/bs/{quote(bucket, safe='')}?heartbeat={heartbeat} HTTP/1.1",
        f"Host: {host}",
        "Accept: application/json",
    ]
    value = basic_header(auth)
    if value is not None:
        lines.append(f"Authorization: {value}")
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
        if code != "200":
            error, what = _FEED_ERRORS.get(
                code, (ConnectError, f"the cluster manager answered with status {int(code)}")
            )
            raise error(what, node=self._node)

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
