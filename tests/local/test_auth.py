"""Users with some rights only, as clients meet them."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from cbframe import LocalCluster
from cbframe.errors import ConfigurationError
from cbframe.local.auth import NOBODY, Credentials, User
from cbframe.wire.constants import Feature, Opcode, OpenFlag, Status, StreamEndReason
from cbframe.wire.framing import Frame
from cbframe.wire.messages import DcpOpen, Hello, SaslAuth, SelectBucket, StreamFilter, StreamRequest
from cbframe.wire.sasl import ScramClient

from .client import COLLECTIONS, LEGACY, Client, context, noop, reason, rest

ANN = ("ann", "p")


@pytest.fixture
def shop() -> Iterator[LocalCluster]:
    with LocalCluster(vbuckets=1, seed=1) as cluster:
        cluster.create_scope("shop")
        for name in ("orders", "users"):
            cluster.create_collection("shop", name)
            cluster.upsert(name, {}, collection=f"shop.{name}")
        cluster.upsert("plain", {})
        yield cluster


def streaming(cluster: LocalCluster, name: str, connection: str = "") -> Client:
    return Client(cluster).login(auth=(name, "p")).open(name=connection or name)


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA512", "SCRAM-SHA256", "SCRAM-SHA1", "PLAIN"])
def test_each_user_has_a_password(cluster: LocalCluster, mechanism: str) -> None:
    cluster.add_user("ann", "one")
    cluster.add_user("bob", "two")
    cluster.add_user("ann", "three")

    with Client(cluster) as made:
        login = made.plain if mechanism == "PLAIN" else partial(made.scram, mechanism)
        for right in (("ann", "three"), ("bob", "two"), ("Administrator", "password")):
            assert login(*right) == Status.SUCCESS
        for wrong in (("ann", "one"), ("ann", "two"), ("bob", "three"), ("carl", ""), ("", ""), ("ann", "")):
            assert login(*wrong) == Status.AUTH_ERROR
        assert made.call(noop()).status == Status.EACCESS


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
    with Client(cluster).login(auth=ANN, select=False) as made:
        assert made.call(SelectBucket("default")).status == select
        if opened is not None:
            assert made.operate(Opcode.GET, key=b"\0k").value == b"{}"
            assert made.call(DcpOpen("test", OpenFlag.PRODUCER)).status == opened
    assert rest(cluster, "/pools/default/b/default", auth=ANN).status_code == bucket
    path = "/pools/default/buckets/default/controller/doFlush"
    assert rest(cluster, path, "POST", auth=ANN).status_code == flush


def test_wrong_users(cluster: LocalCluster) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"access": "all"}, "no access 'all'"),
        ({"elsewhere": "all"}, "no access 'all'"),
        ({"collections": ["shop.orders"]}, r"no collection shop\.orders"),
        ({"scopes": ["shop"]}, "no scope or collection shop"),
    ]
    for rights, message in wrong:
        with pytest.raises(ConfigurationError, match=message):
            cluster.add_user("ann", "p", **rights)
    with pytest.raises(ConfigurationError, match="no user 'ann'"):
        cluster.revoke("ann")


def keys(made: Client, collections: tuple[int, ...] | None = None, scope: int | None = None) -> list[bytes]:
    value = StreamFilter(collections, scope).encode()
    return [f.key[1:] for f in made.read(0, 6, value=value) if f.opcode == Opcode.DCP_MUTATION]


def refused(made: Client, collections: tuple[int, ...] | None = None, scope: int | None = None) -> int:
    return made.stream(0, value=StreamFilter(collections, scope).encode()).status


GOOD, DENIED, UNKNOWN = Status.SUCCESS, Status.EACCESS, Status.UNKNOWN_COLLECTION


@pytest.mark.parametrize(
    ("rights", "granted", "whole", "scope", "others"),
    [
        ({"collections": ["shop.orders"]}, [(8,)], Status.EACCESS, Status.EACCESS, UNKNOWN),
        ({"collections": ["shop.orders"], "elsewhere": "data"}, [(8,)], *[Status.EACCESS] * 3),
        ({"collections": ["_default"]}, [(0,)], Status.EACCESS, Status.UNKNOWN_SCOPE, UNKNOWN),
        ({"scopes": ["shop"]}, [(8,), (9,), (8, 9)], Status.EACCESS, Status.SUCCESS, UNKNOWN),
        (
            {"scopes": ["shop"], "collections": ["_default"]},
            [(0, 8, 9)],
            Status.EACCESS,
            Status.SUCCESS,
            None,
        ),
        ({"collections": ["shop.users"], "elsewhere": "dcp"}, [(0, 8, 9)], *[Status.SUCCESS] * 2, None),
    ],
)
def test_streams_of_a_user_with_some_collections(
    shop: LocalCluster,
    rights: Any,
    granted: list[tuple[int, ...]],
    whole: int,
    scope: int,
    others: int | None,
) -> None:
    shop.add_user("ann", "p", **rights)
    names = {0: b"plain", 8: b"orders", 9: b"users"}
    with streaming(shop, "ann") as made:
        for wanted in granted:
            assert keys(made, wanted) == [names[cid] for cid in sorted(wanted, key=[8, 9, 0].index)]
        good = {cid for wanted in granted for cid in wanted}
        for cid in names.keys() - good:
            # One collection that does not exist for the user outweighs all others.
            assert refused(made, (cid,)) == refused(made, (cid, min(good))) == others
        for status, wish in ((whole, {}), (scope, {"scope": 8})):
            if status:
                assert refused(made, **wish) == status
            else:
                assert keys(made, **wish)[:2] == [b"orders", b"users"]


@pytest.mark.parametrize(
    ("rights", "seen", "scopes"),
    [
        ({"collections": ["shop.orders"]}, {"shop.orders"}, {"shop"}),
        ({"scopes": ["empty"]}, set(), {"empty"}),
        (
            {"collections": ["shop.orders"], "elsewhere": "data"},
            {"_default._default", "shop.orders", "shop.users"},
            {"_default", "shop", "empty"},
        ),
    ],
)
def test_what_exists_for_a_user(shop: LocalCluster, rights: Any, seen: set[str], scopes: set[str]) -> None:
    shop.create_scope("empty")
    shop.add_user("ann", "p", **rights)
    every = {"_default._default": 0, "shop.orders": 8, "shop.users": 9}
    with Client(shop).login(auth=ANN) as made:
        over_kv = json.loads(made.operate(Opcode.COLLECTIONS_GET_MANIFEST).value)
        assert over_kv == rest(shop, "/pools/default/buckets/default/scopes", auth=ANN).json()
        shown = {f"{s['name']}.{c['name']}" for s in over_kv["scopes"] for c in s["collections"]}
        assert (shown, {s["name"] for s in over_kv["scopes"]}) == (seen, scopes)
        for name in ("_default", "shop", "empty"):
            status = Status.SUCCESS if name in scopes else Status.UNKNOWN_SCOPE
            made.operate(Opcode.COLLECTIONS_GET_SCOPE_ID, value=name.encode(), expect=status)
        for path, cid in every.items():
            status = Status.SUCCESS if path in seen else UNKNOWN
            made.operate(Opcode.COLLECTIONS_GET_ID, value=path.encode(), expect=status)
            key = bytes([cid]) + path.rpartition(".")[2].encode()
            made.operate(Opcode.GET, key=key, expect=status or FOUND[cid])
            made.operate(Opcode.GET_ALL_VB_SEQNOS, extras=struct.pack(">II", 1, cid), expect=status)
        made.operate(Opcode.GET_ALL_VB_SEQNOS)


FOUND = {0: Status.KEY_ENOENT, 8: Status.SUCCESS, 9: Status.SUCCESS}
"""What a GET of the document finds that is called like its collection."""


def test_what_a_user_with_some_collections_may_not_ask(shop: LocalCluster) -> None:
    shop.add_user("ann", "p", collections=["shop.orders"])
    with Client(shop).login(auth=ANN) as made:
        answer = made.operate(Opcode.GET_FAILOVER_LOG, vbucket=0, expect=Status.EACCESS)
        assert b"without the Read privilege" in answer.value
        for group in (b"", b"vbucket-details", b"no-such-group"):
            answer = made.operate(Opcode.STAT, key=group, expect=Status.EACCESS)
            assert b"without the SimpleStats privilege" in answer.value
        made.open(name="ann")
        assert made.operate(Opcode.DCP_GET_FAILOVER_LOG, vbucket=0).value


@pytest.mark.parametrize("own", [True, False])
def test_without_collections_there_is_the_default_one(shop: LocalCluster, own: bool) -> None:
    shop.add_user("ann", "p", collections=["_default" if own else "shop.orders"])
    with Client(shop).login(LEGACY, auth=ANN) as made:
        if own:
            made.open()
            assert [f.key for f in made.read(0, 6) if f.opcode == Opcode.DCP_MUTATION] == [b"plain"]
            return
        made.operate(Opcode.GET_ALL_VB_SEQNOS, expect=Status.EACCESS)
        made.open()
        assert made.stream(0).status == Status.UNKNOWN_COLLECTION


def test_clients_without_extended_errors_are_hung_up_on(shop: LocalCluster) -> None:
    shop.add_user("ann", "p", collections=["shop.orders"])
    plain = [feature for feature in COLLECTIONS if feature != Feature.XERROR]
    for features, closed in ((plain, True), ([f for f in plain if f != Feature.COLLECTIONS], False)):
        with Client(shop).login(features, auth=ANN).open() as made:
            made.send(StreamRequest(0))
            answer = made.receive()
            assert answer is None if closed else answer is not None and answer.status == Status.EINVAL


def test_rights_go_with_the_collection(shop: LocalCluster) -> None:
    shop.add_user("ann", "p", collections=["shop.orders"])
    shop.drop_collection("shop", "orders")
    shop.create_collection("shop", "orders")
    with streaming(shop, "ann") as made:
        assert refused(made, (8,)) == refused(made, (10,)) == Status.UNKNOWN_COLLECTION
        assert refused(made, scope=8) == Status.UNKNOWN_SCOPE


def test_streams_end_that_other_rights_do_not_include(shop: LocalCluster) -> None:
    shop.add_user("ann", "p", scopes=["shop"])
    with streaming(shop, "ann") as made, streaming(shop, "ann", "other") as other:
        assert refused(made, scope=8) == refused(other, (9,)) == Status.SUCCESS
        shop.add_user("ann", "p", collections=["shop.users"])
        assert reason(made.until_end()[-1]) == StreamEndReason.LOST_PRIVILEGES
        shop.upsert("later", {}, collection="shop.users")
        while (frame := other.next()).key != b"\x09later":
            assert frame.opcode != Opcode.DCP_STREAM_END


@pytest.mark.parametrize(("version", "step"), [("7.2", Opcode.SASL_STEP), ("8.0", Opcode.SASL_AUTH)])
def test_external_users(version: str, step: Opcode) -> None:
    with LocalCluster(vbuckets=1, version=version) as cluster:
        with Client(cluster) as made:
            made.call(Hello("test", COLLECTIONS))
            # Nobody is external: who does not exist gets a challenge, which tells nothing.
            answers = challenge(made, "ann")
            assert [each.opcode for each in answers] == [Opcode.SASL_AUTH, Opcode.SASL_STEP]
            assert json.loads(answers[-1].value)["error"].keys() == {"ref"}
        cluster.add_user("ann", "p", external=True)
        with Client(cluster) as made:
            made.call(Hello("test", COLLECTIONS))
            assert made.operate(Opcode.SASL_LIST_MECHS).value.split()[-1] == b"PLAIN"
            for name in ("ann", "nobody"):
                answers = challenge(made, name)
                assert (answers[-1].opcode, answers[-1].status) == (step, Status.AUTH_ERROR)
                assert "external users" in context(answers[-1])
            assert challenge(made, cluster.username)[-1].opcode == Opcode.SASL_STEP
            # The connection is as good as new after each refusal.
            assert made.plain("ann", "wrong") == Status.AUTH_ERROR
            assert made.plain("ann", "p") == made.call(SelectBucket("default")).status == 0
        assert rest(cluster, "/pools/default/b/default", auth=ANN).status_code == 200


def challenge(made: Client, name: str) -> list[Frame]:
    """The answers to a login by SCRAM with a wrong password."""
    scram = ScramClient("SCRAM-SHA256", name, "wrong", lambda: "nonce")
    answers = [made.call(SaslAuth("SCRAM-SHA256", scram.first()))]
    if answers[0].status == Status.AUTH_CONTINUE:
        final = scram.final(answers[0].value)
        answers.append(made.call(SaslAuth("SCRAM-SHA256", final, Opcode.SASL_STEP)))
    return answers


def test_rights_that_are_taken_away(shop: LocalCluster) -> None:
    shop.add_user("ann", "p")
    shop.add_user("bob", "p")
    with streaming(shop, "ann") as made, streaming(shop, "bob") as other:
        assert made.stream(0).status == other.stream(0).status == 0
        shop.revoke("ann")
        assert reason(made.until_end()[-1]) == StreamEndReason.LOST_PRIVILEGES
        assert made.stream(0).status == Status.EACCESS
        shop.upsert("later", {})
        while (frame := other.next()).key != b"\0later":
            assert frame.opcode != Opcode.DCP_STREAM_END
    with Client(shop) as again:
        assert again.plain("ann", "p") == Status.AUTH_ERROR
    assert rest(shop, "/pools/default/b/default", auth=ANN).status_code == 401


def test_no_password_is_shown() -> None:
    credentials = Credentials("ann", "secret-1")
    credentials.add(User("bob", "secret-2"))
    assert "secret" not in f"{credentials!r} {credentials.named('bob')!r} {NOBODY!r}"
