"""A bucket as a LazyFrame: whatever goes down to the read, the rows are those that polars itself finds."""

from __future__ import annotations

import operator
import pickle
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from decimal import Decimal
from functools import reduce
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from scan.kit import QUICK, fill

import cbframe
from cbframe import (
    ConfigurationError,
    ConnectError,
    ConversionError,
    DependencyError,
    EnvironmentAuth,
    LocalCluster,
    scan_polars,
)
from cbframe.arrow.filters import make_filters
from cbframe.contrib import polars as contrib
from cbframe.local.dcp import Producer
from cbframe.scan import partition
from cbframe.scan.session import ReadSession
from cbframe.scan.spec import ScanSpec
from cbframe.wire.framing import Frame
from cbframe.wire.messages import StreamRequest

ENGINES = ["in-memory", "streaming"]
SECRET = "a-word-that-is-secret"
DOCUMENTS: dict[bytes, bytes] = {
    b"hotel_1": b'{"n":1,"u":1,"x":0.5,"s":"a","mix":1,"ok":true,"g":{"lat":1.5,"i":5,"s":"x"},"small":1}',
    b"hotel_2": b'{"n":-3,"u":18446744073709551615,"x":-0.0,"s":"","mix":"1","ok":false,"g":{"lat":-2.5}}',
    b"hotel_\xff": b'{"n":9007199254740993,"u":9007199254740993,"x":1e300,"s":"60","mix":true,"g":{}}',
    b"\\xff": '{"n":1152921504606846976,"x":0.1,"s":"ä😀","mix":"x","ok":null,"g":null}'.encode(),
    b"r": b'{"n":9007199254740992,"x":3,"s":null,"mix":null,"ok":true,"g":{"lat":null,"i":-5},"small":127}',
    b"route_1": b'{"n":null,"s":"true","mix":1.5,"json":{"a":1},"tags":[1],"g":{"i":7,"s":"60"},"none":null}',
    b"route_2": b'{"s":"null","small":-128,"mix":"true","json":"a","tags":[],"ok":false,"a.b":5}',
    b"route_3": b'{"n":5,"u":0,"x":5.0,"s":"A","mix":-7,"json":[1],"when":"2024-05-02","ok":true}',
    b"route_4": b"{}",
    b"binary": b"\xff\x00",
    b"array": b"[1]",
}
ARGUMENTS: dict[str, Any] = {"progress": None, "options": QUICK, "timeout": 30}
C = pl.col
LAT = C("g").struct.field("lat")
START = [("_cb_key", ">=", b"hotel_"), ("_cb_key", "<", b"hotel`")]


@pytest.fixture(scope="module")
def bucket() -> Iterator[LocalCluster]:
    with LocalCluster(nodes=1, vbuckets=2, seed=1) as cluster:
        for key, value in DOCUMENTS.items():
            cluster.upsert(key, value)
        yield cluster


@pytest.fixture(scope="module")
def frame(bucket: LocalCluster) -> pl.LazyFrame:
    return scan_polars(bucket, metadata=("key", "seqno"), schema={"small": "int8"}, **ARGUMENTS)


@pytest.fixture(scope="module")
def whole(bucket: LocalCluster) -> pl.DataFrame:
    scan = cbframe.scan_bucket(bucket, metadata=("key", "seqno"), schema={"small": "int8"}, **ARGUMENTS)
    return scan.to_polars()


@pytest.fixture
def specs(monkeypatch: pytest.MonkeyPatch) -> list[ScanSpec]:
    """What was read, in order."""
    found: list[ScanSpec] = []

    class Spy(ReadSession):
        def __init__(self, spec: ScanSpec, **arguments: Any) -> None:
            found.append(spec)
            super().__init__(spec, **arguments)

    monkeypatch.setattr(partition, "ReadSession", Spy)
    return found


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Vbuckets whose streams were asked for."""
    found: list[int] = []
    stream_request = Producer.stream_request

    def spy(self: Producer, frame: Frame, message: StreamRequest) -> None:
        found.append(message.vbucket)
        stream_request(self, frame, message)

    monkeypatch.setattr(Producer, "stream_request", spy)
    return found


def same(found: pl.DataFrame, expected: pl.DataFrame) -> None:
    by = [name for name in found.columns if name == "_cb_key"] or found.columns
    assert_frame_equal(found.sort(by), expected.sort(by))


PUSHED: list[tuple[pl.Expr, Any]] = [
    (C("n") == 5, [("n", "==", 5)]),
    (C("n") != 5, [("n", "!=", 5)]),
    (C("n") > -3, [("n", ">", -3)]),
    (~(C("n") > 1), [("n", "<=", 1)]),
    (C("n") == 2**60, [("n", "==", 2**60)]),
    (C("n") > 2**53, [("n", ">", 2**53)]),
    (C("u") == 2**64 - 1, [("u", "==", 2**64 - 1)]),
    (C("u") <= 1, [("u", "<=", 1)]),
    (C("small") > 1, [("small", ">", 1)]),
    (C("x") == 0, [("x", "==", 0.0)]),
    (C("x") <= 0.1, [("x", "<=", 0.1)]),
    (C("x") >= 1e300, [("x", ">=", 1e300)]),
    (C("s") == "a", [("s", "==", "a")]),
    (C("s") == "", [("s", "==", "")]),
    (C("s") != "a", [("s", "!=", "a")]),
    (~(C("s") == "ä😀"), [("s", "!=", "ä😀")]),
    (C("when") == "2024-05-01", [("when", "==", "2024-05-01")]),
    (C("mix") == "x", [("mix", "==", "x")]),
    (C("json") == "a", [("json", "==", "a")]),
    (C("ok"), [("ok", "==", True)]),
    (~C("ok"), [("ok", "==", False)]),
    (C("ok") == False, [("ok", "==", False)]),  # noqa: E712
    (C("n").is_in([1, 5, None]), [("n", "in", [1, 5])]),
    (C("s").is_in(["a", "A", "zz"]), [("s", "in", ["a", "A", "zz"])]),
    (~C("s").is_in(["a", "A"]), [("s", "not in", ["a", "A"])]),
    (~C("n").is_in([1, None]), [("n", "not in", [1])]),
    (C("n").is_between(-3, 5), [("n", ">=", -3), ("n", "<=", 5)]),
    (C("x").is_between(0, 3, closed="none"), [("x", ">", 0.0), ("x", "<", 3.0)]),
    (C("x").is_between(0.5, 3, closed="left"), [("x", ">=", 0.5), ("x", "<", 3.0)]),
    (C("x").is_between(0.5, 3, closed="right"), [("x", ">", 0.5), ("x", "<=", 3.0)]),
    (C("n").is_not_null(), [("n", "is not", None)]),
    (~C("tags").is_null(), [("tags", "is not", None)]),
    (LAT > 0, [("g.lat", ">", 0.0)]),
    (C("g").struct.field("s") == "x", [("g.s", "==", "x")]),
    (C("g").struct.field("i").is_not_null(), [("g.i", "is not", None)]),
    (C("_cb_key") == "r", [("_cb_key", "==", "r")]),
    (C("_cb_key").is_in(["r", "none"]), [("_cb_key", "in", ["r", "none"])]),
    (C("_cb_key").str.starts_with("hotel_"), START),
    (C("_cb_seqno") >= 2, [("_cb_seqno", ">=", 2)]),
    ((C("n") > 1) & (C("s") == "A"), [("n", ">", 1), ("s", "==", "A")]),
    ((C("n") > 1) | (C("s") == "a"), [[("n", ">", 1)], [("s", "==", "a")]]),
    (~((C("n") > 1) | C("ok")), [("n", "<=", 1), ("ok", "==", False)]),
    (~((C("n") > 1) & (C("s") == "a")), [[("n", "<=", 1)], [("s", "!=", "a")]]),
    # What goes down of an "and" is enough; of an "or" nothing is.
    ((C("n") > 1) & (C("s") > "9"), [("n", ">", 1)]),
    ((C("x") > 0) & (C("n") + 1 == 2), [("x", ">", 0.0)]),
    (((C("n") > 1) | C("ok")) & LAT.is_not_null(), [[("n", ">", 1), ("g.lat", "is not", None)],
                                                    [("ok", "==", True), ("g.lat", "is not", None)]]),
]  # fmt: skip
KEPT: list[pl.Expr] = [
    # The number 60 is the text "60"; so are true and null. Order of text is not that of documents.
    C("s") == "60",
    C("s") == "true",
    C("mix") == "1",
    C("mix") != "true",
    C("mix").is_in(["x", "1.5"]),
    C("json") == '{"a":1}',
    C("g").struct.field("s") == "60",
    C("mix") > "0",
    C("s") <= "a",
    C("s").str.starts_with("a"),
    # Null is also what does not fit, and what is no object.
    C("n").is_null(),
    ~C("ok").is_not_null(),
    C("n").eq_missing(5),
    C("n").ne_missing(5),
    C("none").is_null(),
    # polars makes doubles of integers, or the numbers are beyond the type.
    C("n") == float(2**53),
    C("u").cast(pl.Float64) == float(2**53),
    C("x") == C("n"),
    C("small") > 300,
    C("small") == -129,
    C("x") < float("inf"),
    C("x").ne(float("nan")),
    C("n").cast(pl.String) == "5",
    # A key that is not UTF-8 is shown with backslashes.
    C("_cb_key") == "hotel_\\xff",
    C("_cb_key").str.starts_with("hotel_\\"),
    C("_cb_key") > "r",
    C("_cb_key").is_not_null(),
    # A dot in a name.
    C("a.b") == 5,
    # What has no word in filters.
    C("tags").list.len() > 0,
    C("s").str.len_chars() == 1,
    C("n") == C("small"),
    (C("n") > 1) | (C("s") > "9"),
    C("n") + 1 > 5,
    C("_cb_reason") == "binary",
    C("_cb_value").is_not_null(),
    pl.lit(True),
    C("n").is_in(list(range(2000))),
    C("n") > C("n").min(),
]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("predicate", "filters"), PUSHED, ids=[str(each)[:70] for each, _ in PUSHED])
def test_what_goes_down(
    frame: pl.LazyFrame,
    whole: pl.DataFrame,
    specs: list[ScanSpec],
    predicate: pl.Expr,
    filters: Any,
    engine: Any,
) -> None:
    names = ["_cb_key", "s", "x"]
    found = frame.filter(predicate).select(names).collect(engine=engine)
    same(found, whole.filter(predicate).select(names))
    (spec,) = specs
    assert spec.filters is not None
    assert sorted(map(sorted_by_field, spec.filters)) == sorted(map(sorted_by_field, make_filters(filters)))
    wanted = {*names, *predicate.meta.root_names()}
    assert {".".join(path) for path in spec.columns or ()} == {
        name for name in wanted if not name.startswith("_cb_")
    }


def sorted_by_field(group: Any) -> list[str]:
    return sorted(map(repr, group))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("predicate", KEPT, ids=[str(each)[:70] for each in KEPT])
def test_what_stays_with_polars(
    frame: pl.LazyFrame, whole: pl.DataFrame, specs: list[ScanSpec], predicate: pl.Expr, engine: Any
) -> None:
    same(
        frame.filter(predicate).collect(engine=engine),
        whole.filter(predicate).select(frame.collect_schema().names()),
    )
    assert [spec.filters for spec in specs] == [None]


# --- any predicate


def leaves() -> st.SearchStrategy[pl.Expr]:
    compare = st.sampled_from([operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge])
    numbers = st.one_of(
        st.integers(-(2**63), 2**63 - 1),
        st.sampled_from([0, 1, 5, -3, 2**53, 2**53 + 1, 2**60, 0.1, 0.5, -0.0, 1e300, 1.5]),
        st.floats(allow_nan=False),
    )
    texts = st.sampled_from(
        ["", "a", "A", "x", "60", "1", "true", "null", "ä😀", "r", "route_1", "hotel_\\xff"]
    )
    numeric = st.sampled_from([C("n"), C("x"), C("small"), LAT, C("g").struct.field("i"), C("_cb_seqno")])
    textual = st.sampled_from([C("s"), C("mix"), C("json"), C("_cb_key"), C("g").struct.field("s")])
    columns = st.sampled_from([C(name) for name in ("n", "u", "x", "s", "mix", "tags", "g", "none", "a.b")])
    return st.one_of(
        st.builds(lambda op, column, value: op(column, value), compare, numeric, numbers),
        st.builds(lambda op, column, value: op(pl.lit(value), column), compare, textual, texts),
        st.builds(lambda column, some: column.is_in(some), textual, st.lists(st.none() | texts, max_size=3)),
        st.builds(lambda column, low, high: column.is_between(low, high), numeric, numbers, numbers),
        st.builds(lambda column: column.is_null(), columns),
        st.builds(lambda column: column.is_not_null(), columns),
        st.builds(C("_cb_key").str.starts_with, texts),
        st.just(C("ok")),
    )


PREDICATES = st.recursive(
    leaves(),
    lambda inner: st.one_of(
        st.builds(operator.and_, inner, inner),
        st.builds(operator.or_, inner, inner),
        st.builds(operator.invert, inner),
    ),
    max_leaves=6,
)


def check_any(frame: pl.LazyFrame, whole: pl.DataFrame, predicate: pl.Expr) -> None:
    try:
        expected = whole.filter(predicate)
    except pl.exceptions.PolarsError:
        return  # numbers without a common type
    same(frame.filter(predicate).collect(), expected.select(frame.collect_schema().names()))


def test_where_values_do_not_fit(bucket: LocalCluster) -> None:
    """They are null in the columns, and are what they are in the documents."""
    struct = "struct<lat: double, i: double, s: double>"
    schema = {"mix": "int64", "json": "string", "s": "double", "g": struct, "x": "int64", "small": "int8"}
    arguments = {"schema": schema, "on_conflict": "null", "metadata": ("key", "seqno"), **ARGUMENTS}
    frame, whole = scan_polars(bucket, **arguments), cbframe.scan_bucket(bucket, **arguments).to_polars()
    numbers = [
        op(C(name), value) for op in (operator.eq, operator.ne) for name in ("mix", "s") for value in (1, 60)
    ]
    for predicate in [*numbers, *(each for each, _ in PUSHED[::3]), *KEPT[::3]]:
        check_any(frame, whole, predicate)


@settings(max_examples=25, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(predicate=PREDICATES)
def test_any_predicate(frame: pl.LazyFrame, whole: pl.DataFrame, predicate: pl.Expr) -> None:
    check_any(frame, whole, predicate)


@pytest.mark.slow
@pytest.mark.timeout(900)
@settings(max_examples=2000)
@given(predicate=PREDICATES)
def test_many_predicates(frame: pl.LazyFrame, whole: pl.DataFrame, predicate: pl.Expr) -> None:
    check_any(frame, whole, predicate)


def test_long_predicates(frame: pl.LazyFrame, whole: pl.DataFrame, specs: list[ScanSpec]) -> None:
    """As far as filters do not become long, and nothing is too deep."""
    pairs = [(C("n") == n) | (C("x") == n) for n in range(8)]
    for predicate, groups in [
        (reduce(operator.and_, pairs), 64),
        (reduce(operator.or_, [C("n") == n for n in range(64)]), 64),
        (reduce(operator.or_, [C("n") == n for n in range(65)]), None),
    ]:
        same(frame.filter(predicate).select("_cb_key").collect(), whole.filter(predicate).select("_cb_key"))
        filters = specs.pop().filters
        assert (None if filters is None else len(filters)) == groups


# --- columns, rows, reads


def test_columns_that_are_not_used_are_not_read(frame: pl.LazyFrame, specs: list[ScanSpec]) -> None:
    frame.select("n", C("x") * 2).collect()
    frame.select("_cb_key").collect()
    frame.filter(C("s") > "a").select(pl.len()).collect()
    assert specs[0].columns == (("n",), ("x",))
    assert specs[1].keys_only
    assert specs[2].columns is not None
    assert ("s",) in specs[2].columns
    assert len(specs[2].columns) <= 2


def test_filters_and_columns_of_the_scan(bucket: LocalCluster, specs: list[ScanSpec]) -> None:
    """Those of the query come on top; a column is named after its path."""
    either = [[("n", ">", 0)], [("ok", "==", False)]]
    frame = scan_polars(bucket, columns=["g.lat", "s"], filters=either, schema={"s": str}, **ARGUMENTS)
    found = frame.filter(C("g.lat") < 0).collect()
    assert found.to_dicts() == [{"_cb_key": "hotel_2", "g.lat": -2.5, "s": ""}]
    assert specs[0].filters == make_filters([[*group, ("g.lat", "<", 0.0)] for group in either])
    assert frame.select("s").filter(C("s") == "A").collect().height == 1
    assert specs[1].columns == (("s",),)
    assert specs[1].filters == make_filters([[*group, ("s", "==", "A")] for group in either])


@pytest.mark.parametrize("nested", ["flatten", "json"])
def test_members_of_objects_otherwise(bucket: LocalCluster, specs: list[ScanSpec], nested: Any) -> None:
    arguments = {"nested": nested, **ARGUMENTS}
    frame, whole = scan_polars(bucket, **arguments), cbframe.scan_bucket(bucket, **arguments).to_polars()
    assert dict(frame.collect_schema()) == dict(whole.schema)
    predicate = C("g.lat") > 0 if nested == "flatten" else C("g").str.contains("lat")
    both = predicate & (C("n") == 1)
    same(frame.filter(both).collect(), whole.filter(both).select(frame.collect_schema().names()))
    assert specs[0].filters == make_filters([("n", "==", 1)])


@pytest.mark.parametrize(
    "arguments",
    [
        {"keys_only": True, "metadata": ("key", "vbucket", "cas")},
        {"parse": False, "errors": "drop"},
        {"keys": "binary", "errors": "drop"},
        {"metadata": ("key", "collection", "xattrs")},
        {"key_prefix": "hotel_", "on_conflict": "json"},
        {"on_conflict": "null", "columns": ["n", "g"]},
    ],
)
def test_what_is_read_is_what_a_scan_reads(bucket: LocalCluster, arguments: dict[str, Any]) -> None:
    whole = cbframe.scan_bucket(bucket, **arguments, **ARGUMENTS).to_polars()
    frame = scan_polars(bucket, **arguments, **ARGUMENTS)
    for engine in ENGINES:
        found = frame.collect(engine=engine)  # type: ignore[call-overload]
        assert found.schema == frame.collect_schema()
        same(found.select(whole.columns), whole)


TYPES: dict[str, tuple[Any, list[Any]]] = {
    "boolean": (pa.bool_(), [True, None]),
    "int16": (pa.int16(), [1, None]),
    "uint8": (pa.uint8(), [255]),
    "float": (pa.float32(), [0.5, 1]),
    "decimal": (pa.decimal128(10, 2), [1.25, 3]),
    "text": (pa.large_string(), ["x", 1]),
    "date": (pa.date32(), ["2024-05-01"]),
    "moment": (pa.timestamp("ns", "UTC"), ["2024-05-01T12:00:00Z"]),
    "clock": (pa.timestamp("s"), ["2024-05-01T12:00:00"]),
    "category": (pa.dictionary(pa.int32(), pa.string()), ["a", "b", "a", None]),
    "list": (pa.list_(pa.int8()), [[1, None], []]),
    "map": (pa.map_(pa.string(), pa.int64()), [{"a": 1}, {}]),
    "struct": (pa.struct([("when", pa.timestamp("us")), ("n", pa.int32())]), [{"n": 1}, {}]),
    "absent": (pa.int64(), []),
}


@pytest.mark.parametrize("declared", [True, False])
def test_the_types_are_those_of_the_schema(declared: bool) -> None:
    """Of every frame, also of one without rows, whatever the engine."""
    with LocalCluster(nodes=1, vbuckets=2, seed=1) as cluster:
        for name, (_, values) in TYPES.items():
            for number, value in enumerate(values):
                cluster.upsert(f"{name}-{number}", {name: value})
        kinds = {name: kind for name, (kind, values) in TYPES.items() if values or declared}
        schema: Any = pa.schema(list(kinds.items())) if declared else {**kinds}
        frame = scan_polars(cluster, schema=schema, **ARGUMENTS)
        expected = frame.collect_schema()
        assert len(expected) == 1 + len(kinds)
        for query in (frame, frame.head(2), frame.head(0), frame.filter(C("int16") == 99), frame.tail(1)):
            for engine in ENGINES:
                assert query.collect(engine=engine).schema == expected  # type: ignore[call-overload]
        found = frame.collect().sort("_cb_key").rows_by_key("_cb_key", named=True, unique=True)
        assert found["decimal-0"]["decimal"] == Decimal("1.25")
        assert found["clock-0"]["clock"] == datetime(2024, 5, 1, 12)  # noqa: DTZ001 - as the clock showed
        assert found["category-1"]["category"] == "b"
        assert found["struct-0"]["struct"] == {"when": None, "n": 1}


@pytest.mark.parametrize("engine", ENGINES)
def test_the_first_rows_are_read_alone(asked: list[int], specs: list[ScanSpec], engine: Any) -> None:
    with LocalCluster(nodes=2, vbuckets=256, seed=1) as cluster:
        fill(cluster, 5000)
        frame = scan_polars(cluster, **ARGUMENTS)
        asked.clear()
        for n, most in [(0, 0), (1, 1), (100, 9), (9000, 256)]:
            assert frame.head(n).collect(engine=engine).height == min(n, 5000)
            assert len(asked) <= most
            asked.clear()
        assert frame.limit(3).select("n").collect(engine=engine).shape == (3, 1)
        assert asked == [0]
        # The first five, and of these those that pass: not five that pass.
        assert frame.head(5).filter(C("n") < 0).collect(engine=engine).height == 0
        assert (specs[-1].n_rows, specs[-1].filters) == (5, None)
        found = frame.filter(C("n") >= 4990).head(7).collect(engine=engine)
        assert found["n"].is_between(4990, 5000).all()
        assert found.height == 7
        assert frame.slice(10, 5).collect(engine=engine).height == 5


@pytest.mark.parametrize("filters", [None, [("n", ">=", 0)]])
def test_as_many_rows_as_were_asked_for(filters: Any) -> None:
    """Where most values are no objects, and are left out."""
    with LocalCluster(nodes=1, vbuckets=16, seed=1) as cluster:
        fill(cluster, 100)
        cluster.bulk_load((b"binary-%d" % n, b"\xff") for n in range(3000))
        frame = scan_polars(cluster, errors="drop", filters=filters, **ARGUMENTS)
        for n in (1, 5, 99, 100, 101):
            assert frame.head(n).collect().height == min(n, 100)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_query_reads_once(
    frame: pl.LazyFrame, whole: pl.DataFrame, specs: list[ScanSpec], engine: Any
) -> None:
    frame.filter(C("n") > 1).group_by("s").agg(pl.len()).sort("s").collect(engine=engine)
    assert len(specs) == 1
    again = frame.select("_cb_key", "n")
    joined = again.join(again, on="_cb_key").collect(engine=engine)
    assert joined.height == whole.height
    assert len(specs) <= 3
    frame.explain()
    frame.collect_schema()
    assert len(specs) <= 3


def test_a_query_reads_what_is_there_then(bucket: LocalCluster) -> None:
    with LocalCluster(nodes=1, vbuckets=2, seed=1) as cluster:
        cluster.upsert("a", {"n": 1})
        frame = scan_polars(cluster, **ARGUMENTS)
        cluster.upsert("b", {"n": 2})
        cluster.delete("a")
        assert frame.collect()["_cb_key"].to_list() == ["b"]
        cluster.upsert("c", {"n": 0.5})
        with pytest.raises(ConversionError, match="'n' is int64 there and has to be double"):
            frame.collect()
        # What conditions leave out need not fit.
        assert frame.filter(C("n") == 2).collect()["_cb_key"].to_list() == ["b"]
        cluster.upsert("c", {"n": 3, "more": 1})
        with pytest.raises(ConversionError, match="'more'"):
            frame.collect(engine="streaming")
        frame = scan_polars(cluster, schema=pa.schema([("n", pa.int64())]), on_conflict="null", **ARGUMENTS)
        cluster.upsert("c", {"n": "three"})
        assert frame.filter(C("n").is_null()).collect()["_cb_key"].to_list() == ["c"]


@pytest.mark.parametrize("on_conflict", ["widen", "json", "null"])
@pytest.mark.parametrize("nested", ["struct", "json"])
def test_all_documents_were_looked_at(bucket: LocalCluster, on_conflict: Any, nested: Any) -> None:
    arguments = {"on_conflict": on_conflict, "nested": nested, **ARGUMENTS}
    frame = scan_polars(bucket, sample_rows=None, **arguments)
    assert frame.collect().schema == frame.collect_schema()
    if on_conflict != "null":
        whole = cbframe.scan_bucket(bucket, **arguments).to_polars()
        same(frame.collect().select(whole.columns), whole)


# --- engines and other readers


def test_batches_are_made_when_they_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the streaming engine: memory does not depend on how many there are."""
    taken: list[int] = []
    frames = contrib._frames

    def counted(*arguments: Any) -> Iterator[pl.DataFrame]:
        for each in frames(*arguments):
            taken.append(each.height)
            yield each

    monkeypatch.setattr(contrib, "_frames", counted)
    with LocalCluster(nodes=1, vbuckets=2, seed=1) as cluster:
        fill(cluster, 20_000, 100)
        frame = scan_polars(cluster, batch_bytes=5_000, **ARGUMENTS)
        assert frame.filter(C("n") >= 0).head(5).collect(engine="streaming").height == 5
        assert 0 < sum(taken) < 15_000
        taken.clear()
        assert frame.select(pl.len()).collect(engine="streaming").item() == 20_000
        assert len(taken) > 10


def test_sinks(frame: pl.LazyFrame, whole: pl.DataFrame, tmp_path: Path) -> None:
    query = frame.filter(C("n").is_not_null()).drop("none")
    query.sink_parquet(tmp_path / "out.parquet")
    same(pl.read_parquet(tmp_path / "out.parquet"), query.collect())
    frame.select("_cb_key", "n").sink_csv(tmp_path / "out.csv")
    assert pl.read_csv(tmp_path / "out.csv").height == whole.height


def test_a_query_of_duckdb(frame: pl.LazyFrame, specs: list[ScanSpec]) -> None:
    """Which knows LazyFrames, and hands down more of a query with each release."""
    numbers = frame.select("_cb_key", "n", "x", "s")  # noqa: F841 - duckdb finds it by its name
    found = duckdb.sql("select x, n from numbers where n between 1 and 9 order by n").fetchall()
    assert found == [(0.5, 1), (5.0, 5)]
    if int(duckdb.__version__.split(".")[0]) > 1:
        (spec,) = specs
        assert spec.columns == (("n",), ("x",))
        assert spec.filters == make_filters([("n", ">=", 1), ("n", "<=", 9)])


# --- errors


def test_an_error_of_a_read_is_ours() -> None:
    with LocalCluster(nodes=1, vbuckets=2, seed=1) as cluster:
        cluster.upsert("a", {"n": 1})
        frame = scan_polars(cluster, **{**ARGUMENTS, "timeout": 1})
    for engine in ENGINES:
        with pytest.raises(cbframe.CbframeError, match="refused"):
            frame.collect(engine=engine)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    "arguments",
    [{"sample_rows": "all"}, {"sample_rows": 0}, {"columns": []}, {"vbuckets": []}, {"errors": "no"}],
)
def test_invalid_arguments(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        scan_polars("couchbase://127.0.0.1:1/none", auth=("a", "b"), **arguments)


def test_no_cluster() -> None:
    with pytest.raises(ConnectError):
        scan_polars("couchbase://127.0.0.1:1/none", auth=("a", "b"), timeout=1, options=QUICK)


def test_without_polars(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(DependencyError, match="polars is not installed") as caught:
        scan_polars("couchbase://127.0.0.1/none", auth=("a", "b"))
    assert caught.value.hint == "pip install 'cbframe[polars]'"


@pytest.mark.parametrize("version", ["1.10.0", "1.32.3", "0.20.31"])
def test_an_older_polars(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(pl, "__version__", version)
    with pytest.raises(DependencyError, match=rf"polars {version} is older than 1\.33"):
        scan_polars("couchbase://127.0.0.1/none", auth=("a", "b"))


@pytest.mark.parametrize("version", ["1.33.0", "1.40.1", "2.0.0", "10.0.0rc1"])
def test_a_polars_that_is_new_enough(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(pl, "__version__", version)
    assert contrib._polars() is pl


def test_no_secret_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    with LocalCluster(nodes=1, vbuckets=2, seed=1, username="reader", password=SECRET) as cluster:
        cluster.upsert("customer", {"n": 1})
        frame = scan_polars(cluster, **ARGUMENTS)
        assert SECRET not in frame.explain() + repr(frame)
        scan = partition.agree(ScanSpec.of(cluster, **ARGUMENTS), 1, sample_rows=10)[0]
        with pytest.raises(ConfigurationError, match="with a password in it"):
            pickle.dumps(contrib._Source(scan))
        monkeypatch.setenv("CB_USER", "reader")
        monkeypatch.setenv("CB_PASSWORD", SECRET)
        seen: list[Any] = []
        spec = ScanSpec.of(cluster, auth=EnvironmentAuth(), **{**ARGUMENTS, "progress": seen.append})
        stored = pickle.dumps(contrib._Source(partition.agree(spec, 1, sample_rows=10)[0]))
        assert SECRET.encode() not in stored
        read: Callable[..., Iterator[pl.DataFrame]] = pickle.loads(stored)
        assert pl.concat(read(None, None, None, None)).to_dicts() == [{"_cb_key": "customer", "n": 1}]
