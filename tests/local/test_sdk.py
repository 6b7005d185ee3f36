"""The official Couchbase SDK against the embedded cluster: what it writes is what cbframe reads."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from typing import Any

import pytest
from couchbase import subdocument
from couchbase.auth import PasswordAuthenticator
from couchbase.bucket import Bucket
from couchbase.cluster import Cluster
from couchbase.collection import Collection
from couchbase.durability import Durability, ServerDurability
from couchbase.exceptions import (
    AuthenticationException,
    BucketNotFoundException,
    CasMismatchException,
    DeltaInvalidException,
    DocumentExistsException,
    DocumentLockedException,
    DocumentNotFoundException,
    InvalidArgumentException,
    PathExistsException,
    PathNotFoundException,
    ScopeNotFoundException,
    UnAmbiguousTimeoutException,
)
from couchbase.options import (
    ClusterOptions,
    ClusterTimeoutOptions,
    DecrementOptions,
    DeltaValue,
    GetAndTouchOptions,
    GetOptions,
    IncrementOptions,
    InsertOptions,
    RemoveOptions,
    ReplaceOptions,
    SignedInt64,
    UpsertMultiOptions,
    UpsertOptions,
)
from couchbase.transcoder import RawBinaryTranscoder, RawJSONTranscoder, RawStringTranscoder

from cbframe import read_bucket, scan_bucket
from cbframe.local import LocalCluster

pytestmark = pytest.mark.timeout(60)
WAIT = timedelta(seconds=20)
SHORT = timedelta(seconds=1)
"""For calls that the SDK repeats until its time is over."""
BINARY = RawBinaryTranscoder()


@contextmanager
def connect(
    cluster: LocalCluster, password: str | None = None, query: str = "", wait: timedelta = WAIT
) -> Iterator[Cluster]:
    timeouts = ClusterTimeoutOptions(bootstrap_timeout=wait, connect_timeout=wait, kv_timeout=wait)
    # Its reporters are threads that it does not wait for when it closes.
    quiet = {"enable_tracing": False, "enable_metrics": False}
    login = PasswordAuthenticator(cluster.username, cluster.password if password is None else password)
    place = f"couchbase://{cluster.kv_addresses[0]}{query}"
    with closing(Cluster(place, ClusterOptions(login, timeout_options=timeouts, **quiet))) as sdk:
        yield sdk


@pytest.fixture
def running() -> Iterator[LocalCluster]:
    with LocalCluster(nodes=2, vbuckets=64, seed=1) as cluster:
        cluster.create_scope("inventory")
        cluster.create_collection("inventory", "airline")
        yield cluster


@pytest.fixture
def bucket(running: LocalCluster) -> Iterator[Bucket]:
    with connect(running) as sdk:
        opened = sdk.bucket(running.bucket)
        sdk.wait_until_ready(WAIT)
        yield opened


@pytest.fixture(params=["_default._default", "inventory.airline"])
def collection(bucket: Bucket, request: pytest.FixtureRequest) -> Collection:
    scope, name = request.param.split(".")
    return bucket.scope(scope).collection(name)


def stored(cluster: LocalCluster, *, metadata: tuple[str, ...] = ()) -> dict[str, Any]:
    """What a read of the bucket finds by key: the bytes, or with `metadata` a tuple of them."""
    table = scan_bucket(cluster, parse=False, metadata=("key", *metadata), timeout=30).to_arrow()
    rows = table.to_pylist()
    names = ["_cb_value", *(f"_cb_{name}" for name in metadata)]
    return {row["_cb_key"]: tuple(row[n] for n in names) if metadata else row["_cb_value"] for row in rows}


# ------------------------------------------------------------------ documents


def test_writes_are_read_byte_for_byte(running: LocalCluster, collection: Collection) -> None:
    values: dict[str, Any] = {
        "object": {"n": 1, "text": "été 日本", "list": [1, 2.5, None, True], "deep": {"a": {"b": []}}},
        "list": [1, 2],
        "text": "only text",
        "number": 17,
        "long": {"text": "lorem ipsum " * 500},
        "ключ": {"a": 1},
        "k" * 250: {"a": 1},
    }
    raw = {"binary": b"\x00\xff\x01", "empty": b"", "zeros": bytes(5000), "json": b' {"raw" :1.0} '}
    for key, value in values.items():
        collection.upsert(key, value)
    for key, blob in raw.items():
        collection.upsert(key, blob, UpsertOptions(transcoder=BINARY))
    collection.upsert("string", "plain", UpsertOptions(transcoder=RawStringTranscoder()))
    expected = {key: json.dumps(value, ensure_ascii=False).encode() for key, value in values.items()}
    expected |= raw | {"string": b"plain"}
    assert stored(running) == expected
    for key, value in values.items():
        assert collection.get(key).value == value
    for key, blob in raw.items():
        assert collection.get(key, GetOptions(transcoder=BINARY)).value == blob


def test_reads_what_the_cluster_loaded(running: LocalCluster, collection: Collection) -> None:
    running.upsert("default", {"n": 1})
    running.upsert("named", {"n": 2}, collection="inventory.airline", xattrs={"_sync": {"rev": 1}})
    key, other, n = ("default", "named", 1) if collection.name == "_default" else ("named", "default", 2)
    assert collection.get(key).content_as[dict] == {"n": n}
    assert not collection.exists(other).exists


def test_metadata_and_frame(running: LocalCluster, collection: Collection) -> None:
    first = collection.upsert("a", {"n": 1})
    second = collection.upsert("a", {"n": 2})
    assert second.cas is not None
    assert second.cas > (first.cas or 0)
    found = stored(running, metadata=("cas", "flags", "rev_seqno", "expiry"))["a"]
    assert found == (b'{"n": 2}', second.cas, 0x0200_0000, 2, 0)
    assert list(read_bucket(running, timeout=30)["n"]) == [2]
    token = second.mutation_token()
    assert token is not None
    assert token.bucket_name == running.bucket
    log = running.failover_log(token.partition_id)
    assert token.partition_uuid == log[0][0]
    assert token.sequence_number == running.high_seqnos()[token.partition_id]


def test_insert_replace_remove(running: LocalCluster, collection: Collection) -> None:
    with pytest.raises(DocumentNotFoundException):
        collection.replace("a", {"n": 0})
    inserted = collection.insert("a", {"n": 1})
    with pytest.raises(DocumentExistsException):
        collection.insert("a", {"n": 2})
    replaced = collection.replace("a", {"n": 3}, ReplaceOptions(cas=inserted.cas or 0))
    with pytest.raises(CasMismatchException):
        collection.replace("a", {"n": 4}, ReplaceOptions(cas=inserted.cas or 0))
    with pytest.raises(CasMismatchException):
        collection.remove("a", RemoveOptions(cas=inserted.cas or 0))
    assert stored(running) == {"a": b'{"n": 3}'}
    assert collection.get("a").cas == replaced.cas
    collection.remove("a", RemoveOptions(cas=replaced.cas or 0))
    for call in (collection.remove, collection.get, lambda key: collection.touch(key, WAIT)):
        with pytest.raises(DocumentNotFoundException):
            call("a")
    assert stored(running) == {}


def test_exists(collection: Collection) -> None:
    assert not collection.exists("a").exists
    written = collection.upsert("a", {})
    found = collection.exists("a")
    assert (found.exists, found.cas) == (True, written.cas)
    collection.remove("a")
    assert not collection.exists("a").exists


def test_expiry(running: LocalCluster, collection: Collection) -> None:
    now = time.time()
    expiring = {"upsert": 60, "insert": 3600, "replace": 60, "touch": 120, "touched": 7200, "far": 40 * 86400}
    for key in ("replace", "touch", "touched"):
        collection.upsert(key, {"k": key})
    collection.upsert("upsert", {"k": "upsert"}, UpsertOptions(expiry=timedelta(seconds=60)))
    collection.insert("insert", {"k": "insert"}, InsertOptions(expiry=timedelta(hours=1)))
    collection.replace("replace", {"k": "replace"}, ReplaceOptions(expiry=timedelta(seconds=60)))
    collection.upsert("far", {"k": "far"}, UpsertOptions(expiry=timedelta(days=40)))
    before = collection.get("touch")
    touched = collection.touch("touch", timedelta(seconds=120))
    assert touched.cas != before.cas
    got = collection.get_and_touch("touched", timedelta(hours=2), GetAndTouchOptions(timeout=WAIT))
    assert got.content_as[dict] == {"k": "touched"}
    found = stored(running, metadata=("cas", "expiry"))
    assert found["touch"][:2] == (b'{"k": "touch"}', touched.cas)
    assert found["touched"][1] == got.cas
    for key, seconds in expiring.items():
        assert -2 <= found[key][2] - (now + seconds) <= 60, key


def test_what_is_expired_is_gone(running: LocalCluster, bucket: Bucket) -> None:
    collection = bucket.default_collection()
    collection.upsert("a", {"n": 1}, UpsertOptions(expiry=timedelta(hours=1)))
    running.expire("a")
    assert not collection.exists("a").exists
    with pytest.raises(DocumentNotFoundException):
        collection.get("a")
    collection.insert("a", {"n": 2})
    assert stored(running) == {"a": b'{"n": 2}'}


def test_multi(running: LocalCluster, collection: Collection) -> None:
    documents = {f"k{n}": {"n": n} for n in range(100)}
    written = collection.upsert_multi(documents, UpsertMultiOptions(timeout=WAIT))
    assert written.all_ok
    assert stored(running) == {key: json.dumps(v).encode() for key, v in documents.items()}
    found = collection.get_multi([*documents, "missing"])
    assert {key: result.content_as[dict] for key, result in found.results.items()} == documents
    assert set(found.exceptions) == {"missing"}
    assert isinstance(found.exceptions["missing"], DocumentNotFoundException)
    exists = collection.exists_multi(["k1", "missing"])
    assert {key: result.exists for key, result in exists.results.items()} == {"k1": True, "missing": False}
    assert collection.remove_multi([f"k{n}" for n in range(50)]).all_ok
    assert len(read_bucket(running, timeout=30)) == 50


def test_key_limits(collection: Collection) -> None:
    with pytest.raises(InvalidArgumentException):
        collection.upsert("k" * 251, {})
    with pytest.raises(InvalidArgumentException):
        collection.get("")


def test_locks(running: LocalCluster, collection: Collection) -> None:
    written = collection.upsert("a", {"n": 1})
    locked = collection.get_and_lock("a", timedelta(seconds=15))
    assert locked.content_as[dict] == {"n": 1}
    assert locked.cas != written.cas
    with pytest.raises(DocumentLockedException):
        collection.upsert("a", {"n": 2}, UpsertOptions(timeout=SHORT))
    with pytest.raises(CasMismatchException):
        collection.unlock("a", written.cas or 0)
    collection.unlock("a", locked.cas or 0)
    assert collection.get("a").cas == written.cas
    locked = collection.get_and_lock("a", timedelta(seconds=15))
    collection.replace("a", {"n": 3}, ReplaceOptions(cas=locked.cas or 0))
    collection.upsert("a", {"n": 4})
    assert stored(running) == {"a": b'{"n": 4}'}


def test_counters_and_appending(running: LocalCluster, collection: Collection) -> None:
    binary = collection.binary()
    with pytest.raises(DocumentNotFoundException):
        binary.increment("n", IncrementOptions(initial=SignedInt64(-1)))
    assert binary.increment("n", IncrementOptions(initial=SignedInt64(10))).content == 10
    assert binary.increment("n", IncrementOptions(delta=DeltaValue(5))).content == 15
    assert binary.decrement("n", DecrementOptions(delta=DeltaValue(100))).content == 0
    collection.upsert("b", b"mid", UpsertOptions(transcoder=BINARY, expiry=timedelta(hours=1)))
    binary.append("b", b"-end")
    binary.prepend("b", b"start-")
    with pytest.raises(DocumentNotFoundException):
        binary.append("missing", b"")
    found = stored(running, metadata=("expiry",))
    assert found["n"] == (b"0", 0)
    assert found["b"][0] == b"start-mid-end"
    assert found["b"][1] > time.time()
    with pytest.raises(DeltaInvalidException):
        binary.increment("b")


def test_preserved_expiry_and_durability(running: LocalCluster, collection: Collection) -> None:
    collection.upsert("a", {"n": 1}, UpsertOptions(expiry=timedelta(hours=1)))
    collection.upsert("a", {"n": 2}, UpsertOptions(preserve_expiry=True))
    durable = UpsertOptions(preserve_expiry=True, durability=ServerDurability(Durability.MAJORITY))
    collection.upsert("a", {"n": 3}, durable)
    value, expiry = stored(running, metadata=("expiry",))["a"]
    assert value == b'{"n": 3}'
    assert expiry > time.time()
    collection.upsert("a", {"n": 4})
    assert stored(running, metadata=("expiry",))["a"] == (b'{"n": 4}', 0)


def test_attributes_outlive_writes(running: LocalCluster, bucket: Bucket) -> None:
    running.upsert("a", {"n": 1}, xattrs={"_sync": {"rev": 1}})
    bucket.default_collection().upsert("a", {"n": 2})
    assert bucket.default_collection().get("a").value == {"n": 2}
    assert stored(running) == {"a": b'{"n": 2}'}


def test_paths(running: LocalCluster, collection: Collection) -> None:
    with pytest.raises(DocumentNotFoundException):
        collection.mutate_in("a", [subdocument.upsert("n", 1)])
    collection.upsert("a", {"n": 1, "list": [1]}, UpsertOptions(expiry=timedelta(hours=1)))
    until = collection.get("a", GetOptions(with_expiry=True)).expiry_time
    assert until is not None
    assert collection.get("a", GetOptions(project=["n"])).content_as[dict] == {"n": 1}
    changes = [
        subdocument.upsert("deep.er", "x", create_parents=True),
        subdocument.array_append("list", 2, 3),
        subdocument.increment("n", 5),
        subdocument.upsert("meta", {"a": 1}, xattr=True),
    ]
    changed = collection.mutate_in("a", changes)
    assert changed.content_as[int](2) == 6
    found = collection.lookup_in("a", [subdocument.get("list[-1]"), subdocument.get("meta.a", xattr=True)])
    assert [found.content_as[int](index) for index in (0, 1)] == [3, 1]
    with pytest.raises(PathNotFoundException):
        collection.lookup_in("a", [subdocument.get("missing")]).content_as[int](0)
    with pytest.raises(PathExistsException):
        collection.mutate_in("a", [subdocument.upsert("n", 9), subdocument.insert("list", 9)])
    text = collection.get("a", GetOptions(transcoder=RawJSONTranscoder())).value
    assert json.loads(text) == {"n": 6, "list": [1, 2, 3], "deep": {"er": "x"}}
    assert stored(running) == {"a": text}
    assert list(read_bucket(running, timeout=30)["n"]) == [6]


# ------------------------------------------------------------------ connections


@pytest.mark.parametrize("query", ["", "?sasl_mech_force=PLAIN", "?enable_compression=false"])
def test_ways_to_connect(running: LocalCluster, query: str) -> None:
    with connect(running, query=query) as sdk:
        collection = sdk.bucket(running.bucket).default_collection()
        collection.upsert("a", {"text": "a" * 500})
        assert collection.get("a").content_as[dict] == {"text": "a" * 500}


def test_wrong_password(running: LocalCluster) -> None:
    with pytest.raises(AuthenticationException), connect(running, "wrong"):
        pass


@pytest.mark.parametrize(
    ("access", "error"), [("dcp", BucketNotFoundException), ("admin", UnAmbiguousTimeoutException)]
)
def test_unknown_bucket(access: Any, error: type[Exception]) -> None:
    """Who may see all buckets is told that it is not there (yet), and waits for it."""
    with LocalCluster(vbuckets=16) as cluster:
        cluster.add_user(cluster.username, cluster.password, access=access)
        with connect(cluster, wait=SHORT) as sdk, pytest.raises(error):
            sdk.bucket("other")


def test_unknown_collection_and_scope(bucket: Bucket) -> None:
    with pytest.raises(UnAmbiguousTimeoutException):
        bucket.scope("inventory").collection("nosuch").get("a", GetOptions(timeout=SHORT))
    with pytest.raises(ScopeNotFoundException):
        bucket.scope("nosuch").collection("airline").get("a")


def test_a_moved_vbucket_is_followed(running: LocalCluster, collection: Collection) -> None:
    documents = {f"k{n}": {"n": n} for n in range(20)}
    assert collection.upsert_multi(documents).all_ok
    for vbucket in range(64):
        running.move_vbucket(vbucket, 1)
    for key, value in documents.items():
        assert collection.get(key).content_as[dict] == value


def test_a_collection_that_comes_later(running: LocalCluster, bucket: Bucket) -> None:
    bucket.default_collection().upsert("a", {})
    running.create_collection("inventory", "hotel")
    bucket.scope("inventory").collection("hotel").upsert("a", {"late": True})
    assert len(read_bucket(running, timeout=30, scope="inventory", collections="hotel")) == 1
