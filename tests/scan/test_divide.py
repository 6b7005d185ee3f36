"""How vbuckets are divided: evenly, by whatever is known of them, and each share of one node."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbframe.cluster.cluster_map import ClusterMap, parse_bucket_config
from cbframe.cluster.connection_string import HostPort
from cbframe.dcp.positions import VBucketOffset
from cbframe.dcp.survey import BucketState, Size
from cbframe.scan.partition import shares

NOTHING = Size(None, None)


def map_of(owners: list[int]) -> ClusterMap:
    nodes = [f"n{node}:11210" for node in range(max(owners) + 1)]
    config = {
        "name": "bucket",
        "uuid": "u",
        "rev": 1,
        "nodesExt": [{"services": {"kv": 11210}, "hostname": node.split(":")[0]} for node in nodes],
        "vBucketServerMap": {"serverList": nodes, "vBucketMap": [[owner] for owner in owners]},
    }
    return parse_bucket_config(config, origin=HostPort("n0"), network="auto", tls=False)


def look_of(owners: list[int], seqnos: list[int], sizes: list[Size] | None = None) -> BucketState:
    found = {} if sizes is None else dict(enumerate(sizes))
    return BucketState(
        map_of(owners), {vb: VBucketOffset.at(1, seqno) for vb, seqno in enumerate(seqnos)}, found
    )


def weighed(look: BucketState, weights: list[int], n: int) -> list[int]:
    return [sum(weights[vb] for vb in share.vbuckets) for share in shares(look, n)]


def test_by_bytes() -> None:
    """A few large vbuckets among many small ones."""
    sizes = [Size(10, 90_000 if vb < 4 else 1000) for vb in range(64)]
    look = look_of([0] * 64, [10] * 64, sizes)
    totals = weighed(look, [size.bytes or 0 for size in sizes], 4)
    assert max(totals) - min(totals) <= 1000


def test_by_documents() -> None:
    """Where one node does not tell of bytes, or has not written any yet."""
    for stored in ([None, 5], [0, 0]):
        sizes = [Size(900 if vb < 4 else 10, stored[vb % 2]) for vb in range(64)]
        totals = weighed(look_of([0] * 64, [10] * 64, sizes), [size.documents or 0 for size in sizes], 4)
        assert max(totals) - min(totals) <= 10


@pytest.mark.parametrize("sizes", [None, [NOTHING] * 64, [Size(5, 5)] * 63 + [NOTHING]])
def test_by_changes(sizes: list[Size] | None) -> None:
    seqnos = [900 if vb < 4 else 10 for vb in range(64)]
    totals = weighed(look_of([0] * 64, seqnos, sizes), seqnos, 4)
    assert max(totals) - min(totals) <= 10


def test_fewer_than_nodes() -> None:
    """Whole nodes go together."""
    owners = [vb % 3 for vb in range(12)]
    look = look_of(owners, [1 + 10 * (owner == 1) for owner in owners])
    assert [share.vbuckets for share in shares(look, 2)] == [(1, 4, 7, 10), (0, 2, 3, 5, 6, 8, 9, 11)]


def test_one_large_node() -> None:
    """It gets as many shares as it is worth."""
    owners = [0] * 60 + [1] * 4
    found = shares(look_of(owners, [10] * 64), 8)
    assert [share.node for share in found].count("n1:11210") == 1
    assert {share.node for share in found[:2]} == {"n0:11210", "n1:11210"}, "by turns"


sized = st.integers(0, 10**12)


@given(st.lists(st.tuples(st.integers(0, 3), sized, sized), min_size=1, max_size=80), st.integers(1, 100))
def test_any_bucket(vbuckets: list[tuple[int, int, int]], n: int) -> None:
    owners = [owner for owner, _, _ in vbuckets]
    sizes = [Size(documents, stored) for _, documents, stored in vbuckets]
    look = look_of(owners, [documents for _, documents, _ in vbuckets], sizes)
    found = shares(look, n)
    assert found == shares(look, n)
    assert sorted(vb for share in found for vb in share.vbuckets) == [*range(len(vbuckets))]
    assert len(found) == min(n, len(vbuckets)) or len(found) == min(n, len(set(owners)))
    assert all(share.vbuckets == tuple(sorted(share.vbuckets)) for share in found)
    if n >= len(set(owners)):
        weights = [1 + size.bytes for size in sizes if size.bytes is not None]
        if not any(size.bytes for size in sizes):
            weights = [1 + size.documents for size in sizes if size.documents is not None]
        for node in {share.node for share in found}:
            mine = [share for share in found if share.node == node]
            assert {f"n{owners[vb]}:11210" for share in mine for vb in share.vbuckets} == {node}
            totals = [sum(weights[vb] for vb in share.vbuckets) for share in mine]
            most = max(weights[vb] for share in mine for vb in share.vbuckets)
            assert max(totals) - min(totals) <= most
