"""Reports of schemas, what differs between two, and what they are made of."""

from __future__ import annotations

import html.parser
import random
from collections.abc import Iterator
from decimal import Decimal

import pandas as pd
import pyarrow as pa
import pytest

from cbframe import ConfigurationError, LocalCluster, SchemaReport, diff_schema, read_schema, scan_bucket
from cbframe.public import as_html, as_text
from cbframe.scan.schema import Description, Field, leaves_of

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
    (conflict,) = report.conflicts
    assert (conflict.path, conflict.types) == ("price", {"integer": 75, "string": 25})
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
    removed = {"name": "string", "price": "string", "extra.deep": "list", "extra.deep[]": "int64"}
    assert found.removed == removed
    assert found.changed == {"extra": ("struct", "string")}
    assert found.added == {}
    assert bool(found)
    assert str(found).splitlines()[0] == "0 added, 4 removed, 1 changed"
    assert "extra" in found._repr_html_()
    other = pa.schema([("id", pa.int64()), ("new", pa.null())])
    assert diff_schema(result.table, other).added == {"new": "null"}


def test_no_difference_and_what_has_no_schema(report: SchemaReport) -> None:
    found = diff_schema(report, report.schema)
    assert not found
    assert str(found) == "the schemas are equal"
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
    plain = {"`user.name`": "string", "user.name": "int64", "````": "int64"}
    assert kinds == {**plain, "user.`a[]`[].`b.c`": "bool"}
    (conflict,) = report.conflicts
    assert (conflict.path, conflict.types) == ("`user.name`", {"integer": 1, "string": 1})
    assert {"`user.name`", "user.name"} < diff_schema(before, report).added.keys()
    assert {"`user.name`", "user.name"} < diff_schema(before.schema, report.schema).added.keys()
    assert [each.path for each in chosen.fields] == ["user.name"]


# --- Counts, estimates and examples of fields, without any network.


def described(*rows: dict[str, object], schema: pa.Schema | None = None, cuts: int = 1) -> Description:
    batch = pa.RecordBatch.from_pylist(list(rows), schema)
    found = Description()
    step = -(-len(batch) // cuts)
    for start in range(0, len(batch), max(step, 1)):
        found.add(batch[start : start + step])
    return found


def told(found: Description) -> dict[str, tuple[int, int, int | None]]:
    return {path: (each.places, each.values, each.distinct) for path, each in found.fields.items()}


@pytest.mark.parametrize("cuts", [1, 2, 4])
def test_fields_inside_of_fields(cuts: int) -> None:
    rows = [
        {"a": 1, "s": {"x": 1.5, "y": None}, "l": [{"z": "p"}, None, {"z": "p"}], "n": None},
        {"a": 1, "s": None, "l": None, "n": None},
        {"a": None, "s": {"x": 2.5, "y": "q"}, "l": [], "n": None},
        {"a": 3, "s": {"x": None, "y": None}, "l": [{"z": None}], "n": None},
    ]
    schema = pa.RecordBatch.from_pylist(rows).schema
    found = described(*rows, schema=schema, cuts=cuts)
    assert found.rows == 4
    assert told(found) == {
        "a": (4, 3, 2),
        "s": (4, 3, None),
        "s.x": (3, 2, 2),
        "s.y": (3, 1, 1),
        "l": (4, 3, None),
        "l[]": (4, 3, None),
        "l[].z": (3, 2, 1),
        "n": (4, 0, 0),
    }
    assert found.fields["s.y"].examples == ("q",)
    assert found.fields["s"].examples == ()


def test_a_slice_of_structs() -> None:
    rows = [{"s": {"x": i} if i % 3 else None} for i in range(10)]
    found = described(*rows, cuts=5)
    assert told(found)["s.x"] == (6, 6, 6)


def test_metadata_is_no_field() -> None:
    found = described({"_cb_key": "k", "_cb_cas": 1, "_cb_value": None, "_cb_x_": 1})
    assert set(found.fields) == {"_cb_x_"}


@pytest.mark.parametrize("many", [1, 1023, 1024, 1025, 5_000, 200_000])
def test_estimates(many: int) -> None:
    field = Field("a", pa.string())
    for start in range(0, many, 1000):
        values = [f"v{i}" for i in range(start, min(start + 1000, many))]
        field.add(pa.array(values * 2))
    assert field.exact == (many < 1024)
    if field.exact:
        assert field.distinct == many
    else:
        assert field.distinct == pytest.approx(many, rel=0.1)
    assert field.values == 2 * many


@pytest.mark.parametrize(
    "values",
    [
        list(range(-500, 500)),
        [i / 3 for i in range(1000)],
        [True, False, None],
        [Decimal(2**70 + i) for i in range(300)],
        [2**64 - 1 - i for i in range(10)],
        [b"\xff\x00", b"", b"x"],
        ["", "ä", "\U0001f600"],
    ],
    ids=lambda values: type(values[0]).__name__,
)
def test_the_order_changes_nothing(values: list[object]) -> None:
    shuffled = values * 3
    random.Random(1).shuffle(shuffled)
    kind = pa.uint64() if values[0] == 2**64 - 1 else None
    one, other = Field("a", pa.null()), Field("a", pa.null())
    one.add(pa.array(values, kind))
    for start in range(0, len(shuffled), 7):
        other.add(pa.array(shuffled[start : start + 7], kind or one.type))
    assert one.distinct == other.distinct == len({value for value in values if value is not None})
    assert one.examples == other.examples
    assert 0 < len(one.examples) <= 3
    assert set(one.examples) <= {str(value) for value in values}


def test_long_examples_are_cut() -> None:
    field = Field("a", pa.string())
    field.add(pa.array(["x" * 1000]))
    assert field.examples == ("x" * 59 + "…",)


def test_leaves() -> None:
    inside = pa.struct([("b", pa.int64()), ("c", pa.list_(pa.string()))])
    schema = pa.schema([("_cb_key", pa.string()), ("a", pa.list_(inside)), ("d", pa.struct([]))])
    of_a = {"a": "list", "a[]": "struct", "a[].b": "int64", "a[].c": "list", "a[].c[]": "string"}
    assert leaves_of(schema) == {**of_a, "d": "struct"}


# --- Small tables as text and as HTML.


def test_text() -> None:
    wanted = "title\na    bb\nxxx  y\n     <z>"
    assert as_text("title", ("a", "bb"), [("xxx", "y"), ("", "<z>")]) == wanted
    assert as_text("title", ("a",), []) == "title"
    assert as_text("t", ("a",), [("x" * 50,)], width=10).splitlines()[2] == "x" * 9 + "…"


def test_html_is_well_formed_and_escaped() -> None:
    opened: list[str] = []
    text: list[str] = []

    class Parser(html.parser.HTMLParser):
        def handle_starttag(self, tag: str, attrs: object) -> None:
            assert tag in {"div", "p", "strong", "table", "thead", "tbody", "tr", "th", "td"}
            opened.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert opened.pop() == tag

        def handle_data(self, data: str) -> None:
            text.append(data)

    Parser().feed(as_html("<script>", ("a",), [("<img onerror=alert(1)>",), ("&amp;",)]))
    assert opened == []
    assert text == ["<script>", "a", "<img onerror=alert(1)>", "&amp;"]
