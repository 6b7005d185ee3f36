"""Users: their passwords, what they may do, what they are told of.

The engine's half is :class:`EngineUsers`; :class:`ClusterUsers` is what users of the library call.
"""

from __future__ import annotations

import contextlib
import hmac
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from cbframe.errors import ConfigurationError
from cbframe.local.manifest import Manifest, UnknownCollectionError, UnknownScopeError
from cbframe.wire.sasl import SCRAM_HASHES, ScramKeys

if TYPE_CHECKING:
    from cbframe.local.node import Node

ITERATIONS = 4096
"""Of SCRAM."""
ACCESS = ("none", "data", "dcp", "admin")
"""What a user may do, each including the ones before: log in, use documents, stream, manage."""


@dataclass(frozen=True, slots=True)
class User:
    """One user.

    Attributes
    ----------
    name, password
        To log in with.
    access
        One of `ACCESS`.
    collections
        ``scope.collection`` of those that exist for the user; None for all.
    """

    name: str
    password: str = field(repr=False)
    access: str = "admin"
    collections: tuple[str, ...] | None = None

    def may(self, access: str) -> bool:
        return ACCESS.index(self.access) >= ACCESS.index(access)


NOBODY = User("", "", "none")
"""Who has not logged in, or lost all rights."""


class Credentials:
    """The users of the cluster, and the keys that SCRAM needs of them."""

    def __init__(self, username: str, password: str) -> None:
        self._users: dict[str, User] = {}
        # One salt per user name, also for names that do not exist: a challenge tells nothing.
        self._salt_key = secrets.token_bytes(16)
        self._keys: dict[tuple[str, str], ScramKeys] = {}
        self.add(User(username, password))

    def __repr__(self) -> str:
        return f"Credentials({', '.join(map(repr, self._users))})"

    def add(self, user: User) -> None:
        """Let a user log in, in place of one of the same name."""
        self.remove(user.name)
        self._users[user.name] = user

    def remove(self, name: str) -> bool:
        """Let a user log in no more; whether there was one."""
        for hash_name in SCRAM_HASHES.values():
            self._keys.pop((hash_name, name), None)
        return self._users.pop(name, None) is not None

    def find(self, username: str, password: str) -> User | None:
        """The user whose name and password these are."""
        user = self._users.get(username)
        same = hmac.compare_digest(password.encode(), (user or NOBODY).password.encode())
        return user if same else None

    def certified(self, common_name: str | None) -> User | None:
        """The user of a verified client certificate with this name."""
        return None if common_name is None else self._users.get(common_name)

    def salt(self, username: str) -> bytes:
        return hmac.digest(self._salt_key, username.encode(), "sha256")[:16]

    def keys(self, hash_name: str, username: str) -> ScramKeys:
        """Of a user, or of one that cannot be guessed."""
        place = hash_name, username
        if place not in self._keys:
            user = self._users.get(username)
            password = secrets.token_hex(16) if user is None else user.password
            keys = ScramKeys.derive(hash_name, password, self.salt(username), ITERATIONS)
            if user is None:
                return keys
            self._keys[place] = keys
        return self._keys[place]

    def named(self, username: str) -> User | None:
        return self._users.get(username)


def visible(user: User | None, manifest: Manifest) -> frozenset[int] | None:
    """Ids of the collections that exist for a user; None for all."""
    if user is None or user.collections is None:
        return None
    found = set()
    for path in user.collections:
        with contextlib.suppress(UnknownCollectionError, UnknownScopeError):
            found.add(manifest.resolve(path))
    return frozenset(found)


class EngineUsers:
    """The engine's methods."""

    credentials: Credentials
    running: Callable[[], list[Node]]
    _cid: Callable[[str | int], int]

    def add_user(self, name: str, password: str, access: str, collections: list[str] | None) -> None:
        if access not in ACCESS:
            raise ConfigurationError(f"no access {access!r}, only {', '.join(ACCESS)}")
        for path in collections or ():
            self._cid(path)
        shown = None if collections is None else tuple(collections)
        self.credentials.add(User(name, password, access, shown))

    def revoke(self, name: str) -> None:
        if not self.credentials.remove(name):
            raise ConfigurationError(f"no user {name!r}", hint="add_user() adds one")
        for member in self.running():
            member.loop.call(partial(member.revoke, name))


class ClusterUsers(ABC):
    """The verbs of :class:`cbframe.local.LocalCluster` about users."""

    @property
    @abstractmethod
    def _engine(self) -> Any: ...

    def add_user(
        self,
        name: str,
        password: str,
        *,
        access: Literal["none", "data", "dcp", "admin"] = "dcp",
        collections: Iterable[str] | None = None,
    ) -> None:
        """Add a user, in place of one of the same name.

        Parameters
        ----------
        name, password
            To log in with.
        access
            Each includes the ones before: log in only; read and write documents; stream them; manage.
        collections
            ``scope.collection`` of those that exist for the user, who is not told of the others; None
            for all.
        """
        wanted = None if collections is None else list(collections)
        self._engine.add_user(name, password, access, wanted)

    def revoke(self, name: str) -> None:
        """Take all rights of a user: streams end with LOST_PRIVILEGES, and nobody logs in by that name."""
        self._engine.revoke(name)
