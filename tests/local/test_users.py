"""Users with some rights only, as clients meet them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import requests

from cbframe import LocalCluster
from cbframe.errors import ConfigurationError
from cbframe.local.users import NOBODY, Credentials, User
from cbframe.wire.constants import Opcode, OpenFlag, Status, StreamEndReason
from cbframe.wire.requests import DcpOpen, Hello, SelectBucket, StreamFilter

from .client import COLLECTIONS, Client, reason

TIMEOUT = 10
MECHANISMS = ["SCRAM-SHA512", "SCRAM-SHA256", "SCRAM-SHA1"]


@pytest.fixture
def shop() -> Iterator[LocalCluster]:
    with LocalCluster(vbuckets=1, seed=1) as cluster:
        cluster.create_scope("shop")
        for name in ("orders", "users"):
            cluster.create_collection("shop", name)
            cluster.upsert(name, {}, collection=f"shop.{name}")
        cluster.upsert("plain", {})
        yield cluster


def client(cluster: LocalCluster, name: str, password: str = "p") -> Client:
    made = Client(cluster)
    assert made.call(Hello("test", COLLECTIONS)).status == 0
    assert made.plain(name, password) == 0
    return made


def streaming(cluster: LocalCluster, name: str) -> Client:
    made = client(cluster, name)
    assert made.call(SelectBucket("default")).status == 0
    return made.open(name=name)


@pytest.mark.parametrize("mechanism", [*MECHANISMS, "PLAIN"])
def test_each_user_has_a_password(cluster: LocalCluster, mechanism: str) -> None:
    cluster.add_user("ann", "one")
    cluster.add_user("bob", "two")
    cluster.add_user("ann", "three")

    def status(name: str, password: str) -> int:
        with Client(cluster) as made:
            if mechanism == "PLAIN":
                return made.plain(name, password)
            return made.scram(mechanism, name, password)

    assert status("ann", "three") == status("bob", "two") == status("Administrator", "password") == 0
    for wrong in (("ann", "one"), ("ann", "two"), ("bob", "three"), ("carl", ""), ("", ""), ("ann", "")):
        assert status(*wrong) == Status.AUTH_ERROR


def rest(cluster: LocalCluster, path: str, user: str, method: str = "GET") -> int:
    url = f"{cluster.rest_urls[0]}/pools/default/{path}"
    return requests.request(method, url, auth=(user, "p"), timeout=TIMEOUT).status_code


@pytest.mark.parametrize(
    ("access", "select", "opened", "bucket", "flush"),
    [
        ("none", Status.EACCESS, None, 403, 403),
        ("data", Status.SUCCESS, Status.EACCESS, 200, 405),
        ("dcp", Status.SUCCESS, Status.SUCCESS, 200, 405),
        ("admin", Status.SUCCESS, Status.SUCCESS, 200, 200),
    ],
)
def test_access(
    cluster: LocalCluster, access: str, select: int, opened: int | None, bucket: int, flush: int
) -> None:
    cluster.upsert("k", {})
    cluster.add_user("ann", "p", access=access)  # type: ignore[arg-type]
    with client(cluster, "ann") as made:
        assert made.call(SelectBucket("default")).status == select
        if opened is not None:
            assert made.operate(Opcode.GET, key=b"\0k").value == b"{}"
            assert made.call(DcpOpen("test", OpenFlag.PRODUCER)).status == opened
    assert rest(cluster, "b/default", "ann") == bucket
    assert rest(cluster, "buckets/default/controller/doFlush", "ann", "POST") == flush


def test_wrong_users(cluster: LocalCluster) -> None:
    with pytest.raises(ConfigurationError, match="no access 'all'"):
        cluster.add_user("ann", "p", access="all")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"no collection shop\.orders"):
        cluster.add_user("ann", "p", collections=["shop.orders"])
    with pytest.raises(ConfigurationError, match="no user 'ann'"):
        cluster.revoke("ann")


def keys(made: Client, collections: tuple[int, ...] | None = None, scope: int | None = None) -> list[bytes]:
    value = StreamFilter(collections, scope).encode()
    return [f.key[1:] for f in made.read(0, 6, value=value) if f.opcode == Opcode.DCP_MUTATION]


def test_collections_that_do_not_exist_for_a_user(shop: LocalCluster) -> None:
    shop.add_user("ann", "p", collections=["shop.orders"])
    with streaming(shop, "ann") as made:
        assert keys(made) == keys(made, (8,)) == keys(made, scope=8) == [b"orders"]
        for wanted in ((9,), (0,), (8, 9)):
            answer = made.stream(0, value=StreamFilter(wanted).encode())
            assert answer.status == Status.UNKNOWN_COLLECTION
        assert b"orders" in (found := made.operate(Opcode.COLLECTIONS_GET_MANIFEST).value)
        assert b"users" not in found
        assert b"_default" not in found
    with client(shop, "ann") as made:
        assert made.call(SelectBucket("default")).status == 0
        assert made.operate(Opcode.GET, key=b"\x08orders").value == b"{}"
        for hidden in (b"\x09users", b"\0plain"):
            made.operate(Opcode.GET, key=hidden, expect=Status.UNKNOWN_COLLECTION)
    shop.drop_collection("shop", "orders")
    with streaming(shop, "ann") as made:
        assert made.stream(0, value=StreamFilter((8,)).encode()).status == Status.UNKNOWN_COLLECTION


def test_rights_that_are_taken_away(shop: LocalCluster) -> None:
    shop.add_user("ann", "p")
    shop.add_user("bob", "p")
    with streaming(shop, "ann") as made, streaming(shop, "bob") as other:
        assert made.stream(0).status == other.stream(0).status == 0
        shop.revoke("ann")
        assert reason(made.until_end()[-1]) == StreamEndReason.LOST_PRIVILEGES
        assert made.stream(0).status == Status.EACCESS
        shop.upsert("later", {})
        while (frame := other.receive()) is not None and frame.key != b"\0later":
            assert frame.opcode != Opcode.DCP_STREAM_END
        assert frame is not None
    with Client(shop) as again:
        assert again.plain("ann", "p") == Status.AUTH_ERROR
    assert rest(shop, "b/default", "ann") == 401


def test_no_password_is_shown() -> None:
    credentials = Credentials("ann", "secret-1")
    credentials.add(User("bob", "secret-2"))
    assert "secret" not in f"{credentials!r} {credentials.named('bob')!r} {NOBODY!r}"
