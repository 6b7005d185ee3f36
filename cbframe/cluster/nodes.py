"""The nodes of a cluster (``nodesExt``): their services, their other addresses, and which to use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cbframe.cluster import fields
from cbframe.cluster.connection_string import HostPort, bare_host, join_address, split_address
from cbframe.errors import ClusterMapError, ConfigurationError

DEFAULT_NETWORK = "default"
EXTERNAL_NETWORK = "external"
AUTO_NETWORK = "auto"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One way to a node: a host and the port of each service that can be reached there."""

    host: str
    ports: Mapping[str, int]

    def has(self, address: HostPort, *, tls: bool) -> bool:
        """Whether the data service or the cluster manager is at `address`, with or without TLS."""
        services = ("kvSSL", "mgmtSSL") if tls else ("kv", "mgmt")
        ports = [self.ports[service] for service in services if service in self.ports]
        return bare_host(self.host) == bare_host(address.host) and address.port in ports


@dataclass(frozen=True, slots=True)
class Node:
    """One node, by the name of each network it is on; ``default`` is always among them."""

    networks: Mapping[str, Endpoint]

    @property
    def is_data_node(self) -> bool:
        ports = self.networks[DEFAULT_NETWORK].ports
        return "kv" in ports or "kvSSL" in ports

    def kv_address(self, network: str, *, tls: bool) -> str | None:
        """``host:port`` of the data service; None if it is not reachable in this way."""
        endpoint = self.networks.get(network)
        port = endpoint.ports.get("kvSSL" if tls else "kv") if endpoint else None
        return None if endpoint is None or port is None else join_address(endpoint.host, port)

    def kv_addresses(self, *, tls: bool, other_than: str) -> dict[str, str]:
        """As :meth:`kv_address`, of each network but one."""
        found = {name: self.kv_address(name, tls=tls) for name in self.networks if name != other_than}
        return {name: address for name, address in found.items() if address is not None}

    def has(self, address: HostPort, network: str, *, tls: bool) -> bool:
        """As :meth:`Endpoint.has`, on one network."""
        endpoint = self.networks.get(network)
        return endpoint is not None and endpoint.has(address, tls=tls)

    def __str__(self) -> str:
        return self.networks[DEFAULT_NETWORK].host


def read_nodes(config: Mapping[str, object], origin_host: str) -> tuple[Node, ...]:
    """The entries of ``nodesExt``, in their order; none if the server is too old to have it."""
    return tuple(_read_node(entry, origin_host) for entry in fields.mappings(config, "nodesExt"))


def _read_node(entry: Mapping[str, object], origin_host: str) -> Node:
    host = fields.text(entry, "hostname", "").replace("$HOST", origin_host) or origin_host
    ports = _ports(entry, "services")
    networks = {DEFAULT_NETWORK: Endpoint(host, ports)}
    for name, alternate in fields.mapping(entry, "alternateAddresses").items():
        other = fields.as_mapping(alternate, "alternateAddresses")
        # Without ports of its own the other address forwards all; with them, only those.
        other_ports = _ports(other, "ports") if "ports" in other else ports
        networks[name] = Endpoint(fields.text(other, "hostname"), other_ports)
    return Node(networks)


def _ports(source: Mapping[str, object], name: str) -> dict[str, int]:
    ports = fields.mapping(source, name)
    found = {}
    for service in ports:
        port = fields.integer(ports, service)
        if not 0 < port <= 0xFFFF:
            raise ClusterMapError(f"the cluster's answer has port {port} for service {service!r}")
        found[service] = port
    return found


def select_network(
    nodes: Sequence[Node], origin: HostPort, network: str = AUTO_NETWORK, *, tls: bool = False
) -> str:
    """The name of the network to use for every node.

    ``auto`` takes the one on which the cluster has been reached: that of a node which has the host and
    the port of `origin`, or else the host with another port, the default network first. If no node has
    the host, as that of a load balancer, it is ``external`` where all data nodes can be reached on it,
    otherwise the default one.
    """
    if network == AUTO_NETWORK:
        ways = [(name, endpoint) for node in nodes for name, endpoint in node.networks.items()]
        ways.sort(key=lambda way: way[0] != DEFAULT_NETWORK)
        host = bare_host(origin.host)
        exact = next((name for name, endpoint in ways if endpoint.has(origin, tls=tls)), None)
        found = exact or next((name for name, endpoint in ways if bare_host(endpoint.host) == host), None)
        if found is None:
            data_nodes = [node for node in nodes if node.is_data_node]
            everywhere = all(node.kv_address(EXTERNAL_NETWORK, tls=tls) for node in data_nodes)
            found = EXTERNAL_NETWORK if data_nodes and everywhere else DEFAULT_NETWORK
        return found
    if network != DEFAULT_NETWORK and not any(network in node.networks for node in nodes):
        known = sorted({name for node in nodes for name in node.networks} | {DEFAULT_NETWORK})
        raise ConfigurationError(
            f"no node of the cluster is on network {network!r}", hint=f"there are: {', '.join(known)}"
        )
    return network


def with_node_services(
    config: Mapping[str, object], services: Mapping[str, object], origin_host: str
) -> dict[str, object]:
    """A verbose bucket config, completed with the ``nodesExt`` that only terse ones have.

    ``nodeServices`` lists all nodes of the cluster in an order of its own, so the entries are
    looked up by data-service address and put into the order of ``serverList``. A server that is
    not found keeps its plain address and has no TLS port.
    """
    if "nodesExt" in config:
        return dict(config)
    entries = fields.mappings(services, "nodesExt")
    # The first of each address; of a nameless entry the host is empty.
    places: dict[tuple[str, int | None], int] = {}
    for position, entry in enumerate(entries):
        endpoint = _read_node(entry, origin_host).networks[DEFAULT_NETWORK]
        host = bare_host(endpoint.host) if entry.get("hostname") else ""
        places.setdefault((host, endpoint.ports.get("kv")), position)
    ordered: list[Mapping[str, object]] = []
    used: set[int] = set()
    for server in fields.texts(fields.mapping(config, "vBucketServerMap"), "serverList"):
        host, port = server_address(server, origin_host)
        found = [places[key] for key in ((bare_host(host), port), ("", port)) if key in places]
        if found:
            # A nameless entry takes the name from serverList, which the manager has filled in.
            ordered.append({**entries[min(found)], "hostname": host})
            used.add(min(found))
        else:
            ordered.append({"hostname": host, "services": {"kv": port}})
    rest = [entry for position, entry in enumerate(entries) if position not in used]
    return {**config, "nodesExt": [*ordered, *rest]}


def server_address(server: str, origin_host: str) -> tuple[str, int]:
    """Host and port of an entry of ``serverList``, with ``$HOST`` filled in."""
    # The brackets go around the whole host, in case the placeholder stands for an IPv6 address.
    if server.startswith("$HOST:"):
        server = f"{_bracketed(origin_host)}{server.removeprefix('$HOST')}"
    address = split_address(server)
    if address is None:
        raise ClusterMapError(
            f"the address of a data node is {server!r} in the cluster's answer",
            fault=None if server else "nameless server",
        )
    return address


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host
