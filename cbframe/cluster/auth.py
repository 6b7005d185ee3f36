"""Who asks: passwords or certificates, for the cluster manager and the data service alike.

What a user needs:

==================  ===========================================================
Enterprise Edition  the roles Data Reader and Data DCP Reader on the bucket
Capella             Read access to the bucket
Community Edition   Application Access (``bucket_full_access``), or an
                    administrator: there are no such roles
==================  ===========================================================

* A user with roles on some scopes or collections only is refused a read of the whole bucket, and the error
  names what the user may read. ``scope="shop"`` or ``collections=["shop.orders"]`` reads a part,
  ``collections="visible"`` all of it.
* A user of LDAP or another directory needs TLS: the cluster has no hash of the password, so only SASL PLAIN
  works. Without TLS, ``BucketDataSourceOptions(allow_plain=True)`` sends the password in clear text.
* The right to see statistics of the bucket is optional. With it, partitions are divided by size, and the
  expiry of documents is compared with a node's clock instead of this machine's.
"""

from __future__ import annotations

import base64
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from os import PathLike
from typing import TypeAlias

from cbframe.errors import CbframeError, ConfigurationError, ConnectError

_HINT = 'pass auth=("user", "password") or auth=PasswordAuthenticator("user", "password")'
_PEM = "-----BEGIN "
_LONGEST_PATH = 1024
"""What is longer, or has several lines, is shown in no error: it may be a key without its first line."""


def pem_text(source: object, what: str) -> str | None:
    """The PEM text that `source` is, as text or as bytes; None if it is the path of a file."""
    text: object = os.fspath(source) if isinstance(source, os.PathLike) else source
    if isinstance(source, bytes | bytearray):
        text = bytes(source).decode("ascii", "replace")
        if _PEM not in text:
            raise ConfigurationError(
                f"{what} is bytes, but not PEM",
                hint="DER is turned into PEM by ssl.DER_cert_to_PEM_cert(data), or openssl x509 -inform der",
            )
    if isinstance(text, str) and _PEM in text and not isinstance(source, os.PathLike):
        return text.replace("\\n", "\n")  # environment variables have line breaks so
    if isinstance(text, str) and ("\n" in text or "\0" in text or not 0 < len(text) <= _LONGEST_PATH):
        raise ConfigurationError(
            f"{what} is neither the path of a file nor PEM text",
            hint="PEM text begins with a line -----BEGIN CERTIFICATE----- or -----BEGIN PRIVATE KEY-----",
        )
    if not isinstance(text, str):
        raise ConfigurationError(
            f"{what} is a {type(source).__name__}", hint="give the path of a PEM file, or PEM text"
        )
    return None


class Authenticator(ABC):
    """What proves to a node who is asking."""

    __slots__ = ()

    @abstractmethod
    def credentials(self) -> tuple[str, str] | None:
        """User name and password for SASL and HTTP Basic.

        None means that the TLS handshake has said who we are, and that neither may be sent.
        """


@dataclass(frozen=True, slots=True)
class PasswordAuthenticator(Authenticator):
    """A user name and a password. The ``repr`` hides the password.

    Raises
    ------
    ConfigurationError
        The server could not accept such a name: it is empty, or holds ``:`` (which HTTP Basic
        cannot carry) or NUL (which SASL PLAIN cannot).
    """

    username: str
    password: str = field(repr=False)

    def __post_init__(self) -> None:
        # The types may lie: these come from notebooks and os.environ.get().
        values: tuple[object, object] = (self.username, self.password)
        for name, value in zip(("user name", "password"), values, strict=True):
            if not isinstance(value, str):
                raise ConfigurationError(f"the {name} is {type(value).__name__}, not a string", hint=_HINT)
            if "\0" in value:
                raise ConfigurationError(f"the {name} holds a NUL character")
        if not self.username or ":" in self.username:
            raise ConfigurationError("the user name is empty or holds a colon", hint=_HINT)

    def credentials(self) -> tuple[str, str]:
        return self.username, self.password


@dataclass(frozen=True, slots=True, repr=False)
class CertificateAuthenticator(Authenticator):
    """A client certificate, in place of a user name and a password; needs TLS. The ``repr`` shows paths only.

    Where it is pickled, as for Dask's workers, PEM text goes along, with the key in it; of files only the
    paths do.

    Parameters
    ----------
    certfile
        The certificate and its chain: path of a PEM file, or PEM text (str or bytes). None if the
        ``ssl.SSLContext`` that is passed as ``tls=`` holds the certificate already.
    keyfile
        Its private key, in the same forms; None if it is in `certfile`.
    password
        Of the private key, if it is encrypted.

    Raises
    ------
    ConfigurationError
        There is a key or a password without a certificate, or one is neither a path nor PEM text.

    Examples
    --------
    >>> import cbframe
    >>> cbframe.CertificateAuthenticator("client.pem", "client.key")
    CertificateAuthenticator(certfile='client.pem', keyfile='client.key')
    """

    certfile: str | bytes | PathLike[str] | None = None
    keyfile: str | bytes | PathLike[str] | None = None
    password: str | None = None

    def __post_init__(self) -> None:
        if self.certfile is None and (self.keyfile, self.password) != (None, None):
            raise ConfigurationError("a client's key is given without its certificate")
        for name in ("certfile", "keyfile"):
            source = getattr(self, name)
            if source is not None and (text := pem_text(source, name)) is not None:
                object.__setattr__(self, name, text)

    def __repr__(self) -> str:
        names = [name for name in ("certfile", "keyfile") if getattr(self, name) is not None]
        shown = (f"{name}={_shown(getattr(self, name))}" for name in names)
        return f"CertificateAuthenticator({', '.join(shown)})"

    def credentials(self) -> None:
        return None

    @property
    def holds_key(self) -> bool:
        """Whether a key or its password is in the authenticator itself, not in a file."""
        texts = (each for each in (self.certfile, self.keyfile) if isinstance(each, str) and _PEM in each)
        return self.password is not None or any("PRIVATE KEY" in text for text in texts)

    def key_password(self) -> str:
        """The key's password; empty if there is none, which no encrypted key has."""
        return self.password or ""


def _shown(source: str | PathLike[str]) -> str:
    return "<PEM text>" if isinstance(source, str) and _PEM in source else repr(os.fspath(source))


@dataclass(frozen=True, slots=True)
class EnvironmentAuth:
    """User name and password from the environment, looked up whenever they are needed.

    For ``auth=``. It holds the names of the variables and no secret, so that what has it can be sent
    to other processes and machines: each looks into its own environment.

    Parameters
    ----------
    username, password
        Names of the variables.

    Examples
    --------
    >>> import os, cbframe
    >>> os.environ["CB_USER"], os.environ["CB_PASSWORD"] = "reader", "secret"
    >>> cbframe.EnvironmentAuth("CB_USER", "CB_PASSWORD")()
    PasswordAuthenticator(username='reader')
    """

    username: str = "CB_USER"
    password: str = "CB_PASSWORD"  # noqa: S105 - the name of a variable

    def __call__(self) -> PasswordAuthenticator:
        """Look them up.

        Raises
        ------
        ConfigurationError
            One of the variables is not set here.
        """
        for name in (self.username, self.password):
            if name not in os.environ:
                raise ConfigurationError(
                    f"the environment variable {name} is not set in this process",
                    hint="set it for every worker before it starts",
                )
        return PasswordAuthenticator(os.environ[self.username], os.environ[self.password])


AuthSource: TypeAlias = Authenticator | tuple[str, str]
AuthLike: TypeAlias = AuthSource | Callable[[], AuthSource] | None


def as_authenticator(auth: AuthLike) -> Authenticator:
    """The authenticator that `auth` stands for.

    A callable is called once, now. Whoever connects again calls this function again, so that a
    password that was rotated meanwhile is fetched again.
    """
    source: object = auth
    if not isinstance(source, Authenticator) and callable(source):
        try:
            source = source()
        except CbframeError:
            raise
        except Exception as exc:
            # Its message may hold a secret; whoever wants it finds it as the cause.
            raise ConnectError(
                f"the auth callable raised {type(exc).__name__}",
                hint="it gives the user name and the password for each new connection",
            ) from exc
    if isinstance(source, Authenticator):
        return source
    if isinstance(source, tuple | list) and len(source) == 2:
        return PasswordAuthenticator(*source)
    if source is None:
        raise ConfigurationError("no user name and password given", hint=_HINT)
    raise ConfigurationError(f"auth cannot be a {type(source).__name__}", hint=_HINT)


def basic_header(authenticator: Authenticator) -> str | None:
    """The value of an HTTP ``Authorization`` header, in UTF-8; None without credentials."""
    credentials = authenticator.credentials()
    if credentials is None:
        return None
    return f"Basic {base64.b64encode(':'.join(credentials).encode()).decode()}"
