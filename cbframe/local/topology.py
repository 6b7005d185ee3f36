"""Who is in the cluster, and who has which vbucket: nodes that join, leave, crash and come back.

The engine's half is :class:`EngineTopology`; :class:`ClusterTopology` is what users call.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from cbframe.errors import ConfigurationError
from cbframe.local.bucket import LocalBucket
from cbframe.local.cluster_manager import ClusterConfig
from cbframe.local.node import LocalNode
from cbframe.local.vbucket import VBucket


class EngineTopology:
    """The engine's methods."""

    bucket: LocalBucket
    config: ClusterConfig
    nodes: list[LocalNode]
    make_node: Callable[[int, dict[str, int]], LocalNode]
    """Makes a node of a number, on these ports or on free ones."""
    _vbucket: Callable[[int], VBucket]

    def running(self) -> list[LocalNode]:
        """The nodes whose process lives."""
        return [node for node in self.nodes if node.alive]

    def _node(self, node: int) -> LocalNode:
        if not 0 <= node < len(self.nodes):
            raise ConfigurationError(f"no node {node}, only 0 to {len(self.nodes) - 1}")
        return self.nodes[node]

    def _living(self, node: int) -> LocalNode:
        found = self._node(node)
        if not found.alive:
            raise ConfigurationError(f"node {node} does not run", hint="restart it")
        return found

    def _member(self, node: int) -> LocalNode:
        found = self._node(node)
        if node not in self.config.members:
            raise ConfigurationError(f"node {node} is not in the cluster", hint="add_node() adds one")
        return found

    def _owner(self, node: int) -> None:
        """Check that a node can be given a vbucket."""
        self._living(node)
        self._member(node)

    def _active(self, node: int) -> list[int]:
        return [vb for vb, row in enumerate(self.bucket.map) if row[0] == node]

    def add_node(self) -> int:
        number = len(self.nodes)
        node = self.make_node(number, {})
        node.start()
        with self.bucket.lock:
            self.nodes.append(node)
            self.config.ports.append(node.ports)
            self.config.members.append(number)
            self.bucket.on_write.append(node.on_write)
            self.bucket.rev += 1
        self._push()
        return number

    def set_alternate_address(self, node: int, host: str, ports: dict[str, int]) -> None:
        self._node(node)
        with self.bucket.lock:
            self.config.alternates[node] = {"hostname": host} | ({"ports": ports} if ports else {})
            self.bucket.rev += 1
        self._push()

    def rebalance(self, eject: list[int]) -> None:
        for node in eject:
            self._member(node)
        if missing := [node for node in self.config.members if not self.nodes[node].alive]:
            raise ConfigurationError(
                f"node {missing[0]} does not run: nothing can be moved", hint="restart it, or fail it over"
            )
        stay = [node for node in self.config.members if node not in eject]
        self._check_rest(stay)
        count = len(self.bucket.vbuckets)
        for vbucket in range(count):
            owner = stay[vbucket * len(stay) // count]
            if self.bucket.map[vbucket][0] != owner:
                self.move_vbucket(vbucket, owner)
        with self.bucket.lock:
            self.config.members[:] = stay
            self._forget_copies(eject)
            self.bucket.rev += 1
        for node in eject:
            self._stop(self.nodes[node])
        self._push()

    def failover(self, node: int, lose: int) -> None:
        member = self._member(node)
        stay = [other for other in self.config.members if other != node]
        self._check_rest([other for other in stay if self.nodes[other].alive])
        self._stop(member)
        with self.bucket.lock:
            self.config.members[:] = stay
            living = [other for other in stay if self.nodes[other].alive]
            for turn, vbucket in enumerate(self._active(node)):
                copies = [copy for copy in self.bucket.map[vbucket][1:] if copy in living]
                self._lose(vbucket, lose, copies[0] if copies else living[turn % len(living)])
            self._forget_copies([node])
            self.bucket.rev += 1
        self._push()

    def kill(self, node: int, lose: int, clean: bool) -> None:
        self._stop(self._living(node))
        with self.bucket.lock:
            for vbucket in self._active(node):
                if self.bucket.ephemeral:
                    self._vbucket(vbucket).flush()
                elif not clean:
                    self._lose(vbucket, lose, None)

    def restart(self, node: int, same_ports: bool) -> None:
        before = self._member(node)
        if before.alive:
            raise ConfigurationError(f"node {node} runs")
        try:
            fresh = self.make_node(node, before.ports if same_ports else {})
        except OSError as exc:
            raise ConfigurationError(
                f"node {node} cannot have its ports back: {exc.strerror}", hint="let it have others"
            ) from exc
        fresh.start()
        with self.bucket.lock:
            self.nodes[node] = fresh
            if not same_ports:
                self.config.ports[node] = fresh.ports
            self.bucket.on_write.append(fresh.on_write)
            self.bucket.rev += 1
        self._push()

    def _check_rest(self, living: list[int]) -> None:
        if not living:
            raise ConfigurationError("no node that runs would be left to take the vbuckets")

    def _lose(self, vbucket: int, lose: int, node: int | None) -> None:
        self._fork(vbucket, max(0, self._vbucket(vbucket).high_seqno - lose), node)

    def _forget_copies(self, nodes: Iterable[int]) -> None:
        gone = set(nodes)
        for row in self.bucket.map:
            row[1:] = [-1 if copy in gone else copy for copy in row[1:]]

    def _stop(self, node: LocalNode) -> None:
        if not node.alive:
            return
        with self.bucket.lock:
            self.bucket.on_write.remove(node.on_write)
        # Not under the lock: the node's thread takes it as well.
        node.stop()

    def move_vbucket(self, vbucket: int, node: int) -> None:
        self._vbucket(vbucket)
        self._owner(node)
        with self.bucket.lock:
            self._give(vbucket, node)
            self.bucket.rev += 1
        for member in self.running():
            member.loop.call(partial(member.end_streams, vbucket, only_if_lost=True))
        self._push()

    def roll_back(self, vbucket: int, seqno: int, node: int | None = None) -> int:
        if node is not None:
            self._owner(node)
        with self.bucket.lock:
            vbuuid = self._fork(vbucket, seqno, node)
        # Not under the lock: the nodes' threads take it as well.
        self._end_streams(vbucket)
        return vbuuid

    def fail_over(self, vbucket: int, lose: int, node: int | None = None) -> int:
        if node is not None:
            self._owner(node)
        with self.bucket.lock:
            vbuuid = self._fork(vbucket, self._vbucket(vbucket).high_seqno - lose, node)
        self._end_streams(vbucket)
        return vbuuid

    def _fork(self, vbucket: int, seqno: int, node: int | None) -> int:
        vb = self._vbucket(vbucket)
        if not 0 <= seqno <= vb.high_seqno:
            raise ConfigurationError(f"vbucket {vbucket} has no seqno {seqno}, only 0 to {vb.high_seqno}")
        vb.truncate(seqno)
        if node is not None:
            self._give(vbucket, node)
        self.bucket.rev += 1
        return vb.vbuuid

    def _give(self, vbucket: int, node: int) -> None:
        row = self.bucket.map[vbucket]
        # The new owner may have been a replica: then the two change places.
        self.bucket.map[vbucket] = [node, *(row[0] if copy == node else copy for copy in row[1:])]

    def flush_vbucket(self, vbucket: int) -> None:
        with self.bucket.lock:
            self._vbucket(vbucket).flush()
            self.bucket.rev += 1
        self._end_streams(vbucket)

    def set_purge_seqno(self, vbucket: int, seqno: int) -> None:
        with self.bucket.lock:
            self._vbucket(vbucket).purge_seqno = seqno

    def _end_streams(self, vbucket: int) -> None:
        for member in self.running():
            member.loop.call(partial(member.end_streams, vbucket, only_if_lost=False))
        self._push()

    def _push(self) -> None:
        for member in self.running():
            member.loop.call(member.push_config)


class ClusterTopology(ABC):
    """The verbs of :class:`cbframe.local.LocalCluster` that change who has what."""

    @property
    @abstractmethod
    def _engine(self) -> Any: ...

    _ports: dict[str, list[int]]

    def add_node(self) -> int:
        """A node joins, without a vbucket until :meth:`rebalance`; its number."""
        number = int(self._engine.add_node())
        self._ports = self._engine.addresses()
        return number

    def set_alternate_address(
        self,
        node: int,
        host: str,
        *,
        kv: int | None = None,
        mgmt: int | None = None,
        kvSSL: int | None = None,  # noqa: N803 - as the cluster map has it
        mgmtSSL: int | None = None,  # noqa: N803 - as above
    ) -> None:
        """Give a node an address on the network ``external``, as ``couchbase-cli setting-alternate-address``.

        Parameters
        ----------
        node
            Number of the node.
        host
            What clients outside know it by.
        kv, mgmt, kvSSL, mgmtSSL
            The ports there, none for services that cannot be reached; without any, the node's own.
        """
        named = {"kv": kv, "mgmt": mgmt, "kvSSL": kvSSL, "mgmtSSL": mgmtSSL}
        ports = {service: port for service, port in named.items() if port is not None}
        self._engine.set_alternate_address(node, host, ports)

    def rebalance(self, *, eject: Iterable[int] = ()) -> None:
        """Spread the vbuckets evenly over the nodes, one after the other, without loss.

        Parameters
        ----------
        eject
            Nodes that leave: they end up without a vbucket, off the cluster map, and shut down.
        """
        self._engine.rebalance(list(eject))

    def failover(self, node: int, *, lose: int = 0) -> None:
        """Hard failover of a node: it is gone, off the map, and others take over its vbuckets.

        Parameters
        ----------
        node
            Number of the node, which may have been killed before.
        lose
            How many of the last seqnos of each of its vbuckets had not reached a replica: they never
            happened, history forks there.
        """
        self._engine.failover(node, lose)

    def kill(self, node: int, *, lose: int = 0, clean: bool = False) -> None:
        """End a node as SIGKILL ends a server: its sockets close at once. The map still names it.

        Parameters
        ----------
        node
            Number of the node.
        lose
            How many of the last seqnos of each of its vbuckets were not on disk yet: they never
            happened.
        clean
            An orderly shutdown: nothing is lost, and each vbucket keeps its history's uuid. Not so in an
            ephemeral bucket: there all that the node had is lost in any case.
        """
        self._engine.kill(node, lose, clean)

    def restart(self, node: int, *, same_ports: bool = False) -> None:
        """Bring a killed node back, on other ports unless told otherwise."""
        self._engine.restart(node, same_ports)
        self._ports = self._engine.addresses()

    def move_vbucket(self, vbucket: int, node: int) -> None:
        """Rebalance one vbucket to `node`: same data, same history, other owner.

        Streams at the old owner end with STATE_CHANGED; requests there get NOT_MY_VBUCKET.
        """
        self._engine.move_vbucket(vbucket, node)

    def fail_over(self, vbucket: int, *, lose: int = 0, node: int | None = None) -> int:
        """Hard failover of one vbucket: the last `lose` seqnos never happened, history forks there.

        Its streams end with STATE_CHANGED. With `node`, that node is the owner from now on.

        Returns
        -------
        int
            The new vbuuid.
        """
        return int(self._engine.fail_over(vbucket, lose, node))

    def roll_back(self, vbucket: int, seqno: int) -> int:
        """As :meth:`fail_over`, with everything above `seqno` lost."""
        return int(self._engine.roll_back(vbucket, seqno))

    def flush_vbucket(self, vbucket: int) -> None:
        """Lose all data of one vbucket; its failover log starts over."""
        self._engine.flush_vbucket(vbucket)

    def set_purge_seqno(self, vbucket: int, seqno: int) -> None:
        """Pretend that tombstones up to `seqno` were purged: older positions roll back to 0."""
        self._engine.set_purge_seqno(vbucket, seqno)
