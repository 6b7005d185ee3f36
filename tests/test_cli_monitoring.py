"""``cbframe stats``, and ``--metrics-port``: what they show of a stream, and how they end."""

from __future__ import annotations

import argparse
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cbframe import LocalCluster
from cbframe.cli import commands, main, monitoring, worded
from cbframe.cli.monitoring import Monitor, Updates, keep_updated, served
from cbframe.dcp.stats import NodeStats, VBucketPhase
from cbframe.errors import (
    AuthFailError,
    CbframeError,
    ConfigurationError,
    ConnectError,
    ReadTimeoutError,
    ServerError,
    SnapshotError,
)
from cbframe.testing import FakeClock
from cbframe.ui.model import StatsModel
from tests.ui.doubles import Source

PASSWORD = "s3cret-of-the-metrics"
KEY = "key-that-nobody-sees"


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(vbuckets=8, bucket="shop", username="reader", password=PASSWORD) as cluster:
        for number in range(20):
            cluster.upsert(f"{KEY}-{number}", {"n": number})
        yield cluster


@pytest.fixture
def login(cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("PW", PASSWORD)
    return [cluster.connection_string, "--user", "reader", "--password-env", "PW"]


# --- health


def watched(**arguments: Any) -> tuple[Source, Monitor]:
    clock = FakeClock()
    source: Any = Source(clock, **arguments)
    monitor = Monitor(100, clock=clock)
    monitor.begin(source)
    return source, monitor


def test_a_stream_is_ready_when_it_has_caught_up() -> None:
    source, monitor = watched(vbuckets=4)
    source.phase[:] = VBucketPhase.WAITING
    assert monitor.health()["status"] == "lagging", "it connects"
    source.phase[:3] = VBucketPhase.RUNNING
    source.high[:] = 30
    assert monitor.health()["status"] == "lagging", "one vbucket is not streamed"
    source.phase[3] = VBucketPhase.RUNNING
    assert monitor.health()["status"] == "lagging", "120 behind"
    source.seqno[:] = 5
    assert monitor.health() == {
        "status": "ready",
        "bucket": "travel",
        "state": "running",
        "streams": 4,
        "vbuckets": 4,
        "behind": 100,
    }
    source.high[0] = -1
    assert monitor.health()["status"] == "lagging", "it is not known how far one is"


@pytest.mark.parametrize("state", ["failed", "closed", "finished"])
def test_a_stream_that_ended_has_stopped(state: str) -> None:
    source, monitor = watched()
    source.high[:] = 0
    assert monitor.health()["status"] == "ready"
    source.state = state
    assert monitor.health()["status"] == "stopped"


def test_a_copy_is_ready_when_it_is_complete() -> None:
    source, monitor = watched(bounded=True)
    assert monitor.health()["status"] == "lagging"
    source.seqno[:] = source.high
    source.phase[:] = VBucketPhase.DONE
    source.state = "complete"
    assert monitor.health()["status"] == "ready"
    monitor.stopped = True
    assert monitor.health()["status"] == "stopped"


def test_before_there_is_a_source_it_lags() -> None:
    found = Monitor(0).health()
    assert (found["status"], found["state"], found["behind"]) == ("lagging", "waiting", None)


def test_vbuckets_that_are_not_wanted_do_not_count() -> None:
    source, monitor = watched(vbuckets=8)
    source.high[:4] = 7
    source.phase[4:] = VBucketPhase.UNWANTED
    found = monitor.health()
    assert (found["status"], found["vbuckets"], found["behind"]) == ("ready", 4, 28)


# --- updates again and again


class Turns:
    """Updates that take some time each, and end well or not; after the last, somebody presses Ctrl-C."""

    def __init__(self, every: float, *script: float | tuple[float, CbframeError]) -> None:
        self.clock = FakeClock(0.0)
        self.watch = Updates(every, clock=self.clock)
        self.script = list(script)
        self.begun: list[float] = []

    def update(self) -> Any:
        if not self.script:
            raise KeyboardInterrupt
        self.begun.append(self.clock())
        step = self.script.pop(0)
        seconds, error = step if isinstance(step, tuple) else (step, None)
        self.clock.advance(seconds)
        if error is not None:
            raise error
        return SimpleNamespace(version=len(self.begun), upserted=5, deleted=2, retracted=1)

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.clock(), UTC)

    def run(self) -> None:
        keep_updated(self.update, self.watch, wait=self.clock.advance, now=self.now)


def from_os(cause: OSError) -> SnapshotError:
    error = SnapshotError("cannot do it", path="/copy")
    error.__cause__ = cause
    return error


def test_turns_begin_a_time_after_the_begin_of_the_last() -> None:
    turns = Turns(10, 1, 9, 10, 25, 3, 1, (4, ConnectError("away")), 1)
    with pytest.raises(KeyboardInterrupt):
        turns.run()
    # One that takes longer delays the next, which is made up for by none.
    assert turns.begun == [0, 10, 20, 30, 55, 65, 75, 85]


def test_no_drift() -> None:
    turns = Turns(10, *[0.5] * 50)
    with pytest.raises(KeyboardInterrupt):
        # Each wait is a little longer than asked for: that is so late, and not later with each turn.
        keep_updated(turns.update, turns.watch, wait=lambda seconds: turns.clock.advance(seconds + 0.1))
    assert turns.begun[-1] == pytest.approx(490.1)


@pytest.mark.parametrize(
    "error",
    [
        ConnectError("cannot connect", node="n:11210", hint="look at the firewall"),
        ReadTimeoutError("it took too long"),
        ServerError("authentication failed", status=0x86),
    ],
)
def test_what_may_mend_is_told_and_tried_again(
    error: CbframeError, capsys: pytest.CaptureFixture[str]
) -> None:
    turns = Turns(30, (2, error), (40, error), 1)
    with pytest.raises(KeyboardInterrupt):
        turns.run()
    assert turns.begun == [0, 30, 70]
    assert capsys.readouterr().err == (
        f"1970-01-01 00:00:02 UTC  not updated, tried again at 00:00:30: {error}\n"
        f"1970-01-01 00:01:10 UTC  not updated, tried again at 00:01:10: {error}\n"
    )
    counts = turns.watch.counts
    assert (counts["updates_total"], counts["failures_total"], counts["version"]) == (1, 2, 3)


def test_hints_of_updates_name_options(capsys: pytest.CaptureFixture[str]) -> None:
    error = ConnectError("the proxy cannot be reached", hint="check proxies=")
    turns, options = Turns(30, (2, error)), argparse.Namespace(proxy="http://db")
    with pytest.raises(KeyboardInterrupt):
        keep_updated(
            turns.update,
            turns.watch,
            wait=turns.clock.advance,
            now=turns.now,
            text_of=lambda error: worded(error, options),
        )
    assert capsys.readouterr().err.endswith(": the proxy cannot be reached\n  hint: check --proxy\n")


@pytest.mark.parametrize(
    "error",
    [
        AuthFailError("the server refused the user"),
        ConfigurationError("the snapshot was made with other columns"),
        SnapshotError("bucket 'b' is not the one that the snapshot is of"),
        from_os(FileNotFoundError("a file is gone")),
    ],
)
def test_what_cannot_mend_ends_it(error: CbframeError, capsys: pytest.CaptureFixture[str]) -> None:
    turns = Turns(30, 1, (1, error), 1)
    with pytest.raises(type(error)) as raised:
        turns.run()
    assert raised.value is error
    assert turns.begun == [0, 30]
    assert capsys.readouterr().err == ""


def test_a_folder_that_was_right_may_be_right_again() -> None:
    """A full disk, or the lock of ``compact``; before the first update it is the wrong folder."""
    full = from_os(OSError(28, "No space left on device"))
    locked = SnapshotError("the snapshot is being written by another writer")
    locked.__context__ = BlockingIOError()
    for error in (full, locked):
        with pytest.raises(SnapshotError):
            Turns(30, (1, error), 1).run()
        with pytest.raises(KeyboardInterrupt):
            Turns(30, 1, (1, error), 1).run()


def test_a_copy_is_ready_while_its_last_update_is_young() -> None:
    clock = FakeClock()
    watch = Updates(60, clock=clock)
    watch.begin(Source(clock, bounded=True))  # type: ignore[arg-type]
    assert watch.health()["status"] == "lagging", "none went well so far"
    assert "age_seconds" not in watch.metrics()
    result: Any = SimpleNamespace(version=7, upserted=5, deleted=2, retracted=1)
    watch.add(result)
    clock.advance(120)
    assert watch.health() == {
        "status": "ready",
        "bucket": "travel",
        "state": "running",
        "streams": 8,
        "vbuckets": 8,
        "behind": 800,
        "updates_total": 1,
        "failures_total": 0,
        "upserted_total": 5,
        "deleted_total": 2,
        "retracted_total": 1,
        "version": 7,
        "age_seconds": 120.0,
    }
    clock.advance(1)
    assert watch.health()["status"] == "lagging"
    lines = watch.metrics().splitlines()
    assert 'cbframe_progress_ratio{bucket="travel"} 0.0' in lines, "those of the source are there, too"
    of_updates = [line for line in lines if line.startswith("cbframe_snapshot_")]
    assert of_updates == [
        'cbframe_snapshot_updates_total{bucket="travel"} 1',
        'cbframe_snapshot_failures_total{bucket="travel"} 0',
        'cbframe_snapshot_upserted_total{bucket="travel"} 5',
        'cbframe_snapshot_deleted_total{bucket="travel"} 2',
        'cbframe_snapshot_retracted_total{bucket="travel"} 1',
        'cbframe_snapshot_version{bucket="travel"} 7',
        'cbframe_snapshot_age_seconds{bucket="travel"} 121.0',
    ]
    assert "# TYPE cbframe_snapshot_updates_total counter" in lines
    assert "# TYPE cbframe_snapshot_age_seconds gauge" in lines
    watch.add(result)
    watch.stopped = True
    assert watch.health()["status"] == "stopped"


def counters(text: str) -> dict[str, float]:
    """Values of counters, those of the source summed over nodes and kinds."""
    found: dict[str, float] = {}
    for name, value in re.findall(r"^(\w+_total)\{.*\} (\S+)$", text, re.MULTILINE):
        found[name] = found.get(name, 0) + float(value)
    return found


def test_counters_of_updates_never_go_down() -> None:
    turns = Turns(60)
    watch, seen = turns.watch, [counters(turns.watch.metrics())]

    def look() -> float:
        turns.clock.advance(1)
        seen.append(counters(watch.metrics()))
        assert all(value <= seen[-1][name] for name, value in seen[-2].items())
        return seen[-1].get("cbframe_documents_total", 0)

    def update(*looked_at: bool) -> None:
        """It reads with several sources; whether somebody looks at each while it runs."""
        for looks in looked_at:
            source = Source(turns.clock, bounded=True)
            watch.begin(source)  # type: ignore[arg-type]
            if looks:
                look()
            source.receive(3)
            if looks:
                look()
            source.receive(2)
        watch.end()

    assert look() == 0, "before the first source"
    update(True)
    assert look() == 5
    assert look() == 5, "between two updates"
    update(False, False, False)
    assert look() == 20, "nobody has looked meanwhile"
    update(False, True)  # and then it failed
    update(True, False)
    assert look() == 40


# --- over HTTP


def asked(port: int, path: str) -> tuple[int, str, str]:
    """Status, type and text of a page."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=20) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read().decode()
    except urllib.error.HTTPError as exc:
        with exc:
            return exc.code, exc.headers["Content-Type"], exc.read().decode()


@contextmanager
def serving(monitor: Monitor, capsys: pytest.CaptureFixture[str]) -> Iterator[int]:
    options = argparse.Namespace(metrics_address="127.0.0.1", metrics_port=0)
    with served(monitor, options):
        found = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/metrics and /health\n", capsys.readouterr().err)
        assert found
        yield int(found[1])


def test_pages(capsys: pytest.CaptureFixture[str]) -> None:
    source, monitor = watched(vbuckets=4)
    source.high[:] = 0
    source.receive(12)
    source.trouble(f"{KEY} {PASSWORD}", hint=KEY)
    with serving(monitor, capsys) as port:
        status, kind, text = asked(port, "/metrics")
        assert (status, kind) == (200, "text/plain; version=0.0.4; charset=utf-8")
        assert 'cbframe_documents_total{bucket="travel",node="n0:11210",kind="mutation"} 12' in text
        status, kind, health = asked(port, "/health?verbose")
        assert (status, kind, json.loads(health)["status"]) == (200, "application/json", "ready")
        assert KEY not in text + health
        source.high[:] = 1000
        status, _, health = asked(port, "/health")
        assert (status, json.loads(health)["status"]) == (503, "lagging")
        source.state = "closed"
        status, _, health = asked(port, "/health")
        assert (status, json.loads(health)["status"]) == (503, "stopped")
        assert asked(port, "/metrics")[0] == 200
        assert asked(port, "/")[0] == 404
        assert asked(port, "/metrics/../secret")[0] == 404
    assert capsys.readouterr() == ("", "")
    with pytest.raises(OSError, match="refused"):
        asked(port, "/health")
    assert not [each for each in threading.enumerate() if "metrics" in each.name or "ticker" in each.name]


def test_who_says_nothing_holds_up_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    _, monitor = watched()
    with (
        serving(monitor, capsys) as port,
        socket.create_connection(("127.0.0.1", port)),
        socket.create_connection(("127.0.0.1", port)) as rude,
    ):
        rude.sendall(b"nonsense\r\n\r\n")
        assert asked(port, "/health")[0] == 503
    assert capsys.readouterr().err == ""


def test_a_port_that_is_taken(login: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["stream", *login, "--metrics-port", port]) == 1
    told = capsys.readouterr().err
    assert f"metrics cannot be served on 127.0.0.1, port {port}: " in told
    assert "hint: choose another --metrics-port" in told


@pytest.mark.parametrize(("address", "port"), [("127.0.0.1", 70_000), ("no-such-host.invalid", 0)])
def test_what_cannot_be_listened_on(address: str, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    if port == 0:  # no test asks for names
        monkeypatch.setattr(monitoring._Server, "server_bind", refuse)
    options = argparse.Namespace(metrics_address=address, metrics_port=port)
    with pytest.raises(ConfigurationError, match="metrics cannot be served on"), served(Monitor(0), options):
        raise AssertionError("nothing is served")


def test_a_snapshot_that_is_written(
    login: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, pages = commands.write_snapshot, []

    def write(**arguments: Any) -> Any:
        result = real(**arguments)
        port = int(re.findall(r":(\d+)/metrics", capsys.readouterr().err)[0])
        pages.extend(asked(port, path) for path in ("/metrics", "/health"))
        return result

    monkeypatch.setattr(commands, "write_snapshot", write)
    folder = str(tmp_path / "copy")
    assert (
        main(["snapshot", "write", login[0], folder, *login[1:], "--metrics-port", "0", "--no-progress"]) == 0
    )
    (_, _, metrics), (status, _, health) = pages
    assert (status, json.loads(health)["status"]) == (200, "ready")
    assert 'cbframe_progress_ratio{bucket="shop"} 1.0' in metrics
    assert not [word for word in (PASSWORD, "reader", KEY) if word in metrics + health]


def test_a_snapshot_that_is_written_again_and_again(
    cluster: LocalCluster,
    login: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    real, ports, pages = commands.write_snapshot, [], []

    def fail(*_: object) -> None:
        raise ReadTimeoutError("it took too long")

    def write(**arguments: Any) -> Any:
        ports.extend(re.findall(r":(\d+)/metrics", capsys.readouterr().err))
        pages.append(asked(int(ports[0]), "/metrics")[2])
        if len(pages) == 5:
            raise KeyboardInterrupt
        cluster.upsert(f"{KEY}-of-update-{len(pages)}", {"n": 0})
        with monkeypatch.context() as patch:
            if len(pages) == 2:
                patch.setattr(Updates, "__call__", fail)
            return real(**arguments)

    monkeypatch.setattr(commands, "write_snapshot", write)
    words = ["snapshot", "write", login[0], str(tmp_path / "copy"), *login[1:], "--every", "10ms"]
    assert main([*words, "--metrics-port", "0"]) == 0
    assert capsys.readouterr().err.splitlines()[-1] == "3 updates, 1 failed"
    found = [counters(page) for page in pages]
    documents = [each.get("cbframe_documents_total", 0) for each in found]
    failed = documents[2] - documents[1]
    assert 0 <= failed <= 1
    assert documents == [0, 21, 21 + failed, 23 + failed, 24 + failed]
    for before, after in pairwise(found):
        assert all(value <= after[name] for name, value in before.items())
    assert [each["cbframe_reconnects_total"] for each in found[1:]] == [0] * 4


# --- as programs


def program(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "error", "-m", "cbframe", *arguments]
    return subprocess.Popen(
        command, **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
    )


def test_a_stream_tells_how_it_is(cluster: LocalCluster, login: list[str]) -> None:
    with program("stream", *login, "--json", "--metrics-port", "0") as process:
        try:
            assert process.stderr is not None
            assert process.stdout is not None
            port = int(re.findall(r":(\d+)/metrics", process.stderr.readline())[0])
            for _ in range(20):
                assert KEY in process.stdout.readline()
            for _ in range(200):
                status, _, health = asked(port, "/health")
                if status == 200:
                    break
                threading.Event().wait(0.05)
            assert json.loads(health) | {"behind": 0} == {
                "status": "ready",
                "bucket": "shop",
                "state": "running",
                "streams": 8,
                "vbuckets": 8,
                "behind": 0,
            }
            metrics = asked(port, "/metrics")[2]
            assert 'cbframe_running{bucket="shop"} 1' in metrics
            assert not [word for word in (PASSWORD, "reader", KEY) if word in metrics + health]
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=20)
            assert (process.returncode, err) == (0, "20 changes\n")
        finally:
            process.kill()


def test_stats_as_lines(cluster: LocalCluster, login: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stats", *login, "--from", "beginning", "--every", "50ms", "--limit", "3"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert len(lines) == 3
    assert re.fullmatch(r"\d+ changes\n", err)
    form = (
        r" +\d:\d\d  \d+ of \d+ streams  \d+ changes  [\d,]+ changes/s  [\d.]+ MB/s  (\d+|\?) behind  "
        r"\d reconnects  \d rollbacks"
    )
    assert all(re.fullmatch(form, line) for line in lines), lines


def test_stats_end_with_ctrl_c(login: list[str]) -> None:
    with program("stats", *login, "--every", "50ms") as process:
        try:
            assert process.stdout is not None
            while "8 of 8 streams" not in process.stdout.readline():
                pass
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=20)
            assert (process.returncode, err) == (0, "0 changes\n")
        finally:
            process.kill()


def test_stats_end_with_their_collections(cluster: LocalCluster, login: list[str]) -> None:
    cluster.create_scope("s")
    cluster.create_collection("s", "c")
    with program("stats", *login, "--every", "50ms", "--collections", "s.c") as process:
        try:
            assert process.stdout is not None
            while "8 of 8 streams" not in process.stdout.readline():
                pass
            cluster.drop_collection("s", "c")
            _, err = process.communicate(timeout=20)
            assert (process.returncode, err) == (0, "0 changes\n")
        finally:
            process.kill()


def test_stats_of_a_wrong_password(
    login: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PW", PASSWORD + "!")
    assert main(["stats", *login]) == 1
    err = capsys.readouterr().err
    assert "refused user 'reader'" in err
    assert PASSWORD not in err


@pytest.mark.parametrize("plain", [False, True])
def test_stats_in_a_terminal(login: list[str], *, plain: bool) -> None:
    ours, theirs = pty.openpty()
    os.set_blocking(ours, True)
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "24"}
    environment |= {"NO_COLOR": "1"} if plain else {}
    environment.pop("NO_COLOR", None) if not plain else None
    process = program("stats", *login, "--every", "50ms", stdout=theirs, env=environment)
    os.close(theirs)
    try:
        text = ""
        while not re.search(r"all +8 of 8 .*\x1b\[\d+A", text, re.DOTALL):
            text += os.read(ours, 4096).decode()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.communicate()
        os.close(ours)
    assert ("\x1b[1m" in text) is not plain
    assert "shop: " in text
    assert re.search(r"node +streams  changes  changes/s  MB/s  behind  reconnects  rollbacks", text)


def test_the_screen() -> None:
    clock = FakeClock()
    source = Source(clock, vbuckets=8, nodes=2)
    model = StatsModel(source, clock=clock)
    model.sample()
    clock.advance(2)
    source.receive(4000, 3_000_000)
    source.high[:] = 10
    source.nodes["n1:11210"] = NodeStats(reconnects=2, rollbacks=2, mutations=1_000_000)
    source.trouble("connection refused", hint="look at the firewall", node="n1:11210")
    source.phase[7] = np.uint8(VBucketPhase.REQUESTED)
    model.sample()
    assert monitoring._screen(model) == [
        "travel: running for 0:02",
        "",
        "node      streams    changes  changes/s  MB/s  behind  reconnects  rollbacks",
        "all        7 of 8  1,004,000    502,000   1.5      80           2          2",
        "n0:11210   4 of 4      4,000      2,000   1.5      40           0          0",
        "n1:11210   3 of 4  1,000,000    500,000   0.0      40           2          2",
        "",
        "0:02 connection refused [n1:11210]",
        "hint: look at the firewall",
    ]


def test_what_is_drawn_over(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("LINES", "4")
    assert monitoring._redraw(["title", "", "x" * 50, "a", "b"], 0) == 3
    assert monitoring._redraw(["title"], 3) == 1
    first, second = capsys.readouterr().out.split("\x1b[J")[:2]
    assert first == f"  title\x1b[K\n  \x1b[K\n  {'x' * 36}…\x1b[K\n"
    assert second == "\x1b[3A  title\x1b[K\n"
