"""What an answer of the cluster manager means: JSON, or one clear error."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from cbframe.errors import ROLES_HINT, AccessError, AuthFailError, ClusterMapError, ConnectError

_SHOWN = 200
"""Characters of a server's own words that an error repeats."""


@dataclass(frozen=True, slots=True)
class Answer:
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
        try:
            return isinstance(json.loads(self.body), dict)
        except (ValueError, RecursionError):
            return False

    def _permissions(self) -> str:
        try:
            value = json.loads(self.body)
        except (ValueError, RecursionError):
            return ""
        named = value.get("permissions") if isinstance(value, Mapping) else None
        if not isinstance(named, list) or not named:
            return ""
        return f" (missing: {', '.join(map(str, named))[:_SHOWN]})"

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
