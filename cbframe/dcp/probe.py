"""Why a connection fails: one step of it at a time, from outside, as ``cbframe.doctor`` reports them."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from cbframe.cluster.auth import Authenticator, AuthLike
from cbframe.cluster.cluster_map import AUTO_NETWORK
from cbframe.cluster.connection_string import HostPort
from cbframe.cluster.tls import Peer, TLSContext, TLSLike
from cbframe.dcp.handshake import (
    Login,
    Steps,
    T,
    connection_name,
    fetch_cluster_config,
    fetch_config,
    open_dcp,
)
from cbframe.dcp.maps import absence, is_not_yet
from cbframe.dcp.receiver import DiscardingReceiver
from cbframe.dcp.source import BucketDataSource
from cbframe.dcp.transport import Line, SocketTransport, Waker, at_once, resolve, split_address, tls_peer
from cbframe.errors import BucketNotFoundError, CbframeError, ConnectError, ReadTimeoutError
from cbframe.options import BucketDataSourceOptions
from cbframe.public import ServerURLs
from cbframe.system import Event
from cbframe.wire.constants import Opcode

SERVICE, LOGIN, BUCKET, ROLE, DCP = "service", "login", "bucket", "role", "DCP"
_STAGES = {
    Opcode.HELLO: SERVICE,
    Opcode.SASL_LIST_MECHS: LOGIN,
    Opcode.SASL_AUTH: LOGIN,
    Opcode.SASL_STEP: LOGIN,
    Opcode.SELECT_BUCKET: BUCKET,
    Opcode.GET_CLUSTER_CONFIG: BUCKET,
    Opcode.GET_ALL_VB_SEQNOS: ROLE,
    Opcode.DCP_OPEN: ROLE,
}
_LONG = 1.0
"""Seconds in which a node on any continent answers."""
_PAUSE = 0.2
"""Seconds until a node is asked again that does not have the bucket yet."""
_POLL = 0.02
"""Seconds between two checks whether a source is over."""


@dataclass(slots=True)
class Outcome:
    """What came of talking to a data node."""

    error: CbframeError | None = None  # why it ended early; None if it did not
    stage: str = ""  # what was under way then; empty if there was no connection yet
    answer: bytes = b""  # the cluster map's JSON, where that was asked for
    mechanism: str = ""  # the SASL mechanism that was tried last; empty without a password


def out_of_time() -> ReadTimeoutError:
    """Of an examination that has used up its time."""
    return ReadTimeoutError("there is no time left to look", hint="give doctor() a larger timeout")


class Probe:
    """Asks one thing at a time, each turn of it within its seconds; from any thread."""

    def __init__(
        self,
        context: TLSContext | None,  # of TLS; None for plain text
        timeout: float,
        left: Callable[[], float],  # seconds until everything has to be over
        *,
        sleep: Callable[[float], None] = time.sleep,  # stand-ins for tests
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._context = context
        self._timeout = timeout
        self._left = left
        self._sleep = sleep
        self._clock = clock

    @contextlib.contextmanager
    def _in_time(self) -> Iterator[float]:
        """The seconds of a turn; silence at the end of all time is no sign of anything if it was short."""
        left = self._left()
        if left <= 0:
            raise out_of_time()
        try:
            yield min(self._timeout, left)
        except (ConnectError, ReadTimeoutError) as exc:
            if self._left() > 0 or left >= _LONG:
                raise
            raise out_of_time() from exc

    def addresses(self, node: str, waker: Waker) -> list[str]:
        """What the host's name stands for."""
        host, port = split_address(node)
        with self._in_time() as seconds:
            found = resolve(host, port, waker, seconds, node)
        return list(dict.fromkeys(str(address[4][0]) for address in found))

    def connect(self, node: str, waker: Waker) -> None:
        """Open the port, and close it again."""
        with self._in_time() as seconds:
            SocketTransport().connect(node, waker, seconds).close()

    def secure(self, node: str, waker: Waker) -> Peer:
        """Make a TLS connection, and close it again: what the node has shown."""
        assert self._context is not None, "TLS was asked for"
        with self._in_time() as seconds:
            return tls_peer(self._context, node, waker, seconds)

    def fetch_config(
        self, node: str, login: Login, auth: Authenticator, network: str = AUTO_NETWORK
    ) -> Outcome:
        """Log in at a data node, and ask for the cluster map.

        A bucket that the node does not have is asked for again, unless a cluster manager says that there
        is none.
        """

        def attempt() -> Outcome:
            return self._answer(node, fetch_config(login))

        outcome = attempt()
        if isinstance(outcome.error, BucketNotFoundError) and not outcome.error.permanent:
            whole = self._answer(node, fetch_cluster_config(login))
            origin, context = HostPort(*split_address(node)), self._context
            error = absence(whole.answer, origin, login, auth, network=network, tls_context=context)
            if error is not None:
                outcome.error = error
                return outcome
        return self._when_loaded(attempt, outcome)

    def _answer(self, node: str, steps: Steps[bytes]) -> Outcome:
        outcome = Outcome()
        with contextlib.closing(Waker()) as waker:
            outcome.answer = self._talk(node, steps, outcome, waker) or b""
        return outcome

    def _when_loaded(self, attempt: Callable[[], Outcome], outcome: Outcome) -> Outcome:
        """The outcome of another attempt, while nodes say that they or the bucket are starting."""
        if outcome.stage not in ("", SERVICE) and type(outcome.error) is ConnectError:
            outcome = attempt()  # a node that is ready now hangs up on who came before, in place of an answer
        until = self._clock() + min(self._timeout, self._left())
        late = outcome.error is not None and is_not_yet(outcome.error)
        while late and outcome.error is not None and not outcome.error.permanent:
            if self._clock() >= until:
                break
            self._sleep(_PAUSE)
            outcome = attempt()
        return outcome

    def open_dcp(self, nodes: Sequence[str], login: Login) -> dict[str, Outcome]:
        """Open DCP at data nodes, all at the same time."""
        outcomes = at_once([partial(self._open, node, login) for node in nodes])
        return {
            node: Outcome(outcome) if isinstance(outcome, CbframeError) else outcome
            for node, outcome in zip(nodes, outcomes, strict=True)
        }

    def _open(self, node: str, login: Login, waker: Waker) -> Outcome:
        options, name = BucketDataSourceOptions(compression=False), connection_name("cbframe:doctor")

        def attempt() -> Outcome:
            outcome = Outcome()
            self._talk(node, open_dcp(login, options, name), outcome, waker)
            return outcome

        return self._when_loaded(attempt, attempt())

    def _talk(self, node: str, steps: Steps[T], outcome: Outcome, waker: Waker) -> T | None:
        """The result of a conversation; None, and an error in `outcome`, if it has none."""
        try:
            with self._in_time() as seconds, contextlib.ExitStack() as stack:
                transport = SocketTransport(self._context)
                line = Line(node, transport=transport, waker=waker, clock=self._clock, timeout=seconds)
                stack.callback(line.close)
                return line.run(_staged(steps, outcome))
        except CbframeError as exc:
            exc.node = exc.node or node
            outcome.error = exc
            return None


def _staged(steps: Steps[T], outcome: Outcome) -> Steps[T]:
    """The same steps, noting whose answer comes next."""
    waiting: deque[int] = deque()
    try:
        frames = next(steps)
        while True:
            waiting.extend(frame.opcode for frame in frames)
            for frame in frames:
                if frame.opcode == Opcode.SASL_AUTH:
                    outcome.mechanism = frame.key.decode()
            outcome.stage = _STAGES.get(Opcode(waiting.popleft()), DCP)
            frames = steps.send((yield frames))
    except StopIteration as end:
        result: T = end.value
        return result
    finally:
        steps.close()


@dataclass(slots=True)
class _FirstMarker(DiscardingReceiver):
    """A receiver that waits for the first sign that changes come."""

    seen: Event = field(default_factory=Event)
    vbucket: int = -1
    end: int = 0
    error: CbframeError | None = None

    def on_error(self, error: CbframeError) -> None:
        self.error = error

    def snapshot_start(self, vbucket: int, start: int, end: int, flags: int) -> None:  # noqa: ARG002
        if not self.seen.is_set():
            self.vbucket, self.end = vbucket, end
            self.seen.set()


def first_marker(
    server_urls: ServerURLs,
    bucket: str,
    auth: AuthLike,
    timeout: float,  # seconds since something came, and for all of it
    limit: float,
    *,
    tls: TLSLike = None,
    network: str = "auto",
    of: BucketDataSourceOptions,  # has the collections that are asked for
) -> tuple[int, int] | None:
    """Stream until the first snapshot begins: its vbucket and its end; None if there is nothing."""
    receiver = _FirstMarker()
    options = replace(
        of,
        name="cbframe:doctor",
        seq_end="now",
        no_value=True,
        feed_buffer_size_bytes=64 * 1024,
        connect_timeout=timeout,
        recovery_timeout=timeout,
        map_streaming=False,
    )
    source = BucketDataSource(
        server_urls, "default", bucket, "", None, auth, receiver, options, tls_context=tls, network=network
    )
    began = time.monotonic()
    progress, until = (False, 0), began + timeout
    try:
        source.start()
        while not source.finished and not receiver.seen.wait(_POLL):
            now = time.monotonic()
            before, progress = progress, (source.map is not None, source.stats().total.bytes_received)
            if progress != before:
                until = min(now + timeout, began + limit)
            if now >= until:
                error = out_of_time()
                if now < began + limit:
                    error = ReadTimeoutError(
                        f"no snapshot began within {now - began:.0f} s",
                        hint="the bucket may be warming up, or its disk may be slow: try again",
                    )
                error.__cause__ = receiver.error
                raise error
        if receiver.seen.is_set():
            return receiver.vbucket, receiver.end
        source.wait(0)
        return None
    finally:
        source.close()
