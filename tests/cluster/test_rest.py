"""The cluster manager over real HTTP: every way to fail has one clear error."""

from __future__ import annotations

import base64
import gzip
import json
import socket
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from servers import READER, Proxy, Reply, TcpServer, free_port, manager

import cbframe
from cbframe import BucketDataSourceOptions
from cbframe.cli import main
from cbframe.cluster.answers import RestAnswer
from cbframe.cluster.cluster_map import parse_bucket_config
from cbframe.cluster.connection_string import HostPort
from cbframe.cluster.rest import RestClient, connect_bucket
from cbframe.errors import (
    AccessError,
    AllServerURLsConnectBucketError,
    AuthFailError,
    BucketNotFoundError,
    CbframeError,
    ClusterMapError,
    ConfigurationError,
    ConnectError,
)

from .configs import UUID, by_node, terse_config, verbose_config, walk

AUTH = READER
TERSE = "/pools/default/b/travel"


@pytest.fixture
def refused() -> str:
    return f"http://127.0.0.1:{free_port()}"


def ask(pages: dict[str, Any], **options: Any) -> tuple[dict[str, object], HostPort]:
    with manager(pages) as served:
        return RestClient(served.url, AUTH, **options).bucket_config("travel")


def cause(pages: dict[str, Any], **options: Any) -> ConnectError:
    """The error of the only seed, which is not permanent and so comes wrapped."""
    with pytest.raises(AllServerURLsConnectBucketError) as caught:
        ask(pages, **options)
    found = caught.value.__cause__
    assert isinstance(found, ConnectError)
    assert found.message in str(caught.value)
    return found


def test_terse_config() -> None:
    """Only one request, where there is that endpoint."""
    with manager({TERSE: terse_config()}) as served:
        config, origin = RestClient(served.url, AUTH).bucket_config("travel", bucket_uuid=UUID)
    assert config == terse_config()
    assert (origin.host, origin.port is None) == ("127.0.0.1", False)
    assert served.requests == [f"{TERSE}?bucket_uuid={UUID}"]


def test_bucket_names_are_escaped() -> None:
    with manager({"/pools/default/b/50%25.x%2F..": terse_config()}) as served:
        RestClient(served.url, AUTH).bucket_config("50%.x/..")


def test_fallback_to_the_walk_completes_the_config() -> None:
    config, origin = ask(walk())
    found = parse_bucket_config(config, origin=origin, tls=True)
    assert found.nodes == ("10.0.0.1:11207", "10.0.0.2:11207")
    assert found.revision == (0, 0)


def test_fallback_without_node_services() -> None:
    pages = walk()
    del pages["/pools/default/nodeServices"]
    config, origin = ask(pages)
    assert parse_bucket_config(config, origin=origin).nodes == ("10.0.0.1:11210", "10.0.0.2:11210")
    with pytest.raises(ClusterMapError, match="TLS port"):
        parse_bucket_config(config, origin=origin, tls=True)


@pytest.mark.parametrize("auth", [("reader", "wrong"), ("nobody", READER[1])])
def test_401(auth: tuple[str, str]) -> None:
    with manager({TERSE: terse_config()}) as served, pytest.raises(AuthFailError) as caught:
        RestClient(served.url, auth).bucket_config("travel")
    assert (caught.value.node, caught.value.permanent) == (served.node, True)
    assert "wrong" not in str(caught.value)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (
            {"message": "Forbidden.", "permissions": ["cluster.bucket[travel].settings!read"]},
            r"missing: cluster\.bucket\[travel\]\.settings!read",
        ),
        *((body, None) for body in (b"", b"<html>", b"[1]", b'{"permissions": 3}', b"[" * 100_000)),
    ],
)
def test_403(body: object, told: str | None) -> None:
    with pytest.raises(AccessError, match=told):
        ask({TERSE: Reply(403, body)})


def test_404_lists_the_visible_buckets() -> None:
    with manager(walk()) as served, pytest.raises(BucketNotFoundError, match="visible buckets: travel"):
        RestClient(served.url, AUTH).bucket_config("beer")


@pytest.mark.parametrize("state", ["pausing", "paused"])
def test_a_paused_bucket_says_so(state: str) -> None:
    """Its terse config has no map; the verbose one tells why."""
    pages = walk(
        **{
            TERSE: terse_config(vBucketServerMap={"serverList": [], "vBucketMap": []}),
            "/pools/default/buckets/travel": verbose_config(hibernationState=state),
        }
    )
    for ask_for in (RestClient.bucket_config, RestClient.check_bucket):
        with manager(pages) as served, pytest.raises(BucketNotFoundError, match="is paused") as caught:
            ask_for(RestClient(served.url, AUTH), "travel")
        assert caught.value.permanent
        assert "resume" in str(caught.value.hint)


def test_whether_there_is_such_a_bucket() -> None:
    with manager(walk()) as served:
        client = RestClient(served.url, AUTH)
        client.check_bucket("travel")
        assert served.requests == ["/pools/default/buckets/travel"]
        with pytest.raises(BucketNotFoundError, match="visible buckets: travel"):
            client.check_bucket("beer")
    resuming = walk(**{"/pools/default/buckets/travel": verbose_config(hibernationState="resuming")})
    with manager(resuming) as served:
        RestClient(served.url, AUTH).check_bucket("travel")


def test_a_bucket_without_a_map_yet() -> None:
    pages = walk(**{TERSE: terse_config(vBucketServerMap={})})
    config, _ = ask(pages)
    assert config["vBucketServerMap"] == {}


@pytest.mark.parametrize("path", ["/pools", "/pools/default", "/pools/default/buckets"])
def test_404_where_the_walk_is_forbidden(path: str) -> None:
    with pytest.raises(AccessError, match=path):
        ask(walk(**{path: Reply(403, {})}))


def test_404_when_the_bucket_vanishes_during_the_walk() -> None:
    pages = walk()
    del pages["/pools/default/buckets/travel"]
    with pytest.raises(BucketNotFoundError):
        ask(pages)


def test_node_outside_any_cluster_is_not_an_unknown_bucket() -> None:
    error = cause({"/pools": {"pools": [], "uuid": []}})
    assert "belongs to no cluster" in error.message


@pytest.mark.parametrize(
    "pages",
    [
        {TERSE: Reply(404, b"Bucket uuid does not match the requested.")},
        {TERSE: terse_config(uuid="0" * 32)},
        walk(**{"/pools/default/buckets/travel": verbose_config(uuid="0" * 32)}),
    ],
    ids=["said by the server", "terse", "verbose"],
)
def test_wrong_uuid(pages: dict[str, Any]) -> None:
    with manager(pages) as served, pytest.raises(ClusterMapError, match="uuid") as caught:
        RestClient(served.url, AUTH).bucket_config("travel", bucket_uuid=UUID)
    assert caught.value.permanent
    assert caught.value.node == served.node


BIG = json.dumps({"name": "x" * 300_000}).encode()
PACKED = {"Content-Encoding": "gzip"}


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        *((Reply(status, b"oops"), [f"HTTP status {status}"]) for status in (400, 407, 429, 500, 503)),
        (Reply(200, b"<html>hello</html>", "text/html"), ["text/html", "content type"]),
        *(
            (Reply(200, body), ["not JSON", "content type"])
            for body in (b'{"name": "tra', b"\xff\xfe\xfd", b"", b"[" * 200_000)
        ),
        (Reply(200, [1, 2]), ["JSON list where an object", "content type"]),
        (Reply(200, b"null"), ["JSON NoneType where an object", "content type"]),
        (Reply(200, b'{"name":', length=1000), ["no whole answer"]),
        (Reply(200, b"not gzip", headers=PACKED), ["no whole answer"]),
        (Reply(200, BIG), ["more than 250000 bytes"]),
        (Reply(200, gzip.compress(BIG), headers=PACKED), ["more than 250000 bytes"]),
    ],
)
def test_answers_that_are_none(reply: Reply, told: list[str]) -> None:
    error = cause({TERSE: reply}, max_answer_bytes=250_000)
    assert all(words in error.message for words in told)
    assert not error.permanent
    assert "no whole answer" not in told or error.__cause__ is None


def test_refused_port(refused: str) -> None:
    """What the caller was handling is not the reason."""
    try:
        {}["unrelated"]
    except KeyError:
        with pytest.raises(AllServerURLsConnectBucketError, match="refused") as caught:
            RestClient(refused, AUTH).bucket_config("travel")
    assert "unrelated" not in str(caught.value)
    assert isinstance(caught.value.__cause__, ConnectError)
    assert caught.value.__cause__.__cause__ is None


def test_timeout_before_the_answer() -> None:
    done = threading.Event()
    with manager({TERSE: Reply(200, b"{}", before=done.wait)}) as served:
        try:
            with pytest.raises(AllServerURLsConnectBucketError, match=r"within 0\.1 s"):
                RestClient(served.url, AUTH, timeout=0.1).bucket_config("travel")
        finally:
            done.set()


def test_timeout_inside_the_answer() -> None:
    def talk(peer: socket.socket) -> None:
        peer.recv(4096)
        peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
        peer.recv(4096)  # ends when the client gives up

    with TcpServer(talk) as server, pytest.raises(AllServerURLsConnectBucketError, match=r"within 0\.1 s"):
        RestClient(f"http://{server.address}", AUTH, timeout=0.1).bucket_config("travel")


@pytest.mark.parametrize("options", [{}, {"verify": False}])
def test_tls_to_a_plain_port(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment does not overrule what is said of certificates."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nonexistent/other.pem")
    with manager({}) as served, pytest.raises(ConnectError, match="does not speak TLS"):
        RestClient(served.url.replace("http:", "https:"), AUTH, **options).bucket_config("travel")


def test_missing_ca_file() -> None:
    client = RestClient("https://127.0.0.1:1", AUTH, verify="/nonexistent/ca.pem")
    with pytest.raises(ConfigurationError, match="certificates"):
        client.bucket_config("travel")


def test_redirects_are_not_followed() -> None:
    with manager({TERSE: terse_config()}) as other:
        location = other.url.replace("//", "//u:s3cret@") + TERSE
        error = cause({TERSE: Reply(302, b"", headers={"Location": location})})
    assert other.requests == []
    assert other.node in error.message
    assert "s3cret" not in str(error)


@pytest.mark.parametrize("uri", ["http://evil.example/pools/default", "//evil.example/x", "x"])
def test_uris_to_other_hosts_are_not_followed(uri: str) -> None:
    error = cause({"/pools": {"pools": [{"name": "default", "uri": uri}]}})
    assert "another host" in error.message


@pytest.mark.parametrize("answer", [{"pools": 3}, {"pools": [3]}, {"pools": [{}]}, {"pools": [{"name": 1}]}])
def test_walk_through_nonsense(answer: object) -> None:
    assert isinstance(cause({"/pools": answer}), ClusterMapError)


def test_all_seeds_failed(refused: str) -> None:
    with manager({TERSE: Reply(500, b"")}) as bad, pytest.raises(AllServerURLsConnectBucketError) as caught:
        RestClient([refused, bad.url], AUTH).bucket_config("travel")
    assert caught.value.server_urls == [refused, bad.url]
    assert f"{refused}: no whole answer" in str(caught.value)
    assert f"{bad.url}: {TERSE} answered with HTTP status 500" in str(caught.value)
    assert "500" in str(caught.value.__cause__)


def test_node_services() -> None:
    with manager(walk()) as served:
        assert "nodesExt" in RestClient(served.url, AUTH).node_services()


# ------------------------------------------------------------------ the other questions


def test_manifest() -> None:
    scopes = {"uid": "b", "scopes": [{"name": "s", "uid": "8", "collections": [{"name": "c", "uid": "1f"}]}]}
    with manager({"/pools/default/buckets/travel/scopes": scopes}) as served:
        manifest = RestClient(served.url, AUTH).manifest("travel")
    assert manifest.id_of("s.c") == 0x1F


def test_manifest_of_an_unknown_bucket_and_of_an_old_server() -> None:
    with manager(walk()) as served:
        client = RestClient(served.url, AUTH)
        with pytest.raises(BucketNotFoundError, match="travel"):
            client.manifest("beer")
        with pytest.raises(AllServerURLsConnectBucketError, match="no collections manifest"):
            client.manifest("travel")


def test_connect_bucket() -> None:
    with manager(walk()) as served:
        bucket = connect_bucket(served.url, "default", "travel", AUTH)
    assert (bucket.name, bucket.uuid) == ("travel", UUID)
    assert by_node(bucket.map) == {"ext1.example:30001": [0, 2], "ext2.example:30002": [1, 3]}
    assert [entry["hostname"] for entry in bucket.node_services] == ["10.0.0.1", "10.0.0.2"]
    assert served.requests[0] == "/pools"


def test_connect_bucket_takes_credentials_from_the_url() -> None:
    with manager(walk()) as served:
        url = served.url.replace("//", "//reader:p%C3%A4sswort%3Ahunter2@")
        assert connect_bucket(url, "default", "travel", None).name == "travel"


def test_connect_bucket_failures(refused: str) -> None:
    with manager(walk()) as served:
        with pytest.raises(BucketNotFoundError):
            connect_bucket(served.url, "default", "beer", AUTH)
        with pytest.raises(ConfigurationError, match="no pool 'other'"):
            connect_bucket(served.url, "other", "travel", AUTH)
        with pytest.raises(AuthFailError):
            connect_bucket(served.url, "default", "travel", ("a", "b"))
    with pytest.raises(ConnectError, match="refused"):
        connect_bucket(refused, "default", "travel", AUTH)
    with pytest.raises(ConfigurationError, match="one server URL"):
        connect_bucket("http://a,http://b", "default", "travel", AUTH)
    with pytest.raises(ConfigurationError, match="couchbase://"):
        connect_bucket("couchbase://a", "default", "travel", AUTH)


# ------------------------------------------------------------------ sessions and secrets


@pytest.fixture
def sessions() -> Any:
    """Sessions that are counted: their class."""

    class Counting(requests.Session):
        opened = closed = 0

        def __init__(self) -> None:
            super().__init__()
            Counting.opened += 1

        def close(self) -> None:
            Counting.closed += 1
            super().close()

    return Counting


def test_sessions_are_closed(sessions: Any, refused: str) -> None:
    with manager({TERSE: terse_config()}) as served:
        client = RestClient([refused, served.url], AUTH, session_factory=sessions)
        client.bucket_config("travel")
        assert sessions.opened == sessions.closed == 2
        with client:
            client.bucket_config("travel")
            client.bucket_config("travel")
            assert (sessions.opened, sessions.closed) == (3, 2)
    assert sessions.closed == 3


def test_password_is_fetched_anew_for_each_call() -> None:
    passwords = iter([("reader", "old"), AUTH])
    with manager({TERSE: terse_config()}) as served:
        client = RestClient(served.url, lambda: next(passwords))
        with pytest.raises(AuthFailError):
            client.bucket_config("travel")
        client.bucket_config("travel")


def test_no_auth_at_all() -> None:
    with pytest.raises(ConfigurationError, match="no user name"):
        RestClient("http://127.0.0.1:1", None).bucket_config("travel")


@pytest.mark.parametrize("page", [Reply(500, b""), Reply(403, {}), Reply(200, b"<"), Reply(302, b""), {}])
def test_secrets_stay_secret(page: object) -> None:
    with manager({TERSE: page} if page else {}) as served:
        url = served.url.replace("//", "//reader:s3cret@")
        served.pages |= {"/pools": {"pools": []}}
        client = RestClient([url], None)
        assert "s3cret" not in repr(client)
        assert "s3cret" not in repr(vars(client))
        with pytest.raises(CbframeError) as caught:
            client.bucket_config("travel")
    shown = "".join(traceback.format_exception(caught.value))
    assert "s3cret" not in shown
    assert "reader:" not in shown


# --- proxies: none unless asked for, and then for CONNECT only; credentials go to nobody but the cluster

ADMIN = ("Administrator", "password")
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
def small_cluster() -> Iterator[cbframe.LocalCluster]:
    with cbframe.LocalCluster(vbuckets=4) as small_cluster:
        small_cluster.upsert("k", {"a": 1})
        yield small_cluster


def test_the_environment_does_not_count(
    small_cluster: cbframe.LocalCluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
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
            frame = cbframe.read_bucket(small_cluster.rest_urls, "default", auth=ADMIN, **more)
            assert len(frame) == 1
        assert cbframe.doctor(small_cluster.rest_urls, "default", auth=ADMIN).ok
        assert (
            cbframe.connect_bucket(small_cluster.rest_urls[0], "default", "default", ADMIN).name == "default"
        )
        assert wrong.heard == []


def test_a_proxy_that_is_asked_for(small_cluster: cbframe.LocalCluster) -> None:
    with Proxy(None) as through:
        options = BucketDataSourceOptions(proxies={"all": through.url})
        assert len(cbframe.read_bucket(small_cluster.rest_urls, "default", auth=ADMIN, options=options)) == 1
        assert through.heard
        heard = len(through.heard)
        found = cbframe.doctor(small_cluster.rest_urls, "default", auth=ADMIN, proxies={"all": through.url})
        assert found.ok
        skipped = {step.name for step in found.steps if step.status == "skipped"}
        assert skipped == {"DNS", "TCP", "TLS"}
        assert f"the proxy {through.address} is asked" in str(found)
        assert len(through.heard) > heard
        heard = len(through.heard)
        described = cbframe.connect_bucket(
            small_cluster.rest_urls[0], "default", "default", ADMIN, proxies={"http": through.url}
        )
        assert described.name == "default"
        assert len(through.heard) > heard
        # What is for another scheme has no part in it, nor has any where data nodes are asked.
        heard = len(through.heard)
        assert cbframe.doctor(
            small_cluster.rest_urls, "default", auth=ADMIN, proxies={"https": through.url}
        ).ok
        assert cbframe.doctor(small_cluster, proxies={"all": through.url}).ok
        assert len(through.heard) == heard
        assert all(head.startswith(b"CONNECT 127.0.0.1:") for head in through.heard)
        assert all(TOKEN not in head for head in through.heard)


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("status", [status for status in STATUSES if status != 200])
def test_a_proxy_that_refuses(status: int, scheme: str) -> None:
    with Proxy(reply(status)) as refusing:
        client = RestClient(f"{scheme}://db.example", ADMIN, timeout=5, proxies={"all": refusing.url})
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
        found = cbframe.doctor("https://db.example", "b", auth=ADMIN, proxies={"all": refusing.url})
    assert found.failed is not None
    assert found.failed.name == "service"
    assert f"the proxy {refusing.address} makes no connection" in found.failed.detail
    assert found.failed.remedy
    assert "CONNECT" in found.failed.remedy


def test_on_the_command_line(
    small_cluster: cbframe.LocalCluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    login = [small_cluster.rest_urls[0], "--bucket", "default", "--user", ADMIN[0], "--password-env", "PW"]
    monkeypatch.setenv("PW", ADMIN[1])
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
        client = RestClient(f"{scheme}://db.example", ADMIN, timeout=5, proxies={"all": lying.url})
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
    client = RestClient("http://db.example", ADMIN, proxies={"http": f"http://127.0.0.1:{free_port()}"})
    with pytest.raises(ConnectError, match=r"the proxy 127\.0\.0\.1:.* cannot be reached"):
        client.manifest("b")


def test_its_own_login() -> None:
    with Proxy(reply(407)) as asking:
        url = f"http://me:s3cret@{asking.address}"
        with pytest.raises(ConnectError, match="407") as caught:
            RestClient("http://db.example", ADMIN, proxies={"http": url}).manifest("b")
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
        cbframe.connect_bucket("http://h", "default", "b", ADMIN, proxies=proxies)
    failed = cbframe.doctor("http://h", "b", auth=ADMIN, proxies=proxies).failed
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
