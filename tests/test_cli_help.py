"""What helps people at the command line: the examples of each help, each of which is run, and completion."""

from __future__ import annotations

import argparse
import os
import pty
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cbframe import LocalCluster
from cbframe.cli import main, parser_of
from cbframe.local import __main__ as local

PASSWORD = "s3cret-of-the-help"
SERVE = "cbframe serve"
ROOT = Path(__file__).parent.parent


def helps() -> dict[str, str]:
    """The help of each command, by its name."""

    def visit(parser: argparse.ArgumentParser) -> None:
        found[parser.prog] = parser.format_help() if parser.prog != SERVE else serve_help()
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for each in action.choices.values():
                    visit(each)

    found: dict[str, str] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "80")
        visit(parser_of("cbframe"))
    return found


def serve_help() -> str:
    """Of a program that has arguments of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "cbframe", "serve", "--help"],
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout


HELPS = helps()
EXAMPLES = {
    line.strip(): name
    for name, text in HELPS.items()
    for line in text.rpartition("examples:\n")[2].splitlines()
}


def test_there_are_these_commands() -> None:
    words = "demo read schema snapshot stream stats doctor serve completion".split()  # noqa: SIM905
    assert {name.split()[1] for name in HELPS if name != "cbframe"} == set(words)
    assert local.serve.__doc__


@pytest.mark.parametrize("command", HELPS)
def test_help_ends_with_examples(command: str) -> None:
    lines = HELPS[command].rpartition("\nexamples:\n")[2].splitlines()
    assert len(set(lines)) == len(lines) == (4 if command == "cbframe snapshot write" else 2)
    assert all(line.startswith(f"  {command} ") for line in lines)
    assert max(map(len, HELPS[command].splitlines())) <= 100


def test_serve_says_what_its_options_are() -> None:
    found = re.findall(r"^  (--[\w-]+) [A-Z]+\s+(\S.*)", HELPS[SERVE], re.MULTILINE)
    assert [name for name, _ in found] == [
        *("--nodes", "--vbuckets", "--bucket", "--username", "--password", "--replicas", "--seed"),
        *("--sample", "--tls-cert", "--tls-key", "--tls-client-ca"),
    ]
    assert not [text for _, text in found if text.startswith("--")]


def test_serve_does_not_show_the_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CBFRAME_LOCAL_PASSWORD", PASSWORD)
    assert PASSWORD not in serve_help()


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(vbuckets=8, bucket="travel", username="me", password=PASSWORD) as cluster:
        cluster.load_sample(60)
        yield cluster


@pytest.fixture(scope="module")
def copy(cluster: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a snapshot of two versions."""
    folder = tmp_path_factory.mktemp("copies")
    arguments = [cluster.connection_string, str(folder / "travel"), "--user", "me", "--password-env", "PW"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PW", PASSWORD)
        assert main(["snapshot", "write", *arguments, "--no-progress"]) == 0
        cluster.upsert("hotel_new", {"type": "hotel", "name": "Neu", "price": 60})
        assert main(["snapshot", "write", *arguments, "--no-progress"]) == 0
    return folder


@pytest.mark.parametrize("line", EXAMPLES)
def test_an_example_runs(
    line: str,
    cluster: LocalCluster,
    copy: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(copy / "travel", tmp_path / "travel")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PW", PASSWORD)
    command, _, file = line.partition(" > cbframe.")
    words = shlex.split(command)
    assert words.pop(0) == "cbframe"
    words = [cluster.connection_string if word == "couchbase://db/travel" else word for word in words]
    words = ["0" if word == "9187" else word for word in words]
    endless = words[0] in ("stream", "stats") or (words[0] == "snapshot" and "--every" in words)
    if words[0] == "serve" or (endless and "--limit" not in words):
        until_interrupted(words)
        return
    assert main(words) == 0
    out, err = capfd.readouterr()
    assert out
    assert "error" not in err
    files = [words[words.index(flag) + 1] for flag in ("-o", "--keep") if flag in words and "." in words[-1]]
    assert all(Path(name).stat().st_size for name in files)
    assert not file or file == words[1]


def until_interrupted(words: list[str]) -> None:
    """Run what has no end, until something is printed."""
    command = [sys.executable, "-m", "cbframe", *words]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline()
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=30)
            assert process.returncode == 0, err
        finally:
            process.kill()


# --- completion

LINES = [
    ("cbframe ", {"demo", "read", "schema", "snapshot", "stream", "stats", "doctor", "serve", "completion"}),
    ("cbframe s", {"schema", "snapshot", "stream", "stats", "serve"}),
    ("cbframe snapshot v", {"versions", "verify", "vacuum"}),
    ("cbframe completion ", {"bash", "fish", "zsh"}),
    ("cbframe read couchbase://db/travel --for", {"--format"}),
    ("cbframe read --format ", {"table", "ndjson", "csv", "parquet", "arrow"}),
    ("cbframe snapshot write couchbase://db/b folder --mode=cr", {"create"}),
    ("cbframe snapshot write --mode create --exp", set()),
    ("cbframe snapshot write couchbase://db/b folder --ev", {"--every"}),
    ("cbframe snapshot read --expired=", {"drop", "keep"}),
    ("cbframe read --user ", set()),
    ("cbframe serv", {"serve"}),
    ("cbframe serve --no", {"--nodes"}),
    ("cbframe serve --nodes 3 --tls", {"--tls-cert", "--tls-key", "--tls-client-ca"}),
    ("cbframe serve --con", set()),
    ("cbframe serve --tls-cert ", {"one.csv", "two.csv"}),
    ("cbframe read -o ", {"one.csv", "two.csv"}),
    ("cbframe stream --json --from o", {"one.csv"}),
]


@pytest.mark.parametrize(("line", "wanted"), LINES)
def test_candidates(line: str, wanted: set[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Those of cbframe; where it has none, shells know files."""
    words = re.sub("=", " = ", line).split(" ")
    words = words if words[-2:] != ["=", ""] else words[:-1]
    status = main(["completion", "--", *words])
    found = set(capsys.readouterr().out.split())
    assert found == {name for name in wanted if not name.endswith(".csv")}
    assert status == (0 if found else 1)


def scripts(folder: Path, shell: str) -> str:
    """The script of a shell, in a folder with two files and the program."""
    for name in ("one.csv", "two.csv"):
        (folder / name).touch()
    (folder / "bin").mkdir()
    program = folder / "bin" / "cbframe"
    program.write_text(
        f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(ROOT))} exec {sys.executable} -m cbframe "$@"\n'
    )
    program.chmod(0o755)
    done = subprocess.run([program, "completion", shell], check=True, capture_output=True, text=True)
    (folder / "bin" / "script").write_text(done.stdout)
    return done.stdout


BASH = """
source bin/script
complete -p cbframe
line=$1
read -ra COMP_WORDS <<< "${line//=/ = }"
[[ $line == *" " ]] && COMP_WORDS+=("")
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_cbframe
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_in_bash(tmp_path: Path) -> None:
    scripts(tmp_path, "bash")
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    for line, wanted in LINES[5:8]:
        done = subprocess.run(
            ["bash", "-c", BASH, "bash", line],
            check=True,
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=environment,
        )
        assert done.stderr == ""
        title, *found = done.stdout.split("\n")
        assert title == "complete -o default -F _cbframe cbframe"
        assert set(filter(None, found)) == wanted


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_keys_in_bash(tmp_path: Path) -> None:
    """A tab completes a command, a choice, and a file where there is nothing else."""
    scripts(tmp_path, "bash")
    keys = "source bin/script\n"
    for line in ("cbframe schem\t", "cbframe snapshot write --mode=cre\t", "cbframe read -o one\t"):
        keys += f"{line}\x01echo [\x05]\n"
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "TERM": "dumb"}
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        ["bash", "--norc", "--noprofile", "-i"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=tmp_path,
        env=environment,
        start_new_session=True,
    ) as shell:
        os.close(theirs)
        try:
            os.write(ours, f"{keys}exit\n".encode())
            text = ""
            while "[cbframe read -o one.csv ]" not in text:
                text += os.read(ours, 4096).decode()
        finally:
            shell.kill()
            os.close(ours)
    assert "\n[cbframe schema ]\r\n" in text
    assert "\n[cbframe snapshot write --mode=create ]\r\n" in text


def test_shells_that_do_not_split_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "--", "cbframe", "snapshot", "write", "--mode=cr"]) == 0
    assert main(["completion", "--", "cbframe", "read", "x", "--format="]) == 0
    found = capsys.readouterr().out.split()
    assert found == [
        "--mode=create",
        *(f"--format={form}" for form in ("table", "ndjson", "csv", "parquet", "arrow")),
    ]


FISH = "source bin/script; complete -C $argv[1]"


@pytest.mark.skipif(shutil.which("fish") is None, reason="needs fish")
def test_in_fish(tmp_path: Path) -> None:
    scripts(tmp_path, "fish")
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    for line, wanted in LINES:
        if "=" not in line:
            done = subprocess.run(
                ["fish", "--no-config", "-c", FISH, line],
                check=True,
                capture_output=True,
                text=True,
                cwd=tmp_path,
                env=environment,
            )
            found = {each.split("\t")[0] for each in done.stdout.splitlines()}
            assert found - {"bin/"} == wanted or not wanted
