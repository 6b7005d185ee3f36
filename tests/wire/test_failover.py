from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbframe.errors import ProtocolError
from cbframe.wire.constants import FAILOVER_LOG_MAX_ENTRIES
from cbframe.wire.failover import FailoverEntry, encode_failover_log, entry_at, parse_failover_log
from cbframe.wire.frame import Frame

from .strategies import u64
from .vectors import STREAM_REQ_SUCCESS


def test_vector() -> None:
    parsed = Frame.parse(STREAM_REQ_SUCCESS)
    assert parsed is not None
    value = parsed[0].value
    log = parse_failover_log(value)
    assert log == (FailoverEntry(0xABCDEF, 4), FailoverEntry(0x1234, 0))
    assert encode_failover_log(log) == value
    assert encode_failover_log([(0xABCDEF, 4), (0x1234, 0)]) == value
    assert parse_failover_log(memoryview(value)) == parse_failover_log(bytearray(value)) == log


@given(log=st.lists(st.tuples(u64, u64), max_size=FAILOVER_LOG_MAX_ENTRIES))
def test_every_log_survives_the_wire(log: list[tuple[int, int]]) -> None:
    assert list(parse_failover_log(encode_failover_log(log))) == log


def test_an_empty_log() -> None:
    assert parse_failover_log(b"") == ()
    assert entry_at((), 0) is None


@pytest.mark.parametrize("length", [1, 8, 15, 17, 40])
def test_a_length_that_is_no_multiple_of_an_entry(length: int) -> None:
    with pytest.raises(ProtocolError, match=f"of {length} bytes is no multiple of 16"):
        parse_failover_log(bytes(length))


def test_the_history_of_a_seqno() -> None:
    newest, middle, oldest = FailoverEntry(3, 20), FailoverEntry(2, 10), FailoverEntry(1, 0)
    log = (newest, middle, oldest)
    expected = {0: oldest, 9: oldest, 10: middle, 19: middle, 20: newest, 2**64 - 1: newest}
    assert {seqno: entry_at(log, seqno) for seqno in expected} == expected
    assert entry_at((newest, middle), 9) is None
    # Two histories that began at the same seqno: the newer one holds.
    assert entry_at((FailoverEntry(5, 0), FailoverEntry(4, 0)), 0) == FailoverEntry(5, 0)
