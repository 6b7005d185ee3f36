"""Options of a connection string: ``couchbase://host/bucket?network=external&kv_connect_timeout=20s``.

They are those of the SDKs, by the name that any of them has. These have a meaning here:

========================================  ================================================================
``network``                               as the argument ``network=``
``trust_certificate``, ``certpath``,      path of a file with certificate authorities, as the argument
``truststorepath``, ``ca_cert_path``      ``tls=``; needs ``couchbases://`` or ``https://``
``kv_connect_timeout``,                   ``connect_timeout`` of the options; of both, the longer.
``bootstrap_timeout``                     ``10s``, ``500ms``, or milliseconds
``enable_dns_srv``, ``dnssrv``            ``false``: the name is a host, and SRV records are not asked for
``enable_compression``, ``compression``   ``compression`` of the options: ``false`` or ``off``, or else true
``dcp_priority``                          ``priority`` of the options
``dcp_buffer_size``                       ``feed_buffer_size_bytes`` of the options
``ssl``, ``enable_tls``                   have to agree with the scheme, which says it
========================================  ================================================================

An argument of a function wins over an option, and so does a field of ``BucketDataSourceOptions`` that is not
at its default. ``tls_verify=none`` and ``ssl=no_verify`` are refused, since nothing is sent to a node that is
not verified; so are a user name and a password, which belong to ``auth=``, and a client's key, which belongs
to a :class:`~cbframe.CertificateAuthenticator`. Other options of the SDKs, such as ``kv_timeout``, are about
what cbframe does not do, and have no effect. Of any other option a warning is given, once in a process.
"""

from __future__ import annotations

import difflib
import logging
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from cbframe.errors import ConfigurationError
from cbframe.options import BucketDataSourceOptions

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
    """Seconds of a Go-style duration (``10s``, ``500ms``, ``1m30s``) or of plain milliseconds.

    Raises
    ------
    ConfigurationError
        It is neither, or negative.
    """
    text = value.strip()
    if re.fullmatch(r"[0-9]{1,15}", text):
        return int(text) / 1000
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ConfigurationError(f"not a duration: {value!r}", hint='write "10s", "500ms" or milliseconds')
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


def checked(
    options: Sequence[tuple[str, str]], scheme: str, *, encrypted: bool, quote: bool = True
) -> tuple[tuple[str, str], ...]:
    """The options by their canonical names, each once; warns of those that are not known.

    Parameters
    ----------
    options
        Names and values, as given.
    scheme
        For errors.
    encrypted
        Whether the scheme asks for TLS.
    quote
        Whether a warning may show a name: a part of a password may have ended up in it.

    Raises
    ------
    ConfigurationError
        A value is invalid, contradicts the scheme or another one, or is refused. It is not shown.
    """
    found: dict[str, str] = {}
    for given, value in options:
        name = _ALIASES.get(given, given)
        if name in _MEANT:
            _check(name, given, value, scheme, encrypted=encrypted)
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


def with_options(source: BucketDataSourceOptions, options: Mapping[str, str]) -> BucketDataSourceOptions:
    """The options of a source, with what a connection string says where they are at their defaults."""
    wanted: dict[str, Any] = {}
    times = [parse_duration(options[name]) for name in _TIMES if name in options]
    if times:
        wanted["connect_timeout"] = max(times)
    if "enable_compression" in options:
        wanted["compression"] = options["enable_compression"].lower() not in (*_FALSE, "deflate_only")
    if "dcp_priority" in options:
        wanted["priority"] = options["dcp_priority"].lower()
    if "dcp_buffer_size" in options:
        wanted["feed_buffer_size_bytes"] = int(options["dcp_buffer_size"])
    changes = {name: value for name, value in wanted.items() if getattr(source, name) == _DEFAULTS[name]}
    return replace(source, **changes) if changes else source


def is_off(value: str | None) -> bool:
    """Whether an option that was checked says no."""
    return value is not None and value.lower() in _FALSE


def remarks(names: Iterable[str], *, quote: bool = True) -> list[str]:
    """What there is to say of options that are not known; `quote` as for :func:`checked`."""
    return [_remark(name, quote=quote) for name in names if name not in _MEANT and not _is_known(name)]


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


def _check(name: str, given: str, value: str, scheme: str, *, encrypted: bool) -> None:
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
