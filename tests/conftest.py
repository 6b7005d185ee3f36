"""No test asks a name server but its own."""

from __future__ import annotations

import pytest

from cbframe import core
from cbframe.cluster import srv


def pytest_report_header() -> str:
    """The core that the tests run on; another one that was asked for ends the run at the import above."""
    return f"cbframe core: {core.NAME}"


@pytest.fixture(autouse=True)
def no_dns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(srv, "ask_dns", lambda _name, _timeout: [])
