"""What a client may ask before it has logged in or chosen a bucket, and words of refusals."""

from __future__ import annotations

import uuid

from cbframe.local.auth import MECHANISMS
from cbframe.wire.constants import Opcode

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
}
"""The real server's words for extras of another length."""
WITHOUT_BUCKET = BEFORE_AUTH | {
    Opcode.SELECT_BUCKET,
    Opcode.GET_CLUSTER_CONFIG,
    Opcode.NOOP,
    Opcode.QUIT,
    Opcode.VERSION,
}


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
