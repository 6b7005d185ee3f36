"""What runs for long, watched: ``cbframe stats``, and ``--every`` and ``--metrics-port`` of other commands.

``/metrics`` has the counters for Prometheus, of all updates. ``/health`` is a JSON object whose ``status`` is
``ready`` (200), or ``lagging`` or ``stopped`` (503): it lags while a vbucket is not streamed, or while more
changes than ``--max-lag`` are still to come; with ``--every``, before the first update went well, and when
the last one that did is longer ago than two turns. Neither has keys, documents, users or texts of errors.
There is no TLS and no password: who listens on another address than 127.0.0.1 sees to that.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from math import inf
from time import monotonic, sleep
from typing import Any

import numpy as np

from cbframe.cli import complain
from cbframe.cli.output import INDENT, aligned, cut, note, say, styled, width
from cbframe.dcp.source import BucketDataSource
from cbframe.dcp.stats import VBucketPhase
from cbframe.errors import CbframeError, ConfigurationError, ReadTimeoutError, SnapshotError
from cbframe.scan.result import Clock, utc_now
from cbframe.scan.stream import ChangeStream
from cbframe.snapshot.writer import SnapshotResult
from cbframe.system import OwnThread
from cbframe.ui.drawing import duration, problem_texts
from cbframe.ui.model import StatsModel
from cbframe.ui.show import TextWatcher, Ticker, is_terminal

_log = logging.getLogger("cbframe.cli")
_SAMPLE_EVERY = 2.0
_SLOW = 2.0
_TURNS = 2
"""How many turns old a copy may be."""
TIME = "%Y-%m-%d %H:%M:%S UTC"
_UPDATES = {
    "updates_total": "Updates that went well.",
    "failures_total": "Updates that failed.",
    "upserted_total": "Documents that updates wrote.",
    "deleted_total": "Deletions and expirations that updates wrote.",
    "retracted_total": "Rows of earlier versions that were rolled back.",
    "version": "The newest version, 0 before the first update.",
    "age_seconds": "Seconds since the last update that went well.",
}
"""What is counted of updates, by the names of Prometheus after ``cbframe_snapshot_``."""
_HEAD = ("node", "streams", "changes", "changes/s", "MB/s", "behind", "reconnects", "rollbacks")


class Monitor(TextWatcher):
    """Watches the source of a command: the last one that the command set, or whose progress it shows."""

    def __init__(self, max_lag: int, *, quiet: bool = True, clock: Callable[[], float] = monotonic) -> None:
        super().__init__(after=inf if quiet else 0.0)
        self.source: BucketDataSource | None = None
        self.stopped = False
        """Whether nothing will follow."""
        self._max_lag = max_lag
        self.model = StatsModel(self, clock=clock)

    def metrics(self) -> str:
        """For Prometheus."""
        return self.model.to_prometheus()

    def begin(self, source: BucketDataSource) -> None:
        self.source = source
        self.model.sample()  # none is missed, however short it is: all of them count

    def health(self) -> dict[str, Any]:
        """For who asks whether all is well."""
        latest, phases = self.model.sample(), self.model.phases()
        wanted = latest.table.phase != VBucketPhase.UNWANTED
        lag, phase = latest.lag[wanted], latest.table.phase[wanted]
        well = (lag >= 0) & np.isin(phase, (VBucketPhase.RUNNING, VBucketPhase.DONE))
        caught_up = len(lag) and well.all() and sum(lag.tolist()) <= self._max_lag
        stopped = self.stopped or (latest.ended and latest.state != "complete")
        return {
            "status": "stopped" if stopped else "ready" if caught_up else "lagging",
            "bucket": latest.bucket,
            "state": latest.state,
            "streams": phases["running"] + phases["done"],
            "vbuckets": sum(phases.values()),
            "behind": latest.total_lag,
        }


class Updates(Monitor):
    """Watches updates of one copy, one after the other; a line of progress is for those that take a while."""

    def __init__(self, every: float, *, quiet: bool = True, clock: Callable[[], float] = monotonic) -> None:
        super().__init__(0, quiet=quiet, clock=clock)
        self.every = every
        self.clock = clock
        self.counts = dict.fromkeys(list(_UPDATES)[:-1], 0)
        self._ended: float | None = None
        self.end()

    def end(self) -> None:
        super().end()
        # A line that was drawn to its end draws no other.
        TextWatcher.__init__(self, after=max(self._after, _SLOW))

    def add(self, result: SnapshotResult) -> None:
        """Take note of an update that went well."""
        self._ended, self.counts["version"] = self.clock(), result.version
        for name in ("upserted", "deleted", "retracted"):
            self.counts[f"{name}_total"] += getattr(result, name)
        self.counts["updates_total"] += 1

    def age(self) -> float | None:
        """Seconds since the last update that went well."""
        return None if self._ended is None else self.clock() - self._ended

    def health(self) -> dict[str, Any]:
        age, found = self.age(), super().health()
        young = age is not None and age <= _TURNS * self.every
        status = "stopped" if self.stopped else "ready" if young else "lagging"
        return {**found, "status": status, **self.counts, "age_seconds": age}

    def metrics(self) -> str:
        text, bucket = super().metrics(), json.dumps(self.model.latest.bucket, ensure_ascii=False)
        for key, about in _UPDATES.items():
            value = self.age() if key == "age_seconds" else self.counts[key]
            if value is not None:
                name, kind = f"cbframe_snapshot_{key}", "counter" if key.endswith("_total") else "gauge"
                text += f"# HELP {name} {about}\n# TYPE {name} {kind}\n{name}{{bucket={bucket}}} {value!r}\n"
        return text


def keep_updated(
    update: Callable[[], SnapshotResult],
    watch: Updates,
    *,
    wait: Callable[[float], object] = sleep,
    now: Clock = utc_now,
    text_of: Callable[[CbframeError], str] = str,
) -> None:
    """Update once a turn, which begins a time after the begin of the last, or when that update is over."""
    due = watch.clock()
    while True:
        problem = ""
        try:
            watch.add(update())
        except CbframeError as exc:
            if not _may_mend(exc, begun=watch.age() is not None):
                raise
            watch.counts["failures_total"] += 1
            problem = text_of(exc)
        due = max(due + watch.every, begun := watch.clock())
        if problem:
            again = (failed := now()) + timedelta(seconds=due - begun)
            complain(f"{failed:{TIME}}  not updated, tried again at {again:%H:%M:%S}: {problem}")
        wait(due - begun)


def _may_mend(exc: CbframeError, *, begun: bool) -> bool:
    """Whether the next update may go well, without anybody who does something about it."""
    if isinstance(exc, SnapshotError):
        # It was the right folder before: another writer has its lock, the disk is full, or not reached.
        cause = exc.__cause__ or exc.__context__
        return begun and isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError)
    return not exc.permanent or isinstance(exc, ReadTimeoutError)


@contextmanager
def until_stopped() -> Iterator[None]:
    """Do what only Ctrl-C ends, or SIGTERM: both are its usual end."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)


class _Server(ThreadingHTTPServer):
    monitor: Monitor

    def server_bind(self) -> None:
        # Not HTTPServer's: that looks for the name of the address, which may take long.
        super(HTTPServer, self).server_bind()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - its names
        _log.debug("a request for metrics was not answered", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = 10.0
    server_version, sys_version = "cbframe", ""

    def do_GET(self) -> None:
        monitor, path = self.server.monitor, self.path.partition("?")[0]
        status, kind, text = 404, "text/plain; version=0.0.4; charset=utf-8", "see /metrics and /health\n"
        if path == "/metrics":
            status, text = 200, monitor.metrics()
        elif path == "/health":
            found = monitor.health()
            status = 200 if found["status"] == "ready" else 503
            kind, text = "application/json", json.dumps(found) + "\n"
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing: the standard error is for other things."""


@contextmanager
def served(monitor: Monitor, options: argparse.Namespace) -> Iterator[Monitor]:
    """Answer over HTTP, if that is asked for."""
    address, port = options.metrics_address, options.metrics_port
    if port is None:
        yield monitor
        return
    try:
        server = _Server((address, port), _Handler)
    except (OSError, OverflowError) as exc:
        raise ConfigurationError(
            f"metrics cannot be served on {address}, port {port}: {exc}",
            hint="choose another --metrics-port or --metrics-address",
        ) from exc
    server.monitor = monitor
    thread = OwnThread(server.serve_forever, "cbframe-metrics", (0.2,))
    ticker = Ticker(_SAMPLE_EVERY, lambda: bool(monitor.model.sample()))
    with server:
        thread.start()
        try:
            ticker.start()
            note(f"http://{address}:{server.server_address[1]}/metrics and /health")
            yield monitor
        finally:
            monitor.stopped = True
            ticker.stop()
            server.shutdown()
            thread.join()


# --- cbframe stats


def follow_stats(changes: ChangeStream, *, every: float, limit: int | None) -> None:
    """Read changes, and show how that goes until Ctrl-C: live in a terminal, a line each time elsewhere."""
    model = StatsModel(changes)
    model.sample()
    live = is_terminal(sys.stdout) and os.environ.get("TERM", "dumb") != "dumb"
    height = count = 0
    due = monotonic() + (0 if live else every)
    sampled = monotonic()
    while (limit is None or count < limit) and not model.latest.ended:
        wait = min(due, sampled + _SAMPLE_EVERY) - monotonic()
        if (batch := changes.poll(max(0.0, wait))) is not None:
            changes.ack(batch)
        if monotonic() < min(due, sampled + _SAMPLE_EVERY) and not changes.source.finished:
            continue
        sampled = monotonic()
        if model.sample().ended or sampled >= due:
            due, count = sampled + every, count + 1
            if live:
                height = _redraw(_screen(model), height)
            else:
                cells = [f"{cell} {name}" for cell, name in zip(_total(model), _HEAD, strict=True)]
                say("  ".join([f"{duration(model.elapsed):>7}", *cells[1:]]))


def _row(name: str, streams: int, of: int, rates: tuple[float, float], *counts: int | None) -> list[str]:
    changes, *others = ("?" if count is None else f"{count:,}" for count in counts)
    speed = f"{rates[0]:,.0f}", f"{rates[1] / 1e6:,.1f}"
    return [name, f"{streams:,} of {of:,}", changes, *speed, *others]


def _total(model: StatsModel) -> list[str]:
    latest, phases = model.latest, model.phases()
    counts = latest.documents, latest.total_lag, latest.reconnects, latest.stats.total.rollbacks
    streams = phases["running"] + phases["done"]
    return _row("all", streams, sum(phases.values()), model.rates(), *counts)


def _screen(model: StatsModel) -> list[str]:
    """The state, for a terminal: what may be cut off at its lower end is less important."""
    rows = []
    for row in model.nodes():
        rates = row.documents_per_second, row.bytes_per_second
        counts = row.documents, row.lag, row.reconnects, row.rollbacks
        rows.append(_row(row.node, row.streams + row.done, row.vbuckets, rates, *counts))
    latest = model.latest
    title = f"{latest.bucket or 'no bucket yet'}: {latest.state} for {duration(model.elapsed)}"
    lines = [title, "", *aligned([_HEAD, _total(model), *rows])]
    for seconds, problem in model.problems()[-3:]:
        place, message, hint = problem_texts(problem)
        lines += ["", f"{duration(seconds)} {message} [{place}]", *([f"hint: {hint}"] if hint else [])]
    return lines


def _redraw(lines: list[str], height: int) -> int:
    """Draw over the lines of before; how many there are now."""
    lines = [cut(line, width() - 3) for line in lines][: shutil.get_terminal_size().lines - 1]
    drawn = (styled(line) if at in (0, 2) else line for at, line in enumerate(lines))
    text = "".join(f"{INDENT}{line}\x1b[K\n" for line in drawn)
    sys.stdout.write((f"\x1b[{height}A" if height else "") + text + "\x1b[J")
    sys.stdout.flush()
    return len(lines)
