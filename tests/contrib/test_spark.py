"""A bucket as a Spark DataFrame, read by Spark's Python workers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from scan.kit import fill

import cbframe
from cbframe import LocalCluster
from cbframe.local import ServerTLS

from .spark_kit import SECRET, USER, cluster_of, session_of

pytestmark = [pytest.mark.spark, pytest.mark.timeout(300), pytest.mark.filterwarnings("default")]
pytest.importorskip("pyspark.sql")


@pytest.fixture(scope="module")
def spark() -> Iterator[Any]:
    with session_of("local[2]") as session:
        yield session


def load(spark: Any, cluster: LocalCluster, schema: str | None = None, **options: Any) -> Any:
    reader = spark.read.format("couchbase").option("connection", cluster.connection_string)
    reader = reader.options(**{"partitions": 4, **options})
    return (reader if schema is None else reader.schema(schema)).load()


@pytest.mark.parametrize(("nodes", "vbuckets"), [(1, 64), (3, 64), (2, 1024)])
def test_the_union_is_the_read(spark: Any, nodes: int, vbuckets: int) -> None:
    with cluster_of(nodes, vbuckets) as cluster:
        fill(cluster, 2000)
        frame = load(spark, cluster)
        assert frame.schema.simpleString() == "struct<_cb_key:string,n:bigint,text:string>"
        assert frame.rdd.getNumPartitions() == 4
        rows = {row["_cb_key"]: (row["n"], row["text"]) for row in frame.collect()}
        whole = cbframe.read_bucket(cluster)
        assert len(whole) == 2000
        assert rows == dict(zip(whole.index, zip(whole["n"], whole["text"], strict=True), strict=True))
        assert frame.selectExpr("sum(n)").first()[0] == sum(range(2000))


def test_the_authority_as_text(spark: Any, tmp_path: Path) -> None:
    """An option is text, and the executors need no file."""
    authority, certificate = trustme.CA(), tmp_path / "server.pem"
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(certificate)
    tls = ServerTLS(certificate)
    with LocalCluster(1, 16, seed=1, username=USER, password=SECRET, tls=tls) as cluster:
        fill(cluster, 200)
        reader = spark.read.format("couchbase").option("connection", cluster.tls_connection_string)
        assert reader.option("tls", authority.cert_pem.bytes().decode()).load().count() == 200


def test_types_and_options(spark: Any) -> None:
    with cluster_of() as cluster:
        cluster.upsert("a", {"big": 2**64 - 1, "tags": ["x"], "geo": {"lat": 1.5}, "none": None})
        frame = load(spark, cluster, metadata="cas,seqno")
        row = frame.first()
        assert (int(row["big"]), row["tags"], row["geo"]["lat"], row["none"]) == (2**64 - 1, ["x"], 1.5, None)
        assert int(row["_cb_seqno"]) == 1
        assert load(spark, cluster, columns="tags").columns == ["_cb_key", "tags"]
        with pytest.raises(Exception, match=r"columns='geo\.lat': a member of an object is no column"):
            load(spark, cluster, columns="tags,geo.lat")
        assert load(spark, cluster, columns="geo").select("geo.lat").first()["lat"] == 1.5
        assert load(spark, cluster, "_cb_key string, big decimal(20,0), absent int").first()["absent"] is None


def test_what_does_not_fit(spark: Any) -> None:
    with cluster_of() as cluster:
        cluster.upsert("a", {"n": "text"})
        with pytest.raises(Exception, match="'n' has"):
            load(spark, cluster, "n int").collect()
        assert load(spark, cluster, "n int", on_conflict="null").collect()[0]["n"] is None
        with pytest.raises(Exception, match="there is no option 'colums'"):
            load(spark, cluster, colums="n")


def test_moments(spark: Any) -> None:
    """TIMESTAMP is the same moment whatever the zone is of the session, and inside of arrays, too."""
    with cluster_of() as cluster:
        cluster.upsert("a", {"t": "2026-01-02T03:04:05.000006+02:00", "all": ["1970-01-01T00:00:01Z"]})
        frame = load(spark, cluster, "t timestamp, all array<timestamp>")
        row = frame.selectExpr("unix_micros(t)", "unix_micros(all[0])").first()
        assert tuple(row) == (1767315845000006, 1000000)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ("_cb_key int", "column '_cb_key' is string, and has values for which there is no place"),
        ("absent int not null", "in the declared int32 not null"),
        ("n int, n string", "the schema has two columns 'n'"),
    ],
)
def test_schemas_that_cannot_be_meant(spark: Any, schema: str, message: str) -> None:
    with cluster_of() as cluster:
        cluster.upsert("confidential", {"n": 1})
        with pytest.raises(Exception, match=message) as caught:
            load(spark, cluster, schema).collect()
        assert "confidential" not in str(caught.value)


def test_options_that_cannot_be_meant(spark: Any) -> None:
    """The default of on_conflict can be written down; nothing else than the two is known."""
    with cluster_of() as cluster:
        cluster.upsert("a", {"n": 1})
        cluster.upsert("b", {"n": "x"})
        for options in ({}, {"on_conflict": "raise"}):
            assert {row["n"] for row in load(spark, cluster, **options).collect()} == {"1", "x"}
        for options, message in (
            ({"on_conflict": "widen"}, "on_conflict='widen'"),
            ({"collections": ""}, "names no collections"),
        ):
            with pytest.raises(Exception, match=message):
                load(spark, cluster, **options).collect()


def test_a_user_of_some_collections(spark: Any) -> None:
    with cluster_of() as cluster:
        cluster.create_collection("_default", "a")
        cluster.upsert("inside", {"n": 1}, collection="_default.a")
        cluster.upsert("outside", {"n": 2})
        cluster.add_user(USER, SECRET, collections=["a"])
        with pytest.raises(Exception, match=r"collections=.visible"):
            load(spark, cluster).collect()
        rows = load(spark, cluster, collections="visible").collect()
        assert [row["_cb_key"] for row in rows] == ["inside"]


def test_filters_are_pushed_down(spark: Any) -> None:
    """The same rows with fewer documents typed; Spark has to be set to push filters down."""
    schema = "_cb_key string, n bigint, text string"
    query = "n >= 1990 and text <> 'other' and _cb_key <> 'key-001995'"
    with cluster_of() as cluster:
        fill(cluster, 2000)
        cluster.upsert("odd", {"n": "x", "text": "other"})
        wanted = load(spark, cluster, schema, on_conflict="null").where(query).collect()
        with pytest.raises(Exception, match="filterPushdown"):
            load(spark, cluster, schema, pushdown="true").where(query).collect()
        spark.conf.set("spark.sql.python.filterPushdown.enabled", "true")
        try:
            found = load(spark, cluster, schema, pushdown="true").where(query)
            # The odd value does not fit, and nobody looks at it.
            assert sorted(found.collect()) == sorted(wanted)
            assert 0 < len(wanted) < 10
        finally:
            spark.conf.unset("spark.sql.python.filterPushdown.enabled")


def test_what_is_left_out(spark: Any) -> None:
    with cluster_of() as cluster:
        cluster.upsert("a", {"n": 1})
        cluster.upsert("gone", {"n": 2}, expiry=1_700_000_000)
        cluster.upsert("_txn:client-record", {"n": 3})
        assert [row["_cb_key"] for row in load(spark, cluster).collect()] == ["a"]
        kept = load(spark, cluster, expired="keep", transaction_records="keep")
        assert {row["_cb_key"] for row in kept.collect()} == {"a", "gone", "_txn:client-record"}
        with pytest.raises(Exception, match="expired='maybe'"):
            load(spark, cluster, expired="maybe")
