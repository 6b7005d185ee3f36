"""No test asks a name server but its own."""

from __future__ import annotations

import pytest

from cbframe.cluster import srv


@pytest.fixture(autouse=True)
def no_dns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(srv, "ask_dns", lambda _name, _timeout: [])
