from __future__ import annotations

from enum import IntEnum

import pytest

from cbframe.wire import constants
from cbframe.wire.constants import (
    DATA_OPCODES,
    HEADER_LENGTH,
    MAX_BODY_LENGTH,
    MAX_SEQNO,
    MAX_VALUE_LENGTH,
    Datatype,
    Feature,
    Magic,
    Opcode,
    OpenFlag,
    SnapshotFlag,
    Status,
    StreamEndReason,
    StreamFlag,
    SystemEventId,
    VBucketStateCode,
)

ENUMS = [kind for kind in vars(constants).values() if isinstance(kind, type) and issubclass(kind, IntEnum)]


@pytest.mark.parametrize("kind", ENUMS)
def test_no_number_has_two_names(kind: type[IntEnum]) -> None:
    assert len(kind.__members__) == len(kind)


def test_limits() -> None:
    assert HEADER_LENGTH == 24
    assert MAX_SEQNO == 2**64 - 1
    # A value at its limit, 1 MiB of system attributes, key and extras.
    assert MAX_BODY_LENGTH > MAX_VALUE_LENGTH + 2**20 + 512


def test_magics_and_data_opcodes() -> None:
    assert {int(magic) for magic in Magic} == {0x80, 0x81, 0x82, 0x83, 0x08, 0x18}
    assert [int(opcode) for opcode in DATA_OPCODES] == [0x57, 0x58, 0x59]


def test_dcp_opcodes() -> None:
    names = {
        0x50: "OPEN",
        0x51: "ADD_STREAM",
        0x52: "CLOSE_STREAM",
        0x53: "STREAM_REQ",
        0x54: "GET_FAILOVER_LOG",
        0x55: "STREAM_END",
        0x56: "SNAPSHOT_MARKER",
        0x57: "MUTATION",
        0x58: "DELETION",
        0x59: "EXPIRATION",
        0x5A: "FLUSH",
        0x5B: "SET_VBUCKET_STATE",
        0x5C: "NOOP",
        0x5D: "BUFFER_ACK",
        0x5E: "CONTROL",
        0x5F: "SYSTEM_EVENT",
        0x60: "PREPARE",
        0x61: "SEQNO_ACKNOWLEDGED",
        0x62: "COMMIT",
        0x63: "ABORT",
        0x64: "SEQNO_ADVANCED",
        0x65: "OSO_SNAPSHOT",
    }
    assert {op: Opcode(op).name for op in names} == {op: f"DCP_{name}" for op, name in names.items()}


def test_bits() -> None:
    assert [bit.value for bit in Datatype] == [1, 2, 4]
    assert Datatype(7) == Datatype.JSON | Datatype.SNAPPY | Datatype.XATTR
    assert [bit.value for bit in SnapshotFlag] == [1, 2, 4, 8, 16, 32]
    assert {bit.value for bit in OpenFlag} == {0x01, 0x04, 0x08, 0x20, 0x40, 0x100, 0x200}
    assert (StreamFlag.ACTIVE_ONLY, StreamFlag.DISK_ONLY, StreamFlag.STRICT_VBUUID) == (0x10, 2, 0x20)


def test_numbers_that_decide_what_a_client_does() -> None:
    assert (Status.NOT_MY_VBUCKET, Status.ERANGE, Status.ROLLBACK) == (7, 0x22, 0x23)
    assert (Status.AUTH_ERROR, Status.AUTH_CONTINUE, Status.EACCESS) == (0x20, 0x21, 0x24)
    assert [reason.name for reason in StreamEndReason] == [
        *("OK", "CLOSED", "STATE_CHANGED", "DISCONNECTED", "TOO_SLOW", "BACKFILL_FAIL", "ROLLBACK"),
        *("FILTER_EMPTY", "LOST_PRIVILEGES"),
    ]
    assert [event.value for event in SystemEventId] == [0, 1, 3, 4, 5]
    assert [state.value for state in VBucketStateCode] == [0, 1, 2, 3, 4]
    assert (Feature.XATTR, Feature.SNAPPY, Feature.COLLECTIONS) == (0x06, 0x0A, 0x12)


def test_statuses_are_described() -> None:
    assert Status.describe(7) == "0x0007 NOT_MY_VBUCKET"
    assert Status.describe(Status.ROLLBACK) == "0x0023 ROLLBACK"
    assert Status.describe(0xFFFF) == "0xffff unknown status"
