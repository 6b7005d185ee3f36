"""What the caller says about types: schema=, on_conflict=, parse_dates= and their kin."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from cbframe import ConfigurationError, ConversionError, LocalCluster, read_bucket, scan_bucket


@pytest.fixture
def mixed(cluster: LocalCluster) -> LocalCluster:
    for number in range(8):
        cluster.upsert(f"n{number}", {"a": number, "geo": {"lat": 0.5}, "at": "2026-01-02T03:04:05+02:00"})
    cluster.upsert("s", {"a": "secret", "at": "2026-01-02T01:04:05Z"})
    return cluster


def test_values_without_a_common_type_may_be_an_error(mixed: LocalCluster) -> None:
    with pytest.raises(ConversionError, match=r"'a' has 8 integer, 1 string") as raised:
        read_bucket(mixed, on_conflict="raise")
    assert "secret" not in str(raised.value)
    assert 'on_conflict="null"' in str(raised.value.hint)
    assert len(read_bucket(mixed, on_conflict="raise", columns=["at"])) == 9


def test_values_without_a_common_type_may_become_null(mixed: LocalCluster) -> None:
    scan = scan_bucket(mixed, on_conflict="null")
    frame = scan.to_pandas()
    assert str(frame["a"].dtype) == "int64[pyarrow]"
    assert frame["a"].isna().sum() == 1
    (conflict,) = scan.conflicts
    assert (conflict.path, conflict.types, conflict.action) == ("a", {"integer": 8, "string": 1}, "null")
    assert conflict.samples["string"] == ("s",)


def test_some_types_are_declared(mixed: LocalCluster) -> None:
    frame = read_bucket(mixed, schema={"a": str, "none": "int32"})
    assert frame.loc["s", "a"] == "secret"
    assert frame.loc["n3", "a"] == "3"
    assert str(frame["none"].dtype) == "int32[pyarrow]"
    assert set(frame.columns) == {"a", "geo", "at", "none"}
    with pytest.raises(ConversionError, match="'a' has"):
        read_bucket(mixed, schema={"a": "int8"})
    scan = scan_bucket(mixed, schema={"a": "int8"}, on_conflict="null")
    assert scan.to_arrow().schema.field("a").type == pa.int8()
    assert [(c.path, c.types) for c in scan.conflicts] == [("a", {"integer": 8, "string": 1})]


def test_all_types_are_declared(mixed: LocalCluster) -> None:
    schema = pa.schema(
        [("at", pa.timestamp("us", "UTC")), ("a", pa.uint8()), ("geo", pa.struct([("lat", pa.float32())]))]
    )
    table = scan_bucket(mixed, schema=schema, on_conflict="null").to_arrow()
    assert pa.schema(list(table.schema)[1:]) == schema
    assert table["at"].unique().to_pylist() == [pd.Timestamp("2026-01-02T01:04:05Z")]
    with LocalCluster(vbuckets=4) as empty:
        assert pa.schema(list(scan_bucket(empty, schema=schema).to_arrow().schema)[1:]) == schema


def test_a_misfit_names_keys_in_the_report_only(cluster: LocalCluster) -> None:
    cluster.upsert("fits", {"a": 1})
    cluster.upsert("fits-not", {"a": 300})
    scan = scan_bucket(cluster, schema={"a": "int8"}, on_conflict="null")
    assert scan.to_pandas()["a"].isna().to_dict() == {"fits": False, "fits-not": True}
    (conflict,) = scan.conflicts
    assert (conflict.path, conflict.types, conflict.action) == ("a", {"misfit": 1}, "null")
    assert conflict.samples == {"misfit": ("fits-not",)}
    with pytest.raises(ConversionError) as raised:
        read_bucket(cluster, schema={"a": "int8"})
    assert "fits-not" not in f"{raised.value} {raised.value.hint} {conflict!r}"


def test_dates_only_where_they_are_asked_for(mixed: LocalCluster) -> None:
    assert str(read_bucket(mixed)["at"].dtype) == "string[pyarrow]"
    for wanted in (True, ["at"]):
        at = read_bucket(mixed, parse_dates=wanted)["at"]
        assert str(at.dtype) == "timestamp[us, tz=UTC][pyarrow]"
        assert at.nunique() == 1


def test_fields_of_later_documents(cluster: LocalCluster) -> None:
    for number in range(40):
        cluster.upsert(f"k{number}", {"a": number})
    frame = read_bucket(cluster, infer_schema_length=40)
    assert list(frame.columns) == ["a"]
    with pytest.raises(ConfigurationError, match="infer_schema_length=0"):
        read_bucket(cluster, infer_schema_length=0)


def test_objects_of_many_names(cluster: LocalCluster) -> None:
    for number in range(20):
        cluster.upsert(f"k{number}", {"m": {f"u{number}": 1}})
    assert str(read_bucket(cluster, max_struct_fields=10)["m"].dtype) == "map<string, int64>[pyarrow]"
    assert str(read_bucket(cluster)["m"].dtype).startswith("struct<")


@pytest.mark.parametrize(
    "wrong",
    [
        {"schema": 5},
        {"schema": {"a": "no type"}},
        {"schema": {"_cb_key": "string"}},
        {"schema": pa.schema([("a", pa.int64())]), "columns": ["a"]},
        {"on_conflict": "ignore"},
        {"parse_dates": ["nothing"]},
        {"max_struct_fields": 0},
    ],
)
def test_what_cannot_be_meant(mixed: LocalCluster, wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        read_bucket(mixed, **wrong)
