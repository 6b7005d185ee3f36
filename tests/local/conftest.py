"""Every test here leaves no thread behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from cbframe.local import LocalCluster

from .client import Client


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    """One node, one vbucket: every document is in vbucket 0."""
    with LocalCluster(vbuckets=1, seed=1) as running:
        yield running


@pytest.fixture
def kv(cluster: LocalCluster) -> Iterator[Client]:
    """A connection that has logged in and selected the bucket."""
    with Client(cluster).login() as client:
        yield client


@pytest.fixture
def dcp(cluster: LocalCluster) -> Iterator[Client]:
    """A connection that may ask for streams."""
    with Client(cluster).login().open() as client:
        yield client
