"""The bucket's life: emptied, deleted, created again, paused, its tombstones purged; nodes that start.

The engine's half is :class:`EngineLifecycle`; :class:`ClusterLifecycle` is what users call.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from cbframe.errors import ConfigurationError
from cbframe.local.bucket import LocalBucket, check_vbuckets
from cbframe.local.cluster_manager import ClusterConfig
from cbframe.local.node import LocalNode
from cbframe.local.vbucket import VBucket


class EngineLifecycle:
    """The engine's methods."""

    bucket: LocalBucket
    config: ClusterConfig
    running: Callable[[], list[LocalNode]]
    _vbucket: Callable[[int], VBucket]
    _node: Callable[[int], LocalNode]
    _push: Callable[[], None]

    def flush(self, *, wait: bool = True) -> None:
        """With `wait`, all streams have ended afterwards; a node's own thread cannot wait for others."""
        if not self.bucket.flush_enabled:
            raise ConfigurationError(
                "flush is not enabled for the bucket", hint="LocalCluster(flush_enabled=True)"
            )
        with self.bucket.lock:
            self._present()
            for vbucket in self.bucket.vbuckets:
                vbucket.flush()
            self.bucket.record(self.bucket.manifest.events())
        for member in self.running():
            run = member.loop.call if wait else member.loop.post
            run(member.end_all_streams)
            run(member.push_config)

    def delete_bucket(self) -> None:
        with self.bucket.lock:
            self._present()
            self.bucket.deleted = True
        self._close_connections()
        for member in self.running():
            member.loop.call(member.close_config_streams)

    def recreate(self, vbuckets: int | None) -> None:
        with self.bucket.lock:
            count = len(self.bucket.vbuckets) if vbuckets is None else vbuckets
            check_vbuckets(count)
            # Its connections close either way: nobody may find the new data under the old name.
            self.bucket.deleted = True
        self._close_connections()
        for member in self.running():
            member.loop.call(member.close_config_streams)
        with self.bucket.lock:
            self.bucket.renew(count, self.config.members)
            self.bucket.deleted = self.bucket.paused = False
        self._push()

    def purge(self, vbucket: int | None) -> int:
        with self.bucket.lock:
            wanted = self.bucket.vbuckets if vbucket is None else [self._vbucket(vbucket)]
            return sum(vb.purge() for vb in wanted)

    def set_paused(self, paused: bool) -> None:
        with self.bucket.lock:
            self._present()
            self.bucket.paused = paused
            self.bucket.rev += 1
        if paused:
            self._close_connections()
        self._push()

    def set_starting(self, node: int, starting: bool) -> None:
        self._without_bucket(node, self.config.starting, starting)

    def set_config_only(self, node: int, config_only: bool) -> None:
        if not self.bucket.release.is_8:
            raise ConfigurationError(
                "nodes of this version do not answer CONFIG_ONLY", hint='LocalCluster(version="8.0")'
            )
        self._without_bucket(node, self.config.config_only, config_only)

    def _without_bucket(self, node: int, nodes: set[int], without: bool) -> None:
        member = self._node(node)
        with self.bucket.lock:
            (nodes.add if without else nodes.discard)(node)
            self.bucket.rev += 1
        if member.alive:
            member.loop.call(member.close_bucket)
        self._push()

    def _present(self) -> None:
        if self.bucket.deleted:
            raise ConfigurationError("the bucket is deleted", hint="recreate() creates it again")

    def _close_connections(self) -> None:
        for member in self.running():
            member.loop.call(member.close_bucket)


class ClusterLifecycle(ABC):
    """The verbs of :class:`cbframe.local.LocalCluster` for the bucket as a whole."""

    @property
    @abstractmethod
    def _engine(self) -> Any: ...

    _options: dict[str, Any]

    def flush(self) -> None:
        """Empty the bucket: same uuid, but every vbucket begins a new history.

        All streams end with STATE_CHANGED. What clients had is rolled back to 0 when they come back.
        REST does the same: ``POST /pools/default/buckets/NAME/controller/doFlush``.

        Raises
        ------
        ConfigurationError
            The cluster was made with ``flush_enabled=False``.
        """
        self._engine.flush()

    def delete_bucket(self) -> None:
        """Delete the bucket: its connections close, and nobody finds it until :meth:`recreate`."""
        self._engine.delete_bucket()

    def recreate(self, *, vbuckets: int | None = None) -> None:
        """Delete the bucket and create another of the same name: another uuid, no data, no collections.

        Parameters
        ----------
        vbuckets
            How many the new one has; None for as many as before.
        """
        self._engine.recreate(vbuckets)
        if vbuckets is not None:
            self._options["vbuckets"] = vbuckets

    def pause_bucket(self) -> None:
        """Pause (hibernate) the bucket: it keeps its data and leaves the nodes until :meth:`resume_bucket`.

        Its connections close. Clients that may use the bucket get KEY_ENOENT to SELECT_BUCKET, the
        cluster map has no vbuckets, and REST says ``"hibernationState": "paused"``.
        """
        self._engine.set_paused(True)

    def resume_bucket(self) -> None:
        """The opposite of :meth:`pause_bucket`: same uuid, same data, same history."""
        self._engine.set_paused(False)

    @contextmanager
    def starting(self, node: int = 0) -> Iterator[None]:
        """A node that was started a moment ago and has not yet loaded the bucket.

        The cluster map names the node. Connections that used the bucket close, and SELECT_BUCKET is
        KEY_ENOENT for users with access to the bucket.
        """
        self._engine.set_starting(node, True)
        try:
            yield
        finally:
            self._engine.set_starting(node, False)

    @contextmanager
    def config_only(self, node: int = 0) -> Iterator[None]:
        """A node that has the bucket's map and not yet the bucket, as all from 7.6 on when they start.

        SELECT_BUCKET and GET_CLUSTER_CONFIG succeed; everything else that needs a bucket is CONFIG_ONLY.

        Raises
        ------
        ConfigurationError
            The cluster's `version` has no such state.
        """
        self._engine.set_config_only(node, True)
        try:
            yield
        finally:
            self._engine.set_config_only(node, False)

    def purge(self, vbucket: int | None = None) -> int:
        """Let the tombstones of one vbucket, or of all, really be gone, as they are after some days.

        Backfills do not have them any more, and clients whose position is older than the last of them
        roll back to 0: they would never learn of those deletions. The newest change of a vbucket stays.

        Returns
        -------
        int
            How many were purged.
        """
        return int(self._engine.purge(vbucket))
