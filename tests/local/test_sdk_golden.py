"""What the official SDK asked a real 7.2 node, asked again: the answers have the same shape."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace

import pytest

from cbframe.local import LocalCluster
from cbframe.wire.constants import Datatype, Magic, Opcode, Status
from cbframe.wire.messages import SaslAuth, split_key
from cbframe.wire.sasl import plain_payload

from .client import Client
from .replay import GOLDEN, frames

NAMES = sorted(path.name.removesuffix(".c2s.bin") for path in GOLDEN.glob("sdk_*.c2s.bin"))
SASL = (Opcode.SASL_LIST_MECHS, Opcode.SASL_AUTH, Opcode.SASL_STEP)
"""Proofs are of nonces and passwords of that day; ``test_sdk`` does these."""
Shape = tuple[int, int, int, int]
"""Opcode, status, length of the extras, datatype."""
WRITES = (Opcode.SET, Opcode.ADD)

# Accepted differences: (conversation, opcode, status of the real node) -> ours, with the reason.
ACCEPTED: dict[tuple[str, int, int], int] = {
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


@pytest.mark.parametrize("name", NAMES)
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
            status = ACCEPTED.get((family, asked.opcode, good.status), good.status)
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
