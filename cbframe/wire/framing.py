"""One frame: 24 bytes of header, then framing extras, extras, key and value.

One Python object a frame, for control messages and requests; data messages become columns
(:mod:`cbframe.wire.blocks`).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from cbframe.errors import ProtocolError
from cbframe.wire.constants import HEADER_LENGTH, MAX_BODY_LENGTH, Magic

ReadableBuffer: TypeAlias = bytes | bytearray | memoryview
_HEADER = struct.Struct(">BBHBBHIIQ")
_STREAM_ID = struct.Struct(">BH")
_STREAM_ID_INFO = 0x22
"""Kind 2 of framing extras, 2 bytes long."""
_MAGICS = frozenset(int(magic) for magic in Magic)
_FLEX = (Magic.FLEX_REQUEST, Magic.FLEX_RESPONSE)
_RESPONSES = (Magic.RESPONSE, Magic.FLEX_RESPONSE, Magic.SERVER_RESPONSE)


class Header(NamedTuple):
    """The 24 bytes before every body. ``vbucket`` holds the status in responses."""

    magic: int
    opcode: int
    framing_length: int
    key_length: int
    extras_length: int
    datatype: int
    vbucket: int
    body_length: int
    opaque: int
    cas: int


def is_magic(byte: int) -> bool:
    """Whether a frame may begin with this byte."""
    return byte in _MAGICS


def bad_magic(byte: int, offset: int) -> ProtocolError:
    """What is wrong where a frame begins with this byte."""
    return ProtocolError(
        f"not the Couchbase protocol: 0x{byte:02x} is no magic byte",
        offset=offset,
        hint="check that the port is the data service (11210, or 11207 with TLS)",
    )


def parse_header(buffer: ReadableBuffer, offset: int = 0, *, max_body: int = MAX_BODY_LENGTH) -> Header:
    """Read the header at `offset`; the buffer must hold 24 bytes from there."""
    magic, opcode, key, extras, datatype, vbucket, body, opaque, cas = _HEADER.unpack_from(buffer, offset)
    if magic not in _MAGICS:
        raise bad_magic(magic, offset)
    if body > max_body:
        raise ProtocolError(
            f"a body of {body} bytes is over the limit of {max_body}", opcode=opcode, offset=offset
        )
    framing = 0
    if magic in _FLEX:
        framing, key = key >> 8, key & 0xFF
    if framing + extras + key > body:
        raise ProtocolError(
            f"framing extras, extras and key need {framing + extras + key} bytes, the body has {body}",
            opcode=opcode,
            offset=offset,
        )
    return Header(magic, opcode, framing, key, extras, datatype, vbucket, body, opaque, cas)


@dataclass(slots=True)
class Frame:
    """A whole message, in either direction.

    Never changed once it is made, and not frozen: that would take three times as long, for every message.
    The ``repr`` leaves key and value out: they may be a document's, or a password.
    """

    magic: int
    opcode: int
    vbucket: int = 0
    opaque: int = 0
    cas: int = 0
    datatype: int = 0
    extras: bytes = b""
    key: bytes = b""
    value: bytes = b""
    framing_extras: bytes = b""

    @property
    def status(self) -> int:
        """The result; only responses have one."""
        if self.magic not in _RESPONSES:
            raise ValueError(f"a frame with magic 0x{self.magic:02x} has no status")
        return self.vbucket

    @property
    def is_response(self) -> bool:
        return self.magic in _RESPONSES

    @property
    def sid(self) -> int | None:
        """Number of the DCP stream that the framing extras name; None if they name none."""
        framing = self.framing_extras
        if len(framing) != _STREAM_ID.size or framing[0] != _STREAM_ID_INFO:
            return None
        return int(_STREAM_ID.unpack(framing)[1])

    def __len__(self) -> int:
        """Bytes on the wire."""
        return HEADER_LENGTH + len(self.framing_extras) + len(self.extras) + len(self.key) + len(self.value)

    def __repr__(self) -> str:
        return (
            f"Frame(magic=0x{self.magic:02x}, opcode=0x{self.opcode:02x}, vbucket={self.vbucket}, "
            f"opaque=0x{self.opaque:x}, {len(self)} bytes)"
        )

    def encode(self) -> bytes:
        key_field = len(self.key)
        if self.magic in _FLEX:
            if len(self.key) > 0xFF or len(self.framing_extras) > 0xFF:
                raise ValueError("flexible frames hold at most 255 bytes of key and of framing extras")
            key_field |= len(self.framing_extras) << 8
        elif self.framing_extras:
            raise ValueError("framing extras need a flexible magic (0x08 or 0x18)")
        return b"".join(
            (
                _HEADER.pack(
                    self.magic,
                    self.opcode,
                    key_field,
                    len(self.extras),
                    self.datatype,
                    self.vbucket,
                    len(self) - HEADER_LENGTH,
                    self.opaque,
                    self.cas,
                ),
                self.framing_extras,
                self.extras,
                self.key,
                self.value,
            )
        )

    @classmethod
    def parse(
        cls, buffer: ReadableBuffer, offset: int = 0, *, max_body: int = MAX_BODY_LENGTH
    ) -> tuple[Frame, int] | None:
        """Read the frame at `offset`."""
        if len(buffer) - offset < HEADER_LENGTH:
            if len(buffer) > offset and buffer[offset] not in _MAGICS:
                raise bad_magic(buffer[offset], offset)
            return None
        header = parse_header(buffer, offset, max_body=max_body)
        end = offset + HEADER_LENGTH + header.body_length
        if len(buffer) < end:
            return None
        body = bytes(buffer[offset + HEADER_LENGTH : end])
        magic, opcode, framing, key_length, extras_length, datatype, vbucket, _, opaque, cas = header
        key = framing + extras_length
        value = key + key_length
        parts = body[framing:key], body[key:value], body[value:], body[:framing]
        return cls(magic, opcode, vbucket, opaque, cas, datatype, *parts), end


def request(
    opcode: int,
    *,
    vbucket: int = 0,
    opaque: int = 0,
    cas: int = 0,
    datatype: int = 0,
    extras: bytes = b"",
    key: bytes = b"",
    value: bytes = b"",
    sid: int | None = None,
) -> Frame:
    """A request in the classic framing; in the flexible one if it names a DCP stream by its number."""
    magic, framing = Magic.REQUEST, b""
    if sid is not None:
        magic, framing = Magic.FLEX_REQUEST, stream_id_framing(sid)
    return Frame(magic, opcode, vbucket, opaque, cas, datatype, extras, key, value, framing)


def stream_id_framing(sid: int) -> bytes:
    """The framing extras of every message of a DCP stream that has a number."""
    return _STREAM_ID.pack(_STREAM_ID_INFO, sid)


def response(
    opcode: int,
    *,
    status: int = 0,
    opaque: int = 0,
    cas: int = 0,
    datatype: int = 0,
    extras: bytes = b"",
    key: bytes = b"",
    value: bytes = b"",
) -> Frame:
    """A response in the classic framing."""
    return Frame(Magic.RESPONSE, opcode, status, opaque, cas, datatype, extras, key, value)


def exact_extras(frame: Frame, *lengths: int) -> bytes:
    """The extras of a message, which has them in no other lengths."""
    if len(frame.extras) not in lengths:
        raise ProtocolError(
            f"extras of {len(frame.extras)} bytes, expected {' or '.join(map(str, lengths))}",
            opcode=frame.opcode,
            vbucket=frame.vbucket,
        )
    return frame.extras
