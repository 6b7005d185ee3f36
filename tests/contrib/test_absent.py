"""Without the libraries: the error says what to install."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from cbframe import DependencyError
from cbframe.contrib.dask import read_bucket


@pytest.mark.parametrize("absent", ["pyspark", "pyspark.sql.streaming.datasource"])
def test_without_spark(monkeypatch: pytest.MonkeyPatch, absent: str) -> None:
    """It is not installed, or so old that it has no such streams."""
    for name in [name for name in sys.modules if name.startswith("pyspark.") or "contrib.spark" in name]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(DependencyError, match=r"pyspark 4\.3 or newer is needed") as caught:
        importlib.import_module("cbframe.contrib.spark")
    assert caught.value.hint == "pip install 'cbframe[spark]'"


def test_the_package_loads_neither() -> None:
    code = "import cbframe, sys; cbframe.scan_bucket; print({'dask', 'pyspark'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"set()\n"


def test_without_dask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dask.dataframe", None)
    monkeypatch.setitem(sys.modules, "dask", None)
    with pytest.raises(DependencyError, match="dask is not installed") as caught:
        read_bucket("couchbase://127.0.0.1/none", auth=("a", "b"))
    assert caught.value.hint == "pip install 'cbframe[dask]'"
