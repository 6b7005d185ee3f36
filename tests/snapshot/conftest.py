"""Every test here leaves no thread and no socket behind, and time goes on as the test says."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from object_store import endpoint, outside  # noqa: F401 - fixtures
from scan.conftest import nothing_left  # noqa: F401 - a fixture that is used by itself
from worlds import either_version  # noqa: F401 - as above

from cbframe import LocalCluster


class Calendar:
    """A clock that stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def go_on(self, **span: float) -> None:
        self.now += timedelta(**span)


@pytest.fixture
def calendar() -> Calendar:
    return Calendar()


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    """Two nodes, 16 vbuckets."""
    with LocalCluster(nodes=2, vbuckets=16, seed=1) as running:
        yield running


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where no snapshot is yet."""
    return tmp_path / "snapshot"
