"""Every test here leaves no thread and no socket behind."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest
from deltalake import write_deltalake
from object_store import endpoint, outside  # noqa: F401 - fixtures
from scan.conftest import nothing_left  # noqa: F401 - a fixture that is used by itself
from snapshot.conftest import cluster  # noqa: F401 - a fixture
from worlds import either_version  # noqa: F401 - as above


@pytest.fixture(autouse=True, scope="session")
def _runtime(tmp_path_factory: pytest.TempPathFactory) -> None:
    """deltalake and polars begin their threads with their first table: none of ours are among them."""
    path = tmp_path_factory.mktemp("first")
    write_deltalake(path, pa.table({"a": [1]}))
    assert pl.scan_delta(str(path)).filter(pl.col("a") == 1).collect().height == 1


@pytest.fixture
def uri(tmp_path: Path) -> str:
    """Where no table is yet."""
    return str(tmp_path / "table")
