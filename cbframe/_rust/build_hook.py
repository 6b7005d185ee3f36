"""Builds the compiled core with the package, where cargo is there; without it the package is all Python.

``CBFRAME_REQUIRE_CORE=1`` makes a build without the core an error, as for wheels that are published.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_CRATE = Path(__file__).parent
_DEFAULTS = {"CARGO_NET_RETRY": "1", "CARGO_HTTP_TIMEOUT": "8"}
"""Where crates cannot be had, cargo would try for two minutes."""
_OLDEST_MACOS = {"x86_64": (10, 12), "arm64": (11, 0)}
"""That Rust's own libraries are made for."""


class CoreHook(BuildHookInterface):
    """Adds ``cbframe/_core`` to a wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the library before the wheel is packed; where it is editable, beside the sources."""
        package = Path(self.root, "cbframe")
        if version == "editable":
            for stale in package.glob("_core.*"):  # of an earlier build, perhaps of another version
                stale.unlink()
        self._scratch = tempfile.TemporaryDirectory(prefix="cbframe-core-")
        try:
            library = self._build()
        except _NoCoreError as exc:
            self._scratch.cleanup()
            if os.environ.get("CBFRAME_REQUIRE_CORE") == "1":
                raise SystemExit(f"the compiled core cannot be built: {exc}") from exc
            self.app.display_warning(
                f"cbframe is installed without its compiled core, and will be slower: {exc}"
            )
            return
        tag, name = _names()
        build_data.update(pure_python=False, tag=tag)
        if version == "editable":
            shutil.copy(library, package / name)
        else:
            build_data["force_include"][str(library)] = f"cbframe/{name}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002
        """Delete what was built, once it is packed."""
        self._scratch.cleanup()

    def _build(self) -> Path:
        if sys.implementation.name != "cpython":
            raise _NoCoreError(f"it is for CPython, and this is {sys.implementation.name}")
        if shutil.which("cargo") is None:
            raise _NoCoreError("there is no cargo on PATH")
        command = ["cargo", "rustc", "--lib", "--crate-type=cdylib", "--release", "--locked"]
        command.append("--message-format=json-render-diagnostics")
        # A build within the build, as pip makes it, is deleted with its folder.
        environment = {"CARGO_TARGET_DIR": self._scratch.name, **_DEFAULTS, **os.environ}
        environment |= {"PYO3_BUILD_EXTENSION_MODULE": "1", "PYO3_PYTHON": sys.executable}
        if sys.platform == "darwin":
            arch, oldest = _macos()
            environment["MACOSX_DEPLOYMENT_TARGET"] = "{}.{}".format(*oldest)
            if arch != platform.machine():
                command.append(f"--target={arch.replace('arm64', 'aarch64')}-apple-darwin")
            # The interpreter that loads the library has Python's functions.
            command += ["--", "-Clink-arg=-undefined", "-Clink-arg=dynamic_lookup"]
        elif "musl" in (sysconfig.get_config_var("HOST_GNU_TYPE") or ""):
            # There, Rust makes static programs and no libraries unless asked.
            flags = f"{environment.get('RUSTFLAGS', '')} -Ctarget-feature=-crt-static"
            environment["RUSTFLAGS"] = flags.strip()
        try:
            done = subprocess.run(
                command, cwd=_CRATE, env=environment, capture_output=True, text=True, check=False
            )
        except OSError as exc:
            raise _NoCoreError(f"cargo cannot be run: {exc}") from exc
        if done.returncode:
            raise _NoCoreError(done.stderr.strip()[-2000:])
        for message in map(json.loads, done.stdout.splitlines()):
            if message["reason"] == "compiler-artifact" and message["target"]["name"] == "_core":
                return Path(message["filenames"][0])
        raise _NoCoreError("cargo has not said where the library is")


class _NoCoreError(Exception):
    """Why there is none."""


def _names() -> tuple[str, str]:
    """The wheel's tag, and the library's name as Python imports it."""
    if sys.platform == "darwin":
        arch, oldest = _macos()
        system = "macosx_{}_{}_{}".format(*oldest, arch)
    else:
        system = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    if sysconfig.get_config_var("Py_GIL_DISABLED"):  # the stable ABI is not for these
        python = "cp{}{}".format(*sys.version_info)
        return f"{python}-{python}t-{system}", f"_core{sysconfig.get_config_var('EXT_SUFFIX')}"
    return f"cp311-abi3-{system}", "_core.pyd" if sys.platform == "win32" else "_core.abi3.so"


def _macos() -> tuple[str, tuple[int, int]]:
    """The processor and the oldest system that a library is for: never two processors at once."""
    wanted = [arch for arch in _OLDEST_MACOS if f"-arch {arch}" in os.environ.get("ARCHFLAGS", "")]
    arch = wanted[0] if len(wanted) == 1 else platform.machine()
    major, _, minor = os.environ.get("MACOSX_DEPLOYMENT_TARGET", "0").partition(".")
    oldest = max((int(major), int(minor.partition(".")[0] or 0)), _OLDEST_MACOS[arch])
    return arch, (oldest[0], oldest[1] if oldest[0] < 11 else 0)
