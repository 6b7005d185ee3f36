"""``cbframe snapshot``: every command, as a user sees it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Self

import pyarrow.parquet as pq
import pytest

import cbframe
from cbframe.cli import main
from cbframe.local import LocalCluster

PASSWORD = "s3cret-of-the-test"
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(vbuckets=4, bucket="shop", username="reader", password=PASSWORD) as cluster:
        cluster.upsert("a", {"id": 1, "name": "one", "geo": {"lat": 1.5}})
        cluster.upsert("b", {"id": 2})
        cluster.upsert("c", {"id": 3, "tags": ["x"]})
        yield cluster


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "snapshot"


@pytest.fixture
def write(cluster: LocalCluster, path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    monkeypatch.setenv("CB_PASSWORD", PASSWORD)
    login = [cluster.connection_string, str(path), "--user", "reader", "--password-env", "CB_PASSWORD"]
    return lambda *arguments: main(["snapshot", "write", *login, *arguments])


@pytest.fixture
def written(cluster: LocalCluster, path: Path, write: Callable[..., int], capsys: Capture) -> Path:
    """Two versions: three documents, then one deleted and one changed."""
    assert write() == 0
    cluster.delete("b")
    cluster.upsert("a", {"id": 10, "name": "ten"})
    assert write() == 0
    capsys.readouterr()
    return path


def run(path: Path, command: str, *arguments: str) -> int:
    return main(["snapshot", command, str(path), *arguments])


def rows(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


# --- write


def test_write_and_update(
    cluster: LocalCluster, path: Path, write: Callable[..., int], capsys: Capture
) -> None:
    assert write() == 0
    out, err = capsys.readouterr()
    assert re.search(r"version +1\n", out)
    assert "3 upserted, 0 deleted, 0 retracted" in out
    assert "100 %" in err
    cluster.delete("c")
    assert write("--no-progress") == 0
    out, err = capsys.readouterr()
    assert re.search(r"version +2\n", out)
    assert "0 upserted, 1 deleted" in out
    assert err == ""
    assert sorted(cbframe.read_snapshot(path).index) == ["a", "b"]
    assert PASSWORD not in out


def test_write_tells_json(write: Callable[..., int], capsys: Capture) -> None:
    assert write("--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["upserted"] == 3
    assert (told["version"], told["changed"], told["vbuckets"], told["changes"]) == (1, True, 4, 3)
    assert told["bucket"] == "shop"
    assert write("--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["version"], told["changed"], told["upserted"]) == (1, False, 0)


def test_write_only_some_columns(path: Path, write: Callable[..., int], capsys: Capture) -> None:
    assert write("--columns", "id,geo.lat", "--compression", "snappy") == 0
    assert set(cbframe.read_snapshot(path).columns) == {"id", "geo.lat"}
    assert write("--columns", "name") == 1
    assert "the snapshot was made with columns=['id', 'geo.lat']" in capsys.readouterr().err


def test_modes(path: Path, write: Callable[..., int], capsys: Capture) -> None:
    assert write("--mode", "create") == 0
    assert write("--mode", "create") == 1
    assert "there is a snapshot already" in capsys.readouterr().err
    assert write("--mode", "overwrite") == 0
    assert cbframe.Snapshot(path).version == 2


def test_write_asks_for_a_user(cluster: LocalCluster, path: Path, capsys: Capture) -> None:
    assert main(["snapshot", "write", cluster.connection_string, str(path)]) == 1
    assert "hint: give --user" in capsys.readouterr().err
    assert not path.exists()


# --- write, again and again


class Program:
    """``snapshot write --every`` as a program."""

    def __init__(self, cluster: LocalCluster, path: Path, *arguments: str) -> None:
        login = [cluster.connection_string, str(path), "--user", "reader", "--password-env", "CB_PASSWORD"]
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "cbframe", "snapshot", "write", *login, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "CB_PASSWORD": PASSWORD},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def ended(self, number: int) -> tuple[int, str]:
        """Status, and what is told on the standard error, after a signal."""
        self.process.send_signal(number)
        _, err = self.process.communicate(timeout=30)
        return self.process.returncode, err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_every_goes_on_until_a_signal(cluster: LocalCluster, path: Path, number: int) -> None:
    with Program(cluster, path, "--every", "50ms", "--json") as program:
        first = json.loads(program.line())
        assert (first["version"], first["upserted"]) == (1, 3)
        cluster.upsert("d", {"id": 4})
        while (told := json.loads(program.line()))["version"] == 1:
            assert not told["changed"]
        assert (told["version"], told["upserted"]) == (2, 1)
        status, err = program.ended(number)
    assert status == 0
    assert re.fullmatch(r"[\d,]+ updates, 0 failed\n", err)
    assert cbframe.Snapshot(path).verify().ok
    assert sorted(cbframe.read_snapshot(path).index) == ["a", "b", "c", "d"]


def test_a_signal_during_an_update_leaves_the_last_version(cluster: LocalCluster, path: Path) -> None:
    with Program(cluster, path, "--every", "50ms", "--metrics-port", "0") as program:
        assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC  version 1; rows 3 upserted, ", program.line())
        assert program.process.stderr is not None
        port = int(re.findall(r":(\d+)/metrics", program.process.stderr.readline())[0])
        with cluster.stall():
            cluster.upsert("d", {"id": 4})
            state = ""
            while state not in ("connecting", "running"):  # an update that waits for the node
                with closing(HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
                    connection.request("GET", "/health")
                    state = json.loads(connection.getresponse().read())["state"]
            status, err = program.ended(signal.SIGTERM)
    assert status == 0
    assert re.fullmatch(r"[\d,]+ updates, 0 failed\n", err)
    assert cbframe.Snapshot(path).verify().ok
    assert sorted(cbframe.read_snapshot(path).index) == ["a", "b", "c"]
    cbframe.write_snapshot(cluster, path)
    assert sorted(cbframe.read_snapshot(path).index) == ["a", "b", "c", "d"]


def test_every_without_a_unit(write: Callable[..., int], path: Path, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as ended:
        write("--every", "5")
    assert ended.value.code == 2
    assert "'5' has no unit: give 30s, 5min, 1h or 7d" in capsys.readouterr().err
    assert not path.exists()


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["--every", "soon"], "--every='soon' is no span of time", '"5min"'),
        (["--every", "0s"], "--every is no time at all", "30s, 5min or 1h"),
        (["--every", "5min", "--mode", "repair"], "--mode repair does not", "once with --mode"),
    ],
)
def test_every_of_nothing(
    write: Callable[..., int], path: Path, capsys: Capture, arguments: list[str], message: str, hint: str
) -> None:
    assert write(*arguments) == 1
    told, _, what_to_do = capsys.readouterr().err.partition("hint: ")
    assert message in told
    assert hint in what_to_do
    assert not path.exists()


def test_every_ends_with_another_bucket(cluster: LocalCluster, path: Path, capsys: Capture) -> None:
    with Program(cluster, path, "--every", "50ms") as program:
        program.line()
        cluster.recreate()
        _, err = program.process.communicate(timeout=30)
    assert program.process.returncode == 1
    assert "cbframe: error: bucket 'shop' is not the one that the snapshot is of" in err


@pytest.mark.parametrize(
    ("arguments", "allowed"),
    [
        (["write", "x", "y", "--mode", "mend"], "'update', 'create', 'overwrite', 'repair'"),
        (["write", "x", "y", "--metrics-port", "http"], "'http' is no port: a number up to 65535"),
        (["vacuum", "x", "--keep", "all"], "'all' is no whole number from 1 on"),
    ],
)
def test_mistypes_say_what_is_allowed(arguments: list[str], allowed: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        main(["snapshot", *arguments])
    assert allowed in capsys.readouterr().err.replace(
        "choose from update, create, overwrite, repair", allowed
    )


# --- read


def test_read_shows_the_head(written: Path, capsys: Capture) -> None:
    assert run(written, "read") == 0
    out = capsys.readouterr().out
    assert "2 documents\n" in out
    assert re.search(r"int64 +id\n", out)
    assert run(written, "read", "--as-of", "1") == 0
    assert "3 documents\n" in capsys.readouterr().out


@pytest.mark.parametrize(("limit", "documents"), [(1, 1), (2, 2), (3, 3), (9, 3)])
def test_read_some(written: Path, tmp_path: Path, capsys: Capture, limit: int, documents: int) -> None:
    some = ["--as-of", "1", "--limit", str(limit)]
    assert run(written, "read", *some, "--columns", "name,id") == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert (header.split(), len(lines)) == (["_cb_key", "name", "id"], documents)
    assert run(written, "read", *some, "--json") == 0
    found = rows(capsys.readouterr().out)
    assert len({row["_cb_key"] for row in found}) == len(found) == documents
    assert run(written, "read", *some, "-o", str(tmp_path / "some.parquet")) == 0
    assert len(pq.read_table(tmp_path / "some.parquet")) == documents


@pytest.mark.parametrize("name", ["out.parquet", "out.arrow", "out.csv", "out.ndjson"])
def test_read_to_a_file(written: Path, tmp_path: Path, capsys: Capture, name: str) -> None:
    assert run(written, "read", "-o", str(tmp_path / name)) == 0
    assert f"{name}: 2 documents, " in capsys.readouterr().out
    assert (tmp_path / name).stat().st_size
    if name == "out.ndjson":
        told = {row["_cb_key"]: row for row in rows((tmp_path / name).read_text("utf-8"))}
        assert told["a"] == {"_cb_key": "a", "id": 10, "name": "ten"}
        assert told["c"] == {"_cb_key": "c", "id": 3, "tags": ["x"]}


def test_read_an_old_version_and_some_columns(written: Path, tmp_path: Path) -> None:
    out = tmp_path / "old.parquet"
    assert run(written, "read", "--as-of", "1", "--columns", "name,geo.lat", "-o", str(out)) == 0
    table = pq.read_table(out).sort_by("_cb_key")
    assert table.to_pydict() == {
        "_cb_key": ["a", "b", "c"],
        "name": ["one", None, None],
        "geo.lat": [1.5, None, None],
    }


def test_read_as_of_a_time(written: Path, tmp_path: Path, capsys: Capture) -> None:
    moment = cbframe.Snapshot(written).versions[0].created.isoformat()
    assert run(written, "read", "--as-of", moment) == 0
    assert "3 documents\n" in capsys.readouterr().out
    assert run(written, "read", "--as-of", "2001-01-01") == 1
    assert "is before the oldest version" in capsys.readouterr().err


# --- changes, versions


def test_changes(written: Path, tmp_path: Path, capsys: Capture) -> None:
    assert run(written, "changes", "--since", "1") == 0
    out = capsys.readouterr().out
    assert "2 changes\n" in out
    assert re.search(r"delete +1\n +upsert +1\n", out)
    assert run(written, "changes", "--since", "1", "--json") == 0
    told = {row["_cb_key"]: row for row in rows(capsys.readouterr().out)}
    assert {key: row["_change_type"] for key, row in told.items()} == {"a": "upsert", "b": "delete"}
    assert told["a"]["id"] == 10
    assert run(written, "changes", "--since", "1", "-o", str(tmp_path / "changes.parquet")) == 0
    assert len(pq.read_table(tmp_path / "changes.parquet")) == 2
    capsys.readouterr()
    assert run(written, "changes", "--since", "1", "--until", "1") == 0
    assert capsys.readouterr().out == "0 changes\n"


def test_versions(written: Path, capsys: Capture) -> None:
    assert run(written, "versions") == 0
    header, first, second = capsys.readouterr().out.splitlines()
    assert header.split()[:4] == ["version", "kind", "created", "(UTC)"]
    assert first.split()[:2] == ["1", "create"]
    assert second.split()[:2] == ["2", "update"]
    assert run(written, "versions", "--json") == 0
    first, second = json.loads(capsys.readouterr().out)
    assert (first["upserted"], second["upserted"], second["deleted"]) == (3, 1, 1)


# --- verify, compact, vacuum, export


def test_verify(written: Path, capsys: Capture) -> None:
    assert run(written, "verify") == 0
    assert "2 versions, 2 files, 5 rows" in capsys.readouterr().out
    hurt = min((written / "data").iterdir())
    hurt.write_bytes(hurt.read_bytes()[:-1])
    assert run(written, "verify") == 1
    out = capsys.readouterr().out
    assert "1 problem\n" in out
    assert hurt.name in out
    assert run(written, "verify", "--json") == 1
    told = json.loads(capsys.readouterr().out)
    assert not told["ok"]
    assert [problem["versions"] for problem in told["problems"]] == [[1, 2]]


def test_compact_and_vacuum(written: Path, capsys: Capture) -> None:
    assert run(written, "compact", "--keep", "1min") == 0
    assert capsys.readouterr().out.startswith("version 3: 5 -> ")
    assert run(written, "compact", "--json") == 0
    assert json.loads(capsys.readouterr().out)["files"] == {"before": 1, "after": 1}
    assert run(written, "vacuum", "--keep", "1") == 0
    assert "2 files deleted\n" in capsys.readouterr().out
    assert run(written, "vacuum", "--json") == 0
    assert json.loads(capsys.readouterr().out) == []
    assert len(cbframe.Snapshot(written)) == 2
    assert run(written, "compact", "--keep", "soon") == 1
    assert "--keep soon is no span of time" in capsys.readouterr().err


def test_export(written: Path, tmp_path: Path, capsys: Capture) -> None:
    assert run(written, "export", str(tmp_path / "plain"), "--as-of", "1") == 0
    assert "plain: 1 file, " in capsys.readouterr().out
    assert len(pq.read_table(tmp_path / "plain")) == 3
    assert run(written, "export", str(tmp_path / "plain")) == 1
    assert "there is something already" in capsys.readouterr().err


# --- errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["read", "--as-of", "7"], "there is no version 7"),
        (["read", "--columns", "nowhere"], "'nowhere'"),
        (["read", "-o", "x.xlsx"], "names no known format"),
        (["changes", "--since", "someday"], "as_of='someday' is no time"),
        (["export", "memory://plain"], "export() writes a folder of this machine"),
    ],
)
def test_errors(written: Path, capsys: Capture, arguments: list[str], message: str) -> None:
    command, *rest = arguments
    assert run(written, command, *rest) == 1
    out, err = capsys.readouterr()
    assert message in err[err.index("cbframe: error: ") :]
    assert "Traceback" not in out + err


@pytest.mark.parametrize("command", ["read", "versions", "verify", "compact", "vacuum"])
def test_no_snapshot(tmp_path: Path, capsys: Capture, command: str) -> None:
    assert run(tmp_path / "nothing", command) == 1
    assert "cbframe: error: there is no snapshot" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [[], ["write"], ["changes", "x"], ["vacuum", "x", "--keep", "0"], ["tidy"]]
)
def test_mistyped_arguments(arguments: list[str], capsys: Capture) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["snapshot", *arguments])
    assert exit_.value.code == 2
    assert "usage: cbframe snapshot" in capsys.readouterr().err


def test_every_command_has_help(capsys: Capture) -> None:
    for command in ("write", "read", "changes", "versions", "verify", "compact", "vacuum", "export"):
        with pytest.raises(SystemExit) as exit_:
            main(["snapshot", command, "--help"])
        assert exit_.value.code == 0
        assert f"usage: cbframe snapshot {command}" in capsys.readouterr().out
