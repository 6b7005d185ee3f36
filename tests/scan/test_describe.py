"""Counts, estimates and examples of fields, without any network."""

from __future__ import annotations

import random
from decimal import Decimal

import pyarrow as pa
import pytest

from cbframe.scan.schema import Description, Field, leaves_of


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
    schema = pa.schema(
        [
            ("_cb_key", pa.string()),
            ("a", pa.list_(pa.struct([("b", pa.int64()), ("c", pa.list_(pa.string()))]))),
            ("d", pa.struct([])),
        ]
    )
    assert leaves_of(schema) == {
        "a": "list",
        "a[]": "struct",
        "a[].b": "int64",
        "a[].c": "list",
        "a[].c[]": "string",
        "d": "struct",
    }
