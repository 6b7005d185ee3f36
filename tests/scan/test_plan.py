"""What a scan says of itself before it runs: as the cluster has it, and without reading anything."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cbframe import BucketDataSourceOptions, ConfigurationError, LocalCluster, ScanPlan, scan_bucket
from cbframe.dcp.survey import Size
from cbframe.local.dcp import Producer

from .kit import QUICK, create, fill


@pytest.fixture(scope="module")
def shop() -> Iterator[LocalCluster]:
    with LocalCluster(nodes=2, vbuckets=16, seed=1) as cluster:
        create(cluster, "shop", "orders", "users")
        for name in ("orders", "users"):
            cluster.upsert(f"{name}-1", {"n": 1}, collection=f"shop.{name}")
        fill(cluster, 100)
        cluster.add_user("ann", "secret-word", collections=["shop.orders"])
        yield cluster


@pytest.fixture(autouse=True)
def no_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a stream was asked for")

    monkeypatch.setattr(Producer, "stream_request", refuse)


def explained(cluster: LocalCluster, **arguments: Any) -> ScanPlan:
    return scan_bucket(cluster, **{"options": QUICK, "timeout": 30, **arguments}).explain()


def lines_of(plan: ScanPlan) -> dict[str, str]:
    text = repr(plan).splitlines()
    assert len(text) <= 20
    assert all(len(line) <= 110 for line in text)
    return {line[:10].strip(): line[10:] for line in text}


def test_the_whole_bucket(shop: LocalCluster, tmp_path: Path) -> None:
    plan = explained(shop, spool_dir=tmp_path)
    assert (plan.bucket, plan.scope, plan.collections) == ("default", None, None)
    assert (plan.values, plan.compressed) == (True, True)
    assert plan.vbuckets == tuple(range(16))
    assert plan.changes == sum(shop.high_seqnos().values())
    assert plan.size.documents == 102
    assert plan.size.bytes is not None
    assert set(plan.nodes) == set(shop.kv_addresses)
    assert sorted(vb for node in plan.nodes.values() for vb in node.vbuckets) == list(range(16))
    assert Size.total(node.size for node in plan.nodes.values()) == plan.size
    assert (plan.tests, plan.columns) == ((), None)
    assert plan.left_out == ("expired documents", "records of transactions")
    assert (plan.window_bytes, plan.batch_bytes, plan.spill_bytes) == (4 << 20, 2 << 20, 16 << 20)
    assert plan.spool_dir == str(tmp_path)
    text = lines_of(plan)
    assert text["scan"] == f"of 'default': 16 vbuckets with {plan.changes:,} changes"
    assert text["in them"].startswith("about 102 documents, ")
    assert text["sent"] == "all collections: keys and values, compressed as they are stored"
    assert (text["tested"], text["parsed"]) == ("nothing", "all fields")
    assert str(tmp_path)[:20] in text["disk"]


def test_what_is_sent_and_what_is_tested(shop: LocalCluster) -> None:
    plan = explained(
        shop,
        scope="shop",
        collections=["orders", "users"],
        columns=["n", ("geo", "lat")],
        filters=[[("n", ">", 31337), ("_cb_key", "!=", "hidden-key")], [("type", "in", ["hidden"])]],
        key_prefix="hidden-",
        key_pattern=re.compile("hidden"),
        vbuckets=[3, 5],
        expired="keep",
        transaction_records="keep",
        buffer_bytes=0,
        batch_bytes=1000,
        spill_bytes=0,
        options=BucketDataSourceOptions(compression="force"),
    )
    assert (plan.scope, plan.collections, plan.compressed) == ("shop", ("orders", "users"), "force")
    assert plan.vbuckets == (3, 5)
    assert plan.tests == ("key_prefix", "key_pattern", "'n' > ... and '_cb_key' != ...", "'type' in ...")
    assert plan.columns == ("n", "geo.lat")
    assert plan.left_out == ()
    assert (plan.window_bytes, plan.batch_bytes, plan.spill_bytes) == (0, 1000, 0)
    text = lines_of(plan)
    assert text["sent"] == "orders, users: keys and values, all compressed"
    assert text["parsed"] == "n, geo.lat"
    assert text["left out"] == "nothing"
    assert "hidden" not in repr(plan)
    assert "31337" not in repr(plan)


def test_a_read_that_ends_early(shop: LocalCluster) -> None:
    plan = explained(shop, n_rows=1500)
    assert (plan.n_rows, lines_of(plan)["ends"]) == (1500, "after 1,500 documents")
    plan = explained(shop)
    assert plan.n_rows is None
    assert "ends" not in lines_of(plan)


def test_keys_alone(shop: LocalCluster) -> None:
    plan = explained(shop, keys_only=True, scope="shop")
    assert (plan.values, plan.columns) == (False, ())
    assert lines_of(plan)["sent"] == "scope 'shop': keys and no values"
    assert lines_of(plan)["parsed"] == "nothing"
    assert explained(shop, parse=False).columns == ()


def test_a_user_who_may_not_see_statistics_is_told_so(shop: LocalCluster) -> None:
    plan = explained(shop, auth=("ann", "secret-word"), collections="visible")
    assert plan.collections == ("shop.orders",)
    assert plan.size == Size(None, None)
    assert plan.changes > 0
    assert lines_of(plan)["in them"].endswith("not all nodes show statistics to this user")
    assert "secret" not in repr(plan)


def test_a_collection_that_is_not_there(shop: LocalCluster) -> None:
    with pytest.raises(ConfigurationError, match="nothing"):
        explained(shop, collections=["shop.nothing"])


def test_many_nodes_and_names_are_few_lines(shop: LocalCluster) -> None:
    plan = explained(
        shop, columns=[f"a{n}" for n in range(100)], filters=[[("n", "==", n)] for n in range(30)]
    )
    (node,) = list(plan.nodes.values())[:1]
    plan.nodes = {f"node-{n}.example.com:11210": node for n in range(40)}
    text = repr(plan)
    assert len(text.splitlines()) <= 20
    assert "and 34 more" in text
    assert "and 94 more" in text
