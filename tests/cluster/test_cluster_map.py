"""Bucket configs to maps: real ones, odd ones and wrong ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cbframe.cluster.cluster_map import ClusterMap, parse_bucket_config, with_node_services
from cbframe.cluster.connection_string import HostPort
from cbframe.errors import ClusterMapError, ConfigurationError
from cbframe.wire.constants import Opcode
from cbframe.wire.framing import Frame

from .configs import UUID, by_node, nodes_ext, terse_config, verbose_config

GOLDEN = Path(__file__).parent.parent / "golden"


def parse(config: dict[str, Any], *, origin: str = "10.0.0.1", **options: Any) -> ClusterMap:
    return parse_bucket_config(
        config, origin=HostPort(origin) if origin == "::1" else HostPort.parse(origin), **options
    )


def with_map(rows: object, servers: object = ("10.0.0.1:11210", "10.0.0.2:11210")) -> dict[str, Any]:
    return terse_config(vBucketServerMap={"serverList": servers, "vBucketMap": rows})


def test_config_of_a_real_node() -> None:
    data = (GOLDEN / "get_cluster_config.0.s2c.bin").read_bytes()
    offset, config = 0, None
    while (step := Frame.parse(data, offset)) is not None:
        frame, offset = step
        if frame.opcode == Opcode.GET_CLUSTER_CONFIG and frame.value:
            config = json.loads(frame.value)
    assert config is not None
    found = parse(config, origin="127.0.0.1")
    assert found.bucket == "travel"
    assert found.uuid == UUID
    assert found.revision == (1, 1)
    assert found.nodes == ("127.0.0.1:11320", "127.0.0.1:11321")
    assert found.vbuckets == 16
    assert by_node(found) == {"127.0.0.1:11320": list(range(15)), "127.0.0.1:11321": [15]}
    assert found.collections
    assert found.manifest_uid == 2
    assert found.network == "default"


def test_terse() -> None:
    found = parse(terse_config())
    assert found.active.tolist() == [0, 1, 0, 1]
    assert found.active.dtype == np.int16
    assert found.revision == (1, 7)
    assert found.manifest_uid == 0x1F
    assert found.capabilities == {"collections", "dcp"}
    assert found.unowned() == []
    assert repr(found) == ("ClusterMap('travel', rev 1.7, 4 vbuckets on 10.0.0.1:11210, 10.0.0.2:11210)")
    with pytest.raises(ValueError, match="read-only"):
        found.active[0] = 1
    verbose = parse(verbose_config())
    assert (verbose.revision, verbose.nodes) == ((0, 0), ("10.0.0.1:11210", "10.0.0.2:11210"))


def test_vbucket_without_owner_is_visible() -> None:
    found = parse(with_map([[0, 1], [-1, 1], [1, -1], [-1, -1]]))
    assert found.active.tolist() == [0, -1, 1, -1]
    assert found.unowned() == [1, 3]
    assert [found.node_of(vbucket) for vbucket in range(4)] == [
        "10.0.0.1:11210",
        None,
        "10.0.0.2:11210",
        None,
    ]
    assert by_node(found) == {"10.0.0.1:11210": [0], "10.0.0.2:11210": [2]}
    assert "2 without owner" in repr(found)


@pytest.mark.parametrize("vbucket", [-1, 4])
def test_node_of_a_vbucket_that_is_not_there(vbucket: int) -> None:
    with pytest.raises(IndexError):
        parse(terse_config()).node_of(vbucket)


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([[0, 1], [0]], "ragged"),
        ([[0], [1, 0]], "ragged"),
        ([[0, 1], []], "without an owner"),
        ([[0, 1], 3], "without an owner"),
        ([[0], [2]], "names node 2"),
        ([[0, 2]], "names node 2"),
        ([[-2]], "names node -2"),
        ([["0"]], "names node '0'"),
        ([[True]], "names node True"),
        ([[0.0]], "names node 0.0"),
        ([], "no vbucket map yet"),
        ([[0]] * 1025, "1025 vbuckets on . nodes, and a bucket has 1024 at most"),
        ("0", "not an array"),
    ],
)
def test_wrong_rows(rows: object, told: str) -> None:
    with pytest.raises(ClusterMapError, match=told) as caught:
        parse(with_map(rows))
    assert not caught.value.permanent


@pytest.mark.parametrize(
    "changes",
    [
        {"vBucketServerMap": {}},
        {"vBucketServerMap": None},
        {"vBucketServerMap": {"serverList": [], "vBucketMap": []}},
        {"vBucketServerMap": {"serverList": [7], "vBucketMap": [[0]]}},
        {"name": ""},
        {"name": 3},
        {"rev": "7"},
        {"rev": True},
        {"uuid": None},
        {"collectionsManifestUid": "0x1f"},
        {"collectionsManifestUid": 5},
        {"bucketCapabilities": {}},
        {"bucketCapabilities": [1]},
        {"nodesExt": {}},
        {"nodesExt": ["a"]},
        {"nodesExt": nodes_ext()[:1]},
        {"nodesExt": [{"services": {"kv": 0}}, {"services": {"kv": 1}}]},
        {"nodesExt": [{"services": {"kv": "11210"}}, {"services": {"kv": 1}}]},
        {"nodesExt": [{"services": {"kv": 1}, "alternateAddresses": {"external": {}}}]},
    ],
)
def test_wrong_configs(changes: dict[str, Any]) -> None:
    with pytest.raises(ClusterMapError):
        parse(terse_config(**changes))


@pytest.mark.parametrize(
    ("config", "told", "permanent"),
    [
        ({**terse_config(), "vBucketServerMap": None}, "no vbucket map yet", False),
        ({"rev": 1, "nodesExt": nodes_ext()}, "names no bucket", False),
        ({"name": "cache", "nodeLocator": "ketama"}, "has no DCP", True),
        ({"name": "cache", "bucketType": "memcached"}, "has no DCP", True),
    ],
)
def test_what_has_no_map(config: dict[str, Any], told: str, permanent: bool) -> None:
    config = {name: value for name, value in config.items() if value is not None}
    with pytest.raises(ClusterMapError, match=told) as caught:
        parse(config)
    assert caught.value.permanent == permanent


@pytest.mark.parametrize(
    "server",
    [
        *("", "host", "host:", ":11210", "host:0", "host:70000", "h:0112100", "h:000001" + "0" * 5000),
        *("::1:11210", "h:１"),
    ],
)
def test_wrong_server_addresses(server: str) -> None:
    config = with_map([[0]], [server])
    del config["nodesExt"]
    with pytest.raises(ClusterMapError, match="address of a data node"):
        parse(config)


# ------------------------------------------------------------------ hosts


@pytest.mark.parametrize(
    ("origin", "node"),
    [("node.example", "node.example:11210"), ("::1", "[::1]:11210"), ("[::1]", "[::1]:11210")],
)
def test_host_placeholder(origin: str, node: str) -> None:
    config = with_map([[0]], ["$HOST:11210"])
    config["nodesExt"] = [{"services": {"kv": 11210}, "thisNode": True}]
    assert parse(config, origin=origin).nodes == (node,)
    del config["nodesExt"]
    assert parse(config, origin=origin).nodes == (node,)


def test_data_node_is_the_nth_entry_with_a_data_service() -> None:
    query_node = {"hostname": "10.0.0.9", "services": {"mgmt": 8091, "n1ql": 8093}}
    extra_data_node = {"hostname": "10.0.0.8", "services": {"kv": 11210}}
    first, second = nodes_ext()
    found = parse(terse_config(nodesExt=[query_node, first, query_node, second, extra_data_node]))
    assert found.nodes == ("10.0.0.1:11210", "10.0.0.2:11210")


def test_tls_ports() -> None:
    assert parse(terse_config(), tls=True).nodes == ("10.0.0.1:11207", "10.0.0.2:11207")


@pytest.mark.parametrize("nodes", [None, [{"services": {"kv": 1}}, {"services": {"kv": 2}}]])
def test_tls_never_falls_back_to_plain(nodes: object) -> None:
    config = terse_config(nodesExt=nodes)
    if nodes is None:
        del config["nodesExt"]
    with pytest.raises(ClusterMapError, match="no TLS port"):
        parse(config, tls=True)


def test_node_with_only_a_tls_port() -> None:
    nodes = nodes_ext()
    del nodes[1]["services"]["kv"]
    with pytest.raises(ClusterMapError, match="only a TLS port") as caught:
        parse(terse_config(nodesExt=nodes))
    assert caught.value.node == "10.0.0.2:11207"


@pytest.mark.parametrize(
    ("origin", "network", "chosen"),
    [
        ("10.0.0.2", "auto", "default"),
        ("10.0.0.2:11210", "auto", "default"),
        ("10.0.0.2:9", "auto", "default"),
        ("ext2.example", "auto", "external"),
        ("EXT2.example:30002", "auto", "external"),
        ("balancer.example:11210", "auto", "external"),
        ("elsewhere", "external", "external"),
        ("ext1.example", "default", "default"),
    ],
)
def test_networks(origin: str, network: str, chosen: str) -> None:
    found = parse(terse_config(), origin=origin, network=network)
    assert found.network == chosen
    external = ("ext1.example:30001", "ext2.example:30002")
    assert found.nodes == (external if chosen == "external" else ("10.0.0.1:11210", "10.0.0.2:11210"))


def docker(n: int, *, kv: int, mgmt: int, **ssl: int) -> dict[str, Any]:
    """A node in a container whose ports are mapped to others of the machine."""
    return {
        "hostname": f"172.17.0.{n}",
        "services": {"mgmt": 8091, "mgmtSSL": 18091, "kv": 11210, "kvSSL": 11207},
        "alternateAddresses": {
            "external": {"hostname": "localhost", "ports": {"kv": kv, "mgmt": mgmt, **ssl}}
        },
    }


@pytest.mark.parametrize(
    ("origin", "tls", "chosen"),
    [
        ("localhost:32768", False, "external"),
        ("localhost:32769", False, "external"),
        ("localhost:32778", False, "external"),
        ("localhost:32770", True, "external"),
        ("localhost:32771", True, "external"),
        ("LocalHost:9999", False, "external"),
        ("172.17.0.3:11210", False, "default"),
        ("172.17.0.3:8091", False, "default"),
        ("172.17.0.3:11207", True, "default"),
        ("172.17.0.3:18091", True, "default"),
        ("172.17.0.3:32768", False, "default"),
        ("127.0.0.1:11210", False, "external"),
    ],
)
def test_mapped_ports(origin: str, tls: bool, chosen: str) -> None:
    nodes = [
        docker(2, kv=32768, mgmt=32769, kvSSL=32770, mgmtSSL=32771),
        docker(3, kv=32778, mgmt=32779, kvSSL=32780, mgmtSSL=32781),
    ]
    found = parse(terse_config(nodesExt=nodes), origin=origin, tls=tls)
    assert found.network == chosen
    assert (
        found.nodes
        == {
            ("external", False): ("localhost:32768", "localhost:32778"),
            ("external", True): ("localhost:32770", "localhost:32780"),
            ("default", False): ("172.17.0.2:11210", "172.17.0.3:11210"),
            ("default", True): ("172.17.0.2:11207", "172.17.0.3:11207"),
        }[chosen, tls]
    )


@pytest.mark.parametrize(
    ("origin", "tls", "chosen"),
    [
        ("localhost:32768", False, "external"),
        ("localhost:32769", False, "external"),
        ("localhost:11210", False, "default"),
        ("localhost:11207", True, "default"),
        # With TLS, the ports without are not looked at; the host alone is the node's own then.
        ("localhost:32768", True, "default"),
    ],
)
def test_the_port_decides_where_both_networks_have_the_host(origin: str, tls: bool, chosen: str) -> None:
    """A node that was not given a name has that of whoever asks: here its alternate one, too."""
    node = docker(2, kv=32768, mgmt=32769)
    del node["hostname"]
    config = with_map([[0], [0]], ["$HOST:11210"]) | {"nodesExt": [node]}
    assert parse(config, origin=origin, tls=tls).network == chosen


def test_a_balancer_before_nodes_that_are_not_all_on_the_external_network() -> None:
    nodes = nodes_ext()
    nodes.append({"hostname": "10.0.0.3", "services": {"n1ql": 8093}})
    assert parse(terse_config(nodesExt=nodes), origin="balancer:11210").network == "external"
    del nodes[1]["alternateAddresses"]
    assert parse(terse_config(nodesExt=nodes), origin="balancer:11210").network == "default"


def test_several_nodes_of_one_name() -> None:
    """Behind a private endpoint, nodes differ by their ports."""
    nodes = nodes_ext()
    for n, node in enumerate(nodes):
        node["alternateAddresses"] = {
            "external": {"hostname": "pe.example", "ports": {"kvSSL": 11208 + n, "mgmtSSL": 18092 + n}}
        }
    found = parse(terse_config(nodesExt=nodes), origin="pe.example:11209", tls=True)
    assert found.nodes == ("pe.example:11208", "pe.example:11209")
    assert by_node(found) == {"pe.example:11208": [0, 2], "pe.example:11209": [1, 3]}
    assert found.elsewhere["pe.example:11209"] == {"default": "10.0.0.2:11207"}
    assert not found.origin


def test_nodes_that_cannot_be_told_apart() -> None:
    """As two behind one balancer: half of the vbuckets would be asked of the wrong one."""
    nodes = nodes_ext()
    for node in nodes:
        node["alternateAddresses"] = {"external": {"hostname": "balancer.example"}}
    with pytest.raises(ClusterMapError, match="two nodes have one address on network 'external'") as caught:
        parse(terse_config(nodesExt=nodes), origin="balancer.example:11210")
    assert caught.value.node == "balancer.example:11210"
    assert parse(terse_config(nodesExt=nodes), origin="10.0.0.1").network == "default"


@pytest.mark.parametrize(
    ("origin", "kept"), [("10.0.0.1:11210", ""), ("10.0.0.2:8091", ""), ("10.0.0.1:9", "10.0.0.1:9")]
)
def test_where_the_map_came_from(origin: str, kept: str) -> None:
    found = parse(terse_config(), origin=origin)
    assert found.origin == kept
    assert found.elsewhere["10.0.0.1:11210"] == {"external": "ext1.example:30001"}
    assert found == parse(terse_config(), origin="10.0.0.2")


def test_host_names_compare_without_case() -> None:
    nodes = nodes_ext()
    nodes[0]["alternateAddresses"]["external"]["hostname"] = "Ext1.Example"
    assert parse(terse_config(nodesExt=nodes), origin="ext1.example").network == "external"
    nodes[0]["hostname"] = "NODE1"
    assert parse(terse_config(nodesExt=nodes), origin="node1").network == "default"


def test_an_alternate_address_without_ports_keeps_all_ports() -> None:
    """With ports, it hides the others."""
    nodes = nodes_ext()
    with pytest.raises(ClusterMapError, match="no TLS port"):
        parse(terse_config(nodesExt=nodes), network="external", tls=True)
    for node in nodes:
        del node["alternateAddresses"]["external"]["ports"]
    found = parse(terse_config(nodesExt=nodes), network="external", tls=True)
    assert found.nodes == ("ext1.example:11207", "ext2.example:11207")


def test_alternate_address_without_the_data_service() -> None:
    nodes = nodes_ext()
    nodes[1]["alternateAddresses"]["external"]["ports"] = {"mgmt": 30091}
    with pytest.raises(ClusterMapError, match="no port on network 'external'") as caught:
        parse(terse_config(nodesExt=nodes), network="external")
    assert "publish the port" in str(caught.value.hint)


def test_unknown_network() -> None:
    with pytest.raises(ConfigurationError, match="there are: default, external"):
        parse(terse_config(), network="internal")


def test_node_outside_the_network() -> None:
    nodes = nodes_ext()
    del nodes[1]["alternateAddresses"]
    with pytest.raises(ClusterMapError, match="no address on network 'external'") as caught:
        parse(terse_config(nodesExt=nodes), network="external")
    assert caught.value.node == "10.0.0.2:11210"


def test_copies() -> None:
    found = parse(with_map([[0, 1], [1, -1], [-1, 0]]))
    a, b = found.nodes
    assert [found.copies_of(vb) for vb in range(3)] == [(a, b), (b,), ()]
    assert parse(with_map([[0], [1]])).copies_of(1) == (b,)
    bare = ClusterMap("b", "u", (0, 1), (a,), found.active[:1])
    assert bare.copies_of(0) == (a,), "made by hand"
    assert parse(with_map([[0, 1]])) != parse(with_map([[0, -1]]))


def test_a_copy_outside_the_network() -> None:
    config = terse_config(**with_map([[0, 1]]))
    del config["nodesExt"][1]["alternateAddresses"]
    found = parse(config, network="external")
    with pytest.raises(ClusterMapError, match="without an address on network 'external'") as caught:
        found.copies_of(0)
    assert caught.value.vbucket == 0


def test_node_outside_the_network_that_owns_nothing_does_not_matter() -> None:
    nodes = nodes_ext()
    del nodes[0]["alternateAddresses"]
    config = with_map([[1, 0], [-1, 0], [1, 0]])
    found = parse(config | {"nodesExt": nodes}, network="external")
    assert found.nodes == ("ext2.example:30002",)
    assert found.active.tolist() == [0, -1, 0]


def test_verbose_config_completed_in_the_order_of_its_servers() -> None:
    services = {"nodesExt": [{"hostname": "10.0.0.9", "services": {"n1ql": 8093}}, *reversed(nodes_ext())]}
    config = with_node_services(verbose_config(), services, "10.0.0.1")
    assert parse(config, tls=True).nodes == ("10.0.0.1:11207", "10.0.0.2:11207")


def test_verbose_config_completed_by_nameless_and_missing_nodes() -> None:
    services = {"nodesExt": [{"services": {"kv": 11210, "kvSSL": 11207}}]}
    config = with_node_services(verbose_config(), services, "10.0.0.1")
    assert parse(config).nodes == ("10.0.0.1:11210", "10.0.0.2:11210")
    assert with_node_services(config, {}, "x") == config


@pytest.mark.timeout(30)
def test_as_many_nodes_as_there_may_be_are_looked_up_at_once() -> None:
    """Each beside each would take minutes."""
    count = 0x7FFF
    servers = [f"h{n}:11210" for n in range(count)]
    entries = [{"hostname": f"h{n}", "services": {"kv": 11210}} for n in reversed(range(count))]
    server_map = {"serverList": servers, "vBucketMap": [[0], [count - 1]]}
    config = with_node_services(verbose_config(vBucketServerMap=server_map), {"nodesExt": entries}, "h0")
    assert by_node(parse(config)) == {"h0:11210": [0], f"h{count - 1}:11210": [1]}


def test_half_of_a_character() -> None:
    for changed in ({"name": "\ud800"}, {"bucketCapabilities": ["\udc00"]}):
        with pytest.raises(ClusterMapError, match="half of a character"):
            parse(terse_config(**changed))


# ------------------------------------------------------------------ comparing


def test_newer_than() -> None:
    base = parse(terse_config(revEpoch=2, rev=5))
    for epoch, rev, newer in ((2, 6, True), (3, 1, True), (1, 9, False), (2, 5, False)):
        assert parse(terse_config(revEpoch=epoch, rev=rev)).newer_than(base) == newer
    # Without revisions, what differs is newer.
    old, moved = parse(verbose_config()), verbose_config()
    assert not parse(verbose_config()).newer_than(old)
    moved["vBucketServerMap"]["vBucketMap"][0] = [1, 0]
    assert parse(moved).newer_than(old)


def test_equality() -> None:
    one, same, other = parse(terse_config()), parse(terse_config()), parse(terse_config(rev=8))
    assert one == same
    assert hash(one) == hash(same)
    assert one != other
    assert one != "map"
