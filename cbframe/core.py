"""Which core does what is done for every byte: the compiled one, or the Python reference.

``CBFRAME_CORE`` chooses: ``rust``, ``python``, or nothing for the compiled one where it is installed.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from types import ModuleType
from typing import Any

from cbframe.errors import ConfigurationError, DependencyError

VERSION = "0.1.0"
"""That of the package; a compiled core of another one is refused."""
_CHOICES = ("", "rust", "python")
_HINT = "with Rust's cargo on PATH, install cbframe again: pip install --force-reinstall --no-deps cbframe"


def _load() -> ModuleType | None:
    choice = os.environ.get("CBFRAME_CORE", "")
    if choice not in _CHOICES:
        raise ConfigurationError(
            f"CBFRAME_CORE is {choice!r}", hint="use 'rust' or 'python', or leave it unset"
        )
    if choice == "python":
        return None
    # A folder of that name would be imported as a package without code.
    spec = importlib.util.find_spec("cbframe._core")
    if spec is None or spec.origin is None:
        if choice == "rust":
            raise DependencyError(
                "CBFRAME_CORE is 'rust', and the compiled core is not installed", hint=_HINT
            )
        return None
    module = importlib.import_module("cbframe._core")
    if module.__version__ != VERSION:
        raise DependencyError(
            f"the compiled core is of version {module.__version__}, and cbframe of {VERSION}", hint=_HINT
        )
    return module


_core: Any = _load()
NAME = "python" if _core is None else "rust"
"""The core that runs."""


def compiled() -> Any:
    """The module of the compiled core; None where the Python reference does the work."""
    return _core
