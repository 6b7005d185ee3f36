"""Reports of schemas, and what differs between two."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd
import pyarrow as pa
import pytest

from cbframe import ConfigurationError, LocalCluster, SchemaReport, diff_schema, read_schema, scan_bucket

from .kit import QUICK


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(nodes=2, vbuckets=8, seed=1) as cluster:
        for i in range(100):
            cluster.upsert(f"k{i}", {"id": i, "name": f"<b>{i % 7}</b>", "price": i if i % 4 else "free"})
        cluster.upsert("rare", {"extra": {"deep": [1, None]}})
        cluster.upsert("raw", b"\x00", datatype=0)
        yield cluster


@pytest.fixture(scope="module")
def report(cluster: LocalCluster) -> SchemaReport:
    return read_schema(cluster, options=QUICK, batch_bytes=500)


def test_fields(report: SchemaReport) -> None:
    found = {each.path: (each.values, each.places, each.distinct, each.exact) for each in report.fields}
    assert found == {
        "id": (100, 102, 100, True),
        "name": (100, 102, 7, True),
        "price": (100, 102, 76, True),
        "extra": (1, 102, None, True),
        "extra.deep": (1, 1, None, True),
        "extra.deep[]": (1, 2, 1, True),
    }
    assert report.rows == 102
    assert report.rejected == {"binary": 1}
    assert [(each.path, each.types) for each in report.conflicts] == [
        ("price", {"integer": 75, "string": 25})
    ]
    assert report.as_of.changes == 102
    assert report.schema.field("id").type == pa.int64()


def test_it_depends_on_the_documents_alone(cluster: LocalCluster, report: SchemaReport) -> None:
    other = read_schema(cluster, options=QUICK)
    assert {each.path: each.examples for each in other.fields} == {
        each.path: each.examples for each in report.fields
    }
    assert str(other) == str(report)


def test_as_a_picture(report: SchemaReport) -> None:
    title, head, *rows = str(report).splitlines()
    assert title == "default: 102 documents, 6 fields; no JSON objects: 1 binary"
    assert head == "field         type    missing  distinct  kinds                  examples"
    assert any(
        row.startswith("price         string  1.96 %   76        75 integer, 25 string") for row in rows
    )
    page = report._repr_html_()
    assert "&lt;b&gt;" in page
    assert "<b>" not in page


def test_as_a_frame(report: SchemaReport) -> None:
    frame = report.to_pandas()
    assert list(frame.index) == [each.path for each in report.fields]
    assert frame.loc["price", "kinds"] == {"integer": 75, "string": 25}
    assert frame.loc["extra", "missing"] == pytest.approx(101 / 102)
    assert frame["distinct"].dtype == pd.Int64Dtype()
    assert pd.isna(frame.loc["extra", "distinct"])


def test_a_look_at_some(cluster: LocalCluster) -> None:
    some = read_schema(cluster, options=QUICK, n_rows=5)
    assert some.rows == 5
    assert some.as_of == {}


def test_no_documents() -> None:
    with LocalCluster(vbuckets=2) as cluster:
        assert str(read_schema(cluster, options=QUICK)) == "default: 0 documents, 0 fields"
        declared = read_schema(cluster, options=QUICK, schema={"a": pa.int64()})
        assert [(each.path, each.places, each.values) for each in declared.fields] == [("a", 0, 0)]
        assert "0 %" in str(declared)


def test_differences(cluster: LocalCluster, report: SchemaReport) -> None:
    result = scan_bucket(cluster, options=QUICK, columns=["id", "extra"], nested="json").read()
    found = diff_schema(report, result)
    assert found.removed == {
        "name": "string",
        "price": "string",
        "extra.deep": "list",
        "extra.deep[]": "int64",
    }
    assert found.changed == {"extra": ("struct", "string")}
    assert found.added == {}
    assert bool(found)
    assert str(found).splitlines()[0] == "0 added, 4 removed, 1 changed"
    assert "extra" in found._repr_html_()
    assert diff_schema(result.table, pa.schema([("id", pa.int64()), ("new", pa.null())])).added == {
        "new": "null"
    }


def test_no_difference(report: SchemaReport) -> None:
    found = diff_schema(report, report.schema)
    assert not found
    assert str(found) == "the schemas are equal"


def test_what_has_no_schema(report: SchemaReport) -> None:
    with pytest.raises(ConfigurationError, match="a DataFrame has no Arrow schema"):
        diff_schema(report, pd.DataFrame({"a": [1]}))


def test_a_name_with_a_dot_is_no_member() -> None:
    documents = [{"user.name": "x"}, {"user": {"name": 1, "a[]": [{"b.c": True}]}}, {"user.name": 5, "`": 1}]
    with LocalCluster(vbuckets=2, seed=1) as cluster:
        before = read_schema(cluster, options=QUICK)
        for n, document in enumerate(documents):
            cluster.upsert(f"k{n}", document)
        report = read_schema(cluster, options=QUICK)
        chosen = read_schema(cluster, columns=["user.name", ("user.name",)][:1], options=QUICK)
    kinds = {each.path: str(each.type) for each in report.fields}
    assert kinds.pop("user").startswith("struct<")
    assert kinds.pop("user.`a[]`").startswith("list<")
    assert kinds.pop("user.`a[]`[]").startswith("struct<")
    assert kinds == {
        "`user.name`": "string",
        "user.name": "int64",
        "user.`a[]`[].`b.c`": "bool",
        "````": "int64",
    }
    assert [(conflict.path, conflict.types) for conflict in report.conflicts] == [
        ("`user.name`", {"integer": 1, "string": 1})
    ]
    assert {"`user.name`", "user.name"} < diff_schema(before, report).added.keys()
    assert {"`user.name`", "user.name"} < diff_schema(before.schema, report.schema).added.keys()
    assert [each.path for each in chosen.fields] == ["user.name"]
