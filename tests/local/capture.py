"""What passed through a proxy as a capture file, and what tshark makes of it."""

from __future__ import annotations

import socket
import struct
import subprocess
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from cbframe.testing import Passed
from cbframe.wire.framing import Frame

PORT = 11210
"""The one that tshark knows to be Couchbase's."""
_HOST = socket.inet_aton("127.0.0.1")
_RAW_IP = 101
_LONGEST = 60_000
"""An IP packet holds 65,535 bytes."""
_PUSH_ACK = 0x18


def write(path: Path, pieces: Iterable[Passed]) -> None:
    """One TCP connection for each of the proxy's, in the order in which the bytes passed."""
    sent: defaultdict[tuple[int, str], int] = defaultdict(lambda: 1)
    records = [struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 1 << 18, _RAW_IP)]
    for number, piece in enumerate(pieces):
        for start in range(0, len(piece.data), _LONGEST):
            data = piece.data[start : start + _LONGEST]
            client = 40_000 + piece.connection
            ports = (PORT, client) if piece.direction == "down" else (client, PORT)
            other = "up" if piece.direction == "down" else "down"
            key = piece.connection, piece.direction
            packet = _packet(*ports, sent[key], sent[piece.connection, other], data)
            sent[key] += len(data)
            records.append(struct.pack("<IIII", number, 0, len(packet), len(packet)) + packet)
    path.write_bytes(b"".join(records))


def _packet(source: int, target: int, seq: int, ack: int, data: bytes) -> bytes:
    tcp = struct.pack(">HHIIBBHHH", source, target, seq, ack, 5 << 4, _PUSH_ACK, 65535, 0, 0) + data
    return struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(tcp), 0, 0, 64, 6, 0, _HOST, _HOST) + tcp


def complaints() -> list[str]:
    """The names of the fields by which tshark says that a Couchbase message is wrong."""
    listed = _tshark("-G", "fields")
    names = [line.split("\t")[2] for line in listed.splitlines() if line.count("\t") > 2]
    found = [name for name in names if name.startswith(("couchbase.warn.", "couchbase.error."))]
    assert "couchbase.warn.unknown_opcode" in found
    return [*found, "_ws.malformed"]


class Complaint(NamedTuple):
    """Something that tshark found wrong, and with what kind of message."""

    what: str
    magic: int
    opcode: int
    status: int | None
    """Of answers."""
    extras: int
    """Their length."""


def messages(pieces: Iterable[Passed]) -> list[Passed]:
    """The same bytes, each message by itself, in the order in which their last bytes passed."""
    waiting: defaultdict[tuple[int, str], bytes] = defaultdict(bytes)
    found = []
    for piece in pieces:
        key = piece.connection, piece.direction
        waiting[key] += piece.data
        while (parsed := Frame.parse(waiting[key])) is not None:
            end = parsed[1]
            found.append(piece._replace(data=waiting[key][:end]))
            waiting[key] = waiting[key][end:]
    return found


def complaints_about(pieces: list[Passed], path: Path) -> set[Complaint]:
    """What tshark finds wrong in whole messages; `path` is where they are written for it."""
    write(path, pieces)
    kinds = complaints()
    shown = [argument for kind in kinds for argument in ("-e", kind)]
    condition = " || ".join(kinds)
    lines = _tshark(*_reading(path), "-Y", condition, "-T", "fields", "-e", "frame.number", *shown)
    found = set()
    for line in lines.splitlines():
        number, *said = line.split("\t")
        parsed = Frame.parse(pieces[int(number) - 1].data)
        assert parsed is not None
        frame = parsed[0]
        status = frame.status if frame.is_response else None
        for kind, text in zip(kinds, said, strict=True):
            if text:
                found.add(Complaint(kind, frame.magic, frame.opcode, status, len(frame.extras)))
    return found


def opcodes(path: Path) -> Counter[int]:
    """How often tshark saw each opcode."""
    fields = _tshark(*_reading(path), "-T", "fields", "-e", "couchbase.opcode")
    return Counter(int(text, 0) for line in fields.splitlines() for text in line.split(",") if text)


def _reading(path: Path) -> tuple[str, ...]:
    return "-n", "-r", str(path), "-d", f"tcp.port=={PORT},couchbase"


def _tshark(*arguments: str) -> str:
    done = subprocess.run(["tshark", *arguments], check=True, capture_output=True, text=True, timeout=100)
    return done.stdout
