from __future__ import annotations

import random

import pyarrow as pa
import pytest

from cbframe.errors import ProtocolError
from cbframe.local.items import deflate, inflate
from cbframe.wire.constants import Datatype, Opcode

from .replay import frames


@pytest.mark.parametrize("seed", range(20))
def test_what_another_implementation_packed(seed: int) -> None:
    rng = random.Random(seed)
    pieces = [rng.randbytes(rng.randrange(1, 100)) for _ in range(8)]
    plain = b"".join(rng.choice(pieces) * rng.randrange(1, 40) for _ in range(seed * 4))
    packed = pa.Codec("snappy").compress(plain, asbytes=True)
    assert inflate(packed, len(plain)) == plain
    for cut in (1, len(packed) // 2, len(packed) - 1):
        if cut < len(packed):
            with pytest.raises(ProtocolError):
                inflate(packed[:cut], len(plain))
    if plain:
        with pytest.raises(ProtocolError):
            inflate(packed, len(plain) - 1)


@pytest.mark.parametrize(
    "block",
    ["", "05", "ff" * 6, "0401ff", "04000105", "0a0861", "0161" * 2, "04fcffffff7f"],
)
def test_what_is_no_block(block: str) -> None:
    with pytest.raises(ProtocolError):
        inflate(bytes.fromhex(block), 1000)


@pytest.mark.parametrize("seed", range(20))
def test_what_is_packed_here_another_implementation_reads(seed: int) -> None:
    rng = random.Random(seed)
    pieces = [rng.randbytes(rng.randrange(1, 100)) for _ in range(8)]
    plain = b"".join(rng.choice(pieces) * rng.randrange(1, 40) for _ in range(seed * 4))
    packed = deflate(plain)
    assert inflate(packed, len(plain)) == plain
    assert pa.Codec("snappy").decompress(packed, len(plain), asbytes=True) == plain
    if len(plain) > 1000:
        assert len(packed) < len(plain) / 2


def test_what_does_not_repeat_grows_by_its_lengths_only() -> None:
    plain = random.Random(1).randbytes(70_000)
    assert len(deflate(plain)) <= len(plain) + 10


def test_nearly_as_small_as_the_real_node_packs() -> None:
    compared = 0
    for frame in frames("stream_force_snappy", "s2c"):
        if frame.opcode == Opcode.DCP_MUTATION and frame.datatype & Datatype.SNAPPY:
            plain = inflate(frame.value, 10_000)
            assert len(deflate(plain)) <= len(frame.value) * 1.1 + 4
            compared += 1
    assert compared > 40
