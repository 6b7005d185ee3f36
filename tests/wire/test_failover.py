from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbframe.errors import ProtocolError
from cbframe.wire.constants import FAILOVER_LOG_MAX_ENTRIES
from cbframe.wire.failover import FailoverEntry, encode_failover_log, parse_failover_log
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


@pytest.mark.parametrize("length", [1, 8, 15, 17, 40])
def test_a_length_that_is_no_multiple_of_an_entry(length: int) -> None:
    with pytest.raises(ProtocolError, match=f"of {length} bytes is no multiple of 16"):
        parse_failover_log(bytes(length))
