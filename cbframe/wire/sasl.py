"""SASL: PLAIN and SCRAM, both sides' arithmetic, client side's steps (RFC 5802, RFC 7677).

The dialect of the data service: no channel binding, ``=2C`` and ``=3D`` in user names, and the
server's signature must be verified, since a failed one is the only sign of a false server.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from cbframe.errors import AuthFailError, ConfigurationError, ProtocolError

SCRAM_HASHES = {"SCRAM-SHA512": "sha512", "SCRAM-SHA256": "sha256", "SCRAM-SHA1": "sha1"}
"""Mechanisms in order of preference, and the hash of each."""
_GS2 = "n,,"
_MIN_ITERATIONS = 4096
_MAX_ITERATIONS = 10_000_000
"""A server that asks for more would hold the client in arithmetic for minutes."""


def choose_mechanism(offered: Iterable[str], *, allow_plain: bool) -> str:
    """The best mechanism that both sides know."""
    names = {name.upper() for name in offered}
    for name in SCRAM_HASHES:
        if name in names:
            return name
    if "PLAIN" in names:
        if allow_plain:
            return "PLAIN"
        raise AuthFailError(
            "the server offers only PLAIN, which would send the password in clear text",
            hint="connect with TLS (couchbases://), or allow that with "
            "options=BucketDataSourceOptions(allow_plain=True)",
        )
    raise AuthFailError(
        f"the server offers no known authentication mechanism: {' '.join(sorted(names)) or 'none'}"
    )


def plain_payload(username: str, password: str) -> bytes:
    """The one message of PLAIN."""
    return b"\0" + username.encode() + b"\0" + password.encode()


@dataclass(frozen=True, slots=True)
class ScramKeys:
    """What a password becomes under a salt; the server stores the last two, never the password."""

    client_key: bytes
    stored_key: bytes
    server_key: bytes

    def __repr__(self) -> str:
        return "ScramKeys(<secret>)"

    @classmethod
    def derive(cls, hash_name: str, password: str, salt: bytes, iterations: int) -> ScramKeys:
        salted = hashlib.pbkdf2_hmac(hash_name, password.encode(), salt, iterations)
        client = hmac.digest(salted, b"Client Key", hash_name)
        stored = hashlib.new(hash_name, client).digest()
        return cls(client, stored, hmac.digest(salted, b"Server Key", hash_name))

    def proof(self, hash_name: str, auth_message: bytes) -> bytes:
        """What the client sends to show that it knows the password."""
        return _xor(self.client_key, hmac.digest(self.stored_key, auth_message, hash_name))

    def server_signature(self, hash_name: str, auth_message: bytes) -> bytes:
        """What the server sends to show that it knows the keys."""
        return hmac.digest(self.server_key, auth_message, hash_name)


def verify_proof(hash_name: str, stored_key: bytes, auth_message: bytes, proof: bytes) -> bool:
    """Server side: whether a client's proof fits the stored key."""
    if len(proof) != len(stored_key):
        return False
    client_key = _xor(proof, hmac.digest(stored_key, auth_message, hash_name))
    return hmac.compare_digest(hashlib.new(hash_name, client_key).digest(), stored_key)


class ScramClient:
    """The client's side of one SCRAM authentication.

    Notes
    -----
    ``first()`` → send; ``final(challenge)`` → send; ``verify(answer)`` raises unless the server
    knows the password too.
    """

    def __init__(self, mechanism: str, username: str, password: str, nonce: Callable[[], str]) -> None:
        if mechanism not in SCRAM_HASHES:
            raise ConfigurationError(f"{mechanism} is no SCRAM mechanism")
        self._hash = SCRAM_HASHES[mechanism]
        self._password = password
        self._nonce = nonce()
        user = username.replace("=", "=3D").replace(",", "=2C")
        self._first_bare = f"n={user},r={self._nonce}"
        self._server_signature: bytes | None = None

    def __repr__(self) -> str:
        return f"ScramClient({self._hash})"

    def first(self) -> bytes:
        """The first message."""
        return (_GS2 + self._first_bare).encode()

    def final(self, challenge: bytes) -> bytes:
        """The answer to the server's challenge."""
        fields = parse_attributes(challenge)
        if "m" in fields:
            raise ProtocolError("the SCRAM challenge demands an unknown extension")
        nonce = fields.get("r", "")
        if not nonce.startswith(self._nonce) or len(nonce) <= len(self._nonce):
            raise ProtocolError("the SCRAM challenge does not extend the client's nonce")
        try:
            salt = base64.b64decode(fields["s"], validate=True)
            iterations = int(fields["i"])
        except (KeyError, ValueError, binascii.Error) as exc:
            raise ProtocolError("the SCRAM challenge has no usable salt or iteration count") from exc
        if not _MIN_ITERATIONS <= iterations <= _MAX_ITERATIONS:
            raise ProtocolError(
                f"the SCRAM challenge asks for {iterations} iterations, "
                f"outside {_MIN_ITERATIONS}-{_MAX_ITERATIONS}"
            )
        keys = ScramKeys.derive(self._hash, self._password, salt, iterations)
        without_proof = f"c={base64.b64encode(_GS2.encode()).decode()},r={nonce}"
        auth_message = b",".join((self._first_bare.encode(), challenge, without_proof.encode()))
        self._server_signature = keys.server_signature(self._hash, auth_message)
        proof = base64.b64encode(keys.proof(self._hash, auth_message)).decode()
        return f"{without_proof},p={proof}".encode()

    def verify(self, answer: bytes) -> None:
        """Check the server's signature."""
        try:
            signature = base64.b64decode(parse_attributes(answer).get("v", ""), validate=True)
        except (ValueError, ProtocolError):  # no base64, or no attributes at all
            signature = b""
        expected = self._server_signature
        if expected is None or not hmac.compare_digest(signature, expected):
            raise AuthFailError(
                "the server could not prove that it knows the password",
                hint="this may not be the server that you meant: check the address",
            )


def parse_attributes(message: bytes) -> dict[str, str]:
    """``a=…,b=…`` as a mapping; values may contain ``=``."""
    try:
        text = message.decode()
    except UnicodeDecodeError as exc:
        raise ProtocolError("a SCRAM message is not UTF-8") from exc
    fields: dict[str, str] = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        if not equals or len(name) != 1:
            raise ProtocolError("a SCRAM message is malformed")
        fields.setdefault(name, value)
    return fields


def _xor(left: bytes, right: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(left, right, strict=True))
