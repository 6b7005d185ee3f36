"""Tests run on one core, and no test asks a name server but its own."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

from cbframe import core
from cbframe.cluster import connection_string

# Workers and the programs that tests start run on the same core, or fail; chosen, none warns that it is slow.
os.environ["CBFRAME_CORE"] = core.NAME

# How long an example takes is a matter of the machine and of what else it does.
settings.register_profile("cbframe", deadline=None)
settings.load_profile("cbframe")


def pytest_report_header() -> str:
    """The core that the tests run on; another one that was asked for ends the run at the import above."""
    return f"cbframe core: {core.NAME}"


@pytest.fixture(autouse=True)
def no_dns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_string, "ask_dns", lambda _name, _timeout: [])
