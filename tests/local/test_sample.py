from __future__ import annotations

import hashlib
import json
from collections import Counter

from cbframe.local import LocalCluster
from cbframe.local.sample import sample_documents

from .client import DATA, Client


def test_the_same_seed_gives_the_same_bytes() -> None:
    def digest(seed: int) -> str:
        whole = hashlib.sha256()
        for key, value, kind in sample_documents(3000, seed):
            whole.update(key + b"\0" + value + kind.encode())
        return whole.hexdigest()

    assert digest(1) == digest(1) != digest(2)


def test_contents() -> None:
    kinds: Counter[str] = Counter()
    types: Counter[str] = Counter()
    keys = set()
    reviews = 0
    for key, value, kind in sample_documents(20_000):
        keys.add(key)
        kinds[kind] += 1
        if kind == "binary":
            assert not value.isascii()
            continue
        content = json.loads(value)
        if kind == "scalar":
            assert not isinstance(content, dict)
            continue
        types[content["type"]] += 1
        assert key == f"{content['type']}_{content['id']}".encode()
        reviews += len(content.get("reviews", ()))
    assert len(keys) == 20_000
    assert set(types) == {"airline", "airport", "hotel", "route"}
    assert min(types.values()) > 500
    assert 150 < kinds["binary"] < 250
    assert 150 < kinds["expired"] < 250
    assert 150 < kinds["deleted"] < 250
    assert 5 < kinds["scalar"] < 50
    assert reviews > 1000


def test_load_sample_gives_the_truth() -> None:
    truth = {key: (value, kind) for key, value, kind in sample_documents(5000)}
    with LocalCluster(vbuckets=4) as cluster:
        assert cluster.load_sample(5000) == 5000
        found = {}
        with Client(cluster).login().open(0x20, enable_expiry_opcode="true") as client:
            for vbucket, high in cluster.high_seqnos().items():
                for frame in client.read(vbucket, high):
                    if frame.opcode in DATA:
                        found[frame.key[1:]] = frame
    opcodes = {"expired": 0x59, "deleted": 0x58}
    assert found.keys() == truth.keys()
    for key, (value, kind) in truth.items():
        frame = found[key]
        assert frame.opcode == opcodes.get(kind, 0x57)
        if frame.opcode == 0x57:
            assert frame.value == value
            assert frame.datatype == (0 if kind == "binary" else 1)
