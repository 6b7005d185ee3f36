"""The documentation: a section for each error, every public name on some page, and code that runs."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import cbframe
import cbframe.cli
from cbframe import CbframeError, errors
from cbframe.testing import LocalCapella

DOCS = Path(cbframe.__file__).parent / "docs"
PAGES = [DOCS / "index.md", *sorted((DOCS / "guide").glob("*.md"))]
SECTIONS = dict(
    re.findall(r"^\(([\w-]+)\)=\n## (\w+)$", (DOCS / "troubleshooting.md").read_text("utf-8"), re.MULTILINE)
)


def kinds(root: type[CbframeError] = CbframeError) -> Iterator[type[CbframeError]]:
    yield root
    for each in root.__subclasses__():
        yield from kinds(each)


def test_each_error_has_a_section() -> None:
    for module in pkgutil.walk_packages(cbframe.__path__, "cbframe."):
        if "__main__" not in module.name and "spark" not in module.name:  # which needs Spark
            importlib.import_module(module.name)
    found = [*kinds()]
    assert {getattr(errors, name) for name in errors.__all__} <= {*found}
    assert len(found) > len(errors.__all__)  # those of one module share the section of their base
    for kind in found:
        assert issubclass(kind, getattr(errors, SECTIONS[kind.anchor()])), kind
    assert {getattr(errors, name).anchor(): name for name in errors.__all__} == SECTIONS


def test_each_public_name_is_on_one_page() -> None:
    """Pages say of which modules they are: what comes new to the package is on one without a change."""
    lists = [
        re.findall(r"^   (-?)(cbframe\S*)$", text.split(".. api::")[1], re.MULTILINE)
        for page in sorted((DOCS / "api").glob("*.rst"))
        if ".. api::" in (text := page.read_text("utf-8"))
    ]
    for home in cbframe._HOMES:
        on = [
            each
            for each in lists
            if any(home.startswith(name) for minus, name in each if not minus)
            and not any(home.startswith(name) for minus, name in each if minus)
        ]
        assert len(on) == 1, home


def test_what_the_command_line_names_is_on_its_page() -> None:
    """A link to a module that is on no page is plain text."""
    page = (DOCS / "reference" / "command_line.rst").read_text("utf-8")
    about, _, how_it_works = (cbframe.cli.__doc__ or "").partition("How it works")
    named = set(re.findall(r":mod:`~(cbframe\.cli\.\w+)`", about))
    assert how_it_works
    assert named == {"cbframe.cli.expressions", "cbframe.cli.monitoring"}
    assert named | {"cbframe.cli"} == set(re.findall(r"automodule:: (\S+)", page))
    assert "{mod}`cbframe.cli.expressions`" in (DOCS / "guide" / "filters.md").read_text("utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_its_code_runs(page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All of a page in order, in one namespace; a simulated Capella has the name that is connected to."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert blocks
    with LocalCapella(name="abc123") as capella:
        for n in range(20):
            geo = {"lat": 47.4, "alt": 10 * n}
            capella.cluster.upsert(f"hotel_{n}", {"type": "hotel", "name": f"Hotel {n}", "geo": geo})
        names = {"conn": "couchbases://cb.abc123.cloud.couchbase.com/travel", "auth": capella.auth}
        for text in blocks:
            exec(compile(text, page.name, "exec"), names)
