"""TLS contexts: peers are verified, always."""

from __future__ import annotations

import ssl
from typing import TypeAlias

from cbframe.errors import ConfigurationError

TLSContext: TypeAlias = ssl.SSLContext
TLSLike: TypeAlias = ssl.SSLContext | str | None


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
    if not isinstance(tls, str):
        return tls
    try:
        return ssl.create_default_context(cafile=tls)
    except (OSError, ssl.SSLError) as exc:
        raise ConfigurationError(
            f"tls={tls!r} is no file with certificate authorities: {exc}",
            hint="give the path of the cluster's CA certificate in PEM form",
        ) from exc
