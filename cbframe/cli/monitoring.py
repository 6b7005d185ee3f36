"""What runs for long, watched: ``cbframe stats``, and ``--metrics-port`` of other commands.

``/metrics`` has the counters for Prometheus. ``/health`` is a JSON object whose ``status`` is ``ready``
(200), or ``lagging`` or ``stopped`` (503): it lags while a vbucket is not streamed, or while more changes
than ``--max-lag`` are still to come. Neither has keys, documents, users or texts of errors in it. There is
no TLS and no password: who listens on another address than 127.0.0.1 sees to that.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from math import inf
from time import monotonic
from typing import Any

import numpy as np

from cbframe.cli.output import INDENT, aligned, cut, note, say, styled, width
from cbframe.dcp.source import BucketDataSource
from cbframe.dcp.stats import VBucketPhase
from cbframe.errors import ConfigurationError
from cbframe.scan.stream import ChangeStream
from cbframe.system import OwnThread
from cbframe.ui.drawing import duration, problem_texts
from cbframe.ui.model import StatsModel
from cbframe.ui.show import TextWatcher, Ticker, is_terminal

_log = logging.getLogger("cbframe.cli")
_SAMPLE_EVERY = 2.0
_HEAD = ("node", "streams", "changes", "changes/s", "MB/s", "behind", "reconnects", "rollbacks")


class Monitor(TextWatcher):
    """Watches the source of a command: the last one that it was told, by the command or as its progress."""

    def __init__(self, max_lag: int, *, quiet: bool = True, clock: Callable[[], float] = monotonic) -> None:
        super().__init__(after=inf if quiet else 0.0)
        self.source: BucketDataSource | None = None
        self.stopped = False
        """Whether nothing will follow."""
        self._max_lag = max_lag
        self.model = StatsModel(self, clock=clock)

    def begin(self, source: BucketDataSource) -> None:
        self.source = source

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
            status, text = 200, monitor.model.to_prometheus()
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
    """Draw over so many lines of before; how many there are now."""
    lines = [cut(line, width() - 3) for line in lines][: shutil.get_terminal_size().lines - 1]
    drawn = (styled(line) if at in (0, 2) else line for at, line in enumerate(lines))
    text = "".join(f"{INDENT}{line}\x1b[K\n" for line in drawn)
    sys.stdout.write((f"\x1b[{height}A" if height else "") + text + "\x1b[J")
    sys.stdout.flush()
    return len(lines)
