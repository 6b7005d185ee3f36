"""Certificates of two authorities, as files: of nodes that are in order, and of others; of clients."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import NamedTuple

import pytest
import trustme

USER = "reader"
CAPELLA_HOST = "cb.x1y2z3.cloud.couchbase.com"


class Files(NamedTuple):
    """PEM files: two authorities, and what they issued."""

    ca: Path
    other_ca: Path
    server: Path
    elsewhere: Path
    """For another host name."""
    expired: Path
    soon: Path
    """Ends in three days."""
    client: Path
    client_key: Path
    stranger: Path
    """A client certificate of the other authority."""
    nobody: Path
    """One of the right authority, for a user who does not exist."""


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("tls")
    found = Files(*(folder / f"{name}.pem" for name in Files._fields))
    ca, other = trustme.CA(), trustme.CA()
    ca.cert_pem.write_to_path(found.ca)
    other.cert_pem.write_to_path(found.other_ca)
    now, past = dt.datetime.now(dt.UTC), dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
    good, soon = (now + dt.timedelta(days=days) for days in (700, 3))
    for path, issued in (
        (found.server, ca.issue_cert("127.0.0.1", CAPELLA_HOST, not_after=good)),
        (found.elsewhere, ca.issue_cert("db.example")),
        (found.expired, ca.issue_cert("127.0.0.1", not_after=past)),
        (found.soon, ca.issue_cert("127.0.0.1", not_after=soon)),
        (found.stranger, other.issue_cert("reader@example.org", common_name=USER)),
        (found.nobody, ca.issue_cert("nobody@example.org", common_name="nobody")),
    ):
        issued.private_key_and_cert_chain_pem.write_to_path(path)
    client = ca.issue_cert("reader@example.org", common_name=USER)
    client.cert_chain_pems[0].write_to_path(found.client)
    client.private_key_pem.write_to_path(found.client_key)
    return found
