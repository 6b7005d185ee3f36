"""What a client may ask before it has logged in or chosen a bucket, and words of refusals."""

from __future__ import annotations

import uuid

from cbframe.local.auth import MECHANISMS
from cbframe.wire.constants import Feature, Opcode

BEFORE_AUTH = frozenset(
    {
        Opcode.HELLO,
        Opcode.SASL_LIST_MECHS,
        Opcode.SASL_AUTH,
        Opcode.SASL_STEP,
        Opcode.GET_ERROR_MAP,
    }
)
LENGTHS: dict[int, str] = {
    Opcode.GET_ALL_VB_SEQNOS: "Request extras must be of length 0 or 4 or 8",
    Opcode.DCP_STREAM_REQ: "Request must include extras of length 48",
    Opcode.DCP_BUFFER_ACK: "Request must include extras of length 4",
    Opcode.GET_CLUSTER_CONFIG: "Request must include extras of length 16",
}
"""The real server's words for extras of another length."""
WITHOUT_BUCKET = BEFORE_AUTH | {
    Opcode.SELECT_BUCKET,
    Opcode.GET_CLUSTER_CONFIG,
    Opcode.NOOP,
    Opcode.QUIT,
    Opcode.VERSION,
}
CONFIG_ONLY = frozenset({Opcode.HELLO, Opcode.GET_ERROR_MAP, Opcode.GET_CLUSTER_CONFIG, Opcode.SELECT_BUCKET})
"""What a node answers that has a bucket's map, and not yet the bucket."""
GONE_IN_8 = frozenset(
    {
        *(0x08, 0x18, *range(0x30, 0x3D), *range(0x40, 0x48), 0x5A, 0x97, 0x9E, 0x9F),
        *(0xA6, 0xA7, 0xAA, 0xAC, 0xB0, 0xB1, 0xC1, 0xC2, 0xF0, 0xF2),
    }
)
"""Opcodes of former releases that 8.0 knows, and does not support; 0xAA is CREATE_CHECKPOINT."""
GET_EX = frozenset({0x49, 0x4A})
GET_EX_NEEDS = {Feature.XATTR: "Xattr", Feature.JSON: "JSON", Feature.SNAPPY_EVERYWHERE: "SnappyEverywhere"}
"""Reads of a document with its attributes, which 8.0 has and the embedded cluster does not, and what
they are refused without."""


def refusal(mechanism: str, *, external: bool) -> dict[str, str]:
    """The error that a failed login is answered with, where a directory was asked, too, if `external`."""
    # What to look for in the server's log.
    reference = {"ref": str(uuid.uuid4())}
    if mechanism not in MECHANISMS.split():
        return {"context": f'Requested mechanism "{mechanism}" is not supported'}
    if external:
        return {
            "context": f"Wrong credentials, or {mechanism} does not serve for external users",
            **reference,
        }
    return reference
