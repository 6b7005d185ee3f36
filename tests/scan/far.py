"""A cluster that is far away: what goes back and forth is counted, or takes its time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from cbframe import LocalCluster

_QUIET = 0.04
"""Seconds without a byte in either direction, after which a turn is over."""


class _Wire:
    """One connection: what its node has sent and the client has not got yet."""

    def __init__(self, client: asyncio.StreamWriter, opened: float) -> None:
        self.client = client
        self.connecting = True
        self.held = bytearray()
        self.over = False
        self.opened = opened


class Distance:
    """Stands between clients and all nodes of a cluster, on a thread of its own.

    Parameters
    ----------
    seconds
        The round trip time; None to count turns: then what nodes send is held back until nobody says
        anything any more, and all of it is handed over at once. Connecting is a turn, too.
    """

    def __init__(self, cluster: LocalCluster, seconds: float | None = None) -> None:
        self._cluster = cluster
        self._seconds = seconds
        self._wires: list[_Wire] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._tasks: set[asyncio.Task[None]] = set()
        self._servers: list[asyncio.Server] = []
        self._writers: list[asyncio.StreamWriter] = []
        self._heard = 0.0
        self._own: dict[int, dict[str, int]] = {}
        self.turns = 0
        self.connections = 0

    def __enter__(self) -> Self:
        self._thread.start()
        for node in self._cluster.members:
            own = self._own[node] = self._cluster.ports(node)
            far = {service: self._run(self._listen(port)) for service, port in own.items()}
            self._cluster.advertise(node, **far)
        if self._seconds is None:
            self._run(self._start(self._count()))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for node, own in self._own.items():
            self._cluster.advertise(node, **own)
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def of(self, work: Callable[[], object]) -> int:
        """How many turns one after the other something takes."""
        before = self.turns
        work()
        return self.turns - before

    def _run(self, work):  # type: ignore[no-untyped-def]
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _start(self, work) -> None:  # type: ignore[no-untyped-def]
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _end(self) -> None:
        for server in self._servers:
            server.close()
        await self._settle()  # what was accepted by now has a task
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers:  # a task that was cancelled before it began has closed nothing
            writer.transport.abort()
        await self._settle()

    async def _settle(self) -> None:
        """Give the loop its turns: from an accepted connection to its task, from an end to its close."""
        for _ in range(10):
            await asyncio.sleep(0)

    async def _listen(self, target: int) -> int:
        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._writers.append(writer)
            await self._start(self._pass(target, reader, writer))

        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        self._servers.append(server)
        port: int = server.sockets[0].getsockname()[1]
        return port

    async def _pass(self, target: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        wire = _Wire(writer, self._loop.time())
        self._wires.append(wire)
        self._heard = self._loop.time()
        theirs, ours = await asyncio.open_connection("127.0.0.1", target)
        self._writers.append(ours)
        half = 0.0 if self._seconds is None else self._seconds / 2
        try:
            if half:
                await asyncio.sleep(2 * half)
            await asyncio.gather(self._up(reader, ours, half), self._down(theirs, wire, half))
        except OSError:
            pass  # one side has hung up
        finally:
            self._wires.remove(wire)
            ours.close()
            writer.close()

    async def _up(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, half: float) -> None:
        async for data in _delayed(reader, half):
            self._heard = self._loop.time()
            writer.write(data)
        writer.close()

    async def _down(self, reader: asyncio.StreamReader, wire: _Wire, half: float) -> None:
        async for data in _delayed(reader, half):
            self._heard = self._loop.time()
            if self._seconds is None:
                wire.held += data
            else:
                wire.client.write(data)
        wire.over = True
        while self._seconds is None and (wire.held or wire.connecting):
            await asyncio.sleep(_QUIET / 4)
        wire.client.close()

    async def _count(self) -> None:
        while True:
            await asyncio.sleep(_QUIET / 4)
            busy = [wire for wire in self._wires if wire.held or wire.connecting]
            if not busy or self._loop.time() - self._heard < _QUIET:
                continue
            self.turns += 1
            self._heard = self._loop.time()
            for wire in busy:
                if wire.connecting:
                    wire.connecting = False
                else:
                    wire.client.write(bytes(wire.held))
                    wire.held.clear()


async def _delayed(reader: asyncio.StreamReader, seconds: float):  # type: ignore[no-untyped-def]
    """What is read, each piece so much later."""
    loop = asyncio.get_running_loop()
    pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

    async def fill() -> None:
        data = b"."
        while data:
            try:
                data = await reader.read(1 << 16)
            except OSError:
                data = b""
            await pieces.put((loop.time() + seconds, data))

    task = loop.create_task(fill())
    try:
        while True:
            due, data = await pieces.get()
            await asyncio.sleep(max(0.0, due - loop.time()))
            if not data:
                return
            yield data
    finally:
        task.cancel()
