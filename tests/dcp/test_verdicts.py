"""What the errors of nodes that were not reached say about their addresses."""

from __future__ import annotations

import numpy as np
import pytest

from cbframe.cluster.map import ClusterMap
from cbframe.dcp.verdicts import no_answer, with_addresses
from cbframe.errors import AuthFailError, CbframeError, ConnectError, ReadTimeoutError

NODES = tuple(f"172.17.0.{n}:11210" for n in range(2, 7))
ELSEWHERE = {node: {"external": f"localhost:{32768 + n}"} for n, node in enumerate(NODES)}
ADVERTISED = "the cluster was reached at localhost:32768, and advertises "


def found(origin: str = "localhost:32768", elsewhere: dict[str, dict[str, str]] | None = None) -> ClusterMap:
    owners = np.zeros(4, np.int16)
    alternates = {node: {} for node in NODES} if elsewhere is None else elsewhere
    return ClusterMap("b", "u", (1, 1), NODES, owners, origin=origin, elsewhere=alternates)


def refused(node: str = NODES[0]) -> ConnectError:
    return ConnectError("cannot connect", node=node, hint="as before")


def late() -> ReadTimeoutError:
    error = ReadTimeoutError("no answer", node=NODES[0], hint="as before")
    error.permanent = False
    return error


@pytest.mark.parametrize("make", [refused, late])
def test_other_networks(make: type) -> None:
    hint = with_addresses(make(), found(elsewhere=ELSEWHERE)).hint
    assert hint == (
        f"{ADVERTISED}172.17.0.2:11210, which cannot be reached from here; the nodes are also on the network "
        "'external' (localhost:32768): give network='external'"
    )


def test_many_nodes_that_are_silent() -> None:
    hint = with_addresses(no_answer(list(NODES), 10), found()).hint
    assert hint == (
        f"{ADVERTISED}172.17.0.2:11210, 172.17.0.3:11210, 172.17.0.4:11210 and 2 more, which cannot be "
        "reached from here: publish the nodes' ports and give the nodes alternate addresses with these "
        "(couchbase-cli setting-alternate-address), or run where theirs can be reached"
    )


def certificate() -> ConnectError:
    error = refused()
    error.permanent = True
    return error


@pytest.mark.parametrize(
    ("error", "known"),
    [
        (refused(), found(origin="")),
        (refused("elsewhere:1"), found()),
        (certificate(), found()),
        (AuthFailError("no", node=NODES[0], hint="as before"), found()),
        (CbframeError("no", node=NODES[0], hint="as before"), found()),
    ],
    ids=["reached at a node", "no node", "certificate", "password", "another error"],
)
def test_what_is_no_matter_of_addresses(error: CbframeError, known: ClusterMap) -> None:
    assert with_addresses(error, known).hint == "as before"
