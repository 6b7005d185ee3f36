"""The code of the README runs as it stands, and what the documentation says of types and commands is so."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

import cbframe.json
from cbframe import Checkpoint, LocalCluster, Snapshot, cli, read_bucket, scan_bucket
from cbframe.cli import parser_of
from cbframe.testing import LocalCapella

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


# --- the README


def test_the_code_runs_and_prints_what_is_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All of it in order, in one namespace; a simulated Capella has the name that is connected to."""
    monkeypatch.chdir(tmp_path)
    frames: list[pd.DataFrame] = []

    def store(frame: pd.DataFrame) -> None:
        frames.append(frame)
        if sum(map(len, frames)) == cluster.item_count():
            names["stream"].close()

    names: dict[str, Any] = {"store": store}
    printed = ""
    with LocalCapella(name="abc123") as capella:
        cluster = capella.cluster
        for n in range(50):
            geo = {"lat": 47.4, "alt": 10 * n}
            cluster.upsert(f"hotel_{n}", {"type": "hotel", "name": f"Hotel {n}", "geo": geo})
        monkeypatch.setenv("CB_PASSWORD", capella.password)
        for language, text in BLOCKS:
            if language == "python":
                exec(compile(text, "README.md", "exec"), names)
                printed = capsys.readouterr().out
                if "doctor" in text:
                    assert printed.partition("\n")[0].endswith("everything is well")
            elif not language:
                # pandas pads lines with blanks.
                assert text.splitlines() == [line.rstrip() for line in printed.splitlines()]
        assert set(names["df"].columns) == {"name", "geo.lat"}
        assert len(names["df"]) == 39
        assert len(names["df"].attrs["cbframe"]["as_of"]) == len(names["scan"].as_of) == 64
    assert pd.concat(frames).index.nunique() == 50
    assert sum(at.seqno for at in Checkpoint.load("travel.json").offsets.values()) == 50
    assert pq.read_metadata("travel.parquet").num_rows == len(Snapshot("travel")) == 50


def test_what_is_named_is_there() -> None:
    modules = re.findall(r'help\("([\w.]+)"\)', README)
    assert len(modules) >= 5
    for name in modules:
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        assert ast.get_docstring(ast.parse(Path(spec.origin).read_text("utf-8"))), name
    paths = re.findall(r'(?:`|srcset="|src=")((?:examples|notebooks|tests)/[\w/.-]*)[`"]', README)
    assert len(paths) >= 5
    for path in paths:
        assert (ROOT / path).exists(), path


# --- the command line


def commands() -> list[str]:
    assert cli.__doc__ is not None
    lines = cli.__doc__.replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.startswith("    cbframe ")]


@pytest.mark.parametrize("command", commands())
def test_a_command_has_these_arguments(command: str) -> None:
    assert parser_of("cbframe").parse_args(shlex.split(command)[1:]).run


# --- types


def kinds() -> list[tuple[str, str, list[tuple[str, str]]]]:
    """Kinds of values, their columns, and examples with their cells: the table of ``cbframe.json``."""
    lines = (inspect.getdoc(cbframe.json) or "").splitlines()
    border = next(number for number, line in enumerate(lines) if line.startswith("    ==="))
    at = lines[border].rindex(" =") + 1
    found: list[tuple[str, str, list[tuple[str, str]]]] = []
    for line in lines[border + 1 : lines.index("", border)]:
        left, right = line[4:at], line[at:].strip()
        if left.startswith(" "):
            found[-1][2].append((left.strip(), right))
        else:
            found.append((left.strip(), right, []))
    return found


def shown(cell: Any) -> str:
    if cell is None or isinstance(cell, bool | dict | list):
        return json.dumps(cell, ensure_ascii=False)
    return str(cell)


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind[0])
def test_a_kind_of_values(kind: tuple[str, str, list[tuple[str, str]]]) -> None:
    name, column, examples = kind
    arguments = {"parse_dates": True} if "parse_dates" in name else {}
    with LocalCluster(vbuckets=1) as cluster:
        for at, (value, _) in enumerate(examples):
            document = "{}" if value == "(missing)" else f'{{"a": {value}}}'
            cluster.upsert(f"k{at}", document.encode(), datatype=1)
        table = scan_bucket(cluster, **arguments).to_arrow().sort_by("_cb_key")
    assert str(table.schema.field("a").type) == column
    assert [shown(cell) for cell in table["a"].to_pylist()] == [cell for _, cell in examples]


def test_names_that_are_data() -> None:
    with LocalCluster(vbuckets=1) as cluster:
        for at in range(3):
            members = {f"user{at}-{i}": i for i in range(500)}
            cluster.upsert(f"k{at}", {"common": 1, "map": members, **{f"f{at}-{i}": i for i in range(700)}})
        frame = read_bucket(cluster)
    assert str(frame["map"].dtype) == "map<string, int64>[pyarrow]"
    assert dict(frame.loc["k1", "map"])["user1-499"] == 499
    fields = [name for name in frame.columns if not name.startswith("_cb_")]
    assert len(fields) == 1000
    assert {"common", "map"} <= set(fields)
    for at in range(3):
        row = frame.loc[f"k{at}"]
        rest = {} if pd.isna(row["_cb_rest"]) else json.loads(row["_cb_rest"])
        for i in range(700):
            name = f"f{at}-{i}"
            assert (rest[name] if name in rest else row[name]) == i
