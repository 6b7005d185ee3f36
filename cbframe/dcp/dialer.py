"""How connections are made: with what the options say of TLS and of sockets."""

from __future__ import annotations

import time
import warnings

from cbframe.cluster.auth import Authenticator
from cbframe.cluster.connection_string import ConnectionString
from cbframe.cluster.tls import TLSContext, TLSLike, capella_root_ending, client_context
from cbframe.dcp.transport import HookedTransport, SocketTransport, Transport
from cbframe.errors import ConfigurationError
from cbframe.options import BucketDataSourceOptions

_warned: list[str] = []
"""What this process was warned of."""


class Dialer:
    """Makes transports."""

    def __init__(
        self,
        options: BucketDataSourceOptions,
        tls: TLSLike,  # in place of `tls_config`
        authenticator: Authenticator,  # may have a certificate
        target: ConnectionString,  # where the cluster is, and whether TLS is asked for
        *,
        by_hand: Transport | None = None,  # A transport to be used in place of all this
    ) -> None:
        if tls is not None and options.tls_config is not None:
            raise ConfigurationError("tls_context and the option tls_config are the same: give one")
        self._options = options
        self._tls = tls
        self._authenticator = authenticator
        self._target = target
        self.by_hand = by_hand
        self.context: TLSContext | None = None
        """That of the connections made from now on; None for plain text."""
        self.renew()

    def renew(self) -> None:
        """Take what ``tls_config`` gives now."""
        config = self._options.tls_config
        chosen = config() if callable(config) else config
        tls = self._tls if chosen is None else chosen
        ending = capella_root_ending(tls, self._target, time.time())
        if ending is not None and not _warned:
            _warned.append(ending)
            warnings.warn(ending, UserWarning, stacklevel=4)
        self.context = client_context(tls, self._authenticator, self._target)

    def transport(self) -> Transport:
        """To data nodes."""
        if self.by_hand is not None:
            return self.by_hand
        context, connect, connect_tls = self.context, self._options.connect, self._options.connect_tls
        if context is not None and connect_tls is not None:
            return HookedTransport(lambda node: connect_tls("tcp", node, context))
        if context is None and connect is not None:
            return HookedTransport(lambda node: connect("tcp", node))
        return SocketTransport(context)
