"""How many files a block of documents passes: few enough to be read one after the other."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from cbframe import core

# The reference's files are counted, those of the compiled core are not.
MORE = 2 if core.COMPILED is None else 0
MOST = {"read_bucket": 20 + MORE, "write_snapshot": 25 + MORE}


@pytest.fixture(scope="module")
def counts() -> dict[tuple[str, str], int]:
    """Files by what is done, and of what the functions are counted."""
    script = Path(__file__).with_name("call_path.py")
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True, timeout=100)
    found = re.findall(r"^(\w+) +(\w+) +(\d+) functions in +(\d+) files$", run.stdout, re.MULTILINE)
    return {(job, what): int(files) for job, what, functions, files in found if int(functions)}


@pytest.mark.parametrize("job", MOST)
def test_files_of_a_block(job: str, counts: dict[tuple[str, str], int]) -> None:
    # Fewer than that are read only if the script no longer finds where blocks come from.
    assert 10 < counts[job, "block"] <= MOST[job] < counts[job, "all"]
