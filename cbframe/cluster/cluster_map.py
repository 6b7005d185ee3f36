"""The cluster map of a bucket: which node owns which vbucket, and where its nodes are (``nodesExt``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from cbframe.cluster.answers import (
    as_mapping,
    hexadecimal_field,
    integer_field,
    mapping_field,
    mappings_field,
    sequence_field,
    text_field,
    texts_field,
)
from cbframe.cluster.connection_string import HostPort, bare_host, join_address, split_address
from cbframe.errors import ClusterMapError, ConfigurationError
from cbframe.wire.constants import MAX_VBUCKETS

DEFAULT_NETWORK = "default"
EXTERNAL_NETWORK = "external"
AUTO_NETWORK = "auto"
_MAX_SERVERS = 0x7FFF
_NO_REVISION = (0, 0)
_NO_NODE, _NO_ADDRESS = -1, -2


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ClusterMap:
    """Who owns what, at one revision."""

    bucket: str  # name of the bucket, and of this life of it: deleted and created again, it has another uuid
    uuid: str
    revision: tuple[int, int]
    nodes: tuple[str, ...]  # `host:port` of the data service of each node that can be reached
    active: npt.NDArray[np.int16]
    network: str = DEFAULT_NETWORK  # the network whose addresses `nodes` has: what `auto` came to
    tls: bool = False  # whether `nodes` has TLS ports
    capabilities: frozenset[str] = frozenset()  # the bucket's capabilities, as the server names them
    manifest_uid: int | None = None  # version of the collections manifest; None if the bucket has none
    cluster_uuid: str = ""
    origin: str = ""
    elsewhere: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    replicas: npt.NDArray[np.int16] = field(default_factory=lambda: np.empty((0, 0), np.int16))
    """By vbucket and replica: as in `active`, and −2 of a node that cannot be reached on this network."""

    @property
    def vbuckets(self) -> int:
        """Number of vbuckets."""
        return len(self.active)

    @property
    def collections(self) -> bool:
        """Whether the bucket has collections."""
        return "collections" in self.capabilities

    def node_of(self, vbucket: int) -> str | None:
        """Address of the vbucket's owner; None while it has none."""
        if not 0 <= vbucket < self.vbuckets:
            raise IndexError(f"vbucket {vbucket} of {self.vbuckets}")
        owner = int(self.active[vbucket])
        return None if owner < 0 else self.nodes[owner]

    def copies_of(self, vbucket: int) -> tuple[str, ...]:
        """Addresses of the nodes with a copy, the owner first; none while there is no owner."""
        row = self.replicas[vbucket].tolist() if len(self.replicas) else []
        if _NO_ADDRESS in row:
            message = f"a replica is on a node without an address on network {self.network!r}"
            raise ClusterMapError(message, vbucket=vbucket, hint="give the node an alternate address")
        places = [int(self.active[vbucket]), *row]
        return () if places[0] < 0 else tuple(self.nodes[place] for place in places if place != _NO_NODE)

    def unowned(self) -> list[int]:
        """The vbuckets without an owner, as during a failover: back off and ask again."""
        return [int(vbucket) for vbucket in np.flatnonzero(self.active < 0)]

    def newer_than(self, other: ClusterMap) -> bool:
        """Whether this map should replace `other`, of the same bucket.

        Where one of the two has no revision there is nothing to compare: the map that was fetched
        later then counts as newer if it differs, and that is taken to be this one.
        """
        if _NO_REVISION in (self.revision, other.revision):
            return self != other
        return self.revision > other.revision

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ClusterMap):
            return NotImplemented
        same = np.array_equal(self.active, other.active) and np.array_equal(self.replicas, other.replicas)
        return same and self._scalars() == other._scalars()

    def __hash__(self) -> int:
        return hash(self._scalars())

    def _scalars(self) -> tuple[object, ...]:
        return (
            self.bucket,
            self.uuid,
            self.revision,
            self.nodes,
            self.network,
            self.tls,
            self.capabilities,
            self.manifest_uid,
        )

    def __repr__(self) -> str:
        unowned = len(self.unowned())
        return (
            f"ClusterMap({self.bucket!r}, rev {self.revision[0]}.{self.revision[1]}, "
            f"{self.vbuckets} vbuckets{f' ({unowned} without owner)' if unowned else ''} "
            f"on {', '.join(self.nodes)})"
        )


def parse_bucket_config(
    config: Mapping[str, object], *, origin: HostPort, network: str = AUTO_NETWORK, tls: bool = False
) -> ClusterMap:
    """Read a bucket config, terse or verbose."""
    bucket = text_field(config, "name", "")
    if text_field(config, "nodeLocator", "vbucket") == "ketama" or config.get("bucketType") == "memcached":
        error = ClusterMapError(
            f"bucket {bucket!r} is a memcached bucket, which has no DCP",
            hint="only Couchbase and ephemeral buckets can be read",
        )
        error.permanent = True
        raise error
    if not bucket:
        raise ClusterMapError(
            "the config names no bucket: it is the cluster's own", hint="select a bucket before asking"
        )
    server_map = mapping_field(config, "vBucketServerMap")
    servers = texts_field(server_map, "serverList")
    rows = sequence_field(server_map, "vBucketMap")
    if not servers or not rows:
        raise ClusterMapError(
            f"bucket {bucket!r} has no vbucket map yet",
            fault="no map",
            hint="it is being created or warmed up: try again",
        )
    places = _read_places(rows, len(servers))
    nodes, network = _resolve(config, servers, origin, network, tls=tls)
    addresses, found = _addresses(nodes, places, network, tls=tls)
    capabilities = frozenset(texts_field(config, "bucketCapabilities"))
    has_manifest = "collectionsManifestUid" in config
    return ClusterMap(
        bucket=bucket,
        uuid=text_field(config, "uuid", ""),
        revision=(integer_field(config, "revEpoch", 0), integer_field(config, "rev", 0)),
        nodes=addresses,
        active=found[:, 0],
        replicas=found[:, 1:],
        network=network,
        tls=tls,
        capabilities=capabilities,
        manifest_uid=hexadecimal_field(config, "collectionsManifestUid") if has_manifest else None,
        cluster_uuid=text_field(config, "clusterUUID", ""),
        origin="" if any(node.has(origin, network, tls=tls) for node in nodes) else str(origin),
        elsewhere={
            here: node.kv_addresses(tls=tls, other_than=network)
            for node in nodes
            if (here := node.kv_address(network, tls=tls)) is not None
        },
    )


def _read_places(rows: Sequence[object], servers: int) -> npt.NDArray[np.int16]:
    """The map, checked: a row for each vbucket, the owner in column 0."""
    if len(rows) > MAX_VBUCKETS or servers > _MAX_SERVERS:
        raise ClusterMapError(
            f"the map has {len(rows)} vbuckets on {servers} nodes, and a bucket has {MAX_VBUCKETS} at most"
        )
    width = None
    for vbucket, row in enumerate(rows):
        if not isinstance(row, list | tuple) or not row:
            raise ClusterMapError(
                "the vbucket map has a row without an owner", fault="empty row", vbucket=vbucket
            )
        if width is None:
            width = len(row)
        if len(row) != width:
            raise ClusterMapError(
                f"the vbucket map is ragged: {len(row)} columns after {width}", vbucket=vbucket
            )
        for index in row:
            if not isinstance(index, int) or isinstance(index, bool) or not -1 <= index < servers:
                raise ClusterMapError(
                    f"the vbucket map names node {index!r}, but there are {servers}",
                    fault="no such server",
                    vbucket=vbucket,
                )
    return np.array(rows, np.int16)


def _resolve(
    config: Mapping[str, object], servers: Sequence[str], origin: HostPort, network: str, *, tls: bool
) -> tuple[list[ClusterNode], str]:
    """One node per entry of serverList, and the network to reach them on."""
    host = bare_host(origin.host)
    every_node = read_nodes(config, host)
    network = select_network(every_node, origin, network, tls=tls)
    if not every_node:
        plain = [server_address(server, host) for server in servers]
        return [ClusterNode({DEFAULT_NETWORK: Endpoint(host, {"kv": port})}) for host, port in plain], network
    # The order is all that ties the two lists together: the i-th data node is the i-th server.
    data_nodes = [node for node in every_node if node.is_data_node]
    if len(data_nodes) < len(servers):
        raise ClusterMapError(
            f"the config lists {len(servers)} servers but only {len(data_nodes)} data nodes"
        )
    return data_nodes[: len(servers)], network


def _addresses(
    nodes: Sequence[ClusterNode], table: npt.NDArray[np.int16], network: str, *, tls: bool
) -> tuple[tuple[str, ...], npt.NDArray[np.int16]]:
    """Addresses of the nodes that can be reached, and the map as indexes into them.

    A node that cannot be reached matters only if it owns a vbucket.
    """
    needed = set(table[:, 0].tolist())
    addresses: dict[str, None] = {}
    # One more than there are nodes: index −1 finds the last, so that "no owner" stays −1.
    places = np.full(len(nodes) + 1, _NO_ADDRESS, dtype=np.int16)
    places[-1] = _NO_NODE
    for index, node in enumerate(nodes):
        address = node.kv_address(network, tls=tls)
        if address in addresses:
            raise ClusterMapError(
                f"two nodes have one address on network {network!r}",
                node=address,
                hint="give each node a host or ports of its own (couchbase-cli setting-alternate-address)",
            )
        if address is not None:
            places[index] = len(addresses)
            addresses[address] = None
        elif index in needed:
            raise _unreachable(node, network, tls=tls)
    found = places[table]
    found.flags.writeable = False
    return tuple(addresses), found


def _unreachable(node: ClusterNode, network: str, *, tls: bool) -> ClusterMapError:
    where = node.networks[DEFAULT_NETWORK]
    port = where.ports.get("kv") or where.ports.get("kvSSL")
    name = join_address(where.host, port) if port else where.host
    if network not in node.networks:
        return ClusterMapError(
            f"the node has no address on network {network!r}",
            node=name,
            hint=f"it is on: {', '.join(sorted(node.networks))}",
        )
    if tls:
        error = ClusterMapError(
            "the node offers no TLS port for the data service, and plain text was not asked for",
            node=name,
            hint="turn TLS on in the cluster; couchbase:// and http:// would connect without encryption",
        )
        error.permanent = True
        return error
    if "kvSSL" not in node.networks[network].ports:
        return ClusterMapError(
            f"the node's data service has no port on network {network!r}",
            node=name,
            hint="publish the port in the alternate address, or choose another network",
        )
    return ClusterMapError(
        "the node offers only a TLS port for the data service",
        node=name,
        hint="connect with couchbases:// or https://",
    )


# --- the nodes: their services, their other addresses, and which to use


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
class ClusterNode:
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


def read_nodes(config: Mapping[str, object], origin_host: str) -> tuple[ClusterNode, ...]:
    """The entries of ``nodesExt``, in their order; none if the server is too old to have it."""
    return tuple(_read_node(entry, origin_host) for entry in mappings_field(config, "nodesExt"))


def _read_node(entry: Mapping[str, object], origin_host: str) -> ClusterNode:
    host = text_field(entry, "hostname", "").replace("$HOST", origin_host) or origin_host
    ports = _ports(entry, "services")
    networks = {DEFAULT_NETWORK: Endpoint(host, ports)}
    for name, alternate in mapping_field(entry, "alternateAddresses").items():
        other = as_mapping(alternate, "alternateAddresses")
        # Without ports of its own the other address forwards all; with them, only those.
        other_ports = _ports(other, "ports") if "ports" in other else ports
        networks[name] = Endpoint(text_field(other, "hostname"), other_ports)
    return ClusterNode(networks)


def _ports(source: Mapping[str, object], name: str) -> dict[str, int]:
    ports = mapping_field(source, name)
    found = {}
    for service in ports:
        port = integer_field(ports, service)
        if not 0 < port <= 0xFFFF:
            raise ClusterMapError(f"the cluster's answer has port {port} for service {service!r}")
        found[service] = port
    return found


def select_network(
    nodes: Sequence[ClusterNode], origin: HostPort, network: str = AUTO_NETWORK, *, tls: bool = False
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
    entries = mappings_field(services, "nodesExt")
    # The first of each address; of a nameless entry the host is empty.
    places: dict[tuple[str, int | None], int] = {}
    for position, entry in enumerate(entries):
        endpoint = _read_node(entry, origin_host).networks[DEFAULT_NETWORK]
        host = bare_host(endpoint.host) if entry.get("hostname") else ""
        places.setdefault((host, endpoint.ports.get("kv")), position)
    ordered: list[Mapping[str, object]] = []
    used: set[int] = set()
    for server in texts_field(mapping_field(config, "vBucketServerMap"), "serverList"):
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
