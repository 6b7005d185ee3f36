from __future__ import annotations

import random

import pyarrow as pa
import pytest

from cbframe.errors import ProtocolError
from cbframe.local.snappy import inflate


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
