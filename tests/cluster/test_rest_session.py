"""Proxies: none unless asked for, and then for CONNECT only; credentials go to nobody but the cluster."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import Proxy, free_port

import cbframe
from cbframe import AccessError, AuthFailError, BucketDataSourceOptions, ConfigurationError, ConnectError
from cbframe.cli import main
from cbframe.cluster.answers import RestAnswer
from cbframe.cluster.rest import RestClient

AUTH = ("Administrator", "password")
TOKEN = base64.b64encode(b"Administrator:password")
VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
STATUSES = [200, 302, 400, 401, 403, 404, 405, 407, 429, 500, 502, 503, 504]


def reply(status: int) -> bytes:
    body = b"<html>proxy</html>"
    return (
        b"HTTP/1.1 %d Whatever\r\nContent-Type: text/html\r\nLocation: http://login.example/\r\n"
        b"Content-Length: %d\r\n\r\n%s" % (status, len(body), body)
    )


@pytest.fixture(scope="module")
def cluster() -> Iterator[cbframe.LocalCluster]:
    with cbframe.LocalCluster(vbuckets=4) as cluster:
        cluster.upsert("k", {"a": 1})
        yield cluster


def test_the_environment_does_not_count(
    cluster: cbframe.LocalCluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login other password wrong\n")
    monkeypatch.setenv("NETRC", str(netrc))
    with Proxy(reply(403)) as wrong:
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        for name in VARIABLES:
            monkeypatch.setenv(name, wrong.url)
        for more in ({}, {"scope": "_default"}):
            frame = cbframe.read_bucket(cluster.rest_urls, "default", auth=AUTH, **more)
            assert len(frame) == 1
        assert cbframe.doctor(cluster.rest_urls, "default", auth=AUTH).ok
        assert cbframe.connect_bucket(cluster.rest_urls[0], "default", "default", AUTH).name == "default"
        assert wrong.heard == []


def test_a_proxy_that_is_asked_for(cluster: cbframe.LocalCluster) -> None:
    with Proxy(None) as through:
        options = BucketDataSourceOptions(proxies={"all": through.url})
        assert len(cbframe.read_bucket(cluster.rest_urls, "default", auth=AUTH, options=options)) == 1
        assert through.heard
        heard = len(through.heard)
        found = cbframe.doctor(cluster.rest_urls, "default", auth=AUTH, proxies={"all": through.url})
        assert found.ok
        skipped = {step.name for step in found.steps if step.status == "skipped"}
        assert skipped == {"DNS", "TCP", "TLS"}
        assert f"the proxy {through.address} is asked" in str(found)
        assert len(through.heard) > heard
        heard = len(through.heard)
        described = cbframe.connect_bucket(
            cluster.rest_urls[0], "default", "default", AUTH, proxies={"http": through.url}
        )
        assert described.name == "default"
        assert len(through.heard) > heard
        # What is for another scheme has no part in it, nor has any where data nodes are asked.
        heard = len(through.heard)
        assert cbframe.doctor(cluster.rest_urls, "default", auth=AUTH, proxies={"https": through.url}).ok
        assert cbframe.doctor(cluster, proxies={"all": through.url}).ok
        assert len(through.heard) == heard
        assert all(head.startswith(b"CONNECT 127.0.0.1:") for head in through.heard)
        assert all(TOKEN not in head for head in through.heard)


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("status", [status for status in STATUSES if status != 200])
def test_a_proxy_that_refuses(status: int, scheme: str) -> None:
    with Proxy(reply(status)) as refusing:
        client = RestClient(f"{scheme}://db.example", AUTH, timeout=5, proxies={"all": refusing.url})
        with pytest.raises(ConnectError, match=f"HTTP status {status}") as caught:
            client.manifest("b")
        error = caught.value
        assert refusing.address in str(error)
        assert not isinstance(error, AccessError | AuthFailError)
        assert "Data DCP Reader" not in str(error)
        assert [head.split(b"\r\n")[0] for head in refusing.heard] == [
            b"CONNECT db.example:%d HTTP/1.1" % (8091 if scheme == "http" else 18091)
        ]
        assert TOKEN not in refusing.heard[0]


def test_the_doctor_names_a_proxy_that_refuses() -> None:
    with Proxy(reply(403)) as refusing:
        found = cbframe.doctor("https://db.example", "b", auth=AUTH, proxies={"all": refusing.url})
    assert found.failed is not None
    assert found.failed.name == "service"
    assert f"the proxy {refusing.address} makes no connection" in found.failed.detail
    assert found.failed.remedy
    assert "CONNECT" in found.failed.remedy


def test_on_the_command_line(
    cluster: cbframe.LocalCluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    login = [cluster.rest_urls[0], "--bucket", "default", "--user", AUTH[0], "--password-env", "PW"]
    monkeypatch.setenv("PW", AUTH[1])
    with Proxy(None) as through:
        monkeypatch.setenv("SOME_PROXY", through.url)
        for option in (["--proxy", through.url], ["--proxy-env", "SOME_PROXY"]):
            heard = len(through.heard)
            assert main(["doctor", *login, *option]) == 0
            assert len(through.heard) > heard
        heard = len(through.heard)
        assert main(["read", *login, *option]) == 0
        assert len(through.heard) > heard
    capsys.readouterr()
    for option, message in (
        (["--proxy", "http://me:s3cret@proxy:3128"], "holds credentials"),
        (["--proxy", "socks5://proxy:1"], "is not usable"),
        (["--proxy-env", "NO_SUCH_VARIABLE"], "NO_SUCH_VARIABLE is not set"),
    ):
        assert main(["read", *login, *option]) == 1
        err = capsys.readouterr().err
        assert message in err
        assert "s3cret" not in err


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_says_yes_and_answers_itself(scheme: str) -> None:
    with Proxy(reply(200)) as lying:
        client = RestClient(f"{scheme}://db.example", AUTH, timeout=5, proxies={"all": lying.url})
        with pytest.raises(ConnectError) as caught:
            client.manifest("b")
        assert not isinstance(caught.value, AccessError | AuthFailError)


@pytest.mark.parametrize("status", STATUSES)
def test_a_server_in_between_that_answers_in_place_of_the_cluster(status: int) -> None:
    with Proxy(reply(status)) as between:
        with pytest.raises(ConnectError) as caught:
            RestClient(between.url, ("u", "p"), timeout=5).manifest("b")
        assert not isinstance(caught.value, AccessError | AuthFailError)
        assert caught.value.hint or status in (400, 404, 405, 429)


def test_no_proxy_there() -> None:
    client = RestClient("http://db.example", AUTH, proxies={"http": f"http://127.0.0.1:{free_port()}"})
    with pytest.raises(ConnectError, match=r"the proxy 127\.0\.0\.1:.* cannot be reached"):
        client.manifest("b")


def test_its_own_login() -> None:
    with Proxy(reply(407)) as asking:
        url = f"http://me:s3cret@{asking.address}"
        with pytest.raises(ConnectError, match="407") as caught:
            RestClient("http://db.example", AUTH, proxies={"http": url}).manifest("b")
        assert b"Proxy-Authorization: Basic " + base64.b64encode(b"me:s3cret") in asking.heard[0]
        assert "s3cret" not in str(caught.value)
        assert "s3cret" not in repr(BucketDataSourceOptions(proxies={"http": url}))


@pytest.mark.parametrize(
    "proxies",
    [{"ftp": "http://p:1"}, {"https": "socks5://p:1"}, {"https": "u:s3cret@p:1"}, {"http": "http://"}],
)
def test_proxies_that_cannot_be_used(proxies: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match="proxies") as caught:
        BucketDataSourceOptions(proxies=proxies)
    assert "s3cret" not in str(caught.value)
    with pytest.raises(ConfigurationError, match="proxies"):
        cbframe.connect_bucket("http://h", "default", "b", AUTH, proxies=proxies)
    failed = cbframe.doctor("http://h", "b", auth=AUTH, proxies=proxies).failed
    assert failed is not None
    assert failed.name == "arguments"


@pytest.mark.parametrize(
    ("server", "challenge", "body", "kind"),
    [
        ("Couchbase Server", "", b"", AccessError),
        ("", "", b'{"message": "Forbidden."}', AccessError),
        ("squid", "", b"<html>", ConnectError),
    ],
)
def test_who_refuses(server: str, challenge: str, body: bytes, kind: type[ConnectError]) -> None:
    with pytest.raises(ConnectError) as caught:
        RestAnswer("h:8091", "/pools", 403, "text/html", "", body, server, challenge).check()
    assert type(caught.value) is kind
