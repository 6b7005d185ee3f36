"""Types by their names: those of Python, numpy and pandas, and all that pyarrow and pandas print."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cbframe.arrow.documents.typenames import arrow_type
from cbframe.errors import ConfigurationError


@pytest.mark.parametrize(
    ("meant", "kind"),
    [
        (pa.int16(), pa.int16()),
        ("int64", pa.int64()),
        ("String", pa.string()),
        ("str", pa.string()),
        ("double", pa.float64()),
        ("float", pa.float32()),
        ("large_string", pa.large_string()),
        ("date32[day]", pa.date32()),
        ("time64[us]", pa.time64("us")),
        ("timestamp[us]", pa.timestamp("us")),
        ("timestamp[us, tz=UTC]", pa.timestamp("us", "UTC")),
        ("timestamp[ns,tz=Europe/Berlin]", pa.timestamp("ns", "Europe/Berlin")),
        ("decimal128(38, 0)", pa.decimal128(38, 0)),
        ("fixed_size_binary[3]", pa.binary(3)),
        ("list<string>", pa.list_(pa.string())),
        ("list<item: string>", pa.list_(pa.string())),
        ("struct<a: int64, b: list<double>>", pa.struct([("a", pa.int64()), ("b", pa.list_(pa.float64()))])),
        ("struct<a:int64,b:string>", pa.struct([("a", pa.int64()), ("b", pa.string())])),
        ("struct<>", pa.struct([])),
        ("map<string, int64>", pa.map_(pa.string(), pa.int64())),
        ("list<timestamp[us, tz=UTC]>", pa.list_(pa.timestamp("us", "UTC"))),
        ("int64[pyarrow]", pa.int64()),
        ("list<item: int64>[pyarrow]", pa.list_(pa.int64())),
        ("string[python]", pa.string()),
        ("datetime64[ns, UTC]", pa.timestamp("ns", "UTC")),
        ("datetime64[us]", pa.timestamp("us")),
        ("<i2", pa.int16()),
        (int, pa.int64()),
        (str, pa.string()),
        (dt.date, pa.date32()),
        (dt.datetime, pa.timestamp("us")),
        (dt.time, pa.time64("us")),
        (Decimal, pa.decimal128(38, 18)),
        (np.float32, pa.float32()),
        (np.dtype("uint8"), pa.uint8()),
        (np.dtype("datetime64[ms]"), pa.timestamp("ms")),
        (pd.ArrowDtype(pa.date32()), pa.date32()),
        (pd.Int64Dtype(), pa.int64()),
        (pd.BooleanDtype(), pa.bool_()),
        (pd.StringDtype(), pa.string()),
        (pd.DatetimeTZDtype("us", "UTC"), pa.timestamp("us", "UTC")),
    ],
)
def test_what_a_name_means(meant: Any, kind: pa.DataType) -> None:
    assert arrow_type(meant, "a") == kind


leaves = st.sampled_from(
    [
        *(
            pa.null(),
            pa.bool_(),
            pa.int8(),
            pa.uint64(),
            pa.float16(),
            pa.float32(),
            pa.float64(),
            pa.string(),
        ),
        *(pa.large_string(), pa.binary(), pa.large_binary(), pa.binary(7), pa.date32(), pa.date64()),
        *(
            pa.time32("s"),
            pa.time64("ns"),
            pa.timestamp("ns"),
            pa.timestamp("s", "+02:00"),
            pa.duration("us"),
        ),
        *(pa.decimal128(5, 2), pa.decimal128(38, 0), pa.decimal256(76, -3)),
        pa.dictionary(pa.int8(), pa.string(), ordered=True),
    ]
)
names = st.sampled_from(["a", "b c", "", "x: y", "a, b", "ü", "d.e", "time:", "a<b>"])


def nested(inner: st.SearchStrategy[pa.DataType]) -> st.SearchStrategy[pa.DataType]:
    some = inner.filter(lambda kind: kind != pa.null())
    fields = st.one_of(
        st.builds(pa.field, names, inner), st.builds(pa.field, names, some, nullable=st.just(False))
    )
    return st.one_of(
        inner.map(pa.list_),
        inner.map(pa.large_list),
        inner.map(lambda item: pa.list_(item, 3)),
        inner.map(lambda item: pa.map_(pa.string(), item)),
        some.map(lambda item: pa.list_(pa.field("element", item, nullable=False))),
        st.lists(fields, max_size=3).map(pa.struct),
    )


@settings(deadline=None)
@given(st.recursive(leaves, nested, max_leaves=5))
def test_every_type_is_what_it_prints(kind: pa.DataType) -> None:
    assert arrow_type(str(kind), "a") == kind
    assert arrow_type(str(pd.ArrowDtype(kind)), "a") == kind


@pytest.mark.parametrize(
    "wrong",
    [
        *(
            "no type",
            "",
            "list",
            "struct",
            "map",
            "list<",
            "list<int64",
            "list<int64>x",
            "map<string>",
            "struct<a>",
        ),
        *(
            "timestamp[fortnight]",
            "decimal128(39, 0)",
            "decimal128",
            "dictionary<int64>",
            "object",
            "category",
        ),
        *(5, None, object(), list, dict, object, pd.CategoricalDtype(), "list<" * 80 + "int64" + ">" * 80),
    ],
)
def test_what_is_no_type(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match="for 'price', which is no type") as caught:
        arrow_type(wrong, "price")
    assert caught.value.hint is not None
    assert "timestamp[us, tz=UTC]" in caught.value.hint
