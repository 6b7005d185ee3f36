"""Conversations of any kind, with both cores, in pieces of any size: the same events, or the same error.

What a real node sent in the golden conversations is fed to a connection whose streams fit, with bytes
changed, cut out, put in or sent again. Others are made: of several vbuckets, interleaved.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple
from functools import cache
from itertools import cycle
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cbframe.dcp.connection import Data, DcpConnection, MapPushed, Nooped
from cbframe.errors import CbframeError, ProtocolError
from cbframe.wire.constants import DATA_OPCODES, HEADER_LENGTH, Magic, Opcode
from cbframe.wire.framing import Frame, request, response
from cbframe.wire.messages import (
    DcpNoop,
    OsoSnapshot,
    SeqnoAdvanced,
    SnapshotMarker,
    StreamEnd,
    StreamRequest,
    SystemEvent,
    encode_failover_log,
)
from tests.wire.golden import NAMES, load
from tests.wire.pipeline import CORES, messages

from .server import GRANTED, LOG, LOGIN, SETTINGS, connect, deletion, frames, good_answer, mutation

MAX_BODY = 1 << 20
PUSHED = frozenset(range(0x50, 0x66))
"""Opcodes of DCP."""


@cache
def stream_frames(name: str) -> tuple[tuple[int, ...], tuple[Frame, ...]]:
    """The vbuckets of a conversation's streams, and what the node sent on them."""
    data = load(name, "s2c").sound
    sent = [frame for frame in frames(data) if frame.opcode in PUSHED and frame.magic == Magic.REQUEST]
    vbuckets = tuple(sorted({frame.vbucket for frame in sent if frame.opcode != Opcode.DCP_NOOP}))
    return vbuckets, tuple(sent)


STREAMING = tuple(name for name in NAMES if stream_frames(name)[1])


def streamed_once(name: str) -> bool:
    """Whether no vbucket was asked for twice, as here it is one stream; seqnos may go back then."""
    asked = [f.vbucket for f in frames(load(name, "c2s").sound) if f.opcode == Opcode.DCP_STREAM_REQ]
    return len(asked) == len(set(asked))


Change = tuple[str, int, int]
changes: st.SearchStrategy[list[Change]] = st.lists(
    st.tuples(
        st.sampled_from(["set", "flip", "cut", "put", "again"]), st.integers(0, 1 << 16), st.integers(0, 255)
    ),
    max_size=6,
)
pieces = st.lists(st.integers(1, 400), min_size=1, max_size=5)


def changed(data: bytes, how: list[Change]) -> bytes:
    octets = bytearray(data)
    for kind, where, value in how:
        at = where % (len(octets) + 1)
        if kind == "set":
            octets[at : at + 1] = bytes([value])
        elif kind == "flip" and at < len(octets):
            octets[at] ^= 1 << value % 8
        elif kind == "cut":
            del octets[at : at + value]
        elif kind == "put":
            octets[at:at] = bytes([value]) * (1 + value % 30)
        elif kind == "again":
            octets[at:at] = octets[at : at + 4 * value]
    return bytes(octets)


def running(name: str, core: str = "python") -> tuple[DcpConnection, bytes]:
    """A connection with the streams of a conversation, and what comes on them."""
    vbuckets, sent = stream_frames(name)
    features = tuple(f for f in GRANTED if load(name, "s2c").collections or f != 0x12)
    connection = connection_of(core, features)
    opaques = {}
    for vbucket in vbuckets:
        opaques[vbucket] = connection.request_stream(StreamRequest(vbucket)).opaque
        (asked,) = frames(connection.data_to_send())
        answer = good_answer(asked).encode()
        assert list(connection.receive(bytearray(answer), len(answer)))
    data = bytearray()
    for frame in sent:
        encoded = bytearray(frame.encode())
        encoded[12:16] = opaques.get(frame.vbucket, frame.opaque).to_bytes(4, "big")
        data += encoded
    return connection, bytes(data)


def feed(connection: DcpConnection, data: bytes, sizes: list[int]) -> None:
    """Feed in pieces, as a node's thread does."""
    buffer = bytearray()
    for piece in in_pieces(data, sizes):
        buffer += piece
        list(connection.receive(buffer, len(buffer)))
        del buffer[: connection.consumed]


def connection_of(core: str, features: tuple[int, ...] = GRANTED) -> DcpConnection:
    with patch("cbframe.dcp.connection.frame_decoder", CORES[core]):
        return connect(features=features)


Told = list[tuple[object, ...]]


Refusal = tuple[str, int | None, int | None, int | None]
"""What is wrong with a message; its opcode, vbucket and place."""


def told(connection: DcpConnection, pieces: Iterable[bytes | int]) -> tuple[Told, Refusal | None]:
    """What a connection makes of bytes, event by event and document by document; and its error.

    Between bytes are vbuckets whose streams are to be closed.
    """
    found: Told = []
    buffer = bytearray()
    before = 0
    try:
        for piece in pieces:
            if isinstance(piece, int):
                connection.close_stream(piece)
                continue
            buffer += piece
            for event in connection.receive(buffer, len(buffer)):
                if isinstance(event, Data):
                    found += [("fresh", stream.vbucket, stream.snap_end) for stream in event.fresh]
                    found += [("document", *message) for message in map(astuple, messages(event.block))]
                    connection.acknowledge(event.nbytes)
                    places = {vbucket: connection.streams.of_vbucket(vbucket) for vbucket in range(4)}
                    found += [("at", vb, stream.seqno) for vb, stream in places.items() if stream is not None]
                elif isinstance(event, Nooped | MapPushed):
                    found.append((type(event), None))
                else:
                    stream = event.stream  # type: ignore[union-attr]
                    snapshot = stream.snap_start, stream.snap_end, stream.unordered
                    found.append((type(event), stream.vbucket, stream.seqno, stream.state, *snapshot))
            # What waits for the rest of a frame is never more than the longest frame.
            before += connection.consumed
            del buffer[: connection.consumed]
            assert len(buffer) < HEADER_LENGTH + MAX_BODY
    except ProtocolError as exc:
        offset = None if exc.offset is None else exc.offset + before
        words = exc.message.partition(" at offset ")[0]
        return found, (words, exc.opcode, exc.vbucket, offset)
    return found, None


def of_vbuckets(found: Told) -> dict[object, Told]:
    """By vbucket: how they are interleaved depends on where the bytes are cut, and so does when one looks."""
    return {vb: [one for one in found if one[1] == vb and one[0] != "at"] for vb in (None, *range(4))}


def in_pieces(data: bytes, sizes: Iterable[int]) -> Iterable[bytes]:
    offset = 0
    for size in cycle(sizes):
        if offset >= len(data):
            return
        yield data[offset : offset + size]
        offset += size


@pytest.mark.parametrize("name", list(filter(streamed_once, STREAMING)))
def test_the_material_is_sound(name: str) -> None:
    """Without changes all documents come: so the fuzzing starts from what is understood."""
    for core in CORES:
        connection, data = running(name, core)
        sent = [frame for frame in stream_frames(name)[1] if frame.opcode in DATA_OPCODES]
        found, error = told(connection, [data])
        if any(frame.opcode == Opcode.DCP_COMMIT for frame in stream_frames(name)[1]):
            assert error is not None
            assert error[0].startswith("a commit of a write that was never shown")
        else:
            assert [one[0] for one in found].count("document") == len(sent)
            assert error is None


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(name=st.sampled_from(STREAMING), how=changes, sizes=pieces)
def test_a_broken_conversation_is_parsed_or_refused(name: str, how: list[Change], sizes: list[int]) -> None:
    outcomes = []
    for core in CORES:
        connection, data = running(name, core)
        outcomes.append((told(connection, in_pieces(changed(data, how), sizes)), connection.stats))
    assert all(other == outcomes[0] for other in outcomes)


# --- made conversations

VBUCKETS = 4
Step = tuple[int, str, int]
OPERATIONS = {
    "document": 12,
    "marker": 5,
    "marker 2.2": 2,
    "advanced": 2,
    "event": 1,
    "oso": 1,
    "ordered": 2,
    "end": 1,
    "prepare": 1,
    "noop": 1,
    "close": 1,
    "closed": 1,
    "granted": 1,
    "stray": 1,
    "any seqno": 1,
    "crossed": 1,
    "damage": 1,
}
steps = st.lists(
    st.tuples(
        st.integers(0, VBUCKETS - 1),
        st.sampled_from([name for name, share in OPERATIONS.items() for _ in range(share)]),
        st.integers(0, 20),
    ),
    max_size=40,
)
firsts_of_each = st.lists(
    st.sampled_from(["marker", "marker", "marker", "oso", "nothing"]), min_size=4, max_size=4
)


def aside(what: str, n: int, vb: int, opaques: list[int], following: int) -> bytes:
    """What moves no vbucket on, or should not come at all; `following` is the vbucket's next seqno."""
    opaque = opaques[vb]
    damaged = bytearray(mutation(vb, opaque, following))
    damaged[(0, 2, 4, 5, 7, 11, 15, 24, 55, 56)[n % 10]] ^= 1 << n % 8
    log = encode_failover_log(LOG) if n != 3 else b""
    return {
        "end": StreamEnd(vb, n % 3).frame(opaque).encode(),
        "prepare": request(0x60, vbucket=vb, opaque=opaque, extras=bytes(31), key=b"\0k").encode(),
        "noop": DcpNoop(n).frame().encode(),
        "closed": response(Opcode.DCP_CLOSE_STREAM, opaque=opaque).encode(),
        "granted": response(Opcode.DCP_STREAM_REQ, opaque=opaque, value=log).encode(),
        "stray": mutation(vb, 7 + n, following),
        "any seqno": mutation(vb, opaque, n),
        "crossed": mutation(vb, opaques[n % VBUCKETS], following),
        "damage": bytes(damaged),
        "nothing": b"",
    }[what]


def conversation(opaques: list[int], firsts: list[str], script: list[Step]) -> list[bytes | int]:
    """What a node says, more or less; between the bytes are vbuckets that the client closes."""
    seqnos, ends = [0] * VBUCKETS, [0] * VBUCKETS
    said: list[bytes | int] = [b""]
    for vb, what, n in [*((vb, what, 9) for vb, what in enumerate(firsts)), *script]:
        opaque = opaques[vb]
        frame = b""
        match what:
            case "document":
                if seqnos[vb] >= ends[vb]:
                    ends[vb] = seqnos[vb] + 1 + n
                    frame = SnapshotMarker(vb, seqnos[vb], ends[vb], 1).frame(opaque).encode()
                seqnos[vb] += 1
                make = deletion if n % 5 == 0 else mutation
                frame += make(vb, opaque, seqnos[vb], b"k%d" % n)
            case "marker" | "marker 2.2":
                version = "v1" if what == "marker" else "v2.2"
                ends[vb] = seqnos[vb] + n
                flags = 0x18 if n % 2 else 1
                frame = SnapshotMarker(vb, seqnos[vb], ends[vb], flags, version).frame(opaque).encode()
            case "advanced":
                seqnos[vb] += n
                frame = SeqnoAdvanced(vb, seqnos[vb]).frame(opaque).encode()
            case "event":
                seqnos[vb] += 1
                event = SystemEvent(vb, seqnos[vb], 1, 0, "", bytes(16))
                frame = event.frame(opaque).encode()
            case "oso" | "ordered":
                ends[vb] = 1 << 40 if what == "oso" else seqnos[vb]
                frame = OsoSnapshot(vb, 1 if what == "oso" else 2).frame(opaque).encode()
            case "close":
                said += [vb, b""]
            case _:
                frame = aside(what, n, vb, opaques, seqnos[vb] + 1)
        said[-1] += frame  # type: ignore[operator]
    return said


def outcome(
    core: str, firsts: list[str], script: list[Step], late: int, sizes: list[int] | None
) -> tuple[Told, Refusal | None]:
    """What a connection makes of a conversation; `late` is the first vbucket that is granted within it."""
    connection = connection_of(core)
    opaques = [connection.request_stream(StreamRequest(vbucket)).opaque for vbucket in range(VBUCKETS)]
    answers = [good_answer(asked).encode() for asked in frames(connection.data_to_send())]
    said = [b"".join(answers[:late]), *conversation(opaques, firsts, script)]
    said.insert(1, b"".join(answers[late:]))
    cut: list[bytes | int] = []
    for part in said:
        cut += [part] if sizes is None or isinstance(part, int) else in_pieces(part, sizes)
    return told(connection, cut)


def check(firsts: list[str], script: list[Step], late: int, sizes: list[int]) -> None:
    whole = {core: outcome(core, firsts, script, late, None) for core in CORES}
    cut = {core: outcome(core, firsts, script, late, sizes) for core in CORES}
    for found in (whole, cut):
        assert all(other == found["python"] for other in found.values())
    (events, error), (others, other_error) = whole["python"], cut["python"]
    vbuckets = [each and each[2] for each in (error, other_error)]
    if None in vbuckets or vbuckets[0] == vbuckets[1]:
        assert error == other_error
    # Where messages of two vbuckets are wrong, either comes first: an end waits for documents before it.
    by_vbucket, by_vbucket_cut = of_vbuckets(events), of_vbuckets(others)
    for vbucket, one in by_vbucket.items():
        other = by_vbucket_cut[vbucket]
        # A message that is refused where it is handled comes before the documents around it.
        common = max(len(one), len(other)) if error is None else min(len(one), len(other))
        assert one[:common] == other[:common]


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(firsts=firsts_of_each, script=steps, late=st.integers(0, VBUCKETS), sizes=pieces)
def test_conversations_however_they_are_cut(
    firsts: list[str], script: list[Step], late: int, sizes: list[int]
) -> None:
    check(firsts, script, late, sizes)


@pytest.mark.parametrize("answer", ["closed", "granted"])
@pytest.mark.parametrize("vb", [0, 1])
def test_an_answer_after_an_end_comes_after_it(answer: str, vb: int) -> None:
    """Although an end that follows documents waits for these, and an answer does not."""
    check(["marker"] * 4, [(0, "document", 1), (0, "end", 0), (vb, answer, 0), (1, "document", 1)], 4, [5])


@pytest.mark.slow
@pytest.mark.timeout(3600)
@settings(max_examples=5000, deadline=None)
@given(firsts=firsts_of_each, script=steps, late=st.integers(0, VBUCKETS), sizes=pieces)
def test_many_conversations(firsts: list[str], script: list[Step], late: int, sizes: list[int]) -> None:
    check(firsts, script, late, sizes)


@settings(max_examples=500, deadline=None, derandomize=True, database=None)
@given(step=st.integers(0, 16), how=changes, sizes=pieces)
def test_a_broken_handshake_is_parsed_or_refused(step: int, how: list[Change], sizes: list[int]) -> None:
    connection = DcpConnection(LOGIN, SETTINGS)
    places = iter(range(1000))
    while connection.session is None and (asked := frames(connection.data_to_send())):
        # A change may leave out what would lead on: the node's thread gives up after a while.
        for frame in asked:
            answer = good_answer(frame).encode()
            try:
                feed(connection, changed(answer, how) if next(places) == step else answer, sizes)
            except CbframeError:
                return  # any of our own errors is an answer; every other one fails the test
