"""Reads by users who may not do everything."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import doors
import pytest
from doors import Door, each_door

from cbframe import (
    AccessError,
    AuthFailError,
    BucketNotFoundError,
    CbframeError,
    Checkpoint,
    ConfigurationError,
    LocalCluster,
    doctor,
    read_bucket,
    read_schema,
    read_snapshot,
    scan_bucket,
    stream_bucket,
    write_snapshot,
)
from cbframe.cli import main
from cbframe.errors import ROLES_HINT
from cbframe.scan.scan import BucketScan

from .consumers import take
from .kit import QUICK, Sent, create, fill

ANN = ("ann", "secret-word")
ORDERS = sorted(f"orders-{n}" for n in range(10))
REFUSED = "the user may not stream all that was asked for"


@pytest.fixture(scope="module")
def shop() -> Iterator[LocalCluster]:
    """Users: ``ann`` may read shop.orders, and nothing else exists for her."""
    with LocalCluster(nodes=2, vbuckets=4, seed=1) as cluster:
        create(cluster, "shop", "orders", "users")
        for name in ("orders", "users"):
            for n in range(10):
                cluster.upsert(f"{name}-{n}", {"n": n}, collection=f"shop.{name}")
        cluster.upsert("plain", {"n": 1})
        cluster.add_user(*ANN, collections=["shop.orders"])
        yield cluster


def scan(cluster: LocalCluster, **arguments: Any) -> BucketScan:
    return scan_bucket(cluster, auth=ANN, options=QUICK, timeout=30, **arguments)


@pytest.mark.parametrize("scheme", ["couchbase", "http"])
@pytest.mark.parametrize(("access", "error"), [("none", BucketNotFoundError), ("data", AccessError)])
def test_too_few_rights(cluster: LocalCluster, access: str, error: type[CbframeError], scheme: str) -> None:
    cluster.upsert("k", {})
    cluster.add_user("ann", "secret-word", access=access)  # type: ignore[arg-type]
    conn = cluster.connection_string if scheme == "couchbase" else cluster.rest_urls
    with pytest.raises((error, AccessError)) as caught:
        scan_bucket(conn, "default", auth=("ann", "secret-word"), options=QUICK, timeout=30).to_arrow()
    assert "'ann'" in str(caught.value) or scheme == "http"
    assert ROLES_HINT in str(caught.value.hint)
    assert "secret" not in str(caught.value)


def test_the_way_of_a_user_of_one_collection(shop: LocalCluster) -> None:
    """A call that asks for too much, its error, and the call that the error names."""
    with pytest.raises(AccessError) as caught:
        read_bucket(shop, auth=ANN, progress=None)
    said = str(caught.value)
    assert re.sub(r"\[node 127\.0\.0\.1:\d+, vbucket \d\]", "[place]", said) == (
        "the user may not stream all that was asked for [place]\n"
        "  hint: the user sees shop.orders: give collections=['shop.orders'], or "
        'collections="visible" for all that the user sees; to read more, the user needs the roles '
        "Data Reader and Data DCP Reader (Capella: Read access; Community Edition: Application Access, "
        "bucket_full_access) on the bucket, or on the scopes and collections that are read"
    )
    for wanted in (["shop.orders"], "visible"):
        frame = read_bucket(shop, auth=ANN, progress=None, collections=wanted)
        assert sorted(frame.index) == ORDERS
        assert set(frame["_cb_collection"]) == {"orders"}


def peeked(shop: LocalCluster, _folder: Path, **arguments: Any) -> list[str]:
    assert "10 documents" in str(read_schema(shop, **arguments))
    return list(scan_bucket(shop, **arguments).peek(100).index)


def divided(shop: LocalCluster, folder: Path, **arguments: Any) -> list[str]:
    parts = scan_bucket(shop, **arguments).partitions(2)
    assert [part.documents for part in parts] == [None, None], "statistics were refused"
    return doors.partitions(shop, folder, **arguments)


@each_door(doors.stream, divided, doors.batches, peeked)
def test_every_front_door_names_what_can_be_read(shop: LocalCluster, door: Door, tmp_path: Path) -> None:
    for wanted in ({}, {"scope": "shop"}):
        with pytest.raises(AccessError, match=REFUSED) as caught:
            door(shop, tmp_path, auth=ANN, **wanted)
        assert "give collections=['shop.orders'], or collections=\"visible\"" in str(caught.value.hint)
    for wanted in ({"collections": "visible"}, {"collections": "visible", "scope": "shop"}):
        assert sorted(door(shop, tmp_path, auth=ANN, **wanted)) == ORDERS


def test_changes_from_now_on(shop: LocalCluster) -> None:
    with pytest.raises(AccessError, match=REFUSED):
        stream_bucket(shop, auth=ANN, start="now")
    with stream_bucket(shop, auth=ANN, start="now", collections="visible") as stream:
        shop.upsert("orders-0", {"n": 0}, collection="shop.orders")
        assert take(stream).to_arrow()["_cb_key"].to_pylist() == ["orders-0"]


def test_doctor_and_the_command_line(
    shop: LocalCluster, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = doctor(shop, auth=ANN).failed
    assert (found.name, "collections=['shop.orders']" in str(found.remedy)) == ("stream", True)
    assert doctor(shop, auth=ANN, scope="shop", collections="visible").ok
    assert doctor(shop, auth=ANN, collections="shop.orders").ok
    missing = doctor(shop, auth=ANN, collections="shop.users").failed
    assert missing.remedy == "the user sees: shop.orders"

    monkeypatch.setenv("SECRET", ANN[1])
    who = [shop.connection_string, "--user", "ann", "--password-env", "SECRET"]
    assert main(["doctor", *who]) == 1
    assert main(["doctor", *who, "--collections", "visible"]) == 0
    assert main(["read", *who, "--no-progress"]) == 1
    told = capsys.readouterr()
    assert "give collections=['shop.orders']" in told.err
    for chosen in (["--collections", "visible"], ["--scope", "shop", "--collections", "orders"]):
        assert main(["read", *who, "--no-progress", *chosen]) == 0
        assert capsys.readouterr().out.count("orders-") == 10


def test_names_that_do_not_exist_for_the_user(shop: LocalCluster) -> None:
    with pytest.raises(ConfigurationError, match=r"no collection 'shop\.users' in the bucket that") as caught:
        scan(shop, collections="shop.users").to_arrow()
    assert caught.value.hint == "the user sees: shop.orders"
    with pytest.raises(ConfigurationError, match=r"no scope '_default' in the bucket that") as caught:
        scan(shop, collections="visible", scope="_default").to_arrow()
    assert caught.value.hint == "the user sees: shop"


def test_what_is_seen_need_not_be_what_may_be_streamed(shop: LocalCluster) -> None:
    shop.add_user("bob", "p", collections=["shop.orders"], elsewhere="data")
    with pytest.raises(AccessError, match=REFUSED) as caught:
        read_bucket(shop, auth=("bob", "p"), progress=None, collections="visible")
    assert str(caught.value.hint).startswith(
        "the user sees _default._default, shop.orders, shop.users, and may not stream all of these: name"
    )
    shop.add_user("bob", "p", scopes=["shop"])
    assert len(read_bucket(shop, auth=("bob", "p"), progress=None, scope="shop")) == 2 * len(ORDERS)
    shop.create_scope("empty")
    shop.add_user("bob", "p", scopes=["empty"])
    for wanted, text in (({}, "bucket 'default'"), ({"scope": "empty"}, "scope 'empty'")):
        with pytest.raises(AccessError, match=f"the user sees no collection of {text}") as caught:
            read_bucket(shop, auth=("bob", "p"), progress=None, collections="visible", **wanted)
        assert caught.value.hint == ROLES_HINT


def test_a_collection_that_is_called_visible() -> None:
    with LocalCluster(vbuckets=2, seed=1) as cluster:
        cluster.create_collection("_default", "visible")
        cluster.upsert("inside", {}, collection="visible")
        cluster.upsert("outside", {})
        for wanted, keys in ((["visible"], ["inside"]), ("visible", ["inside", "outside"])):
            table = scan_bucket(cluster, collections=wanted, progress=None).to_arrow()
            assert sorted(table["_cb_key"].to_pylist()) == keys


def test_a_snapshot_keeps_to_the_collections_of_its_first_version(tmp_path: Path) -> None:
    with LocalCluster(vbuckets=2, seed=1) as cluster:
        create(cluster, "shop", "orders", "users")
        for name in ("orders", "users"):
            cluster.upsert(name, {}, collection=f"shop.{name}")

        def write(**arguments: Any) -> list[str]:
            write_snapshot(cluster, tmp_path, auth=ANN, progress=None, **arguments)
            return sorted(read_snapshot(tmp_path).index)

        cluster.add_user(*ANN, collections=["shop.orders"])
        with pytest.raises(AccessError, match=REFUSED):
            write()
        assert write(collections="visible") == write(collections="visible") == write() == ["orders"]
        cluster.add_user(*ANN, scopes=["shop"])
        with pytest.raises(ConfigurationError) as caught:
            write(collections="visible")
        assert caught.value.message == (
            "the snapshot was made with collections=['shop.orders']; more now: shop.users"
        )
        assert write() == write(collections=["shop.orders"]) == ["orders"]
        cluster.add_user(*ANN, collections=["shop.users"])
        with pytest.raises(ConfigurationError, match=r"more now: shop\.users; no more: shop\.orders"):
            write(collections="visible")
        with pytest.raises(ConfigurationError, match=r"no collection 'shop\.orders' in the bucket that"):
            write()
        assert write(collections="visible", mode="overwrite") == ["users"]


def test_a_checkpoint_keeps_to_the_collections_of_its_stream(shop: LocalCluster) -> None:
    shop.add_user("bob", "p", collections=["shop.orders"])
    with stream_bucket(shop, auth=("bob", "p"), collections="visible") as stream:
        checkpoint = stream.checkpoint
        assert checkpoint.collections == ("shop.orders",)
    again = Checkpoint.from_json(checkpoint.to_json())
    with stream_bucket(shop, auth=("bob", "p"), collections="visible", start=again) as stream:
        assert stream.checkpoint.collections == ("shop.orders",)
    shop.add_user("bob", "p", scopes=["shop"])
    with pytest.raises(ConfigurationError, match=r"with collections=.*; more now: shop\.users"):
        stream_bucket(shop, auth=("bob", "p"), collections="visible", start=again)


def test_a_stream_ends_where_the_user_sees_less(shop: LocalCluster) -> None:
    shop.add_user("bob", "p", scopes=["shop"])
    with stream_bucket(shop, auth=("bob", "p"), collections="visible", options=QUICK) as stream:
        assert stream.poll(30) is not None
        shop.add_user("bob", "p", collections=["shop.users"])
        with pytest.raises(AccessError, match="lost the privilege") as caught:
            list(stream)
    assert str(caught.value.hint).startswith("the user sees shop.users")


def test_rights_lost_in_the_middle(cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(cluster, 1000)
    cluster.add_user("ann", "secret-word")
    sent = Sent(monkeypatch, cluster)
    sent.at(20_000, lambda: cluster._engine.revoke("ann"))
    with pytest.raises((AccessError, AuthFailError)) as caught:
        scan_bucket(
            cluster, auth=("ann", "secret-word"), options=QUICK, timeout=30, buffer_bytes=2000
        ).to_arrow()
    assert not sent.pending
    assert caught.value.hint
    assert "secret" not in str(caught.value)
