"""The table of connection strings: what is meant, and what cannot be."""

from __future__ import annotations

import traceback
from typing import Any

import pytest

from cbframe.cluster.address import strip_userinfo
from cbframe.cluster.auth import PasswordAuthenticator
from cbframe.cluster.connstr import HostPort, parse_connection_string
from cbframe.errors import ConfigurationError


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
