"""One schema for all partitions: agreed from a sample, kept by each, or an error that names the field."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pytest

from cbframe import LocalCluster, scan_bucket
from cbframe.errors import ConfigurationError, ConversionError
from cbframe.scan.partition import spread
from cbframe.scan.result import Conflict, merged
from cbframe.wire.messages import vbucket_of

from .kit import QUICK
from .test_partitions import parts_of, sorted_rows, told, union

LATER = 1000
LAST = spread(range(64))[-1]
"""The vbucket that a sample sees last, where the first one has more documents than a few."""


def filled(cluster: LocalCluster, documents: Iterable[dict[str, Any]], name: str = "plain") -> None:
    cluster.bulk_load(
        (b"%s-%05d" % (name.encode(), n), json.dumps(each).encode()) for n, each in enumerate(documents)
    )


def plain(count: int = LATER) -> list[dict[str, Any]]:
    return [{"n": n, "price": n / 4, "geo": {"lat": 1.5}, "tags": ["a"]} for n in range(count)]


def odd(**fields: Any) -> LocalCluster:
    """A bucket in which one document is unlike the others, and in a vbucket that no small sample sees."""
    cluster = LocalCluster(nodes=2, vbuckets=64, seed=1).start()
    filled(cluster, plain())
    for number in range(10_000):
        key = b"odd-%d" % number
        if _vbucket(key) == LAST:
            cluster.upsert(key, {**plain(1)[0], **fields})
            return cluster
    raise AssertionError


def _vbucket(key: bytes) -> int:
    return vbucket_of(key, 64)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n": "text"}, "'n' is int64 there and has to be string"),
        ({"n": 1.5}, "'n' is int64 there and has to be double"),
        ({"more": 1}, r"'more' \(int64\) is not in it"),
        ({"geo": {"lat": 1.0, "lon": 2}}, r"'geo.lon' \(int64\) is not in it"),
        ({"tags": 1}, "'tags' is list<item: string> there and has to be JSON text"),
        ({"geo": 5}, "'geo' is struct<lat: double> there and has to be JSON text"),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_what_does_not_fit_is_an_error(fields: dict[str, Any], message: str, streamed: bool) -> None:
    with odd(**fields) as cluster:
        *good, bad = sorted(parts_of(cluster, 4, sample_rows=50), key=lambda part: LAST in part.vbuckets)
        assert all(part.read().schema.equals(bad.schema) for part in good)
        with pytest.raises(ConversionError, match=message) as caught:
            bad.to_reader() if streamed else bad.read()
        assert "sample_rows=None" in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "null", "path", "kind"),
    [
        ({"n": "text"}, {"n": None}, "n", "string"),
        ({"n": 1.5}, {"n": None}, "n", "misfit"),
        ({"more": 1}, {}, "more", "unexpected"),
        ({"geo": {"lat": 1.0, "lon": 2}}, {"geo": {"lat": 1.0}}, "geo.lon", "unexpected"),
        ({"geo": {"lat": "x"}}, {"geo": {"lat": None}}, "geo.lat", "string"),
        ({"geo": 5}, {"geo": None}, "geo", "integer"),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_or_null_and_reported(
    fields: dict[str, Any], null: dict[str, Any], path: str, kind: str, streamed: bool
) -> None:
    with odd(**fields) as cluster:
        parts = parts_of(cluster, 4, sample_rows=50, on_conflict="null")
        tables = [part.to_reader().read_all() if streamed else part.read() for part in parts]
        assert all(table.schema.equals(parts[0].schema) for table in tables)
        rows = {row["_cb_key"]: row for table in tables for row in table.to_pylist()}
        assert len(rows) == LATER + 1
        key = next(key for key in rows if key.startswith("odd"))
        assert rows[key] == {"_cb_key": key, **plain(1)[0], **null}
        reports = [conflict for table in tables for conflict in told(table)["conflicts"]]
        assert [(each["path"], each["action"]) for each in reports] == [(path, "null")]
        assert reports[0]["types"][kind] == 1


@pytest.mark.parametrize("fields", [{"n": "text"}, {"n": 1.5}, {"more": 1}, {"geo": {"lon": 2}}, {"geo": 5}])
def test_who_looks_at_all_agrees_on_all(fields: dict[str, Any]) -> None:
    with odd(**fields) as cluster:
        parts = parts_of(cluster, 4, sample_rows=None)
        table, whole = union(parts), scan_bucket(cluster, options=QUICK).to_arrow()
        assert dict(zip(table.schema.names, table.schema.types, strict=True)) == dict(
            zip(whole.schema.names, whole.schema.types, strict=True)
        )
        assert sorted_rows(table.select(whole.schema.names)) == sorted_rows(whole)


@pytest.mark.parametrize(
    ("here", "there", "nested"),
    [
        ("1.50", '"x"', "struct"),
        ("1e400", '"x"', "struct"),
        ("-0", "0.5", "struct"),
        ('{"a": 1, "b": null}', "5", "struct"),
        ("[1.50, null]", "true", "struct"),
        ('{"x": 1.50}', '{"x": "t"}', "struct"),
        ('[{"x": [1, 2]}]', '[{"x": 5}]', "struct"),
        ('[1, "x"]', "5", "json"),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_values_are_as_they_were_written(here: str, there: str, nested: Any, streamed: bool) -> None:
    """Where others have text it is kept, whatever else a part has, and though nothing of it is text."""
    with LocalCluster(nodes=1, vbuckets=2, seed=1) as cluster:
        for n in range(40):
            other = there if vbucket_of(b"k%d" % n, 2) else here
            mixed = other if other is there else ("5", '"x"', "12345678901234567890")[n % 3]
            cluster.upsert(f"k{n}", f'{{"n": {other}, "mixed": {mixed}}}'.encode())
        scan = scan_bucket(cluster, options=QUICK, nested=nested)
        parts = scan.partitions(2, sample_rows=None)
        tables = [part.to_reader().read_all() if streamed else part.read() for part in parts]
        table = pa.concat_tables(each.replace_schema_metadata() for each in tables)
        assert sorted_rows(table) == sorted_rows(scan.to_arrow())


@pytest.mark.parametrize("on_conflict", ["widen", "json"])
@pytest.mark.parametrize(
    "values",
    [
        ("1", '"x"'),
        ("9007199254740993", "0.5"),
        ("18446744073709551616", "1e400", "2"),
        ("1", "true", '"1"', "1.50"),
        ('{"x": 1}', '{"x": "1"}'),
        ('{"x": [1.50]}', '{"x": ["t", true]}'),
        ("[1]", '["x"]', "[null]"),
        ('{"a": 1}', "5", '"x"'),
    ],
)
def test_who_looks_at_all_reads_what_the_scan_reads(values: tuple[str, ...], on_conflict: Any) -> None:
    """Kinds that meet in one part, in another or in none: text, and text that is JSON."""
    with LocalCluster(nodes=1, vbuckets=4, seed=1) as cluster:
        for n in range(60):
            # One vbucket has each kind, others have one.
            vbucket = vbucket_of(b"k%d" % n, 4)
            cluster.upsert(
                f"k{n}", b'{"f": %s}' % values[(n if vbucket == 3 else vbucket) % len(values)].encode()
            )
        scan = scan_bucket(cluster, options=QUICK, on_conflict=on_conflict)
        whole = scan.to_arrow()
        for count in (1, 2, 4):
            table = union(scan.partitions(count, sample_rows=None))
            assert table.schema.equals(whole.schema)
            assert sorted_rows(table) == sorted_rows(whole)


def test_a_part_with_less_gets_the_rest() -> None:
    """Types are widened, columns that no document of the part has are null."""
    with LocalCluster(nodes=1, vbuckets=8, seed=1) as cluster:
        filled(cluster, [{"a": n} for n in range(50)])
        cluster.upsert("wide", {"a": 0.5, "b": "x"})
        parts = parts_of(cluster, 8)
        assert parts[0].schema.remove_metadata() == pa.schema(
            [("_cb_key", pa.string()), ("a", pa.float64()), ("b", pa.string())]
        )
        assert sorted_rows(union(parts)) == sorted_rows(scan_bucket(cluster, options=QUICK).to_arrow())


def test_a_given_schema_needs_no_sample() -> None:
    schema = pa.schema([("n", pa.int32()), ("absent", pa.string())])
    with odd(more=1) as cluster:
        parts = parts_of(cluster, 3, schema=schema)
        assert parts[0].schema.field("n").type == pa.int32()
        table = union(parts)
        assert table.schema.names == ["_cb_key", "n", "absent"]
        assert table.num_rows == LATER + 1


def test_some_declared() -> None:
    with odd(n=1.5) as cluster:
        parts = parts_of(cluster, 3, sample_rows=50, schema={"n": "double"})
        table = union(parts)
        assert table.schema.field("n").type == pa.float64()
        assert 1.5 in table["n"].to_pylist()


def test_chosen_columns() -> None:
    with odd(more=1) as cluster:
        table = union(parts_of(cluster, 3, sample_rows=50, columns=["geo.lat", "n"]))
        assert table.schema.names == ["_cb_key", "geo.lat", "n"]
        with pytest.warns(UserWarning, match="names 'more', which no document has"):
            parts = parts_of(cluster, 3, sample_rows=50, columns=["more"])
        with pytest.raises(ConversionError, match="'more'"):
            union(parts)


def test_values_that_are_no_documents() -> None:
    with odd() as cluster:
        cluster.upsert(next(b"%d" % n for n in range(9999) if _vbucket(b"%d" % n) == LAST), b"\xff")
        with pytest.raises(ConversionError, match="'_cb_value'"):
            union(parts_of(cluster, 2, sample_rows=50))
        for sample in (50, 10_000):  # which has seen it, too
            table = union(parts_of(cluster, 2, sample_rows=sample, errors="drop"))
            assert table.num_rows == LATER + 1
            assert table.schema.names == scan_bucket(cluster, errors="drop").to_arrow().schema.names
        table = union(parts_of(cluster, 2))
        assert table["_cb_reason"].drop_null().to_pylist() == ["binary"]


def test_no_common_type_with_raise() -> None:
    with odd(n="text") as cluster, pytest.raises(ConversionError, match="no common type"):
        parts_of(cluster, 2, on_conflict="raise")
    with LocalCluster(nodes=1, vbuckets=2, seed=1) as cluster:
        for number in range(20):
            key = b"%d" % number
            cluster.upsert(key, {"n": "text" if vbucket_of(key, 2) else 5})
        parts = parts_of(cluster, 2, sample_rows=None, on_conflict="raise")
        with pytest.raises(ConversionError, match="'n' is int64 here and string in other partitions"):
            union(parts)
        assert sorted_rows(union(parts_of(cluster, 2, sample_rows=None))) == sorted_rows(
            scan_bucket(cluster, options=QUICK).to_arrow()
        )


def test_collections_that_come_later() -> None:
    with LocalCluster(nodes=1, vbuckets=8, seed=1) as cluster:
        filled(cluster, plain(20))
        parts = parts_of(cluster, 1)
        cluster.create_scope("s")
        cluster.create_collection("s", "c")
        cluster.upsert("new", {"n": 1}, collection="s.c")
        with pytest.raises(ConversionError, match="no column for them"):
            parts[0].read()
        parts = parts_of(cluster, 8)
        assert union(parts).schema.equals(scan_bucket(cluster, options=QUICK).to_arrow().schema)
        (part,) = parts_of(cluster, 1, collections=["s.c"])
        assert part.read()["_cb_collection"].to_pylist() == ["c"]


def test_keys_that_are_no_text() -> None:
    with odd() as cluster:
        cluster.upsert(b"\xff\xfe", plain(1)[0])
        for sample in (1, 10_000):
            found = union(parts_of(cluster, 2, sample_rows=sample))["_cb_key"]
            assert found.type == pa.string()
            assert "\\xff\\xfe" in found.to_pylist()


@pytest.mark.parametrize(
    "arguments", [{"n_rows": 5}, {"infer_schema_length": 5}, {"parse_dates": True}, {"vbuckets": []}]
)
def test_what_cannot_be_divided(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="cannot be divided"):
        scan_bucket("couchbase://127.0.0.1/none", auth=("a", "b"), **arguments).partitions(2)


def test_merged_reports() -> None:
    one = Conflict("a", {"string": 1}, "text", {"string": ("k1", "k2", "k3")})
    two = Conflict("a", {"integer": 2, "string": 4}, "text", {"integer": ("m",), "string": ("k4",)})
    other = Conflict("b", {"misfit": 1}, "null", {})
    assert merged([[one], [two, other]]) == (
        Conflict("a", {"string": 5, "integer": 2}, "text", {"string": ("k1", "k2", "k3"), "integer": ("m",)}),
        other,
    )


APART = [
    ("n", 1, "t", "integer", "text"),
    ("n", 0.5, "t", "double", "text"),
    ("n", 1 << 64, "t", "integer", "text"),
    ("d.x", {"x": True}, {"x": "no"}, "boolean", "text"),
    ("l[]", [1.5, 2.5], ["x"], "double", "text"),
    ("o", 5, {"a": 1}, "integer", "json"),
    ("o", "x", {"a": 1}, "string", "json"),
    ("o[].y", [{"y": 5}], [{"y": {"a": 1}}], "integer", "json"),
]


@pytest.mark.parametrize(("path", "one", "other", "kind", "action"), APART)
@pytest.mark.parametrize("streamed", [False, True])
def test_kinds_that_are_apart(
    path: str, one: Any, other: Any, kind: str, action: str, streamed: bool
) -> None:
    """What is of one kind in each part, and of another one in the next, is not widened without a word."""
    name = path.partition(".")[0].removesuffix("[]")
    with LocalCluster(nodes=1, vbuckets=2, seed=1) as cluster:
        kinds: Counter[int] = Counter()
        for n in range(40):
            vbucket = vbucket_of(b"k%d" % n, 2)
            kinds[vbucket] += 1
            cluster.upsert(
                f"k{n}", {name: other if vbucket else one, "same": n, "none": None if vbucket else "z"}
            )
        scan = scan_bucket(cluster, options=QUICK)
        whole = scan.read()
        found: Counter[str] = Counter()
        for part in scan.partitions(2, sample_rows=None):
            table = part.to_reader().read_all() if streamed else part.read()
            for each in told(table)["conflicts"]:
                assert (each["path"], each["action"]) == (path, action)
                found.update(each["types"])
        count = kinds[0] * (2 if path == "l[]" else 1)
        assert [(each.path, each.action) for each in whole.conflicts] == [(path, action)]
        assert whole.conflicts[0].types[kind] == count
        # What is text in a part in any case is not counted there.
        assert found == ({kind: count} if action == "text" else whole.conflicts[0].types)


def test_kinds_that_meet_in_a_part() -> None:
    """What a part has counted is not counted again."""
    with LocalCluster(nodes=1, vbuckets=2, seed=1) as cluster:
        for n in range(40):
            vbucket = vbucket_of(b"k%d" % n, 2)
            cluster.upsert(f"k{n}", {"n": {"a": 1} if vbucket else ("x" if n % 2 else n)})
        scan = scan_bucket(cluster, options=QUICK)
        reports = [each.result().report for each in scan.partitions(2, sample_rows=None)]
        (both,) = merged(report.conflicts for report in reports)
        (whole,) = scan.read().conflicts
        assert (both.path, both.action, both.types) == (whole.path, whole.action, whole.types)
