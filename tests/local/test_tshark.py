"""What LocalCluster and its clients say, as an independent dissector of the protocol sees it.

It is wrong itself at times: of refusals it says that their opcode is unknown, of a dropped collection's
event that it must have a key. What it says of our messages it must say of a real node's as well.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cbframe import BucketDataSourceOptions, LocalCluster, scan_bucket
from cbframe.testing import FaultProxy, Passed
from cbframe.wire.constants import Opcode
from cbframe.wire.framing import Frame, request

from . import capture
from .replay import GOLDEN, conversation
from .test_sdk import WAIT, connect

pytestmark = [
    pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed"),
    pytest.mark.timeout(120),
]


def use_the_sdk(cluster: LocalCluster) -> None:
    with connect(cluster) as client:
        client.wait_until_ready(WAIT)
        collection = client.bucket(cluster.bucket).default_collection()
        collection.upsert("sdk", {"n": 1})
        assert collection.get("sdk").content_as[dict] == {"n": 1}
        collection.remove("sdk")
        orders = client.bucket(cluster.bucket).scope("shop").collection("orders")
        orders.insert("order", {"n": 2})


def record() -> list[Passed]:
    """A session of everything that the dissector knows: system events, all kinds of documents, the SDK."""
    with (
        LocalCluster(nodes=2, vbuckets=8, seed=1, history=True) as cluster,
        FaultProxy(cluster, record=True) as proxy,
    ):
        cluster.create_scope("shop")
        cluster.create_collection("shop", "orders", max_ttl=60)
        use_the_sdk(cluster)
        for n in range(200):
            cluster.upsert(f"k{n}", {"n": n, "text": "x" * n}, compress=n % 3 == 0)
            cluster.upsert(f"o{n}", b"\x00binary", collection="shop.orders")
        cluster.upsert("tagged", {"n": 1}, xattrs={"_sync": {"rev": "1-a"}})
        cluster.upsert("later", {"n": 1}, expiry=3600)
        cluster.delete("k0")
        cluster.expire("k1")
        for options in (
            BucketDataSourceOptions(),
            BucketDataSourceOptions(compression="force", include_xattrs=True, change_streams=True),
            BucketDataSourceOptions(flatbuffers_system_events=False, out_of_order=True),
        ):
            scan_bucket(cluster, options=options, parse=False, timeout=30).to_arrow()
            scan_bucket(
                cluster, collections="shop.orders", options=options, parse=False, timeout=30
            ).to_arrow()
        cluster.move_vbucket(0, 1)
        scan_bucket(cluster, keys_only=True, timeout=30).to_arrow()
        return [piece for piece in proxy.record if not piece.data.startswith((b"GET ", b"HTTP/"))]


@pytest.fixture(scope="module")
def session() -> list[Passed]:
    return capture.messages(record())


def recordings() -> list[Passed]:
    """All conversations with a real node, each as a connection of its own."""
    names = sorted(path.stem for path in GOLDEN.glob("*.json"))
    return [
        Passed(number, 0, "up" if step.sent else "down", step.frame.encode())
        for number, name in enumerate(names)
        for step in conversation(name)
    ]


def test_nothing_that_is_said_is_wrong(session: list[Passed], tmp_path: Path) -> None:
    ours = capture.complaints_about(session, tmp_path / "ours.pcap")
    real = capture.complaints_about(recordings(), tmp_path / "real.pcap")
    assert not {complaint for complaint in ours if complaint.what == "_ws.malformed"}
    assert ours - real == set()


def test_everything_was_seen(session: list[Passed], tmp_path: Path) -> None:
    capture.write(tmp_path / "session.pcap", session)
    seen = capture.opcodes(tmp_path / "session.pcap")
    missing = {
        opcode
        for opcode in (
            *(Opcode.HELLO, Opcode.SASL_AUTH, Opcode.SASL_STEP, Opcode.SELECT_BUCKET),
            *(Opcode.GET_CLUSTER_CONFIG, Opcode.GET_ALL_VB_SEQNOS, Opcode.SET, Opcode.GET, Opcode.DELETE),
            *(Opcode.DCP_OPEN, Opcode.DCP_CONTROL, Opcode.DCP_STREAM_REQ, Opcode.DCP_SNAPSHOT_MARKER),
            *(Opcode.DCP_MUTATION, Opcode.DCP_DELETION, Opcode.DCP_EXPIRATION, Opcode.DCP_SYSTEM_EVENT),
            *(Opcode.DCP_SEQNO_ADVANCED, Opcode.DCP_OSO_SNAPSHOT, Opcode.DCP_STREAM_END),
        )
        if not seen[opcode]
    }
    assert missing == set()
    # Of six scans and one without values; the history shows more than one version of some.
    assert seen[Opcode.DCP_MUTATION] >= 200 * 2 * 4 + 200 * 3


@pytest.mark.parametrize(
    ("bad", "complaint"),
    [
        (request(Opcode.DCP_MUTATION, extras=bytes(5), key=b"\0k"), "_ws.malformed"),
        (request(0xEE, key=b"k"), "couchbase.warn.unknown_opcode"),
        (request(Opcode.GET), "couchbase.warn.must_have_key"),
    ],
)
def test_what_is_wrong_would_be_seen(tmp_path: Path, bad: Frame, complaint: str) -> None:
    found = capture.complaints_about([Passed(0, 0, "down", bad.encode())], tmp_path / "bad.pcap")
    assert complaint in {complaint.what for complaint in found}
