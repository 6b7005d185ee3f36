"""The command line, in this process and as a program."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import trustme

import cbframe
from cbframe import core
from cbframe.cli import commands, main
from cbframe.cli.demo import equal_rows
from cbframe.cli.output import _cells, say_rows, styled
from cbframe.local import LocalCluster
from cbframe.scan import session
from cbframe.scan.spec import ScanSpec
from cbframe.snapshot import bucket_changes

PASSWORD = "s3cret-of-the-test"
DOCUMENTS: dict[str, Any] = {
    "a": {"id": 1, "name": 'Ζürich, "quoted"\nnext', "geo": {"lat": 1.5}, "tags": ["x", None], "mixed": 1},
    "b": {"id": 2, "name": "", "mixed": "one"},
    "c": {"id": 3, "geo": {"lat": -2.0, "alt": 7}, "tags": []},
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(vbuckets=8, bucket="shop", username="reader", password=PASSWORD) as cluster:
        for key, document in DOCUMENTS.items():
            cluster.upsert(key, document)
        cluster.upsert("raw", b"\x00\xff", datatype=0)
        yield cluster


@pytest.fixture
def login(cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("CB_PASSWORD", PASSWORD)
    monkeypatch.setenv("COLUMNS", "80")
    return ["read", cluster.connection_string, "--user", "reader", "--password-env", "CB_PASSWORD"]


def program(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "cbframe", *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        **{"stdin": subprocess.DEVNULL, **options},
    )


# --- demo


def test_the_demo(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert main(["demo", "--documents", "3000", "--nodes", "2", "--vbuckets", "32"]) == 0
    out, err = capsys.readouterr()
    for title in ("cluster", "read", "nodes", "result", "checks", "timings"):
        assert re.search(rf"^{title}$", out, re.MULTILINE)
    counts = re.findall(r"rows equal in .* ([\d,]+) of ([\d,]+)  ok", out)
    assert len(counts) == 3
    assert {equal == all_rows for equal, all_rows in counts} == {True}
    assert "DIFFERENT" not in out
    assert err.count("\n") == 1
    assert "100 %" in err
    assert max(map(_cells, out.splitlines())) <= 100


def test_the_demo_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--documents", "300", "--vbuckets", "8", "--json"]) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert (report["documents"], report["differences"]) == (300, [])
    assert report["seconds"].keys() >= {"read the bucket", "write the Parquet file"}
    assert "rows equal in the DataFrame" in err


def test_the_demo_as_a_program_keeps_its_file(tmp_path: Path) -> None:
    done = program("demo", "--documents", "2000", "--vbuckets", "16", "--keep", str(tmp_path))
    assert done.returncode == 0, done.stderr
    rows = pq.read_table(tmp_path / "demo.parquet").num_rows
    assert f"{rows:,} of {rows:,}  ok" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["demo.parquet"]


def test_the_demo_fails_on_a_difference(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def one_row_short(reader: pa.RecordBatchReader, path: Path) -> None:
        pq.write_table(reader.read_all().slice(1), path)

    monkeypatch.setattr("cbframe.cli.demo.write_parquet", one_row_short)
    assert main(["demo", "--documents", "200", "--nodes", "1", "--vbuckets", "4"]) == 1
    out = capsys.readouterr().out
    assert "FAILED: rows equal in the file, by pyarrow: 0 of" in out


def test_the_demo_refuses_a_file_that_it_cannot_keep(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--keep", str(tmp_path / "nowhere" / "x.parquet")]) == 1
    assert main(["demo", "--keep", str(tmp_path / "x.csv")]) == 1
    assert "does not exist" in capsys.readouterr().err


def test_equal_rows() -> None:
    table = pa.table({"a": list(range(100)), "b": [{"c": [i]} for i in range(100)]})
    assert equal_rows(table, table) == 100
    other = pa.table({"a": [*range(99), -1], "b": [{"c": [i + (i == 5)]} for i in range(100)]})
    assert equal_rows(table, other) == 98
    assert equal_rows(table, table.slice(1)) == 0
    assert equal_rows(table, table.set_column(0, "a", table["a"].cast(pa.int32()))) == 0
    assert equal_rows(table.slice(0, 0), table.slice(0, 0)) == 0


# --- read


def test_read_shows_some_documents(login: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(login) == 0
    out, err = capsys.readouterr()
    header, *rows = out.splitlines()
    assert header.split() == ["_cb_key", "id", "name", "mixed", "_cb_value", "_cb_reason"]
    assert {row.split()[0] for row in rows[:4]} == {"a", "b", "c", "raw"}
    assert rows[4:] == ["  … and 2 more columns: geo, tags"]
    assert err == "  all documents\n"
    assert main([*login, "--limit", "2"]) == 0
    out, err = capsys.readouterr()
    assert len([line for line in out.splitlines() if "…" not in line]) == 3
    assert err == "  some documents: --limit N shows more, -o FILE writes all\n"


def test_a_look_reads_no_more_than_it_takes(
    login: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Any] = []
    real = commands.scan_bucket
    monkeypatch.setattr(
        commands, "scan_bucket", lambda **given: asked.append(given["n_rows"]) or real(**given)
    )
    for more in ([], ["--head", "3"], ["--json"], ["--format", "csv", "--limit", "7"]):
        assert main([*login, *more]) == 0
    capsys.readouterr()
    assert asked == [10, 3, None, 7]


def test_the_columns_that_were_chosen_are_shown_as_they_were(
    login: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*login, "--columns", "tags,geo.lat,id", "--where", "id is not null"]) == 0
    assert sorted(capsys.readouterr().out.splitlines()) == [
        "  _cb_key  tags        geo.lat  id",
        '  a        ["x",null]      1.5   1',
        "  b                              2",
        "  c        []             -2.0   3",
    ]
    monkeypatch.setenv("COLUMNS", "40")
    assert main([*login, "--columns", "name,geo,id"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].split() == ["_cb_key", "name", "id"]
    assert "… and 1 more columns: geo" in out
    assert max(map(_cells, out.splitlines())) <= 40


def test_keys_only(login: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main([*login, "--keys-only", "--no-progress"]) == 0
    assert sorted(capfd.readouterr().out.split()) == ["_cb_key", "a", "b", "c", "raw"]
    assert main([*login, "--keys-only", "--json", "--where", "_cb_key like 'r%'"]) == 0
    assert capfd.readouterr().out == '{"_cb_key":"raw"}\n'


def test_letters_that_terminals_obey_are_escaped(
    cluster: LocalCluster, login: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.upsert("evil\x1b[2J", {"name\x1b[31m": "red\x1b]0;title\x07", "京": "京\n都"})
    try:
        for command in ("read", "schema"):
            assert main([command, *login[1:], "--where", "`京` is not null"]) == 0
    finally:
        cluster.delete("evil\x1b[2J")
    out = capsys.readouterr().out
    assert all(line.isprintable() for line in out.splitlines())
    assert r"evil\x1b[2J" in out
    assert out.count(r"京\n都") == 2
    assert out.count(r"red\x1b]0;title\x07") == 2


def test_read_without_progress_is_silent(login: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*login, "--json"]) == 0
    assert "100 %" in capsys.readouterr().err
    assert main([*login, "--json", "--no-progress"]) == 0
    assert capsys.readouterr().err == ""


def test_formats(login: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The same on the standard output and in a file, whatever that is called."""
    for form in ("csv", "ndjson"):
        path = tmp_path / form
        assert main([*login, "--format", form, "-o", str(path)]) == 0
        capfd.readouterr()
        assert main([*login, "--format", form]) == 0
        assert sorted(capfd.readouterr().out.splitlines()) == sorted(path.read_text("utf-8").splitlines())
    assert main([*login, "--format", "parquet", "-o", str(tmp_path / "plain")]) == 0
    assert len(pq.read_table(tmp_path / "plain")) == 4
    assert main([*login, "--limit", "2", "-o", str(tmp_path / "few.parquet")]) == 0
    assert len(pq.read_table(tmp_path / "few.parquet")) == 2
    assert "no moment: these are some documents" in capfd.readouterr().out


def test_schema(login: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    schema = ["schema", *login[1:]]
    assert main(schema) == 0
    out, err = capsys.readouterr()
    title, header, *rows = out.splitlines()
    assert title == "shop: 4 documents, 8 fields; no JSON objects: 1 binary"
    assert header.split() == ["field", "type", "missing", "distinct", "kinds", "examples"]
    assert re.search(r"^id +int64 +25 % +3 ", "\n".join(rows), re.MULTILINE)
    assert re.search(r"^mixed +string +50 % +2 +1 integer, 1 string", "\n".join(rows), re.MULTILINE)
    assert "some documents" not in err
    assert main([*schema, "--limit", "2"]) == 0
    out, err = capsys.readouterr()
    assert "shop: 2 documents" in out
    assert err.endswith("of some documents: --limit N looks at more, --all at all\n")
    assert main([*schema, "--all", "--json", "--columns", "mixed"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {
        "bucket": "shop",
        "documents": 4,
        "complete": True,
        "rejected": {"binary": 1},
        "fields": [
            {
                "path": "mixed",
                "type": "string",
                "values": 2,
                "places": 4,
                "missing": 0.5,
                "distinct": 2,
                "examples": told["fields"][0]["examples"],
                "kinds": {"integer": 1, "string": 1},
            }
        ],
    }
    assert main([*schema, "--limit", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["complete"] is False


def test_who_stops_reading_is_not_complained_to(login: list[str]) -> None:
    """As ``| head -1``: whatever the format is, without a word."""
    for more in (["--json"], ["--format", "csv"]):
        with subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "cbframe", *login, *more, "--no-progress"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.close()
            assert process.stderr.read() == b""
            assert process.wait(30) == 1


@pytest.mark.parametrize("plain", ["NO_COLOR", "TERM"])
def test_bold_and_dim_are_for_terminals(plain: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert styled("a", Terminal()) == "\x1b[1ma\x1b[0m"
    assert styled("a", Terminal(), dim=True) == "\x1b[2ma\x1b[0m"
    assert styled("a", io.StringIO()) == "a"
    monkeypatch.setenv(plain, "dumb")
    assert styled("a", Terminal()) == "a"


def test_read_only_some_columns(login: list[str], tmp_path: Path) -> None:
    path = tmp_path / "few.parquet"
    assert main([*login, "--columns", "name,id", "-o", str(path)]) == 0
    assert pq.read_table(path).column_names == ["_cb_key", "name", "id"]


@pytest.mark.parametrize("name", ["out.parquet", "OUT.ARROW"])
def test_read_to_arrow_and_parquet(
    cluster: LocalCluster, login: list[str], tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    assert main([*login, "-o", str(path)]) == 0
    with pa.memory_map(str(path)) as file:
        found = pq.read_table(path) if name == "out.parquet" else pa.ipc.open_file(file).read_all()
    wanted = cbframe.scan_bucket(cluster).to_arrow()
    assert found.sort_by("_cb_key").equals(wanted.sort_by("_cb_key"))
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_read_to_ndjson(login: list[str], tmp_path: Path) -> None:
    path = tmp_path / "out.ndjson"
    assert main([*login, "-o", str(path)]) == 0
    rows = {row.pop("_cb_key"): row for row in map(json.loads, path.read_text("utf-8").splitlines())}
    assert base64.b64decode(rows.pop("raw")["_cb_value"]) == b"\x00\xff"
    # A number and a string: what was a string stays as it is.
    assert rows["a"].pop("mixed") == "1"
    assert rows == {**DOCUMENTS, "a": {name: v for name, v in DOCUMENTS["a"].items() if name != "mixed"}}


def test_read_as_lines(login: list[str], tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """The same lines as in a file, and nothing else, on the standard output."""
    path = tmp_path / "out.ndjson"
    assert main([*login, "-o", str(path), "--no-progress"]) == 0
    capfdbinary.readouterr()
    assert main([*login, "--json"]) == 0
    lines = capfdbinary.readouterr().out.splitlines()
    assert len(lines) == len(DOCUMENTS) + 1
    assert sorted(lines) == sorted(path.read_bytes().splitlines())


def test_read_to_csv(login: list[str], tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    assert main([*login, "-o", str(path)]) == 0
    with path.open(encoding="utf-8", newline="") as file:
        rows = {row["_cb_key"]: row for row in csv.DictReader(file)}
    assert rows["a"]["name"] == DOCUMENTS["a"]["name"]
    assert json.loads(rows["a"]["geo"]) == {"lat": 1.5}
    assert json.loads(rows["a"]["tags"]) == ["x", None]
    assert json.loads(rows["c"]["geo"]) == {"lat": -2.0, "alt": 7}
    assert base64.b64decode(rows["raw"]["_cb_value"]) == b"\x00\xff"
    frame = pd.read_csv(path, index_col="_cb_key", dtype_backend="pyarrow")
    assert frame.loc["b", "id"] == 2


def test_keys_that_are_no_text(cluster: LocalCluster, login: list[str], tmp_path: Path) -> None:
    cluster.upsert(b"\xff", {"id": 9})
    try:
        for name in ("out.csv", "out.ndjson"):
            assert main([*login, "-o", str(tmp_path / name)]) == 0
    finally:
        cluster.delete(b"\xff")
    for name in ("out.csv", "out.ndjson"):
        with (tmp_path / name).open(encoding="utf-8", newline="") as file:
            rows = [*csv.DictReader(file)] if name == "out.csv" else [*map(json.loads, file)]
        assert {row["_cb_key"] for row in rows} == {"\\xff", "raw", *DOCUMENTS}


def test_a_failed_read_leaves_the_old_file(
    login: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.csv"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("cbframe.cli.output._flat", fail)
    assert main([*login, "-o", str(path)]) == 1
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.csv"]


# --- errors


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["-o", "x.xlsx"], "'x.xlsx' names no known format", ".parquet, .arrow, .csv, .ndjson"),
        (["-o", "x.csv", "--format", "ndjson"], "'x.csv' does not end in .ndjson", ".csv"),
        (["-o", "x", "--format", "table"], "'x' names no known format", ".csv"),
        (["--format", "parquet"], "parquet is written to a file, not printed", "-o FILE"),
        (["--where", "nowhere = 1"], "'nowhere', which no document has", None),
        (["--keys-only", "--where", "id = 1"], "needs the documents", None),
        (["-o", "no/such/x.csv"], "the folder no/such does not exist", None),
        (["--columns", "nowhere"], "'nowhere', which no document has", "cbframe schema lists"),
        (["--columns", ","], "names no columns", "list of field names"),
        (["--bucket", "other"], "other", None),
    ],
)
def test_errors_say_what_to_do(
    login: list[str], capsys: pytest.CaptureFixture[str], arguments: list[str], message: str, hint: str | None
) -> None:
    assert main([*login, *arguments]) == 1
    out, err = capsys.readouterr()
    told = err[err.index("cbframe: error: ") :]
    assert message in told
    if hint:
        assert hint in told.split("\n  hint: ")[1]
    assert "Traceback" not in out + err
    assert PASSWORD not in out + err


@pytest.fixture(scope="module")
def copy(cluster: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two snapshots: of the documents, and of their keys alone."""
    folder = tmp_path_factory.mktemp("copies")
    cbframe.write_snapshot(cluster, folder / "all")
    cbframe.write_snapshot(cluster, folder / "keys", keys_only=True)
    return folder


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("read CONN --keys-only --columns id", "leave --keys-only and parse=False out"),
        ("read CONN --keys-only --where id=1", "leave --keys-only out, or filter by _cb_ columns"),
        (
            "schema CONN --where nowhere=1",
            "cbframe schema lists the fields; a member is geo.lat, a name with a dot in it `geo.lat`",
        ),
        ("read CONN --where geo=1", 'name a member of it: --where "geo.… == …"'),
        ("stream CONN --from no.json", "without one, --from beginning or --from now"),
        ("stream CONN --checkpoint COPY/some.json", "--checkpoint writes them"),
        ("stats HOST", "give --bucket, or put it into the connection string: couchbase://host/bucket"),
        ("read CONN --user a:b", "pass --user with --password-env or --password-file"),
        ("doctor couchbase://me:pw@db/b", "pass them as --user with --password-env or --password-file"),
        (
            "doctor couchbases://db/b?tls_verify=none",
            "give the cluster's authority: --ca-file ca.pem, or trust_certificate=ca.pem in the string",
        ),
        (
            "doctor couchbases://db/b?keypath=key",
            "pass --client-cert and --client-key, and the authority as --ca-file",
        ),
        ("read CONN --proxy https://db", "write --proxy http://host:port: only HTTP proxies can be used"),
        (
            "snapshot write CONN COPY/all --columns id",
            "leave --columns out to update it, or make it again with cbframe snapshot write --mode overwrite",
        ),
        (
            "snapshot write CONN COPY/all --mode create",
            "cbframe snapshot write --mode update brings it up to date",
        ),
        ("snapshot read COPY/none", "cbframe snapshot write makes one"),
        (
            "snapshot read COPY/all --as-of 9",
            "cbframe snapshot versions lists them; older ones are deleted by cbframe snapshot vacuum",
        ),
        ("snapshot compact COPY/all --keep never", 'give a text with a unit such as "5min"'),
        # These are no arguments:
        ("snapshot verify COPY/keep=1", "cbframe snapshot write makes one"),
        # There it is no option:
        (
            "snapshot read COPY/keys --where id=1",
            "it was made with keys_only=True or parse=False: filter by columns of metadata",
        ),
    ],
)
def test_hints_name_options(
    cluster: LocalCluster,
    login: list[str],
    copy: Path,
    capsys: pytest.CaptureFixture[str],
    line: str,
    hint: str,
) -> None:
    (copy / "some.json").write_text("{}")
    conn = cluster.connection_string
    words = line.replace("CONN", conn).replace("HOST", conn.rpartition("/")[0]).replace("COPY", str(copy))
    user = login[4:] if "--user" in words else login[2:] if "://" in words else []
    assert main([*words.split(), *user]) == 1
    assert capsys.readouterr().err.partition("\n  hint: ")[2] == f"{hint}\n"


@pytest.mark.parametrize(
    "path", ["COPY/keep=1", "COPY/a/mode=5/x", "limit=5/x", "COPY/x.keep=3", "COPY/a=json=1"]
)
def test_paths_are_left_alone(path: str, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = path.replace("COPY", str(copy))
    assert main(["snapshot", "compact", path]) == 1
    assert path in capsys.readouterr().err


def test_remedies_name_commands(copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(copy / "all", tmp_path / "all")
    for file in (tmp_path / "all").rglob("*.parquet"):
        file.write_bytes(b"")
    assert main(["snapshot", "verify", str(tmp_path / "all")]) == 1
    assert "cbframe snapshot write --mode repair reads again what was in it" in capsys.readouterr().out


def test_a_connection_string_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["read", "ftp://host", "--user", "u", "--password-env", "HOME"]) == 1
    assert capsys.readouterr().err.startswith("cbframe: error: ")


@pytest.mark.parametrize("arguments", [[], ["nothing"], ["demo", "--documents", "0"], ["read"]])
def test_mistyped_arguments(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert "usage: cbframe" in capsys.readouterr().err


def test_version() -> None:
    done = program("--version")
    assert (done.returncode, done.stdout) == (0, f"cbframe {cbframe.__version__}, {core.TITLE}\n")


def test_ctrl_c(
    login: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cbframe.scan.scan.BucketScan.read", interrupt)
    assert main(login) == 130
    assert capsys.readouterr().err == "cbframe: interrupted\n"


def test_a_reader_of_the_output_that_leaves(login: list[str]) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "cbframe", *login, "--no-progress"],
            check=False,
            stdout=theirs,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    finally:
        os.close(theirs)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize(("closed", "status"), [("1", 0), ("2", 1)])
def test_an_output_that_is_closed(closed: str, status: int, login: list[str]) -> None:
    words = [sys.executable, "-m", "cbframe", *login, "--json", "--no-progress"]
    if status:
        words += ["--columns", "nothing"]
    done = subprocess.run(
        ["sh", "-c", f'"$@" {closed}>&-', "sh", *words], check=False, capture_output=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (status, b"", b"")


# --- passwords


def test_a_password_file(cluster: LocalCluster, tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text(f"{PASSWORD}\n")
    read = ["read", cluster.connection_string, "--user", "reader", "--password-file", str(path)]
    assert main(read) == 0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--user", "reader", "--password-file", "no/password"], "the password file cannot be read"),
        (["--user", "reader", "--password-env", "NO_SUCH_VARIABLE"], "NO_SUCH_VARIABLE is not set"),
        (["--user", "reader", "--password-env", "CB_PASSWORD"], "cbframe: error: "),
        ([], "hint: give --user"),
    ],
)
def test_a_password_that_is_not_told(
    cluster: LocalCluster,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    told: str,
) -> None:
    monkeypatch.setenv("CB_PASSWORD", "guess-of-the-test")
    assert main(["read", cluster.connection_string, *options]) == 1
    err = capsys.readouterr().err
    assert told in err
    assert "guess-of-the-test" not in err


def test_a_password_in_the_connection_string_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["read", f"http://reader:{PASSWORD}@127.0.0.1:8091", "--bucket", "shop"]) == 1
    err = capsys.readouterr().err
    assert "holds credentials" in err
    assert PASSWORD not in err


def test_without_a_terminal_nothing_is_asked(cluster: LocalCluster) -> None:
    done = program("read", cluster.connection_string, "--user", "reader")
    assert done.returncode == 1
    assert "use --password-env or --password-file" in done.stderr


def test_the_password_is_asked_for(cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    asked: list[str] = []

    def answer(prompt: str) -> str:
        asked.append(prompt)
        return PASSWORD

    monkeypatch.setattr("getpass.getpass", answer)
    assert main(["read", cluster.connection_string, "--user", "reader"]) == 0
    assert asked == ["Password of reader: "]


# --- serve


def test_serve_runs_until_it_is_interrupted() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "cbframe", "serve", "--vbuckets", "8", "--sample", "100"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        try:
            assert server.stdout is not None
            assert select.select([server.stdout], [], [], 30)[0]
            ready = json.loads(server.stdout.readline())
            frame = cbframe.read_bucket(ready["connection_string"], auth=(ready["username"], "password"))
            assert len(frame) > 90
            server.send_signal(signal.SIGINT)
            assert server.wait(20) == 0
        finally:
            server.kill()


@contextmanager
def serving(
    *arguments: str, stdin: int = subprocess.DEVNULL
) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """A cluster in a process of its own, and what it says of itself."""
    command = [sys.executable, "-m", "cbframe", "serve", "--vbuckets", "4", "--sample", "20", *arguments]
    with subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            assert select.select([server.stdout], [], [], 30)[0]
            yield server, json.loads(server.stdout.readline())
        finally:
            server.terminate()


def test_serve_without_an_input_goes_on() -> None:
    """As a service: there is nobody whose end it could notice."""
    with serving() as (server, ready):
        found = cbframe.read_bucket(ready["connection_string"], auth=(ready["username"], "password"))
        assert len(found) == 20
        assert server.poll() is None
        server.terminate()
        assert server.wait(20) == 0


def test_serve_with_its_input_closed_goes_on() -> None:
    """As a service of Windows: ``sys.stdin`` is None then."""
    code = (
        "import os, sys; os.close(0); "
        "os.execv(sys.executable, [sys.executable, '-m', 'cbframe', 'serve', '--vbuckets', '4'])"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            assert "connection_string" in json.loads(server.stdout.readline())
            server.terminate()
            assert server.wait(20) == 0
        finally:
            server.kill()


def test_serve_ends_with_who_started_it() -> None:
    with serving(stdin=subprocess.PIPE) as (server, _):
        assert server.stdin is not None
        server.stdin.close()
        assert server.wait(20) == 0


def test_serve_with_tls(tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    chain, key, ca = (tmp_path / name for name in ("chain.pem", "key.pem", "ca.pem"))
    chain.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(key)
    authority.cert_pem.write_to_path(ca)
    with serving("--tls-cert", str(chain), "--tls-key", str(key)) as (_, ready):
        auth = ready["username"], "password"
        assert len(cbframe.read_bucket(ready["tls_connection_string"], auth=auth, tls=str(ca))) == 20
        assert all(url.startswith("https://") for url in ready["tls_rest_urls"])
    refused = subprocess.run(
        [sys.executable, "-m", "cbframe", "serve", "--tls-key", str(key)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 2
    assert "give --tls-cert" in refused.stderr


# --- text


def test_tables_are_aligned_also_behind_wide_letters(capsys: pytest.CaptureFixture[str]) -> None:
    say_rows([("京都", "1"), ("Köln", "12,345")], ("city", "n"))
    assert capsys.readouterr().out.splitlines() == ["  city       n", "  京都       1", "  Köln  12,345"]


def test_consistency(
    login: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What it does is shown where snapshots and reads are; here, that it is passed on."""
    asked: list[str] = []

    class Noting(session.Run):
        def __init__(self, target: ScanSpec, **arguments: Any) -> None:
            asked.append(target.consistency)
            super().__init__(target, **arguments)

    monkeypatch.setattr(session, "Run", Noting)
    monkeypatch.setattr(bucket_changes, "Run", Noting)
    snapshot = ["snapshot", "write", login[1], str(tmp_path / "s"), *login[2:]]
    for command in (login, snapshot):
        assert main(command) == 0
        assert main([*command, "--consistency", "strict"]) == 0
    assert asked == ["snapshot", "strict"] * 2
    with pytest.raises(SystemExit):
        main([*login, "--consistency", "eventual"])
    assert "--consistency" in capsys.readouterr().err


def test_what_is_left_out(
    login: list[str], tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    with LocalCluster(vbuckets=8, bucket="shop", username="reader", password=PASSWORD) as cluster:
        cluster.upsert("a", {"n": 1})
        cluster.upsert("gone", {"n": 2}, expiry=1_700_000_000)
        cluster.upsert("_txn:client-record", {"n": 3})
        arguments = ["read", cluster.connection_string, *login[2:], "--no-progress"]
        assert main([*arguments, "-o", str(tmp_path / "out.csv")]) == 0
        told = "left out            1 expired and 1 record of transactions"
        assert told in capsysbinary.readouterr().out.decode()
        assert main([*arguments, "--json", "--expired", "keep", "--transaction-records", "keep"]) == 0
        assert len(capsysbinary.readouterr().out.splitlines()) == 3
