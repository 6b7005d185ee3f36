"""Options of connection strings: the SDKs' ones, refused ones, unknown ones, and who wins."""

from __future__ import annotations

import logging
import pickle
from dataclasses import replace
from typing import Any

import pytest

from cbframe import BucketDataSourceOptions, ConfigurationError
from cbframe.cluster import string_options
from cbframe.cluster.connstr import parse_connection_string
from cbframe.cluster.string_options import parse_duration
from cbframe.scan.spec import ScanSpec

AUTH = ("u", "p")
STANDARD = BucketDataSourceOptions()


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that has warned of nothing yet."""
    monkeypatch.setattr(string_options, "_warned", set())


def source_options(query: str, options: BucketDataSourceOptions = STANDARD) -> BucketDataSourceOptions:
    return parse_connection_string(f"couchbase://h/b?{query}").with_options(options)


# --- what has a meaning


@pytest.mark.parametrize(
    ("query", "name", "value"),
    [
        ("network=external", "network", "external"),
        ("io.networkResolution=external", "network", "external"),
        ("trust_certificate=%2Fca%2Bb.pem", "trust_certificate", "/ca+b.pem"),
        ("trust_certificate=/ca+b.pem", "trust_certificate", "/ca+b.pem"),
        ("certpath=ca.pem", "trust_certificate", "ca.pem"),
        ("truststorepath=ca.pem", "trust_certificate", "ca.pem"),
        ("cert_path=ca.pem", "trust_certificate", "ca.pem"),
        ("ca_cert_path=ca.pem", "trust_certificate", "ca.pem"),
        ("security.trustCertificate=ca.pem", "trust_certificate", "ca.pem"),
        ("certpath=ca.pem&trust_certificate=ca.pem", "trust_certificate", "ca.pem"),
        ("dnssrv=off", "enable_dns_srv", "off"),
        ("kv_connect_timeout=1s&kv_connect_timeout=2s", "kv_connect_timeout", "2s"),
        ("&&network=external&", "network", "external"),
    ],
)
def test_by_any_of_their_names(query: str, name: str, value: str) -> None:
    target = parse_connection_string(f"couchbases://h/b?{query}")
    assert target.option(name) == value
    assert target.option("absent") is None


@pytest.mark.parametrize(
    ("query", "changed"),
    [
        ("kv_connect_timeout=20s", {"connect_timeout": 20}),
        ("kv_connect_timeout=500", {"connect_timeout": 0.5}),
        ("bootstrap_timeout=1m", {"connect_timeout": 60}),
        ("config_total_timeout=30s", {"connect_timeout": 30}),
        ("timeout.connectTimeout=30s", {"connect_timeout": 30}),
        ("kv_connect_timeout=2s&bootstrap_timeout=15s", {"connect_timeout": 15}),
        ("kv_connect_timeout=20s&bootstrap_timeout=15s", {"connect_timeout": 20}),
        ("enable_compression=false", {"compression": False}),
        ("compression=off", {"compression": False}),
        ("compression=deflate_only", {"compression": False}),
        ("compression=inflate_only", {"compression": True}),
        ("compression=on", {"compression": True}),
        ("dcp_priority=High", {"priority": "high"}),
        ("dcp_buffer_size=1000000", {"feed_buffer_size_bytes": 1_000_000}),
        ("kv_timeout=2s&query_timeout=1s&network=auto&io.enableMutationTokens=false", {}),
    ],
)
def test_options_of_a_source(query: str, changed: dict[str, Any]) -> None:
    assert source_options(query) == replace(STANDARD, **changed)


def test_an_argument_wins() -> None:
    given = BucketDataSourceOptions(connect_timeout=3, priority="low", feed_buffer_size_bytes=5)
    query = "kv_connect_timeout=20s&dcp_priority=high&dcp_buffer_size=9&compression=off"
    assert source_options(query, given) == replace(given, compression=False)
    url = f"couchbase://h/b?{query}"
    spec = ScanSpec.of(url, auth=AUTH, options=given)
    assert spec.options == replace(given, compression=False)
    spec = ScanSpec.of(url, auth=AUTH, buffer_bytes=7, timeout=4.0)
    assert (spec.options.feed_buffer_size_bytes, spec.options.connect_timeout) == (7, 4.0)
    spec = ScanSpec.of(url, auth=AUTH)
    assert (spec.options.feed_buffer_size_bytes, spec.options.connect_timeout) == (9, 20)
    assert pickle.loads(pickle.dumps(spec)).options == spec.options


# --- what is refused


@pytest.mark.parametrize(
    ("target", "message", "hint"),
    [
        ("couchbases://h?tls_verify=none", "tls_verify .* is refused: who is not verified", "tls='ca.pem'"),
        ("couchbases://h?tls_verify=False", "tls_verify .* is refused", "trust_certificate="),
        ("couchbases://h?ssl=no_verify", "ssl .* is refused: who is not verified", "PEM text"),
        ("couchbases://h?security.enableCertificateVerification=false", "is refused", "authority"),
        ("couchbases://h?security.enableHostnameVerification=false", "is refused", "authority"),
        ("couchbases://h?tls_verify=maybe", "tls_verify .* invalid value", "peer"),
        ("couchbases://h?ssl=off", "ssl .* contradicts couchbases://", "leave it out"),
        ("couchbase://h?ssl=on", "ssl .* contradicts couchbase://", "couchbases://"),
        ("http://h?enable_tls=true", "enable_tls .* contradicts http://", "https://"),
        ("h?security.enableTls=true", "security.enableTls .* contradicts couchbase://", "couchbases://"),
        ("couchbase://h?certpath=s3cret", "certpath .* needs TLS", "couchbases://"),
        ("couchbases://h?certpath=", "certpath .* names no file", "ca.pem"),
        ("couchbases://h?certpath=s3cret&truststorepath=b", "two files", "one file"),
        (
            "couchbases://h?truststorepath=a&certpath=a&keypath=s3cret",
            "keypath .* refused",
            "CertificateAuth",
        ),
        ("couchbase://h?username=s3cret&password=s3cret", "username .* refused", "auth="),
        ("couchbase://h?password=s3cret", "password .* refused", "auth="),
        ("couchbase://h?bucket_cred=s3cret", "bucket_cred .* refused", "auth="),
        ("couchbase://h?kv_connect_timeout=s3cret", "kv_connect_timeout .* no time", "500ms"),
        ("couchbase://h?bootstrap_timeout=0", "bootstrap_timeout .* no time", "500ms"),
        ("couchbase://h?bootstrap_timeout=", "bootstrap_timeout .* no time", "500ms"),
        ("couchbase://h?enable_dns_srv=s3cret", "enable_dns_srv .* invalid", "true"),
        ("couchbase://h?compression=s3cret", "compression .* invalid", "inflate_only"),
        ("couchbase://h?dcp_priority=s3cret", "dcp_priority .* invalid", "medium"),
        ("couchbase://h?dcp_buffer_size=s3cret", "dcp_buffer_size .* no number", "dcp_buffer_size=20000000"),
    ],
)
def test_refused(target: str, message: str, hint: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        parse_connection_string(target)
    assert caught.value.hint is not None
    assert hint in caught.value.hint
    assert caught.value.permanent
    assert "s3cret" not in f"{caught.value}{caught.value!r}"


@pytest.mark.parametrize(
    "target",
    [
        "couchbases://h?tls_verify=peer&ssl=on&enable_tls=true",
        "couchbase://h?ssl=off&enable_tls=false",
        "couchbases://h?ssl=no_global_init",
    ],
)
def test_what_agrees_with_the_scheme(target: str) -> None:
    assert parse_connection_string(target).tls == target.startswith("couchbases")


# --- what is not known


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("newtork=external", "'newtork' .* did you mean 'network'?"),
        ("Network=external", "'Network' .* did you mean 'network'?"),
        ("cert_pth=s3cret", "'cert_pth' .* did you mean 'cert_path'?"),
        ("kv_conect_timeout=1s", "'kv_conect_timeout' .* did you mean 'kv_connect_timeout'?"),
        ("zzz=s3cret", "an option 'zzz' of the connection string is not known, and has no effect$"),
        ("s3cret s3cret", "an option of the connection string is not known, and has no effect$"),
    ],
)
def test_a_warning_once(query: str, words: str) -> None:
    target = f"couchbase://h/b?{query}"
    with pytest.warns(UserWarning, match=words.replace("?", r"\?")) as caught:  # noqa: PT031 - once is the point
        parse_connection_string(target)
        parse_connection_string(target)
    assert len(caught) == 1
    assert "s3cret" not in str(caught[0].message)


def test_nothing_of_a_password_is_in_a_warning() -> None:
    with pytest.warns(UserWarning, match="an option of the connection string is not known") as caught:
        parse_connection_string("http://user:pass@h/b?s3cret=1")
    assert "s3cret" not in str(caught[0].message)


def test_without_meaning(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing but a line in the log of details; and no name is in two of the lists."""
    with caplog.at_level(logging.DEBUG, "cbframe.cluster"):
        parse_connection_string("couchbase://h/b?kv_timeout=s3cret")
    assert caplog.messages == ["the option kv_timeout of the connection string has no effect"]
    assert not string_options._WITHOUT_MEANING & {*string_options._MEANT, *string_options._ALIASES}
    assert set(string_options._ALIASES.values()) <= string_options._MEANT


# --- durations


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10s", 10),
        ("500ms", 0.5),
        ("1m30s", 90),
        ("1.5h", 5400),
        (".5s", 0.5),
        ("2500", 2.5),
        ("10", 0.01),
        ("0", 0),
        ("7us", 7e-6),
        ("7µs", 7e-6),
        ("9ns", 9e-9),
        (" 1s ", 1),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "1d", "-1s", "1 s", "1s2", "x1s", "１s", "1e3", "1.5", "nan"])
def test_wrong_durations(text: str) -> None:
    with pytest.raises(ConfigurationError, match="not a duration"):
        parse_duration(text)
