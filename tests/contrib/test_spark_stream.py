"""The changes of a bucket as a stream of Spark."""

from __future__ import annotations

import inspect
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scan.kit import fill, truth

from cbframe import ConfigurationError, LocalCluster

from .spark_kit import ENVIRONMENT, SECRET, Store, cluster_of, session_of

pytestmark = [pytest.mark.spark, pytest.mark.timeout(300), pytest.mark.filterwarnings("default")]
StructType = pytest.importorskip("pyspark.sql.types").StructType
package = pytest.importorskip("cbframe.contrib.spark")
CouchbaseStreamReader = pytest.importorskip("cbframe.contrib.spark.reader").CouchbaseStreamReader

TESTS = Path(__file__).parent.parent
DRIVER = Path(__file__).with_name("spark_driver.py")
EXAMPLE = TESTS.parent / "examples" / "spark" / "changes_to_sqlite.py"
SCHEMA = "_change_type string, _cb_key string, _cb_vbucket int, _cb_seqno bigint, n bigint"


@pytest.fixture(scope="module")
def spark() -> Iterator[Any]:
    with session_of("local[2]") as session:
        yield session


class Query:
    """A stream into a store, that can be ended and begun again."""

    def __init__(self, spark: Any, cluster: LocalCluster, folder: Path, **options: Any) -> None:
        self.spark = spark
        self.connection = cluster.connection_string
        self.folder = folder
        self.options = options
        self.store = Store(folder / "documents.db")

    def start(self, sink: Any = None, **trigger: Any) -> Any:
        frame = self.spark.readStream.format("couchbase").option("connection", self.connection)
        frame = frame.options(**self.options).schema(SCHEMA).load()
        writer = frame.writeStream.foreachBatch(sink or self.store)
        writer = writer.option("checkpointLocation", str(self.folder / "spark"))
        return (writer.trigger(**trigger) if trigger else writer).start()

    def run(self, sink: Any = None) -> None:
        """Until it has all there is."""
        self.start(sink, availableNow=True).awaitTermination()


def documents_of(cluster: LocalCluster) -> dict[str, int]:
    return {key.decode(): json.loads(row.value)["n"] for key, row in truth(cluster).items()}


def test_changes_as_they_come(spark: Any, tmp_path: Path) -> None:
    with cluster_of(2) as cluster:
        fill(cluster, 200)
        frame = spark.readStream.format("couchbase").option("connection", cluster.connection_string)
        frame = frame.option("changes", "true").option("metadata", "cas").load()
        assert frame.schema.simpleString() == (
            "struct<_change_type:string,_cb_key:string,_cb_vbucket:int,_cb_seqno:decimal(20,0),"
            "_cb_cas:decimal(20,0),n:bigint,text:string>"
        )
        rows: list[dict[str, Any]] = []
        query = (
            frame.writeStream.foreachBatch(lambda batch, _: rows.extend(batch.toArrow().to_pylist()))
            .option("checkpointLocation", str(tmp_path))
            .start()
        )
        try:
            query.processAllAvailable()
            assert {row["_cb_key"]: row["n"] for row in rows} == documents_of(cluster)
            assert len(rows) == 200
            rows.clear()
            cluster.upsert("key-000001", {"n": -1})
            cluster.delete("key-000002")
            cluster.expire("key-000003")
            query.processAllAvailable()
        finally:
            query.stop()
        found = {row["_cb_key"]: (row["_change_type"], row["n"]) for row in rows}
        assert found == {
            "key-000001": ("upsert", -1),
            "key-000002": ("delete", None),
            "key-000003": ("expire", None),
        }
        upsert = next(row for row in rows if row["_change_type"] == "upsert")
        assert int(upsert["_cb_cas"]) == truth(cluster)[b"key-000001"].cas


def test_a_cap_for_each_batch(spark: Any, tmp_path: Path) -> None:
    with cluster_of(2, 16) as cluster:
        fill(cluster, 500)
        query = Query(spark, cluster, tmp_path, max_changes_per_batch=200)
        query.run()
        assert query.store.sizes() == [200, 200, 100]
        assert query.store.documents() == documents_of(cluster)


def test_what_lies_beyond_a_batch(spark: Any) -> None:
    schema = StructType.fromDDL(SCHEMA)
    for options, whole in [
        ({}, True),
        ({"whole_snapshots": "false"}, False),
        ({"max_changes_per_batch": "10"}, False),
        ({"max_changes_per_batch": "10", "whole_snapshots": "true"}, True),
    ]:
        reader = CouchbaseStreamReader({"connection": "couchbase://host/travel", **options}, schema)
        assert reader._changes.whole_snapshots is whole


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": "n, text"}, "the option columns names 'text', and the schema of the stream has no"),
        ({"metadata": "seqno,cas"}, r"the option metadata names 'cas', .* has no column '_cb_cas'"),
        ({"sample_rows": "-1"}, "sample_rows='-1' is no positive number"),
        ({"sample_rows": "many"}, "sample_rows='many' is no positive number"),
    ],
)
def test_options_that_a_declared_schema_does_not_have(
    spark: Any, options: dict[str, str], message: str
) -> None:
    schema = StructType.fromDDL(SCHEMA)
    with pytest.raises(ConfigurationError, match=message):
        CouchbaseStreamReader({"connection": "couchbase://host/travel", **options}, schema)


def test_options_that_a_declared_schema_has(spark: Any) -> None:
    options = {"columns": "n", "metadata": "key,vbucket", "sample_rows": "10"}
    CouchbaseStreamReader({"connection": "couchbase://host/travel", **options}, StructType.fromDDL(SCHEMA))


def test_from_now_on(spark: Any, tmp_path: Path) -> None:
    with cluster_of() as cluster:
        fill(cluster, 100)
        query = Query(spark, cluster, tmp_path, start="now")
        query.run()
        cluster.upsert("key-000001", {"n": -1})
        # Of another query's now this would be the past.
        query.run()
        assert query.store.documents() == {"key-000001": -1}


def test_a_restart_whose_end_lies_on_a_lost_history(spark: Any, tmp_path: Path) -> None:
    with cluster_of(2, 16) as cluster:
        fill(cluster, 100)
        query = Query(spark, cluster, tmp_path)
        query.run()
        for n in range(50):
            cluster.upsert(f"key-{n:06}", {"n": -n})

        def breaks(batch: Any, number: int) -> None:
            query.store(batch, number)
            raise RuntimeError("the driver ends here")

        with pytest.raises(Exception, match="the driver ends here"):
            query.run(breaks)
        assert query.store.documents() == documents_of(cluster)
        for vbucket, seqno in cluster.high_seqnos().items():
            cluster.fail_over(vbucket, lose=seqno // 4)
        cluster.delete("key-000099")
        assert query.store.documents() != documents_of(cluster)
        query.run()
        assert query.store.documents() == documents_of(cluster)
        # Once for what the log said, and once since the history is not the log's.
        assert query.store.kinds()["reset"] == 32
        query.run()
        assert query.store.kinds()["reset"] == 32


def test_rollback_as_an_error(spark: Any, tmp_path: Path) -> None:
    with cluster_of(1, 16) as cluster:
        fill(cluster, 100)
        query = Query(spark, cluster, tmp_path, on_rollback="fail")
        query.run()
        cluster.fail_over(3, lose=1)
        high = cluster.high_seqnos()[3] + 1
        with pytest.raises(Exception, match=f"history that was read to seqno {high}") as caught:
            query.run()
        told = str(caught.value)
        assert "RollbackError" in told
        assert f"[node {cluster.kv_addresses[0]}, vbucket 3]" in told
        assert "new checkpoint location" in told
        assert SECRET not in told
        query.options["on_rollback"] = "reset"
        query.run()
        assert query.store.documents() == documents_of(cluster)
        assert query.store.kinds()["reset"] == 1


def test_another_bucket(spark: Any, tmp_path: Path) -> None:
    with cluster_of() as cluster:
        fill(cluster, 10)
        query = Query(spark, cluster, tmp_path)
        query.run()
        cluster.recreate()
        fill(cluster, 10)
        with pytest.raises(Exception, match="deleted and created again"):
            query.run()


def test_other_collections(spark: Any, tmp_path: Path) -> None:
    with cluster_of(1, 16) as cluster:
        for name in ("a", "b"):
            cid = cluster.create_collection("_default", name)
            cluster.upsert(f"key-{name}", {"n": 1}, collection=cid)
        query = Query(spark, cluster, tmp_path, collections="a")
        query.run()
        query.options["collections"] = "_default.b"
        with pytest.raises(Exception, match="the checkpoint is of collections 'a'") as caught:
            query.run()
        assert "new checkpoint location and an empty target" in str(caught.value)
        query.options["collections"] = "a"
        query.run()
        assert query.store.documents() == {"key-a": 1}


def test_what_cannot_be_meant(spark: Any, tmp_path: Path) -> None:
    with cluster_of() as cluster:
        fill(cluster, 10)

        def stream(**options: Any) -> Any:
            return spark.readStream.format("couchbase").options(
                connection=cluster.connection_string, **options
            )

        with pytest.raises(Exception, match="there is no option 'colums'"):
            stream(colums="n").load()
        batch = spark.read.format("couchbase").option("connection", cluster.connection_string)
        with pytest.raises(Exception, match="is for streams"):
            batch.option("changes", "true").load().collect()
        for number, (options, schema, message) in enumerate(
            [
                ({}, "n int", "lacks one of the columns _change_type"),
                ({"consistency": "strict"}, SCHEMA, "there is no option 'consistency'"),
                ({"start": "later"}, SCHEMA, "start='later'"),
                ({"max_changes_per_batch": 0}, SCHEMA, "max_changes_per_batch='0'"),
            ]
        ):
            frame = stream(**options).schema(schema).load()
            writer = frame.writeStream.foreachBatch(Store(tmp_path / "none.db"))
            with pytest.raises(Exception, match=message):
                writer.option("checkpointLocation", str(tmp_path / str(number))).start().awaitTermination()


def test_the_lines_of_the_documentation(monkeypatch: pytest.MonkeyPatch, spark: Any, tmp_path: Path) -> None:
    text = inspect.getdoc(package) or ""
    begin = text.index("    import sqlite3\n")
    lines = textwrap.dedent(text[begin : text.index("\n\nThe repository", begin)])
    monkeypatch.chdir(tmp_path)
    with cluster_of() as cluster:
        for n in range(20):
            cluster.upsert(f"key-{n}", {"name": f"name-{n}"})
        cluster.delete("key-3")
        for here, there in {
            "couchbase://host/travel": cluster.connection_string,
            # The Java machine has a directory of its own.
            "names.checkpoint": str(tmp_path / "names.checkpoint"),
        }.items():
            assert here in lines
            lines = lines.replace(here, there)
        found: dict[str, Any] = {"spark": spark}
        exec(lines, found)
        try:
            found["query"].processAllAvailable()
        finally:
            found["query"].stop()
    rows = dict(sqlite3.connect("names.db").execute("SELECT key, name FROM names").fetchall())
    assert rows == {f"key-{n}": f"name-{n}" for n in range(20) if n != 3}


def test_the_example(tmp_path: Path) -> None:
    environment = {**os.environ, **{k: v for k, v in ENVIRONMENT.items() if not k.startswith("CB_")}}
    done = subprocess.run(
        [sys.executable, EXAMPLE], check=False, cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("1,000 names\n999 names; person-7 is Somebody Else\n")


# --- a driver that is killed


class Driver:
    """The process of a driver, with its Java machine."""

    def __init__(self, cluster: LocalCluster, folder: Path, until: str) -> None:
        self._problems = folder / "problems.txt"
        with self._problems.open("w") as problems:
            self.process = subprocess.Popen(
                [sys.executable, str(DRIVER), cluster.connection_string, folder, until],
                stdout=subprocess.PIPE,
                stderr=problems,
                text=True,
                env={**os.environ, "PYTHONPATH": str(TESTS)},
                start_new_session=True,
            )
        assert self.process.stdout is not None
        self._lines = self.process.stdout

    def wait_for(self, what: str) -> None:
        """Read what it says, until it says that; pytest's timeout ends it if it never does."""
        assert any(line.startswith(what) for line in self._lines), self._told()

    def complete(self) -> None:
        """Wait for its end."""
        self.process.communicate()
        assert self.process.returncode == 0, self._told()

    def _told(self) -> str:
        return self._problems.read_text()[-5000:]

    def kill(self) -> None:
        # The Java machine, too, or it would end the batch in peace.
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()


@pytest.mark.timeout(900)
def test_a_driver_that_is_killed_again_and_again(tmp_path: Path) -> None:
    """Twenty batches and more, five kills, a failover that loses what the log says: the sink is the truth."""
    rng = random.Random(5)
    with cluster_of(2, 16) as cluster:

        def write() -> None:
            for _ in range(20):
                key = f"key-{rng.randrange(100)}"
                if rng.random() < 0.3:
                    cluster.delete(key)
                else:
                    cluster.upsert(key, {"n": rng.randrange(10**9)})

        for turn in range(5):
            driver = Driver(cluster, tmp_path, "killed")
            try:
                for _ in range(4):
                    write()
                    driver.wait_for("stored")
                write()
                # While a batch is being stored, or just after.
                driver.wait_for("stored" if turn % 2 else "begun")
            finally:
                driver.kill()
            if turn == 2:
                # What the driver wrote into its log, and has not stored, will never have happened.
                for vbucket, seqno in cluster.high_seqnos().items():
                    cluster.fail_over(vbucket, lose=min(3, seqno))
        write()
        Driver(cluster, tmp_path, "complete").complete()
        store = Store(tmp_path / "documents.db")
        assert store.documents() == documents_of(cluster)
        assert len(store.documents()) > 20
        kinds = store.kinds()
        assert kinds["delete"] > 0
        assert kinds["reset"] >= 16
        commits = (tmp_path / "spark" / "commits").iterdir()
        assert max(int(path.name) for path in commits if path.name.isdigit()) >= 19
