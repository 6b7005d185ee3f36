"""Without the libraries: the error says what to install."""

from __future__ import annotations

import sys

import pytest

from cbframe import DependencyError
from cbframe.contrib.dask import read_bucket


def test_without_dask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dask.dataframe", None)
    monkeypatch.setitem(sys.modules, "dask", None)
    with pytest.raises(DependencyError, match="dask is not installed") as caught:
        read_bucket("couchbase://127.0.0.1/none", auth=("a", "b"))
    assert caught.value.hint == "pip install 'cbframe[dask]'"
