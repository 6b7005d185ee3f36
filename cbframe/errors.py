"""Every error of cbframe, as one tree.

::

    CbframeError                          .hint .node .vbucket .permanent .anchor()
    ├── ConfigurationError (ValueError)   an argument that cannot be meant
    ├── DependencyError (ImportError)     an optional library is absent; the hint installs it
    ├── ResourceError                     the system gives no thread, file descriptor or memory
    ├── ConnectError                      a node or the cluster manager cannot be reached
    │   ├── AuthFailError                 wrong user or password
    │   ├── AccessError                   the user may not do this
    │   ├── BucketNotFoundError           no such bucket, a paused one, or not visible to this user
    │   ├── ClusterMapError               the cluster's answer makes no usable map
    │   └── AllServerURLsConnectBucketError
    ├── ProtocolError                     the peer broke the rules of the wire
    ├── ServerError                       the peer answered with a status that ends the attempt
    │   └── XAttrsNotSupportedError
    ├── StreamError                       a vbucket's stream cannot go on
    │   ├── RollbackError
    │   └── ReceiverError                 a callback of the receiver raised
    ├── ReadTimeoutError (TimeoutError)   nothing hangs: this is what ends a wait
    ├── ReadCancelledError                the read was closed before it was complete
    ├── SpoolError (OSError)              the disk is full, or the temporary files cannot be read
    ├── GroupError                        a member of a consumer group has lost its lease, or its folder
    ├── SnapshotError                     a copy (Parquet, Delta) is damaged, in use, or of another bucket
    └── ConversionError (ValueError)      documents cannot become columns as asked

``permanent`` tells the retry loops apart: an error that the next attempt cannot heal ends a
bounded read at once, any other is tried again with back-off.
"""

from __future__ import annotations

import re
from typing import Any, Literal, TypeAlias

__all__ = [
    "AccessError",
    "AllServerURLsConnectBucketError",
    "AuthFailError",
    "BucketNotFoundError",
    "CbframeError",
    "ClusterMapError",
    "ConfigurationError",
    "ConnectError",
    "ConversionError",
    "DependencyError",
    "GroupError",
    "ProtocolError",
    "ReadCancelledError",
    "ReadTimeoutError",
    "ReceiverError",
    "ResourceError",
    "RollbackError",
    "ServerError",
    "SnapshotError",
    "SpoolError",
    "StreamError",
    "XAttrsNotSupportedError",
]


MapFault: TypeAlias = Literal["other bucket", "no map", "empty row", "no such server", "nameless server"]


_MAX_LENGTH = 4000
"""Characters of a message or a hint, which may repeat what a peer has sent."""


def _short(text: str) -> str:
    return text if len(text) <= _MAX_LENGTH else f"{text[: _MAX_LENGTH - 1]}…"


class CbframeError(Exception):
    """Root of all errors.

    Parameters
    ----------
    message
        What happened, in one sentence. Never holds a password or a document key.
    hint
        What to do about it.
    node
        ``host:port`` of the node concerned.
    vbucket
        Number of the vbucket concerned.
    """

    permanent = False

    def __init__(
        self, message: str, *, hint: str | None = None, node: str | None = None, vbucket: int | None = None
    ) -> None:
        message = _short(message)
        super().__init__(message)
        self.message = message
        self.hint = None if hint is None else _short(hint)
        self.node = node
        self.vbucket = vbucket

    @classmethod
    def anchor(cls) -> str:
        """The section of the page Troubleshooting: ``rollback-error`` of a :class:`RollbackError`."""
        name = next(base.__name__ for base in cls.__mro__ if base.__module__ == __name__)
        return re.sub("(?<=[a-z])(?=[A-Z])", "-", name).lower()

    def __reduce__(self) -> tuple[Any, ...]:
        # Not by the constructor, whose arguments differ: errors of worker processes have to arrive.
        return _rebuilt, (type(self), self.args, self.__dict__)

    def __str__(self) -> str:
        place = []
        if self.node is not None:
            place.append(f"node {self.node}")
        if self.vbucket is not None:
            place.append(f"vbucket {self.vbucket}")
        text = self.message
        if place:
            text += f" [{', '.join(place)}]"
        if self.hint:
            text += f"\n  hint: {self.hint}"
        return text


def _rebuilt(kind: type[CbframeError], args: tuple[Any, ...], attributes: dict[str, Any]) -> CbframeError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(attributes)
    return error


class ConfigurationError(CbframeError, ValueError):
    """An argument that cannot be meant: a bad connection string, an option out of range."""

    permanent = True


class DependencyError(CbframeError, ImportError):
    """An optional library is not installed."""

    permanent = True


class ResourceError(CbframeError):
    """The system gives no thread, file descriptor or memory; the hint names the limit."""

    permanent = True


class ConnectError(CbframeError):
    """A node or the cluster manager cannot be reached, or answers with something else.

    ``unresolved`` is what was answered for the host's name, where it has no address.
    """

    unresolved = ""


class AuthFailError(ConnectError):
    """The server refused the user name or the password."""

    permanent = True


class AccessError(ConnectError):
    """The user is known but may not do this."""

    permanent = True


ROLES_HINT = (
    "the user needs the roles Data Reader and Data DCP Reader (Capella: Read access; Community Edition: "
    "Application Access, bucket_full_access) on the bucket, or on the scopes and collections that are read"
)
PAUSED_HINT = "resume the bucket, and read again when it is back"


class BucketNotFoundError(ConnectError):
    """The bucket does not exist, is paused, or this user cannot see it.

    Not permanent where a node says so that may not have it yet.
    """

    permanent = True


class ClusterMapError(ConnectError):
    """The cluster answered, but its map cannot be used: an owner is missing, the uuid differs.

    ``fault`` names what is wrong with it, where it is one of these.
    """

    def __init__(
        self,
        message: str,
        *,
        fault: MapFault | None = None,
        hint: str | None = None,
        node: str | None = None,
        vbucket: int | None = None,
    ) -> None:
        super().__init__(message, hint=hint, node=node, vbucket=vbucket)
        self.fault = fault


class AllServerURLsConnectBucketError(ConnectError):
    """A full pass over all seeds failed. The last cause is chained."""

    def __init__(
        self, server_urls: list[str], message: str | None = None, *, hint: str | None = None
    ) -> None:
        super().__init__(
            message or f"could not connect to the bucket through any of: {', '.join(server_urls)}", hint=hint
        )
        self.server_urls = server_urls


class ProtocolError(CbframeError):
    """The peer sent bytes that are no valid message here: where, and which.

    ``offset`` counts from the start of the buffer that held the message.
    """

    def __init__(
        self,
        message: str,
        *,
        opcode: int | None = None,
        offset: int | None = None,
        hint: str | None = None,
        node: str | None = None,
        vbucket: int | None = None,
    ) -> None:
        if opcode is not None:
            message += f" (opcode 0x{opcode:02x})"
        if offset is not None:
            message += f" at offset {offset}"
        super().__init__(message, hint=hint, node=node, vbucket=vbucket)
        self.opcode = opcode
        self.offset = offset


class ServerError(CbframeError):
    """The server answered a request with a status that ends the attempt."""

    def __init__(
        self,
        message: str,
        *,
        status: int,
        hint: str | None = None,
        node: str | None = None,
        vbucket: int | None = None,
    ) -> None:
        super().__init__(f"{message}: status 0x{status:04x}", hint=hint, node=node, vbucket=vbucket)
        self.status = status


class XAttrsNotSupportedError(ServerError):
    """The node does not grant extended attributes."""


class StreamError(CbframeError):
    """The stream of a vbucket cannot go on."""


class RollbackError(StreamError):
    """The server rolled back a vbucket and the caller asked not to accept that."""

    permanent = True


class ReceiverError(StreamError):
    """A callback of the receiver raised; what it raised is chained."""


class ReadTimeoutError(CbframeError, TimeoutError):
    """A bounded wait ended without a result."""

    permanent = True


class ReadCancelledError(CbframeError):
    """The read was closed before it was complete."""

    permanent = True


class SpoolError(CbframeError, OSError):
    """Documents cannot be kept on disk while a bucket is read in bounded memory."""


class GroupError(CbframeError):
    """A member of a consumer group cannot go on: others have its vbuckets, or the folder is not reached."""

    permanent = True


class SnapshotError(CbframeError):
    """A snapshot cannot be read or updated: ``path`` names the file or folder concerned."""

    permanent = True

    def __init__(
        self,
        message: str,
        *,
        path: str | None = None,
        hint: str | None = None,
        node: str | None = None,
        vbucket: int | None = None,
    ) -> None:
        super().__init__(
            message if path is None else f"{message}: {path}", hint=hint, node=node, vbucket=vbucket
        )
        self.path = path


class ConversionError(CbframeError, ValueError):
    """Documents cannot become columns in the way that was asked for."""

    permanent = True
