"""Reads, files, snapshots, streams, doctor and the command line with only what Windows has, on Linux."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

PLACE = Path(__file__).parent / "windows_like"


@cache
def wrong() -> dict[str, str | None]:
    """What went wrong in each step."""
    folders = (str(PLACE), str(PLACE.parent.parent), os.environ.get("PYTHONPATH"))
    path = os.pathsep.join(filter(None, folders))
    done = subprocess.run(
        [sys.executable, "-X", "warn_default_encoding", str(PLACE / "steps.py")],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    found: dict[str, str | None] = json.loads(done.stdout)
    return found


STEPS = "system read files folders snapshot locks stream processes doctor cli".split()  # noqa: SIM905


@pytest.mark.parametrize("step", STEPS)
def test_with_only_what_windows_has(step: str) -> None:
    assert wrong()[step] is None, wrong()[step]


def test_every_step_is_looked_at() -> None:
    assert [*wrong()] == STEPS
