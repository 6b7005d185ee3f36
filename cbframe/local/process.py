"""A cluster in its own process, driven through the pipes of its standard input and output.

The pipes are the authentication: only the parent has their ends. When the parent dies, the child's
input ends, and so does the child.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import struct
import subprocess
import sys
import threading
from array import array
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import accumulate, islice, pairwise
from pathlib import Path
from typing import IO, Any

from cbframe import errors
from cbframe.errors import CbframeError, ConnectError
from cbframe.limits import starting_process
from cbframe.local.bucket import Value, to_bytes
from cbframe.local.engine import Engine
from cbframe.system import nobody_reads

_LENGTHS = struct.Struct(">IQ")
_BULK_STEP = 8192
_PACKED = "bulk_load_packed"
"""In place of a method: :meth:`Engine.bulk_load` of keys and values back to back and their 32-bit lengths."""
_END_TIMEOUT = 10.0


def pack(content: Any) -> bytes:
    """A message: JSON, with byte strings taken out and put after it.

    Tuples and mappings come out as they went in. Other iterables become lists.
    """
    blobs: list[bytes] = []

    def outside(value: Any) -> Any:
        if value is None or isinstance(value, str | int | float):
            return value
        if isinstance(value, bytes):
            blobs.append(value)
            return {"$bytes": len(value)}
        if isinstance(value, tuple):
            return {"$tuple": [outside(item) for item in value]}
        if not isinstance(value, Mapping):
            return [outside(item) for item in value]
        if any(not isinstance(name, str) or name.startswith("$") for name in value):
            return {"$map": [[name, outside(item)] for name, item in value.items()]}
        return {name: outside(item) for name, item in value.items()}

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
        if isinstance(value, list):
            return [inside(item) for item in value]
        match value:
            case {"$bytes": length}:
                position += length
                return blobs[position - length : position]
            case {"$tuple": items}:
                return tuple(map(inside, items))
            case {"$map": pairs}:
                return {name: inside(item) for name, item in pairs}
            case {**members}:
                return {name: inside(item) for name, item in members.items()}
        return value

    return inside(content)


class RemoteEngine:
    """Has the methods of :class:`Engine` by their names: they are called in the child."""

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

    def upsert(self, key: str | bytes, value: Value, **options: Any) -> int:
        """With the bytes of the document: what JSON cannot have is refused on this side."""
        seqno: int = self._exchange(["upsert", [key, to_bytes(value)], options])
        return seqno

    def bulk_load(self, pairs: Iterable[tuple[bytes, bytes]], **options: Any) -> int:
        """In pieces, so that neither side holds everything twice."""
        iterator, loaded = iter(pairs), 0
        while batch := list(islice(iterator, _BULK_STEP)):
            lengths = array("I", [len(part) for pair in batch for part in pair]).tobytes()
            data = b"".join(part for pair in batch for part in pair)
            loaded += self._exchange([_PACKED, [lengths, data], options])
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
        packed = pack(message)
        with self._lock:
            try:
                stdin.write(packed)
                stdin.flush()
                result = unpack(stdout)
            except (OSError, EOFError, ValueError) as exc:
                raise ConnectError("the process of the local cluster has ended") from exc
        if "error" in result:
            kind = getattr(errors, result["error"], CbframeError)
            raise kind(result["message"])
        return result["result"]


def _answer(call: Callable[[], Any]) -> bytes:
    """The child's answer to one message: the result, or the error by its name."""
    try:
        return pack({"result": call()})
    except CbframeError as exc:
        return pack({"error": type(exc).__name__, "message": exc.message})
    except (TypeError, ValueError, AttributeError) as exc:
        return pack({"error": "CbframeError", "message": f"{type(exc).__name__}: {exc}"})


def control(stdin: IO[bytes], stdout: IO[bytes]) -> int:
    """Do what the parent says, from the options of the cluster to the end of the input."""
    # Ctrl-C goes to the whole group of processes: the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    engine: Engine | None = None

    def call(message: Any) -> Any:
        nonlocal engine
        if engine is None:
            engine = Engine(**message)
            return engine.addresses()
        name, args, kwargs = message
        if name == _PACKED:
            return engine.bulk_load(_unpacked_pairs(*args), **kwargs)
        return getattr(engine, name)(*args, **kwargs)

    try:
        while True:
            message = unpack(stdin)
            stdout.write(_answer(partial(call, message)))
            stdout.flush()
    except EOFError:
        return 0
    except OSError as exc:
        if not nobody_reads(exc):
            raise
        return 0
    finally:
        if engine is not None:
            engine.close()


def _unpacked_pairs(lengths: bytes, data: bytes) -> Iterable[tuple[bytes, bytes]]:
    ends = list(accumulate(array("I", lengths), initial=0))
    parts = (data[start:end] for start, end in pairwise(ends))
    return zip(parts, parts, strict=True)
