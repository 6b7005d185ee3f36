"""Reads by users who may not do everything."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cbframe import (
    AccessError,
    AuthFailError,
    BucketNotFoundError,
    CbframeError,
    ConfigurationError,
    LocalCluster,
    scan_bucket,
)
from cbframe.frame.scan import BucketScan

from .kit import QUICK, Sent, fill


@pytest.fixture
def shop() -> Iterator[LocalCluster]:
    with LocalCluster(nodes=2, vbuckets=4, seed=1) as cluster:
        cluster.create_scope("shop")
        for name in ("orders", "users"):
            cluster.create_collection("shop", name)
            for n in range(10):
                cluster.upsert(f"{name}-{n}", {"n": n}, collection=f"shop.{name}")
        cluster.upsert("plain", {"n": 1})
        yield cluster


def scan(cluster: LocalCluster, **arguments: str) -> BucketScan:
    return scan_bucket(cluster, auth=("ann", "secret-word"), options=QUICK, timeout=30, **arguments)


@pytest.mark.parametrize("scheme", ["couchbase", "http"])
@pytest.mark.parametrize(
    ("access", "error", "hint"),
    [("none", BucketNotFoundError, "Data DCP Reader"), ("data", AccessError, "Data DCP Reader")],
)
def test_too_few_rights(
    cluster: LocalCluster, access: str, error: type[CbframeError], hint: str, scheme: str
) -> None:
    cluster.upsert("k", {})
    cluster.add_user("ann", "secret-word", access=access)  # type: ignore[arg-type]
    conn = cluster.connection_string if scheme == "couchbase" else cluster.rest_urls
    with pytest.raises((error, AccessError)) as caught:
        scan_bucket(conn, "default", auth=("ann", "secret-word"), options=QUICK, timeout=30).to_arrow()
    assert "'ann'" in str(caught.value) or scheme == "http"
    assert hint in str(caught.value.hint)
    assert "secret" not in str(caught.value)


def test_only_what_exists_for_the_user(shop: LocalCluster) -> None:
    shop.add_user("ann", "secret-word", collections=["shop.orders"])
    expected = sorted(f"orders-{n}" for n in range(10))
    for wanted in ({}, {"scope": "shop"}, {"collections": "shop.orders"}):
        assert sorted(scan(shop, **wanted).to_arrow()["_cb_key"].to_pylist()) == expected
    with pytest.raises(ConfigurationError, match=r"no collection 'shop\.users'") as caught:
        scan(shop, collections="shop.users").to_arrow()
    assert str(caught.value.hint) == "there are: shop.orders"


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
