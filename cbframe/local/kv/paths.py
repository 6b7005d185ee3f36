"""Paths into JSON text: read, and changed in place, so that the rest of the text stays as it is."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import NamedTuple

from cbframe.wire.constants import Status

_DECODER = json.JSONDecoder()
_SPACE = re.compile(r"[ \t\n\r]*")
_PART = re.compile(r"(?:^|\.)(?:`((?:[^`]|``)+)`|([^.`\[\]]+))|\[(-?\d+)\]")

Part = str | int


class PathError(Exception):
    """The operation fails with a status."""

    def __init__(self, status: Status) -> None:
        super().__init__(status.name)
        self.status = status


class Member(NamedTuple):
    """An entry of an object or array, by its place in the text."""

    name: Part
    start: int
    """Of the name in objects, of the value in arrays."""
    value: int
    end: int


def parse_path(path: str) -> list[Part]:
    """``a.b[0]`` → ``["a", "b", 0]``; backticks quote dots and brackets."""
    parts: list[Part] = []
    at = 0
    while at < len(path):
        match = _PART.match(path, at)
        if match is None or (at and path[at] not in ".["):
            raise PathError(Status.SUBDOC_PATH_EINVAL)
        quoted, plain, index = match.groups()
        parts.append(int(index) if index else quoted.replace("``", "`") if quoted else plain)
        at = match.end()
    return parts


def skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    assert match is not None
    return match.end()


def members(text: str, at: int) -> Iterator[Member]:
    """The entries of the object or array that begins at `at`."""
    is_object = text[at] == "{"
    at, number = skip(text, at + 1), 0
    while text[at] not in "]}":
        start, name = at, number
        if is_object:
            name, at = _DECODER.raw_decode(text, at)
            at = skip(text, skip(text, at) + 1)
        _, end = _DECODER.raw_decode(text, at)
        yield Member(name, start, at, end)
        at = skip(text, end)
        if text[at] == ",":
            at = skip(text, at + 1)
        number += 1


def find(text: str, at: int, part: Part) -> Member | None:
    """The entry `part` of the value at `at`; None if it is not there."""
    if text[at] != ("[" if isinstance(part, int) else "{"):
        raise PathError(Status.SUBDOC_PATH_MISMATCH)
    entries = list(members(text, at))
    if part == -1:
        return entries[-1] if entries else None
    return next((entry for entry in entries if entry.name == part), None)


def locate(text: str, parts: list[Part]) -> Member:
    """The value at the end of the path."""
    at = skip(text, 0)
    found = Member("", at, at, len(text.rstrip(" \t\n\r")))
    for part in parts:
        entry = find(text, found.value, part)
        if entry is None:
            raise PathError(Status.SUBDOC_PATH_ENOENT)
        found = entry
    return found


def read(text: str, path: str) -> str:
    found = locate(text, parse_path(path))
    return text[found.value : found.end]


def count(text: str, path: str) -> int:
    found = locate(text, parse_path(path))
    if text[found.value] not in "[{":
        raise PathError(Status.SUBDOC_PATH_MISMATCH)
    return sum(1 for _ in members(text, found.value))


# ------------------------------------------------------------------ changes


def put(text: str, path: str, value: str, *, add: bool, create: bool) -> str:
    """Set the entry of an object; `add` only if it is new, `create` missing objects on the way."""
    parts = parse_path(path)
    if not parts or not isinstance(parts[-1], str):
        raise PathError(Status.SUBDOC_PATH_EINVAL)
    _check_json(value)
    at = skip(text, 0)
    for depth, part in enumerate(parts):
        entry = find(text, at, part)
        if entry is None:
            rest = parts[depth + 1 :]
            if rest and not create:
                raise PathError(Status.SUBDOC_PATH_ENOENT)
            for name in reversed(rest):
                if not isinstance(name, str):
                    raise PathError(Status.SUBDOC_PATH_EINVAL)
                value = f"{{{_quote(name)}:{value}}}"
            if not isinstance(part, str):
                raise PathError(Status.SUBDOC_PATH_ENOENT)
            return _append(text, at, f"{_quote(part)}:{value}")
        at = entry.value
    if add:
        raise PathError(Status.SUBDOC_PATH_EEXISTS)
    return text[: entry.value] + value + text[entry.end :] if entry else text


def replace(text: str, path: str, value: str) -> str:
    _check_json(value)
    found = locate(text, parse_path(path))
    return text[: found.value] + value + text[found.end :]


def delete(text: str, path: str) -> str:
    parts = parse_path(path)
    if not parts:
        raise PathError(Status.SUBDOC_PATH_EINVAL)
    parent, found = locate(text, parts[:-1]), locate(text, parts)
    after = skip(text, found.end)
    if text[after] == ",":
        return text[: found.start] + text[skip(text, after + 1) :]
    before = max((entry.end for entry in members(text, parent.value) if entry.end < found.start), default=0)
    return text[: before or found.start] + text[found.end :]


def push(text: str, path: str, value: str, *, first: bool, create: bool) -> str:
    """Put one value, or several with commas between, at an end of an array."""
    _check_json(f"[{value}]")
    array = _array(text, path, create=create)
    if array is None:
        return put(text, path, f"[{value}]", add=True, create=create)
    return _prepend(text, array.value, value) if first else _append(text, array.value, value)


def insert(text: str, path: str, value: str) -> str:
    _check_json(f"[{value}]")
    parts = parse_path(path)
    if not parts or not isinstance(parts[-1], int) or parts[-1] < 0:
        raise PathError(Status.SUBDOC_PATH_EINVAL)
    array = locate(text, parts[:-1])
    entry = find(text, array.value, parts[-1])
    if entry is not None:
        return f"{text[: entry.start]}{value},{text[entry.start :]}"
    if sum(1 for _ in members(text, array.value)) != parts[-1]:
        raise PathError(Status.SUBDOC_PATH_ENOENT)
    return _append(text, array.value, value)


def add_unique(text: str, path: str, value: str, *, create: bool) -> str:
    _check_json(value)
    array = _array(text, path, create=create)
    if array is None:
        return put(text, path, f"[{value}]", add=True, create=create)
    present = [text[entry.value : entry.end] for entry in members(text, array.value)]
    if value.strip()[:1] in "[{" or any(other[0] in "[{" for other in present):
        raise PathError(Status.SUBDOC_PATH_MISMATCH)
    if value.strip() in present:
        raise PathError(Status.SUBDOC_PATH_EEXISTS)
    return _append(text, array.value, value)


def add_number(text: str, path: str, delta: str, *, create: bool) -> tuple[str, str]:
    """Add to an integer, by default 0; the text and the new number."""
    if not re.fullmatch(r"-?\d{1,19}", delta) or int(delta) == 0:
        raise PathError(Status.SUBDOC_DELTA_EINVAL)
    try:
        old = read(text, path)
    except PathError as exc:
        if exc.status is not Status.SUBDOC_PATH_ENOENT:
            raise
        return put(text, path, delta, add=True, create=create), delta
    if not re.fullmatch(r"-?\d+", old):
        raise PathError(Status.SUBDOC_PATH_MISMATCH)
    number = int(old) + int(delta)
    if not -(1 << 63) <= number < 1 << 63:
        raise PathError(Status.SUBDOC_VALUE_CANTINSERT)
    return replace(text, path, str(number)), str(number)


def _array(text: str, path: str, *, create: bool) -> Member | None:
    try:
        found = locate(text, parse_path(path))
    except PathError as exc:
        if create and exc.status is Status.SUBDOC_PATH_ENOENT:
            return None
        raise
    if text[found.value] != "[":
        raise PathError(Status.SUBDOC_PATH_MISMATCH)
    return found


def _append(text: str, at: int, entry: str) -> str:
    last = max((member.end for member in members(text, at)), default=0)
    return f"{text[:last]},{entry}{text[last:]}" if last else _prepend(text, at, entry)


def _prepend(text: str, at: int, entry: str) -> str:
    comma = "," if any(members(text, at)) else ""
    return f"{text[: at + 1]}{entry}{comma}{text[at + 1 :]}"


def _quote(name: str) -> str:
    return json.dumps(name, ensure_ascii=False)


def _check_json(value: str) -> None:
    try:
        json.loads(value)
    except (ValueError, RecursionError) as exc:
        raise PathError(Status.SUBDOC_VALUE_CANTINSERT) from exc
