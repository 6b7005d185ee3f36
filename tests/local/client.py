"""A DCP client of plain sockets and :mod:`cbframe.wire`, one frame at a time: slow and obvious."""

from __future__ import annotations

import itertools
import json
import socket
import struct
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

import requests

from cbframe.local import LocalCluster
from cbframe.wire.constants import Feature, Opcode, OpenFlag, Status
from cbframe.wire.framing import Frame, request
from cbframe.wire.messages import (
    BufferAck,
    DcpControl,
    DcpOpen,
    Hello,
    Plain,
    SaslAuth,
    SelectBucket,
    SnapshotMarker,
    StreamEnd,
    StreamRequest,
    noop_reply,
    parse_message,
)
from cbframe.wire.sasl import ScramClient, plain_payload

LEGACY = (Feature.XERROR, Feature.JSON, Feature.XATTR, Feature.MUTATION_SEQNO)
COLLECTIONS = (*LEGACY, Feature.COLLECTIONS)
DATA = (Opcode.DCP_MUTATION, Opcode.DCP_DELETION, Opcode.DCP_EXPIRATION)
TIMEOUT = 20.0


class Client:
    """One connection to a node of a local cluster."""

    def __init__(self, cluster: LocalCluster, node: int = 0) -> None:
        host, port = cluster.kv_addresses[node].split(":")
        self.cluster = cluster
        self.sock = socket.create_connection((host, int(port)), TIMEOUT)
        self._buffer = b""
        self._opaques = itertools.count(1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.sock.close()

    # -- frames

    def send(self, message: Any) -> None:
        frame = message if isinstance(message, Frame) else message.frame(next(self._opaques))
        self.sock.sendall(frame.encode())

    def frame(self) -> Frame | None:
        """The next frame, NOOPs included; None when the server has closed."""
        while (parsed := Frame.parse(self._buffer)) is None:
            try:
                data = self.sock.recv(1 << 16)
            except ConnectionResetError:
                return None
            if not data:
                return None
            self._buffer += data
        frame, end = parsed
        self._buffer = self._buffer[end:]
        return frame

    def receive(self) -> Frame | None:
        """The next frame except NOOPs, which are answered; None when the server has closed."""
        while (frame := self.frame()) is not None:
            if frame.opcode != Opcode.DCP_NOOP or frame.is_response:
                return frame
            self.sock.sendall(noop_reply(frame).encode())
        return None

    def next(self) -> Frame:
        frame = self.receive()
        assert frame is not None, "the server closed the connection"
        return frame

    def take(self, count: int) -> list[Frame]:
        return [self.next() for _ in range(count)]

    def call(self, message: Any) -> Frame:
        self.send(message)
        return self.next()

    def operate(self, opcode: int, *, expect: int = Status.SUCCESS, **fields: Any) -> Frame:
        answer = self.call(request(opcode, opaque=next(self._opaques), **fields))
        assert answer.status == expect, Status.describe(answer.status)
        return answer

    def closed_by_server(self) -> bool:
        return self.receive() is None

    def silent(self) -> bool:
        """Whether nothing comes for a moment."""
        self.sock.settimeout(0.05)
        try:
            self.receive()
        except TimeoutError:
            return True
        finally:
            self.sock.settimeout(TIMEOUT)
        return False

    # -- bootstrap

    def login(
        self,
        features: Iterable[int] = COLLECTIONS,
        *,
        select: bool = True,
        auth: tuple[str, str] | None = None,
    ) -> Client:
        assert self.call(Hello("test", tuple(features))).status == 0
        assert self.plain(*(auth or (self.cluster.username, self.cluster.password))) == 0
        if select:
            assert self.call(SelectBucket(self.cluster.bucket)).status == 0
        return self

    def plain(self, username: str, password: str) -> int:
        return self.call(SaslAuth("PLAIN", plain_payload(username, password))).status

    def scram(self, mechanism: str, username: str, password: str) -> int:
        client = ScramClient(mechanism, username, password, lambda: "fixed-nonce")
        challenge = self.call(SaslAuth(mechanism, client.first()))
        assert challenge.status == Status.AUTH_CONTINUE
        final = client.final(challenge.value)
        answer = self.call(SaslAuth(mechanism, final, Opcode.SASL_STEP))
        if answer.status == 0:
            client.verify(answer.value)
        return answer.status

    def open(
        self, flags: int = OpenFlag.PRODUCER, *, name: str = "test", noop: bool = True, **controls: str
    ) -> Client:
        assert self.call(DcpOpen(name, flags | OpenFlag.PRODUCER)).status == 0
        if noop:
            controls = {"enable_noop": "true", **controls}
        for key, value in controls.items():
            assert self.call(DcpControl(key, value)).status == 0, key
        return self

    def ack(self, nbytes: int) -> None:
        self.send(BufferAck(nbytes))

    # -- streams

    def stream(self, vbucket: int, start: int = 0, **fields: Any) -> Frame:
        fields.setdefault("snap_start", start)
        fields.setdefault("snap_end", max(start, fields["snap_start"]))
        answer = self.call(StreamRequest(vbucket, start, **fields))
        assert answer.opcode == Opcode.DCP_STREAM_REQ
        return answer

    def raw(self, count: int) -> bytes:
        """So many bytes as they come."""
        found = self._buffer
        while len(found) < count:
            data = self.sock.recv(1 << 16)
            assert data, "the server closed the connection"
            found += data
        return found[:count]

    def until_end(self) -> list[Frame]:
        """Everything up to and with the next STREAM_END."""
        frames: list[Frame] = []
        while not frames or frames[-1].opcode != Opcode.DCP_STREAM_END:
            frames.append(self.next())
        return frames

    def read(self, vbucket: int, end: int, start: int = 0, **fields: Any) -> list[Frame]:
        answer = self.stream(vbucket, start, end=end, **fields)
        assert answer.status == 0, Status.describe(answer.status)
        return self.until_end()


def rest(
    cluster: LocalCluster,
    path: str,
    method: str = "GET",
    *,
    auth: tuple[str, str] | None = None,
    node: int = 0,
    stream: bool = False,
) -> requests.Response:
    """What the cluster manager of a node answers."""
    url = f"http://127.0.0.1:{cluster.ports(node)['mgmt']}{path}"
    login = auth or (cluster.username, cluster.password)
    return requests.request(method, url, auth=login, timeout=TIMEOUT, stream=stream)


def seqno(frame: Frame) -> int:
    return int(struct.unpack_from(">Q", frame.extras)[0])


def seqnos(frames: Iterable[Frame]) -> list[int]:
    return [seqno(frame) for frame in frames if frame.opcode in DATA]


def names(frames: Iterable[Frame]) -> list[str]:
    """What the messages are."""
    return [Opcode(frame.opcode).name.removeprefix("DCP_") for frame in frames]


def snapshot(frame: Frame) -> SnapshotMarker:
    message = parse_message(frame)
    assert isinstance(message, SnapshotMarker)
    return message


def marker(frame: Frame) -> tuple[int, int, int]:
    message = snapshot(frame)
    return message.start, message.end, message.flags


def context(answer: Frame) -> str:
    """What a refusal says."""
    return str(json.loads(answer.value)["error"]["context"])


def reason(frame: Frame) -> int:
    message = parse_message(frame)
    assert isinstance(message, StreamEnd)
    return message.reason


def vbuuid(cluster: LocalCluster, vbucket: int = 0) -> int:
    return cluster.failover_log(vbucket)[0][0]


def noop(opcode: int = Opcode.NOOP) -> Plain:
    return Plain(opcode)
