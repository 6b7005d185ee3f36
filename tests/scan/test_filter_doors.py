"""One rule for filters: every way to read gives the same rows, or an error."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import cbframe
from cbframe import ConfigurationError, LocalCluster, Snapshot, read_snapshot, scan_bucket, write_snapshot
from cbframe.arrow.filters import OPERATORS
from cbframe.contrib import dask as in_dask
from scan.kit import QUICK

FIRST: dict[str, Any] = {
    "a": {
        "price": 40,
        "type": "hotel",
        "when": "2024-05-01T12:00:00Z",
        "day": "2024-05-01",
        "ok": True,
        "n": 1,
        "geo": {"lat": 1.5},
        "big": 2**70,
        "user.name": "x",
        "nothing": None,
    },
    "b": {
        "price": 60,
        "type": "inn",
        "when": "2024-05-01T14:00:00.000+02:00",
        "day": "2024-05-02",
        "ok": False,
        "n": 2.5,
        "geo": {"lat": -0.0},
        "long": 2**53 + 1,
    },
    "c": {"price": None, "type": "hotel", "n": 3, "long": 0.5},
    "d": {"tags": ["x"]},
}
LATER: dict[str, Any] = {
    "e": {"price": "n/a", "type": "hotel", "n": 4, "geo": "none", "day": "never"},
    "f": {"price": "60", "big": 1, "ok": "true", "user": {"name": "y"}},
    "g": b"\x00\x01",
}
ERROR = "error"
NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)

BY_FIELD: dict[Any, list[tuple[str, Any, str]]] = {
    "price": [
        *((">", 50, "b"), ("==", 60, "b"), ("==", "60", "f"), ("==", "n/a", "e"), ("!=", 60, "aef")),
        *(("in", [40, "n/a"], "ae"), ("not in", [40, "60"], "be"), (">=", "a", "e")),
        *(("is", None, "cd"), ("is not", None, "abef"), ("==", True, ERROR)),
    ],
    "n": [
        *((">", 2, "bce"), ("==", 2.5, "b"), ("==", Decimal("2.50"), "b"), ("<=", Decimal(3), "abc")),
        *((">", "3", ERROR), ("!=", "3", "abce"), ("==", date(2024, 5, 1), ERROR), ("in", [], "")),
    ],
    "long": [("==", 2**53 + 1, "b"), ("==", 2**53, ""), ("<", 1, "c")],
    "big": [(">", 2**65, "a"), ("==", 2**70, "a")],
    "ok": [("==", True, "a"), ("==", "true", "f"), ("==", 1, ERROR)],
    "when": [
        *(("==", NOON, "ab"), ("==", NOON.astimezone(timezone(timedelta(hours=5))), "ab")),
        *(("==", "2024-05-01T12:00:00Z", "a"), (">", NOON.replace(tzinfo=None), ERROR)),
    ],
    "day": [
        (">=", date(2024, 5, 2), "b"),
        ("!=", datetime.fromisoformat("2024-05-01"), "be"),
        ("<", NOON, ERROR),
    ],
    "geo.lat": [("==", 0, "b")],
    "geo": [("==", "none", "e"), ("==", 5, ERROR), ("is", None, "cdf")],
    "tags": [("==", "x", ERROR), ("!=", "x", "d")],
    ("user.name",): [("==", "x", "a")],
    "user.name": [("==", "y", "f")],
    "nothing": [("==", 1, ""), ("is", None, "abcdef")],
    "tpye": [("==", "hotel", ERROR)],
    "geo.lon": [("is", None, ERROR)],
    "_cb_key": [("==", "b", "b"), ("in", ["a", b"g"], "ag"), (">", "d", "efg")],
    "_cb_expiry": [("==", 0, "abcdefg")],
    "_cb_cas": [("not in", [0], "abcdefg"), ("==", "x", ERROR)],
    "_cb_seqno": [(">", 1.5e300, "")],
    "_cb_vbucket": [("is not", None, "abcdefg")],
    "_cb_value": [("==", "x", ERROR)],
}
TABLE: list[tuple[Any, str]] = [
    *(([(name, op, value)], rows) for name, tests in BY_FIELD.items() for op, value, rows in tests),
    ([("type", "==", "hotel"), ("price", ">", 1)], "a"),
    ([[("type", "==", "inn")], [("n", ">=", 4)]], "be"),
    ([("_cb_flags", "<", 0.5), ("price", ">", 0)], ""),
    ([("_cb_vbucket", "<", 100), ("n", "==", 1)], "a"),
    ([("_cb_collection", "==", "_default"), ("_cb_scope", "!=", "x")], "abcdefg"),
]


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LocalCluster, Path, Path]]:
    """A bucket, and a snapshot of it in two versions; a second one that was compacted."""
    paths = [tmp_path_factory.mktemp("snapshots") / name for name in ("two", "compact")]
    with LocalCluster(vbuckets=4, seed=1) as cluster:
        for documents in (FIRST, LATER):
            for key, document in documents.items():
                cluster.upsert(key, document)
            for path in paths:
                write_snapshot(cluster, path, options=QUICK)
        Snapshot(paths[1]).compact()
        yield cluster, *paths


def keys(table: Any) -> str:
    return "".join(sorted(table["_cb_key"].to_pylist()))


def partitions(cluster: LocalCluster, filters: Any) -> str:
    # Each partition knows its own documents only, and a sample is no proof: there is a warning.
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        parts = scan_bucket(cluster, filters=filters, options=QUICK).partitions(2)
    found = "".join(sorted("".join(keys(part.read()) for part in parts)))
    if any("in the sample" in str(each.message) for each in caught):
        assert found == "" or filters[0][1] == "is"
        raise ConfigurationError("as it was in the warning")
    return found


def whole_partitions(cluster: LocalCluster, filters: Any) -> str:
    parts = scan_bucket(cluster, filters=filters, options=QUICK).partitions(2, sample_rows=None)
    return "".join(sorted("".join(keys(part.read()) for part in parts)))


def snapshot_of(path: Path, filters: Any) -> str:
    return "".join(sorted(read_snapshot(path, filters=filters).index))


def through_dask(cluster: LocalCluster, filters: Any) -> str:
    frame = in_dask.read_bucket(
        cluster, filters=filters, npartitions=2, include_credentials=True, sample_rows=None, options=QUICK
    )
    return "".join(sorted(frame.compute(scheduler="synchronous").index))


LIVE: dict[str, Callable[[LocalCluster, Any], str]] = {
    "read_bucket": lambda cluster, filters: "".join(
        sorted(cbframe.read_bucket(cluster, filters=filters, options=QUICK).index)
    ),
    "iter_batches": lambda cluster, filters: "".join(
        sorted(keys(batch) for batch in scan_bucket(cluster, filters=filters, options=QUICK).iter_batches())
    ),
    "unparsed": lambda cluster, filters: keys(
        scan_bucket(cluster, filters=filters, parse=False, options=QUICK).to_arrow()
    ),
    "partitions": partitions,
    "whole_partitions": whole_partitions,
    "dask": through_dask,
}


DIVIDED = ["partitions", "whole_partitions", "dask"]


@pytest.mark.parametrize(
    "door", [pytest.param(door, marks=pytest.mark.dask if door == "dask" else ()) for door in LIVE]
)
def test_reads(door: str, bucket: tuple[LocalCluster, Path, Path]) -> None:
    """The table, through each way to read the bucket."""
    # Divided reads take longer: each takes a third of the table.
    for filters, wanted in TABLE if door not in DIVIDED else TABLE[DIVIDED.index(door) :: 3]:
        found = answer(partial(LIVE[door], bucket[0]), filters)
        assert "".join(sorted(found)) == "".join(sorted(wanted)), filters


def test_snapshots(bucket: tuple[LocalCluster, Path, Path]) -> None:
    """Files that were written before a field widened still tell numbers from text."""
    _, path, _ = bucket
    for filters, wanted in TABLE:
        try:
            found = keys(read_snapshot(path, filters=filters, return_type="arrow"))
        except ConfigurationError:
            assert wanted == ERROR, filters
        else:
            assert found == ("" if wanted == ERROR else wanted), filters


def test_snapshots_as_of_before_a_field_widened(bucket: tuple[LocalCluster, Path, Path]) -> None:
    for filters, wanted in TABLE:
        some = wanted if wanted == ERROR else "".join(key for key in wanted if key in FIRST)
        try:
            found = keys(read_snapshot(bucket[1], as_of=1, filters=filters, return_type="arrow"))
        except ConfigurationError:
            assert some in ("", ERROR), filters
        else:
            assert found == ("" if some == ERROR else some), filters


def test_compacted_snapshots(bucket: tuple[LocalCluster, Path, Path]) -> None:
    """Of text that was made of numbers and strings, either the same rows, or an error that says it."""
    unsure = []
    for filters, wanted in TABLE:
        try:
            found = keys(read_snapshot(bucket[2], filters=filters, return_type="arrow"))
        except ConfigurationError as exc:
            if wanted != ERROR:
                unsure.append(filters)
                message = str(exc)
                assert "version 3 of the snapshot" in message or "is JSON text in this snapshot" in message
                assert filters[-1][0] in message
        else:
            # What is in JSON text is not known before it is read: no unknown field is refused there.
            unknown = wanted == ERROR and filters[0][1] == "is"
            assert unknown or found == ("" if wanted == ERROR else wanted), filters
    assert ([("price", ">", 50)]) in unsure
    assert ([("price", "==", "60")]) in unsure
    assert all(filters[0][0] in ("price", "ok", "geo.lat", "type") for filters in unsure), unsure


@pytest.mark.parametrize(
    "filters",
    [filters for filters, wanted in TABLE if wanted != ERROR][::6],
    ids=lambda each: str(each[0][0]),
)
def test_snapshots_of_some_documents(
    filters: Any, bucket: tuple[LocalCluster, Path, Path], tmp_path: Path
) -> None:
    """Filters are kept in the manifest, and an update uses them again."""
    wanted = next(rows for each, rows in TABLE if each is filters)
    write_snapshot(bucket[0], tmp_path, filters=filters, options=QUICK)
    assert keys(read_snapshot(tmp_path, return_type="arrow")) == wanted
    assert not write_snapshot(bucket[0], tmp_path, filters=filters, options=QUICK).changed


VALUES: list[Any] = [
    *(0, 1, -0.0, 0.5, 60, 60.0, 2**53 + 1, 2**63, 2**64 + 3, 10**40, 1e300, True, False, None),
    *("", "x", "60", "true", "null", "2024-05-01", "2024-05-01T12:00:00Z"),
    *([], [1], {}, {"b": 1}, {"b": "1"}, {"b": None}, {"c": 2**60}),
]
LITERALS: list[Any] = [
    *(0, 1, -1, 0.5, 60, 2**53, 2**53 + 1, 2**63, 10**40, Decimal("0.5"), True, False),
    *("", "x", "60", "1", "true", "null", "2024-05-01", date(2024, 5, 1), NOON),
]
WRITTEN: list[dict[str, Any]] = [
    {},
    {"on_conflict": "json"},
    {"on_conflict": "null"},
    {"parse_dates": True},
    {"nested": "json"},
    {"schema": {"a": "string"}},
]


def some_filters(rng: random.Random) -> Iterator[list[tuple[str, str, Any]]]:
    for op in OPERATORS:
        value: Any = rng.choice(LITERALS)
        if op in ("in", "not in"):
            value = rng.sample(LITERALS, rng.randint(0, 3))
        yield [(rng.choice(["a", "a", "a.b"]), op, None if op in ("is", "is not") else value)]


@pytest.mark.parametrize(
    "seed", [*range(6), *(pytest.param(n, marks=pytest.mark.slow) for n in range(6, 100))]
)
def test_snapshots_of_any_values(seed: int, tmp_path: Path) -> None:
    """Whatever the values, versions and options: a snapshot gives the rows of a read, or an error."""
    rng = random.Random(seed)
    pool = rng.sample(VALUES, rng.choice([2, 3, 5]))
    filters = list(some_filters(rng))
    with LocalCluster(vbuckets=2, seed=1) as cluster:
        for _ in range(rng.randint(1, 3)):
            for n in rng.sample(range(8), 3):
                cluster.upsert(f"k{n}", {"a": rng.choice(pool)} if rng.random() < 0.9 else {"z": 1})
            write_snapshot(cluster, tmp_path, options=QUICK, **WRITTEN[seed % len(WRITTEN)])
        wanted = [answer(partial(LIVE["read_bucket"], cluster), each) for each in filters]

    read = partial(snapshot_of, tmp_path)
    found = [answer(read, each) for each in filters]
    Snapshot(tmp_path).compact()
    for rows in (found, [answer(read, each) for each in filters]):
        for each, mine, live in zip(filters, rows, wanted, strict=True):
            # What no value could pass is no error where the files do not tell.
            nothing = live == ERROR and (mine == "" or each[0][1] == "is")
            assert mine in (live, ERROR) or nothing, each


def answer(read: Callable[[Any], str], filters: Any) -> str:
    try:
        return read(filters)
    except ConfigurationError:
        return ERROR


def test_a_snapshot_of_a_field_that_is_nowhere(
    bucket: tuple[LocalCluster, Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match="names 'tpye', which no document has"):
        write_snapshot(bucket[0], tmp_path / "s", filters=[("tpye", "==", "hotel")], options=QUICK)
    with pytest.raises(cbframe.SnapshotError):
        Snapshot(tmp_path / "s")


def test_an_empty_bucket_is_no_error(tmp_path: Path) -> None:
    with LocalCluster(vbuckets=2, seed=1) as cluster:
        for door in LIVE.keys() - {"dask"}:
            assert LIVE[door](cluster, [("tpye", "==", "hotel")]) == ""
        write_snapshot(cluster, tmp_path, options=QUICK)
        assert len(read_snapshot(tmp_path, filters=[("tpye", "==", "hotel")])) == 0
        cluster.create_collection("_default", "other")
        cluster.upsert("h", {"n": 1}, collection="other")
        cluster.upsert("i", {"n": 2})
        found = scan_bucket(cluster, filters=[("_cb_collection", "==", "other")], options=QUICK).to_arrow()
        assert keys(found) == "h"
        keys_only = scan_bucket(cluster, filters=[("_cb_key", "!=", "h")], keys_only=True, options=QUICK)
        assert keys(keys_only.to_arrow()) == "i"


def test_a_read_that_ends_early_knows_nothing_of_the_rest(bucket: tuple[LocalCluster, Path, Path]) -> None:
    filters = [[("type", "==", "hotel")], [("tpye", "==", "hotel")]]
    assert len(scan_bucket(bucket[0], filters=filters, n_rows=1, options=QUICK).to_arrow()) == 1
    with pytest.raises(ConfigurationError, match="tpye"):
        scan_bucket(bucket[0], filters=filters, n_rows=100, options=QUICK).to_arrow()


def test_snapshots_where_objects_or_declared_types_count(tmp_path: Path) -> None:
    """Values that became null, text or rounded numbers inside of objects: the rows of a read, or an error."""
    documents: dict[str, Any] = {
        "a": {"x": {"q": 1}, "m": {"k": 1}, "s": {"t": 60, "f": 0.1}},
        "b": {"x": {"q": 2}, "m": {"k": "x"}, "s": {"t": "60", "f": 0.5}},
        "c": {"x": 5, "s": {"t": ["x"]}},
    }
    schema = {
        "m": pa.map_(pa.string(), pa.int64()),
        "s": pa.struct([("t", pa.string()), ("f", pa.float32())]),
    }
    with LocalCluster(vbuckets=2, seed=1) as cluster:
        for key, document in documents.items():
            cluster.upsert(key, document)
        write_snapshot(cluster, tmp_path, on_conflict="null", schema=schema, options=QUICK)
        cluster.upsert("d", {"x": {"q": 3}})
        assert write_snapshot(cluster, tmp_path, options=QUICK).version == 2
    cells = {row["_cb_key"]: row["x"] for row in read_snapshot(tmp_path, return_type="arrow").to_pylist()}
    assert cells == {"a": {"q": 1}, "b": {"q": 2}, "c": None, "d": {"q": 3}}

    keys_of = partial(snapshot_of, tmp_path)
    for filters, wanted in (
        ([("x.q", ">", 1)], "bd"),
        ([("x.q", "is", None)], "c"),
        ([("s.t", "==", "none")], ""),
        ([("x", "is", None)], ERROR),
        ([("m.k", "is", None)], ERROR),
        ([("s.t", "==", "60")], ERROR),
        ([("s.t", "==", 60)], ERROR),
        ([("s.f", "==", 0.1)], ERROR),
    ):
        assert answer(keys_of, filters) == wanted, filters


def test_snapshots_of_some_columns_or_of_bytes(tmp_path: Path) -> None:
    """What is no document has no field that is null, and bytes do not tell a number from its text."""
    with LocalCluster(vbuckets=2, seed=1) as cluster:
        for key, value in {"a": {"p": 60}, "b": {"q": 1}, "c": b"\x00", "d": {"p": "x"}}.items():
            cluster.upsert(key, value)
        write_snapshot(cluster, tmp_path / "some", columns=["p"], options=QUICK)
        write_snapshot(cluster, tmp_path / "bytes", schema={"p": "binary"}, options=QUICK)
        read = partial(LIVE["read_bucket"], cluster)
        for filters, wanted, of_bytes in (
            ([("p", "is", None)], "b", "b"),
            ([("p", "is not", None)], "ad", "ad"),
            ([("p", "<", "a")], "", ERROR),
            ([("p", "!=", 60)], "d", ERROR),
        ):
            assert read(filters) == wanted
            for name, expected in (("some", wanted), ("bytes", of_bytes)):
                found = answer(partial(snapshot_of, tmp_path / name), filters)
                assert found == expected or (name == "some" and found == ERROR), (name, filters)


def test_names_that_are_data(tmp_path: Path) -> None:
    """Filters look for a name in whatever becomes of an object of many names."""
    with LocalCluster(vbuckets=2, seed=1) as cluster:
        for n in range(200):
            cluster.upsert(f"k{n}", {"m": {f"n{n}": n}, "x": {f"n{n}": n if n % 2 else str(n)}})
        write_snapshot(cluster, tmp_path, options=QUICK)
        cluster.upsert("later", {"m": {"n5": "text"}})
        write_snapshot(cluster, tmp_path, options=QUICK)
        read = partial(LIVE["read_bucket"], cluster)
        table = [
            ([("m.n5", "==", 5)], "k5"),
            ([("m.n5", "==", "text")], "later"),
            ([("m.n5", "is not", None)], "k5later"),
            ([("x.n4", "==", "4")], "k4"),
            ([("x.n7", ">", 6.5)], "k7"),
            ([("x.n7", "<", 7)], ""),
        ]
        for filters, wanted in table:
            assert read(filters) == wanted

    keys_of = partial(snapshot_of, tmp_path)
    for filters, wanted in table:
        assert keys_of(filters) == wanted
    Snapshot(tmp_path).compact()
    for filters, wanted in table:
        # Where the two files together have text of m.n5, it may be refused.
        assert answer(keys_of, filters) in (wanted, ERROR)
