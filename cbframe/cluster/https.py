"""HTTPS with a context of our own: cluster manager and data nodes are verified alike."""

from __future__ import annotations

from typing import Any

import requests
from requests.adapters import HTTPAdapter

from cbframe.cluster.tls import TLSContext


class ContextAdapter(HTTPAdapter):
    """Verifies peers by a context, and by nothing else.

    ``requests`` by itself trusts the authorities of ``certifi``, and would add them, or those of
    ``REQUESTS_CA_BUNDLE``, to any context.
    """

    def __init__(self, context: TLSContext) -> None:
        self._context = context
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, ssl_context=self._context, **kwargs)

    def build_connection_pool_key_attributes(
        self,
        request: requests.PreparedRequest,
        verify: bool | str,  # noqa: ARG002 - the context says it
        cert: Any = None,  # noqa: ARG002 - the context has it
    ) -> tuple[Any, Any]:
        host, _ = super().build_connection_pool_key_attributes(request, True, None)
        return host, {}

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        """Leave the pool alone: everything is in the context."""
