"""What Python parses: sound material is changed, and understood or refused with an error of the package.

Frames of DCP are in ``tests/dcp/test_fuzz.py``, what the compiled core parses in ``cbframe/_rust/fuzz``.
"""

from __future__ import annotations

import copy
import hashlib
import json
import tracemalloc
from collections.abc import Callable
from functools import cache
from typing import Any
from unittest import mock

import pytest
from cluster.configs import nodes_ext, terse_config, verbose_config
from cluster.test_answers import SAID
from cluster.test_collections_manifest import ANSWER
from dcp.test_fuzz import Change, changed, changes
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from scan.test_checkpoint import ONE
from snapshot.test_manifest import plain
from wire.golden import FOLDER, NAMES, NAMES8
from wire.test_sasl import SHA1

from cbframe import Checkpoint, VBucketOffset
from cbframe.cluster import cluster_map, collections_manifest
from cbframe.cluster.answers import ConfigFeed
from cbframe.cluster.cluster_map import parse_bucket_config
from cbframe.cluster.connection_string import HostPort
from cbframe.dcp.handshake import time_of
from cbframe.dcp.positions import VBucketMetaData
from cbframe.errors import CbframeError
from cbframe.scan.microbatch import Offset
from cbframe.snapshot.manifest import Manifest, Rollback
from cbframe.wire import messages, sasl
from cbframe.wire.constants import Opcode
from cbframe.wire.framing import Frame

ORIGIN = HostPort("10.0.0.1", 8091)
MOST_READ = 10_000
"""Bytes of a conversation."""
MOST_BYTES = 32 << 20
"""Of memory, beside the input."""


@cache
def frames() -> tuple[Frame, ...]:
    """What real nodes sent: one of each opcode, form and length of extras in each conversation."""
    found: dict[tuple[str, int, int, int], Frame] = {}
    for name in (*NAMES, *NAMES8):
        data, at = (FOLDER / f"{name}.s2c.bin").read_bytes()[:MOST_READ], 0
        while (parsed := Frame.parse(data, at)) is not None:
            frame, at = parsed
            found.setdefault((name, frame.magic, frame.opcode, len(frame.extras)), frame)
    return tuple(found.values())


def body_of(opcode: Opcode) -> bytes:
    return next(frame.value for frame in frames() if frame.opcode == opcode and frame.value.startswith(b"{"))


def understand(frame: Frame) -> None:
    """All that is made of a frame by its opcode, and by others that have the same form."""
    parsers: dict[int, list[Callable[[], object]]] = {
        Opcode.HELLO: [lambda: messages.parse_features(frame.value)],
        Opcode.DCP_STREAM_REQ: [
            lambda: messages.parse_failover_log(frame.value),
            lambda: messages.parse_rollback_seqno(frame.value),
        ],
        Opcode.GET_ALL_VB_SEQNOS: [lambda: messages.parse_vbucket_seqnos(frame.value)],
    }
    common: list[Callable[[], object]] = [
        lambda: messages.parse_message(frame),
        lambda: messages.parse_map_revision(frame),
        lambda: time_of(frame) if frame.is_response else None,
        lambda: messages.split_key(frame.key),
        lambda: messages.split_xattrs(frame.value),
    ]
    for parse in (*common, *parsers.get(frame.opcode, [])):
        attempt(parse)


def attempt(parse: Callable[[], object]) -> object:
    """The result, which can be shown; or None for an error of the package, which can be shown, too."""
    try:
        found = parse()
    except CbframeError as error:
        shown = str(error)
        assert len(shown.encode()) < 10_000
        return None
    repr(found).encode()
    return found


def scram(challenge: bytes, answer: bytes) -> None:
    client = SHA1.client()
    with mock.patch.object(sasl, "_MAX_ITERATIONS", 5000):  # so that it takes no time
        attempt(lambda: client.final(challenge))
    attempt(lambda: client.verify(answer))


# --- JSON

GONE = object()
ODD = st.sampled_from(
    [
        *(GONE, None, True, 0, 1, -1, 1 << 16, 1 << 31, 1 << 63, 1 << 64, 10**4000, 0.5, -0.0),
        *(float("nan"), float("inf"), "", "0", "-1", "1", "01", " 1", "1_0", "\u0661", "f" * 17, "9" * 5000),
        *("\ud800", "\0", "$HOST:11210", "[::1]:11210", "h:000001" + "0" * 5000, "a" * 5000, "..", "["),
        *([], [[]], [None], [0], ["", ""], {}, {"": None}, {"a": {}}, "many"),
    ]
)
odd_places = st.lists(st.tuples(st.lists(st.integers(0, 50), max_size=5), ODD), min_size=1, max_size=3)


def odd(value: Any, steps: list[int], put: object) -> Any:
    """A JSON value with another one in some place inside; or the same, if that place is to be gone."""
    entries: list[Any] = []
    if isinstance(value, dict):
        entries = list(value)
    elif isinstance(value, list):
        entries = list(range(len(value)))
    if not steps or not entries:
        return value if put is GONE else put
    place = entries[steps[0] % len(entries)]
    if put is GONE and len(steps) == 1:
        del value[place]
    else:
        value[place] = odd(value[place], steps[1:], put)
    return value


def manifest_file(fields: Any) -> bytes:
    """A manifest of a snapshot, whose digest fits."""
    body = json.dumps(fields).removesuffix("}").encode()
    return body + b',\n"digest": "' + hashlib.sha256(body).hexdigest().encode() + b'"}\n'


def fields_of(stored: bytes) -> Any:
    fields = json.loads(stored)
    fields.pop("digest")
    return fields


WRITTEN = plain(
    rollbacks=(Rollback(3, "rollback", {0: 4}),), collections={8: "shop.orders"}, options={"scope": "shop"}
)
METADATA = VBucketMetaData(1, 5, 4, 9, (messages.FailoverEntry(7, 3),), 2, 1)
DOCUMENTS: dict[str, tuple[Callable[[], Any], Callable[[Any], object]]] = {
    "map": (terse_config, lambda found: parse_bucket_config(found, origin=ORIGIN)),
    "map of a real node": (
        lambda: json.loads(body_of(Opcode.GET_CLUSTER_CONFIG)),
        lambda found: parse_bucket_config(found, origin=ORIGIN, tls=True, network="external"),
    ),
    "verbose map": (
        lambda: [verbose_config(), {"nodesExt": nodes_ext()}],
        lambda found: parse_bucket_config(
            cluster_map.with_node_services(found[0], found[1], "h"), origin=ORIGIN, network="external"
        ),
    ),
    "collections": (
        lambda: copy.deepcopy(ANSWER),
        lambda found: collections_manifest.CollectionsManifest.parse(json.dumps(found)),
    ),
    "checkpoint": (lambda: json.loads(ONE.to_json()), lambda found: Checkpoint.from_json(json.dumps(found))),
    "metadata": (
        lambda: json.loads(METADATA.to_json()),
        lambda found: VBucketMetaData.from_json(json.dumps(found).encode()),
    ),
    "position": (lambda: VBucketOffset(3, 1, 5, ((7, 3),)).to_dict(), VBucketOffset.from_dict),
    "offset": (
        lambda: {"bucket_uuid": "u", "3": ["7", "5"], "turn": 3, "began": {}, "scope": "a"},
        Offset.from_dict,
    ),
    "snapshot": (
        lambda: fields_of(WRITTEN.to_bytes()),
        lambda found: Manifest.from_bytes(manifest_file(found), "here"),
    ),
}


def test_the_material_is_sound() -> None:
    for made, parse in DOCUMENTS.values():
        if made is not DOCUMENTS["map of a real node"][0]:
            assert parse(made()) is not None
    assert {Opcode.DCP_SYSTEM_EVENT, Opcode.HELLO, Opcode.DCP_STREAM_REQ} <= {f.opcode for f in frames()}


def check_odd_json(
    name: str,
    how: list[tuple[list[int], object]],
    run: Callable[[Callable[[], object]], object] = attempt,
) -> None:
    made, parse = DOCUMENTS[name]
    found = made()
    for steps, put in how:
        whole = (
            put if put is GONE else [[0, 1] for _ in range(70_000)] if put == "many" else copy.deepcopy(put)
        )
        found = odd(found, steps, whole)
    if name == "verbose map" and not (isinstance(found, list) and [*map(type, found)] == [dict, dict]):
        return  # who asks has seen that both are objects
    if "map" in name.split() and name != "verbose map" and not isinstance(found, dict):
        return
    run(lambda: parse(found))


def check_changed_bytes(which: int, how: list[Change], part: int) -> None:
    frame = frames()[which % len(frames())]
    parts = [frame.extras, frame.key, frame.value]
    parts[part] = changed(parts[part], how)
    understand(Frame(frame.magic, frame.opcode, 0, 0, 0, 0, *parts))
    scram(changed(SHA1.challenge, how), changed(SHA1.answer, how))
    attempt(lambda: ConfigFeed("h:8091").receive(changed(SAID, how)))
    attempt(lambda: collections_manifest.CollectionsManifest.parse(changed(json.dumps(ANSWER).encode(), how)))
    attempt(lambda: VBucketMetaData.from_json(changed(METADATA.to_json(), how)))
    attempt(lambda: Checkpoint.from_json(changed(ONE.to_json().encode(), how)))
    attempt(lambda: Manifest.from_bytes(changed(WRITTEN.to_bytes(), how), "here"))


def within_bounds(check: Callable[[], None]) -> None:
    tracemalloc.start()
    try:
        check()
        assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
    finally:
        tracemalloc.stop()


names = st.sampled_from(list(DOCUMENTS))
which = st.integers(0, 1 << 16)
briefly = settings(phases=[Phase.generate], max_examples=200, deadline=None, derandomize=True, database=None)
long = settings(max_examples=50_000, deadline=None, database=None)


@briefly
@given(name=names, how=odd_places)
def test_odd_json(name: str, how: list[tuple[list[int], object]]) -> None:
    check_odd_json(name, how)


@briefly
@given(which=which, how=changes, part=st.integers(0, 2))
def test_changed_bytes(which: int, how: list[Change], part: int) -> None:
    check_changed_bytes(which, how, part)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@long
@given(name=names, how=odd_places)
def test_odd_json_for_long(name: str, how: list[tuple[list[int], object]]) -> None:
    check_odd_json(name, how, lambda parse: within_bounds(lambda: attempt(parse)))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@long
@given(which=which, how=changes, part=st.integers(0, 2))
def test_changed_bytes_for_long(which: int, how: list[Change], part: int) -> None:
    within_bounds(lambda: check_changed_bytes(which, how, part))
