"""Builds the compiled core with the package, where cargo is there; without it the package is all Python.

``CBFRAME_REQUIRE_CORE=1`` makes a build without the core an error, as for wheels that are published.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_CRATE = Path(__file__).parent
_LIBRARIES = {"win32": ("_core.dll", "_core.pyd"), "darwin": ("lib_core.dylib", "_core.abi3.so")}
"""What cargo makes, and what Python imports; otherwise as on Linux."""
_NETWORK = {"CARGO_NET_RETRY": "1", "CARGO_HTTP_TIMEOUT": "20"}
"""Where crates cannot be had, cargo would try for two minutes."""


class CoreHook(BuildHookInterface):
    """Adds ``cbframe/_core`` to a wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the library before the wheel is packed; where it is editable, beside the sources."""
        made, name = _LIBRARIES.get(sys.platform, ("lib_core.so", "_core.abi3.so"))
        beside = Path(self.root) / "cbframe" / name
        if version == "editable":
            beside.unlink(missing_ok=True)  # of an earlier build, perhaps of another version
        self._scratch = tempfile.TemporaryDirectory(prefix="cbframe-core-")
        target = Path(os.environ.get("CARGO_TARGET_DIR", self._scratch.name))
        library = self._built(target) / made if self._wanted() else None
        if library is None or not library.exists():
            return
        build_data["pure_python"] = False
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"cp311-abi3-{platform}"
        if version == "editable":
            shutil.copy(library, beside)
        else:
            build_data["force_include"][str(library)] = f"cbframe/{name}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002
        """Delete what was built, once it is packed."""
        self._scratch.cleanup()

    def _wanted(self) -> bool:
        if sysconfig.get_config_var("Py_GIL_DISABLED"):
            return False  # the stable ABI is not for these
        return shutil.which("cargo") is not None or self._missing("there is no cargo")

    def _built(self, target: Path) -> Path:
        command = ["cargo", "build", "--release", "--locked", "--features", "extension-module"]
        environment = {**_NETWORK, **os.environ, "CARGO_TARGET_DIR": str(target)}
        done = subprocess.run(
            command, cwd=_CRATE, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            self._missing(done.stderr.strip()[-2000:])
        return target / "release"

    def _missing(self, why: str) -> bool:
        if os.environ.get("CBFRAME_REQUIRE_CORE") == "1":
            raise SystemExit(f"the compiled core cannot be built: {why}")
        self.app.display_warning(f"cbframe is installed without its compiled core, and will be slower: {why}")
        return False
