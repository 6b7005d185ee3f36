from __future__ import annotations

import base64
import hashlib
import traceback
from typing import NamedTuple

import pytest

from cbframe.errors import AuthFailError, ConfigurationError, ProtocolError
from cbframe.wire.sasl import (
    SCRAM_HASHES,
    ScramClient,
    ScramKeys,
    choose_mechanism,
    parse_attributes,
    plain_payload,
    verify_proof,
)


class Vector(NamedTuple):
    mechanism: str
    client_nonce: str
    server_nonce: str
    salt: str
    proof: str
    signature: str

    def client(self, password: str = "pencil") -> ScramClient:
        return ScramClient(self.mechanism, "user", password, lambda: self.client_nonce)

    @property
    def challenge(self) -> bytes:
        return f"r={self.client_nonce}{self.server_nonce},s={self.salt},i=4096".encode()

    @property
    def answer(self) -> bytes:
        return f"v={self.signature}".encode()


VECTORS = [
    Vector(
        "SCRAM-SHA1",
        "fyko+d2lbbFgONRv9qkxdawL",
        "3rfcNHYJY1ZVvWVs7j",
        "QSXCR+Q6sek8bf92",
        "v0X8v3Bz2T0CJGbJQyF0X+HI4Ts=",
        "rmF9pqV8S7suAoZWja4dJRkFsKQ=",
    ),
    Vector(
        "SCRAM-SHA256",
        "rOprNGfwEbeRWgbNEkqO",
        "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0",
        "W22ZaJ0SNY7soEsUEjb6gQ==",
        "dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
        "6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=",
    ),
    Vector(
        "SCRAM-SHA512",
        "rOprNGfwEbeRWgbNEkqO",
        "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0",
        "W22ZaJ0SNY7soEsUEjb6gQ==",
        "gMGXRcevScNtxZ6/8lQYpGtnsNAc3mGcmNomv+xnoOMw+3R2xNJdMNnzMlTN8PPC6wdp6dybEmDYXYTxwnYPJQ==",
        "ZQnYEgWQMFmmsM8aQMF0nDDCy/AgCzkwk8CmMZYcMg0vSVlKDanekLtifDSeVGT4+5ZxXnJq199RVG2rR7N7Zw==",
    ),
]
SHA1, SHA256, SHA512 = VECTORS
each_vector = pytest.mark.parametrize("vector", VECTORS, ids=[vector.mechanism for vector in VECTORS])


# --- the exchange


@each_vector
def test_vectors(vector: Vector) -> None:
    client = vector.client()
    assert client.first() == f"n,,n=user,r={vector.client_nonce}".encode()
    nonce = vector.client_nonce + vector.server_nonce
    assert client.final(vector.challenge) == f"c=biws,r={nonce},p={vector.proof}".encode()
    client.verify(vector.answer)


@each_vector
def test_the_server_sees_whether_the_proof_fits(vector: Vector) -> None:
    name = SCRAM_HASHES[vector.mechanism]
    keys = ScramKeys.derive(name, "pencil", base64.b64decode(vector.salt), 4096)
    final = vector.client().final(vector.challenge)
    without_proof, _, _ = final.rpartition(b",p=")
    auth_message = vector.client().first()[3:] + b"," + vector.challenge + b"," + without_proof
    proof = base64.b64decode(parse_attributes(final)["p"])
    assert verify_proof(name, keys.stored_key, auth_message, proof)
    assert base64.b64encode(keys.server_signature(name, auth_message)).decode() == vector.signature
    assert not verify_proof(name, keys.stored_key, auth_message + b"x", proof)
    assert not verify_proof(name, keys.stored_key, auth_message, bytes([proof[0] ^ 1]) + proof[1:])
    for wrong_length in (b"", proof[:-1], proof + b"\0"):
        assert not verify_proof(name, keys.stored_key, auth_message, wrong_length)
    wrong = parse_attributes(vector.client("pencils").final(vector.challenge))["p"]
    assert not verify_proof(name, keys.stored_key, auth_message, base64.b64decode(wrong))


def test_names_are_escaped() -> None:
    client = ScramClient("SCRAM-SHA1", "a=b,c=2C", "pw", lambda: "nonce")
    assert client.first() == b"n,,n=a=3Db=2Cc=3D2C,r=nonce"
    assert ScramClient("SCRAM-SHA1", "日本", "pw", lambda: "n").first() == "n,,n=日本,r=n".encode()


def test_nonces_may_hold_anything_but_commas() -> None:
    """As those of the C++ SDK do."""
    client = ScramClient("SCRAM-SHA1", "user", "pw", lambda: "a b=c\"'=")
    final = client.final(b"r=a b=c\"'==s=,s=QSXCR+Q6sek8bf92,i=4096")
    assert final.startswith(b"c=biws,r=a b=c\"'==s=,p=")


def test_unknown_attributes_are_ignored() -> None:
    plain = SHA1.client().final(SHA1.challenge)
    more = SHA1.client().final(SHA1.challenge + b",x=whatever,y=a=b")
    # They are part of what is signed, so the proof differs.
    assert plain.rpartition(b",p=")[0] == more.rpartition(b",p=")[0]


def test_a_mechanism_must_be_known() -> None:
    for name in ("PLAIN", "SCRAM-MD5", "", "scram-sha1"):
        with pytest.raises(ConfigurationError, match="no SCRAM mechanism"):
            ScramClient(name, "user", "pw", lambda: "n")


# --- a false or broken server


@each_vector
def test_a_wrong_signature(vector: Vector) -> None:
    right = base64.b64decode(vector.signature)
    wrong = base64.b64encode(bytes([right[0] ^ 1]) + right[1:])
    truncated, empty = base64.b64encode(right[:-1]), b""
    for signature in (wrong, truncated, empty, b"!!!!", b"AAA", "é".encode(), b"\xc3\xa9" * 20):
        client = vector.client()
        client.final(vector.challenge)
        with pytest.raises(AuthFailError, match="could not prove") as caught:
            client.verify(b"v=" + signature)
        assert caught.value.hint


@pytest.mark.parametrize("answer", [b"", b"e=invalid-proof", b"x", b"vv=AAAA", b"v", b"\xff", b",", b"x=v"])
def test_a_missing_signature(answer: bytes) -> None:
    client = SHA1.client()
    client.final(SHA1.challenge)
    with pytest.raises(AuthFailError, match="could not prove"):
        client.verify(answer)


def test_a_signature_that_proves_nothing() -> None:
    """That of a server that skips the exchange; and one for another password."""
    another = SHA1.client("pencils")
    another.final(SHA1.challenge)
    for client, answer in ((SHA1.client(), SHA1.answer), (SHA1.client(), b"v="), (another, SHA1.answer)):
        with pytest.raises(AuthFailError):
            client.verify(answer)


NONCE = SHA1.client_nonce
UNUSABLE = "no usable salt or iteration count"


def challenge(nonce: str = f"{NONCE}x", salt: str = SHA1.salt, iterations: object = 4096) -> bytes:
    return f"r={nonce},s={salt},i={iterations}".encode()


@pytest.mark.parametrize(
    ("said", "message"),
    [
        *(
            (challenge(nonce), "does not extend the client's nonce")
            for nonce in ("", NONCE, NONCE[:-1], "other", f"x{NONCE}1", "FYKO")
        ),
        *(
            (challenge(iterations=number), "iterations")
            for number in (0, 1, 4095, 10_000_001, 2**31, 10**30, -4096)
        ),
        *(
            (challenge(iterations=text), UNUSABLE)
            for text in ("", "x", "4096x", "0x1000", "4e3", "4096.0", "9" * 5000)
        ),
        *(
            (challenge(salt=salt), "no usable salt")
            for salt in ("!", "QSX", SHA1.salt[:-1], "é", "QSXC R+Q6")
        ),
        (f"r={NONCE}x,i=4096".encode(), UNUSABLE),
        (f"r={NONCE}x,s={SHA1.salt}".encode(), UNUSABLE),
        (b"m=ext," + SHA1.challenge, "unknown extension"),
        (SHA1.challenge + b",m=ext", "unknown extension"),
        *((said, "") for said in (b"", b",", b"garbage", b"r", b"=x", b"rr=x", b"\xff\xfe", b"r=x,,s=y")),
    ],
)
def test_a_challenge_that_is_refused(said: bytes, message: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        SHA1.client().final(said)
    assert message in caught.value.message


def test_the_least_iterations() -> None:
    assert SHA1.client().final(SHA1.challenge)
    assert SHA1.client().final(SHA1.challenge.replace(b"4096", b"4097"))


# --- PLAIN and the choice


def test_plain() -> None:
    assert plain_payload("u", "p") == b"\0u\0p"
    assert plain_payload("é", "日本") == "\0é\0日本".encode()
    assert plain_payload("", "") == b"\0\0"


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        ("SCRAM-SHA512 SCRAM-SHA256 SCRAM-SHA1 PLAIN", "SCRAM-SHA512"),
        ("PLAIN SCRAM-SHA1 SCRAM-SHA256", "SCRAM-SHA256"),
        ("scram-sha1 plain", "SCRAM-SHA1"),
        ("OAUTHBEARER SCRAM-SHA1", "SCRAM-SHA1"),
    ],
)
def test_the_best_mechanism_is_chosen(offered: str, chosen: str) -> None:
    for allow_plain in (False, True):
        assert choose_mechanism(offered.split(), allow_plain=allow_plain) == chosen


def test_plain_only_where_it_is_allowed() -> None:
    assert choose_mechanism(["PLAIN"], allow_plain=True) == "PLAIN"
    with pytest.raises(AuthFailError, match="clear text") as caught:
        choose_mechanism(["PLAIN", "OAUTHBEARER"], allow_plain=False)
    assert "TLS" in str(caught.value)
    for offered in ([], ["OAUTHBEARER"], [""]):
        with pytest.raises(AuthFailError, match="no known authentication mechanism"):
            choose_mechanism(offered, allow_plain=True)


# --- secrets


def test_no_secret_in_a_repr() -> None:
    keys = ScramKeys.derive("sha1", "hunter2", b"salt", 4096)
    client = ScramClient("SCRAM-SHA1", "user", "hunter2", lambda: SHA1.client_nonce)
    client.final(SHA1.challenge)
    texts = [repr(keys), str(keys), repr(client), str(client), f"{keys}{client}"]
    secrets = ["hunter2", repr(keys.client_key), keys.client_key.hex(), repr(keys.stored_key)]
    assert not [text for text in texts for secret in secrets if secret in text]
    assert texts[0] == "ScramKeys(<secret>)"


def test_no_secret_in_an_error() -> None:
    client = ScramClient("SCRAM-SHA1", "user", "hunter2", lambda: SHA1.client_nonce)
    answer = b"v=" + base64.b64encode(hashlib.sha1(b"hunter2").digest())
    for step, argument in [(client.final, b"r=x"), (client.final, b"\xff"), (client.verify, answer)]:
        with pytest.raises((ProtocolError, AuthFailError)) as caught:
            step(argument)
        shown = "".join(traceback.format_exception(caught.value))
        assert "hunter2" not in shown
        assert SHA1.client_nonce not in shown
