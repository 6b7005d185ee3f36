"""Recorded conversations with a real node, read back frame by frame."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cbframe.wire.frame import Frame

GOLDEN = Path(__file__).parent.parent / "golden"


def frames(name: str, side: str) -> Iterator[Frame]:
    """What one side of a conversation sent, up to the end or to what is no frame."""
    data, offset = (GOLDEN / f"{name}.{side}.bin").read_bytes(), 0
    while (parsed := Frame.parse(data, offset)) is not None:
        frame, offset = parsed
        yield frame
