"""A thread that follows the cluster manager's stream of configurations."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import cycle

from cbframe.cluster.answers import ConfigFeed, feed_request
from cbframe.cluster.auth import Authenticator
from cbframe.cluster.backoff import Backoff
from cbframe.cluster.connection_string import ConnectionString
from cbframe.dcp.transport import Transport, Waker
from cbframe.errors import CbframeError, ConnectError, ReadCancelledError, ReadTimeoutError
from cbframe.limits import OwnThread, allocate
from cbframe.options import BucketDataSourceOptions

_HEARTBEAT = 20
"""Seconds after which the manager says something at the latest."""


class MapFollower:
    """Has every new configuration of a bucket from any of its cluster managers."""

    def __init__(
        self,
        target: ConnectionString,  # the managers, taken in turn whenever a connection ends
        bucket: str,  # whose configurations
        auth: Callable[[], Authenticator],  # gives the credentials of each connection
        options: BucketDataSourceOptions,  # how long a connection may take, and the waits between two of them
        *,
        transport: Callable[[], Transport],  # connects to the managers
        on_config: Callable[[str, bytes], None],  # called with the manager's `host:port` and the JSON
        on_error: Callable[[CbframeError], None],  # called with each problem
        clock: Callable[[], float],  # monotonic seconds
    ) -> None:
        self._managers = tuple(str(seed) for seed in target.seeds())
        self._bucket = bucket
        self._auth = auth
        self._transport = transport
        self._on_config = on_config
        self._on_error = on_error
        self._timeout = options.connect_timeout
        self._backoff = Backoff(
            options.cluster_manager_sleep_init_ms,
            options.cluster_manager_backoff_factor,
            options.cluster_manager_sleep_max_ms,
        )
        self._clock = clock
        self._closing = threading.Event()
        self._buffer = allocate(64 * 1024)
        self._waker = Waker()
        self._thread = OwnThread(self._run, "cbframe-config")

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """End the thread, and wait for it."""
        self._closing.set()
        self._waker.wake()
        self._thread.join()
        self._waker.close()

    def _run(self) -> None:
        for manager in cycle(self._managers):
            try:
                self._follow(manager)
            except ReadCancelledError:
                pass
            except CbframeError as exc:
                exc.node = exc.node or manager
                self._on_error(exc)
            if self._closing.wait(self._backoff.next_delay()):
                return

    def _follow(self, manager: str) -> None:
        stream = self._transport().connect(manager, self._waker, self._timeout)
        try:
            stream.send_all(feed_request(manager, self._bucket, self._auth(), _HEARTBEAT), self._timeout)
            feed = ConfigFeed(manager)
            view = memoryview(self._buffer)
            heard = self._clock()
            while not self._closing.is_set():
                count = stream.receive_into(view)
                if count == 0:
                    raise ConnectError("the cluster manager closed the connection", node=manager)
                if count:
                    heard = self._clock()
                    for config in feed.receive(view[:count]):
                        self._backoff.reset()
                        self._on_config(manager, config)
                    continue
                left = heard + 2 * _HEARTBEAT - self._clock()
                if left <= 0:
                    raise ReadTimeoutError(
                        f"the cluster manager was silent for {2 * _HEARTBEAT} s", node=manager
                    )
                stream.wait(left)
        finally:
            stream.close()
