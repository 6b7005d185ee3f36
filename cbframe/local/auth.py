"""Users: their passwords, what they may do, what exists for them, and how they log in.

Privileges are checked as a node does: kv_engine ``rbac/privilege_database.cc``.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import secrets
from dataclasses import dataclass, field
from itertools import chain
from typing import NamedTuple

from cbframe.errors import ProtocolError
from cbframe.local.bucket import LocalManifest
from cbframe.wire.constants import Status
from cbframe.wire.sasl import SCRAM_HASHES, ScramKeys, parse_attributes, verify_proof

MECHANISMS = " ".join((*SCRAM_HASHES, "PLAIN"))
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
        self, access: str, manifest: LocalManifest, scope: int | None = None, collection: int | None = None
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

    def sees(self, manifest: LocalManifest, scope: int, collection: int | None) -> bool:
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


class SaslAnswer(NamedTuple):
    """Status and value of a SASL response."""

    status: Status
    value: bytes = b""


_FAILED = SaslAnswer(Status.AUTH_ERROR)
_MALFORMED = SaslAnswer(Status.EINVAL)


class SaslServer:
    """One connection's authentication, from AUTH to the last STEP."""

    def __init__(self, credentials: Credentials, *, scram_for_all: bool = True) -> None:
        self._credentials = credentials
        self._scram_for_all = scram_for_all
        self._pending: _Scram | None = None
        self.user: User | None = None
        """Who has logged in."""

    def auth(self, mechanism: str, payload: bytes) -> SaslAnswer:
        """Answer SASL_AUTH."""
        self.user = None
        if self._pending is not None:
            return _MALFORMED
        name = mechanism.upper()
        if name == "PLAIN":
            parts = payload.split(b"\0")
            if len(parts) != 3:
                return _MALFORMED
            user, password = (part.decode(errors="replace") for part in parts[1:])
            self.user = self._credentials.find(user, password)
            return _FAILED if self.user is None else SaslAnswer(Status.SUCCESS)
        if name not in SCRAM_HASHES:
            return _FAILED
        try:
            self._pending = _Scram(SCRAM_HASHES[name], payload, self._credentials)
        except ProtocolError:
            return _MALFORMED
        known = self._credentials.is_local(self._pending.user)
        if not (self._scram_for_all or known) and self._credentials.asks_directory:
            # The directory is asked instead, and it does not know SCRAM.
            self._pending = None
            return _FAILED
        return SaslAnswer(Status.AUTH_CONTINUE, self._pending.challenge)

    def step(self, payload: bytes) -> SaslAnswer:
        """Answer SASL_STEP."""
        scram, self._pending = self._pending, None
        if scram is None:
            return _MALFORMED
        try:
            answer = scram.finish(payload)
        except ProtocolError:
            return _MALFORMED
        if answer.status is Status.SUCCESS:
            self.user = self._credentials.named(scram.user)
        return answer


class _Scram:
    def __init__(self, hash_name: str, first: bytes, credentials: Credentials) -> None:
        self._hash = hash_name
        self._credentials = credentials
        gs2, _, rest = first.partition(b",")
        _, comma, self._first_bare = rest.partition(b",")
        if gs2 != b"n" or not comma:
            raise ProtocolError("SCRAM channel binding is not supported")
        fields = parse_attributes(self._first_bare)
        if set(fields) != {"n", "r"} or not fields["r"]:
            raise ProtocolError("a SCRAM first message has a name and a nonce")
        self.user = fields["n"].replace("=2C", ",").replace("=3D", "=")
        self._nonce = fields["r"] + secrets.token_hex(12)
        salt = base64.b64encode(credentials.salt(self.user)).decode()
        self.challenge = f"r={self._nonce},s={salt},i={ITERATIONS}".encode()

    def finish(self, final: bytes) -> SaslAnswer:
        fields = parse_attributes(final)
        without_proof, _, proof_text = final.rpartition(b",p=")
        if fields.get("r") != self._nonce or fields.get("c") != "biws":
            raise ProtocolError("a SCRAM final message belongs to another exchange")
        try:
            proof = base64.b64decode(proof_text, validate=True)
        except binascii.Error as exc:
            raise ProtocolError("a SCRAM proof is no base64") from exc
        message = b",".join((self._first_bare, self.challenge, without_proof))
        keys = self._credentials.keys(self._hash, self.user)
        if not verify_proof(self._hash, keys.stored_key, message, proof):
            return _FAILED
        signature = base64.b64encode(keys.server_signature(self._hash, message))
        return SaslAnswer(Status.SUCCESS, b"v=" + signature)
