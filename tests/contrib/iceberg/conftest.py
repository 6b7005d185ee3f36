"""Every test here leaves no thread and no socket behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pyiceberg.catalog import Catalog
from scan.conftest import nothing_left  # noqa: F401 - a fixture that is used by itself
from snapshot.conftest import cluster  # noqa: F401 - a fixture
from worlds import either_version  # noqa: F401 - as above

from .kit import catalog_of


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    """Where no table is yet."""
    found = catalog_of(tmp_path / "lake")
    yield found
    found.close()
