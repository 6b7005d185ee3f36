"""Every other conversation with a real 7.2 node, held again: the same answers, the same streams."""

from __future__ import annotations

from typing import Any

import pytest

from cbframe.local import LocalCluster
from cbframe.wire.constants import Opcode
from cbframe.wire.frame import Frame
from cbframe.wire.requests import SaslAuth
from cbframe.wire.sasl import ScramClient

from .replay import GOLDEN, VBUCKETS, Stage, Step, Wire, conversation, shape

ALL = sorted(path.name.removesuffix(".c2s.bin") for path in GOLDEN.glob("*.c2s.bin"))
ELSEWHERE = [name for name in ALL if name.startswith("sdk_")]
"""``test_sdk_golden`` has these."""

NOT_REPLAYED: dict[str, str] = {}

NAMES = [name for name in ALL if name not in ELSEWHERE and name not in NOT_REPLAYED]


@pytest.mark.parametrize("name", NAMES)
def test_as_the_real_node(name: str) -> None:
    steps = conversation(name)
    with LocalCluster(vbuckets=VBUCKETS, bucket="travel", seed=1) as cluster, Wire(cluster) as wire:
        stage = Stage(cluster, steps)
        differences = []
        for at, step in enumerate(steps):
            if step.sent:
                stage.listen(step)
                stage.before(at)
                wire.send(step.frame.encode())
                continue
            stage.live(at)
            answer = wire.receive()
            assert answer is not None, f"closed before {shape(step.frame)}"
            if shape(answer) != shape(step.frame):
                differences.append((at, shape(step.frame), shape(answer)))
                assert (answer.opcode, answer.is_response) == (step.frame.opcode, step.frame.is_response), differences
    assert differences == []
