"""TLS contexts, peers verified always; who vouches for a peer; and what a failed handshake means.

Trusted are, in this order: what ``tls=`` gives; the file that the connection string names; the system's
authorities (or those of the file in the environment variable ``SSL_CERT_FILE``), and with them Capella's root
certificate where all seeds are under ``cloud.couchbase.com``. Other clusters are never vouched for by that
root: the names of Capella's nodes and of its SRV records are under this domain, too.

The cluster manager and every data node are verified alike, and nothing falls back to plain text. An authority
that is named is not held to the strict form that Python 3.13 asks for (key identifiers, which clusters' own
certificates often lack); chain, name and dates are verified all the same.

:func:`cbframe.doctor` shows which authority vouches for a node, and warns where a node's certificate ends
within 30 days, or an authority within a year. Reads warn a year before Capella's root certificate ends.
"""

from __future__ import annotations

import base64
import os
import re
import ssl
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from importlib import resources
from os import PathLike, fspath
from typing import Any, NamedTuple, TypeAlias

from cbframe.cluster.auth import Authenticator, CertificateAuthenticator, pem_text
from cbframe.cluster.connection_string import ConnectionString, is_capella, zone_of
from cbframe.errors import ConfigurationError, ConnectError
from cbframe.system import shortage

TLSContext: TypeAlias = ssl.SSLContext
TLSLike: TypeAlias = ssl.SSLContext | str | bytes | PathLike[str] | None

CAPELLA_ROOT = "capella_root_ca.pem"
"""The file beside this one that holds the root certificate of Couchbase's cloud, which is public."""

AUTHORITY_AHEAD = 365 * 86400.0
"""Seconds before the end of an authority's certificate at which it is warned of: to replace it takes long."""

_BLOCK = re.compile(r"-----BEGIN ([A-Z0-9 ]+)-----([^-]*)-----END \1-----")
_BEGIN = "-----BEGIN "
_CERTIFICATES = ("CERTIFICATE", "X509 CERTIFICATE")
_SHORT = {"commonName": "CN", "organizationName": "O", "organizationalUnitName": "OU"}
_STRICT = range(80, 95)
"""OpenSSL's codes for certificates that only X509_V_FLAG_X509_STRICT refuses, for their form."""
_TEXT = re.compile(r"^\[SSL\] (.+) \(_ssl\.c")
_NO_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG")
"""What OpenSSL says when the answer is no TLS at all; it differs by release."""
_REFUSALS = ("CERTIFICATE", "UNKNOWN_CA", "HANDSHAKE_FAILURE", "ACCESS_DENIED")
"""Parts of the names of alerts by which a node refuses the client's certificate, or the lack of one."""


def make_tls_context(tls: TLSLike, what: str = "tls=") -> TLSContext | None:
    """The context that `tls` stands for, with the same rules in every version of Python.

    A certificate that is named is trusted, also that of an intermediate authority or of a node itself. It is
    not held to the strict form that Python asks for by default since 3.13: clusters often have certificates
    without key identifiers. Chain, name and dates are verified all the same.
    """
    if tls is None or isinstance(tls, ssl.SSLContext):
        return tls
    text = pem_text(tls, what)
    if text is not None:
        return _lenient(_context_of_text(text, what))
    path = fspath(tls)
    try:
        return _lenient(ssl.create_default_context(cafile=path))
    except (OSError, ValueError) as exc:  # SSLError is an OSError
        raise shortage(exc) or ConfigurationError(
            f"{what}{path!r} is no file with certificate authorities: {exc}",
            hint="give the cluster's CA certificate in PEM form: the path of a file, or the text",
        ) from exc


def client_context(tls: TLSLike, authenticator: Authenticator, target: ConnectionString) -> TLSContext | None:
    """The one context for REST and data nodes; None for a connection in plain text."""
    certificate = authenticator if isinstance(authenticator, CertificateAuthenticator) else None
    if not target.tls:
        if tls is not None or certificate is not None:
            what = "tls= is given" if tls is not None else "a client certificate is given"
            raise ConfigurationError(
                f"{what}, but the connection string asks for plain text",
                hint="write couchbases:// or https://",
            )
        return None
    if certificate is None or certificate.certfile is None:
        if certificate is not None and not isinstance(tls, ssl.SSLContext):
            raise ConfigurationError(
                "CertificateAuthenticator names no file, and tls= is no context that holds a certificate",
                hint="give CertificateAuthenticator('client.pem', 'client.key')",
            )
        return _trusting(tls, target)
    if isinstance(tls, ssl.SSLContext):
        # It may serve other connections too, which would show this certificate from now on.
        raise ConfigurationError(
            "a client certificate cannot be put into the context that tls= gives",
            hint="call its load_cert_chain() and pass CertificateAuthenticator() without files, "
            "or pass the CA as tls=, as the path of a file or as PEM text",
        )
    context = _trusting(tls, target)
    _load_client(context, certificate)
    return context


def named_context(tls: TLSLike, target: ConnectionString) -> TLSContext | None:
    """The context of the authorities that `tls` or the connection string names; None if neither does."""
    if tls is not None:
        return make_tls_context(tls)
    return make_tls_context(target.option("trust_certificate"), "trust_certificate=")


def _trusting(tls: TLSLike, target: ConnectionString) -> TLSContext:
    """The context that verifies the nodes."""
    given = named_context(tls, target)
    if given is not None:
        return given
    context = ssl.create_default_context()
    zone = zone_of(target.hosts[0].host)
    brought = [capella_root()] if target.capella else []
    brought += [zone.authority] if zone is not None else []
    if brought:
        context.load_verify_locations(cadata="\n".join(brought))
        _lenient(context)
    return context


def capella_root() -> str:
    """Capella's root certificate, as PEM text."""
    return resources.files("cbframe.cluster").joinpath(CAPELLA_ROOT).read_text("ascii")


def capella_root_ending(tls: TLSLike, target: ConnectionString, now: float) -> str | None:
    """What to warn of if Capella's root certificate is relied on, and ends within a year of `now`."""
    if tls is not None or not target.capella or target.option("trust_certificate") is not None:
        return None
    alone: Any = _context_of_text(capella_root(), CAPELLA_ROOT)
    until = _until(alone.get_ca_certs()[0])
    return None if until > now + AUTHORITY_AHEAD else successor_of_capellas_root(until)


def successor_of_capellas_root(until: float) -> str:
    """What to do before the bundled certificate ends."""
    return f"update cbframe before {date_of(until)}: the root certificate of Capella that is in it ends then"


def date_of(seconds: float) -> str:
    """A time in seconds since 1970, as a date."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d}"


def _lenient(context: TLSContext) -> TLSContext:
    """The context, with the rules for authorities that are named."""
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


def _context_of_text(text: str, what: str) -> TLSContext:
    """A context that trusts the certificates of PEM text."""
    blocks = _BLOCK.findall(text)
    other = next((label for label, _ in blocks if label not in _CERTIFICATES), None)
    if other is not None or "PRIVATE KEY-----" in text:
        raise ConfigurationError(
            f"{what} is for certificate authorities, and its text holds a {other or 'PRIVATE KEY'}",
            hint="a client's certificate and key are for auth=CertificateAuthenticator(certfile, keyfile)",
        )
    if not blocks or len(blocks) != text.count(_BEGIN):
        raise ConfigurationError(
            f"the PEM text of {what} is cut off, or holds no certificate",
            hint="each begins with -----BEGIN CERTIFICATE----- and ends with -----END CERTIFICATE-----",
        )
    context: TLSContext | None = None
    for number, (_, body) in enumerate(blocks, 1):
        try:
            der = base64.b64decode("".join(body.split()), validate=True)
            # One by one: OpenSSL takes some damaged certificates for the end of a list.
            if context is None:
                context = ssl.create_default_context(cadata=der or b"\0")
            else:
                context.load_verify_locations(cadata=der or b"\0")
        except (OSError, ValueError) as exc:
            raise shortage(exc) or ConfigurationError(
                f"certificate {number} of {len(blocks)} in the PEM text of {what} cannot be read: {exc}",
                hint="give the text as it is in the file, with its line breaks",
            ) from exc
    assert context is not None, "there are blocks"
    return context


def _load_client(context: TLSContext, certificate: CertificateAuthenticator) -> None:
    assert certificate.certfile is not None, "there is one to be loaded"
    text = pem_text(certificate.certfile, "certfile")
    shown = "in PEM text" if text is not None else repr(fspath(certificate.certfile))
    try:
        with ExitStack() as files:
            chain = files.enter_context(_as_file(certificate.certfile))
            key = certificate.keyfile and files.enter_context(_as_file(certificate.keyfile))
            # The callable keeps OpenSSL from asking on the terminal.
            context.load_cert_chain(chain, key, certificate.key_password)
    except OSError as exc:
        raise shortage(exc) or ConfigurationError(
            f"the client certificate {shown} cannot be used: {exc}",
            hint="give PEM: the certificate with its chain, and the key that belongs to it",
        ) from exc


@contextmanager
def _as_file(source: Any) -> Iterator[str | PathLike[str]]:
    """A path for OpenSSL: for PEM text, that of a file which only its owner can read, for the time being."""
    text = pem_text(source, "a client certificate")
    if text is None:
        yield source
        return
    descriptor, path = tempfile.mkstemp(prefix="cbframe-", suffix=".pem")  # with the mode 0600
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        yield path
    finally:
        os.unlink(path)  # noqa: PTH108 - as it was made


class Peer(NamedTuple):
    """What a node has shown in a TLS handshake. Times are seconds since 1970, 0 where they are not known."""

    version: str = ""  # of TLS
    until: float = 0  # end of the certificate's life
    issuer: str = ""  # name of who issued the certificate
    authority: str = ""
    authority_until: float = 0  # end of the authority's own certificate
    bundled: bool = False  # whether the authority is Capella's root certificate, as it comes with cbframe


def peer_of(sock: ssl.SSLSocket | ssl.SSLObject) -> Peer:
    """What a verified node has shown."""
    certificate: Any = sock.getpeercert()
    version = sock.version() or ""
    if not certificate:
        return Peer(version)
    issuer = _name(certificate["issuer"])
    own = Peer(version, _until(certificate), issuer)
    context: Any = sock.context
    trusted = list(zip(context.get_ca_certs(), context.get_ca_certs(True), strict=True))
    chain: Any = getattr(sock, "get_verified_chain", None)
    if chain is not None:
        root = chain()[-1]
        trusted = [each for each in trusted if each[1] == root]
    elif len(trusted) > 1:
        trusted = [each for each in trusted if _name(each[0]["subject"]) == issuer]
    if not trusted:
        return own
    found, der = trusted[0]
    bundled = der == ssl.PEM_cert_to_DER_cert(capella_root())
    return own._replace(authority=_name(found["subject"]), authority_until=_until(found), bundled=bundled)


def _name(parts: Sequence[Sequence[tuple[str, str]]]) -> str:
    return ", ".join(f"{_SHORT.get(kind, kind)}={value}" for part in parts for kind, value in part)


def _until(certificate: Any) -> float:
    return float(ssl.cert_time_to_seconds(certificate["notAfter"]))


def tls_error(cause: BaseException, node: str, where: str = "") -> ConnectError | None:
    """What a failed handshake means; None if `cause` is not about TLS.

    It is permanent where only another certificate or another port can help.
    """
    if not isinstance(cause, ssl.SSLError):
        return None
    # Python 3.13 has no names for what OpenSSL 3.2 and later say, only their texts.
    reason = cause.reason or "".join(_TEXT.findall(str(cause))).upper().replace(" ", "_")
    permanent = True
    hint = "check that this is the TLS port: 11207 of the data service, 18091 of the cluster manager"
    if isinstance(cause, ssl.SSLCertVerificationError):
        what = f"the node's certificate is not accepted: {cause.verify_message.rstrip('.')}"
        hint = _remedy(cause, node)
    elif reason in _NO_TLS:
        what = "the port does not speak TLS"
    elif "ALERT" in reason and any(part in reason for part in _REFUSALS):
        what = f"the node refuses the client certificate, or wants one: {_readable(reason)}"
        hint = "give auth=CertificateAuthenticator(...) with a certificate that the cluster trusts"
    elif isinstance(cause, ssl.SSLEOFError):
        # Also what is left of a refusal if the node hangs up before its reason was read.
        what = "the node closed the connection during the TLS handshake"
        hint += "; a cluster may also want a client certificate"
        permanent = False
    else:
        what = f"TLS failed: {_readable(reason) or cause}"
        permanent = False
    error = ConnectError(f"{what}{where}", node=node, hint=hint)
    error.permanent = permanent
    return error


def _remedy(cause: ssl.SSLCertVerificationError, node: str) -> str:
    """What to do about a certificate that is not accepted."""
    capella = is_capella(node.rpartition(":")[0])
    if "mismatch" in cause.verify_message:
        return "connect by a name that is in the certificate"
    if "expired" in cause.verify_message or "not yet valid" in cause.verify_message:
        also = "; an old cbframe may hold a root certificate of Capella that has ended" if capella else ""
        return f"renew the node's certificate; or else the clock of this machine is wrong{also}"
    if cause.verify_code in _STRICT:
        return (
            "it is not in the strict form that Python 3.13 asks for: give its authority as tls='ca.pem' (the "
            "chain, the name and the dates are verified all the same), or to a context of your own say "
            "context.verify_flags &= ~ssl.VERIFY_X509_STRICT"
        )
    if capella:
        return (
            "leave tls= out: Capella's root certificate comes with cbframe. If it is out, a proxy takes the "
            "place of Capella: give the authority of the proxy as tls='ca.pem'"
        )
    return "give the cluster's certificate authority: tls='ca.pem' (cbframe read: --ca-file ca.pem)"


def _readable(reason: str) -> str:
    return reason.replace("_", " ").lower()
