"""Change streams as a program uses them: batches, positions, flow control, rollbacks, errors, the end."""

from __future__ import annotations

import json
import re
import threading
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest
from failovers import until

from cbframe import (
    AccessError,
    AuthFailError,
    BucketNotFoundError,
    CbframeError,
    ChangeBatch,
    ChangeStream,
    Checkpoint,
    ClusterMapError,
    CollectionDrop,
    ConfigurationError,
    LocalCluster,
    ReadCancelledError,
    Rollback,
    RollbackError,
    StreamError,
    scan_bucket,
    stream_bucket,
)
from cbframe.arrow.columns import key_bytes
from cbframe.cluster.collections_manifest import CollectionName
from cbframe.local import bucket
from cbframe.scan.changes import Directory
from cbframe.wire.constants import SystemEventId
from cbframe.wire.messages import SystemEvent, vbucket_of

from .consumers import (
    PATIENCE,
    LogKeeper,
    StateKeeper,
    consume_until,
    follow,
    has_caught_up,
    open_stream,
    rows_of,
    take,
    take_rows,
    truth_of,
)
from .kit import QUICK, Sent, background, create, fill, interrupted, keys_in

# --- what comes


def test_what_is_there_and_what_changes(pair: LocalCluster) -> None:
    fill(pair, 300)
    consumer = LogKeeper()
    with open_stream(pair) as stream:
        follow(stream, consumer, pair)
        assert consumer.documents() == truth_of(pair)
        pair.upsert("key-000001", {"n": "new"})
        pair.delete("key-000002")
        pair.expire("key-000003")
        kinds: dict[bytes, str] = {}
        while len(kinds) < 3:
            batch = take(stream)
            keys = key_bytes(batch.record_batch.column("_cb_key")).to_pylist()
            kinds |= zip(keys, batch.record_batch.column("_change_type").to_pylist(), strict=True)
            consumer.apply(batch)
            stream.ack(batch)
        assert kinds == {b"key-000001": "upsert", b"key-000002": "delete", b"key-000003": "expire"}
        assert consumer.documents() == truth_of(pair)
        assert stream.state == "streaming"


def test_from_now_on(pair: LocalCluster) -> None:
    fill(pair, 300)
    with open_stream(pair, start="now") as stream:
        assert {vb: offset.seqno for vb, offset in stream.checkpoint.offsets.items()} == pair.high_seqnos()
        pair.upsert("key-000001", b"{}")
        batch = take(stream)
        assert [row[2:] for row in rows_of(batch)] == [(b"key-000001", b"{}")]
        assert stream.poll(0.05) is None


@pytest.mark.parametrize(
    ("choice", "told"),
    [
        ({"key_prefix": "key-"}, "another key_prefix"),
        ({"transaction_records": "keep"}, "transaction_records='drop'"),
        ({"collections": "_default"}, "collections=None"),
    ],
)
def test_a_checkpoint_of_other_choices(choice: dict[str, Any], told: str, pair: LocalCluster) -> None:
    fill(pair, 10)
    with open_stream(pair, start="now") as stream:
        checkpoint = stream.checkpoint
    with pytest.raises(ConfigurationError, match=f"is of a stream with {told}"):
        open_stream(pair, start=Checkpoint.from_json(checkpoint.to_json()), **choice)


def test_checkpoints_of_0_1_0_do_not_know_of_transaction_records(pair: LocalCluster) -> None:
    pair.upsert("_txn:atr-1", b"{}")
    with open_stream(pair) as stream:
        content = json.loads(stream.checkpoint.to_json())
    assert content.pop("transaction_records") == "drop"
    checkpoint = Checkpoint.from_json(json.dumps(content))
    assert checkpoint.leads_to(stream.checkpoint)
    assert not stream.checkpoint.leads_to(checkpoint)
    with open_stream(pair, start=checkpoint, transaction_records="keep") as stream:
        assert stream.checkpoint.transaction_records == "keep"


def test_from_now_on_counts_from_the_call_and_not_from_the_first_batch(cluster: LocalCluster) -> None:
    fill(cluster, 10)
    with open_stream(cluster, start="now") as stream:
        checkpoint = stream.checkpoint
    for n in range(20):
        cluster.upsert(f"later-{n}", b"1")
    with open_stream(cluster, start=checkpoint) as stream:
        keys = set()
        while len(keys) < 20:
            keys |= {row[2] for row in rows_of(take(stream))}
    assert keys == {b"later-%d" % n for n in range(20)}


def test_some_vbuckets_a_prefix_and_metadata(cluster: LocalCluster) -> None:
    fill(cluster, 100)
    cluster.upsert("other", {})
    cluster.upsert("key-x", {"a": 1}, xattrs={"note": 1})
    names = ("key", "cas", "xattrs", "flags")
    vbuckets = range(0, 16, 2)
    high = {vb: seqno for vb, seqno in cluster.high_seqnos().items() if vb in vbuckets and seqno}
    found: dict[bytes, bytes | None] = {}
    with open_stream(cluster, vbuckets=vbuckets, key_prefix="key-", metadata=names) as stream:
        while {vb: offset.seqno for vb, offset in stream.checkpoint.offsets.items() if offset.seqno} != high:
            if (batch := stream.poll(0.05)) is not None:
                found |= {key: value for _, _, key, value in rows_of(batch)}
                stream.ack(batch)
        wanted = ["_change_type", "_cb_key", "_cb_vbucket", "_cb_seqno", "_cb_cas", "_cb_xattrs", "_cb_flags"]
        assert stream.schema.names == [*wanted, "_cb_value"]
    keys = [*(b"key-%06d" % n for n in range(100)), b"key-x"]
    assert found == {key: cluster.get(key) for key in keys if vbucket_of(key, 16) in vbuckets}


def one_batch(cluster: LocalCluster, documents: int) -> ChangeBatch:
    """All that vbucket 0 has."""
    with open_stream(cluster, vbuckets=[0]) as stream:
        stream.pause()
        until(lambda: stream.stats.total.documents == documents)
        assert stream.poll(0.01) is None
        stream.resume()
        return take(stream)


def test_a_batch_becomes_a_frame(cluster: LocalCluster) -> None:
    keys = keys_in(0, 16, 4)
    cluster.upsert(keys[0], {"a": 1, "_change_type": "mine", "deep": {"b": 2}})
    cluster.upsert(keys[1], {"a": "x"})
    cluster.upsert(keys[2], b"\x00\x01")
    cluster.upsert(keys[3], {"a": 1})
    cluster.delete(keys[3])
    batch = one_batch(cluster, 4)
    frame = batch.to_pandas()
    a, b, binary, gone = (key.decode() for key in keys)
    assert frame.index.tolist() == [a, b, binary, gone]
    assert frame["_change_type"].tolist() == ["upsert", "upsert", "upsert", "delete"]
    assert frame["a"].iloc[:2].tolist() == ["1", "x"]
    assert frame["a"].iloc[2:].isna().all()
    assert frame.loc[a, "_change_type_"] == "mine"
    assert frame.loc[a, "deep"] == {"b": 2}
    assert frame.loc[binary, "_cb_value"] == b"\x00\x01"
    assert frame.attrs["cbframe"]["rejected"] == {"binary": 1}
    assert frame.attrs["cbframe"]["conflicts"][0]["samples"]["string"] == [b]
    flat = batch.to_arrow(columns=["deep"], nested="flatten")
    assert flat["deep.b"].to_pylist() == [2, None, None, None]
    assert batch.to_arrow(columns=["nothing"])["nothing"].null_count == 4
    for wrong in ({"columns": "deep"}, {"nested": "flat"}, {"columns": ["a.b"], "nested": "json"}):
        with pytest.raises(ConfigurationError):
            batch.to_arrow(**wrong)
    assert keys[0].decode() not in repr(batch)


def test_a_batch_has_what_is_inside_of_objects_among_other_values(cluster: LocalCluster) -> None:
    for key, document in zip(keys_in(0, 16, 2), ({"deep": {"b": 2}}, {"deep": 5}), strict=True):
        cluster.upsert(key, document)
    assert one_batch(cluster, 2).to_arrow(columns=["deep.b"])["deep.b"].to_pylist() == [2, None]


# --- collections


def test_collections_by_name_and_what_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket, "_NAME", re.compile(".*"))  # the server's own scope has another kind of name
    with LocalCluster(vbuckets=4, seed=1) as cluster:
        create(cluster, "shop", "orders")
        create(cluster, "_system", "_query")
        for key, name in (("a", "shop.orders"), ("b", "_default._default"), ("c", "_system._query")):
            cluster.upsert(key, {}, collection=name)
        found: set[tuple[str, str, str]] = set()
        with open_stream(cluster) as stream:

            def see(count: int) -> None:
                while len(found) < count:
                    rows = take(stream).record_batch
                    columns = (rows.column(f"_cb_{name}") for name in ("scope", "collection", "key"))
                    found.update(zip(*(column.to_pylist() for column in columns), strict=True))

            see(2)
            cluster.create_collection("shop", "users")
            cluster.upsert("d", {}, collection="shop.users")
            see(3)
            cluster.drop_collection("shop", "orders")
            drops: set[int] = set()
            while len(drops) < 4:
                for drop in take(stream).drops:
                    assert (drop.scope, drop.collection) == ("shop", "orders")
                    drops.add(drop.vbucket)
        assert found == {("shop", "orders", "a"), ("_default", "_default", "b"), ("shop", "users", "d")}


@pytest.mark.parametrize("start", ["now", "as_of", "checkpoint", "checkpoint of 0.1.0"])
def test_what_is_dropped_has_the_name_that_it_had_before_the_stream(start: str) -> None:
    """A stream that begins later is not sent how the collection was created, and the manifest forgets it."""
    with LocalCluster(vbuckets=2, seed=1) as cluster:
        create(cluster, "shop", "orders")
        for n in range(8):
            cluster.upsert(f"k{n}", {}, collection="shop.orders")
        where: Any = start
        if start == "as_of":
            where = scan_bucket(cluster, collections=None).read().as_of
        elif start != "now":
            with open_stream(cluster) as stream:
                seen = 0
                while seen < 8:
                    batch = take(stream)
                    stream.ack(batch)
                    seen += len(batch)
                content = json.loads(stream.checkpoint.to_json())
            if start == "checkpoint":
                # It happens while nobody looks.
                cluster.drop_collection("shop", "orders")
            else:
                del content["collection_names"]
            where = Checkpoint.from_json(json.dumps(content))
        with open_stream(cluster, start=where) as stream:
            if start != "checkpoint":
                cluster.drop_collection("shop", "orders")
            drops: dict[int, tuple[str | None, str | None]] = {}
            while len(drops) < 2:
                drops |= {drop.vbucket: (drop.scope, drop.collection) for drop in take(stream).drops}
        assert set(drops.values()) == {("shop", "orders")}


def test_a_collection_that_was_emptied_after_the_checkpoint() -> None:
    """The stream was not sent how it was created: the first CREATE_COLLECTION means that it was emptied."""
    directory = Directory(lambda: None, {8: CollectionName("shop", "orders")}, resumed={3})
    created = SystemEvent(3, 50, SystemEventId.CREATE_COLLECTION, 0, "orders", b"", 7, 9, 8)
    assert directory.apply(created) == CollectionDrop(3, 50, 8, "shop", "orders")
    # One that is new, and a vbucket that is read from its start.
    for event in (replace(created, collection_id=9), replace(created, vbucket=4)):
        assert directory.apply(event) is None
        drop = directory.apply(replace(event, seqno=60))
        assert (drop.vbucket, drop.seqno, drop.collection_id) == (event.vbucket, 60, event.collection_id)


def test_one_collection_until_it_is_gone() -> None:
    with LocalCluster(vbuckets=4, seed=1) as cluster:
        create(cluster, "shop", "orders")
        cluster.upsert("a", {}, collection="shop.orders")
        cluster.upsert("b", {})
        with open_stream(cluster, collections="shop.orders") as stream:
            assert [row[2] for row in rows_of(take_rows(stream))] == [b"a"]
            checkpoint = stream.checkpoint
            cluster.drop_collection("shop", "orders")
            for batch in stream:
                assert not len(batch)
            assert stream.state == "finished"
            assert stream.poll(0) is None
        with pytest.raises(ConfigurationError, match=r"no collection 'shop\.orders'"):
            open_stream(cluster, collections="shop.orders")
        with pytest.raises(ConfigurationError, match=r"collections=\('shop\.orders'"):
            open_stream(cluster, start=checkpoint)


# --- positions


def test_iteration_acknowledges_the_batch_before(cluster: LocalCluster) -> None:
    fill(cluster, 200)
    with open_stream(cluster, batch_bytes=2000, options=replace(QUICK, receive_buffer_bytes=65536)) as stream:
        first = next(stream)
        assert sum(offset.seqno for offset in stream.checkpoint.offsets.values()) == 0
        after = stream.checkpoint_after(first)
        cluster.upsert("one-more", {})
        second = next(stream)
        assert {vb: after.offsets[vb] for vb in first.offsets} == first.offsets
        for vb, offset in first.offsets.items():
            if vb not in second.offsets:
                assert stream.checkpoint.offsets[vb] == offset
        stream.ack(second)
        stream.ack(second)
        stream.ack(first)
        vb = next(iter(second.offsets))
        assert stream.checkpoint.offsets[vb] == second.offsets[vb]


def test_a_loop_that_was_left_has_not_consumed_its_batch(cluster: LocalCluster) -> None:
    fill(cluster, 10)
    with open_stream(cluster) as stream:
        for batch in stream:
            first = batch
            break
        for batch in stream:
            assert batch is first
            stream.ack(batch)
            break
        cluster.upsert("more", {})
        for batch in stream:
            assert batch is not first
            # A later one is acknowledged, and this one with it.
            cluster.upsert("yet-more", {})
            stream.ack(take(stream))
            break
        cluster.upsert("and-more", {})
        assert next(iter(stream)) is not batch


def test_ctrl_c_at_a_bad_moment(cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(cluster, 10)
    with open_stream(cluster) as stream:
        take(stream)

        def interrupted(*_: object) -> None:
            raise KeyboardInterrupt

        cluster.upsert("more", {})
        monkeypatch.setattr(stream._gatherer, "_fill", interrupted)
        with pytest.raises(KeyboardInterrupt):
            stream.poll(PATIENCE)
        monkeypatch.undo()
        with pytest.raises(ReadCancelledError, match="interrupted") as caught:
            stream.poll(PATIENCE)
        assert "start=stream.checkpoint" in str(caught.value.hint)


def test_what_was_not_acknowledged_comes_again(pair: LocalCluster) -> None:
    fill(pair, 500)
    consumer = LogKeeper()
    start: Any = "beginning"
    for number in range(100):
        with open_stream(pair, start=start, batch_bytes=3000) as stream:
            batch = take(stream)
            stream.poll(0.01)  # delivered, and lost
            consumer.apply(batch)
            stream.ack(batch)
            start = Checkpoint.from_json(stream.checkpoint.to_json())
        if has_caught_up(pair, start):
            break
        pair.upsert(f"key-{number}", {})
    else:
        raise AssertionError("it never gets to the end")
    assert consumer.documents() == truth_of(pair)


@pytest.mark.parametrize("keeper", [LogKeeper, StateKeeper])
def test_on_from_a_read(pair: LocalCluster, keeper: Any) -> None:
    fill(pair, 200)
    scan = scan_bucket(pair, parse=False, metadata=("key", "vbucket", "seqno"), options=QUICK)
    table = scan.to_arrow()
    consumer = keeper()
    for row in table.sort_by("_cb_seqno").to_pylist():
        vbucket, seqno, key = row["_cb_vbucket"], row["_cb_seqno"], row["_cb_key"].encode()
        if isinstance(consumer, LogKeeper):
            consumer.log[vbucket].append((seqno, key, row["_cb_value"]))
        else:
            consumer.state[vbucket, key] = seqno, row["_cb_value"]
    pair.upsert("key-000001", b"{}")
    pair.delete("key-000002")
    vbucket = vbucket_of(b"key-000003", 16)
    pair.fail_over(vbucket, lose=1)
    pair.upsert("after", b"{}")
    on_rollback = "emit" if keeper is LogKeeper else "restart"
    with open_stream(pair, start=scan.as_of, on_rollback=on_rollback) as stream:
        follow(stream, consumer, pair)
        assert stream.stats.total.documents < 100
    assert consumer.rollbacks == 1
    assert consumer.documents() == truth_of(pair)
    later = Checkpoint.after(scan.as_of, "default")
    assert later.as_of == {vb: at for vb, at in scan.as_of.items() if at[1]}


# --- flow control


def test_unread_bytes_are_bounded(cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(cluster, 4000, size=1000)
    sent = Sent(monkeypatch, cluster)
    window = 100_000
    with open_stream(cluster, buffer_bytes=window, batch_bytes=20_000) as stream:
        batches = [take(stream)]
        while (batch := stream.poll(0.2)) is not None:
            batches.append(batch)
        assert window / 2 < sent.total < window + 20_000
        before = sent.total
        stream.ack(batches[-1])
        while sent.total == before:
            stream.poll(0.01)


def test_a_pause_holds_everything(cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(cluster, 4000, size=1000)
    sent = Sent(monkeypatch, cluster)
    window = 100_000
    with open_stream(cluster, buffer_bytes=window, batch_bytes=20_000) as stream:
        batch = take(stream)
        stream.pause()
        assert stream.state == "paused"
        stream.ack(batch)
        assert stream.poll(0.2) is None
        assert sent.total < window + 20_000
        with background(lambda _stop: stream.resume()):
            assert len(take(stream)) > 0
        for _ in stream:
            if sent.total > 2 * window:
                break


def test_what_is_filtered_out_holds_nothing_up(cluster: LocalCluster) -> None:
    fill(cluster, 4000, size=1000)
    cluster.upsert("wanted", {})
    with open_stream(cluster, buffer_bytes=100_000, batch_bytes=20_000, key_prefix=b"wanted") as stream:
        held = take(stream)
        assert [row[2] for row in rows_of(held)] == [b"wanted"]
        for n in range(400):
            cluster.upsert(f"noise-{n}", b"x" * 1000)
        cluster.upsert("wanted-too", {})
        assert [row[2] for row in rows_of(take(stream))] == [b"wanted-too"]
        stream.ack(held)


# --- rollbacks


def lost(cluster: LocalCluster, **arguments: Any) -> tuple[ChangeStream, int]:
    """A stream that has consumed what is lost then, and the vbucket."""
    for n in range(20):
        cluster.upsert("a", {"n": n})
        cluster.upsert("b", {"n": n})
    stream = open_stream(cluster, vbuckets=[vbucket_of(b"a", 16)], **arguments)
    return stream, vbucket_of(b"a", 16)


def take_rollback(stream: ChangeStream) -> tuple[tuple[Rollback, ...], list[Any]]:
    """Rollbacks, and the rows that come with them or next."""
    batch = take(stream)
    return batch.rollbacks, rows_of(batch if len(batch) else take(stream))


def test_a_rollback_comes_in_order(cluster: LocalCluster) -> None:
    stream, vbucket = lost(cluster)
    with stream:
        stream.ack(take(stream))
        high = cluster.high_seqnos()[vbucket]
        cluster.upsert("a", {"n": "rolled back"})
        stream.ack(take(stream))
        cluster.fail_over(vbucket, lose=1)
        cluster.upsert("a", {"n": "instead"})
        (rollback,), rows = take_rollback(stream)
        assert rollback == Rollback(vbucket, high, high)
        assert [row[3] for row in rows] == [b'{"n":"instead"}']
        assert stream.stats.total.rollbacks == 1


def test_a_rollback_into_a_snapshot_leads_to_the_end_of_the_one_before(cluster: LocalCluster) -> None:
    stream, vbucket = lost(cluster)
    with stream:
        # Both are in one snapshot: of what was before the rolled-back change, nothing ever came.
        stream.ack(take(stream))
        cluster.fail_over(vbucket, lose=1)
        (rollback,), rows = take_rollback(stream)
        assert (rollback.seqno, rollback.server_seqno) == (0, cluster.high_seqnos()[vbucket])
        assert {row[2]: row[3] for row in rows}[b"a"] == cluster.get("a")


def test_a_rollback_starts_over(cluster: LocalCluster) -> None:
    stream, vbucket = lost(cluster, on_rollback="restart")
    with stream:
        stream.ack(take(stream))
        cluster.upsert("a", {"n": "rolled back"})
        stream.ack(take(stream))
        cluster.fail_over(vbucket, lose=1)
        rollbacks, rows = take_rollback(stream)
        assert [each.seqno for each in rollbacks] == [0]
        assert {row[2]: row[3] for row in rows}[b"a"] == b'{"n":19}'


def test_a_rollback_is_an_error(cluster: LocalCluster) -> None:
    stream, vbucket = lost(cluster, on_rollback="raise")
    with stream:
        stream.ack(take(stream))
        cluster.fail_over(vbucket, lose=1)
        with pytest.raises(RollbackError, match="rolled the vbucket back to seqno") as caught:
            list(stream)
        assert caught.value.vbucket == vbucket
        assert "emit" in str(caught.value.hint)
        assert stream.state == "failed"
        with pytest.raises(RollbackError):
            stream.poll(0)


def test_a_function_is_told_of_rollbacks(cluster: LocalCluster) -> None:
    told: list[tuple[Rollback, str]] = []

    def on_rollback(rollback: Rollback) -> None:
        told.append((rollback, threading.current_thread().name))

    stream, vbucket = lost(cluster, on_rollback=on_rollback)
    with stream:
        stream.ack(take(stream))
        cluster.fail_over(vbucket, lose=1)
        batch = take(stream)
        assert told == [(batch.rollbacks[0], threading.current_thread().name)]


def test_a_rollback_before_the_beginning_of_a_stream_from_now_on(cluster: LocalCluster) -> None:
    stream, vbucket = lost(cluster, start="now")
    with stream:
        high = cluster.high_seqnos()[vbucket]
        cluster.fail_over(vbucket, lose=3)
        cluster.upsert("a", {"n": "instead"})
        rollbacks, rows = take_rollback(stream)
        assert [each.seqno for each in rollbacks] == [high - 3]
        assert [row[3] for row in rows] == [b'{"n":"instead"}']


def test_a_flushed_bucket_is_rolled_back_whole(cluster: LocalCluster) -> None:
    consumer = LogKeeper()
    fill(cluster, 100)
    with open_stream(cluster) as stream:
        follow(stream, consumer, cluster)
        for vbucket in range(16):
            cluster.flush_vbucket(vbucket)
        cluster.upsert("after", {})
        consume_until(lambda: consumer.documents() == {b"after": b"{}"}, consumer, stream)


# --- errors


HASTY = replace(QUICK, connect_timeout=1.0, recovery_timeout=0.5)


@pytest.mark.parametrize(
    ("access", "password", "error"),
    [
        ("dcp", "wrong", AuthFailError),
        ("none", "secret-word", BucketNotFoundError),
        ("data", "secret-word", AccessError),
    ],
)
def test_what_cannot_be_healed_is_raised(
    cluster: LocalCluster, access: Any, password: str, error: type[CbframeError]
) -> None:
    cluster.add_user("ann", "secret-word", access=access)
    with open_stream(cluster, auth=("ann", password)) as stream:
        with pytest.raises(error) as caught:
            stream.poll(PATIENCE)
        assert caught.value.hint
        assert caught.value.node == cluster.kv_addresses[0]
        assert stream.state == "failed"
        assert "failed" in repr(stream)
        assert "secret" not in f"{stream!r} {caught.value}"
        with pytest.raises(error):
            next(stream)


def test_nobody_is_there() -> None:
    with (
        stream_bucket("couchbase://127.0.0.1:1/default", auth=("u", "p"), options=HASTY) as stream,
        pytest.raises(CbframeError, match="cannot connect"),
    ):
        stream.poll(PATIENCE)
    with pytest.raises(CbframeError, match="cannot connect"):
        stream_bucket("couchbase://127.0.0.1:1/default", auth=("u", "p"), options=HASTY, start="now")


def test_a_node_that_stays_away(pair: LocalCluster) -> None:
    fill(pair, 50)
    with open_stream(pair, options=replace(HASTY, recovery_timeout=1.5)) as stream:
        follow(stream, LogKeeper(), pair)  # a node that was never there is another error
        pair.kill(1)
        with pytest.raises(StreamError, match=r"attempts have failed for 1\.5 s") as caught:
            list(stream)
        assert "checkpoint" in str(caught.value.hint)
        assert caught.value.node == pair.kv_addresses[1]


def test_cuts_are_healed(pair: LocalCluster) -> None:
    fill(pair, 300)
    consumer = LogKeeper()
    with open_stream(pair) as stream:
        for node in (0, 1, 0, 1):
            follow(stream, consumer, pair)
            pair.cut(node)
            pair.upsert(f"after-{node}", {})
        follow(stream, consumer, pair)
        assert consumer.documents() == truth_of(pair)
        assert stream.errors
        assert stream.state == "streaming"


def test_a_function_that_fails(cluster: LocalCluster) -> None:
    def fails(_rollback: Rollback) -> None:
        raise RuntimeError("of the consumer")

    stream, vbucket = lost(cluster, on_rollback=fails)
    with stream:
        stream.ack(take(stream))
        cluster.fail_over(vbucket, lose=1)
        for _ in range(3):
            # The batch was not delivered: it is still the next one.
            with pytest.raises(RuntimeError, match="of the consumer"):
                stream.poll(PATIENCE)
        assert stream.state in ("connecting", "streaming")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"buffer_bytes": 1000, "batch_bytes": 900}, "half of the window"),
        ({"buffer_bytes": 0}, "needs flow control"),
        ({"options": replace(QUICK, seq_end="now")}, "no end"),
        ({"options": replace(QUICK, out_of_order=True)}, "order"),
        ({"scope": "nothing"}, "'nothing'"),
    ],
)
def test_arguments_that_cannot_be_meant(
    cluster: LocalCluster, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        open_stream(cluster, **arguments)


def test_another_bucket(cluster: LocalCluster) -> None:
    fill(cluster, 10)
    with open_stream(cluster) as stream:
        stream.ack(take(stream))
        checkpoint = stream.checkpoint
    assert checkpoint.bucket_uuid
    conn = f"couchbase://{cluster.kv_addresses[0]}/other"
    with pytest.raises(ConfigurationError, match="is of bucket 'default', not of 'other'"):
        stream_bucket(conn, auth=(cluster.username, cluster.password), start=checkpoint)
    foreign = replace(checkpoint, bucket_uuid="0" * 32)
    with (
        open_stream(cluster, start=foreign) as stream,
        pytest.raises(ClusterMapError, match="uuid") as caught,
    ):
        stream.poll(PATIENCE)
    assert "without the old checkpoint" in str(caught.value.hint)


def test_neither_keys_nor_passwords_are_told(cluster: LocalCluster, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    cluster.add_user("ann", "secret-word")
    vbucket = vbucket_of(b"secret-key", 16)
    with open_stream(cluster, auth=("ann", "secret-word"), key_prefix="secret-k") as stream:
        for n in range(3):
            cluster.upsert("secret-key", {"secret-field": n})
            batch = take(stream)
            stream.ack(batch)
            cluster.cut()
        cluster.fail_over(vbucket, lose=1)
        told = [repr(batch), repr(take(stream)), repr(stream), repr(stream.checkpoint), repr(stream.errors)]
        told += [repr(stream.stats), repr(stream.source), caplog.text, *map(str, stream.errors)]
    assert stream.errors
    assert not [each for each in told if "secret" in each]


# --- the end


def test_close_ends_an_iteration_on_another_thread(cluster: LocalCluster) -> None:
    fill(cluster, 10)
    stream = open_stream(cluster)
    begun = threading.Event()

    def iterate(_stop: threading.Event) -> None:
        for _ in stream:
            begun.set()

    with background(iterate):
        assert begun.wait(PATIENCE)
        stream.close()
    assert stream.state == "closed"
    assert list(stream) == []
    for look in (stream.poll, stream.to_pandas):
        with pytest.raises(ReadCancelledError, match="the stream is closed"):
            look()
    stream.close()
    assert "closed" in repr(stream)


def test_what_was_taken_before_the_close_can_be_acknowledged(cluster: LocalCluster) -> None:
    fill(cluster, 10)
    with open_stream(cluster) as stream:
        batch = next(stream)
    assert list(stream) == []
    before = stream.checkpoint
    stream.ack(batch)
    assert stream.checkpoint != before


@pytest.mark.parametrize("look", ["poll", "to_pandas"])
def test_close_ends_a_wait_on_another_thread(cluster: LocalCluster, look: str) -> None:
    stream = open_stream(cluster, start="now")
    found: list[BaseException] = []

    def wait(_stop: threading.Event) -> None:
        try:
            if look == "poll":
                stream.poll(None)
            else:
                with cluster.stall():
                    stream.to_pandas()
        except ReadCancelledError as exc:
            found.append(exc)

    with background(wait):
        stream.close()
    assert [str(exc).splitlines()[0] for exc in found] == ["the stream is closed"]


@pytest.mark.parametrize("timeout", ["5", True, float("nan"), b""])
def test_a_timeout_that_is_none(cluster: LocalCluster, timeout: Any) -> None:
    with open_stream(cluster) as stream, pytest.raises(ConfigurationError, match="timeout="):
        stream.poll(timeout)


def test_keys_have_one_type(cluster: LocalCluster) -> None:
    """A key that is not UTF-8 changes nothing for the others, in its batch and in all others."""
    odd = b"\xff\x00"
    for keys, names in (("text", ["k1", "\\xff\x00"]), ("binary", [b"k1", odd])):
        with open_stream(cluster, start="now", keys=keys) as stream:
            found = []
            for change in ([b"k1"], [b"k1", odd], [odd]):
                for key in change:
                    cluster.upsert(key, {"a": 1})
                batches = pa.Table.from_batches([], stream.schema)
                while len(batches) < len(change):
                    batch = take(stream)
                    stream.ack(batch)
                    batches = pa.concat_tables([batches, pa.Table.from_batches([batch.record_batch])])
                    assert batch.to_arrow()["_cb_key"].type == stream.schema.field("_cb_key").type
                found.append(sorted(batches["_cb_key"].to_pylist(), key=names.index))
            assert found == [names[:1], names, names[1:]]
            assert sorted(stream.to_pandas().index, key=names.index) == []


def test_a_paused_stream_can_be_closed(cluster: LocalCluster) -> None:
    stream = open_stream(cluster)
    stream.pause()
    with background(lambda _stop: list(stream)):
        stream.close()


def test_a_stream_that_is_forgotten_ends(cluster: LocalCluster) -> None:
    stream = open_stream(cluster)
    source = stream.source
    del stream
    with pytest.raises(CbframeError, match="closed"):
        source.wait(PATIENCE)


def test_ctrl_c() -> None:
    ended, out, errors = interrupted(
        """
        import cbframe, signal, threading
        # Who runs the tests in the background has them ignore it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with cbframe.LocalCluster(vbuckets=16) as cluster:
            try:
                with cbframe.stream_bucket(cluster) as stream:
                    print("begun", flush=True)
                    for batch in stream: pass
            except KeyboardInterrupt:
                print([t.name for t in threading.enumerate() if t.name.startswith("cbframe-node")])
        """
    )
    assert (ended, out) == (0, "[]\n"), errors
