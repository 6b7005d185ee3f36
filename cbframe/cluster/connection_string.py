r"""Connection strings: ``couchbase://h1,h2/bucket?network=…``, and seeds such as ``http://h:8091``.

Where the cluster is
--------------------
===========  ======================================================================================
Capella      ``couchbases://cb.abc123.cloud.couchbase.com/travel``, from the Connect page
Kubernetes   ``couchbases://cb-srv.default/travel?network=default``, the service of the operator
own servers  ``couchbases://cb1.example.com,cb2.example.com/travel``, some of the nodes or all
Docker       ``couchbase://localhost/travel``
===========  ======================================================================================

``couchbase://`` and ``http://`` are without TLS. A host is a node, or one name whose SRV records stand for
the cluster; they are looked up again when no node answers. These ports are used:

=================  ========================  ==========================
scheme             of every data node        of the seeds, by default
=================  ========================  ==========================
``couchbase://``   11210                     11210
``couchbases://``  11207                     11207
``http://``        11210                     8091, the cluster manager
``https://``       11207                     18091, the cluster manager
=================  ========================  ==========================

* Capella: allow this machine's address (Settings, Networking, Allowed IP Addresses) and give the database
  user Read access to the bucket. The root certificate of Capella comes with cbframe. Only data ports are
  used: 11207, or those of a private endpoint.
* Kubernetes: inside the cluster, ``network=default`` takes the addresses of the operator. Outside it is
  ``network=external``: the addresses that ``exposedFeatures`` of its ``spec.networking`` made.
* Docker: publish port 11210 as it is. Where it is another port outside, as with Testcontainers, set that on
  the node, for ``couchbase://localhost:32768/travel``::

      couchbase-cli setting-alternate-address -c localhost -u USER -p PASSWORD --set \
          --node 127.0.0.1 --hostname localhost --ports kv=32768

A node may have several addresses: its own, and alternate ones on named networks. As in the SDKs, the network
is taken on which a node has the host and port of a seed, else its host; else ``external`` if all nodes have
such an address, as behind a load balancer. ``network=`` overrules that.

:func:`cbframe.doctor` finds out which step fails.

Options
-------
Those of the SDKs, by the name that any of them has, as in
``couchbase://host/bucket?network=external&kv_connect_timeout=20s``. These have a meaning:

==========================  ==============================================================================
here                        options
==========================  ==============================================================================
``network=``                ``network``
``tls=``                    ``trust_certificate``, ``certpath``, ``truststorepath``, ``ca_cert_path``: path of
                            a file with certificate authorities; needs ``couchbases://`` or ``https://``
``connect_timeout``         ``kv_connect_timeout``, ``bootstrap_timeout``: ``10s``, ``500ms``, or
                            milliseconds; of both, the longer
``compression``             ``enable_compression``, ``compression``: ``false`` or ``off``, or else true
``priority``                ``dcp_priority``
``feed_buffer_size_bytes``  ``dcp_buffer_size``
no SRV records              ``enable_dns_srv``, ``dnssrv``: ``false`` if the name is a host
the scheme                  ``ssl``, ``enable_tls``, which have to agree with it
==========================  ==============================================================================

An argument of a function wins over an option, and so does a field of ``BucketDataSourceOptions`` that is not
at its default. ``tls_verify=none`` and ``ssl=no_verify`` are refused, since nothing is sent to a node that is
not verified; so are a user name and a password, which belong to ``auth=``, and a client's key, which belongs
to a :class:`~cbframe.CertificateAuthenticator`. Other options of the SDKs, such as ``kv_timeout``, are about
what cbframe does not do, and have no effect. Of any other option a warning is given, once in a process.
"""

from __future__ import annotations

import difflib
import ipaddress
import logging
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar
from urllib.parse import unquote

from cbframe.cluster.auth import PasswordAuthenticator
from cbframe.errors import (
    AllServerURLsConnectBucketError,
    BucketNotFoundError,
    CbframeError,
    ConfigurationError,
    ConnectError,
    ProtocolError,
)
from cbframe.options import BucketDataSourceOptions

CAPELLA = "cloud.couchbase.com"
"""The domain of Couchbase's cloud."""
_LABEL = re.compile(r"[^\W]([\w-]{0,61}[\w])?")
_USERINFO = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)\S*@")
_HINT = "write couchbase://host1,host2/bucket, couchbases://host/bucket or http://host:8091"
_PORTS = {"couchbase": 11210, "couchbases": 11207, "http": 8091, "https": 18091}
_KV = ("couchbase", "couchbases")
_ENCRYPTED = ("couchbases", "https")
_REST_PORTS = (8091, 18091)
_KV_PORTS = (11210, 11207)
_NEXT_URL = re.compile(r",(?=\s*[A-Za-z][A-Za-z0-9+.-]*://)")
_BUCKET = re.compile(r"[A-Za-z0-9_.%-]{1,100}")


# --- hosts and ports


def strip_userinfo(text: str) -> str:
    """`text` without the ``user:password@`` of any URL in it.

    Greedy on purpose: a password may hold ``/`` or ``@`` that somebody forgot to escape.
    """
    return _USERINFO.sub(r"\1", text)


def is_capella(host: str) -> bool:
    """Whether a host is one of Couchbase's cloud."""
    return f".{host.removesuffix('.')}".lower().endswith(f".{CAPELLA}")


def bare_host(host: str) -> str:
    """`host` in lower case, without the brackets of an IPv6 address: the form to compare."""
    return host.removeprefix("[").removesuffix("]").lower()


def join_address(host: str, port: int) -> str:
    """``host:port``, with brackets around an IPv6 address."""
    host = host.removeprefix("[").removesuffix("]")
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split_address(address: str) -> tuple[str, int] | None:
    """Host (without brackets) and port of ``host:port``; None if it is no such thing."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not _is_port(port):
        return None
    if host.startswith("[") != host.endswith("]") or (":" in host and not host.startswith("[")):
        return None
    return host.removeprefix("[").removesuffix("]"), int(port)


@dataclass(frozen=True, slots=True)
class HostPort:
    """A host, without brackets, and the port if one was given."""

    host: str
    port: int | None = None

    def with_port(self, default: int) -> HostPort:
        """The same host, at `default` if it had no port."""
        return self if self.port is not None else HostPort(self.host, default)

    def __str__(self) -> str:
        if self.port is not None:
            return join_address(self.host, self.port)
        return f"[{self.host}]" if ":" in self.host else self.host

    @classmethod
    def parse(cls, text: str, *, quote: bool = True) -> HostPort:
        """Read ``host``, ``host:port``, ``[v6]`` or ``[v6]:port``."""
        shown = f" {text!r}" if quote else ""
        if text.startswith("["):
            host, bracket, rest = text[1:].partition("]")
            if not bracket or not _is_ipv6(host) or (rest and not rest.startswith(":")):
                raise ConfigurationError(
                    f"not an IPv6 address{shown}", hint="write [2001:db8::1] or [2001:db8::1]:11210"
                )
            port = rest[1:] if rest else None
        elif text.count(":") > 1:
            raise ConfigurationError(
                f"more than one colon in the host{shown}", hint="put an IPv6 address in brackets: [::1]:11210"
            )
        else:
            host, colon, port_text = text.partition(":")
            port = port_text if colon else None
            if not _is_name(host):
                raise ConfigurationError(
                    f"not a host name{shown}" if host else "a host name is empty",
                    hint="put the name of your cluster in place of <…>"
                    if "<" in host
                    else "write couchbase://host1,host2/bucket or http://host:8091",
                )
        if port is None:
            return cls(host)
        if not _is_port(port):
            raise ConfigurationError(
                f"not a port{f' {port!r}' if quote else ''}", hint="ports are 1 to 65535"
            )
        return cls(host, int(port))


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 5 and 0 < int(text) <= 0xFFFF


def _is_ipv6(host: str) -> bool:
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True


def _is_name(host: str) -> bool:
    # Checked here because an empty label fails much later otherwise, inside the resolver, as a
    # UnicodeError that no HTTP library turns into one of its own.
    labels = host.removesuffix(".").split(".")
    return len(host) <= 253 and all(_LABEL.fullmatch(label) for label in labels)


# --- the string


@dataclass(frozen=True, slots=True, repr=False)
class ConnectionString:
    """Where a cluster is, and how to begin with it."""

    scheme: str  # `couchbase`, `couchbases`, `http` or `https`
    hosts: tuple[HostPort, ...]  # as given; seeds fills in the ports
    bucket: str | None = None  # name from the path, if there was one
    params: tuple[tuple[str, str], ...] = ()
    credentials: PasswordAuthenticator | None = field(default=None)

    @property
    def tls(self) -> bool:
        return self.scheme in _ENCRYPTED

    @property
    def capella(self) -> bool:
        """Whether all hosts are in Couchbase's cloud."""
        return all(is_capella(each.host) for each in self.hosts)

    @property
    def bootstrap(self) -> Literal["kv", "rest"]:
        """Which service the hosts name: the data service, or the cluster manager."""
        return "kv" if self.scheme in _KV else "rest"

    @property
    def network(self) -> str:
        return self.option("network") or "auto"

    def on_network(self, network: str) -> ConnectionString:
        """The same on another network; ``auto`` leaves the choice to the ``network`` option."""
        # The types may lie: this comes from notebooks.
        name: object = network
        if not isinstance(name, str) or not name:
            raise ConfigurationError(
                f"network={name!r} names no network", hint='"auto", "default" or a name such as "external"'
            )
        return self if name == "auto" else replace(self, params=(*self.params, ("network", name)))

    def option(self, name: str) -> str | None:
        """The value of an option; the last one if it is given twice."""
        return dict(self.params).get(name)

    def is_off(self, name: str) -> bool:
        """Whether an option is given, and says no."""
        return (self.option(name) or "").lower() in _FALSE

    def with_options(self, options: BucketDataSourceOptions) -> BucketDataSourceOptions:
        """The options of a source, and what the string says where they are at their defaults."""
        given = dict(self.params)
        wanted: dict[str, Any] = {}
        times = [parse_duration(given[name]) for name in _TIMES if name in given]
        if times:
            wanted["connect_timeout"] = max(times)
        if "enable_compression" in given:
            wanted["compression"] = given["enable_compression"].lower() not in (*_FALSE, "deflate_only")
        if "dcp_priority" in given:
            wanted["priority"] = given["dcp_priority"].lower()
        if "dcp_buffer_size" in given:
            wanted["feed_buffer_size_bytes"] = int(given["dcp_buffer_size"])
        changes = {name: value for name, value in wanted.items() if getattr(options, name) == _DEFAULTS[name]}
        return replace(options, **changes) if changes else options

    def remarks(self) -> list[str]:
        """A sentence on each option that is not known."""
        quote = self.credentials is None
        names = (name for name in dict(self.params) if name not in _MEANT and not _is_known(name))
        return [_remark(name, quote=quote) for name in names]

    def seeds(self) -> tuple[HostPort, ...]:
        """The hosts, those without a port at the port of the scheme."""
        return tuple(host.with_port(_PORTS[self.scheme]) for host in self.hosts)

    def rest_urls(self) -> tuple[str, ...]:
        """Base URLs of the cluster manager; none for the data service's schemes."""
        return () if self.bootstrap == "kv" else self.urls()

    def urls(self) -> tuple[str, ...]:
        """Each seed as a URL of its own, without credentials."""
        return tuple(f"{self.scheme}://{seed}" for seed in self.seeds())

    def __str__(self) -> str:
        """The string again, without credentials and with the names only of unknown options."""
        path = f"/{self.bucket}" if self.bucket else ""
        # Options may hold anything, a key's passphrase too.
        shown = [f"{name}={value if name == 'network' else '…'}" for name, value in self.params]
        query = f"?{'&'.join(shown)}" if shown else ""
        return f"{self.scheme}://{','.join(map(str, self.hosts))}{path}{query}"

    def __repr__(self) -> str:
        return f"ConnectionString({str(self)!r})"


def parse_connection_string(target: str | Sequence[str]) -> ConnectionString:
    """Read a connection string, or the list of seed URLs of the reference."""
    given = [target] if isinstance(target, str) else list(target)
    if not all(isinstance(part, str) for part in given):
        raise ConfigurationError("a connection string is not a string", hint=_HINT)
    pieces = [piece.strip() for part in given for piece in _NEXT_URL.split(part)]
    if not any(pieces):
        raise ConfigurationError("the connection string is empty", hint=_HINT)
    parsed = [_parse_piece(piece) for piece in pieces]
    schemes = {piece.scheme for piece in parsed}
    if len(schemes) > 1:
        raise ConfigurationError(
            f"seeds mix the schemes {' and '.join(sorted(schemes))}", hint="use one scheme"
        )
    buckets = {piece.bucket for piece in parsed if piece.bucket is not None}
    if len(buckets) > 1:
        raise ConfigurationError(
            f"seeds name the buckets {' and '.join(sorted(buckets))}", hint="name one bucket"
        )
    return ConnectionString(
        parsed[0].scheme,
        tuple(dict.fromkeys(host for piece in parsed for host in piece.hosts)),
        next(iter(buckets), None),
        tuple(dict.fromkeys(param for piece in parsed for param in piece.params)),
        _common_credentials([piece.credentials for piece in parsed]),
    )


def _parse_piece(text: str) -> ConnectionString:
    """One URL, or bare hosts."""
    # A password with an unescaped "/", "," or "?" moves the borders of all parts, so that a piece
    # of it may end up anywhere. Where there is an "@", errors quote nothing.
    quote = "@" not in text
    scheme, separator, rest = text.partition("://")
    if not separator:
        scheme, rest = "couchbase", text
    scheme = scheme.lower()
    if scheme == "couchbase2":
        raise ConfigurationError(
            "couchbase2:// is the protocol of the SDKs' gateway, which has no DCP",
            hint="use couchbase:// or couchbases://",
        )
    if scheme not in _PORTS:
        raise ConfigurationError(f"unknown scheme{f' {scheme!r}' if quote else ''}", hint=_HINT)
    rest, _, query = rest.partition("?")
    authority, _, path = rest.partition("/")
    credentials, addresses = _split_credentials(scheme, authority)
    hosts = tuple(HostPort.parse(address.strip(), quote=quote) for address in addresses)
    # No "+" for a space, as in forms: the path of a file may have one.
    pairs = [option.partition("=") for option in query.split("&") if option]
    params = tuple((unquote(name), unquote(value)) for name, _, value in pairs)
    found = ConnectionString(scheme, hosts, _bucket(scheme, path, quote=quote), params, credentials)
    _check_capella(found, quote=quote)
    for host in hosts:
        _check_port(scheme, host)
    return replace(found, params=_checked_options(params, scheme, encrypted=found.tls, quote=quote))


def _split_credentials(scheme: str, authority: str) -> tuple[PasswordAuthenticator | None, list[str]]:
    found: list[PasswordAuthenticator | None] = []
    addresses: list[str] = []
    for part in authority.split(","):
        userinfo, at, address = part.rpartition("@")
        addresses.append(address)
        if not at:
            found.append(None)
            continue
        if scheme in _KV:
            raise ConfigurationError(
                f"{scheme}:// takes no user name or password", hint='pass them as auth=("user", "password")'
            )
        username, _, password = userinfo.partition(":")
        found.append(PasswordAuthenticator(unquote(username), unquote(password)))
    return _common_credentials(found), addresses


def _common_credentials(found: Sequence[PasswordAuthenticator | None]) -> PasswordAuthenticator | None:
    # http://user:password@h1,h2 speaks for both hosts. The other way round it may be a password
    # with a comma in it, and h1 its first half.
    if any(item not in (None, found[0]) for item in found):
        raise ConfigurationError(
            "the seeds have different user names or passwords",
            hint='pass auth=("user", "password") instead, or write a comma in a password as %2C',
        )
    return found[0]


def _check_capella(found: ConnectionString, *, quote: bool) -> None:
    """Refuse what cannot work with Couchbase's cloud: it has TLS only, and no cluster manager for clients."""
    if not any(is_capella(host.host) for host in found.hosts):
        return
    if any(host.host.lower() == CAPELLA for host in found.hosts):
        raise ConfigurationError(
            f"{CAPELLA} is the site of Couchbase's cloud, and no cluster",
            hint=f"copy the connection string from the cluster's Connect page: couchbases://cb.<id>.{CAPELLA}",
        )
    wrong_ports = {*_REST_PORTS, 11210}
    match found.scheme:
        case "couchbases" if not any(host.port in wrong_ports for host in found.hosts):
            return
        case "couchbases":
            what = "the data service of Capella is at port 11207, which need not be given"
        case "couchbase":
            what = "Capella takes connections with TLS only, and couchbase://, or no scheme, is without"
        case scheme:
            what = f"{scheme}:// is for the cluster manager, which Capella does not open to clients"
    hosts = tuple(HostPort(h.host) if h.port in {*wrong_ports, 11207} else h for h in found.hosts)
    # Nothing is repeated of a string that may hold a password.
    right = str(replace(found, scheme="couchbases", hosts=hosts))
    login = '; pass user and password as auth=("user", "password")'
    raise ConfigurationError(
        what, hint=f"write {right}" if quote else f"write couchbases://cb.<id>.{CAPELLA}/bucket{login}"
    )


def _check_port(scheme: str, host: HostPort) -> None:
    if scheme in _KV and host.port in _REST_PORTS:
        rest = "https" if host.port == 18091 else "http"
        raise ConfigurationError(
            f"port {host.port} is the cluster manager's, {scheme}:// is for the data service",
            hint=f"use {rest}://{host}, or leave the port out",
        )
    if scheme not in _KV and host.port in _KV_PORTS:
        kv = "couchbases" if host.port == 11207 else "couchbase"
        raise ConfigurationError(
            f"port {host.port} is the data service's, {scheme}:// is for the cluster manager",
            hint=f"use {kv}://{host}, or leave the port out",
        )


def _bucket(scheme: str, path: str, *, quote: bool) -> str | None:
    path = path.strip("/")
    # The reference's users paste the manager's entry point.
    if not path or (scheme not in _KV and path in ("pools", "pools/default")):
        return None
    name = unquote(path)
    if not _BUCKET.fullmatch(name):
        shown = f" {name!r}" if quote else ""
        raise ConfigurationError(
            f"not a bucket name{shown}",
            hint="letters, digits and _ . % - only; escape special characters in a password",
        )
    return name


# --- its options

_LOG = logging.getLogger("cbframe.cluster")
_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)", re.ASCII)
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_SHOWN_NAME = re.compile(r"[A-Za-z0-9_.-]{1,60}")
_STACK = 4
"""Frames from the warning to whoever has a connection string read."""

_TIMES = ("kv_connect_timeout", "bootstrap_timeout")
_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
_UNVERIFIED = ("none", "no_verify")
_CHOICES: dict[str, tuple[str, ...]] = {
    "enable_dns_srv": (*_TRUE, *_FALSE),
    "enable_compression": (*_TRUE, *_FALSE, "inflate_only", "deflate_only", "force"),
    "dcp_priority": ("low", "medium", "high"),
    "ssl": (*_TRUE, *_FALSE, "no_global_init"),
    "enable_tls": (*_TRUE, *_FALSE),
    "tls_verify": ("peer", *_TRUE),
}
_MEANT = frozenset(
    (*_CHOICES, *_TIMES, "network", "trust_certificate", "dcp_buffer_size", "username", "keypath")
)
"""Options that have a meaning here, or are refused, by their canonical names."""
_ALIASES = {
    "io.networkResolution": "network",
    "certpath": "trust_certificate",
    "cert_path": "trust_certificate",
    "truststorepath": "trust_certificate",
    "trust_store_path": "trust_certificate",
    "ca_cert_path": "trust_certificate",
    "security.trustCertificate": "trust_certificate",
    "dnssrv": "enable_dns_srv",
    "io.enableDnsSrv": "enable_dns_srv",
    "timeout.connectTimeout": "kv_connect_timeout",
    "config_total_timeout": "bootstrap_timeout",
    "compression": "enable_compression",
    "compression.enable": "enable_compression",
    "security.enableTls": "enable_tls",
    "security.enableCertificateVerification": "tls_verify",
    "security.enableHostnameVerification": "tls_verify",
    "user": "username",
    "pass": "username",
    "password": "username",
    "bucket_cred": "username",
    "key_path": "keypath",
}
"""Other spellings: those of libcouchbase, Go, .NET, Python and Java."""
_WITHOUT_MEANING = frozenset(
    re.findall(
        r"\w+",
        """
        allow_enterprise_analytics allow_static_config analytics_timeout app_telemetry_endpoint bootstrap_on
        client_string compression_min_ratio compression_min_size config_cache config_cache_ro
        config_idle_redial_timeout config_node_timeout config_poll_floor config_poll_floor_interval
        config_poll_interval config_poll_timeout console_log_file console_log_level detailed_errcodes
        disable_app_telemetry disable_mozilla_ca_certificates dump_configuration durability_interval
        durability_timeout enable_cluster_config_notifications enable_clustermap_notification
        enable_collections enable_dcp_change_streams enable_dcp_expiry enable_durable_write enable_errmap
        enable_lazy_connections enable_metrics enable_mutation_tokens enable_operation_metrics
        enable_resource_units enable_server_durations enable_tcp_keep_alive enable_tcp_keepalives
        enable_tracing enable_unordered_execution error_thresh_count error_thresh_delay force_ipv4
        http_config_poll_timeout http_connect_timeout http_pool_timeout http_poolsize http_redial_period
        http_retry_delay http_timeout http_urlmode idle_http_connection_timeout ip_protocol ipv6
        key_value_durable_timeout key_value_timeout kv_buffer_size kv_durable_timeout kv_pool_size
        kv_scan_timeout kv_timeout log_redaction management_timeout max_dcp_snapshot_marker_version
        max_http_connections max_idle_http_connections max_kv_connections max_perhost_http_connections
        max_perhost_idle_http_connections max_queue_size metrics num_kv_connections
        operation_metrics_flush_interval operation_timeout orphaned_response_logging
        orphaned_response_logging_interval orphaned_response_logging_sample_size persistence_timeout_floor
        preferred_server_group query_grace_period query_timeout random_seed_nodes randomize_nodes
        read_chunk_size readj_ts_wait resolve_timeout retry_interval retry_nmv_delay retry_nmv_imm
        retry_policy sasl_mech_force search_timeout select_bucket server_group server_wait_backoff
        show_queries sync_dtor tcp_keep_alive_interval tcp_keepalive tcp_keepalive_interval
        tcp_keepalive_time tcp_nodelay timeout tls_disable_deprecated_protocols tls_disable_v1_2
        tracing_orphaned_queue_flush_interval tracing_orphaned_queue_size tracing_threshold_analytics
        tracing_threshold_kv tracing_threshold_query tracing_threshold_queue_flush_interval
        tracing_threshold_queue_size tracing_threshold_search tracing_threshold_view
        unordered_execution_enabled unsafe_optimize use_credentials_with_client_certificate user_agent_extra
        vb_noremap vbguess_persist view_timeout views_timeout wait_for_config
        """,
    )
)
"""Options of the SDKs about operations, queries, pools and logs."""
_JAVA = ("io.", "timeout.", "security.", "compression.", "logging.", "orphanReporter.", "transactions.")
"""How the names of Java's options begin."""
_DEFAULTS = {each.name: each.default for each in fields(BucketDataSourceOptions)}
_warned: set[str] = set()
"""Names of which this process was warned."""


def parse_duration(value: str) -> float:
    """Seconds of a Go-style duration (``10s``, ``500ms``, ``1m30s``) or of plain milliseconds."""
    text = value.strip()
    if re.fullmatch(r"[0-9]{1,15}", text):
        return int(text) / 1000
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ConfigurationError(f"not a duration: {value!r}", hint='write "10s", "500ms" or milliseconds')
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


def _checked_options(
    options: Sequence[tuple[str, str]], scheme: str, *, encrypted: bool, quote: bool = True
) -> tuple[tuple[str, str], ...]:
    """The options by their canonical names, each once; warns of those that are not known.

    Errors show no value. Without `quote` a warning shows no name either: a part of a password may have
    ended up in it.
    """
    found: dict[str, str] = {}
    for given, value in options:
        name = _ALIASES.get(given, given)
        if name in _MEANT:
            _check_option(name, given, value, scheme, encrypted=encrypted)
            if name == "trust_certificate" and found.get(name, value) != value:
                raise ConfigurationError(
                    "the connection string names two files with certificate authorities",
                    hint="put the authorities into one file, or give tls=",
                )
        elif _is_known(name):
            _LOG.debug("the option %s of the connection string has no effect", name)
        elif given not in _warned:
            _warned.add(given)
            warnings.warn(_remark(given, quote=quote), UserWarning, _STACK)
        found[name] = value
    return tuple(found.items())


def _is_known(name: str) -> bool:
    return name in _WITHOUT_MEANING or name.startswith(_JAVA)


def _remark(name: str, *, quote: bool) -> str:
    shown = near = ""
    if quote and _SHOWN_NAME.fullmatch(name):
        known = sorted({*_MEANT, *_ALIASES, *_WITHOUT_MEANING})
        shown = f" {name!r}"
        near = "".join(
            f": did you mean {each!r}?" for each in difflib.get_close_matches(name.lower(), known, 1)
        )
    return f"an option{shown} of the connection string is not known, and has no effect{near}"


def _check_option(name: str, given: str, value: str, scheme: str, *, encrypted: bool) -> None:
    """Refuse a value that is none or contradicts the scheme; `given` is the name as it was written."""
    text = value.lower()
    problem = hint = ""
    if name == "username":
        problem, hint = "is refused: connection strings end up in logs", 'pass auth=("user", "password")'
    elif name == "keypath":
        problem = "is refused: a client's certificate and key are passed as an argument"
        hint = 'pass auth=CertificateAuthenticator("client.pem", "client.key"), and the authority as tls='
    elif name in ("tls_verify", "ssl") and text in (*_UNVERIFIED, *(_FALSE if name == "tls_verify" else ())):
        problem = "is refused: who is not verified could be anyone, and gets the password and the documents"
        hint = (
            "give the cluster's authority: tls='ca.pem', PEM text, or trust_certificate=ca.pem in the string"
        )
    elif name in _CHOICES and text not in _CHOICES[name]:
        problem, hint = "has an invalid value", f"choose from: {', '.join(_CHOICES[name])}"
    elif name in _TIMES and not _is_time(value):
        problem, hint = "is no time", 'write "10s", "500ms" or milliseconds'
    elif name == "dcp_buffer_size" and not re.fullmatch("[0-9]{1,12}", value):
        problem, hint = "is no number of bytes", "write it as in dcp_buffer_size=20000000"
    elif name == "trust_certificate" and not (value and encrypted):
        problem = f"needs TLS, and {scheme}:// is not encrypted" if value else "names no file"
        hint = "write couchbases://host/bucket?trust_certificate=ca.pem"
    elif name in ("ssl", "enable_tls") and text in (_FALSE if encrypted else _TRUE):
        problem = f"contradicts {scheme}://"
        hint = "leave it out: couchbases:// and https:// are encrypted, couchbase:// and http:// are not"
    if problem:
        raise ConfigurationError(f"the option {given} of the connection string {problem}", hint=hint)


def _is_time(value: str) -> bool:
    try:
        return parse_duration(value) > 0
    except ConfigurationError:
        return False


# --- seeds: what DNS names in place of a host (RFC 2782), and the pass over them

_T = TypeVar("_T")
NO_RECORDS = "no SRV records"
NO_NAME = "no such name"


class SrvRecord(NamedTuple):
    """One target; those of the lowest priority come first, among these the heaviest."""

    priority: int
    weight: int
    target: str
    port: int


class NoAnswerError(Exception):
    """DNS names no records; the text says what it answered."""


Lookup: TypeAlias = Callable[[str, float], Sequence[SrvRecord]]
"""The records of a name, with a timeout in seconds; NoAnswerError says why there are none."""


@dataclass(frozen=True, slots=True, eq=False)
class Zone:
    """A domain whose names this process knows by itself, without DNS: that of a simulated cluster."""

    domain: str  # all names below it, and no others, are looked up here
    services: dict[str, Sequence[SrvRecord]]  # SRV records by name
    hosts: dict[str, str]  # addresses by name
    authority: str  # the certificate authority of the domain's hosts, as PEM text

    def lookup(self, name: str, _timeout: float) -> Sequence[SrvRecord]:
        if name not in self.services:
            raise NoAnswerError(NO_NAME)
        return self.services[name]


ZONES: list[Zone] = []
"""Those that are in force; empty but for simulations."""


def zone_of(host: str) -> Zone | None:
    """The zone that knows a host."""
    return next((zone for zone in ZONES if f".{host}".lower().endswith(f".{zone.domain}")), None)


def srv_name(target: ConnectionString) -> str | None:
    """The name whose SRV records stand for the seeds; None where the seeds are as given.

    It takes a scheme of the data service, and a single host name without a port.
    """
    if target.bootstrap != "kv" or len(target.hosts) != 1:
        return None
    if target.is_off("enable_dns_srv"):
        return None
    host = target.hosts[0]
    if host.port is not None or host.host.lower() == "localhost" or _is_address(host.host):
        return None
    service = f"_{target.scheme}._tcp."
    return f"{service}{host.host.removeprefix(service)}"


class Seeds:
    """The seeds of a cluster: those of its connection string, or those that DNS names in their place."""

    def __init__(self, given: ConnectionString, lookup: Lookup | None = None) -> None:
        self._given = given
        self._lookup = lookup
        self.name = srv_name(given)
        """What DNS is asked for; None where it is not."""
        self.target = given
        """The connection string with the seeds that DNS named last."""
        self._said = ""

    @property
    def named(self) -> bool:
        """Whether DNS has named seeds."""
        return self.target is not self._given

    def ask(self, timeout: float) -> bool:
        """Ask DNS, for `timeout` seconds at most; whether the seeds are others than before.

        Those that were named before stay where it names none now.
        """
        if self.name is None:
            return False
        host = self._given.hosts[0].host
        zone = zone_of(host)
        lookup = self._lookup or (ask_dns if zone is None else zone.lookup)
        try:
            records = lookup(self.name, timeout)
        except NoAnswerError as exc:
            records, self._said = [], str(exc)
        else:
            self._said = NO_RECORDS
        # A single dot says that there is no such service. Passwords for Capella do not go elsewhere: a name
        # server is trusted for less than the domain in the connection string.
        hosts = [
            HostPort(r.target.rstrip("."), r.port)
            for r in sorted(records, key=_preference)
            if r.target != "." and r.port and (is_capella(r.target) or not is_capella(host))
        ]
        before = self.target.hosts
        if hosts:
            self.target = replace(self._given, hosts=tuple(dict.fromkeys(hosts)))
        _LOG.debug("%s names %s", self.name, ", ".join(map(str, hosts)) or f"no seeds: {self._said}")
        return self.target.hosts != before

    def explain(self, error: ConnectError) -> None:
        """Name both questions in the error of a host that has no address, if SRV was asked, too."""
        if self.name is None or self.named or not error.unresolved:
            return
        host = self._given.hosts[0].host
        error.message = (
            f"the name {host!r} cannot be resolved: {self._said} for SRV of {self.name}, "
            f"and {error.unresolved} for A and AAAA of {host}"
        )
        error.args = (error.message,)


def ask_dns(name: str, timeout: float) -> Sequence[SrvRecord]:
    """The SRV records of a name; of a relative one also with the suffixes of the resolver's search list."""
    import dns.exception  # noqa: PLC0415 - slow to import
    import dns.resolver  # noqa: PLC0415

    try:
        answer = dns.resolver.resolve(name, "SRV", lifetime=timeout, search=not is_capella(name))
    except dns.resolver.NXDOMAIN:
        said = NO_NAME
    except dns.resolver.NoAnswer:
        said = NO_RECORDS
    except dns.exception.Timeout:
        said = f"no answer within {timeout:g} s"
    except dns.resolver.NoResolverConfiguration:
        said = "this machine has no name server"
    except dns.exception.DNSException as exc:
        said = f"the name servers failed ({type(exc).__name__})"
    else:
        return [SrvRecord(r.priority, r.weight, r.target.to_text(), r.port) for r in answer]
    raise NoAnswerError(said)


def _preference(record: SrvRecord) -> tuple[int, int]:
    return record.priority, -record.weight


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def first_success(seeds: Sequence[str], attempt: Callable[[str], _T]) -> _T:
    """The result of `attempt` for the first of `seeds` that does not fail."""
    if not seeds:
        raise ConfigurationError("missing at least 1 server address", hint='pass "couchbase://host"')
    causes: list[tuple[str, CbframeError]] = []
    for seed in seeds:
        try:
            return attempt(seed)
        except CbframeError as error:
            if error.permanent and (len(seeds) == 1 or not _is_of_one_node(error)):
                raise
            inner = error.__cause__
            if (
                isinstance(error, AllServerURLsConnectBucketError)
                and isinstance(inner, CbframeError)
                and error.server_urls == [strip_userinfo(seed)]
            ):
                error = inner  # it says the same of the same seed
            causes.append((strip_userinfo(seed), error))
    last = causes[-1][1]
    if all(isinstance(error, BucketNotFoundError) for _, error in causes):
        raise last
    reasons = "; ".join(f"{seed}: {strip_userinfo(error.message)}" for seed, error in causes)
    failure = AllServerURLsConnectBucketError(
        [seed for seed, _ in causes],
        f"could not connect to the bucket through any seed: {reasons}",
        hint=last.hint,
    )
    failure.permanent = all(error.permanent for _, error in causes)
    raise failure from last


def _is_of_one_node(error: CbframeError) -> bool:
    # Not the subclasses: those are about the user, the bucket and the cluster.
    return isinstance(error, ProtocolError) or type(error) is ConnectError
