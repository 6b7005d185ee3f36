"""What the README says of types is so."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from cbframe import LocalCluster, read_bucket, scan_bucket

README = Path(__file__).parent.parent / "README.md"
CODE = re.compile(r"`([^`]*)`")


def rows() -> list[list[str]]:
    lines = README.read_text("utf-8").splitlines()
    start = lines.index("| values of a field | documents | column | cells |") + 2
    stop = lines.index("", start)
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[start:stop]]


def shown(cell: Any) -> str:
    if cell is None or isinstance(cell, bool | dict | list):
        return json.dumps(cell, ensure_ascii=False)
    return str(cell)


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0])
def test_a_row_of_the_table(row: list[str]) -> None:
    name, documents, column, cells = row
    values = CODE.findall(documents)
    arguments = {"parse_dates": True} if "parse_dates" in name else {}
    with LocalCluster(vbuckets=1) as cluster:
        for at, value in enumerate(values):
            cluster.upsert(f"k{at}", value.encode(), datatype=1)
        table = scan_bucket(cluster, **arguments).to_arrow().sort_by("_cb_key")
    assert [str(table.schema.field("a").type)] == CODE.findall(column)
    assert [shown(cell) for cell in table["a"].to_pylist()] == CODE.findall(cells)


def test_what_does_not_become_columns() -> None:
    deep = b'{"a":' + b"[" * 200 + b"]" * 200 + b"}"
    with LocalCluster(vbuckets=1) as cluster:
        for at, value in enumerate([b"[1]", b"{", b'{"a":NaN}', b'{"a":"\xff"}', b'{"a":"\\ud800"}', deep]):
            cluster.upsert(f"k{at}", value, datatype=1)
        cluster.upsert("ours", b'{"_cb_key":1}', datatype=1)
        frame = read_bucket(cluster)
        assert frame["_cb_reason"].dropna().to_dict() == {
            "k0": "not_an_object",
            "k1": "invalid_json",
            "k2": "invalid_json",
            "k3": "not_utf8",
            "k4": "invalid_json",
            "k5": "too_deep",
        }
        assert frame.loc["k5", "_cb_value"] == deep
        assert frame.loc["ours", "_cb_key_"] == 1


def test_names_that_are_data() -> None:
    with LocalCluster(vbuckets=1) as cluster:
        for at in range(3):
            members = {f"user{at}-{i}": i for i in range(500)}
            cluster.upsert(f"k{at}", {"common": 1, "map": members, **{f"f{at}-{i}": i for i in range(700)}})
        frame = read_bucket(cluster)
    assert str(frame["map"].dtype) == "map<string, int64>[pyarrow]"
    assert dict(frame.loc["k1", "map"])["user1-499"] == 499
    fields = [name for name in frame.columns if not name.startswith("_cb_")]
    assert len(fields) == 1000
    assert {"common", "map"} <= set(fields)
    for at in range(3):
        row = frame.loc[f"k{at}"]
        rest = {} if pd.isna(row["_cb_rest"]) else json.loads(row["_cb_rest"])
        for i in range(700):
            name = f"f{at}-{i}"
            assert (rest[name] if name in rest else row[name]) == i
