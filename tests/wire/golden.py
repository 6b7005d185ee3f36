"""The golden conversations as test material; see ``tests/golden/README.md``."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent.parent / "golden"
FOLDER8 = FOLDER.with_name("golden8")
NAMES = tuple(sorted(path.stem for path in FOLDER.glob("*.json")))
SIDES = tuple((name, side) for name in NAMES for side in ("c2s", "s2c"))
NAMES8 = tuple(f"../golden8/{path.stem}" for path in sorted(FOLDER8.glob("*.json")))
"""Of the node of 8.0, for :func:`load`."""
BAD_MAGIC = ("unknown_opcode.1", "c2s")
"""This side ends in 24 bytes that are no message."""

Message = dict[str, Any]


@dataclass(frozen=True)
class Side:
    """What one end of a connection sent."""

    name: str
    data: bytes
    messages: tuple[Message, ...]
    collections: bool
    """Whether HELLO granted collections: keys then start with a collection id."""

    @property
    def sound(self) -> bytes:
        """The bytes without those behind the last message."""
        return self.data[: sum(message["len"] for message in self.messages)]


@cache
def load(name: str, side: str, folder: Path = FOLDER) -> Side:
    document = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    # Entries without a direction are notes of the recording.
    messages = [message for message in document["messages"] if "dir" in message]
    granted = [
        message["fields"]["features"]
        for message in messages
        if message["dir"] == "s2c" and message["opcode"] == "0x1f" and number(message["status"]) == 0
    ]
    return Side(
        f"{name}.{side}",
        (folder / f"{name}.{side}.bin").read_bytes(),
        tuple(message for message in messages if message["dir"] == side),
        bool(granted) and "COLLECTIONS" in granted[-1],
    )


def number(text: int | str) -> int:
    """``"0x5 MEMORY|CHECKPOINT"``, ``"5 BACKFILL_FAIL"``, ``"0x1f"`` or a plain number."""
    return text if isinstance(text, int) else int(text.split()[0], 0)


def label(text: str) -> str:
    """The name behind the number, if there is one."""
    return text.partition(" ")[2]


def same_bytes(text: str, actual: bytes) -> bool:
    """Whether bytes are what the JSON shows: text, or ``hex:…``; long ones are cut off there."""
    cut = re.fullmatch(r"(.*)\.\.\.\((\d+) bytes\)", text, re.DOTALL)
    shown = cut[1] if cut else text
    expected = bytes.fromhex(shown[4:]) if shown.startswith("hex:") else shown.encode()
    if cut:
        return len(actual) == int(cut[2]) and actual.startswith(expected)
    return actual == expected


def feature_codes(names: list[str]) -> tuple[int, ...]:
    """The names of HELLO features in the JSON, as numbers."""
    return tuple(int(name, 16) if name.startswith("0x") else FEATURES[name] for name in names)


FEATURES = {
    "TLS": 0x02,
    "TCPNODELAY": 0x03,
    "MUTATION_SEQNO": 0x04,
    "XATTR": 0x06,
    "XERROR": 0x07,
    "SELECT_BUCKET": 0x08,
    "SNAPPY": 0x0A,
    "JSON": 0x0B,
    "DUPLEX": 0x0C,
    "CLUSTERMAP_CHANGE_NOTIFICATION": 0x0D,
    "UNORDERED_EXECUTION": 0x0E,
    "TRACING": 0x0F,
    "ALT_REQUEST": 0x10,
    "SYNC_REPLICATION": 0x11,
    "COLLECTIONS": 0x12,
    "OPEN_TRACING": 0x13,  # the name until 7.2; SNAPPY_EVERYWHERE later
    "PRESERVE_TTL": 0x14,
    "VATTR": 0x15,
    "PITR": 0x16,
    "SUBDOC_CREATE_AS_DELETED": 0x17,
    "SUBDOC_DOC_MACRO": 0x18,
    "SUBDOC_REPLACE_BODY_WITH_XATTR": 0x19,
    "SUBDOC_REPLICA_READ": 0x1C,
    "DEDUPE_NOT_MY_VBUCKET_CLUSTERMAP": 0x1E,
    "SUBDOC_BINARY_XATTR": 0x21,
}
