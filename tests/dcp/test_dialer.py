"""How connections are made; what is warned of then."""

from __future__ import annotations

import datetime as dt
import warnings

import pytest

from cbframe import BucketDataSourceOptions, PasswordAuthenticator
from cbframe.cluster.connection_string import parse_connection_string
from cbframe.cluster.tls import capella_root
from cbframe.dcp import transport
from cbframe.dcp.transport import Dialer

CAPELLA = "couchbases://cb.x1y2z3.cloud.couchbase.com"


def made(conn: str, when: str, monkeypatch: pytest.MonkeyPatch, tls: str | None = None) -> list[str]:
    """The warnings of two dialers that are made on a day."""
    monkeypatch.setattr(transport.time, "time", dt.datetime.fromisoformat(f"{when}T00:00Z").timestamp)
    monkeypatch.setattr(transport, "_warned", [])
    login = PasswordAuthenticator("u", "p")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            assert Dialer(BucketDataSourceOptions(), tls, login, parse_connection_string(conn)).context
    return [str(each.message) for each in caught]


def test_the_end_of_capellas_root_certificate(monkeypatch: pytest.MonkeyPatch) -> None:
    """A year ahead, once, and only where it is relied on."""
    assert made(CAPELLA, "2028-11-30", monkeypatch) == []
    ending = "update cbframe before 2029-12-06: the root certificate of Capella that is in it ends then"
    for day in ("2028-12-08", "2029-12-01", "2030-01-01"):
        assert made(CAPELLA, day, monkeypatch) == [ending]
    assert made("couchbases://db.example.com", "2029-12-01", monkeypatch) == []
    assert made(CAPELLA, "2029-12-01", monkeypatch, tls=capella_root()) == []
