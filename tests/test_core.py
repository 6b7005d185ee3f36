"""Which core runs, what is refused, and how the compiled one is built with the package."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import subprocess
import sys
import sysconfig
import tomllib
import types
import warnings
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import cbframe
from cbframe import LocalCluster, core, scan_bucket

ROOT = Path(__file__).parent.parent
INSTALLED = importlib.util.find_spec("cbframe._core") is not None
needs_both = pytest.mark.skipif(not INSTALLED, reason="the compiled core is not installed")


def run(code: str, choice: str | None, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "CBFRAME_CORE"}
    if choice is not None:
        environment["CBFRAME_CORE"] = choice
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)


def imported(choice: str | None) -> subprocess.CompletedProcess[str]:
    return run("from cbframe import core; print(core.NAME)", choice)


# --- the choice


def test_there_is_one_version() -> None:
    """The package's metadata take it from the package; cargo has to have its own."""
    crate = tomllib.loads((ROOT / "cbframe/_rust/Cargo.toml").read_text())["package"]
    assert crate["version"] == cbframe.__version__
    locked = tomllib.loads((ROOT / "cbframe/_rust/Cargo.lock").read_text())["package"]
    assert [each["version"] for each in locked if each["name"] == crate["name"]] == [cbframe.__version__]


def test_the_reference_can_be_chosen() -> None:
    done = imported("python")
    assert (done.returncode, done.stdout) == (0, "python\n")


@needs_both
@pytest.mark.parametrize("choice", ["rust", "", None])
def test_the_compiled_core_runs_where_it_is_installed(choice: str | None) -> None:
    done = imported(choice)
    assert (done.returncode, done.stdout, done.stderr) == (0, "rust\n", "")


@needs_both
@pytest.mark.parametrize("choice", ["rust", "python"])
def test_the_reference_is_imported_where_it_runs(choice: str) -> None:
    code = (
        "import sys; from cbframe import LocalCluster, read_bucket\n"
        "with LocalCluster(nodes=1, vbuckets=4, seed=1) as cluster:\n"
        "    cluster.upsert(b'a', {'n': [{'x': 1}, 2]})\n"
        "    read_bucket(cluster)\n"
        "print('cbframe.json.reference' in sys.modules)"
    )
    done = run(code, choice)
    assert (done.returncode, done.stdout) == (0, f"{choice == 'python'}\n")


def test_what_is_no_core() -> None:
    done = imported("fortran")
    assert done.returncode == 1
    assert "CBFRAME_CORE is 'fortran'" in done.stderr
    assert "use 'rust' or 'python'" in done.stderr


def test_tests_run_on_one_core() -> None:
    assert os.environ["CBFRAME_CORE"] == core.NAME


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the compiled core is looked for."""
    monkeypatch.setattr(cbframe, "__path__", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "cbframe._core", raising=False)
    monkeypatch.delenv("CBFRAME_CORE")
    return tmp_path


def test_nothing_and_a_folder_are_no_core(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert core._load() is None
    (package / "_core").mkdir()
    assert core._load() is None
    monkeypatch.setenv("CBFRAME_CORE", "rust")
    with pytest.raises(cbframe.DependencyError, match="the compiled core is not installed"):
        core._load()


def test_a_core_that_cannot_be_loaded_is_an_error(package: Path) -> None:
    package.joinpath(f"_core{sysconfig.get_config_var('EXT_SUFFIX')}").write_bytes(b"of another system")
    with pytest.raises(cbframe.DependencyError, match="the compiled core cannot be loaded: ") as raised:
        core._load()
    assert "pip install --force-reinstall" in str(raised.value.hint)


def test_a_core_of_another_version_is_refused(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package.joinpath("_core.py").write_text("__version__ = '0.0.9'\n")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    with pytest.raises(cbframe.DependencyError, match=r"is of version 0\.0\.9, and cbframe of 0\.1\.0"):
        core._load()
    sys.modules.pop("cbframe._core", None)


# --- what is said of it


def test_the_first_read_on_a_reference_that_nobody_chose_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    with LocalCluster(nodes=1, vbuckets=4, seed=1) as cluster:
        cluster.upsert(b"a", {"n": 1})
        monkeypatch.setattr(core, "_unasked", [True])
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            assert len(cbframe.read_bucket(cluster)) == 1
            assert len(cbframe.read_bucket(cluster)) == 1
        (warning,) = found
        assert warning.category is UserWarning
        assert warning.filename == __file__
        text = str(warning.message)
        assert text.startswith("cbframe reads with its Python reference, since the compiled core is not")
        assert "ten times as long" in text
        assert core.HINT in text
        assert "CBFRAME_CORE=python" in text
        monkeypatch.setattr(core, "_unasked", [True])
        with pytest.warns(UserWarning, match="Python reference"), cbframe.stream_bucket(cluster):
            pass


@pytest.mark.parametrize(("choice", "unasked"), [("python", False), (None, not INSTALLED)])
def test_an_import_warns_of_nothing(choice: str | None, unasked: bool) -> None:
    done = run("from cbframe import core; import cbframe; print(core._unasked)", choice)
    assert (done.stdout, done.stderr) == (f"[{unasked}]\n", "")


@needs_both
def test_a_partition_is_read_with_either_core(tmp_path: Path) -> None:
    other = "python" if core.NAME == "rust" else "rust"
    code = (
        "import pickle, sys; import pyarrow as pa; from cbframe import core; from pathlib import Path\n"
        "found = pickle.loads(Path(sys.argv[1]).read_bytes()).read()\n"
        "with pa.ipc.new_file(sys.argv[2], found.schema) as file:\n"
        "    file.write_table(found)\n"
        "print(core.NAME)"
    )
    with LocalCluster(nodes=1, vbuckets=4, seed=1) as cluster:
        for n in range(100):
            odd = str(n) if n % 7 == 0 else n
            cluster.upsert(b"key-%d" % n, {"n": n, "of": [{"x": n / 4}, {}], "odd": odd, "at": {f"k{n}": n}})
        (part,) = scan_bucket(cluster).partitions(1, include_credentials=True)
        (tmp_path / "part").write_bytes(pickle.dumps(part))
        done = run(code, other, str(tmp_path / "part"), str(tmp_path / "table"))
        assert (done.returncode, done.stdout, done.stderr) == (0, f"{other}\n", "")
        with pa.ipc.open_file(tmp_path / "table") as theirs:
            assert theirs.read_all().sort_by("_cb_key").equals(part.read().sort_by("_cb_key"))


# --- the build

CARGO = """#!{python}
import json, os, sys
from pathlib import Path
target = Path(os.environ["CARGO_TARGET_DIR"])
if os.environ.get("FAILS"):
    sys.exit("error: no matching package named `pyo3` found")
(target / "library").write_bytes(b"built")
artifact = {{"name": "_core"}}, [str(target / "library")]
print(json.dumps({{"reason": "compiler-artifact", "target": {{"name": "pyo3"}}, "filenames": ["pyo3"]}}))
print(json.dumps({{"reason": "compiler-artifact", "target": artifact[0], "filenames": artifact[1]}}))
print(json.dumps({{"reason": "build-finished", "success": True}}))
Path("{said}").write_text(json.dumps([sys.argv[1:], dict(os.environ)]))
"""


class Hook:
    """The build hook, on a path with nothing but a stand-in for cargo."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.package, self.said, self.warnings = folder / "cbframe", folder / "said", list[str]()
        self.package.mkdir()
        plugin = types.ModuleType("plugin")
        plugin.BuildHookInterface = object  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "hatchling.builders.hooks.plugin.interface", plugin)
        spec = importlib.util.spec_from_file_location("build_hook", ROOT / "cbframe/_rust/build_hook.py")
        assert spec is not None
        assert spec.loader is not None
        self.module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.module)
        self.cargo = folder / "bin" / "cargo"
        self.cargo.parent.mkdir()
        self.cargo.write_text(CARGO.format(python=sys.executable, said=self.said))
        self.cargo.chmod(0o755)
        monkeypatch.setenv("PATH", str(self.cargo.parent))
        for name in ("CBFRAME_REQUIRE_CORE", "CARGO_TARGET_DIR", "ARCHFLAGS", "RUSTFLAGS"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv("MACOSX_DEPLOYMENT_TARGET", raising=False)

    def build(self, version: str = "standard") -> dict[str, Any]:
        hook = self.module.CoreHook()
        hook.root = str(self.package.parent)
        hook.app = types.SimpleNamespace(display_warning=self.warnings.append)
        data: dict[str, Any] = {"force_include": {}, "pure_python": True}
        hook.initialize(version, data)
        for library in data["force_include"]:
            assert Path(library).read_bytes() == b"built"
        hook.finalize(version, data, "wheel")
        assert not any(Path(library).exists() for library in data["force_include"])
        return data

    def asked(self) -> tuple[list[str], dict[str, str]]:
        arguments, environment = json.loads(self.said.read_text())
        return arguments, environment


@pytest.fixture
def hook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hook:
    return Hook(tmp_path, monkeypatch)


def test_a_wheel_has_the_library_and_says_so(hook: Hook) -> None:
    data = hook.build()
    system = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    assert (data["pure_python"], data["tag"]) == (False, f"cp311-abi3-{system}")
    assert [*data["force_include"].values()] == ["cbframe/_core.abi3.so"]
    arguments, environment = hook.asked()
    assert {"--release", "--locked", "--crate-type=cdylib"} <= {*arguments}
    assert environment["PYO3_PYTHON"] == sys.executable
    assert hook.warnings == []


def test_an_editable_build_puts_it_beside_the_sources(hook: Hook) -> None:
    data = hook.build("editable")
    assert data["force_include"] == {}
    assert (hook.package / "_core.abi3.so").read_bytes() == b"built"
    hook.cargo.unlink()
    assert hook.build("editable")["pure_python"]
    assert [*hook.package.iterdir()] == []  # an earlier one does not outlive its sources


def test_without_cargo_the_package_is_all_python(hook: Hook, monkeypatch: pytest.MonkeyPatch) -> None:
    hook.cargo.unlink()
    assert hook.build() == {"force_include": {}, "pure_python": True}
    assert hook.warnings == [
        "cbframe is installed without its compiled core, and will be slower: there is no cargo on PATH"
    ]
    monkeypatch.setenv("CBFRAME_REQUIRE_CORE", "1")
    with pytest.raises(SystemExit, match="the compiled core cannot be built: there is no cargo"):
        hook.build()


def test_a_build_that_fails(hook: Hook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAILS", "1")
    assert hook.build()["pure_python"]
    assert "will be slower: error: no matching package named `pyo3` found" in hook.warnings[0]
    hook.cargo.write_text("#!/nowhere\n")
    assert hook.build()["pure_python"]
    assert "cargo cannot be run" in hook.warnings[1]
    monkeypatch.setattr(sys.implementation, "name", "pypy")
    assert hook.build()["pure_python"]
    assert "it is for CPython, and this is pypy" in hook.warnings[2]


@pytest.mark.parametrize(
    ("flags", "oldest", "tag", "target"),
    [
        (None, None, "macosx_11_0_arm64", None),
        ("-arch arm64 -arch x86_64", "10.9", "macosx_11_0_arm64", None),
        ("-arch x86_64", "10.9", "macosx_10_12_x86_64", "--target=x86_64-apple-darwin"),
        ("-arch x86_64", "13.3", "macosx_13_0_x86_64", "--target=x86_64-apple-darwin"),
    ],
)
def test_macos(
    hook: Hook,
    monkeypatch: pytest.MonkeyPatch,
    flags: str | None,
    oldest: str | None,
    tag: str,
    target: str | None,
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    for name, value in (("ARCHFLAGS", flags), ("MACOSX_DEPLOYMENT_TARGET", oldest)):
        if value is not None:
            monkeypatch.setenv(name, value)
    assert hook.build()["tag"] == f"cp311-abi3-{tag}"
    arguments, environment = hook.asked()
    assert arguments[-3:] == ["--", "-Clink-arg=-undefined", "-Clink-arg=dynamic_lookup"]
    assert [each for each in arguments if each.startswith("--target")] == ([target] if target else [])
    major, minor = environment["MACOSX_DEPLOYMENT_TARGET"].split(".")[:2]
    assert major == tag.split("_")[1]
    assert minor >= tag.split("_")[2]


def test_windows(hook: Hook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(sysconfig, "get_platform", lambda: "win-amd64")
    assert hook.module._names() == ("cp311-abi3-win_amd64", "_core.pyd")


def test_other_builds_of_python(hook: Hook, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the GIL there is no stable ABI; with musl, libraries are to be asked for."""
    found = {"Py_GIL_DISABLED": 1, "EXT_SUFFIX": ".cpython-314t.so", "HOST_GNU_TYPE": "x86_64-pc-linux-musl"}
    monkeypatch.setattr(sysconfig, "get_config_var", found.get)
    monkeypatch.setattr(sysconfig, "get_platform", lambda: "linux-x86_64")
    python = f"cp3{sys.version_info.minor}"
    data = hook.build()
    assert data["tag"] == f"{python}-{python}t-linux_x86_64"
    assert [*data["force_include"].values()] == ["cbframe/_core.cpython-314t.so"]
    assert hook.asked()[1]["RUSTFLAGS"] == "-Ctarget-feature=-crt-static"
