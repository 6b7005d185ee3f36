"""The server's side of SASL: one user, PLAIN and SCRAM."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from dataclasses import dataclass

from cbframe.errors import ProtocolError
from cbframe.wire.constants import Status
from cbframe.wire.sasl import SCRAM_HASHES, ScramKeys, parse_attributes, verify_proof

MECHANISMS = " ".join((*SCRAM_HASHES, "PLAIN"))
_ITERATIONS = 4096


@dataclass(frozen=True, slots=True)
class Answer:
    """Status and value of a SASL response."""

    status: Status
    value: bytes = b""


_FAILED = Answer(Status.AUTH_ERROR)
_MALFORMED = Answer(Status.EINVAL)


class Credentials:
    """User name and password of the cluster, and the keys that SCRAM needs of them."""

    def __init__(self, username: str, password: str) -> None:
        self.username = username
        self._password = password
        # One salt per user name, also for names that do not exist: a challenge tells nothing.
        self._salt_key = secrets.token_bytes(16)
        self._keys: dict[str, ScramKeys] = {}

    def __repr__(self) -> str:
        return f"Credentials({self.username!r})"

    def accepts(self, username: str, password: str) -> bool:
        same_user = hmac.compare_digest(username.encode(), self.username.encode())
        return same_user & hmac.compare_digest(password.encode(), self._password.encode())

    def certifies(self, common_name: str | None) -> bool:
        """Whether a verified client certificate with this name is the user's."""
        return common_name == self.username

    def salt(self, username: str) -> bytes:
        return hmac.digest(self._salt_key, username.encode(), "sha256")[:16]

    def keys(self, hash_name: str) -> ScramKeys:
        if hash_name not in self._keys:
            self._keys[hash_name] = ScramKeys.derive(
                hash_name, self._password, self.salt(self.username), _ITERATIONS
            )
        return self._keys[hash_name]


class SaslServer:
    """One connection's authentication, from AUTH to the last STEP."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self._pending: _Scram | None = None

    def auth(self, mechanism: str, payload: bytes) -> Answer:
        """Answer SASL_AUTH."""
        if self._pending is not None:
            return _MALFORMED
        name = mechanism.upper()
        if name == "PLAIN":
            parts = payload.split(b"\0")
            if len(parts) != 3:
                return _MALFORMED
            user, password = (part.decode(errors="replace") for part in parts[1:])
            return Answer(Status.SUCCESS) if self._credentials.accepts(user, password) else _FAILED
        if name not in SCRAM_HASHES:
            return _FAILED
        try:
            self._pending = _Scram(SCRAM_HASHES[name], payload, self._credentials)
        except ProtocolError:
            return _MALFORMED
        return Answer(Status.AUTH_CONTINUE, self._pending.challenge)

    def step(self, payload: bytes) -> Answer:
        """Answer SASL_STEP."""
        scram, self._pending = self._pending, None
        if scram is None:
            return _MALFORMED
        try:
            return scram.finish(payload)
        except ProtocolError:
            return _MALFORMED


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
        self._user = fields["n"].replace("=2C", ",").replace("=3D", "=")
        self._nonce = fields["r"] + secrets.token_hex(12)
        salt = base64.b64encode(credentials.salt(self._user)).decode()
        self.challenge = f"r={self._nonce},s={salt},i={_ITERATIONS}".encode()

    def finish(self, final: bytes) -> Answer:
        fields = parse_attributes(final)
        without_proof, _, proof_text = final.rpartition(b",p=")
        if fields.get("r") != self._nonce or fields.get("c") != "biws":
            raise ProtocolError("a SCRAM final message belongs to another exchange")
        try:
            proof = base64.b64decode(proof_text, validate=True)
        except binascii.Error as exc:
            raise ProtocolError("a SCRAM proof is no base64") from exc
        message = b",".join((self._first_bare, self.challenge, without_proof))
        keys = self._credentials.keys(self._hash)
        known = hmac.compare_digest(
            hashlib.sha256(self._user.encode()).digest(),
            hashlib.sha256(self._credentials.username.encode()).digest(),
        )
        if not (verify_proof(self._hash, keys.stored_key, message, proof) and known):
            return _FAILED
        signature = base64.b64encode(keys.server_signature(self._hash, message))
        return Answer(Status.SUCCESS, b"v=" + signature)
