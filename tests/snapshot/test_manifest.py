"""The manifest: what is written is read again, what is broken is refused; where vbuckets can go back to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cbframe import SnapshotError
from cbframe.arrow.column_types import Columns
from cbframe.dcp.positions import VBucketOffset
from cbframe.snapshot.manifest import (
    Counts,
    Drop,
    FileEntry,
    Manifest,
    Rollback,
    RollbackPoints,
    name_of,
    version_of,
)
from cbframe.wire.messages import FailoverEntry

U64 = st.integers(0, (1 << 64) - 1)
SMALL = st.integers(0, 1 << 16)
LOGS = st.lists(st.builds(FailoverEntry, U64, U64), max_size=3).map(tuple)
POSITIONS = st.tuples(U64, U64, U64, LOGS, U64, U64).map(
    lambda numbers: VBucketOffset(*(sorted(numbers[:3])[at] for at in (1, 0, 2)), *numbers[3:])
)
PLACES = st.dictionaries(st.integers(0, 1023), U64, max_size=4)
FILES = st.builds(
    FileEntry,
    name=st.text(max_size=20),
    version=SMALL,
    rows=SMALL,
    upserts=SMALL,
    nbytes=SMALL,
    sha256=st.text("0123456789abcdef", min_size=64, max_size=64),
    vbuckets=st.tuples(SMALL, SMALL),
    seqnos=st.tuples(U64, U64),
    unique=st.booleans(),
    text_keys=st.booleans(),
    columns=st.just(0),
)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    positions = draw(st.lists(POSITIONS, max_size=5))
    return Manifest(
        version=draw(SMALL),
        parent=draw(SMALL),
        kind=draw(st.sampled_from(["create", "update", "repair", "compact"])),
        created=draw(st.datetimes(timezones=st.just(UTC))),
        bucket=draw(st.text()),
        bucket_uuid=draw(st.text()),
        cluster_uuid=draw(st.text()),
        options=draw(st.dictionaries(st.text(), st.booleans() | st.lists(st.text()), max_size=3)),
        positions=positions,
        floors=draw(st.lists(U64, min_size=len(positions), max_size=len(positions))),
        files=tuple(draw(st.lists(FILES, max_size=3))),
        columns=(Columns.of_schema(pa.schema([("a", pa.int64()), ("b", pa.struct([("c", pa.string())]))])),),
        rollbacks=tuple(draw(st.lists(st.builds(Rollback, SMALL, st.just("rollback"), PLACES), max_size=2))),
        drops=tuple(draw(st.lists(st.builds(Drop, SMALL, SMALL, PLACES), max_size=2))),
        dead=tuple(draw(st.lists(SMALL, max_size=3))),
        collections=draw(st.dictionaries(SMALL, st.text(), max_size=3)),
        counts=draw(st.builds(Counts, SMALL, SMALL, SMALL)),
    )


# Slow to make on a machine that does other things, too.
made_slowly = settings(suppress_health_check=[HealthCheck.too_slow])


@made_slowly
@given(manifests())
def test_written_and_read(manifest: Manifest) -> None:
    assert Manifest.from_bytes(manifest.to_bytes(), "here") == manifest


@made_slowly
@given(manifests(), st.data())
def test_no_byte_may_change(manifest: Manifest, data: st.DataObject) -> None:
    written = bytearray(manifest.to_bytes())
    at = data.draw(st.integers(0, len(written) - 1))
    written[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(SnapshotError, match="a damaged manifest"):
        Manifest.from_bytes(bytes(written), "here")


@made_slowly
@given(manifests(), st.data())
def test_no_end_may_miss(manifest: Manifest, data: st.DataObject) -> None:
    written = manifest.to_bytes()
    with pytest.raises(SnapshotError, match="it is cut off"):
        Manifest.from_bytes(written[: data.draw(st.integers(0, len(written) - 1))], "here")


def plain(**fields: Any) -> Manifest:
    made = Manifest(
        version=7,
        parent=6,
        kind="update",
        created=datetime(2026, 1, 2, tzinfo=UTC),
        bucket="travel",
        bucket_uuid="abc",
        positions=[VBucketOffset(1 << 63, 5, 1 << 63, ((9, 0),))],
        floors=[0],
    )
    return replace(made, **fields)


def test_the_form() -> None:
    """Large numbers are text: JSON of other languages would round them."""
    fields = json.loads(plain().to_bytes())
    assert fields["format"] == 1
    assert fields["vbuckets"] == {
        "seqno": ["9223372036854775808"],
        "vbuuid": ["9"],
        "failover_log": [[["9", "0"]]],
        "snap_start": ["5"],
        "snap_end": ["9223372036854775808"],
        "manifest_uid": ["0"],
        "purge_seqno": ["0"],
        "floor": ["0"],
    }


def test_a_seqno_outside_of_the_stored_snapshot_is_one_of_its_own() -> None:
    """So earlier releases wrote it where the snapshot was complete."""
    data = changed(plain(), lambda fields: fields["vbuckets"].update(snap_end=["6"]))
    assert Manifest.from_bytes(data, "here").positions == [VBucketOffset.at(9, 1 << 63)]


def changed(manifest: Manifest, change: Callable[[dict[str, Any]], object]) -> bytes:
    """A file with another content, and the digest that belongs to it."""
    fields = json.loads(manifest.to_bytes())
    del fields["digest"]
    change(fields)
    body = json.dumps(fields)[:-1].encode()
    return body + b',\n"digest": "' + hashlib.sha256(body).hexdigest().encode() + b'"}\n'


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda fields: fields.update(format=2), "format 2, and this cbframe reads format 1"),
        (lambda fields: fields.pop("vbuckets"), "a field is missing"),
        (lambda fields: fields["vbuckets"]["seqno"].append("1"), "a field is missing or no such thing"),
        (lambda fields: fields["vbuckets"].update(seqno=["-1"]), "vbucket 0: .* no unsigned 64-bit integer"),
        (lambda fields: fields["vbuckets"].update(failover_log=[[["9"]]]), "vbucket 0: "),
        (lambda fields: fields.update(created="soon"), "a field is missing or no such thing"),
        (lambda fields: fields.update(collections=[]), "a field is missing or no such thing"),
        (lambda fields: fields.update(parent=float("inf")), "a field is missing or no such thing"),
        (lambda fields: fields.update(columns=[{"schema": "!"}]), "a field is missing or no such thing"),
    ],
)
def test_what_is_refused(change: Callable[[dict[str, Any]], object], message: str) -> None:
    with pytest.raises(SnapshotError, match=message) as caught:
        Manifest.from_bytes(changed(plain(), change), "the/path")
    assert caught.value.path == "the/path"


def test_names() -> None:
    assert name_of(7) == "manifest/00000007.json"
    assert version_of("00000007.json") == 7
    assert version_of("123456789.json") == 123456789
    others = ("x.json", "00000007.json.damaged", ".00000007.json.12", "7", "7.json", "0000000٧.json")
    assert [version_of(name) for name in others] == [None] * len(others)


def at(*seqnos: int, version: int, **fields: Any) -> Manifest:
    positions = [VBucketOffset.at(0, seqno) for seqno in seqnos]
    return plain(**{"floors": [0] * len(seqnos), **fields}, version=version, positions=positions)


def test_rollback_points() -> None:
    versions = [at(50, version=3), at(30, version=2), at(10, version=1)]
    points = RollbackPoints(versions[0], versions)
    seqnos = (9, 10, 29, 30, 49, 50, 99)
    assert [points.position(0, seqno).seqno for seqno in seqnos] == [0, 10, 10, 30, 30, 50, 50]
    assert points.position(0, 99, before=3).seqno == 30


def test_points_of_what_was_rolled_back() -> None:
    """Version 2 went to 30, of which version 3 rolled back all after 20."""
    now = at(40, version=3, rollbacks=(Rollback(3, "rollback", {0: 20}),))
    points = RollbackPoints(now, [now, at(30, version=2), at(20, version=1)])
    assert [points.position(0, seqno).seqno for seqno in (19, 20, 35, 40)] == [0, 20, 20, 40]


def test_rollback_points_above_the_floor() -> None:
    now = at(50, version=3, floors=[30])
    points = RollbackPoints(now, [now, at(30, version=2), at(10, version=1)])
    assert [points.position(0, seqno).seqno for seqno in (29, 30, 50)] == [0, 30, 50]
