"""One look at a bucket: where each vbucket is, on all nodes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from cbframe import BucketDataSourceOptions, LocalCluster
from cbframe.dcp import handshake, look
from cbframe.dcp.ends import Ends, ReachedEnds
from cbframe.dcp.look import look_at
from cbframe.errors import ClusterMapError, ConfigurationError
from cbframe.wire.constants import Status
from cbframe.wire.failover import encode_failover_log

OPTIONS = BucketDataSourceOptions()


@pytest.mark.parametrize("nodes", [1, 3])
@pytest.mark.parametrize("seeds", ["kv", "rest"])
def test_all_vbuckets(nodes: int, seeds: str) -> None:
    with LocalCluster(nodes=nodes, vbuckets=64, seed=1) as cluster:
        cluster.bulk_load((b"%d" % n, b"{}") for n in range(300))
        urls = cluster.connection_string if seeds == "kv" else cluster.rest_urls
        found = look_at(urls, cluster.bucket, (cluster.username, cluster.password), OPTIONS)
        assert {vb: seqno for vb, (_, seqno) in found.positions.items()} == cluster.high_seqnos()
        assert all(vbuuid == cluster.failover_log(vb)[0][0] for vb, (vbuuid, _) in found.positions.items())
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
        honest, naps = look.fetch_positions, []

        def late(login, wanted):  # type: ignore[no-untyped-def]
            found = yield from honest(login, wanted)
            return {vb: at for vb, at in found.items() if vb != 3 or len(naps) >= 2}

        monkeypatch.setattr(look, "fetch_positions", late)
        found = look_at(cluster.connection_string, "default", auth, OPTIONS, sleep=naps.append)
        assert len(found.positions) == 8
        assert naps == [0.5, 0.5]

        def never(login, wanted):  # type: ignore[no-untyped-def]
            found = yield from honest(login, wanted)
            return {vb: at for vb, at in found.items() if vb != 3}

        monkeypatch.setattr(look, "fetch_positions", never)
        with pytest.raises(ClusterMapError, match="no owner for 1 of 8 vbuckets"):
            look_at(cluster.connection_string, "default", auth, OPTIONS, sleep=naps.append)


def test_a_history_that_ends_while_it_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """The seqno may be of a later history than the one that is told, never of an earlier one."""
    seqnos, log = iter([{0: 100, 1: 5}, {0: 90}]), encode_failover_log([(7, 0)])

    def steps(answer):  # type: ignore[no-untyped-def]
        return answer
        yield

    monkeypatch.setattr(handshake, "log_in", lambda login: steps(()))
    monkeypatch.setattr(handshake, "sample_seqnos", lambda: steps(next(seqnos)))
    looking = handshake.fetch_positions(None, {0, 1})  # type: ignore[arg-type]
    next(looking)
    looking.send(SimpleNamespace(status=Status.SUCCESS, value=log))
    with pytest.raises(StopIteration) as ended:
        looking.send(SimpleNamespace(status=Status.SUCCESS, value=log))
    # Not {0: (7, 100)}; and the vbucket that went meanwhile is asked for elsewhere.
    assert ended.value.value == {0: (7, 90)}


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
