"""Types and columns: what the caller says of them, names that are data, and names that are wrong."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from contrib.delta.conftest import _runtime  # noqa: F401 - a fixture that is used by itself

import cbframe
from cbframe import (
    LocalCluster,
    read_bucket,
    read_schema,
    read_snapshot,
    scan_bucket,
    stream_bucket,
    write_snapshot,
)
from cbframe.contrib.delta import to_delta, update_delta
from cbframe.errors import ConfigurationError, ConversionError

from .consumers import take
from .kit import QUICK


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


def test_objects_of_many_names(cluster: LocalCluster) -> None:
    for number in range(20):
        cluster.upsert(f"k{number}", {"m": {f"u{number}": 1}})
    assert str(read_bucket(cluster, max_struct_fields=10)["m"].dtype) == "map<string, int64>[pyarrow]"
    assert str(read_bucket(cluster)["m"].dtype).startswith("struct<")


@pytest.mark.parametrize(
    "wrong",
    [{"schema": pa.schema([("a", pa.int64())]), "columns": ["a"]}, {"parse_dates": ["nothing"]}],
)
def test_what_cannot_be_meant(mixed: LocalCluster, wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        read_bucket(mixed, **wrong)


# --- Names that are data, and objects that are always empty, through every door.


COUNTS = pa.map_(pa.string(), pa.int64())


def document(number: int, value: Any = None) -> bytes:
    counts = {f"user{number % 300}": number if value is None else value}
    return json.dumps({"day": number % 31, "counts": counts}).encode()


@pytest.fixture(scope="module")
def counted() -> Iterator[LocalCluster]:
    """Objects with 300 names, one each."""
    with LocalCluster(nodes=1, vbuckets=8, seed=1) as cluster:
        cluster.bulk_load((b"k%d" % n, document(n)) for n in range(1500))
        yield cluster


def test_memory_is_a_small_multiple_of_the_json(counted: LocalCluster) -> None:
    table = scan_bucket(counted).to_arrow()
    assert table.schema.field("counts").type == COUNTS
    cells = sorted(dict(cell).popitem() for cell in table["counts"].to_pylist())
    assert cells[:2] == [("user0", 0), ("user0", 300)]
    assert table.nbytes < 3 * sum(len(document(n)) for n in range(1500))


def test_the_report_says_so(counted: LocalCluster) -> None:
    (told,) = read_bucket(counted).attrs["cbframe"]["conflicts"]
    assert told == {"path": "counts", "types": {"object": 1500}, "action": "map", "samples": {}, "names": 300}


def test_streamed_reads_have_the_same_types(counted: LocalCluster, tmp_path: Path) -> None:
    scan = scan_bucket(counted)
    assert scan.to_reader().read_all().schema.field("counts").type == COUNTS
    scan.to_parquet(tmp_path / "file.parquet")
    assert pq.read_table(tmp_path / "file.parquet").schema.field("counts").type == COUNTS


@pytest.mark.parametrize(
    ("declared", "kind", "cell"),
    [
        ("map<string, double>", pa.map_(pa.string(), pa.float64()), [("user7", 7.0)]),
        (
            "struct<user7: int64, user8: int64>",
            pa.struct([("user7", pa.int64()), ("user8", pa.int64())]),
            {"user7": 7, "user8": None},
        ),
        ("string", pa.string(), '{"user7": 7}'),
    ],
)
def test_schema_overrules(counted: LocalCluster, declared: str, kind: pa.DataType, cell: Any) -> None:
    table = scan_bucket(counted, schema={"counts": declared}).to_arrow()
    assert table.schema.field("counts").type == kind
    assert dict(zip(table["_cb_key"].to_pylist(), table["counts"].to_pylist(), strict=True))["k7"] == cell


def test_a_policy_that_raises_does_not(counted: LocalCluster) -> None:
    assert scan_bucket(counted, on_conflict="raise").to_arrow().schema.field("counts").type == COUNTS


def test_one_name_is_a_column_or_a_filter(counted: LocalCluster) -> None:
    chosen = scan_bucket(counted, columns=["counts.user7"], filters=[("counts.user7", ">", 300)]).to_arrow()
    assert sorted(chosen["counts.user7"].to_pylist()) == [307, 607, 907, 1207]
    flat = scan_bucket(counted, nested="flatten").to_arrow()
    assert flat.schema.field("counts").type == COUNTS
    assert scan_bucket(counted, nested="json").to_arrow().schema.field("counts").type == pa.string()


@pytest.mark.parametrize("backend", ["pyarrow", "numpy_nullable", None])
def test_pandas(counted: LocalCluster, backend: Any, tmp_path: Path) -> None:
    frame = read_bucket(counted, dtype_backend=backend)
    assert dict(frame.loc["k7", "counts"]) == {"user7": 7}
    frame.to_parquet(tmp_path / "file.parquet")
    assert len(pq.read_table(tmp_path / "file.parquet")) == 1500


def test_partitions_agree(counted: LocalCluster) -> None:
    parts = scan_bucket(counted).partitions(3, sample_rows=None)
    tables = [part.read() for part in parts]
    assert [table.schema.field("counts").type for table in tables] == [COUNTS] * 3
    assert sum(map(len, tables)) == 1500


def test_values_of_several_types_are_json_text() -> None:
    with LocalCluster(nodes=1, vbuckets=4, seed=1) as cluster:
        cluster.bulk_load((b"k%d" % n, document(n, "x" if n % 2 else 1)) for n in range(900))
        scan = scan_bucket(cluster, on_conflict="raise")
        table = scan.to_arrow()
        assert table.schema.field("counts").type == pa.string()
        assert [(each.action, each.names) for each in scan.last.conflicts] == [("json", 300)]


def test_snapshots_never_go_back(tmp_path: Path) -> None:
    path = str(tmp_path / "copy")
    with LocalCluster(nodes=1, vbuckets=4, seed=1) as cluster:
        cluster.upsert("first", {"counts": {"user1": 1, "user2": None}})
        write_snapshot(cluster, path, options=QUICK)
        assert pa.types.is_struct(read_snapshot(path, return_type="arrow").schema.field("counts").type)
        cluster.bulk_load((b"k%d" % n, document(n)) for n in range(900))
        write_snapshot(cluster, path, options=QUICK)
        cluster.upsert("last", {"counts": {"user1": 7}})
        write_snapshot(cluster, path, options=QUICK)
        table = read_snapshot(path, return_type="arrow")
        assert table.schema.field("counts").type == COUNTS
        cells = dict(zip(table["_cb_key"].to_pylist(), table["counts"].to_pylist(), strict=True))
        # What is absent from a struct is no member of the map.
        some = {"first": ("user1", 1), "last": ("user1", 7), "k5": ("user5", 5)}
        assert {key: cells[key] for key in some} == {key: [cell] for key, cell in some.items()}
        chosen = read_snapshot(path, columns=["counts.user1"], filters=[("counts.user1", "in", [1, 7])])
        assert chosen["counts.user1"].to_dict() == {"first": 1, "last": 7, "k1": 1}
        for key in [b"k%d" % n for n in range(900)]:
            cluster.delete(key.decode())
        write_snapshot(cluster, path, options=QUICK)
        cbframe.Snapshot(path).compact()
        assert read_snapshot(path, return_type="arrow").schema.field("counts").type == COUNTS


def test_many_small_updates_of_a_snapshot_are_counted_together(tmp_path: Path) -> None:
    path = str(tmp_path / "copy")
    with LocalCluster(nodes=1, vbuckets=4, seed=1) as cluster:
        for first in range(0, 280, 40):
            cluster.bulk_load((b"k%d" % n, document(n)) for n in range(first, first + 40))
            write_snapshot(cluster, path, options=QUICK)
        assert read_snapshot(path, return_type="arrow").schema.field("counts").type == COUNTS


def test_batches_of_a_stream_never_go_back() -> None:
    with LocalCluster(nodes=1, vbuckets=4, seed=1) as cluster:
        cluster.bulk_load((b"k%d" % n, document(n)) for n in range(900))
        with stream_bucket(cluster, options=QUICK, max_latency=0.05) as stream:
            seen: list[pa.DataType] = []
            rows = 0
            while rows < 901:
                batch = take(stream)
                rows += len(batch)
                seen.append(batch.to_arrow().schema.field("counts").type)
                stream.ack(batch)
                if rows == 900:
                    cluster.upsert("late", {"counts": {"user1": 1}})
        assert seen[-1] == COUNTS
        structs = [pa.types.is_struct(kind) for kind in seen]
        assert structs == sorted(structs, reverse=True)


EMPTY = {"o": {}, "l": [], "in": {"o": {}, "l": [{}], "deep": {"l": []}, "n": None}, "n": None}


def test_what_was_empty_in_a_snapshot_may_be_an_object_later(tmp_path: Path) -> None:
    path = str(tmp_path / "copy")
    with LocalCluster(nodes=1, vbuckets=4, seed=1) as cluster:
        cluster.upsert("old", EMPTY)
        write_snapshot(cluster, path, options=QUICK)
        first = read_snapshot(path, return_type="arrow")
        assert [first.schema.field(name).type for name in ("o", "l")] == [pa.string(), pa.list_(pa.string())]
        assert first["in"][0].as_py() == {"o": "{}", "l": ["{}"], "deep": {"l": []}, "n": None}
        cluster.upsert(
            "new", {"o": {"a": 1}, "l": [2], "in": {"l": [{"x": 0.5}], "deep": {"l": [[True]]}, "n": [1]}}
        )
        write_snapshot(cluster, path, options=QUICK)
        table = read_snapshot(path, return_type="arrow").sort_by("_cb_key")
        assert table.select(["o", "l", "in"]).to_pylist() == [
            {
                "o": {"a": 1},
                "l": [2],
                "in": {"l": [{"x": 0.5}], "deep": {"l": [[True]]}, "n": [1], "o": None},
            },
            {"o": {"a": None}, "l": [], "in": {"l": [{"x": None}], "deep": {"l": []}, "n": None, "o": "{}"}},
        ]


def test_changes_of_empty_objects_are_text() -> None:
    with LocalCluster(nodes=1, vbuckets=1, seed=1) as cluster:
        cluster.upsert("k", EMPTY)
        with stream_bucket(cluster, options=QUICK) as stream:
            assert take(stream).to_arrow()["o"].to_pylist() == ["{}"]


# --- A column that no document has is reported, by every function that can tell.


@pytest.mark.parametrize("name", ["nmae", "geo.lta", ("geo", "lta"), "n.x"])
def test_a_misspelt_column_is_reported_by_the_sample(cluster: LocalCluster, name: Any) -> None:
    scan = scan_bucket(cluster, columns=[name, "name", "geo.lat"])
    assert scan.partitions(2)  # of an empty bucket nothing can be said
    cluster.upsert("a", {"name": 1, "n": 5, "geo": {"lat": None}})
    told = name if isinstance(name, str) else "geo.lta"
    with pytest.warns(UserWarning, match=f"sample.*'{told}', which no document has") as caught:
        scan.partitions(2)
    assert [each.filename for each in caught] == [__file__]
    with pytest.raises(ConfigurationError, match=f"'{told}', which no document has"):
        scan.partitions(2, sample_rows=None)
    declared = scan_bucket(cluster, columns=["nmae", "name"], schema={"nmae": "int64"})
    assert declared.partitions(2)[0].schema.field("nmae").type == "int64"


def test_names_as_schemas_write_them(cluster: LocalCluster) -> None:
    """A field whose name looks like a path is chosen by what read_schema() calls it."""
    fields = {"a.b": 1, "a": {"b": 2, "c.d": 3}, "`": 4, "x`y": 5, "items[]": 6, "": 7}
    cluster.upsert("k", fields)
    for label, value in {"`a.b`": 1, "a.b": 2, "a.`c.d`": 3, "````": 4, "`x``y`": 5, "`items[]`": 6}.items():
        assert label in {each.path for each in read_schema(cluster).fields}, label
        table = scan_bucket(cluster, columns=[label]).to_arrow()
        assert table.column(table.column_names[-1]).to_pylist() == [value], label
        assert len(scan_bucket(cluster, filters=[(label, "==", value)]).to_arrow()) == 1, label
    for name in ("x`y", "", "items[]"):  # what is no path that schemas write is the name itself
        assert scan_bucket(cluster, columns=[name]).to_arrow()[name].to_pylist() == [fields[name]]
    with pytest.raises(ConfigurationError, match=r"names '`b\.c`', which no document has"):
        scan_bucket(cluster, columns=["`b.c`"]).to_arrow()


def test_tables_of_each_kind(cluster: LocalCluster) -> None:
    cluster.upsert("a", {"type": "x", "when": None, "geo": {}})
    cluster.upsert("b", {"type": "y", "geo": {"lat": None}})
    wanted = ["when", "geo.lat"]
    assert {*scan_bucket(cluster, columns=wanted).split("type")} == {"x", "y"}
    for name in ("wehn", "geo.lta"):
        with pytest.raises(ConfigurationError, match=f"columns= names '{name}', which no document has"):
            scan_bucket(cluster, columns=[*wanted, name]).split("type")


def test_a_snapshot_is_made_of_fields_that_are_there(cluster: LocalCluster, tmp_path: Path) -> None:
    cluster.upsert("a", {"name": 1, "geo": {"lat": None}})
    for wrong, told in (
        ({"columns": ["name", "geo.lta"]}, "columns= names 'geo.lta', which no document has"),
        ({"parse_dates": ["wehn"]}, "parse_dates= names 'wehn', which is no column"),
        ({"filters": [("nmae", "==", 1)]}, "filters= names 'nmae', which no document has"),
    ):
        with pytest.raises(ConfigurationError, match=told):
            write_snapshot(cluster, tmp_path / "s", **wrong)  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match=told):
            to_delta(cluster, tmp_path / "t", **wrong)  # type: ignore[arg-type]
    assert write_snapshot(cluster, tmp_path / "s", columns=["name", "geo.lat"]).version == 1
    assert write_snapshot(cluster, tmp_path / "d", schema={"nmae": "int64"}).version == 1


def _snapshot(cluster: LocalCluster, path: Path, **arguments: Any) -> int:
    return write_snapshot(cluster, path, **arguments).version


def _mirror(cluster: LocalCluster, path: Path, **arguments: Any) -> int:
    return (update_delta if path.exists() else to_delta)(cluster, path, **arguments).version


@pytest.mark.parametrize("copy", [_snapshot, _mirror])
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"columns": ["name", "geo.lta"]}, "columns= names 'geo.lta', a field of which no document so far"),
        ({"parse_dates": ["wehn"]}, "parse_dates= names 'wehn', a field of which no document so far"),
        (
            {"filters": [("nmae", "==", 1)]},
            "in what has changed.*filters= names 'nmae', which no document has",
        ),
    ],
    ids=["columns", "dates", "filters"],
)
def test_an_update_warns(
    cluster: LocalCluster, tmp_path: Path, copy: Callable[..., int], arguments: dict[str, Any], told: str
) -> None:
    """What began with an empty bucket goes on: documents that have the field may come."""
    copy(cluster, tmp_path / "s", **arguments)
    cluster.upsert("a", {"name": 1, "geo": {"lat": 1}, "when": "2026-01-01"})
    for _ in range(2):
        with pytest.warns(UserWarning, match=told) as caught:
            copy(cluster, tmp_path / "s", **arguments)
        assert [each.filename for each in caught] == [__file__]
        cluster.upsert("b", {"name": 2})
    cluster.upsert("c", {"name": 1, "geo": {"lta": 1}, "wehn": "2026-01-01", "nmae": 1})
    for _ in range(2):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            copy(cluster, tmp_path / "s", **arguments)
        cluster.upsert("d", {"name": 2})


def test_an_old_snapshot_with_a_misspelt_column_is_still_read(cluster: LocalCluster, tmp_path: Path) -> None:
    write_snapshot(cluster, tmp_path / "s", columns=["nmae"])
    cluster.upsert("a", {"name": 1})
    with pytest.warns(UserWarning, match="'nmae'"):
        write_snapshot(cluster, tmp_path / "s")
    assert read_snapshot(tmp_path / "s")["nmae"].isna().all()
