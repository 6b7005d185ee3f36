"""A consumer group in an object store that speaks S3: the server of moto, by s3fs and by pyarrow."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pyarrow.fs as pafs
import pytest
from object_store import BUCKET, KEY, REGION, SECRET, endpoint, outside  # noqa: F401 - fixtures

from cbframe import Checkpoint, ConfigurationError, ConsumerGroup, GroupError, VBucketOffset
from cbframe.scan.group import Membership, Position

pytestmark = [pytest.mark.s3, pytest.mark.filterwarnings("default")]
pytest.importorskip("s3fs")

START = Checkpoint("travel", "1" * 32, {})


@pytest.fixture(scope="module", autouse=True)
def nothing_left() -> None:
    """Instead of the one that looks for threads: s3fs keeps its own."""


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_members_come_commit_and_die(endpoint: str, outside: Any) -> None:  # noqa: F811
    options = {
        "key": KEY,
        "secret": SECRET,
        "endpoint_url": f"http://{endpoint}",
        "client_kwargs": {"region_name": REGION},
    }
    group = ConsumerGroup(f"s3://{BUCKET}/groups/one", lease=8, storage_options=options)
    clock = Clock()
    first, second = (Membership(group, range(8), lambda _: START, clock=clock) for _ in range(2))
    found: dict[Membership, Position] = dict.fromkeys((first, second), ({}, START))

    def settle(member: Membership) -> None:
        def stream(after: Position) -> None:
            epochs, there = after
            found[member] = epochs, replace(START, offsets={vb: there.offsets.get(vb) for vb in epochs})

        assert member.settle(found[member], stream)

    settle(first)
    settle(second)
    assert sorted([*found[first][0], *found[second][0]]) == list(range(8))
    mine = found[first][0]
    found[first] = mine, replace(START, offsets={vb: VBucketOffset.at(7, 10 + vb) for vb in mine})
    first.commit(found[first])
    for _ in range(6):
        clock.now += 1
        second.beat(lambda: found[second])
    settle(second)
    assert sorted(found[second][0]) == list(range(8))
    assert all(found[second][1].offsets[vb].seqno == 10 + vb for vb in mine)
    with pytest.raises(GroupError, match="the lease of this member has ended") as caught:
        first.commit(found[first])
    assert SECRET not in str(caught.value)
    assert f"{BUCKET}/groups/one" in str(caught.value)
    second.leave(found[second])
    left = outside.list_objects_v2(Bucket=BUCKET)["Contents"]
    assert {each["Key"].split("/")[-1].split(".")[0] for each in left if each["Key"][-1] != "/"} == {"owners"}


def test_pyarrow_has_no_conditional_put(endpoint: str, outside: Any) -> None:  # noqa: F811
    filesystem = pafs.S3FileSystem(
        access_key=KEY, secret_key=SECRET, endpoint_override=endpoint, scheme="http", region=REGION
    )
    group = ConsumerGroup(f"{BUCKET}/groups/one", filesystem=filesystem)
    with pytest.raises(ConfigurationError, match="both may succeed"):
        Membership(group, range(8), lambda _: START)
