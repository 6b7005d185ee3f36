"""Patterns of keys: what matches is what Python's own modules find, whatever bytes there are."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbframe import ConfigurationError
from cbframe.arrow.columns import KEY
from cbframe.arrow.current_rows import KeyFilter, KeyPattern, key_test

KEYS = [
    b"hotel::1",
    b"hotel::1::eu",
    b"hotel::\xff::eu",
    "hôtel::1".encode(),
    b"Hotel::1",
    b"motel::1",
    b"hotel::",
    b"a*b",
    b"a\nb",
    b"a[b]c",
    b"a^b\\c",
    b"",
    b"tail\n",
    b"\xc3",
]


def found(pattern: KeyPattern | None, keys: list[bytes] = KEYS, prefix: bytes | None = None) -> list[bytes]:
    # In the middle of a batch: Arrow's arrays have offsets.
    batch = pa.RecordBatch.from_arrays([pa.array([b"hotel::0", *keys, b"hotel::2"], pa.binary())], [KEY])
    kept = KeyFilter(prefix, pattern, drops_transactions=False).reduce(batch.slice(1, len(keys)))
    kept.validate(full=True)
    return kept.column(KEY).to_pylist()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("glob", "expected"),
    [
        ("hotel::*", [b"hotel::1", b"hotel::1::eu", b"hotel::\xff::eu", b"hotel::"]),
        ("hotel::*::eu", [b"hotel::1::eu", b"hotel::\xff::eu"]),
        ("h?tel::1", [b"hotel::1", "hôtel::1".encode()]),
        ("[hm]otel::1", [b"hotel::1", b"motel::1"]),
        ("[!h]otel::1", [b"Hotel::1", b"motel::1"]),
        ("[g-i]?tel::?", [b"hotel::1", "hôtel::1".encode()]),
        ("h[ôx]tel*", ["hôtel::1".encode()]),
        ("hotel::1", [b"hotel::1"]),
        ("a[*]b", [b"a*b"]),
        ("a?b", [b"a*b", b"a\nb"]),
        ("a[[]b[]]c", [b"a[b]c"]),
        ("a[]^\\]b[!x]c", [b"a^b\\c"]),
        ("*\n", [b"tail\n"]),
        ("*", KEYS),
        ("**", KEYS),
        ("a[b", []),
    ],
)
def test_globs(glob: str, expected: list[bytes]) -> None:
    assert found(glob) == expected


PIECES = st.sampled_from(["a", "b", "é", "*", "?", "[", "]", "!", "-", "^", "\\", ".", "\n", "{", "|", "$"])


@given(
    st.lists(PIECES, min_size=1, max_size=7).map("".join), st.lists(st.lists(PIECES, max_size=5).map("".join))
)
def test_globs_are_those_of_python(glob: str, texts: list[str]) -> None:
    try:
        kept = found(glob, [text.encode() for text in texts])
    except ConfigurationError:
        # A range that goes backwards: Python takes it for an empty one.
        assert re.search(r"\[.*-", glob, re.DOTALL)
        return
    assert [each.decode() for each in kept] == [text for text in texts if fnmatchcase(text, glob)]


@pytest.mark.parametrize(
    "pattern",
    [
        re.compile(rb"^hotel::\d+$"),
        re.compile(rb"otel"),
        re.compile(rb"hotel", re.IGNORECASE),
        re.compile(rb"a.b"),
        re.compile(rb"a.b", re.DOTALL),
        re.compile(rb"^b", re.MULTILINE),
        re.compile(rb"\xff"),
        re.compile(b"\xff"),
        re.compile(rb"[\x80-\xff]"),
        re.compile(rb"(?P<kind>\w+)::\d(?:::eu)?\b"),
        re.compile(rb"\A\w{3,5}::"),
    ],
)
def test_expressions_of_bytes_find_what_python_finds(pattern: re.Pattern[bytes]) -> None:
    assert found(pattern) == [key for key in KEYS if pattern.search(key)]


@pytest.mark.parametrize(
    "pattern",
    [
        re.compile(r"^h.tel::\d+$"),
        re.compile("ô"),
        re.compile(r"^[a-zô]+::"),
        re.compile(r"a.b", re.DOTALL | re.ASCII),
    ],
)
def test_expressions_of_text_find_what_python_finds(pattern: re.Pattern[str]) -> None:
    sound = [key for key in KEYS if b"\xff" not in key and key != b"\xc3"]
    assert found(pattern, sound) == [key for key in sound if pattern.search(key.decode())]
    # Of what is no UTF-8, the text in it is looked at.
    assert b"hotel::\xff::eu" in found(re.compile(r"^hotel::.*eu$|::eu$"))


@pytest.mark.parametrize(
    "pattern",
    [
        re.compile("secret(?=x)"),
        re.compile(r"(secret)\1"),
        re.compile("secret x", re.VERBOSE),
        re.compile(rb"secret", re.LOCALE),
        re.compile("secret++"),
        # RE2 takes these for something else than Python does.
        re.compile("secre{,2}t"),
        "secret[z-a]",
        "secret\ud800",
    ],
)
def test_what_cannot_be_looked_for_is_refused(pattern: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        key_test(pattern)
    assert caught.value.hint is not None
    assert "secret" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_a_pattern_and_a_prefix() -> None:
    assert found("*::eu", prefix=b"hotel::1") == [b"hotel::1::eu"]
    assert found(None, prefix=b"a") == [key for key in KEYS if key.startswith(b"a")]
    assert found(None) == KEYS
    assert key_test("hotel::*") == (b"hotel::", None)
    assert key_test("hotel::*::eu")[0] == b"hotel::"
    assert key_test(re.compile("^hotel")) == (b"", "^hotel")
