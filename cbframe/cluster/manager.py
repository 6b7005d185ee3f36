"""One node's cluster manager: requests, and what their answers and failures mean."""

from __future__ import annotations

import base64
import binascii
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import requests

from cbframe.cluster.answers import (
    RestAnswer,
    as_mapping,
    mapping_field,
    mappings_field,
    text_field,
    uuid_mismatch,
)
from cbframe.cluster.auth import Authenticator
from cbframe.cluster.cluster_map import with_node_services
from cbframe.cluster.connection_string import HostPort, bare_host, strip_userinfo
from cbframe.cluster.tls import tls_error
from cbframe.errors import (
    PAUSED_HINT,
    ROLES_HINT,
    BucketNotFoundError,
    CbframeError,
    ConfigurationError,
    ConnectError,
    ProtocolError,
)
from cbframe.limits import shortage
from cbframe.wire.sasl import ScramClient

_CHUNK_BYTES = 64 << 10
_SHOWN_BUCKETS = 20
_PAUSED = ("pausing", "paused")


@dataclass(frozen=True, slots=True)
class Terms:
    """What holds for every request of a client."""

    timeout: float
    verify: bool | str
    cert: str | tuple[str, str] | None
    max_answer_bytes: int


class Manager:
    """One node's cluster manager, in one session."""

    def __init__(self, session: requests.Session, base_url: str, address: HostPort, terms: Terms) -> None:
        self._session = session
        self._base_url = base_url
        self._node = str(address)
        self._terms = terms
        self.address = HostPort(bare_host(address.host), address.port)

    def bucket_config(self, bucket: str, bucket_uuid: str | None) -> dict[str, object]:
        query = f"?bucket_uuid={quote(bucket_uuid, safe='')}" if bucket_uuid else ""
        answer = self.get(f"/pools/default/b/{quote(bucket, safe='')}{query}")
        if answer.status == 404 and b"uuid does not match" not in answer.body:
            # Unknown bucket, unknown endpoint, or a node outside any cluster: the walk tells.
            config = self.walk("default", bucket)
        else:
            config = answer.json_object()
        # Checked here too: an old server ignores the parameter.
        if bucket_uuid and text_field(config, "uuid", "") != bucket_uuid:
            raise uuid_mismatch(self._node)
        if not mapping_field(config, "vBucketServerMap").get("vBucketMap"):
            self._refuse_paused(bucket)
        return config

    def check_bucket(self, bucket: str) -> None:
        """Raise if the bucket does not exist, or is paused."""
        if self._refuse_paused(bucket) == 404:
            names = _names(self._buckets("default"))
            if bucket not in names:
                raise self._no_bucket(bucket, names)

    def _refuse_paused(self, bucket: str) -> int:
        """The status of the answer about the bucket; raises if it says that the bucket is paused."""
        answer = self.get(f"/pools/default/buckets/{quote(bucket, safe='')}")
        if answer.status == 404:
            return answer.status
        if text_field(answer.json_object(), "hibernationState", "") in _PAUSED:
            raise BucketNotFoundError(f"bucket {bucket!r} is paused", node=self._node, hint=PAUSED_HINT)
        return answer.status

    def walk(self, pool: str, bucket: str) -> dict[str, object]:
        """The verbose config: ``/pools``, the pool, its list of buckets, the bucket."""
        entries = self._buckets(pool)
        for entry in entries:
            if entry.get("name") != bucket:
                continue
            answer = self.get(self._local(text_field(entry, "uri")))
            if answer.status == 404 and b"uuid does not match" not in answer.body:
                break  # deleted between the two requests
            config = answer.json_object()
            services = self.get("/pools/default/nodeServices")
            # The oldest servers have none; their configs go by serverList alone.
            if services.status == 404:
                return config
            return with_node_services(config, services.json_object(), self.address.host)
        raise self._no_bucket(bucket, [name for name in _names(entries) if name != bucket])

    def manifest(self, bucket: str) -> dict[str, object]:
        answer = self.get(f"/pools/default/buckets/{quote(bucket, safe='')}/scopes")
        if answer.status != 404:
            return answer.json_object()
        names = _names(self._buckets("default"))
        if bucket not in names:
            raise self._no_bucket(bucket, names)
        raise ConnectError(
            f"the server has no collections manifest for bucket {bucket!r}",
            node=self._node,
            hint="collections need Couchbase Server 7.0",
        )

    def _buckets(self, pool: str) -> list[Mapping[str, object]]:
        pools = mappings_field(self.get("/pools").json_object(), "pools")
        if not pools:
            raise ConnectError(
                "the node belongs to no cluster",
                node=self._node,
                hint="it is new, or was removed: use another seed",
            )
        by_name = {text_field(entry, "name"): entry for entry in pools}
        if pool not in by_name:
            raise ConfigurationError(
                f"no pool {pool!r}", node=self._node, hint=f"there are: {', '.join(sorted(by_name))}"
            )
        overview = self.get(self._local(text_field(by_name[pool], "uri"))).json_object()
        uri = text_field(mapping_field(overview, "buckets"), "uri")
        return [as_mapping(entry, "buckets") for entry in self.get(self._local(uri)).json_array()]

    def _no_bucket(self, bucket: str, names: Sequence[str]) -> BucketNotFoundError:
        shown = ", ".join(names[:_SHOWN_BUCKETS]) + (", …" if len(names) > _SHOWN_BUCKETS else "")
        return BucketNotFoundError(
            f"no bucket {bucket!r}, or the user may not see it",
            node=self._node,
            hint=f"visible buckets: {shown}" if shown else f"the user sees no other bucket; {ROLES_HINT}",
        )

    def _local(self, uri: str) -> str:
        """`uri` if it is a path on this node. Credentials go nowhere else."""
        if not uri.startswith("/") or uri.startswith("//"):
            raise ConnectError("the cluster manager refers to another host", node=self._node)
        return uri

    def get(self, path: str) -> RestAnswer:
        """One request; a status of any kind is an answer, anything less a `ConnectError`."""
        shown = path.partition("?")[0]
        outside = sys.exception()
        try:
            with self._session.get(
                self._base_url + path,
                timeout=self._terms.timeout,
                # Not on the session: there, REQUESTS_CA_BUNDLE would overrule them.
                verify=self._terms.verify,
                cert=self._terms.cert,
                allow_redirects=False,
                stream=True,
            ) as response:
                body = bytearray()
                for chunk in response.iter_content(_CHUNK_BYTES):
                    body += chunk
                    if len(body) > self._terms.max_answer_bytes:
                        raise ConnectError(
                            f"{shown} answers with more than {self._terms.max_answer_bytes} bytes",
                            node=self._node,
                        )
                headers = response.headers
                return RestAnswer(
                    self._node,
                    shown,
                    response.status_code,
                    headers.get("Content-Type", ""),
                    headers.get("Location", ""),
                    bytes(body),
                    headers.get("Server", ""),
                    headers.get("WWW-Authenticate", ""),
                )
        except requests.RequestException as error:
            # Not chained: what is below says the same at length, in frames of libraries.
            raise self._no_answer(shown, error, _root_cause(error, outside)) from None
        except OSError as error:
            if (refusal := shortage(error, self._node)) is not None:
                raise refusal from None
            # Not a RequestException: requests could not read the certificates it was told to use.
            raise ConfigurationError(
                f"cannot use the certificates: {strip_userinfo(str(error))}",
                hint="check the paths of verify and cert",
            ) from error

    def _no_answer(self, path: str, error: requests.RequestException, root: BaseException) -> CbframeError:
        if (refusal := shortage(root, self._node)) is not None:
            return refusal
        if (failure := tls_error(root, self._node, f" (asked for {path})")) is not None:
            return failure
        if isinstance(error, requests.Timeout) or isinstance(root, TimeoutError):
            return ConnectError(
                f"{path} gave no answer within {self._terms.timeout:g} s",
                node=self._node,
                hint="the node is overloaded, or a firewall drops the packets",
            )
        reason = strip_userinfo(str(root)) or type(root).__name__
        return ConnectError(
            f"no whole answer from {path}: {reason}",
            node=self._node,
            hint="check host and port: http:// is 8091, https:// is 18091",
        )


def _names(entries: Sequence[Mapping[str, object]]) -> list[str]:
    return sorted(str(entry.get("name")) for entry in entries)


def _root_cause(error: BaseException, outside: BaseException | None) -> BaseException:
    """The error at the bottom: the wrappers around it repeat themselves at length.

    `outside` is what the caller was handling when it asked; it is in the chain, but no cause.
    """
    while (below := error.__cause__ or error.__context__) is not None and below is not outside:
        error = below
    # urllib3 hands on what the ssl module raised as an argument, not as a cause.
    wrapped = error.args[0] if error.args else None
    return wrapped if isinstance(wrapped, BaseException) else error


def basic_auth(
    authenticator: Authenticator,
) -> Callable[[requests.PreparedRequest], requests.PreparedRequest]:
    """HTTP Basic in UTF-8; ``requests`` itself would encode as Latin-1.

    Always a callable, also without credentials: ``requests`` looks into ``~/.netrc`` otherwise.
    """
    credentials = authenticator.credentials()

    def sign(request: requests.PreparedRequest) -> requests.PreparedRequest:
        if credentials is not None:
            token = base64.b64encode(":".join(credentials).encode()).decode()
            request.headers["Authorization"] = f"Basic {token}"
        return request

    return sign


_SCRAM = "SCRAM-SHA-512"


def scram_auth(
    authenticator: Authenticator,
) -> Callable[[requests.PreparedRequest], requests.PreparedRequest]:
    """HTTP SCRAM (RFC 7804): the password crosses no network, and the manager proves that it knows it."""
    user, password = authenticator.credentials() or ("", "")

    def sign(request: requests.PreparedRequest) -> requests.PreparedRequest:
        client = ScramClient(_SCRAM.replace("SHA-", "SHA"), user, password, lambda: secrets.token_urlsafe(18))

        def answered(response: requests.Response, **arguments: Any) -> requests.Response:
            response.close()
            sid, data = _scram_fields(response.headers.get("WWW-Authenticate", ""))
            if response.status_code != 401 or not sid:
                raise ProtocolError(f"the cluster manager does not know {_SCRAM}")
            again = response.request.copy()
            again.hooks = {"response": []}
            proof = base64.b64encode(client.final(data)).decode()
            again.headers["Authorization"] = f"{_SCRAM} sid={sid},data={proof}"
            final: requests.Response = response.connection.send(again, **arguments)
            try:
                if final.status_code != 401:
                    client.verify(_scram_fields(final.headers.get("Authentication-Info", ""))[1])
            except CbframeError:
                final.close()
                raise
            return final

        first = base64.b64encode(client.first()).decode()
        request.headers["Authorization"] = f"{_SCRAM} data={first}"
        request.hooks["response"].append(answered)
        return request

    return sign


def _scram_fields(header: str) -> tuple[str, bytes]:
    """The exchange that a header is of, and the message; nothing where there is none."""
    parts = dict(part.split("=", 1) for part in header.removeprefix(_SCRAM).strip().split(",") if "=" in part)
    try:
        return parts.get("sid", ""), base64.b64decode(parts.get("data", ""), validate=True)
    except binascii.Error as exc:
        raise ProtocolError("a SCRAM message of the cluster manager is no base64") from exc
