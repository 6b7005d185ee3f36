"""Every test here leaves no thread and no socket behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import write_deltalake
from frame.conftest import nothing_left  # noqa: F401 - a fixture that is used by itself

from cbframe import LocalCluster


@pytest.fixture(autouse=True, scope="session")
def _runtime(tmp_path_factory: pytest.TempPathFactory) -> None:
    """deltalake begins its threads, and their sockets, with its first table: none of ours are among them."""
    write_deltalake(tmp_path_factory.mktemp("first"), pa.table({"a": [1]}))


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    """Two nodes, 16 vbuckets."""
    with LocalCluster(nodes=2, vbuckets=16, seed=1) as running:
        yield running


@pytest.fixture
def uri(tmp_path: Path) -> str:
    """Where no table is yet."""
    return str(tmp_path / "table")
