"""Types that change between updates: a Delta table holds what a snapshot of the same bucket holds."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from scan.kit import QUICK

from cbframe import LocalCluster, read_snapshot, write_snapshot
from cbframe.arrow.column_types import rendered
from cbframe.contrib.delta import Delta
from cbframe.contrib.stored_rows import Shape

from .kit import by_deltalake, make, update

_CHOICES: dict[str, list[Any]] = {
    "n": [1, -5, 2.5, 1 << 63, (1 << 53) + 1, 10**25, "text", True, None, {"a": 1}],
    "rare": [None, None, None, "x", [1], {}],
    "of": [{"a": 1}, {"b": "x"}, {}, {"a": None}, {"a": {"deep": [1.5]}}, None],
    "many": [[], [1], [None], ["x"], [{"a": 1}], [{"b": [2]}], [[1]], None],
    "Name": [1, 2],
    "name": ["x", None],
    "same": [1, 2, 3],
}


class Drifting:
    """Documents whose fields get new types one after the other."""

    def __init__(self, cluster: LocalCluster, seed: int) -> None:
        self.cluster = cluster
        self.rng = random.Random(seed)
        self.known = {name: [values[0]] for name, values in _CHOICES.items()}

    def learn(self) -> None:
        """One more value is possible for some field."""
        name = self.rng.choice([*_CHOICES])
        self.known[name].append(self.rng.choice(_CHOICES[name]))

    def changes(self, count: int) -> None:
        # Each key once: of a document that changed twice a snapshot types both versions.
        for number in self.rng.sample(range(60), count):
            key = f"key-{number:02d}"
            if self.rng.random() < 0.2:
                self.cluster.delete(key)
            else:
                fields = [name for name in self.known if self.rng.random() < 0.8]
                self.cluster.upsert(key, {name: self.rng.choice(self.known[name]) for name in fields})


def restored(uri: str) -> pa.Table:
    """Documents of a table with the types that they had before they were Delta's."""
    table = Delta(uri)
    shape = Shape(table.format, table.states()[0].manifest.columns[0], xattrs=False, keys="text")
    rows = by_deltalake(uri)
    documents = rendered(shape.documents_of(rows))
    return documents.append_column("_cb_key", rows["_cb_key"]).sort_by("_cb_key")


def live(seed: int, folder: Path) -> Counter[str]:
    uri, path = str(folder / f"table-{seed}"), str(folder / f"snapshot-{seed}")
    happened: Counter[str] = Counter()
    with LocalCluster(nodes=1, vbuckets=4, seed=seed) as cluster:
        drifting = Drifting(cluster, seed)
        drifting.changes(30)
        make(cluster, uri)
        write_snapshot(cluster, path, options=QUICK, timeout=60)
        for _ in range(8):
            if drifting.rng.random() < 0.6:
                drifting.learn()
            if drifting.rng.random() < 0.3:
                vbucket = drifting.rng.randrange(4)
                high = cluster.high_seqnos()[vbucket]
                cluster.fail_over(vbucket, lose=min(high, drifting.rng.choice([1, 5, 20])))
                happened["failovers"] += 1
            drifting.changes(drifting.rng.choice([1, 5, 20]))
            result = update(cluster, uri)
            happened["rewritten" if result.rewritten else "merged"] += 1
            write_snapshot(cluster, path, options=QUICK, timeout=60)
            compare(uri, path)
    return happened


def compare(uri: str, path: str) -> None:
    found = restored(uri)
    wanted = read_snapshot(path, return_type="arrow").sort_by("_cb_key")
    assert found["_cb_key"].to_pylist() == wanted["_cb_key"].to_pylist()
    assert {*found.column_names} >= {*wanted.column_names}
    for name in found.column_names:
        if name not in wanted.column_names:
            assert found[name].null_count == len(found)
        else:
            assert found[name].type == wanted[name].type, name
            pairs = zip(found[name].to_pylist(), wanted[name].to_pylist(), strict=True)
            assert all(one == other or as_read(one) == as_read(other) for one, other in pairs), name


def as_read(cell: Any) -> Any:
    """What text says: where integers had become doubles before they became text, it is ``1.0``."""
    try:
        return json.loads(cell)
    except (TypeError, ValueError):
        return cell


def test_types_drift(tmp_path: Path) -> None:
    happened: Counter[str] = Counter()
    for seed in range(8):
        happened += live(seed, tmp_path)
    assert min(happened[what] for what in ("rewritten", "merged", "failovers")) > 5


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("first", range(100, 200, 20))
def test_types_of_many_seeds_drift(first: int, tmp_path: Path) -> None:
    for seed in range(first, first + 20):
        live(seed, tmp_path)
