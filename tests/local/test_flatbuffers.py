from __future__ import annotations

import struct

import pytest

from cbframe.local.items import event_value
from cbframe.wire.constants import Opcode, SystemEventId

from .replay import frames


def recorded() -> list[tuple[int, bytes, bytes]]:
    """Event, name and value of every system event of version 2 that the real node sent."""
    events = []
    for frame in frames("disk_coll_events.1", "s2c"):
        if frame.opcode == Opcode.DCP_SYSTEM_EVENT:
            _, event, version = struct.unpack(">QIB", frame.extras)
            assert version == 2
            events.append((event, frame.key, frame.value))
    return events


def plain() -> list[tuple[int, ...]]:
    """The numbers of the same events, from the conversation of the same vbucket without version 2."""
    return [
        struct.unpack(f">Q{len(frame.value) // 4 - 2}I", frame.value)
        for frame in frames("disk_coll_events.0", "s2c")
        if frame.opcode == Opcode.DCP_SYSTEM_EVENT
    ]


def test_the_bytes_of_the_real_node() -> None:
    events = recorded()
    assert {event for event, _, _ in events} >= set(SystemEventId) - {SystemEventId.MODIFY_COLLECTION}
    for (event, name, value), (uid, scope, *cid) in zip(events, plain(), strict=True):
        assert event_value(event, name, uid, scope, *(cid or [0]), None, history=False) == value


def field(value: bytes, slot: int, width: int) -> int:
    table = struct.unpack_from("<I", value)[0]
    vtable = table - struct.unpack_from("<i", value, table)[0]
    if 4 + 2 * slot >= struct.unpack_from("<H", value, vtable)[0]:
        return 0
    offset = struct.unpack_from("<H", value, vtable + 4 + 2 * slot)[0]
    return int.from_bytes(value[table + offset : table + offset + width], "little") if offset else 0


@pytest.mark.parametrize("event", [SystemEventId.CREATE_COLLECTION, SystemEventId.MODIFY_COLLECTION])
@pytest.mark.parametrize("max_ttl", [None, 0, 60])
@pytest.mark.parametrize("history", [False, True])
def test_what_a_reader_finds(event: int, max_ttl: int | None, history: bool) -> None:
    value = event_value(event, b"beer", 7, 8, 9, max_ttl, history=history)
    assert [field(value, slot, width) for slot, width in ((0, 8), (1, 4), (2, 4))] == [7, 8, 9]
    assert field(value, 3, 1) == (max_ttl is not None)
    assert field(value, 4, 4) == (max_ttl or 0)
    assert field(value, 6, 1) == history
    assert b"\x04\0\0\0beer\0" in value
