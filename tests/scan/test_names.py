"""Scopes and collections that come and go while they are read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest

from cbframe import ConfigurationError, LocalCluster, ServerError, scan_bucket
from cbframe.arrow.receivers import GatheringReceiver
from cbframe.cluster.collections_manifest import CollectionsManifest
from cbframe.scan import names
from cbframe.scan.spec import ScanSpec

from .kit import QUICK, Sent, create

OF_A_READ = [1000, 4000, 12_000, 25_000]
"""Bytes sent when it happens: before, between and behind the documents of most vbuckets."""


@pytest.fixture
def shop() -> Iterator[LocalCluster]:
    with LocalCluster(nodes=1, vbuckets=4, seed=1) as cluster:
        create(cluster, "shop", "orders", "users")
        for name in ("_default._default", "shop.orders", "shop.users"):
            cluster.bulk_load(
                ((b"%s-%d" % (name.encode(), n), b'{"n":%d}' % n) for n in range(100)), collection=name
            )
        yield cluster


def read_during(
    monkeypatch: pytest.MonkeyPatch,
    cluster: LocalCluster,
    after: int,
    action: Callable[[], object],
    **wanted: str,
) -> pa.Table:
    """Read with a small window, and act when that many bytes were sent."""
    sent = Sent(monkeypatch, cluster)
    sent.at(after, action)
    scan = scan_bucket(cluster, parse=False, options=QUICK, buffer_bytes=2000, timeout=30, **wanted)
    table = scan.to_arrow()
    assert not sent.pending
    return table


def counts(table: pa.Table) -> Counter[str]:
    names = zip(table["_cb_scope"].to_pylist(), table["_cb_collection"].to_pylist(), strict=True)
    return Counter(map(".".join, names))


def drop(cluster: LocalCluster, scope: str, name: str) -> Callable[[], object]:
    # On the node's own loop, so not through the verb, which waits for it.
    return lambda: cluster._engine.drop_collection(scope, name)


@pytest.mark.parametrize("after", OF_A_READ)
def test_a_collection_dropped_in_the_middle(
    shop: LocalCluster, monkeypatch: pytest.MonkeyPatch, came: dict[str, list[int]], after: int
) -> None:
    table = read_during(monkeypatch, shop, after, drop(shop, "shop", "orders"))
    assert counts(table) == {"_default._default": 100, "shop.users": 100}
    # Orders are collection 8: of late drops its documents were there, and had to be taken out again.
    assert 8 in came["collection_id"] or after <= OF_A_READ[0]


@pytest.mark.parametrize("after", OF_A_READ)
def test_dropped_and_created_again_under_its_name(
    shop: LocalCluster, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    def renew() -> None:
        shop._engine.drop_collection("shop", "orders")
        shop._engine.create_collection("shop", "orders")
        for n in range(5):
            shop._engine.upsert(b"new-%d" % n, b"{}", collection="shop.orders")

    table = read_during(monkeypatch, shop, after, renew)
    found = counts(table)
    assert found["_default._default"] == found["shop.users"] == 100
    new = [key for key in table["_cb_key"].to_pylist() if key.startswith("new-")]
    # Which vbuckets were complete before is seen from here only by what came of them.
    assert found.get("shop.orders", 0) == len(new) <= 5


@pytest.mark.parametrize("after", OF_A_READ)
def test_a_scope_dropped_in_the_middle(
    shop: LocalCluster, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    table = read_during(monkeypatch, shop, after, lambda: shop._engine.drop_scope("shop"))
    assert len(table) == 100
    assert all(key.startswith("_default") for key in table["_cb_key"].to_pylist())


@pytest.mark.parametrize("after", [2500, 4000])
def test_what_was_asked_for_by_name_does_not_end_as_nothing(
    shop: LocalCluster, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    with pytest.raises(ConfigurationError, match=r"'shop.orders' was dropped during the read") as caught:
        read_during(monkeypatch, shop, after, drop(shop, "shop", "orders"), collections="shop.orders")
    assert caught.value.hint
    with pytest.raises(ConfigurationError, match="scope 'shop' was dropped during the read"):
        read_during(monkeypatch, shop, after, lambda: shop._engine.drop_scope("shop"), scope="shop")


def test_the_streams_may_know_more_than_the_node_that_is_asked(
    shop: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A manifest reaches the nodes one by one."""
    fetch = names.fetch_manifest
    stale: list[CollectionsManifest] = []

    def late(target: ScanSpec) -> CollectionsManifest:
        stale.append(fetch(target))
        return stale[0]

    monkeypatch.setattr(names, "fetch_manifest", late)
    before = counts(scan_bucket(shop, parse=False, options=QUICK).to_arrow())
    assert before.keys() == {"_default._default", "shop.orders", "shop.users"}
    create(shop, "later", "new")
    shop.upsert("k", {}, collection="later.new")
    table = scan_bucket(shop, parse=False, options=QUICK).to_arrow()
    assert counts(table)["later.new"] == 1
    assert stale[0].uid < stale[1].uid


@pytest.mark.parametrize("after", [None, 700, 2000, 5000])
def test_in_the_order_that_is_quickest_for_the_server(
    shop: LocalCluster, monkeypatch: pytest.MonkeyPatch, after: int | None
) -> None:
    """Also cut inside: then nothing of that snapshot counts, and it is read again."""
    options = replace(QUICK, out_of_order=True)
    sent = Sent(monkeypatch, shop)
    sent.cut(iter([] if after is None else [after]))
    starts: list[tuple[int, int, int]] = []
    snapshot_start = GatheringReceiver.snapshot_start

    def spy(self: GatheringReceiver[Any], vbucket: int, start: int, end: int, flags: int) -> None:
        starts.append((vbucket, start, end))
        snapshot_start(self, vbucket, start, end, flags)

    monkeypatch.setattr(GatheringReceiver, "snapshot_start", spy)
    scan = scan_bucket(shop, collections="shop.orders", parse=False, options=options, timeout=30)
    keys = scan.to_arrow()["_cb_key"].to_pylist()
    assert sorted(keys) == sorted(f"shop.orders-{n}" for n in range(100))
    assert sent.cuts == (after is not None)
    assert {(start, end) for _, start, end in starts} == {(0, 2**64 - 1)}
    assert {vbucket for vbucket, _, _ in starts} == {0, 1, 2, 3}


def test_the_history_of_documents(came: dict[str, list[int]]) -> None:
    """All versions come, the newest stays."""
    with LocalCluster(vbuckets=2, seed=1, history=True) as cluster:
        for version in range(4):
            for n in range(10):
                cluster.upsert(f"k{n}", {"version": version})
        cluster.delete("k0")
        options = replace(QUICK, change_streams=True)
        table = scan_bucket(cluster, options=options, timeout=30).to_arrow()
    assert sorted(table["_cb_key"].to_pylist()) == [f"k{n}" for n in range(1, 10)]
    assert set(table["version"].to_pylist()) == {3}
    assert len(came["datatype"]) == 41


def test_no_history_where_there_is_none(shop: LocalCluster) -> None:
    options = replace(QUICK, change_streams=True)
    with pytest.raises(ServerError, match="change_streams") as caught:
        scan_bucket(shop, options=options, timeout=30).to_arrow()
    assert "Magma" in str(caught.value)
