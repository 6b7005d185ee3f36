"""What the cluster itself knows, and options that make failures quick."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pyarrow as pa
import pytest

from cbframe import BucketDataSourceOptions, LocalCluster, scan_bucket
from cbframe.arrow.columns import key_bytes
from cbframe.local import items
from cbframe.scan.spec import METADATA_NAMES
from cbframe.wire.constants import Datatype
from cbframe.wire.messages import split_key, vbucket_of

QUICK = BucketDataSourceOptions(
    noop_interval_secs=20,
    data_manager_sleep_init_ms=1,
    data_manager_sleep_max_ms=10,
    cluster_manager_sleep_init_ms=1,
    cluster_manager_sleep_max_ms=10,
)
"""Back-off in milliseconds: a cut costs no time."""
WIRE_METADATA = tuple(name for name in METADATA_NAMES if name not in {"scope", "collection", "xattrs"})


class Row(NamedTuple):
    """A document with all its metadata."""

    value: bytes
    vbucket: int
    seqno: int
    cas: int
    rev_seqno: int
    expiry: int
    flags: int
    datatype: int


def truth(cluster: LocalCluster, collection: int = 0) -> dict[bytes, Row]:
    """Every document of a collection, from the cluster's memory."""
    found = {}
    bucket = cluster._engine.bucket
    with bucket.lock:
        for vbucket in bucket.vbuckets:
            for seqno, (frame, live) in enumerate(zip(vbucket.history, vbucket.live, strict=True), 1):
                if not live or frame[1] != items.MUTATION:
                    continue
                cid, key = split_key(items.key_of(frame))
                if cid == collection:
                    assert key not in found
                    assert not frame[5] & Datatype.XATTR
                    found[key] = Row(
                        items.value_of(frame),
                        vbucket.id,
                        seqno,
                        items.cas_of(frame),
                        items.rev_of(frame),
                        items.expiry_of(frame),
                        items.flags_of(frame),
                        frame[5],
                    )
    return found


def keys_of(table: pa.Table) -> list[bytes]:
    return key_bytes(table["_cb_key"]).to_pylist()


def rows_of(table: pa.Table) -> dict[bytes, Row]:
    """The rows of a table with all metadata; no key may be there twice."""
    keys = keys_of(table)
    columns = [table[f"_cb_{name}"].to_pylist() for name in Row._fields]
    found = dict(zip(keys, map(Row._make, zip(*columns, strict=True)), strict=True))
    assert len(found) == len(keys), "a document is there twice"
    return found


def values_of(table: pa.Table) -> dict[bytes, bytes]:
    """Keys and values; no key may be there twice."""
    keys = keys_of(table)
    found = dict(zip(keys, table["_cb_value"].to_pylist(), strict=True))
    assert len(found) == len(keys), "a document is there twice"
    return found


def read_rows(cluster: LocalCluster, **arguments: Any) -> dict[bytes, Row]:
    arguments.setdefault("timeout", 60)
    arguments.setdefault("options", QUICK)
    arguments.setdefault("expired", "keep")  # what there is to compare with has them
    names = (*WIRE_METADATA, "scope", "collection")
    return rows_of(scan_bucket(cluster, parse=False, metadata=names, **arguments).to_arrow())


def fill(cluster: LocalCluster, count: int = 300, size: int = 60) -> None:
    cluster.bulk_load((b"key-%06d" % n, b'{"n":%d,"text":"%s"}' % (n, b"x" * size)) for n in range(count))


def keys_in(vbucket: int, vbuckets: int, count: int, name: bytes = b"k%d") -> list[bytes]:
    """So many keys of a vbucket."""
    keys = (name % n for n in itertools.count())
    return list(itertools.islice((key for key in keys if vbucket_of(key, vbuckets) == vbucket), count))


def create(cluster: LocalCluster, scope: str, *collections: str) -> None:
    cluster.create_scope(scope)
    for name in collections:
        cluster.create_collection(scope, name)


@contextmanager
def background(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """Run `work` on a thread, which has to end soon after its event is set; its error is raised."""
    stop = threading.Event()
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work(stop)
        except BaseException as exc:  # noqa: BLE001 - raised on the test's thread
            errors.append(exc)

    thread = threading.Thread(target=run, name="test-background")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    if errors:
        raise errors[0]


PROMPT = 3
"""Seconds: a fraction of one on an idle machine; what is interrupted would last longer."""


def interrupted(script: str) -> tuple[int, str, str]:
    """Send SIGINT to a program that has printed "begun"; its status, what it printed then, and its errors."""
    command = [sys.executable, "-c", textwrap.dedent(script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "begun\n"
            began = time.monotonic()
            process.send_signal(signal.SIGINT)
            out, errors = process.communicate(timeout=20)
            assert time.monotonic() - began < PROMPT
        finally:
            process.kill()  # where it has not ended, nobody would wait for it
    return process.returncode, out, errors


class Sent:
    """Hooks into a node: counts what its DCP connections send, and acts at a given count.

    Actions run on the node's own loop, so they happen in the middle of the read and not beside it.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cluster: LocalCluster, node: int = 0) -> None:
        self.node = cluster._engine.nodes[node]
        self.total = 0
        self.cuts = 0
        self._actions: list[tuple[int, Callable[[], object]]] = []
        self._cut_every: Iterator[int] = iter(())
        original = self.node.count_sent

        def count_sent(nbytes: int) -> None:
            armed = self.node.cut_after is not None
            original(nbytes)
            self.total += nbytes
            if armed and self.node.cut_after is None:
                self.cuts += 1
                self.node.cut_after = next(self._cut_every, None)
            while self._actions and self.total >= self._actions[0][0]:
                self.node.loop.post(self._actions.pop(0)[1])

        monkeypatch.setattr(self.node, "count_sent", count_sent)

    def at(self, total: int, action: Callable[[], object]) -> None:
        """Run `action` once that many bytes are sent; in ascending order."""
        self._actions.append((total, action))

    def cut(self, after: Iterator[int]) -> None:
        """Cut again and again, each time after that many more bytes."""
        self._cut_every = after
        self.node.cut_after = next(after, None)

    @property
    def pending(self) -> int:
        """Actions that did not happen."""
        return len(self._actions)
