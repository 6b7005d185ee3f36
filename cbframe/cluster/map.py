"""The cluster map of a bucket: which node owns which vbucket."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from cbframe.cluster import fields
from cbframe.cluster.connection_string import HostPort, bare_host, join_address
from cbframe.cluster.nodes import (
    AUTO_NETWORK,
    DEFAULT_NETWORK,
    Endpoint,
    Node,
    read_nodes,
    select_network,
    server_address,
)
from cbframe.errors import ClusterMapError

_MAX_VBUCKETS = 0x10000
"""A vbucket number has 16 bits on the wire."""
_MAX_SERVERS = 0x7FFF
_NO_REVISION = (0, 0)


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

    def by_node(self) -> dict[str, list[int]]:
        """The vbuckets of each owner, ascending; nodes that own none are left out."""
        found = {
            node: [int(vbucket) for vbucket in np.flatnonzero(self.active == index)]
            for index, node in enumerate(self.nodes)
        }
        return {node: vbuckets for node, vbuckets in found.items() if vbuckets}

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
        return self._scalars() == other._scalars() and np.array_equal(self.active, other.active)

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
    bucket = fields.text(config, "name", "")
    if fields.text(config, "nodeLocator", "vbucket") == "ketama" or config.get("bucketType") == "memcached":
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
    server_map = fields.mapping(config, "vBucketServerMap")
    servers = fields.texts(server_map, "serverList")
    rows = fields.sequence(server_map, "vBucketMap")
    if not servers or not rows:
        raise ClusterMapError(
            f"bucket {bucket!r} has no vbucket map yet",
            fault="no map",
            hint="it is being created or warmed up: try again",
        )
    owners = _read_owners(rows, len(servers))
    nodes, network = _resolve(config, servers, origin, network, tls=tls)
    addresses, active = _addresses(nodes, owners, network, tls=tls)
    capabilities = frozenset(fields.texts(config, "bucketCapabilities"))
    has_manifest = "collectionsManifestUid" in config
    return ClusterMap(
        bucket=bucket,
        uuid=fields.text(config, "uuid", ""),
        revision=(fields.integer(config, "revEpoch", 0), fields.integer(config, "rev", 0)),
        nodes=addresses,
        active=active,
        network=network,
        tls=tls,
        capabilities=capabilities,
        manifest_uid=fields.hexadecimal(config, "collectionsManifestUid") if has_manifest else None,
        cluster_uuid=fields.text(config, "clusterUUID", ""),
        origin="" if any(node.has(origin, network, tls=tls) for node in nodes) else str(origin),
        elsewhere={
            here: node.kv_addresses(tls=tls, other_than=network)
            for node in nodes
            if (here := node.kv_address(network, tls=tls)) is not None
        },
    )


def _read_owners(rows: Sequence[object], servers: int) -> list[int]:
    """Column 0 of the map, after a check of all columns."""
    if len(rows) > _MAX_VBUCKETS or servers > _MAX_SERVERS:
        raise ClusterMapError(f"a map of {len(rows)} vbuckets on {servers} nodes is larger than any")
    owners = []
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
        owners.append(row[0])
    return owners


def _resolve(
    config: Mapping[str, object], servers: Sequence[str], origin: HostPort, network: str, *, tls: bool
) -> tuple[list[Node], str]:
    """One node per entry of serverList, and the network to reach them on."""
    host = bare_host(origin.host)
    every_node = read_nodes(config, host)
    network = select_network(every_node, origin, network, tls=tls)
    if not every_node:
        plain = [server_address(server, host) for server in servers]
        return [Node({DEFAULT_NETWORK: Endpoint(host, {"kv": port})}) for host, port in plain], network
    # The order is all that ties the two lists together: the i-th data node is the i-th server.
    data_nodes = [node for node in every_node if node.is_data_node]
    if len(data_nodes) < len(servers):
        raise ClusterMapError(
            f"the config lists {len(servers)} servers but only {len(data_nodes)} data nodes"
        )
    return data_nodes[: len(servers)], network


def _addresses(
    nodes: Sequence[Node], owners: Sequence[int], network: str, *, tls: bool
) -> tuple[tuple[str, ...], npt.NDArray[np.int16]]:
    """Addresses of the nodes that can be reached, and the owners as indexes into them.

    A node that cannot be reached matters only if it owns a vbucket.
    """
    needed = {owner for owner in owners if owner >= 0}
    addresses: dict[str, None] = {}
    # One more than there are nodes: index −1 finds the last, so that "no owner" stays −1.
    places = np.full(len(nodes) + 1, -1, dtype=np.int16)
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
    active = places[np.asarray(owners, dtype=np.intp)]
    active.flags.writeable = False
    return tuple(addresses), active


def _unreachable(node: Node, network: str, *, tls: bool) -> ClusterMapError:
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
