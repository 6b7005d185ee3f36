"""Keys as text: nothing depends on other keys, and no two keys become one."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbframe.arrow.columns import formed, formed_key, has_literals, key_bytes

TEXTS = {
    b"": "",
    b"airline_10": "airline_10",
    "caf\u00e9 \u4eac \U0001f600".encode(): "caf\u00e9 \u4eac \U0001f600",
    b"a\x00\n": "a\x00\n",
    b"\xff\x00": "\\xff\x00",
    b"caf\xc3": "caf\\xc3",
    b"\xed\xa0\x80": "\\xed\\xa0\\x80",
    b"\xc0\x80": "\\xc0\\x80",
    b"\xf4\x90\x80\x80": "\\xf4\\x90\\x80\\x80",
    b"C:\\temp": "C:\\temp",
    b"\\x": "\\x",
    b"\\x4": "\\x4",
    b"\\xg0": "\\xg0",
    b"\\x41": "\\x5cx41",
    b"\\xFF": "\\x5cxFF",
    b"\\xff": "\\x5cxff",
    b"\\x5cxff": "\\x5cx5cxff",
    b"\\\\x41": "\\\\x5cx41",
    b"\\x4\xff": "\\x4\\xff",
    b"\\xff\xff": "\\x5cxff\\xff",
}
PIECES = st.sampled_from([b"\\", b"x", b"5", b"c", b"f", b"F", b"\xff", b"\xc3", b"\xa9", b"\xc3\xa9", b"\0"])
KEYS = st.lists(PIECES, max_size=12).map(b"".join) | st.binary(max_size=20)


@pytest.mark.parametrize(("key", "text"), TEXTS.items())
def test_the_text_of_a_key(key: bytes, text: str) -> None:
    assert formed_key(key, "text") == text
    assert formed_key(key, "binary") == key


def test_columns() -> None:
    keys = pa.chunked_array([[*TEXTS], [None, b"\xff"], []], pa.binary())
    texts = formed(keys, "text")
    assert texts.type == pa.string()
    assert texts.to_pylist() == [*TEXTS.values(), None, "\\xff"]
    assert key_bytes(texts).equals(keys)
    assert formed(keys, "binary").equals(keys)
    assert key_bytes(keys).equals(keys)
    # What was stored as strings is no text in this sense: it has no escapes.
    stored = pa.array(["\\xff", "a"])
    assert formed(stored, "text").to_pylist() == ["\\x5cxff", "a"]
    assert formed(stored, "binary").to_pylist() == [b"\\xff", b"a"]
    assert has_literals(stored)
    assert not has_literals(stored.slice(1))
    assert not has_literals(pa.chunked_array([], pa.string()))


@given(st.lists(KEYS), st.integers(0, 3), st.integers(0, 20))
def test_text_is_injective_and_depends_on_nothing_else(keys: list[bytes], start: int, count: int) -> None:
    column = pa.array(keys, pa.binary())
    texts = formed(column, "text")
    texts.validate(full=True)
    assert texts.to_pylist() == [formed_key(key, "text") for key in keys]
    assert key_bytes(texts).equals(column)
    part = column.slice(start, count)
    assert formed(part, "text").equals(texts.slice(start, count))
    assert key_bytes(texts.slice(start, count)).equals(part)
    for key, text in zip(keys, texts.to_pylist(), strict=True):
        try:
            plain = key.decode()
        except UnicodeDecodeError:
            assert "\\x" in text
        else:
            assert text == plain or "\\x5cx" in text
