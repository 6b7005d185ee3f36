"""The server's side of SASL: PLAIN and SCRAM."""

from __future__ import annotations

import base64
import binascii
import secrets
from dataclasses import dataclass

from cbframe.errors import ProtocolError
from cbframe.local.users import ITERATIONS, Credentials, User
from cbframe.wire.constants import Status
from cbframe.wire.sasl import SCRAM_HASHES, parse_attributes, verify_proof

MECHANISMS = " ".join((*SCRAM_HASHES, "PLAIN"))


@dataclass(frozen=True, slots=True)
class Answer:
    """Status and value of a SASL response."""

    status: Status
    value: bytes = b""


_FAILED = Answer(Status.AUTH_ERROR)
_MALFORMED = Answer(Status.EINVAL)


class SaslServer:
    """One connection's authentication, from AUTH to the last STEP."""

    def __init__(self, credentials: Credentials, *, scram_for_all: bool = True) -> None:
        self._credentials = credentials
        self._scram_for_all = scram_for_all
        self._pending: _Scram | None = None
        self.user: User | None = None
        """Who has logged in."""

    def auth(self, mechanism: str, payload: bytes) -> Answer:
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
            return _FAILED if self.user is None else Answer(Status.SUCCESS)
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
        return Answer(Status.AUTH_CONTINUE, self._pending.challenge)

    def step(self, payload: bytes) -> Answer:
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
        keys = self._credentials.keys(self._hash, self.user)
        if not verify_proof(self._hash, keys.stored_key, message, proof):
            return _FAILED
        signature = base64.b64encode(keys.server_signature(self._hash, message))
        return Answer(Status.SUCCESS, b"v=" + signature)
