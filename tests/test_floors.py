"""Who may import whom: the floors of the house, checked on the source. No cycles inside a floor.

Every import counts, wherever it stands: at the top, inside a function, under ``TYPE_CHECKING``, by
``import_module`` with a literal name. The one exception is ``cbframe/__init__.py``: it names the
public surface for type checkers under ``TYPE_CHECKING`` and loads it lazily by strings.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).parent.parent / "cbframe"

FLOORS = ["ground", "wire", "cluster", "dcp", "json", "arrow", "scan", "snapshot", "ui"]
"""Imports point to a lower floor, or stay in their own part."""
GROUND = {"_core", "core", "errors", "options", "public", "system"}
MAY_USE = {
    "contrib": {*FLOORS, "cbframe"} - {"ui"},
    "local": {"ground", "wire"},
    "testing": {*FLOORS, "local", "cbframe"} - {"ui"},
    "cli": {*FLOORS, "local", "testing", "contrib", "cbframe"},
    "cbframe": {*FLOORS, "local", "testing", "contrib"},
}
"""Parts beside the floors. ``cbframe`` is the package itself, ``cli`` also ``__main__``."""

ABOVE_DCP = {"json", "arrow", "scan", "snapshot", "ui", "contrib", "cli", "testing"}
CLOCKS_AND_THREADS = {"_thread", "concurrent", "multiprocessing", "threading", "time"}
"""Where a thread or a timer lives; what is below, and what only converts, gets the time as an argument."""
WITH_THREADS = {"dcp", "scan", "snapshot", "ui", "cli", "local", "testing"}
SOCKETS = {"asyncio", "selectors", "socket", "socketserver"}
LIBRARIES = {
    **dict.fromkeys(CLOCKS_AND_THREADS, WITH_THREADS),
    **{library: WITH_THREADS | {"system.py"} for library in ("threading", "time")},
    **{library: {"dcp", "local", "testing", "system.py"} for library in SOCKETS},
    **{library: set[str]() for library in ("grp", "posix", "pwd", "select", "termios")},
    **{library: {"system.py"} for library in ("fcntl", "msvcrt")},
    "resource": {"system.py"},
    "ssl": {"dcp", "local", "testing", "cluster/tls.py"},
    "logging": {*FLOORS, *MAY_USE} - {"wire"},
    "numpy": {*FLOORS, *MAY_USE} - {"ground"},
    "requests": {"cluster", "testing"},
    "urllib3": {"cluster", "testing"},
    "dns": {"cluster"},
    "msgspec": ABOVE_DCP,
    "pyarrow": ABOVE_DCP,
    "pandas": {"scan", "snapshot", "ui", "contrib", "cli", "testing"},
    **{library: {"ui"} for library in ("ipywidgets", "anywidget")},
    **{library: {"contrib"} for library in ("duckdb", "dask", "pyspark", "deltalake", "pyiceberg")},
    "polars": {"contrib", "scan"},
    "couchbase": set[str](),
}
"""Which parts, or files, may import a library."""
OPTIONAL = {"pandas", "polars", "duckdb", "dask", "pyspark", "deltalake", "pyiceberg"}
"""These may also be imported inside functions, from floor json up."""


class Import(NamedTuple):
    name: str
    """Dotted, absolute."""
    line: int
    in_function: bool
    type_checking: bool


def part_of(module: str) -> str:
    """The part of a dotted module name below ``cbframe``."""
    head = module.partition(".")[0]
    if not head:
        return "cbframe"
    if head in GROUND:
        return "ground"
    return "cli" if head == "__main__" else head


def module_of(path: str) -> str:
    """``wire/frame.py`` → ``wire.frame``; ``wire/__init__.py`` → ``wire``."""
    parts = PurePosixPath(path).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: str, source: str) -> Iterator[Import]:
    """All imports of a file; ``from cbframe import wire`` is one of ``cbframe.wire``."""
    package = ["cbframe", *PurePosixPath(path).parent.parts]
    yield from _walk(ast.parse(source), package, in_function=False, type_checking=False)


def _walk(node: ast.AST, package: list[str], *, in_function: bool, type_checking: bool) -> Iterator[Import]:
    for name in _names(node, package):
        yield Import(name, node.lineno, in_function, type_checking)  # type: ignore[attr-defined]
    inside = in_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    guarded = isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
    for field, value in ast.iter_fields(node):
        children = value if isinstance(value, list) else [value]
        for child in children:
            if isinstance(child, ast.AST):
                yield from _walk(
                    child,
                    package,
                    in_function=inside,
                    type_checking=type_checking or (guarded and field == "body"),
                )


def _names(node: ast.AST, package: list[str]) -> list[str]:
    match node:
        case ast.Import(names=names):
            return [alias.name for alias in names]
        case ast.ImportFrom(module=module, names=names, level=level):
            base = package[: len(package) - level + 1] if level else []
            origin = ".".join([*base, *([module] if module else [])])
            if origin != "cbframe":
                return [origin]
            # A submodule, or a name of the public surface.
            known = {*FLOORS, *MAY_USE, *GROUND, "__main__"}
            # The version is a constant, and stands where the package's metadata take it from.
            wanted = [alias.name for alias in names if alias.name != "__version__"]
            return [f"cbframe.{name}" if name in known else "cbframe" for name in wanted]
        case ast.Call(
            func=ast.Name(id=name) | ast.Attribute(attr=name), args=[ast.Constant(value=str(target))]
        ):
            return [target] if name in ("import_module", "__import__") else []
    return []


def violations(files: dict[str, str]) -> list[str]:
    """What breaks the rules, one sentence each; `files` maps paths below ``cbframe`` to sources."""
    found = []
    for path, source in sorted(files.items()):
        part = part_of(module_of(path))
        if part not in FLOORS and part not in MAY_USE:
            found.append(f"{path}: '{part}' is on no floor")
            continue
        for imported in imports_of(path, source):
            problem = _problem(path, part, imported)
            if problem:
                found.append(f"{path}:{imported.line}: {problem}")
    return found


def _problem(path: str, part: str, imported: Import) -> str | None:
    top, _, rest = imported.name.partition(".")
    if top == "cbframe":
        target = part_of(rest)
        return None if _may_use(part, target, imported) else f"{part} must not import {target}"
    if part == "ground" and top not in sys.stdlib_module_names:
        return f"ground must not import {top}: standard library only"
    allowed = LIBRARIES.get(top)
    if allowed is None or part in allowed or path in allowed:
        return None
    if top in OPTIONAL and imported.in_function and part in ABOVE_DCP:
        return None
    return f"{part} must not import {top}"


def cycles(files: dict[str, str]) -> set[frozenset[str]]:
    """Sets of modules of one part that reach each other by imports, wherever these stand."""
    modules = {module_of(path) for path in files}
    imports: dict[str, set[str]] = {module: set() for module in modules}
    for path, source in files.items():
        module = module_of(path)
        for imported in modules_imported(path, source, modules) - {module}:
            if part_of(imported) == part_of(module) != "cbframe":
                imports[module].add(imported)
    reached = {module: _reached(module, imports) for module in modules}
    return {
        frozenset(other for other in reached[module] if module in reached[other])
        for module in modules
        if module in reached[module]
    }


def modules_imported(path: str, source: str, modules: set[str]) -> set[str]:
    """Which of some modules a file imports; ``from cbframe.x import y`` is one of ``x.y`` if that is one."""
    package = ["cbframe", *PurePosixPath(path).parent.parts]
    found = set()
    for node in ast.walk(ast.parse(source)):
        for name in _names(node, package):
            origin = name.removeprefix("cbframe.")
            aliases = [alias.name for alias in node.names] if isinstance(node, ast.ImportFrom) else []
            inner = {f"{origin}.{alias}" for alias in aliases} & modules
            found |= inner
            if len(inner) < max(1, len(aliases)):
                found.add(origin)
    return found & modules


def _reached(module: str, imports: dict[str, set[str]]) -> set[str]:
    found: set[str] = set()
    waiting = [*imports[module]]
    while waiting:
        current = waiting.pop()
        if current not in found:
            found.add(current)
            waiting += imports[current]
    return found


def _may_use(part: str, target: str, imported: Import) -> bool:
    if part == "cbframe":
        return imported.type_checking or target == "ground"
    if part == target:
        return True
    if part in MAY_USE:
        return target in MAY_USE[part]
    return target in FLOORS and FLOORS.index(target) < FLOORS.index(part)


# --- the house


def sources() -> dict[str, str]:
    return {
        path.relative_to(PACKAGE).as_posix(): path.read_text(encoding="utf-8")
        for path in PACKAGE.rglob("*.py")
        if path.relative_to(PACKAGE).parts[0] not in ("_rust", "docs")
    }


def test_the_house_stands() -> None:
    found = violations(sources())
    assert not found, "\n".join(["", *found])


def test_no_module_imports_itself_by_way_of_others() -> None:
    assert not cycles(sources())


def test_every_part_is_looked_at() -> None:
    files = sources()
    assert {"__init__.py", "errors.py", "wire/blocks.py", "wire/__init__.py"} <= set(files)


# --- the checker


@pytest.mark.parametrize(
    "source",
    [
        "from cbframe.dcp.streams import Stream",
        "import cbframe.dcp",
        "from cbframe import dcp",
        "from ..dcp import streams",
        "from .. import dcp",
        "def f():\n    import cbframe.dcp",
        "class A:\n  def f(self):\n    import cbframe.dcp as d",
        "if TYPE_CHECKING:\n    from cbframe.dcp import x",
        "try:\n    import cbframe.dcp\nexcept ImportError: ...",
        "import importlib\nimportlib.import_module('cbframe.dcp.x')",
        "import_module('cbframe.dcp')",
    ],
)
@pytest.mark.parametrize("path", ["wire/frame.py", "wire/__init__.py"])
def test_each_form_of_import_is_found(path: str, source: str) -> None:
    (found,) = violations({path: source})
    assert found.startswith(f"{path}:")
    assert found.endswith(": wire must not import dcp")


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("wire/a.py", "cbframe cbframe.arrow cbframe.cluster socket threading time logging.handlers ssl"),
        ("wire/a.py", "selectors select pyarrow"),
        ("errors.py", "cbframe.wire"),
        ("cluster/rest.py", "socket threading time ssl pandas"),
        ("dcp/a.py", "cbframe.arrow.x cbframe.local requests requests.adapters pyarrow pandas"),
        ("json/a.py", "cbframe.arrow threading"),
        ("arrow/a.py", "threading pandas"),
        ("scan/a.py", "cbframe.snapshot.writer cbframe.ui cbframe.local cbframe.contrib"),
        ("scan/a.py", "socket ipywidgets anywidget duckdb"),
        ("ui/a.py", "cbframe.testing selectors"),
        ("contrib/polars.py", "cbframe.cli"),
        ("local/a.py", "cbframe.cluster.cluster_map pyarrow requests"),
        ("__init__.py", "cbframe.scan.scan cbframe.ui pyarrow"),
    ],
)
def test_what_is_found(path: str, names: str) -> None:
    part = part_of(module_of(path))
    for name in names.split():
        target = name.removeprefix("cbframe.").partition(".")[0]
        assert violations({path: f"import {name}"}) == [f"{path}:1: {part} must not import {target}"]


@pytest.mark.parametrize(
    ("path", "source", "problem"),
    [
        ("wire/frame.py", "from cbframe import read_bucket", "wire must not import cbframe"),
        ("cluster/rest.py", "from time import sleep", "cluster must not import time"),
        ("cluster/rest.py", "def f():\n    import pandas", "cluster must not import pandas"),
        ("arrow/a.py", "if TYPE_CHECKING:\n    import pandas as pd", "arrow must not import pandas"),
        ("scan/a.py", "def f():\n    import anywidget", "scan must not import anywidget"),
        ("__init__.py", "def f():\n    import cbframe.ui", "cbframe must not import ui"),
        ("__init__.py", "if TYPE_CHECKING: ...\nelse:\n  import cbframe.dcp", "cbframe must not import dcp"),
        ("options.py", "import numpy as np", "ground must not import numpy: standard library only"),
        ("utils/a.py", "", "'utils' is on no floor"),
        ("helpers.py", "", "'helpers' is on no floor"),
    ],
)
def test_what_else_is_found(path: str, source: str, problem: str) -> None:
    (found,) = violations({path: source})
    assert found.startswith(path)
    assert found.split(": ", 1)[1] == problem


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("wire/a.py", "import struct\nimport numpy as np\nfrom cbframe.errors import ProtocolError"),
        ("wire/a.py", "from cbframe.wire import items\nfrom . import frame\nfrom .frame import Frame"),
        (
            "wire/a.py",
            "from ..errors import ProtocolError\nfrom .. import options\nfrom cbframe import errors",
        ),
        ("wire/a.py", "s = 'import socket'  # import time\nrun('cbframe.dcp')"),
        ("options.py", "from cbframe.errors import ConfigurationError\nimport dataclasses"),
        ("core.py", "from cbframe import __version__"),
        ("cluster/rest.py", "import requests\nimport logging\nfrom cbframe.wire.messages import vbucket_of"),
        ("cluster/tls.py", "import ssl"),
        ("dcp/a.py", "import socket, threading, time, selectors, ssl\nimport cbframe.cluster.cluster_map"),
        ("arrow/a.py", "import pyarrow\nimport msgspec\nfrom cbframe.dcp.receiver import BlockReceiver"),
        ("arrow/a.py", "from cbframe.json.reference import x"),
        ("snapshot/a.py", "import pandas, threading\nfrom cbframe.scan.scan import x"),
        ("scan/a.py", "import pandas\ndef f():\n    import polars"),
        ("ui/widget.py", "import ipywidgets, anywidget\nfrom cbframe.scan.scan import x"),
        ("contrib/polars.py", "import polars\nimport cbframe\nfrom cbframe import scan_bucket"),
        (
            "local/a.py",
            "import socket, threading\nfrom cbframe.local.bucket import x\nimport cbframe.wire.sasl",
        ),
        ("testing/a.py", "import threading\nfrom cbframe.local import LocalCluster"),
        ("cli.py", "from cbframe.local import LocalCluster\nfrom cbframe.ui import x\nimport cbframe"),
        ("__main__.py", "from cbframe.cli import main"),
        ("__init__.py", "if TYPE_CHECKING:\n    from cbframe.local import LocalCluster"),
        ("__init__.py", "from importlib import import_module\nfrom cbframe.errors import CbframeError"),
    ],
)
def test_what_is_allowed(path: str, source: str) -> None:
    assert violations({path: source}) == []


@pytest.mark.parametrize(
    "last",
    [
        "import cbframe.dcp.a",
        "from cbframe.dcp import a",
        "from . import a",
        "from .a import x",
        "def f():\n    from cbframe.dcp.a import x",
        "if TYPE_CHECKING:\n    from cbframe.dcp.a import x",
        "import_module('cbframe.dcp.a')",
    ],
)
def test_cycles_are_found(last: str) -> None:
    files = {
        "dcp/a.py": "from cbframe.dcp.b import x",
        "dcp/b.py": "from cbframe.dcp import c",
        "dcp/c.py": last,
        "dcp/d.py": "from cbframe.dcp.a import x",
    }
    assert cycles(files) == {frozenset({"dcp.a", "dcp.b", "dcp.c"})}
    assert cycles(files | {"dcp/c.py": "from cbframe.wire import a"}) == set()


def test_two_cycles_are_two() -> None:
    files = {
        "dcp/a.py": "from . import b",
        "dcp/b.py": "from . import a",
        "arrow/a.py": "from . import b\nimport cbframe.dcp.a",
        "arrow/b.py": "from . import a",
    }
    assert cycles(files) == {frozenset({"dcp.a", "dcp.b"}), frozenset({"arrow.a", "arrow.b"})}


def test_lines_and_order() -> None:
    found = violations(
        {"wire/b.py": "import os\n\nimport socket\nimport time\n", "wire/a.py": "import cbframe.ui\n"}
    )
    assert found == [
        "wire/a.py:1: wire must not import ui",
        "wire/b.py:3: wire must not import socket",
        "wire/b.py:4: wire must not import time",
    ]
