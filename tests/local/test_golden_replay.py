"""Conversations with real nodes of 7.2 and 8.0, held again: the same answers, the same streams."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from cbframe.local import LocalCluster
from cbframe.wire.constants import Datatype, Magic, Opcode, Status
from cbframe.wire.framing import Frame
from cbframe.wire.messages import SaslAuth, split_key
from cbframe.wire.sasl import ScramClient, plain_payload

from .client import Client
from .replay import GOLDEN, GOLDEN8, VBUCKETS, Stage, Step, conversation, frames
from .shapes import shape

ALL = sorted(path.name.removesuffix(".c2s.bin") for path in GOLDEN.glob("*.c2s.bin"))
SDK = [name for name in ALL if name.startswith("sdk_")]
"""What the official SDK asked: answers are compared, by their shape."""

NOT_REPLAYED = {
    "stream_no_snapshot_loss_checkpoint.0": "two checkpoints in memory; the embedded node keeps one",
    "stream_no_snapshot_loss_checkpoint.1": "as stream_no_snapshot_loss_checkpoint.0",
}
"""Conversations that cannot be held again, and why."""

ALWAYS_A_MAP = "an embedded cluster always has a map without a bucket"
FEATURES = "the features PITR, create as deleted, document macros and replacing a body are not granted"
CHECKPOINT = "the real node began a checkpoint after a while; the embedded one has no reason to"
ACCEPTED = {
    ("get_cluster_config.0", 5): ALWAYS_A_MAP,
    ("hello_all_features", 1): FEATURES,
    ("hello_each", 35): FEATURES,
    ("hello_each", 37): FEATURES,
    ("hello_each", 41): FEATURES,
    ("stream_infinite", 20): CHECKPOINT,
}
"""Differences: conversation and number of the message, with the reason."""

NAMES = [name for name in ALL if name not in SDK and name not in NOT_REPLAYED]
NAMES8 = sorted(path.name.removesuffix(".c2s.bin") for path in GOLDEN8.glob("*.c2s.bin"))
ACCEPTED8 = {("get_cluster_config.0", 5): ALWAYS_A_MAP}
SAME_DATA = {
    "disk_no_value.0": "disk_no_value.1",
    "key_only_disk.1": "key_only_disk.3",
    "key_only_memory.1": "key_only_memory.3",
}
"""Conversations of 8.0 that do not show what the data was, and the one that does."""
KEEP_ALIVE = {"noop": 0.3, "noop_timeout": 0.3}
"""Conversations about NOOPs, in seconds between two: elsewhere these come when they like."""
CLOSED = {"client_noop", "noop_timeout", "select_bucket.2", "unknown_opcode.1"}
"""Conversations that the server ends."""


def test_every_conversation_is_held_or_named() -> None:
    assert sorted([*NAMES, *SDK, *NOT_REPLAYED]) == ALL
    assert {name for name, _ in ACCEPTED} <= set(NAMES)
    assert set(KEEP_ALIVE) | CLOSED <= set(NAMES)


def expected(name: str, frame: Frame | None) -> bool:
    """Whether the message counts: NOOPs come by the clock, and maps without a bucket to be sure."""
    if frame is None:
        return True
    if frame.opcode == Opcode.DCP_NOOP and not frame.is_response:
        return name in KEEP_ALIVE
    return frame.magic != Magic.SERVER_REQUEST or bool(frame.key)


def scram(cluster: LocalCluster, steps: list[Step], at: int) -> ScramClient | None:
    """A client for the login that begins at a step; None if that is no proper one."""
    frame = steps[at].frame
    mechanism = frame.key.decode()
    user = re.match(rb"n,,n=([^,]*),r=", frame.value)
    if not mechanism.startswith("SCRAM") or user is None:
        return None
    last = next((s.frame for s in steps[at:] if not s.sent and s.frame.opcode == Opcode.SASL_STEP), None)
    good = last is not None and last.status == Status.SUCCESS
    password = cluster.password if good else "wrong"
    return ScramClient(mechanism, user[1].decode(), password, lambda: "fixed-nonce")


class Talker:
    """The client's side: as recorded, but for proofs of nonces and passwords of that day."""

    def __init__(self, cluster: LocalCluster, steps: list[Step]) -> None:
        self._cluster, self._steps = cluster, steps
        self._scram: ScramClient | None = None
        self.challenge = b""

    def says(self, at: int) -> bytes:
        frame = self._steps[at].frame
        message: SaslAuth | None = None
        if frame.opcode == Opcode.SASL_AUTH:
            self._scram = scram(self._cluster, self._steps, at)
            if self._scram is not None:
                message = SaslAuth(frame.key.decode(), self._scram.first())
        elif frame.opcode == Opcode.SASL_STEP and self._scram is not None:
            message = SaslAuth(frame.key.decode(), self._scram.final(self.challenge), Opcode.SASL_STEP)
        return (frame if message is None else message.frame(frame.opaque)).encode()


def bucket_of(steps: list[Step]) -> str:
    """The bucket that the recorded node had."""
    selected = [s.frame for s in steps if s.sent and s.frame.opcode == Opcode.SELECT_BUCKET]
    good = {s.frame.opaque for s in steps if not s.sent and s.frame.is_response and not s.frame.status}
    return next((f.key.decode() for f in selected if f.opaque in good), "travel")


def next_of(name: str, receive: Callable[[], Frame | None]) -> Frame | None:
    while not expected(name, frame := receive()):
        pass
    return frame


Differences = dict[tuple[str, int], tuple[object, object]]


@pytest.mark.parametrize("name", NAMES)
def test_as_the_real_node(name: str) -> None:
    differences = held_again(name, conversation(name), noop_interval=KEEP_ALIVE.get(name))
    left = {key: both for key, both in differences.items() if key not in ACCEPTED}
    assert left == {}
    assert differences.keys() == {key for key in ACCEPTED if key[0] == name}, "accepted, and no longer seen"


@pytest.mark.parametrize("name", NAMES8)
def test_as_the_real_node_of_8_0(name: str) -> None:
    source = SAME_DATA.get(name)
    data = None if source is None else conversation(source, GOLDEN8)
    options = {"version": "8.0", "noop_interval": KEEP_ALIVE.get(name)}
    differences = held_again(name, conversation(name, GOLDEN8), data, **options)
    assert differences.keys() == {key for key in ACCEPTED8 if key[0] == name}, differences


def held_again(name: str, steps: list[Step], data: list[Step] | None = None, **options: Any) -> Differences:
    """The messages of a node that were other than the recorded ones: recorded and new shape."""
    differences: Differences = {}
    compared = 0
    options |= {"vbuckets": VBUCKETS, "bucket": bucket_of(steps), "seed": 1}
    with LocalCluster(**options) as cluster, Client(cluster) as wire:
        if name == "noop_timeout":
            # The recorded node had been told to be as impatient.
            cluster._engine.nodes[0].idle_timeout = 0.5
        # Of the recorded node: it may use documents, and not stream them.
        cluster.add_user("nopriv", "password", access="data")
        stage, talker = Stage(cluster, steps, data), Talker(cluster, steps)
        # It may use all documents, and stream those of one collection.
        cluster.add_user("dcpuser", "password", collections=["inventory.airline"], elsewhere="data")
        for at, step in enumerate(steps):
            if step.sent:
                stage.listen(step)
                stage.before(at)
                wire.sock.sendall(talker.says(at))
                continue
            if not expected(name, step.frame):
                continue
            stage.live(at)
            if name == "end_lost_privileges" and step.frame.opcode == Opcode.DCP_STREAM_END:
                cluster.revoke("dcpuser")
            answer = next_of(name, wire.frame)
            assert answer is not None, f"closed before message {at}: {shape(step.frame)}"
            if answer.is_response and answer.status == Status.AUTH_CONTINUE:
                talker.challenge = answer.value
            compared += 1
            if shape(answer) != shape(step.frame):
                differences[name, at] = shape(step.frame), shape(answer)
                same = answer.opcode == step.frame.opcode and answer.is_response == step.frame.is_response
                assert same, differences
        if name == "unknown_opcode.1":
            wire.sock.sendall(bytes(24))
        if name in CLOSED:
            assert next_of(name, wire.frame) is None
    assert compared > 0
    return differences


# ---------------------------------------------------------------------- the SDK

SASL = (Opcode.SASL_LIST_MECHS, Opcode.SASL_AUTH, Opcode.SASL_STEP)
"""Proofs are of nonces and passwords of that day; ``test_sdk`` does these."""
Shape = tuple[int, int, int, int]
"""Opcode, status, length of the extras, datatype."""
WRITES = (Opcode.SET, Opcode.ADD)

# Accepted differences: (conversation, opcode, status of the real node) -> ours, with the reason.
ACCEPTED_OF_SDK: dict[tuple[str, int, int], int] = {
    # The recorded bucket had no replication topology; an embedded bucket has one, and replicas
    # that are never behind.
    ("sdk_durability", Opcode.SET, Status.DURABILITY_IMPOSSIBLE): Status.SUCCESS,
    # An embedded cluster always has a map without a bucket, and one user who may see it.
    ("sdk_no_global_config", Opcode.GET_CLUSTER_CONFIG, Status.KEY_ENOENT): Status.SUCCESS,
    ("sdk_no_settings_privilege", Opcode.GET_CLUSTER_CONFIG, Status.EACCESS): Status.SUCCESS,
    # A vbucket was made a replica by hand while its map named it active.
    ("sdk_config_change", Opcode.GET, Status.NOT_MY_VBUCKET): Status.SUCCESS,
}


@pytest.fixture
def travel() -> Iterator[LocalCluster]:
    with LocalCluster(vbuckets=64, bucket="travel", seed=1) as cluster:
        cluster.create_scope("inventory")
        cluster.create_collection("inventory", "airline")
        cluster.create_collection("inventory", "hotel")
        yield cluster


@pytest.mark.parametrize("name", SDK)
def test_the_same_answers(travel: LocalCluster, name: str) -> None:
    recorded = {f.opaque: f for f in frames(name, "s2c") if f.magic != Magic.SERVER_REQUEST}
    expected: list[Shape] = []
    actual: list[Shape] = []
    cas: dict[int, int] = {}
    touched: set[bytes] = set()
    in_place = 0
    with Client(travel) as client:
        for asked in frames(name, "c2s"):
            if asked.opcode == Opcode.SASL_AUTH:
                login = SaslAuth("PLAIN", plain_payload(travel.username, travel.password))
                assert client.call(login).status == Status.SUCCESS
            good = recorded.get(asked.opaque)
            if asked.opcode in SASL or good is None:
                continue
            if asked.opcode != Opcode.GET:
                touched.add(asked.key)
            elif asked.key not in touched and good.status in {Status.SUCCESS, Status.NOT_MY_VBUCKET}:
                # The node held this document before the conversation began.
                cid, key = split_key(asked.key)
                travel.upsert(key, good.value or b"{}", collection=cid)
            answer = client.call(replace(asked, cas=cas.get(asked.cas, asked.cas)))
            assert answer.opaque == asked.opaque
            assert answer.magic == good.magic
            cas[good.cas] = answer.cas
            family = name.rpartition(".")[0]
            status = ACCEPTED_OF_SDK.get((family, asked.opcode, good.status), good.status)
            extras, datatype = len(good.extras), good.datatype
            if status != good.status:
                extras, datatype = len(answer.extras), answer.datatype
            if name == "sdk_subdoc.1" and asked.opcode in {Opcode.GET, Opcode.SUBDOC_MULTI_MUTATION}:
                # The bytes that are left after a dozen sub-document changes.
                assert answer.value == good.value
                in_place += 1
            # The embedded bucket stores values inflated, as one with its compression off.
            expected.append((asked.opcode, status, extras, datatype & ~Datatype.SNAPPY))
            actual.append((answer.opcode, answer.status, len(answer.extras), answer.datatype))
            if asked.opcode in WRITES and not good.status and asked.extras[4:] == struct.pack(">I", 1):
                # The client waited for the second to pass.
                cid, key = split_key(asked.key)
                travel.expire(key, collection=cid)
    assert actual == expected
    assert in_place > 10 or name != "sdk_subdoc.1"
