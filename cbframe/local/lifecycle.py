"""The bucket's life: emptied, deleted, created anew, its tombstones purged.

The engine's half is :class:`EngineLifecycle`; :class:`ClusterLifecycle` is what users call.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from cbframe.errors import ConfigurationError
from cbframe.local.bucket import Bucket, check_vbuckets
from cbframe.local.config import ClusterConfig
from cbframe.local.node import Node
from cbframe.local.store import VBucket


class EngineLifecycle:
    """The engine's methods."""

    bucket: Bucket
    config: ClusterConfig
    running: Callable[[], list[Node]]
    _vbucket: Callable[[int], VBucket]
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

    def recreate(self, vbuckets: int | None) -> None:
        with self.bucket.lock:
            count = len(self.bucket.vbuckets) if vbuckets is None else vbuckets
            check_vbuckets(count)
            # Its connections close either way: nobody may find the new data under the old name.
            self.bucket.deleted = True
        self._close_connections()
        with self.bucket.lock:
            self.bucket.renew(count, self.config.members)
            self.bucket.deleted = False
        self._push()

    def purge(self, vbucket: int | None) -> int:
        with self.bucket.lock:
            wanted = self.bucket.vbuckets if vbucket is None else [self._vbucket(vbucket)]
            return sum(vb.purge() for vb in wanted)

    def _present(self) -> None:
        if self.bucket.deleted:
            raise ConfigurationError("the bucket is deleted", hint="recreate() makes it anew")

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
