"""What of Spark's filters a scan takes: never what would leave out a row that Spark keeps."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from cbframe import ConfigurationError

ds = pytest.importorskip("pyspark.sql.datasource")
pushdown = pytest.importorskip("cbframe.contrib.spark.reader")

SCHEMA = pa.schema(
    [
        ("_cb_key", pa.string()),
        ("_cb_seqno", pa.int64()),
        ("n", pa.int64()),
        ("x", pa.float64()),
        ("small", pa.float32()),
        ("ok", pa.bool_()),
        ("text", pa.string()),
        ("price", pa.decimal128(10, 2)),
        ("when", pa.timestamp("us", "UTC")),
        ("geo", pa.struct([("lat", pa.float64())])),
        ("a.b", pa.int32()),
    ]
)


@pytest.mark.parametrize(
    ("made", "taken"),
    [
        (lambda: ds.EqualTo(("n",), 5), (("n",), "==", 5)),
        (lambda: ds.GreaterThan(("x",), 1.5), (("x",), ">", 1.5)),
        (lambda: ds.LessThanOrEqual(("geo", "lat"), 2), (("geo", "lat"), "<=", 2)),
        (lambda: ds.GreaterThanOrEqual(("a.b",), 2), (("a.b",), ">=", 2)),
        (lambda: ds.In(("n",), (1, 2)), (("n",), "in", (1, 2))),
        (lambda: ds.Not(ds.EqualTo(("n",), 5)), (("n",), "!=", 5)),
        (lambda: ds.Not(ds.In(("text",), ("a", "b"))), (("text",), "not in", ("a", "b"))),
        (lambda: ds.EqualTo(("ok",), True), (("ok",), "==", True)),
        (lambda: ds.EqualTo(("text",), "hotel"), (("text",), "==", "hotel")),
        (lambda: ds.IsNotNull(("text",)), (("text",), "is not", None)),
        (lambda: ds.EqualTo(("_cb_key",), "k"), (("_cb_key",), "==", "k")),
        (lambda: ds.LessThan(("_cb_seqno",), 9), (("_cb_seqno",), "<", 9)),
        # A document's number 60 is the text "60" in a column of text; order is not that of documents.
        (lambda: ds.EqualTo(("text",), "60"), None),
        (lambda: ds.EqualTo(("text",), "true"), None),
        (lambda: ds.EqualTo(("text",), '{"a":1}'), None),
        (lambda: ds.GreaterThan(("text",), "a"), None),
        (lambda: ds.StringStartsWith(("text",), "a"), None),
        # Null is also what does not fit.
        (lambda: ds.IsNull(("n",)), None),
        (lambda: ds.Not(ds.IsNotNull(("n",))), None),
        (lambda: ds.Not(ds.LessThan(("n",), 5)), None),
        (lambda: ds.EqualNullSafe(("n",), 5), None),
        # Rounded, or compared in another way.
        (lambda: ds.EqualTo(("small",), 0.1), None),
        (lambda: ds.EqualTo(("x",), float("nan")), None),
        (lambda: ds.GreaterThan(("price",), Decimal("1.50")), None),
        (lambda: ds.LessThan(("when",), datetime(2024, 5, 1, tzinfo=UTC)), None),
        (lambda: ds.EqualTo(("geo",), {"lat": 1.0}), None),
        (lambda: ds.EqualTo(("ok",), 1), None),
        (lambda: ds.EqualTo(("_cb_key",), "k\\xff"), None),
        (lambda: ds.IsNotNull(("_cb_key",)), None),
        (lambda: ds.EqualTo(("other",), 1), None),
    ],
)
def test_what_is_pushed(made: Any, taken: Any) -> None:
    assert pushdown.pushed([made()], SCHEMA) == ([] if taken is None else [taken])


@pytest.mark.parametrize("reader", ["CouchbaseReader", "CouchbaseStreamReader"])
def test_a_slip_in_an_option_that_a_declared_schema_does_not_need(reader: str) -> None:
    types = pytest.importorskip("pyspark.sql.types")
    schema = types.StructType(
        [
            types.StructField("_change_type", types.StringType()),
            types.StructField("_cb_key", types.StringType()),
            types.StructField("_cb_vbucket", types.IntegerType()),
            types.StructField("_cb_seqno", types.LongType()),
        ]
    )
    options = {"connection": "couchbase://host/travel", "sample_rows": "many"}
    with pytest.raises(ConfigurationError, match="sample_rows='many' is no positive number"):
        getattr(pushdown, reader)(options, schema)
