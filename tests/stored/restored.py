"""A LocalCluster that is the bucket which the stored files are of: its uuid, failover logs and changes."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cbframe import LocalCluster
from cbframe.local import items
from cbframe.wire.messages import FailoverEntry, split_key

FILES = Path(__file__).parent / "files"


@contextmanager
def restored_cluster() -> Iterator[LocalCluster]:
    state = json.loads((FILES / "bucket.json").read_text())
    with LocalCluster(nodes=2, vbuckets=len(state["vbuckets"]), bucket=state["bucket"]) as cluster:
        for scope, collection in state["collections"]:
            cluster.create_scope(scope)
            cluster.create_collection(scope, collection)
        engine = cluster._engine
        with engine.bucket.lock:
            engine.bucket.uuid = state["uuid"]
            for vbucket, stored in zip(engine.bucket.vbuckets, state["vbuckets"], strict=True):
                vbucket.flush()
                vbucket.failover = [
                    FailoverEntry(int(uuid), int(seqno)) for uuid, seqno in stored["failover_log"]
                ]
                vbucket.purge_seqno = int(stored["purge_seqno"])
                for message in map(base64.b64decode, stored["messages"]):
                    key = items.stored_key(message)
                    vbucket._append(key, message, vbucket.find(key))
            engine.bucket.rev += 1
        engine._push()
        yield cluster


def documents_of(cluster: LocalCluster, *, collections: set[int]) -> dict[tuple[int, bytes], dict[str, Any]]:
    """The documents that exist, by collection and key, from the cluster's memory: ``seqno`` and fields.

    Without records of transactions, and with a document that has expired and is not removed.
    """
    found: dict[tuple[int, bytes], dict[str, Any]] = {}
    for vbucket in cluster._engine.bucket.vbuckets:
        for message in vbucket.current(0):
            if message[1] != items.MUTATION:
                continue
            collection, key = split_key(items.key_of(message))
            if collection in collections and not key.startswith(b"_txn:"):
                value = items.value_of(message)
                fields = json.loads(value) if value.startswith(b"{") else {}
                found[collection, key] = {"seqno": items.seqno_of(message), **fields}
    return found
