"""Users: their passwords, what they may do, and what exists for them.

The engine's half is :class:`EngineUsers`; :class:`ClusterUsers` is what users of the library call.
Privileges are checked as a node does: kv_engine ``rbac/privilege_database.cc``.
"""

from __future__ import annotations

import hmac
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

from cbframe.errors import ConfigurationError
from cbframe.local.manifest import Manifest
from cbframe.wire.constants import Status
from cbframe.wire.sasl import SCRAM_HASHES, ScramKeys

if TYPE_CHECKING:
    from cbframe.local.node import Node

ITERATIONS = 4096
"""Of SCRAM."""
ACCESS = ("none", "data", "dcp", "admin")
"""What a user may do, each including the ones before: log in, use documents, stream, manage."""


@dataclass(frozen=True, slots=True)
class User:
    """One user."""

    name: str  # to log in with
    password: str = field(repr=False)
    access: str = "admin"
    scopes: frozenset[int] = frozenset()  # ids
    collections: frozenset[int] | None = None
    elsewhere: str = "none"  # access to the rest of the bucket, one of `ACCESS`
    external: bool = False  # the password is known to a directory (LDAP), and not to the cluster

    def may(self, access: str) -> bool:
        """Whether the user may do this at least somewhere in the bucket."""
        return _includes(self.access, access) or _includes(self.elsewhere, access)

    def status(
        self, access: str, manifest: Manifest, scope: int | None = None, collection: int | None = None
    ) -> Status:
        """SUCCESS, or how a request is refused that needs `access` to a collection, a scope or the bucket.

        EACCESS where the user has some other access there; UNKNOWN_COLLECTION or UNKNOWN_SCOPE where the
        user has none: then it does not exist for the user.
        """
        if self.collections is None or _includes(self.elsewhere, access):
            return Status.SUCCESS if self.may(access) else Status.EACCESS
        granted = Status.SUCCESS if _includes(self.access, access) else Status.EACCESS
        if scope is None:
            return Status.EACCESS
        if scope in self.scopes or collection in self.collections:
            return granted
        seen = self.elsewhere != "none"
        if collection is None:
            inside = (each.collections.values() for each in manifest.scopes.values() if each.id == scope)
            seen = seen or not self.collections.isdisjoint(chain.from_iterable(inside))
            return Status.EACCESS if seen else Status.UNKNOWN_SCOPE
        return Status.EACCESS if seen else Status.UNKNOWN_COLLECTION

    def sees(self, manifest: Manifest, scope: int, collection: int | None) -> bool:
        """Whether a scope or collection exists for the user."""
        return self.status("data", manifest, scope, collection) in {Status.SUCCESS, Status.EACCESS}


def _includes(given: str, access: str) -> bool:
    return ACCESS.index(given) >= ACCESS.index(access)


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

    @property
    def asks_directory(self) -> bool:
        """Whether users that are not known here may be those of a directory."""
        return any(user.external for user in self._users.values())

    def is_local(self, username: str) -> bool:
        """Whether there are keys of this user's password."""
        user = self._users.get(username)
        return user is not None and not user.external

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
        """Of a user; of one without keys, some that cannot be guessed."""
        place = hash_name, username
        if place not in self._keys:
            local = self.is_local(username)
            password = self._users[username].password if local else secrets.token_hex(16)
            keys = ScramKeys.derive(hash_name, password, self.salt(username), ITERATIONS)
            if not local:
                return keys
            self._keys[place] = keys
        return self._keys[place]

    def named(self, username: str) -> User | None:
        return self._users.get(username)


class EngineUsers:
    """The engine's methods."""

    credentials: Credentials
    running: Callable[[], list[Node]]
    _cid: Callable[[str | int], int]
    _sid: Callable[[str], int]

    def add_user(
        self,
        name: str,
        password: str,
        *,
        access: str,
        scopes: list[str] | None,
        collections: list[str] | None,
        elsewhere: str,
        external: bool,
    ) -> None:
        for each in (access, elsewhere):
            if each not in ACCESS:
                raise ConfigurationError(f"no access {each!r}, only {', '.join(ACCESS)}")
        limited = scopes is not None or collections is not None
        user = User(
            name,
            password,
            access,
            frozenset(map(self._sid, scopes or ())),
            frozenset(map(self._cid, collections or ())) if limited else None,
            elsewhere,
            external,
        )
        self.credentials.add(user)
        for member in self.running():
            member.loop.call(partial(member.change_user, name, user))

    def revoke(self, name: str) -> None:
        if not self.credentials.remove(name):
            raise ConfigurationError(f"no user {name!r}", hint="add_user() adds one")
        for member in self.running():
            member.loop.call(partial(member.change_user, name, None))


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
        scopes: Iterable[str] | None = None,
        collections: Iterable[str] | None = None,
        elsewhere: Literal["none", "data", "dcp"] = "none",
        external: bool = False,
    ) -> None:
        """Add a user, in place of one of the same name: open connections have the new rights at once.

        Parameters
        ----------
        name, password
            To log in with.
        access
            Each includes the ones before: log in only; read and write documents; stream them; manage, and
            see statistics.
        scopes, collections
            What `access` is for: whole scopes, and collections as ``scope.collection``. None, both: the
            whole bucket.
        elsewhere
            Access to the rest of the bucket. ``"none"``: it does not exist for the user. ``"data"``: it is
            in the manifest, and may not be streamed.
        external
            The user is one of a directory (LDAP): the cluster has no hash of the password, so that SCRAM
            fails and PLAIN works. As soon as there is such a user, the cluster asks the directory about
            users that it does not know.

        Raises
        ------
        ConfigurationError
            There is no such access, scope or collection.
        """
        self._engine.add_user(
            name,
            password,
            access=access,
            scopes=None if scopes is None else list(scopes),
            collections=None if collections is None else list(collections),
            elsewhere=elsewhere,
            external=external,
        )

    def revoke(self, name: str) -> None:
        """Take all rights of a user: streams end with LOST_PRIVILEGES, and nobody logs in by that name."""
        self._engine.revoke(name)
