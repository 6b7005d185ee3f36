"""Every test here leaves neither a thread nor a socket behind."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator

import pytest
from scan.conftest import open_sockets

from cbframe.dcp.transport import Waker
from cbframe.local import LocalCluster


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


@pytest.fixture
def waker() -> Iterator[Waker]:
    made = Waker()
    yield made
    made.close()


@pytest.fixture
def alone() -> Iterator[LocalCluster]:
    """One node with one vbucket."""
    with LocalCluster(vbuckets=1, seed=1) as running:
        yield running


@pytest.fixture
def pair() -> Iterator[LocalCluster]:
    """Two nodes, four vbuckets."""
    with LocalCluster(nodes=2, vbuckets=4, seed=1) as running:
        yield running
