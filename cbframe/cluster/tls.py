"""TLS contexts, peers verified always; and what it means when a handshake fails."""

from __future__ import annotations

import ssl
from os import PathLike, fspath
from typing import TypeAlias

from cbframe.cluster.auth import Authenticator, CertificateAuthenticator
from cbframe.errors import ConfigurationError, ConnectError
from cbframe.limits import shortage

TLSContext: TypeAlias = ssl.SSLContext
TLSLike: TypeAlias = ssl.SSLContext | str | PathLike[str] | None

_NO_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG")
"""What OpenSSL says when the answer is no TLS at all; it differs by release."""
_REFUSALS = ("CERTIFICATE", "UNKNOWN_CA", "HANDSHAKE_FAILURE", "ACCESS_DENIED")
"""Parts of the names of alerts by which a node refuses the client's certificate, or the lack of one."""


def make_tls_context(tls: TLSLike) -> TLSContext | None:
    """The context that `tls` stands for.

    Parameters
    ----------
    tls
        A context, the path of a file with certificate authorities, or None for the system's.

    Raises
    ------
    ConfigurationError
        The file cannot be read, or holds no certificate.
    """
    if tls is None or isinstance(tls, ssl.SSLContext):
        return tls
    path = fspath(tls)
    try:
        return ssl.create_default_context(cafile=path)
    except OSError as exc:  # SSLError is one
        raise shortage(exc) or ConfigurationError(
            f"tls={path!r} is no file with certificate authorities: {exc}",
            hint="give the path of the cluster's CA certificate in PEM form",
        ) from exc


def client_context(tls: TLSLike, authenticator: Authenticator, *, encrypted: bool) -> TLSContext | None:
    """The one context for REST and data nodes; None for a connection in plain text.

    Parameters
    ----------
    tls
        As for :func:`make_tls_context`.
    authenticator
        If it is a client certificate, the context gets it.
    encrypted
        Whether the scheme of the connection string asks for TLS.

    Raises
    ------
    ConfigurationError
        What was asked for and the scheme contradict each other, or a file cannot be used.
    """
    certificate = authenticator if isinstance(authenticator, CertificateAuthenticator) else None
    if not encrypted:
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
        return make_tls_context(tls) or ssl.create_default_context()
    if isinstance(tls, ssl.SSLContext):
        # It may serve other connections too, which would show this certificate from now on.
        raise ConfigurationError(
            "a client certificate cannot be put into the context that tls= gives",
            hint="call its load_cert_chain() and pass CertificateAuthenticator() without files, "
            "or pass the CA file as tls=",
        )
    context = make_tls_context(tls) or ssl.create_default_context()
    try:
        # The callable keeps OpenSSL from asking on the terminal.
        context.load_cert_chain(certificate.certfile, certificate.keyfile, certificate.key_password)
    except OSError as exc:
        raise shortage(exc) or ConfigurationError(
            f"the client certificate {fspath(certificate.certfile)!r} cannot be used: {exc}",
            hint="give PEM files: the certificate with its chain, and the key that belongs to it",
        ) from exc
    return context


def tls_error(cause: BaseException, node: str, where: str = "") -> ConnectError | None:
    """What a failed handshake means; None if `cause` is not about TLS.

    It is permanent where only another certificate or another port can help.

    Parameters
    ----------
    cause
        What the ``ssl`` module raised.
    node
        ``host:port``.
    where
        Words to add, such as the path of a request.
    """
    if not isinstance(cause, ssl.SSLError):
        return None
    reason = cause.reason or ""
    permanent = True
    hint = "check that this is the TLS port: 11207 of the data service, 18091 of the cluster manager"
    if isinstance(cause, ssl.SSLCertVerificationError):
        what = f"the node's certificate is not accepted: {cause.verify_message.rstrip('.')}"
        if "mismatch" in what:
            hint = "connect by a name that is in the certificate"
        elif "expired" in what or "not yet valid" in what:
            hint = "renew the node's certificate; or else the clock of this machine is wrong"
        else:
            hint = "give the cluster's certificate authority: tls='ca.pem' (cbframe read: --ca-file ca.pem)"
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


def _readable(reason: str) -> str:
    return reason.replace("_", " ").lower()
