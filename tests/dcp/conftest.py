"""Every test here leaves neither a thread nor a socket behind."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest


def open_sockets() -> set[str]:
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = str(entry.readlink())
        except OSError:
            continue
        if target.startswith("socket:"):
            found.add(target)
    return found


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    gc.collect()
    before = open_sockets()
    yield
    for thread in threading.enumerate():
        if thread.name == "cbframe-rest":  # a request that was left: nothing but its own end stops it
            thread.join(20)
    left = [thread.name for thread in threading.enumerate() if thread.name.startswith("cbframe-")]
    assert not left
    assert open_sockets() <= before
