"""The supervisor: the thread that runs the coordinator over the threads of the nodes."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from cbframe.dcp import plan, verdicts
from cbframe.dcp.coordinator import Coordinator
from cbframe.dcp.node import NodeThread
from cbframe.dcp.stats import ClusterCounters
from cbframe.errors import CbframeError, ReadCancelledError, ResourceError
from cbframe.system import OwnThread


class Supervisor:
    """The thread that feeds the coordinator and carries its instructions out."""

    def __init__(
        self,
        coordinator: Coordinator,  # the logic; touched by this thread only, once started
        *,
        fetch_map: Callable[[], plan.Event],
        cancel_fetch: Callable[[], None],  # ends `fetch_map` soon, for good
        make_node: Callable[[str], NodeThread],  # makes the thread of a node
        on_error: Callable[[CbframeError], None],
        on_over: Callable[[CbframeError | None], None],
        on_begin: Callable[[], None],
        on_end: Callable[[], None],
        clock: Callable[[], float],
        counters: ClusterCounters,  # to be moved
    ) -> None:
        self._counters = counters
        self._coordinator = coordinator
        self._fetch_map = fetch_map
        self._cancel_fetch = cancel_fetch
        self._make_node = make_node
        self._on_error = on_error
        self._on_over = on_over
        self._on_begin = on_begin
        self._on_end = on_end
        self._clock = clock
        self._events: deque[plan.Event] = deque([plan.Started()])
        self._arrived = threading.Condition()
        self._closing = False
        self._ended_for_good = False
        self._told = False
        self.nodes: dict[str, NodeThread] = {}
        self._ended: list[NodeThread] = []
        self._fetcher: OwnThread | None = None
        self._thread = OwnThread(self._run, "cbframe-cluster")

    def start(self) -> None:
        """Begin; ResourceError if there is no thread."""
        self._thread.start()

    def post(self, event: plan.Event) -> None:
        """Hand an event over; callable from any thread."""
        with self._arrived:
            if self._ended_for_good:
                self._coordinator.dismiss(event)
                return
            if not self._events:
                self._arrived.notify()
            self._events.append(event)

    def close(self) -> None:
        """End all threads, and wait for them unless this is one of them."""
        with self._arrived:
            self._closing = True
            self._arrived.notify()
        current = threading.current_thread()
        ours = {self._thread, self._fetcher, *(node.thread for node in list(self.nodes.values()))}
        if current not in ours:
            self._thread.join()

    def _run(self) -> None:
        error: CbframeError | None = None
        counters = self._counters
        counters.tot_refresh_workers_started += 1
        try:
            self._on_begin()
            self._loop()
        except CbframeError as exc:
            error = exc
        except Exception as exc:  # noqa: BLE001 - a fault of ours must end the read, not hang it
            error = verdicts.unexpected(exc, "in the coordinator")
        finally:
            counters.tot_refresh_workers_loop_done += 1
            self._cancel_fetch()
            for node in self.nodes.values():
                counters.tot_refresh_workers_close_worker += 1
                node.stop()
            for node in [*self.nodes.values(), *self._ended]:
                node.join()
            if self._fetcher is not None:
                self._fetcher.join()
            self._on_end()
            with self._arrived:
                self._ended_for_good = True
                for event in self._events:
                    self._coordinator.dismiss(event)
                self._events.clear()
            counters.tot_refresh_workers_done += 1
            counters.tot_refresh_cluster_done += 1
            self._tell(error)

    def _loop(self) -> None:
        while True:
            with self._arrived:
                while not self._events and not self._closing:
                    wakeup = self._coordinator.next_wakeup()
                    if wakeup is None:
                        self._arrived.wait()
                    elif (left := wakeup - self._clock()) <= 0 or not self._arrived.wait(left):
                        self._events.append(plan.Tick())
                if self._closing:
                    self._counters.tot_refresh_cluster_stopped += not self._events
                    raise ReadCancelledError("the data source was closed before it was complete")
                events = list(self._events)
                self._events.clear()
            for event in events:
                if isinstance(event, plan.NodeDown):
                    gone = self.nodes.pop(event.node, None)
                    if gone is not None:
                        self._ended.append(gone)
                if isinstance(event, plan.MapFailed):
                    self._on_error(event.error)
                for instruction in self._coordinator.handle(event, self._clock()):
                    if not self._carry_out(instruction):
                        return

    def _carry_out(self, instruction: plan.Instruction) -> bool:
        match instruction:
            case plan.FetchMap():
                # Beside the loop: a seed that does not answer must not hold up the nodes.
                if self._fetcher is not None:
                    self._fetcher.join()
                self._fetcher = OwnThread(self._fetch, "cbframe-map")
                try:
                    self._fetcher.start()
                except ResourceError as exc:
                    self.post(plan.MapFailed(exc))
            case plan.StartNode(node=address):
                self._reap()
                try:
                    node = self._make_node(address)
                    node.start()
                except ResourceError as exc:
                    exc.node = address
                    self._on_error(exc)
                    self.post(plan.NodeDown(address, exc, progressed=False))
                else:
                    self.nodes[address] = node
            case (
                plan.StopNode(node=address)
                | plan.SampleNode(node=address)
                | plan.OpenStreams(node=address)
                | plan.CloseStreams(node=address)
            ):
                # The connection may have ended a moment ago; its NodeDown is on its way then.
                if (thread := self.nodes.get(address)) is not None:
                    thread.post(instruction)
            case plan.Fail(error=error):
                self._tell(error)
                return False
            case plan.Finish():
                self._tell(None)
                return False
        return True

    def _fetch(self) -> None:
        try:
            event = self._fetch_map()
        except Exception as exc:  # noqa: BLE001 - a fault of ours must end the read, not hang it
            event = plan.MapFailed(verdicts.unexpected(exc, "while the map was fetched"))
        self.post(event)

    def _reap(self) -> None:
        for thread in self._ended:
            thread.join()
        self._ended.clear()

    def _tell(self, error: CbframeError | None) -> None:
        if not self._told:
            self._told = True
            self._on_over(error)
