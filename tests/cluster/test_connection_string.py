"""Connection strings: what they mean, what is refused, and their options."""

from __future__ import annotations

import logging
import pickle
import traceback
from dataclasses import replace
from typing import Any

import pytest

from cbframe import BucketDataSourceOptions, ConfigurationError
from cbframe.cluster import connection_string
from cbframe.cluster.auth import PasswordAuthenticator
from cbframe.cluster.connection_string import (
    HostPort,
    parse_connection_string,
    parse_duration,
    strip_userinfo,
)
from cbframe.scan.spec import ScanSpec


@pytest.mark.parametrize(
    ("target", "scheme", "seeds", "bucket"),
    [
        ("couchbase://h1", "couchbase", "h1:11210", None),
        ("couchbase://h1,h2:12000/b", "couchbase", "h1:11210 h2:12000", "b"),
        ("couchbase://h1, h2", "couchbase", "h1:11210 h2:11210", None),
        ("couchbases://h1/", "couchbases", "h1:11207", None),
        ("COUCHBASES://h1", "couchbases", "h1:11207", None),
        ("h1,h2", "couchbase", "h1:11210 h2:11210", None),
        ("h1:12000/beer-sample", "couchbase", "h1:12000", "beer-sample"),
        ("  h1  ", "couchbase", "h1:11210", None),
        ("couchbase://h1,h1,h1", "couchbase", "h1:11210", None),
        ("couchbase://h/50%25.x", "couchbase", "h:11210", "50%.x"),
        ("couchbase://my_host.example.", "couchbase", "my_host.example.:11210", None),
        ("couchbase://10.0.0.1:12000", "couchbase", "10.0.0.1:12000", None),
        ("couchbase://[2001:db8::1],[::1]:12000", "couchbase", "[2001:db8::1]:11210 [::1]:12000", None),
        ("http://h:8091", "http", "h:8091", None),
        ("http://h", "http", "h:8091", None),
        ("http://h:9000/", "http", "h:9000", None),
        ("http://h:8091/pools/default", "http", "h:8091", None),
        ("http://h:8091/travel", "http", "h:8091", "travel"),
        ("https://h", "https", "h:18091", None),
        ("http://a:1,b:2", "http", "a:1 b:2", None),
        ("http://a:1,http://b:2", "http", "a:1 b:2", None),
        (["http://a:1", "http://b:2/"], "http", "a:1 b:2", None),
        (("a", "b"), "couchbase", "a:11210 b:11210", None),
    ],
)
def test_accepted(target: str | list[str], scheme: str, seeds: str, bucket: str | None) -> None:
    found = parse_connection_string(target)
    assert found.scheme == scheme
    assert " ".join(map(str, found.seeds())) == seeds
    assert found.bucket == bucket
    assert found.tls == (scheme in ("couchbases", "https"))
    assert found.bootstrap == ("rest" if scheme.startswith("http") else "kv")
    assert parse_connection_string(str(found)) == found


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("", "empty"),
        ("   ", "empty"),
        ([], "empty"),
        (["", ""], "empty"),
        ([b"h"], "not a string"),
        ([None], "not a string"),
        ("couchbase://", "host name is empty"),
        ("couchbase:///b", "host name is empty"),
        ("h1,,h2", "host name is empty"),
        ("h1,", "host name is empty"),
        (["h1", ""], "host name is empty"),
        ("couchbase2://h", "no DCP"),
        ("ftp://h", "unknown scheme 'ftp'"),
        ("couchbase://h:8091", "cluster manager's"),
        ("couchbase://h1,h2:18091", "cluster manager's"),
        ("couchbases://h:18091", "cluster manager's"),
        ("h:8091", "cluster manager's"),
        ("http://h:11210", "data service's"),
        ("https://h:11207", "data service's"),
        ("http://a,couchbase://b", "mix the schemes couchbase and http"),
        (["http://a", "https://b"], "mix the schemes http and https"),
        (["h/a", "h/b"], "buckets a and b"),
        ("h:", "not a port"),
        ("h:0", "not a port"),
        ("h:65536", "not a port"),
        ("h:-1", "not a port"),
        ("h:1e3", "not a port"),
        ("h:１", "not a port"),
        ("h:" + "1" * 5000, "not a port"),
        ("::1", "more than one colon"),
        ("[::1", "not an IPv6"),
        ("[h]", "not an IPv6"),
        ("[::1]x", "not an IPv6"),
        ("a..b", "not a host name"),
        ("a b", "not a host name"),
        ("-a", "not a host name"),
        ("a" * 64, "not a host name"),
        ("h#x", "not a host name"),
        ("couchbase://h/a/b", "not a bucket name"),
        ("couchbase://h/a b", "not a bucket name"),
    ],
)
def test_refused_with_a_hint(target: str | list[str], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told) as caught:
        parse_connection_string(target)
    assert caught.value.hint
    assert caught.value.permanent


@pytest.mark.parametrize("target", ["h", "h?network=", "h?network=auto"])
def test_network_is_automatic_by_default(target: str) -> None:
    assert parse_connection_string(target).network == "auto"


def test_rest_urls() -> None:
    assert parse_connection_string("https://[::1],h:9000").rest_urls() == (
        "https://[::1]:18091",
        "https://h:9000",
    )
    assert parse_connection_string("h").rest_urls() == ()


# ------------------------------------------------------------------ Couchbase's cloud


def test_what_works_with_capella() -> None:
    host = "cb.x1y2.cloud.couchbase.com"
    assert str(parse_connection_string(f"couchbases://{host}/b")) == f"couchbases://{host}/b"
    private = "couchbases://pe.x1y2.cloud.couchbase.com:11208,pe.x1y2.cloud.couchbase.com:11209/b"
    assert str(parse_connection_string(private)) == private
    elsewhere = "couchbase://cloud.couchbase.com.example,mycloud.couchbase.com"
    assert str(parse_connection_string(elsewhere)) == elsewhere


@pytest.mark.parametrize(
    ("given", "right"),
    [
        ("couchbase://cb.x.cloud.couchbase.com/b", "couchbases://cb.x.cloud.couchbase.com/b"),
        ("cb.x.cloud.couchbase.com", "couchbases://cb.x.cloud.couchbase.com"),
        ("couchbase://CB.X.Cloud.Couchbase.Com:11210/b", "couchbases://CB.X.Cloud.Couchbase.Com/b"),
        ("couchbase://cb.x.cloud.couchbase.com:11207", "couchbases://cb.x.cloud.couchbase.com"),
        ("http://cb.x.cloud.couchbase.com", "couchbases://cb.x.cloud.couchbase.com"),
        ("http://cb.x.cloud.couchbase.com:8091/pools", "couchbases://cb.x.cloud.couchbase.com"),
        ("https://cb.x.cloud.couchbase.com/b", "couchbases://cb.x.cloud.couchbase.com/b"),
        ("https://cb.x.cloud.couchbase.com:18091", "couchbases://cb.x.cloud.couchbase.com"),
        ("couchbases://cb.x.cloud.couchbase.com:18091/b", "couchbases://cb.x.cloud.couchbase.com/b"),
        ("couchbases://cb.x.cloud.couchbase.com:11210/b", "couchbases://cb.x.cloud.couchbase.com/b"),
        ("couchbase://pe.x.cloud.couchbase.com:11208/b", "couchbases://pe.x.cloud.couchbase.com:11208/b"),
        ("cb.x.cloud.couchbase.com/b?network=external", "couchbases://cb.x.cloud.couchbase.com/b?network=external"),
        (["couchbase://n1", "couchbase://cb.x.cloud.couchbase.com"], "couchbases://cb.x.cloud.couchbase.com"),
    ],
)  # fmt: skip
def test_what_cannot_work_with_capella(given: str | list[str], right: str) -> None:
    with pytest.raises(ConfigurationError, match="Capella") as caught:
        parse_connection_string(given)
    assert caught.value.hint == f"write {right}"
    assert parse_connection_string(right).scheme == "couchbases"


def test_other_mistakes_with_capella() -> None:
    with pytest.raises(ConfigurationError, match="is the site of Couchbase's cloud") as caught:
        parse_connection_string("https://cloud.couchbase.com/databases")
    assert "Connect page" in str(caught.value.hint)
    with pytest.raises(ConfigurationError, match="not a host name") as caught:
        parse_connection_string("couchbases://cb.<id>.cloud.couchbase.com/b")
    assert caught.value.hint == "put the name of your cluster in place of <…>"


# ------------------------------------------------------------------ credentials in URLs


@pytest.mark.parametrize(
    "target",
    [
        "http://user:p%40ss@h1:8091,h2",
        "http://user:p%40ss@h1,http://h2",
        ["http://user:p%40ss@h1", "http://user:p%40ss@h2"],
    ],
)
def test_credentials_are_set_apart(target: str | list[str]) -> None:
    found = parse_connection_string(target)
    assert found.credentials == PasswordAuthenticator("user", "p@ss")
    assert found.hosts[1].host == "h2"
    for shown in (repr(found), str(found), *found.rest_urls()):
        assert "p@ss" not in shown
        assert "p%40ss" not in shown
        assert "user" not in shown


@pytest.mark.parametrize(
    "target",
    [
        "couchbase://user:s3cret@h",
        "user:s3cret@h",
        "http://user:s3cret@h:x",
        "http://user:s3cret@",
        "http://user:s3cret/more@h",
        "http://user:s3cret?more@h",
        "http://user:?s3cret=s3cret@h",
        "http://user:more,s3cret@h",
        "http://user:1,s3cret@h",
        "http://user:1/s3cret@h",
        "http://user:s3cret@h/s3cret x",
        "http://user:s3cret@a,user:other@b",
        ["http://user:s3cret@a", "http://b:c@b"],
        ["http://a", "http://user:s3cret@b"],
        "http://:s3cret@h",
        "s3cret@@x://h",
        "http://user:s3cret@h:11210",
        "http://user:s3cret@h,couchbase://h",
        "https://user:s3cret@cb.x.cloud.couchbase.com/s3cret",
        "http://cb.x.cloud.couchbase.com?password=s3cret",
    ],
)
def test_errors_show_no_secret(target: str | list[str]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_connection_string(target)
    shown = "".join(traceback.format_exception_only(caught.value)) + repr(caught.value)
    assert "s3cret" not in shown
    assert "user:" not in shown


def test_options_are_not_shown() -> None:
    found = parse_connection_string("h?network=external&sasl_mech_force=s3cret")
    assert "s3cret" not in repr(found)
    assert "network=external" in repr(found)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("GET http://u:p@h/x failed", "GET http://h/x failed"),
        ("http://u:p/@x@h:1", "http://h:1"),
        ("mail me@home", "mail me@home"),
        ("a http://h b https://u@i", "a http://h b https://i"),
    ],
)
def test_strip_userinfo(text: str, left: str) -> None:
    assert strip_userinfo(text) == left


def test_host_port() -> None:
    assert str(HostPort("::1")) == "[::1]"
    assert str(HostPort("h")) == "h"
    assert HostPort.parse("[fe80::1%eth0]:1") == HostPort("fe80::1%eth0", 1)


def test_network_by_argument_and_by_option() -> None:
    target = parse_connection_string("couchbase://h?network=external")
    assert target.network == target.on_network("auto").network == "external"
    assert target.on_network("default").network == "default"
    assert parse_connection_string("couchbase://h").on_network("other").network == "other"
    assert parse_connection_string("couchbase://h").on_network("auto").network == "auto"


@pytest.mark.parametrize("name", ["", None, 1])
def test_no_network(name: Any) -> None:
    with pytest.raises(ConfigurationError, match="network"):
        parse_connection_string("couchbase://h").on_network(name)


# --- options


AUTH = ("u", "p")
STANDARD = BucketDataSourceOptions()


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that has warned of nothing yet."""
    monkeypatch.setattr(connection_string, "_warned", set())


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
    assert not connection_string._WITHOUT_MEANING & {*connection_string._MEANT, *connection_string._ALIASES}
    assert set(connection_string._ALIASES.values()) <= connection_string._MEANT


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
