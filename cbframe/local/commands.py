"""What a client says about its DCP connection: open it, set it up, begin and end streams."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from cbframe.local.dcp import Producer, open_error, value_error
from cbframe.local.features import FrameInfo, parse_frame_info
from cbframe.local.queries import ONLY_DCP
from cbframe.wire.constants import Feature, Opcode, Status
from cbframe.wire.framing import Frame
from cbframe.wire.requests import BufferAck, DcpControl, DcpOpen, StreamRequest, parse_request

if TYPE_CHECKING:
    from cbframe.local.kv import KvConnection


def dcp_open(conn: KvConnection, frame: Frame) -> None:
    message = DcpOpen.parse(frame)
    if not conn.may_stream():
        conn.deny(frame, "DcpProducer")
        return
    if conn.producer is not None:
        context = "The connection is already opened as a DCP connection"
        conn.respond(frame, Status.EINVAL, context=context)
        return
    wrong = open_error(message, frame.key, conn.features, is_8=conn.is_8) or value_error(message, frame)
    if wrong is not None:
        conn.respond(frame, Status.EINVAL, context=wrong)
        return
    if conn.is_8 and Feature.UNORDERED_EXECUTION in conn.features:
        context = "DCP on connections with unordered execution is not supported"
        conn.respond(frame, Status.NOT_SUPPORTED, context=context)
        return
    conn.node.close_namesake(message.name)
    conn.producer = Producer(conn, conn.bucket, message, conn.node.noop_interval)
    # Errors are JSON from now on, whatever HELLO said.
    conn.features |= {Feature.JSON}
    conn.respond(frame)


def dcp(conn: KvConnection, frame: Frame) -> None:
    producer = conn.producer
    if producer is None:
        conn.respond(frame, Status.EINVAL, context=ONLY_DCP)
        return
    if frame.opcode == Opcode.DCP_NOOP:
        # "This connection doesn't support the noop API": the server disconnects.
        conn.close()
        return
    message = parse_request(frame)
    if isinstance(message, BufferAck):
        if not conn.node.dropping_acks:
            producer.acknowledge(message)
    elif isinstance(message, DcpControl):
        status, context = producer.control(message)
        conn.respond(frame, status, context=context)
    elif isinstance(message, StreamRequest):
        producer.stream_request(frame, message)
    else:
        info = parse_frame_info(frame, 0)
        producer.close_stream(frame, info.sid if isinstance(info, FrameInfo) else 0)


COMMANDS: dict[int, Callable[[KvConnection, Frame], None]] = {
    Opcode.DCP_OPEN: dcp_open,
    Opcode.DCP_CONTROL: dcp,
    Opcode.DCP_STREAM_REQ: dcp,
    Opcode.DCP_CLOSE_STREAM: dcp,
    Opcode.DCP_BUFFER_ACK: dcp,
    Opcode.DCP_NOOP: dcp,
}
