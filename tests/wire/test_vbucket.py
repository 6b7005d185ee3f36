from __future__ import annotations

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbframe.wire.vbucket import vbucket_of

from .golden import NAMES, load

COUNTS = (1024, 128, 64, 256, 48)
VECTORS = [
    ("", 0x00000000, (0, 0, 0, 0, 0)),
    ("hello", 0x3610A686, (528, 16, 16, 16, 16)),
    ("foo", 0x8C736521, (115, 115, 51, 115, 19)),
    ("k0", 0xE109903F, (265, 9, 9, 9, 25)),
    ("k1", 0x960EA0A9, (526, 14, 14, 14, 30)),
    ("k2", 0x0F07F113, (775, 7, 7, 7, 7)),
    ("k3", 0x7800C185, (0, 0, 0, 0, 0)),
    ("k4", 0xE6645426, (612, 100, 36, 100, 4)),
    ("k5", 0x916364B0, (355, 99, 35, 99, 35)),
    ("airline_10", 0x0D694EA7, (361, 105, 41, 105, 25)),
    ("user::1", 0x63E571B2, (997, 101, 37, 229, 37)),
    ("été", 0x44D16CD4, (209, 81, 17, 209, 1)),
    ("日本", 0xC7B7CDCC, (951, 55, 55, 183, 23)),
]


@pytest.mark.parametrize(("key", "checksum", "expected"), VECTORS)
def test_vectors(key: str, checksum: int, expected: tuple[int, ...]) -> None:
    assert zlib.crc32(key.encode()) == checksum
    assert tuple(vbucket_of(key.encode(), count) for count in COUNTS) == expected


@given(key=st.binary(max_size=250), count=st.integers(1, 1024))
def test_in_range(key: bytes, count: int) -> None:
    assert 0 <= vbucket_of(key, count) < count


def test_golden_keys(golden_keys: list[tuple[int, bytes]]) -> None:
    """A real node with 64 vbuckets was asked by the SDK for these."""
    assert len(golden_keys) > 500
    assert all(vbucket_of(key, 64) == vbucket for vbucket, key in golden_keys)


@pytest.fixture
def golden_keys() -> list[tuple[int, bytes]]:
    return [
        (message["vb"], message["key"].encode())
        for name in NAMES
        if name.startswith("sdk_")
        for message in load(name, "c2s").messages
        if "collection_id" in message.get("fields", {}) and not message["key"].startswith("hex:")
    ]
