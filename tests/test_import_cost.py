"""``import cbframe`` is quick and loads no library: every session of a notebook pays for it."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = "pandas pyarrow numpy ipywidgets anywidget requests msgspec deltalake pyiceberg".split()  # noqa: SIM905
BUDGET_SECONDS = 0.150
SCRIPT = """
import json, sys
from time import perf_counter
sys.path.insert(0, sys.argv[1])
before = set(sys.modules)
start = perf_counter()
import cbframe
seconds = perf_counter() - start
new = sorted(set(sys.modules) - before)
print(json.dumps({"seconds": seconds, "new": new, "file": cbframe.__file__, "names": dir(cbframe)}))
"""


def isolated(script: str) -> str:
    """What an interpreter prints that has nothing but Python's own modules and this checkout."""
    command = [sys.executable, "-I", "-W", "error", "-c", script, str(ROOT)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


@cache
def fresh_import() -> tuple[dict[str, Any], ...]:
    """What is reported, several times over."""
    return tuple(json.loads(isolated(SCRIPT)) for _ in range(5))


def test_it_is_this_checkout_that_is_imported() -> None:
    assert Path(fresh_import()[0]["file"]).parent == ROOT / "cbframe"


@pytest.mark.parametrize("library", HEAVY)
def test_no_library_is_loaded(library: str) -> None:
    for report in fresh_import():
        loaded = [name for name in report["new"] if name.partition(".")[0] == library]
        assert not loaded


def test_no_thread_socket_or_ui_module_is_loaded() -> None:
    loaded = set(fresh_import()[0]["new"])
    assert not loaded & {"socket", "ssl", "asyncio", "cbframe.ui", "cbframe.local", "cbframe.cli"}


def test_it_is_quick() -> None:
    """The best of several runs: others may be using the machine."""
    assert min(report["seconds"] for report in fresh_import()) < BUDGET_SECONDS


def test_a_read_begins_before_pandas_is_loaded() -> None:
    """It is loaded while nodes are waited for, and not before the first of them is asked."""
    code = "import sys; sys.path.insert(0, sys.argv[1]); import cbframe; cbframe.read_bucket"
    assert isolated(f"{code}; print('pandas' in sys.modules)") == "False\n"
