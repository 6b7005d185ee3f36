from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import MappingProxyType

import pytest

from cbframe.errors import CbframeError, ConfigurationError, ConnectError
from cbframe.local import LocalCluster
from cbframe.local.sample import sample_documents
from cbframe.wire.constants import Datatype

from .client import DATA, Client, seqnos


def test_arguments_of_any_kind_reach_the_child() -> None:
    with LocalCluster(nodes=2, vbuckets=4, process=True) as cluster:
        with pytest.raises(ConfigurationError, match="no scope or collection nowhere"):
            cluster.modify_collection("_default", "nowhere", max_ttl=1)
        with pytest.raises(CbframeError, match="TypeError"):
            cluster.upsert("k", {}, xattrs={"a": object})
        assert cluster.item_count() == 0
        cluster.create_collection("_default", "beer")
        cluster.add_user("ann", "a", collections=iter(["_default.beer"]), scopes=set())
        document = MappingProxyType({"a": 1})
        assert cluster.upsert("k", {"n": 1}, xattrs=document, datatype=Datatype.JSON, collection=8) > 0
        assert cluster.bulk_load(((b"a", b"1"), (b"\xff", b"\0"))) == 2
        assert cluster.get(b"\xff") == b"\0"
        cluster.rebalance(eject={1: None}.keys())
        assert cluster.members == [0]


def test_the_same_cluster_in_its_own_process() -> None:
    with LocalCluster(nodes=2, vbuckets=4, process=True, seed=3) as cluster:
        assert cluster.upsert("a", {"x": 1}, xattrs={"y": 2}) == 1
        assert cluster.get("a") == b'{"x":1}'
        assert cluster.delete("a") == 2
        assert cluster.expire("a") is None
        pairs = [(b"key%d" % n, b'{"n":%d}' % n) for n in range(20_000)]
        assert cluster.bulk_load(iter(pairs)) == len(pairs)
        assert cluster.item_count() == len(pairs)
        found = {}
        for node in range(2):
            with Client(cluster, node).login().open() as client:
                for vbucket in (0, 1) if node == 0 else (2, 3):
                    frames = client.read(vbucket, cluster.high_seqnos()[vbucket])
                    found.update({f.key[1:]: f.value for f in frames if f.opcode == DATA[0]})
        assert found == dict(pairs)
        cluster.roll_back(0, 0)
        (_, first), (_, second) = cluster.failover_log(0)
        assert first == second == 0
        assert {type(entry) for entry in cluster.failover_log(0)} == {tuple}
        assert set(cluster.high_seqnos()) == set(range(4))
        with cluster.stall(), cluster.refuse(1):
            cluster.move_vbucket(0, 1)
        with pytest.raises(ConfigurationError, match="no node 7"):
            cluster.cut(7)
        with LocalCluster(2, 4, seed=3) as same, LocalCluster(2, 4, seed=4) as other:
            assert cluster.failover_log(1) == same.failover_log(1) != other.failover_log(1)


def test_the_sample_is_made_in_the_child() -> None:
    with LocalCluster(vbuckets=1, process=True) as cluster:
        assert cluster.load_sample(500, seed=9) == 500
        with Client(cluster).login().open() as client:
            frames = client.read(0, cluster.high_seqnos()[0])
    truth = {
        key: value for key, value, kind in sample_documents(500, 9) if kind not in {"deleted", "expired"}
    }
    assert {f.key[1:]: f.value for f in frames if f.opcode == DATA[0]} == truth
    assert len(seqnos(frames)) == 500


def test_bad_options_are_an_error_here() -> None:
    with pytest.raises(ConfigurationError, match="vbuckets"):
        LocalCluster(vbuckets=5000, process=True).start()


def test_a_dead_child_is_an_error_not_a_hang() -> None:
    cluster = LocalCluster(vbuckets=1, process=True).start()
    engine = cluster._running
    assert engine is not None
    child = engine._child  # type: ignore[attr-defined]
    child.kill()
    child.wait()
    with pytest.raises(ConnectError):
        cluster.item_count()
    cluster.close()


def python(*arguments: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen([sys.executable, *arguments], env=environment, **pipes)


@pytest.mark.parametrize("end", ["sigterm", "sigint", "stdin"])
def test_serve(end: str) -> None:
    with python("-m", "cbframe.local", "--vbuckets", "2", "--sample", "50") as child:
        assert child.stdin is not None
        assert child.stdout is not None
        ready = json.loads(child.stdout.readline())
        assert ready["pid"] == child.pid
        assert ready["connection_string"].startswith("couchbase://127.0.0.1:")
        if end == "stdin":
            child.stdin.close()
        else:
            child.send_signal(signal.SIGTERM if end == "sigterm" else signal.SIGINT)
        assert child.wait(20) == 0


def test_the_child_ends_with_its_parent() -> None:
    script = (
        "import os\n"
        "from cbframe.local import LocalCluster\n"
        "cluster = LocalCluster(vbuckets=1, process=True).start()\n"
        "print(cluster._running._child.pid, flush=True)\n"
        "os._exit(1)\n"
    )
    # The grandchild inherits the pipe of its standard error; its end is the grandchild's.
    with python("-c", script) as parent:
        assert parent.stdout is not None
        assert parent.stderr is not None
        assert int(parent.stdout.readline()) > 0
        # Both ends are closed, so the grandchild has ended, and without a complaint.
        assert parent.stderr.read() == b""
