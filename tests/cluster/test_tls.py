"""Who is trusted, from PEM text, files and the package itself; errors about certificates."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import pickle
import re
import socket
import ssl
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from servers import TlsServer

from cbframe import CertificateAuthenticator, ConfigurationError, ConnectError, PasswordAuthenticator
from cbframe.cluster import tls
from cbframe.cluster.connection_string import parse_connection_string
from cbframe.cluster.tls import Peer, capella_root, client_context, make_tls_context, peer_of, tls_error

PACKAGE = Path(tls.__file__).parent.parent
CAPELLA_SHA256 = "d0937e9c934b2dab94ed7a4b91c548e79eecca992b27ab6d2620807e68657c0e"
CAPELLA_HOST = "cb.x1y2z3.cloud.couchbase.com"
PLAIN = PasswordAuthenticator("u", "p")


class Issued(NamedTuple):
    """An authority and what it issued, as PEM text."""

    ca: str
    other_ca: str
    chain: str
    key: str


@pytest.fixture(scope="module")
def issued() -> Issued:
    ca, other = trustme.CA(), trustme.CA()
    leaf = ca.issue_cert("127.0.0.1", CAPELLA_HOST)
    texts = (
        *(each.cert_pem.bytes() for each in (ca, other)),
        b"".join(each.bytes() for each in leaf.cert_chain_pems),
        leaf.private_key_pem.bytes(),
    )
    return Issued(*(text.decode() for text in texts))


def serving(chain: str, key: str, folder: Path) -> TlsServer:
    file = folder / "server.pem"
    file.write_text(chain + key)
    return TlsServer(file)


@pytest.fixture
def server(issued: Issued, tmp_path: Path) -> Iterator[TlsServer]:
    with serving(issued.chain, issued.key, tmp_path) as running:
        yield running


def peer(server: TlsServer, context: ssl.SSLContext | None, host: str = "127.0.0.1") -> Peer:
    """What the server shows to a client with this context."""
    assert context is not None
    with (
        socket.create_connection(("127.0.0.1", server.port), timeout=20) as plain,
        context.wrap_socket(plain, server_hostname=host) as secured,
    ):
        return peer_of(secured)


def refusal(server: TlsServer, context: ssl.SSLContext | None, host: str = "127.0.0.1") -> ConnectError:
    """The error that a handshake of a client with this context becomes."""
    with pytest.raises(ssl.SSLError) as caught:
        peer(server, context, host)
    error = tls_error(caught.value, f"{host}:11207")
    assert error is not None
    return error


def context_for(target: str, given: Any = None) -> ssl.SSLContext | None:
    return client_context(given, PLAIN, parse_connection_string(target))


def trusted(context: ssl.SSLContext | None) -> set[bytes]:
    assert context is not None
    return {hashlib.sha256(der).digest() for der in context.get_ca_certs(True)}


# --- the root certificate of Couchbase's cloud


def test_capellas_root_is_in_the_package() -> None:
    """As data of the package as it is installed: the bytes that the SDKs have."""
    text = resources.files("cbframe.cluster").joinpath("capella_root_ca.pem").read_text("ascii")
    assert text == capella_root()
    assert hashlib.sha256(ssl.PEM_cert_to_DER_cert(text)).hexdigest() == CAPELLA_SHA256
    certificate = x509.load_pem_x509_certificate(text.encode())
    assert certificate.not_valid_after_utc == dt.datetime(2029, 12, 6, 23, 12, 59, tzinfo=dt.UTC)


def test_no_other_certificate_or_key_is_in_the_package() -> None:
    block = re.compile(rb"-----BEGIN [A-Z0-9 ]+-----\s+[A-Za-z0-9+/=:-]{20}")
    files = [path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert len(files) > 100
    with_pem = [path.name for path in files if block.search(path.read_bytes())]
    assert with_pem == ["capella_root_ca.pem"]
    assert capella_root().count("-----BEGIN ") == 1
    others = {".der", ".crt", ".cer", ".key", ".p12", ".pfx", ".jks", ".p8"}
    assert not [path.name for path in files if path.suffix in others]


@pytest.mark.parametrize(
    ("target", "bundled"),
    [
        (f"couchbases://{CAPELLA_HOST}/b", True),
        ("couchbases://CB.X.Cloud.Couchbase.COM./b", True),
        ("couchbases://a.cloud.couchbase.com:11208,b.cloud.couchbase.com:11209", True),
        ("couchbases://a.cloud.couchbase.com,db.example.com", False),
        ("couchbases://evilcloud.couchbase.com", False),
        ("couchbases://cloud.couchbase.com.example.com", False),
        ("couchbases://db.example.com/b", False),
        ("https://db.example.com/b", False),
    ],
)
def test_it_is_trusted_beside_the_systems_for_its_hosts(target: str, bundled: bool) -> None:
    root = bytes.fromhex(CAPELLA_SHA256)
    found = trusted(context_for(target))
    assert (root in found) == bundled
    assert found - {root} >= trusted(ssl.create_default_context()) - {root}


def test_an_authority_that_is_named_is_the_only_one(issued: Issued, tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_text(issued.ca)
    only = trusted(make_tls_context(issued.ca))
    assert len(only) == 1
    assert trusted(context_for(f"couchbases://{CAPELLA_HOST}", issued.ca)) == only
    assert trusted(context_for(f"couchbases://{CAPELLA_HOST}?certpath={file}")) == only
    assert trusted(context_for(f"couchbases://h?trust_certificate={file}")) == only
    # An argument wins over an option, which is not read then.
    assert trusted(context_for("couchbases://h?trust_certificate=absent.pem", issued.ca)) == only
    with pytest.raises(ConfigurationError, match=r"trust_certificate='absent.pem' is no file"):
        context_for("couchbases://h?trust_certificate=absent.pem")


# --- PEM text


def test_forms_of_pem(issued: Issued, server: TlsServer, tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_text(issued.ca)
    one_line = issued.ca.replace("\n", "\\n")
    bundle = f"# Autorität\n{issued.other_ca}\nsubject=/O=x\n{issued.ca}trailing text"
    forms: list[Any] = [
        file,
        str(file),
        issued.ca,
        issued.ca.encode(),
        bytearray(issued.ca.encode()),
        issued.ca.replace("\n", "\r\n"),
        issued.ca.strip(),
        one_line,
        " ".join(issued.ca.split("\n")),
        bundle,
        issued.ca * 2,
    ]
    for form in forms:
        assert peer(server, make_tls_context(form)).authority, form
    # The certificate of the node itself, too, whatever the version of Python.
    assert peer(server, make_tls_context(issued.chain)).issuer


def _cut(text: str) -> str:
    return text[: len(text) // 2]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda i: base64.b64decode("".join(i.ca.split("\n")[1:-2])), "is bytes, but not PEM"),
        (lambda _: b"/etc/ca.pem", "is bytes, but not PEM"),
        (lambda i: _cut(i.ca), "is cut off, or holds no certificate"),
        (lambda i: i.ca + _cut(i.ca), "is cut off, or holds no certificate"),
        (lambda i: i.ca.replace("\nMI", "\n!!"), "certificate 1 of 1 .* cannot be read"),
        (lambda i: i.ca + i.ca.replace("\nMI", "\nAA"), "certificate 2 of 2 .* cannot be read"),
        (
            lambda i: i.ca + re.sub("E-----\n.*\n-----END", "E-----\n-----END", i.ca, flags=re.DOTALL),
            "2 of 2 .* cannot",
        ),
        (
            lambda i: i.ca + re.sub("E-----\n.*\n-----END", "E-----\nAAAA\n-----END", i.ca, flags=re.DOTALL),
            "2 of 2 ",
        ),
        (lambda i: i.chain + i.key, "holds a .*PRIVATE KEY"),
        (lambda i: i.key, "holds a .*PRIVATE KEY"),
        (lambda i: _cut(i.key), "holds a PRIVATE KEY|holds no certificate"),
        (lambda i: i.ca.replace("CERTIFICATE", "TRUSTED CERTIFICATE"), "holds a TRUSTED CERTIFICATE"),
        (lambda i: i.ca.replace("CERTIFICATE", "X509 CRL"), "holds a X509 CRL"),
        (lambda i: "\n".join(i.key.split("\n")[1:]), "neither the path of a file nor PEM text"),
        (lambda i: "".join(i.ca.split("\n")[1:-2]) * 2, "neither the path of a file nor PEM text"),
        (lambda i: Path(i.key), "neither the path of a file nor PEM text"),
        (lambda _: "a\0b", "neither the path of a file nor PEM text"),
        (lambda _: "", "neither the path of a file nor PEM text"),
        (lambda _: 5, "tls= is a int"),
        (lambda _: True, "tls= is a bool"),
    ],
)
def test_text_that_is_none(issued: Issued, spoil: Any, words: str) -> None:
    value = spoil(issued)
    with pytest.raises(ConfigurationError, match=words) as caught:
        make_tls_context(value)
    assert caught.value.hint
    shown = f"{caught.value}{caught.value!r}"
    for line in (*issued.key.split("\n")[1:-2], *issued.ca.split("\n")[1:-2]):
        assert line[:20] not in shown


# --- certificates that are not in the strict form


def _without_key_identifiers(folder: Path) -> tuple[str, TlsServer]:
    """An authority and a server whose certificates have no key identifiers, as many clusters' have."""
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in ("our authority", "node")]
    now = dt.datetime.now(dt.UTC)
    texts = []
    for n, extension in enumerate(
        (
            x509.BasicConstraints(ca=True, path_length=None),
            x509.SubjectAlternativeName([x509.DNSName("node.example.com")]),
        )
    ):
        builder = x509.CertificateBuilder(names[0], names[n], keys[n].public_key(), n + 1)
        builder = builder.not_valid_before(now - dt.timedelta(days=1)).not_valid_after(
            now + dt.timedelta(days=900)
        )
        signed = builder.add_extension(extension, critical=n == 0).sign(keys[0], hashes.SHA256())
        texts.append(signed.public_bytes(serialization.Encoding.PEM).decode())
    key = keys[1].private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return texts[0], serving(texts[1], key.decode(), folder)


def test_certificates_without_key_identifiers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with Python 3.13, whose default contexts are strict."""
    original = ssl.create_default_context

    def strict(**arguments: Any) -> ssl.SSLContext:
        context = original(**arguments)
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        return context

    monkeypatch.setattr(ssl, "create_default_context", strict)
    host = "node.example.com"
    authority, server = _without_key_identifiers(tmp_path)
    with server:
        file = tmp_path / "authority.pem"
        file.write_text(authority)
        for given in (authority, file):
            found = peer(server, make_tls_context(given), host)
            assert (found.authority, found.issuer) == ("CN=our authority", "CN=our authority")
        # Everything else is verified all the same.
        assert "mismatch" in refusal(server, make_tls_context(authority), "other.example.com").message
        assert "unable to get local issuer" in refusal(server, make_tls_context(capella_root()), host).message
        # A context of one's own is taken as it is.
        own = strict(cadata=authority)
        assert make_tls_context(own) is own
        error = refusal(server, own, host)
        assert "certificate is not accepted" in error.message
        assert error.hint is not None
        assert "tls='ca.pem'" in error.hint
        assert "context.verify_flags &= ~ssl.VERIFY_X509_STRICT" in error.hint
        assert error.permanent
        own.verify_flags &= ~ssl.VERIFY_X509_STRICT
        assert peer(server, own, host).authority
    # The system's authorities are held to Python's own defaults.
    for target, is_strict in (("couchbases://h", True), (f"couchbases://{CAPELLA_HOST}", False)):
        context = context_for(target)
        assert context is not None
        assert bool(context.verify_flags & ssl.VERIFY_X509_STRICT) == is_strict
        assert context.verify_mode == ssl.CERT_REQUIRED
        assert context.check_hostname


# --- who vouched


def test_the_authority(issued: Issued, server: TlsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = peer(server, make_tls_context(issued.ca))
    assert alone.version.startswith("TLS")
    assert not alone.bundled
    assert alone.authority == alone.issuer
    assert alone.until > 0
    # By its name among several, or as the bundled one.
    assert peer(server, make_tls_context(issued.other_ca + issued.ca)) == alone
    monkeypatch.setattr(tls, "capella_root", lambda: issued.ca)
    context = context_for(f"couchbases://{CAPELLA_HOST}")
    assert peer(server, context, CAPELLA_HOST) == alone._replace(bundled=True)


def test_the_authority_of_an_intermediate(tmp_path: Path) -> None:
    root, other = trustme.CA(), trustme.CA()
    middle = root.create_child_ca()
    leaf = middle.issue_cert("127.0.0.1")
    chain = b"".join(each.bytes() for each in leaf.cert_chain_pems).decode()
    trust = root.cert_pem.bytes() + other.cert_pem.bytes()
    with serving(chain, leaf.private_key_pem.bytes().decode(), tmp_path) as server:
        alone = peer(server, make_tls_context(root.cert_pem.bytes()))
        assert alone.authority
        assert alone.authority != alone.issuer
        among = peer(server, make_tls_context(trust))
        assert among.issuer == alone.issuer
        # Names alone do not say it. Python 3.13 gives the chain, which is a stand-in here before that.
        known = hasattr(ssl.SSLSocket, "get_verified_chain")
        assert among.authority == (alone.authority if known else "")
        ders = [ssl.PEM_cert_to_DER_cert(ca.cert_pem.bytes().decode()) for ca in (middle, root)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ssl.SSLSocket, "get_verified_chain", lambda _: ders, raising=False)
            assert peer(server, make_tls_context(trust)) == alone


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("node.example.com", "tls='ca.pem'"),
        (CAPELLA_HOST, "leave tls= out: Capella's root certificate comes with"),
    ],
)
def test_hints_for_an_unknown_authority(issued: Issued, server: TlsServer, host: str, words: str) -> None:
    error = refusal(server, make_tls_context(issued.other_ca), host)
    assert error.hint is not None
    assert words in error.hint


# --- client certificates


def test_a_client_certificate_as_text(
    issued: Issued, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "private"))
    (tmp_path / "private").mkdir()
    monkeypatch.setattr("tempfile.tempdir", None)
    seen: list[int] = []
    original = ssl.SSLContext.load_cert_chain

    def look(context: ssl.SSLContext, *paths: Any) -> None:
        seen.extend(Path(path).stat().st_mode & 0o777 for path in paths[:2] if path)
        original(context, *paths)

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", look)
    target = parse_connection_string("couchbases://h")
    forms: list[tuple[Any, ...]] = [
        (issued.chain, issued.key),
        (issued.chain.encode(), issued.key.encode()),
        (issued.key + issued.chain,),
    ]
    for form in forms:
        auth = CertificateAuthenticator(*form)
        for each in (auth, pickle.loads(pickle.dumps(auth))):
            assert client_context(issued.ca, each, target) is not None
            assert each == auth
        assert auth.holds_key
        assert issued.key.split("\n")[1] not in repr(auth)
        assert issued.chain.split("\n")[1] not in repr(auth)
    assert seen == [0o600] * 10
    assert not list((tmp_path / "private").iterdir())


def test_the_repr_shows_paths_only(issued: Issued) -> None:
    shown = "CertificateAuthenticator(certfile='client.pem', keyfile=<PEM text>)"
    assert repr(CertificateAuthenticator(Path("client.pem"), issued.key, "s3cret")) == shown
    assert repr(CertificateAuthenticator()) == "CertificateAuthenticator()"
    assert not CertificateAuthenticator("client.pem", "client.key").holds_key
    assert CertificateAuthenticator("client.pem", "client.key", "s3cret").holds_key


def test_client_certificates_that_are_none(issued: Issued, tmp_path: Path) -> None:
    target = parse_connection_string("couchbases://h")
    body = "\n".join(issued.key.split("\n")[1:])
    for pair, words in (
        ((issued.chain, body), "keyfile is neither the path of a file nor PEM text"),
        ((issued.chain, b"\x30\x82"), "keyfile is bytes, but not PEM"),
        ((issued.chain, 5), "keyfile is a int"),
        ((body,), "certfile is neither the path"),
    ):
        with pytest.raises(ConfigurationError, match=words) as caught:
            CertificateAuthenticator(*pair)  # type: ignore[arg-type]
        assert issued.key.split("\n")[1] not in f"{caught.value}{caught.value!r}"
    key = issued.key.replace("PRIVATE", "PRIVATE PRIVATE")
    for pair in ((issued.chain,), (issued.chain, key), (issued.ca, issued.key), (issued.key, issued.chain)):
        with pytest.raises(
            ConfigurationError, match="client certificate in PEM text cannot be used"
        ) as caught:
            client_context(issued.ca, CertificateAuthenticator(*pair), target)
        assert str(tmp_path) not in str(caught.value)
        assert issued.key.split("\n")[1] not in f"{caught.value}{caught.value!r}"


@pytest.mark.parametrize(
    ("text", "message", "permanent"),
    [
        ("record layer failure", "the port does not speak TLS", True),
        ("something new", "TLS failed: something new", False),
    ],
)
def test_what_python_has_no_name_for(text: str, message: str, permanent: bool) -> None:
    """What Python 3.13 raises with OpenSSL 3.2 and later: it knows the text only."""
    nameless = ssl.SSLError(1, f"[SSL] {text} (_ssl.c:1020)")
    nameless.reason = None  # type: ignore[assignment]
    error = tls_error(nameless, "h:1")
    assert error is not None
    assert error.message == message
    assert error.permanent is permanent
