"""Which core does what is done for every byte: the compiled one, or the Python reference.

``CBFRAME_CORE`` chooses: ``rust``, ``python``, or nothing for the compiled one where it is installed.
Both give the same results; a first read on a reference that nobody chose warns.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from types import ModuleType
from typing import Any

from cbframe import __version__
from cbframe.errors import ConfigurationError, DependencyError
from cbframe.public import warn

_CHOICES = ("", "rust", "python")
# pip keeps a wheel that was built without cargo, and would install that again.
HINT = (
    "with Rust's cargo on PATH, install cbframe again: "
    "pip install --force-reinstall --no-deps --no-cache-dir cbframe"
)
"""How to get the compiled core."""


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
            raise DependencyError("CBFRAME_CORE is 'rust', and the compiled core is not installed", hint=HINT)
        return None
    try:
        module = importlib.import_module("cbframe._core")
    except ImportError as exc:
        raise DependencyError(f"the compiled core cannot be loaded: {exc}", hint=HINT) from exc
    if module.__version__ != __version__:
        raise DependencyError(
            f"the compiled core is of version {module.__version__}, and cbframe of {__version__}", hint=HINT
        )
    return module


COMPILED: Any = _load()
"""The module of the compiled core; None where the Python reference does the work."""
NAME = "python" if COMPILED is None else "rust"
"""The core that runs."""
TITLE = "Python reference" if COMPILED is None else "compiled core"
"""The same, for people."""
_unasked = [COMPILED is None and not os.environ.get("CBFRAME_CORE")]
"""Whether the reference runs and nobody has asked for it; empty once that was said."""


def warn_of_reference() -> None:
    """Say that reads are slow and need not be: once in a process."""
    if _unasked and _unasked.pop():
        warn(
            "cbframe reads with its Python reference, since the compiled core is not installed: the results "
            f"are the same, and documents take about ten times as long. To be fast, {HINT}. "
            "CBFRAME_CORE=python chooses the reference, without this warning"
        )
