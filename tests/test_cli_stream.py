"""``cbframe stream`` and ``cbframe doctor``, in this process and as programs."""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from cbframe import Checkpoint, LocalCluster
from cbframe.arrow.columns import key_bytes
from cbframe.cli import commands as command
from cbframe.cli import main
from cbframe.scan import stream

PASSWORD = "s3cret-of-the-stream"
DOCUMENTS: dict[bytes, bytes] = {
    b"a": b'{"n": 12345678901234567890123, "x": 1.50}',
    b"b": b'{\n "s": "\xc3\xa4"\n}',
    b"c": b"\x00\xff",
    b"d\xff": b"[1]",
    b"e\n": b'{"broken"',
}


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(vbuckets=8, username="reader", password=PASSWORD, seed=1) as cluster:
        for key, value in DOCUMENTS.items():
            cluster.upsert(key, value)
        yield cluster


@pytest.fixture
def login(cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("CB_PASSWORD", PASSWORD)
    return [cluster.connection_string, "--user", "reader", "--password-env", "CB_PASSWORD"]


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def key_of(line: dict[str, Any]) -> bytes:
    found: bytes = key_bytes(pa.array([line["key"]]))[0].as_py()
    return found


def test_json_lines(login: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stream", *login, "--json", "--limit", "5"]) == 0
    out, err = capsys.readouterr()
    assert err == "5 changes\n"
    assert '"value": {"n":12345678901234567890123,"x":1.50}}' in out
    found = {key_of(line): line for line in map(json.loads, out.splitlines())}
    assert found.keys() == DOCUMENTS.keys()
    assert found[b"b"]["value"] == {"s": "ä"}
    assert base64.b64decode(found[b"c"]["value_base64"]) == b"\x00\xff"
    assert base64.b64decode(found[b"e\n"]["value_base64"]) == b'{"broken"'
    assert {line["change"] for line in found.values()} == {"upsert"}
    assert {(line["scope"], line["collection"]) for line in found.values()} == {("_default", "_default")}


def test_json_is_utf8_wherever_it_goes(
    cluster: LocalCluster, login: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Into a file on Windows, text would go as cp1252 and with other ends of lines."""
    cluster.upsert("京", {"city": "京都\n"})
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="cp1252", newline="\r\n")
    monkeypatch.setattr(sys, "stdout", out)
    assert main(["stream", *login, "--json", "--limit", "6"]) == 0
    assert b"\r" not in raw.getvalue()
    found = {line["key"]: line for line in map(json.loads, raw.getvalue().decode("utf-8").splitlines())}
    assert found["京"]["value"] == {"city": "京都\n"}


def test_it_goes_on_for_as_long_as_any_stream(login: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def opened(**arguments: Any) -> stream.ChangeStream:
        asked.append(arguments["options"].recovery_timeout)
        return stream.stream_bucket(**arguments)

    monkeypatch.setattr(command, "stream_bucket", opened)
    assert main(["stream", *login, "--from", "beginning", "--limit", "1"]) == 0
    assert asked == [300]
    hint = "resume from the last checkpoint, or raise recovery_timeout"
    assert command.worded(hint, argparse.Namespace()) == "resume from the last checkpoint"


def test_lines_for_people(login: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stream", *login, "--limit", "5"]) == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 5
    assert 'a  {"n":12345678901234567890123,"x":1.50}' in out
    assert "c  2 bytes" in out
    assert "d\\xff  [1]" in out
    assert "e\\n  9 bytes" in out


def test_a_checkpoint_goes_on(
    cluster: LocalCluster, login: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "checkpoint.json"
    keep = ["stream", *login, "--json", "--checkpoint", str(path)]
    seen: list[tuple[bytes, str]] = []

    def follow(until: int) -> None:
        while len(seen) < until:
            assert main([*keep, "--limit", "1"]) == 0
            seen.extend((key_of(line), line["change"]) for line in lines(capsys))

    follow(5)
    assert sorted(seen) == [(key, "upsert") for key in sorted(DOCUMENTS)]
    cluster.delete("a")
    cluster.upsert("f", {})
    follow(7)
    assert sorted(seen[5:]) == [(b"a", "delete"), (b"f", "upsert")]
    # A file that is named with --from is read, and left as it is.
    before = path.read_bytes()
    cluster.upsert("g", {})
    assert main(["stream", *login, "--json", "--from", str(path), "--limit", "1"]) == 0
    assert len(lines(capsys)) == 1
    assert path.read_bytes() == before
    Checkpoint.load(path)


def test_collections_and_what_is_void(
    cluster: LocalCluster, login: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.create_scope("shop")
    cluster.create_collection("shop", "orders")
    cluster.upsert("o", {}, collection="shop.orders")
    arguments = ["--scope", "shop", "--collections", "orders", "--limit", "1"]
    assert main(["stream", *login, *arguments]) == 0
    assert "shop.orders  o  {}" in capsys.readouterr().out
    assert main(["stream", *login, "--json", "--prefix", "a", "--limit", "1"]) == 0
    assert [line["key"] for line in lines(capsys)] == ["a"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--from", "tomorrow"], "'tomorrow' cannot be read"),
        (["--checkpoint", "nowhere/c.json"], "nowhere does not exist"),
        (["--collections", "nothing"], "no collection '_default.nothing'"),
    ],
)
def test_what_cannot_be_meant(
    login: list[str], capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["stream", *login, *arguments]) == 1
    assert message in capsys.readouterr().err


def test_a_wrong_password(
    cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CB_PASSWORD", PASSWORD + "!")
    arguments = [cluster.connection_string, "--user", "reader", "--password-env", "CB_PASSWORD"]
    assert main(["stream", *arguments]) == 1
    err = capsys.readouterr().err
    assert "refused user 'reader'" in err
    assert PASSWORD not in err


def running(login: list[str], *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "cbframe", "stream", *login, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_the_checkpoint(
    cluster: LocalCluster, login: list[str], tmp_path: Path, number: int
) -> None:
    path = tmp_path / "checkpoint.json"
    with running(login, "--json", "--checkpoint", str(path)) as process:
        assert process.stdout is not None
        found = {key_of(json.loads(process.stdout.readline())) for _ in range(5)}
        assert found == DOCUMENTS.keys()
        cluster.upsert("last", {})
        assert json.loads(process.stdout.readline())["key"] == "last"
        began = time.monotonic()
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
        assert time.monotonic() - began < 5
    assert (process.returncode, out) == (0, "")
    assert err.endswith(" changes\n")
    seqnos = {vb: offset.seqno for vb, offset in Checkpoint.load(path).offsets.items()}
    # The last one may have been printed, and not acknowledged when the signal came.
    assert sum(cluster.high_seqnos().values()) - sum(seqnos.values()) in (0, 1)


def test_the_checkpoint_is_kept_up(
    cluster: LocalCluster, login: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "checkpoint.json"
    saved: list[int] = []

    class Noting(Checkpoint):
        def save(self, path: str | os.PathLike[str]) -> None:
            super().save(path)
            saved.append(sum(offset.seqno for offset in self.offsets.values()))
            if saved[-1] == sum(cluster.high_seqnos().values()):
                raise KeyboardInterrupt

    monkeypatch.setattr(stream, "Checkpoint", Noting)
    monkeypatch.setattr(command, "_SAVE_EVERY", 0.0)
    assert main(["stream", *login, "--checkpoint", str(path)]) == 0
    assert saved
    assert sum(offset.seqno for offset in Checkpoint.load(path).offsets.values()) == saved[-1]


def test_a_reader_that_has_seen_enough(login: list[str]) -> None:
    with running(login, "--json") as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr is not None
        # The next change finds nobody; without one the stream waits.
        process.send_signal(signal.SIGINT)
        process.stderr.read()
        assert process.wait(20) in (0, 1)


def test_the_doctor(
    cluster: LocalCluster,
    login: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert main(["doctor", *login]) == 0
    out = capsys.readouterr().out
    assert "everything is well" in out
    assert main(["doctor", *login, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] is True
    assert [step["step"] for step in told["steps"]][-1] == "stream"
    assert main(["doctor", *login, "--bucket", "nothing"]) == 1
    assert "failed   bucket" in capsys.readouterr().out
    monkeypatch.setenv("CB_PASSWORD", PASSWORD + "!")
    assert main(["doctor", *login, "--json"]) == 1
    out = capsys.readouterr().out
    assert PASSWORD not in out
    failed = [step for step in json.loads(out)["steps"] if step["status"] == "failed"]
    assert [step["step"] for step in failed] == ["login"]
    assert failed[0]["remedy"]
