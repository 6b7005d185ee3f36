"""One look at a bucket: where each vbucket is, on all nodes."""

from __future__ import annotations

import time

import pytest

from cbframe import BucketDataSourceOptions, LocalCluster
from cbframe.dcp import look
from cbframe.dcp.look import Look, look_at
from cbframe.dcp.positions import Ends, ReachedEnds
from cbframe.dcp.survey import UNKNOWN
from cbframe.errors import CbframeError, ClusterMapError, ConfigurationError, ConnectError, ReadTimeoutError
from cbframe.testing import FakeClock

OPTIONS = BucketDataSourceOptions()


@pytest.mark.parametrize("nodes", [1, 3])
@pytest.mark.parametrize("seeds", ["kv", "rest"])
def test_all_vbuckets(nodes: int, seeds: str) -> None:
    with LocalCluster(nodes=nodes, vbuckets=64, seed=1) as cluster:
        cluster.bulk_load((b"%d" % n, b"{}") for n in range(300))
        urls = cluster.connection_string if seeds == "kv" else cluster.rest_urls
        found = look_at(urls, cluster.bucket, (cluster.username, cluster.password), OPTIONS)
        assert {vb: at.seqno for vb, at in found.positions.items()} == cluster.high_seqnos()
        assert all(at.history == cluster.failover_log(vb)[0][0] for vb, at in found.positions.items())
        assert len(found.map.nodes) == nodes


def test_some_vbuckets() -> None:
    with LocalCluster(nodes=2, vbuckets=8) as cluster:
        auth = cluster.username, cluster.password
        found = look_at(cluster.connection_string, "default", auth, OPTIONS, vbuckets=[6, 1])
        assert list(found.positions) == [1, 6]
        with pytest.raises(ConfigurationError, match="vbucket 8 does not exist"):
            look_at(cluster.connection_string, "default", auth, OPTIONS, vbuckets=[8])


def test_vbuckets_on_their_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that is asked too early has not got them yet; one that never has them is an error."""
    with LocalCluster(nodes=2, vbuckets=8) as cluster:
        auth = cluster.username, cluster.password
        honest, naps = look.survey, []

        def without_3(found: dict[int, tuple[int, int]]) -> dict[int, tuple[int, int]]:
            return {vb: at for vb, at in found.items() if vb != 3}

        def late(login, wanted):  # type: ignore[no-untyped-def]
            found = yield from honest(login, wanted)
            return without_3(found) if len(naps) < 2 else found

        monkeypatch.setattr(look, "survey", late)
        found = look_at(cluster.connection_string, "default", auth, OPTIONS, sleep=naps.append)
        assert len(found.positions) == 8
        assert naps == [0.5, 0.5]

        def never(login, wanted):  # type: ignore[no-untyped-def]
            return without_3((yield from honest(login, wanted)))

        monkeypatch.setattr(look, "survey", never)
        with pytest.raises(ClusterMapError, match="no owner for 1 of 8 vbuckets"):
            look_at(cluster.connection_string, "default", auth, OPTIONS, sleep=naps.append)


@pytest.mark.parametrize("comes_back", [True, False])
def test_a_node_that_is_started_anew(comes_back: bool) -> None:
    """It is waited for, but not for ever."""
    with LocalCluster(nodes=2, vbuckets=8, seed=1) as cluster:
        auth, clock = (cluster.username, cluster.password), FakeClock()
        seeds = cluster.connection_string
        began = clock()
        cluster.kill(1)

        def sleep(seconds: float) -> None:
            clock.advance(seconds)
            if comes_back and clock() == began + 20:
                cluster.restart(1, same_ports=True)

        def look_now() -> Look:
            return look_at(seeds, "default", auth, OPTIONS, sizes=True, time=True, sleep=sleep, clock=clock)

        if comes_back:
            found = look_now()
            assert found.positions.keys() == found.sizes.keys() == set(range(8))
            assert found.time is not None
            assert clock() == began + 20
        else:
            with pytest.raises(ConnectError) as caught:
                look_now()
            assert caught.value.node in cluster.kv_addresses
            assert clock() == began + OPTIONS.recovery_timeout


def test_two_nodes_that_both_have_a_vbucket(monkeypatch: pytest.MonkeyPatch) -> None:
    """The old one goes on answering for a while: the map decides."""
    with LocalCluster(nodes=2, vbuckets=2, seed=1) as cluster:
        auth, honest = (cluster.username, cluster.password), look.survey

        def both(login, wanted):  # type: ignore[no-untyped-def]
            own = yield from honest(login, wanted)
            return dict.fromkeys(range(2), (99, 99)) | own

        before = look_at(cluster.connection_string, "default", auth, OPTIONS).positions
        monkeypatch.setattr(look, "survey", both)
        assert look_at(cluster.connection_string, "default", auth, OPTIONS).positions == before


@pytest.mark.parametrize("error", [ReadTimeoutError("slow"), ConnectError("closed")])
def test_no_time_for_statistics(monkeypatch: pytest.MonkeyPatch, error: CbframeError) -> None:
    """Nothing but estimates is missing."""
    with LocalCluster(nodes=1, vbuckets=2, seed=1) as cluster:
        auth = cluster.username, cluster.password

        def silent(login, vbuckets):  # type: ignore[no-untyped-def]
            raise error
            yield

        monkeypatch.setattr(look, "survey_sizes", silent)
        found = look_at(cluster.connection_string, "default", auth, OPTIONS, sizes=True)
        assert found.sizes == {0: UNKNOWN, 1: UNKNOWN}
        assert len(found.positions) == 2


def test_ends_that_were_reached() -> None:
    """A plain mapping may lie ahead; what was reached and is not any more is read as far as it goes."""
    ahead, reached = Ends({0: 10}), Ends(ReachedEnds({0: 10}))
    for ends in (ahead, reached):
        ends.begin([0])
        assert ends.known
        assert ends.of(0, {0: 12}) == 10
    assert ahead.of(0, {0: 7}) == 10
    assert reached.of(0, {0: 7}) == 7
    assert reached.shortened == {0: 7}


def test_the_time() -> None:
    with LocalCluster(nodes=2, vbuckets=4) as cluster:
        cluster.add_user("reader", "secret", access="dcp")
        url, admin = cluster.connection_string, (cluster.username, cluster.password)
        before = int(time.time())
        found = look_at(url, "default", admin, OPTIONS, time=True).time
        assert found is not None
        assert before <= found <= time.time()
        assert look_at(url, "default", admin, OPTIONS).time is None
        # Who may not see statistics is not told.
        assert look_at(url, "default", ("reader", "secret"), OPTIONS, time=True).time is None
