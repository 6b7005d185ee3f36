"""A cluster in its own process, driven through the pipes of its standard input and output.

The pipes are the authentication: only the parent has their ends. When the parent dies, the child's
input ends, and so does the child.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import subprocess
import sys
import threading
from array import array
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import IO, Any

from cbframe import errors
from cbframe.errors import CbframeError, ConnectError
from cbframe.limits import starting_process

_LENGTHS = struct.Struct(">IQ")
_BULK_STEP = 8192
_END_TIMEOUT = 10.0


def pack(content: Any) -> bytes:
    """A message: JSON, with byte strings taken out and put behind it."""
    blobs: list[bytes] = []

    def outside(value: Any) -> Any:
        if isinstance(value, bytes):
            blobs.append(value)
            return {"$bytes": len(value)}
        if isinstance(value, dict):
            return {name: outside(item) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return [outside(item) for item in value]
        return value

    head = json.dumps(outside(content)).encode()
    return _LENGTHS.pack(len(head), sum(map(len, blobs))) + head + b"".join(blobs)


def unpack(stream: IO[bytes]) -> Any:
    """The next message of a pipe; EOFError at its end."""
    lengths = stream.read(_LENGTHS.size)
    if len(lengths) < _LENGTHS.size:
        raise EOFError
    head_length, blob_length = _LENGTHS.unpack(lengths)
    content, blobs = json.loads(stream.read(head_length)), stream.read(blob_length)
    position = 0

    def inside(value: Any) -> Any:
        nonlocal position
        if isinstance(value, dict):
            if value.keys() == {"$bytes"}:
                position += value["$bytes"]
                return blobs[position - value["$bytes"] : position]
            return {name: inside(item) for name, item in value.items()}
        if isinstance(value, list):
            return [inside(item) for item in value]
        return value

    return inside(content)


class RemoteEngine:
    """The methods of :class:`cbframe.local.engine.Engine`, called in the child."""

    def __init__(self, options: dict[str, Any]) -> None:
        package_root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, (package_root, os.environ.get("PYTHONPATH"))))
        self._lock = threading.Lock()
        with starting_process():
            self._child = subprocess.Popen(
                [sys.executable, "-m", "cbframe.local", "--control"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": path},
            )
        try:
            self._exchange(options)
        except CbframeError:
            self.close()
            raise

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *args, **kwargs: self._exchange([name, args, kwargs])

    def bulk_load(self, pairs: Iterable[tuple[bytes, bytes]], **options: Any) -> int:
        """In pieces, so that neither side holds everything twice."""
        iterator, loaded = iter(pairs), 0
        while batch := list(islice(iterator, _BULK_STEP)):
            lengths = array("I", [len(part) for pair in batch for part in pair]).tobytes()
            data = b"".join(part for pair in batch for part in pair)
            loaded += self._exchange(["bulk_load_packed", [lengths, data], options])
        return loaded

    def close(self) -> None:
        """End the child and wait for it."""
        child = self._child
        assert child.stdin is not None
        assert child.stdout is not None
        with contextlib.suppress(OSError):  # It has ended already.
            child.stdin.close()
        try:
            child.wait(_END_TIMEOUT)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        child.stdout.close()

    def _exchange(self, message: Any) -> Any:
        stdin, stdout = self._child.stdin, self._child.stdout
        assert stdin is not None
        assert stdout is not None
        with self._lock:
            try:
                stdin.write(pack(message))
                stdin.flush()
                result = unpack(stdout)
            except (OSError, EOFError, ValueError) as exc:
                raise ConnectError("the process of the local cluster has ended") from exc
        if "error" in result:
            kind = getattr(errors, result["error"], CbframeError)
            raise kind(result["message"])
        return result["result"]


def answer(call: Callable[[], Any]) -> bytes:
    """The child's answer to one message: the result, or the error by its name."""
    try:
        return pack({"result": call()})
    except CbframeError as exc:
        return pack({"error": type(exc).__name__, "message": exc.message})
    except (TypeError, ValueError, AttributeError) as exc:
        return pack({"error": "CbframeError", "message": f"{type(exc).__name__}: {exc}"})
