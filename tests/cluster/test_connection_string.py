"""Connection strings: what they mean, what is refused, and their options."""

from __future__ import annotations

import logging
import pickle
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import dns.message
import dns.name
import dns.rcode
import dns.resolver
import dns.rrset
import pytest

from cbframe import BucketDataSourceOptions, cluster
from cbframe.cluster import connection_string
from cbframe.cluster.auth import PasswordAuthenticator
from cbframe.cluster.connection_string import (
    ZONES,
    HostPort,
    NoAnswerError,
    Seeds,
    SrvRecord,
    Zone,
    ask_dns,
    first_success,
    parse_connection_string,
    parse_duration,
    srv_name,
    strip_userinfo,
    zone_of,
)
from cbframe.errors import (
    AccessError,
    AllServerURLsConnectBucketError,
    BucketNotFoundError,
    ConfigurationError,
    ConnectError,
    ProtocolError,
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
    for target in ("h", "h?network=", "h?network=auto"):
        assert parse_connection_string(target).network == "auto"


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

CERTIFICATE = [
    *("certpath", "truststorepath", "cert_path", "ca_cert_path", "security.trustCertificate"),
    "certpath=ca.pem&trust_certificate",
]


@pytest.mark.parametrize(
    ("query", "name", "value"),
    [
        ("network=external", "network", "external"),
        ("&&network=external&", "network", "external"),
        ("io.networkResolution=external", "network", "external"),
        ("trust_certificate=%2Fca%2Bb.pem", "trust_certificate", "/ca+b.pem"),
        ("trust_certificate=/ca+b.pem", "trust_certificate", "/ca+b.pem"),
        *((f"{name}=ca.pem", "trust_certificate", "ca.pem") for name in CERTIFICATE),
        ("dnssrv=off", "enable_dns_srv", "off"),
        ("kv_connect_timeout=1s&kv_connect_timeout=2s", "kv_connect_timeout", "2s"),
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
    ("target", "words"),
    [
        ("couchbase://h/b?newtork=external", "'newtork' .* did you mean 'network'?"),
        ("couchbase://h/b?Network=external", "'Network' .* did you mean 'network'?"),
        ("couchbase://h/b?cert_pth=s3cret", "'cert_pth' .* did you mean 'cert_path'?"),
        ("couchbase://h/b?kv_conect_timeout=1s", "'kv_conect_timeout' .* mean 'kv_connect_timeout'?"),
        ("couchbase://h/b?zzz=s3cret", "an option 'zzz' of the .* is not known, and has no effect$"),
        ("couchbase://h/b?s3cret s3cret", "an option of the .* is not known, and has no effect$"),
        ("http://user:pass@h/b?s3cret=1", "an option of the connection string is not known"),
    ],
)
def test_a_warning_once(target: str, words: str) -> None:
    with pytest.warns(UserWarning, match=words.replace("?", r"\?")) as caught:  # noqa: PT031 - once is the point
        parse_connection_string(target)
        parse_connection_string(target)
    assert len(caught) == 1
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


# --- seeds that DNS names, asked of a real server by the real library, and the pass over them

LONG = 10.0


@pytest.fixture(autouse=True)
def no_dns() -> None:
    """Here it is asked: a server of the test's own."""


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("couchbase://db.example.com", "_couchbase._tcp.db.example.com"),
        ("couchbases://db.example.com/travel?network=external", "_couchbases._tcp.db.example.com"),
        ("db.example.com", "_couchbase._tcp.db.example.com"),
        ("couchbases://_couchbases._tcp.db.example.com", "_couchbases._tcp.db.example.com"),
        ("couchbase://db.example.com:11210", None),
        ("couchbase://a,b", None),
        ("couchbase://10.0.0.1", None),
        ("couchbase://[::1]", None),
        ("couchbase://localhost", None),
        ("http://db.example.com", None),
        ("couchbase://db.example.com?enable_dns_srv=false", None),
        ("couchbase://db.example.com?enable_dns_srv=true", "_couchbase._tcp.db.example.com"),
    ],
)
def test_what_is_asked(text: str, name: str | None) -> None:
    assert srv_name(parse_connection_string(text)) == name


def found(text: str, records: Sequence[SrvRecord]) -> str:
    asked = []

    def lookup(name: str, timeout: float) -> Sequence[SrvRecord]:
        asked.append((name, timeout))
        return records

    seeds = Seeds(parse_connection_string(text), lookup)
    changed = seeds.ask(2.5)
    assert asked == [("_couchbase._tcp.db", 2.5)]
    assert changed == seeds.named == (str(seeds.target) != text)
    assert not seeds.ask(2.5)
    return str(seeds.target)


def test_the_order_of_the_records() -> None:
    records = [
        SrvRecord(2, 100, "c.", 11210),
        SrvRecord(1, 1, "b.", 12000),
        SrvRecord(1, 9, "a.", 11210),
        SrvRecord(1, 1, "b.", 12000),
    ]
    assert found("couchbase://db/travel", records) == "couchbase://a:11210,b:12000,c:11210/travel"


def test_names_of_capella_stand_for_hosts_of_capella_only() -> None:
    records = [
        SrvRecord(0, 0, "thief.example.", 11207),
        SrvRecord(1, 0, "N1.x.cloud.couchbase.com.", 11207),
        SrvRecord(2, 0, "cloud.couchbase.com.thief.example.", 11207),
    ]
    seeds = Seeds(parse_connection_string("couchbases://cb.x.cloud.couchbase.com"), lambda *_: records)
    seeds.ask(5)
    assert str(seeds.target) == "couchbases://N1.x.cloud.couchbase.com:11207"


@pytest.mark.parametrize(
    "records",
    [[], [SrvRecord(0, 0, ".", 0)], [SrvRecord(0, 0, "a.", 0)]],
    ids=["none", "no such service", "no port"],
)
def test_nothing_is_named(records: list[SrvRecord]) -> None:
    assert found("couchbase://db", records) == "couchbase://db"


def test_other_seeds_are_named_later_and_stay_while_dns_is_away() -> None:
    zone: list[str] = ["old."]

    def lookup(_name: str, _timeout: float) -> Sequence[SrvRecord]:
        if not zone:
            raise NoAnswerError("no answer within 5 s")
        return [SrvRecord(0, 0, target, 11210) for target in zone]

    seeds = Seeds(parse_connection_string("couchbase://db/b"), lookup)
    assert seeds.ask(5)
    assert not seeds.ask(5)
    zone[:] = ["new."]
    assert seeds.ask(5)
    zone.clear()
    assert not seeds.ask(5)
    assert str(seeds.target) == "couchbase://new:11210/b"


@pytest.mark.parametrize(
    ("text", "scheme"),
    [
        ("couchbases://db.example/b", "couchbases"),
        ("db.example", "couchbase"),
        ("couchbases://db.example:11207", None),
        ("couchbase://db.example,other.example", None),
        ("http://db.example", None),
    ],
)
def test_both_questions_are_in_the_error(text: str, scheme: str | None) -> None:
    def lookup(_name: str, _timeout: float) -> Sequence[SrvRecord]:
        raise NoAnswerError("no such name")

    seeds = Seeds(parse_connection_string(text), lookup)
    seeds.ask(5)
    error = ConnectError("as before", hint="as before")
    seeds.explain(error)
    assert str(error) == "as before\n  hint: as before"  # the host has an address
    error.unresolved = "no name server answers"
    seeds.explain(error)
    message = (
        f"the name 'db.example' cannot be resolved: no such name for SRV of _{scheme}._tcp.db.example, "
        "and no name server answers for A and AAAA of db.example"
    )
    assert str(error) == f"{message if scheme else 'as before'}\n  hint: as before"


def test_a_zone_answers_for_its_names_only() -> None:
    zone = Zone("x.example", {"_couchbases._tcp.cb.x.example": [SrvRecord(0, 0, "n1.x.example.", 1)]}, {}, "")
    ZONES.append(zone)
    try:
        assert zone_of("N1.x.Example") is zone_of("x.example") is zone
        assert zone_of("notx.example") is zone_of("127.0.0.1") is None
        seeds = Seeds(parse_connection_string("couchbases://cb.x.example/b"))
        assert seeds.ask(5)
        assert str(seeds.target) == "couchbases://n1.x.example:1/b"
        seeds = Seeds(parse_connection_string("couchbase://cb.x.example/b"))
        assert not seeds.ask(5)
    finally:
        ZONES.remove(zone)


# --- over the wire


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, list[str]]]:
    """A name server on this machine; names that it does not have do not exist."""
    zone: dict[str, list[str]] = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))

        def serve() -> None:
            while True:
                data, peer = sock.recvfrom(4096)
                if not data:
                    return
                question = dns.message.from_wire(data)
                answer = dns.message.make_response(question)
                name = question.question[0].name
                records = zone.get(name.to_text().rstrip("."))
                if records is None:
                    answer.set_rcode(dns.rcode.NXDOMAIN)
                elif records:
                    answer.answer.append(dns.rrset.from_text(name, 60, "IN", "SRV", *records))
                sock.sendto(answer.to_wire(), peer)

        thread = threading.Thread(target=serve, name="test-dns")
        thread.start()
        ask_only(sock, monkeypatch)
        try:
            yield zone
        finally:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bell:
                bell.sendto(b"", sock.getsockname())
            thread.join()


def ask_only(sock: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who listens on this socket is the only name server."""
    resolver = dns.resolver.Resolver(configure=False)
    resolver.nameservers, resolver.port = ["127.0.0.1"], sock.getsockname()[1]
    monkeypatch.setattr(dns.resolver, "default_resolver", resolver)


def named(text: str, timeout: float = LONG) -> str:
    seeds = Seeds(parse_connection_string(text))
    seeds.ask(timeout)
    return str(seeds.target)


def test_a_real_server(answers: dict[str, list[str]]) -> None:
    answers["_couchbases._tcp.db.example.com"] = [
        "20 5 11207 late.example.com.",
        "10 5 12007 n1.example.com.",
    ]
    wanted = "couchbases://n1.example.com:12007,late.example.com:11207/b"
    assert named("couchbases://db.example.com/b") == wanted


def test_the_search_list_is_not_for_names_of_capella(answers: dict[str, list[str]]) -> None:
    dns.resolver.get_default_resolver().search = [dns.name.from_text("corp.example")]
    name = "cb.x.cloud.couchbase.com"
    answers[f"_couchbases._tcp.{name}.corp.example"] = ["0 0 11207 n1.x.cloud.couchbase.com."]
    assert named(f"couchbases://{name}") == f"couchbases://{name}"


@pytest.mark.parametrize("name", ["cb-srv.default", "cb-srv"])
def test_a_relative_name_is_looked_up_in_the_search_list(answers: dict[str, list[str]], name: str) -> None:
    suffixes = ["default.svc.cluster.local", "svc.cluster.local", "cluster.local"]
    dns.resolver.get_default_resolver().search = [dns.name.from_text(suffix) for suffix in suffixes]
    dns.resolver.get_default_resolver().ndots = 5
    node = "cb-0000.cb.default.svc.cluster.local"
    answers["_couchbase._tcp.cb-srv.default.svc.cluster.local"] = [f"0 0 11210 {node}."]
    assert named(f"couchbase://{name}") == f"couchbase://{node}:11210"


@pytest.mark.parametrize(
    ("records", "said"), [(None, "no such name"), ([], "no SRV records")], ids=["no such name", "no records"]
)
def test_a_real_server_that_has_none(
    answers: dict[str, list[str]], records: list[str] | None, said: str
) -> None:
    if records is not None:
        answers["_couchbase._tcp.db.example.com"] = records
    assert named("couchbase://db.example.com") == "couchbase://db.example.com"
    with pytest.raises(NoAnswerError, match=said):
        ask_dns("_couchbase._tcp.db.example.com", LONG)


def test_a_server_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        ask_only(silent, monkeypatch)
        assert named("couchbase://db.example.com", 0.1) == "couchbase://db.example.com"
        with pytest.raises(NoAnswerError, match=r"no answer within 0\.1 s"):
            ask_dns("_couchbase._tcp.db.example.com", 0.1)


def test_a_machine_without_a_name_server(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(*_arguments: object, **_options: object) -> object:
        raise dns.resolver.NoResolverConfiguration

    monkeypatch.setattr(dns.resolver, "resolve", resolve)
    with pytest.raises(NoAnswerError, match="no name server"):
        ask_dns("_couchbase._tcp.db.example.com", LONG)


# --- the pass over the seeds


def test_stops_at_the_first_success() -> None:
    tried: list[str] = []

    def attempt(seed: str) -> str:
        tried.append(seed)
        if seed == "a":
            raise ProtocolError("odd bytes")
        return seed.upper()

    assert first_success(["a", "b", "c"], attempt) == "B"
    assert tried == ["a", "b"]


def test_all_failed() -> None:
    causes = {"http://u:s3cret@a": ConnectError("no"), "b": ConnectError("via http://u:s3cret@b", hint="try")}

    def attempt(seed: str) -> None:
        raise causes[seed]

    with pytest.raises(AllServerURLsConnectBucketError) as caught:
        first_success(list(causes), attempt)
    assert "http://a: no; b: via http://b" in str(caught.value)
    assert caught.value.hint == "try"
    assert caught.value.__cause__ is causes["b"]
    assert caught.value.server_urls == ["http://a", "b"]


def test_permanent_error_ends_the_pass() -> None:
    def attempt(seed: str) -> None:
        raise AccessError("no") if seed == "b" else ConnectError("down")

    with pytest.raises(AccessError):
        first_success(["a", "b", "c"], attempt)


def test_a_bucket_that_no_node_has() -> None:
    """Each node may only not have it yet; together they are one clear error."""

    def attempt(seed: str) -> None:
        error = BucketNotFoundError(f"not on {seed}")
        error.permanent = False
        raise error if seed in where else ConnectError("down")

    where = ["a", "b"]
    with pytest.raises(BucketNotFoundError, match="not on b") as caught:
        first_success(["a", "b"], attempt)
    assert not caught.value.permanent
    with pytest.raises(AllServerURLsConnectBucketError, match="not on b; c: down"):
        first_success(["a", "b", "c"], attempt)


def test_other_errors_are_bugs_and_pass() -> None:
    with pytest.raises(ZeroDivisionError):
        first_success(["a", "b"], lambda _: 1 // 0)


def test_no_seeds() -> None:
    with pytest.raises(ConfigurationError, match="at least 1"):
        first_success([], str)


def test_only_http_loads_requests() -> None:
    paths = Path(cluster.__file__).parent.glob("[!_]*.py")
    modules = [path.stem for path in paths if path.stem != "rest"]
    names = ", ".join(f"cbframe.cluster.{name}" for name in modules)
    code = f"import sys, {names}; print('requests' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "False"
