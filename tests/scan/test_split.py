"""One table for each kind of document."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from cbframe import ConfigurationError, ConversionError, LocalCluster, read_bucket, scan_bucket
from cbframe.scan import session
from cbframe.scan.session import groups_of
from cbframe.wire.constants import Datatype

from .kit import QUICK

DOCUMENTS: dict[str, Any] = {
    "h1": {"type": "hotel", "rooms": 3, "at": "2026-01-02"},
    "h2": {"type": "hotel", "rooms": "many"},
    "r1": {"type": "route", "stops": [1, 2], "rooms": {"deep": True}},
    "u1": {"name": "untyped"},
    "u2": {"type": None},
    "u3": {"type": ["hotel"]},
    "n1": {"type": 1, "one": 1},
    "n2": {"type": "1", "other": 1},
    "b1": {"type": True},
}
KINDS = {
    "1": ["n1", "n2"],
    "hotel": ["h1", "h2"],
    "route": ["r1"],
    "true": ["b1"],
    None: ["raw", "u1", "u2", "u3"],
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(nodes=2, vbuckets=8, seed=1) as cluster:
        for key, document in DOCUMENTS.items():
            cluster.upsert(key, document)
        cluster.upsert("raw", b"\x00", datatype=0)
        cluster.upsert("gone", {"type": "ghost"})
        cluster.delete("gone")
        yield cluster


def test_each_kind_has_its_own_columns(cluster: LocalCluster) -> None:
    scan = scan_bucket(cluster, options=QUICK)
    found = scan.split("type")
    assert {kind: sorted(each.table["_cb_key"].to_pylist()) for kind, each in found.items()} == KINDS
    assert list(found) == list(KINDS)
    assert sorted(found["route"].table.column_names) == ["_cb_key", "rooms", "stops", "type"]
    assert found["route"].table["rooms"].to_pylist() == [{"deep": True}]
    assert found["route"].conflicts == ()
    [conflict] = found["hotel"].conflicts
    assert (conflict.path, conflict.types) == ("rooms", {"integer": 1, "string": 1})
    assert conflict.samples == {"integer": ("h1",), "string": ("h2",)}
    assert found[None].rejected == {"binary": 1}
    assert scan.as_of == found["hotel"].as_of
    assert json.loads(found["hotel"].table.schema.metadata[b"cbframe"])["bucket"] == "default"
    assert scan.last.rejected == {"binary": 1}
    assert [conflict.path for conflict in scan.conflicts] == ["type", "rooms"]


def test_frames_of_any_kind(cluster: LocalCluster) -> None:
    frames = read_bucket(cluster, split_by="type", options=QUICK, dtype_backend="numpy_nullable")
    assert isinstance(frames["hotel"], pd.DataFrame)
    assert frames["hotel"].loc["h1", "rooms"] == "3"
    assert str(frames["1"]["one"].dtype) == "Int64"
    assert frames["hotel"].attrs["cbframe"]["conflicts"][0]["path"] == "rooms"
    tables = read_bucket(cluster, split_by=("type",), return_type="arrow", options=QUICK)
    assert all(isinstance(table, pa.Table) for table in tables.values())
    others = read_bucket(cluster, split_by="type", return_type="polars", options=QUICK)
    assert isinstance(others["route"], pl.DataFrame)
    assert others["route"].shape == (1, 4)


def test_with_columns_filters_and_dates(cluster: LocalCluster) -> None:
    scan = scan_bucket(
        cluster, options=QUICK, columns=["rooms", "at"], filters=[("type", "!=", "route")], parse_dates=["at"]
    )
    found = scan.split("type")
    assert set(found) == {"1", "hotel", "true", None}
    assert found["hotel"].table.column_names == ["_cb_key", "rooms", "at"]
    assert found["hotel"].table.schema.field("at").type == pa.timestamp("us")
    assert found["1"].table["rooms"].null_count == 2


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"columns": ["nowhere"]}, ConfigurationError, "'nowhere', which no document has"),
        ({"parse_dates": ["no.where"]}, ConfigurationError, "'no.where', which no document has"),
        ({"keys_only": True}, ConfigurationError, "not parsed"),
        ({"parse": False}, ConfigurationError, "not parsed"),
        ({"errors": "raise"}, ConversionError, "1 binary"),
        ({"on_conflict": "raise"}, ConversionError, "'type' has 1 integer, 1 string"),
    ],
)
def test_what_cannot_be(
    cluster: LocalCluster, arguments: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        scan_bucket(cluster, options=QUICK, **arguments).split("type")


def test_an_empty_bucket() -> None:
    with LocalCluster(vbuckets=2) as cluster:
        assert read_bucket(cluster, split_by="type", columns=["a"], options=QUICK) == {}


def test_too_many_kinds(cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_MOST", 4)
    with pytest.raises(ConfigurationError, match="split_by='type' has more than 4 different values"):
        scan_bucket(cluster, options=QUICK).split("type")


def groups(
    *values: bytes, path: tuple[str, ...] = ("t",), datatypes: list[int] | None = None
) -> dict[Any, list[int]]:
    columns = {
        "_cb_value": pa.array(values, pa.binary()),
        "_cb_datatype": pa.array(datatypes or [Datatype.JSON] * len(values), pa.uint8()),
        "_cb_vbucket": pa.array([0] * len(values), pa.uint16()),
        "_cb_seqno": pa.array(range(len(values)), pa.uint64()),
    }
    raw = pa.table(columns)
    return {label: rows.tolist() for label, rows in groups_of(raw, path).items()}


def test_names_of_kinds() -> None:
    assert groups(
        b'{"t":"a"}',
        b'{ "t" : "\\u0061", "x":1}',
        b'{"t":"b","t":"a"}',
        b'{"t":1.50}',
        b'{"t":18446744073709551617}',
    ) == {"1.50": [3], "18446744073709551617": [4], "a": [0, 1, 2]}
    assert groups(b"", b"{", b'{"t":"a"', b"[]", b'"a"', b'{"t":{}}', b'{"t":"\xff"}') == {
        None: list(range(7))
    }
    assert groups(b'{"t":"a"}', b'{"t":"a"}', datatypes=[1, 0]) == {"a": [0], None: [1]}
    nested = groups(b'{"t":{"u":"x"}}', b'{"t":{"u":"y","u":"x"}}', b'{"t":"x"}', path=("t", "u"))
    assert nested == {"x": [0, 1], None: [2]}
    assert groups(b'{"t":""}', b'{"t":null}') == {"": [0], None: [1]}


def test_rows_stay_in_their_order() -> None:
    rng = np.random.default_rng(3)
    kinds = rng.integers(0, 5, 1000)
    found = groups(*(b'{"t":"%d"}' % kind for kind in kinds))
    assert found == {str(kind): np.flatnonzero(kinds == kind).tolist() for kind in range(5)}
