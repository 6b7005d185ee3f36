"""Cluster maps that the cluster manager streams."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from typing import Self

import pytest

from cbframe import LocalCluster
from cbframe.cluster.auth import PasswordAuthenticator
from cbframe.cluster.connection_string import parse_connection_string
from cbframe.dcp.maps import MapFollower, MapSource
from cbframe.dcp.source import Supervisor
from cbframe.dcp.transport import SocketTransport, Stream, Transport, Waker
from cbframe.errors import AuthFailError, CbframeError, ConnectError, ReadTimeoutError
from cbframe.options import BucketDataSourceOptions
from cbframe.testing import FakeClock, RecordingReceiver
from cbframe.wire.constants import Feature

from .test_source import source_of, until

QUICK = BucketDataSourceOptions(cluster_manager_sleep_init_ms=1, cluster_manager_sleep_max_ms=10)


class Follow:
    """A follower, and what it told."""

    def __init__(
        self, urls: list[str], password: str = "password", transport: Transport | None = None
    ) -> None:
        self.told: list[int | CbframeError] = []
        """Revisions and errors."""
        self.clock = FakeClock()
        self._changed = threading.Condition()
        self._follower = MapFollower(
            parse_connection_string(urls),
            "default",
            lambda: PasswordAuthenticator("Administrator", password),
            QUICK,
            transport=lambda: transport or SocketTransport(),
            on_config=lambda _, config: self._tell(json.loads(config)["rev"]),
            on_error=self._tell,
            clock=self.clock,
        )

    def __enter__(self) -> Self:
        self._follower.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._follower.close()

    def _tell(self, what: int | CbframeError) -> None:
        with self._changed:
            self.told.append(what)
            self._changed.notify_all()

    def until(self, condition: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, 20), self.told

    def revisions(self) -> list[int]:
        return [item for item in self.told if isinstance(item, int)]

    def errors(self) -> list[CbframeError]:
        return [item for item in self.told if not isinstance(item, int)]


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(nodes=2, vbuckets=4, seed=1) as running:
        yield running


def test_every_change_is_told(cluster: LocalCluster) -> None:
    with Follow(cluster.rest_urls) as follow:
        follow.until(lambda: len(follow.revisions()) == 1)
        for turn in range(3):
            cluster.move_vbucket(0, (turn + 1) % 2)
            follow.until(lambda turn=turn: len(follow.revisions()) == turn + 2)  # type: ignore[misc]
        assert follow.revisions() == sorted(set(follow.revisions()))
        assert follow.errors() == []


def test_the_next_manager_when_one_goes(cluster: LocalCluster) -> None:
    with Follow(cluster.rest_urls) as follow:
        follow.until(lambda: len(follow.revisions()) == 1)
        cluster.kill(0, clean=True)
        follow.until(lambda: len(follow.revisions()) == 2)
        (error, *_) = follow.errors()
        assert type(error) is ConnectError
        assert error.node == cluster.rest_urls[0].removeprefix("http://")


def test_a_wrong_password(cluster: LocalCluster) -> None:
    with Follow(cluster.rest_urls, "wrong") as follow:
        follow.until(lambda: len(follow.errors()) >= 3)
    assert {type(error) for error in follow.errors()} == {AuthFailError}
    assert follow.revisions() == []


class Silent:
    """Connects at once, and says nothing: time passes with each wait."""

    def __init__(self) -> None:
        self.clock: FakeClock | None = None
        self.waits = 0

    def connect(self, node: str, waker: Waker, timeout: float) -> Stream:
        return self

    def receive_into(self, view: memoryview) -> int | None:
        return None

    def send_all(self, data: bytes, timeout: float) -> None: ...

    def wait(self, timeout: float | None, least: int = 1) -> bool:
        assert self.clock is not None
        assert timeout is not None
        self.clock.advance(timeout)
        self.waits += 1
        return False

    def close(self) -> None: ...


def test_a_manager_that_falls_silent() -> None:
    """It was asked to say something every 20 s."""
    silent = Silent()
    follow = Follow(["http://h:8091"], transport=silent)
    silent.clock = follow.clock
    with follow:
        follow.until(lambda: len(follow.errors()) >= 2)
    assert {type(error) for error in follow.errors()} == {ReadTimeoutError}
    assert "silent for 40 s" in str(follow.errors()[0])


def test_it_ends_while_it_connects() -> None:
    """Close does not wait for anything that is under way."""
    with LocalCluster(vbuckets=1, seed=1) as cluster, cluster.stall(), Follow(cluster.rest_urls) as follow:
        pass
    assert follow.told == []


# --- a source


@pytest.mark.parametrize("streaming", [True, False])
def test_a_rebalance_is_followed_by_what_the_manager_streams(
    cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch, streaming: bool
) -> None:
    """Where nodes push nothing, and maps are not to be fetched a second time."""
    pushes = {Feature.CLUSTERMAP_CHANGE_NOTIFICATION, Feature.DUPLEX}
    monkeypatch.setattr("cbframe.local.kv.GRANTED", frozenset(Feature) - pushes)
    fetches = 0
    fetch = MapSource.fetch

    def once(self: MapSource, *arguments: tuple[str, ...]) -> object:
        nonlocal fetches
        fetches += 1
        if fetches > 1:
            raise CbframeError("maps are not to be fetched here")
        return fetch(self, *arguments)

    monkeypatch.setattr(MapSource, "fetch", once)
    # A node that has lost a vbucket tells its new map with the refusal; not here.
    monkeypatch.setattr("cbframe.dcp.source.Supervisor.on_config", only_from(cluster))
    receiver = RecordingReceiver()
    cluster.upsert("before", {})
    # When a stream ends a map is wanted: what is streamed has to be there before one is fetched.
    wait = 20_000 if streaming else 1
    options = {
        "seq_end": None,
        "map_poll_interval": None,
        "map_streaming": streaming,
        "cluster_manager_sleep_init_ms": wait,
        "cluster_manager_sleep_max_ms": wait,
    }
    with source_of(cluster, receiver, seeds=cluster.rest_urls, **options) as source:
        until(receiver, lambda: b"before" in receiver.values())
        for vbucket in range(4):
            cluster.move_vbucket(vbucket, 0 if vbucket >= 2 else 1)
        for n in range(20):
            cluster.upsert(f"k{n}", {})
        if streaming:
            until(receiver, lambda: len(receiver.values()) == 21)
            assert fetches == 1
            assert not receiver.errors
        else:
            until(receiver, lambda: fetches > 1 and bool(receiver.errors))
        assert source.map is not None


def only_from(cluster: LocalCluster) -> Callable[..., None]:
    original = Supervisor.on_config
    managers = {url.removeprefix("http://") for url in cluster.rest_urls}

    def on_config(self: Supervisor, node: str, body: bytes) -> None:
        if node in managers:
            original(self, node, body)

    return on_config
