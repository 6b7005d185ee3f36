"""Broken conversations: parsed, or refused with a ProtocolError; never anything else.

What a real node sent in the golden conversations is fed to a connection whose streams fit, with bytes
changed, cut out, put in or sent again, in pieces of any size.
"""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cbframe.arrow.columns import raw_schema, record_batch
from cbframe.dcp.connection import DcpConnection
from cbframe.dcp.events import Data
from cbframe.errors import CbframeError, ProtocolError
from cbframe.wire.constants import DATA_OPCODES, HEADER_LENGTH, Magic, Opcode
from cbframe.wire.frame import Frame
from cbframe.wire.requests import StreamRequest
from tests.wire.golden import NAMES, load

from .server import GRANTED, LOGIN, SETTINGS, connect, frames, good_answer

MAX_BODY = 1 << 20
SCHEMA = raw_schema()
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
        st.sampled_from(["set", "flip", "cut", "put", "again"]),
        st.integers(0, 1 << 16),
        st.integers(0, 255),
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


def feed(connection: DcpConnection, data: bytes, sizes: list[int]) -> int:
    """Feed in pieces, as a node's thread does; how many documents came."""
    buffer = bytearray()
    offset = turn = documents = 0
    while offset < len(data):
        size = sizes[turn % len(sizes)]
        buffer += data[offset : offset + size]
        offset += size
        turn += 1
        for event in connection.receive(buffer, len(buffer)):
            if isinstance(event, Data):
                documents += record_batch(event.block, SCHEMA).num_rows
        assert 0 <= connection.consumed <= len(buffer)
        buffer = buffer[connection.consumed :]
        # What waits for the rest of a frame is never more than the longest frame.
        assert len(buffer) < HEADER_LENGTH + MAX_BODY
    return documents


def running(name: str) -> tuple[DcpConnection, bytes]:
    """A connection with the streams of a conversation, and what comes on them."""
    vbuckets, sent = stream_frames(name)
    features = tuple(f for f in GRANTED if load(name, "s2c").collections or f != 0x12)
    connection = connect(features=features)
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


@pytest.mark.parametrize("name", list(filter(streamed_once, STREAMING)))
def test_the_material_is_sound(name: str) -> None:
    """Without changes all documents come: so the fuzzing starts from what is understood."""
    connection, data = running(name)
    sent = [frame for frame in stream_frames(name)[1] if frame.opcode in DATA_OPCODES]
    if any(frame.opcode == Opcode.DCP_COMMIT for frame in stream_frames(name)[1]):
        with pytest.raises(ProtocolError, match="a commit of a write that was never shown"):
            feed(connection, data, [1 << 20])
    else:
        assert feed(connection, data, [1 << 20]) == len(sent)


@settings(max_examples=1000, deadline=None, derandomize=True, database=None)
@given(name=st.sampled_from(STREAMING), how=changes, sizes=pieces)
def test_a_broken_conversation_is_parsed_or_refused(name: str, how: list[Change], sizes: list[int]) -> None:
    connection, data = running(name)
    try:
        feed(connection, changed(data, how), sizes)
    except ProtocolError:
        return  # either outcome is right; every other error fails the test


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
