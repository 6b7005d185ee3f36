"""Which core runs, and what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import cbframe
from cbframe import core

ROOT = Path(__file__).parent.parent


def imported(choice: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from cbframe import core; print(core.NAME)"],
        env={**os.environ, "CBFRAME_CORE": choice},
        capture_output=True,
        text=True,
        check=False,
    )


def test_there_is_one_version() -> None:
    for file, table in (("pyproject.toml", "project"), ("cbframe/_rust/Cargo.toml", "package")):
        assert tomllib.loads((ROOT / file).read_text())[table]["version"] == cbframe.__version__
    assert cbframe.__version__ == core.VERSION


def test_the_reference_can_be_chosen() -> None:
    done = imported("python")
    assert (done.returncode, done.stdout) == (0, "python\n")


def test_the_compiled_core_is_there_or_an_error() -> None:
    done = imported("rust")
    if core.compiled() is None:
        assert done.returncode == 1
        assert "the compiled core is not installed" in done.stderr
    else:
        assert (done.returncode, done.stdout) == (0, "rust\n")


def test_what_is_no_core() -> None:
    done = imported("fortran")
    assert done.returncode == 1
    assert "CBFRAME_CORE is 'fortran'" in done.stderr
    assert "use 'rust' or 'python'" in done.stderr


def test_a_core_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    if core.compiled() is None:
        pytest.skip("needs the compiled core")
    monkeypatch.setattr(core, "VERSION", "0.0.9")
    with pytest.raises(cbframe.DependencyError, match=r"is of version 0\.1\.0, and cbframe of 0\.0\.9"):
        core._load()
