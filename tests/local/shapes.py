"""What is compared of a message: everything but what a server makes up."""

from __future__ import annotations

import contextlib
import json
import struct
from typing import Any

from cbframe.errors import ProtocolError
from cbframe.local.items import inflate
from cbframe.wire.constants import Datatype, Magic, Opcode, Status
from cbframe.wire.framing import Frame
from cbframe.wire.messages import body_offset, parse_failover_log

ITEMS = (Opcode.DCP_MUTATION, Opcode.DCP_DELETION, Opcode.DCP_EXPIRATION)


def marker_of(frame: Frame) -> tuple[int, int, int]:
    start, end, flags = struct.unpack_from(">QQI", frame.extras if len(frame.extras) == 20 else frame.value)
    return start, end, flags


def seqno_of(frame: Frame) -> int:
    return int.from_bytes(frame.extras[:8], "big")


def shape(frame: Frame) -> tuple[Any, ...]:
    """What is compared of a message: everything but what a server makes up."""
    head: tuple[Any, ...] = Magic(frame.magic).name, frame.opcode, len(frame.extras), frame.datatype
    if frame.is_response:
        return *head, frame.status, _body(frame)
    head += (frame.framing_extras,)
    if frame.opcode in ITEMS or frame.opcode in {Opcode.DCP_PREPARE, Opcode.DCP_SEQNO_ADVANCED}:
        # Without a CAS nothing of the metadata is made up at the time.
        metadata = b"" if frame.cas else frame.extras
        return *head, frame.vbucket, frame.key, seqno_of(frame), _document(frame), metadata
    if frame.opcode == Opcode.DCP_SYSTEM_EVENT:
        # Without the manifest uid at the beginning of the value, and the bytes of version 2.
        version = frame.extras[12]
        return *head, frame.key, frame.extras, frame.value[8:] if version < 2 else len(frame.value)
    if frame.opcode == Opcode.DCP_SNAPSHOT_MARKER:
        # Version 2.0 names writes that were prepared and are not in the recording.
        v2_2 = frame.extras == b"\2"
        return *head, marker_of(frame), frame.value if v2_2 else len(frame.value)
    if frame.magic == Magic.SERVER_REQUEST:
        return *head, frame.key, _body(frame)
    return *head, frame.vbucket, frame.key, frame.extras, frame.value


def _document(frame: Frame) -> tuple[int, bytes]:
    """Attributes and document, inflated; of a document that the recording does not have, nothing."""
    value = frame.value
    if frame.datatype & Datatype.SNAPPY and value:
        # Of a packed document whose body is left out the attributes come as they are.
        with contextlib.suppress(ProtocolError):
            value = inflate(value, 1 << 20)
    return (body_offset(value) if frame.datatype & Datatype.XATTR and value else 0), value


def _body(frame: Frame) -> Any:
    value = frame.value
    if frame.opcode in {Opcode.DCP_STREAM_REQ, Opcode.DCP_GET_FAILOVER_LOG, Opcode.GET_FAILOVER_LOG}:
        if not frame.status:
            return list(parse_failover_log(value))
        if len(value) == 8:
            return value
    if frame.opcode in {Opcode.SASL_AUTH, Opcode.SASL_STEP} and frame.status in {0, Status.AUTH_CONTINUE}:
        return [part.partition(b"=")[0] for part in value.split(b",")]
    if frame.opcode == Opcode.VERSION:
        return bool(value)
    if value[:1] == b"{":
        content = json.loads(value)
        error = content.get("error", {})
        return sorted(content), error.get("context"), sorted(error)
    return frame.key if frame.opcode == Opcode.STAT else len(value)
