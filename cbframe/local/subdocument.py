"""Sub-document requests: several paths of one document read or changed at once.

A document is changed as text: what a path does not name stays as it was written, as on a node. Extended
attributes are documents of their own, in which the name of the attribute begins the path.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from cbframe.errors import ProtocolError
from cbframe.local.bucket import StoredDocument, VBucket, is_json, json_datatype, to_json
from cbframe.wire.constants import Datatype, Status
from cbframe.wire.messages import join_xattrs, split_xattrs

Part = str | int

_DECODER = json.JSONDecoder()
_SPACE = re.compile(r"[ \t\n\r]*")
_PART = re.compile(r"(?:^|\.)(?:`((?:[^`]|``)+)`|([^.`\[\]]+))|\[(-?\d+)\]")
_LOOKUP = struct.Struct(">BBH")
_MUTATION = struct.Struct(">BBHI")
_RESULT = struct.Struct(">HI")
_MAX_SPECS = 16
_CREATE, XATTR, _EXPAND = 0x01, 0x04, 0x10
"""Flags of a path: make what is missing above it, it is one of an attribute, and it has macros."""
_GET_DOCUMENT, _SET_DOCUMENT = 0x00, 0x01
_GET, _EXISTS, _COUNT = 0xC5, 0xC6, 0xD2
_COUNTER = 0xCF
_WHOLE = frozenset({_GET_DOCUMENT, _SET_DOCUMENT, _COUNT, 0xCB, 0xCC, 0xCE})
"""An empty path means the document itself here."""


class RefusedError(Exception):
    """A path, or the request as a whole, is refused."""

    def __init__(self, status: Status, context: str = "") -> None:
        super().__init__(context or status.name)
        self.status = status
        self.context = context


class FailedSpecError(Exception):
    """The path with this index could not be changed, so nothing was."""

    def __init__(self, index: int, status: Status) -> None:
        super().__init__(f"path {index}: {status.name}")
        self.answer = struct.pack(">BH", index, status)


# ------------------------------------------------------------------ paths


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
            raise RefusedError(Status.SUBDOC_PATH_EINVAL)
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
        raise RefusedError(Status.SUBDOC_PATH_MISMATCH)
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
            raise RefusedError(Status.SUBDOC_PATH_ENOENT)
        found = entry
    return found


def read(text: str, path: str) -> str:
    found = locate(text, parse_path(path))
    return text[found.value : found.end]


def count(text: str, path: str) -> int:
    found = locate(text, parse_path(path))
    if text[found.value] not in "[{":
        raise RefusedError(Status.SUBDOC_PATH_MISMATCH)
    return sum(1 for _ in members(text, found.value))


# ------------------------------------------------------------------ changes of a text


def put(text: str, path: str, value: str, *, add: bool, create: bool) -> str:
    """Set the entry of an object; `add` only if it is new, `create` missing objects on the way."""
    parts = parse_path(path)
    if not parts or not isinstance(parts[-1], str):
        raise RefusedError(Status.SUBDOC_PATH_EINVAL)
    _check_json(value)
    at = skip(text, 0)
    for depth, part in enumerate(parts):
        entry = find(text, at, part)
        if entry is None:
            rest = parts[depth + 1 :]
            if rest and not create:
                raise RefusedError(Status.SUBDOC_PATH_ENOENT)
            for name in reversed(rest):
                if not isinstance(name, str):
                    raise RefusedError(Status.SUBDOC_PATH_EINVAL)
                value = f"{{{_quote(name)}:{value}}}"
            if not isinstance(part, str):
                raise RefusedError(Status.SUBDOC_PATH_ENOENT)
            return _append(text, at, f"{_quote(part)}:{value}")
        at = entry.value
    if add:
        raise RefusedError(Status.SUBDOC_PATH_EEXISTS)
    return text[: entry.value] + value + text[entry.end :] if entry else text


def replace(text: str, path: str, value: str) -> str:
    _check_json(value)
    found = locate(text, parse_path(path))
    return text[: found.value] + value + text[found.end :]


def delete(text: str, path: str) -> str:
    parts = parse_path(path)
    if not parts:
        raise RefusedError(Status.SUBDOC_PATH_EINVAL)
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
        raise RefusedError(Status.SUBDOC_PATH_EINVAL)
    array = locate(text, parts[:-1])
    entry = find(text, array.value, parts[-1])
    if entry is not None:
        return f"{text[: entry.start]}{value},{text[entry.start :]}"
    if sum(1 for _ in members(text, array.value)) != parts[-1]:
        raise RefusedError(Status.SUBDOC_PATH_ENOENT)
    return _append(text, array.value, value)


def add_unique(text: str, path: str, value: str, *, create: bool) -> str:
    _check_json(value)
    array = _array(text, path, create=create)
    if array is None:
        return put(text, path, f"[{value}]", add=True, create=create)
    present = [text[entry.value : entry.end] for entry in members(text, array.value)]
    if value.strip()[:1] in "[{" or any(other[0] in "[{" for other in present):
        raise RefusedError(Status.SUBDOC_PATH_MISMATCH)
    if value.strip() in present:
        raise RefusedError(Status.SUBDOC_PATH_EEXISTS)
    return _append(text, array.value, value)


def add_number(text: str, path: str, delta: str, *, create: bool) -> tuple[str, str]:
    """Add to an integer, by default 0; the text and the new number."""
    if not re.fullmatch(r"-?\d{1,19}", delta) or int(delta) == 0:
        raise RefusedError(Status.SUBDOC_DELTA_EINVAL)
    try:
        old = read(text, path)
    except RefusedError as exc:
        if exc.status is not Status.SUBDOC_PATH_ENOENT:
            raise
        return put(text, path, delta, add=True, create=create), delta
    if not re.fullmatch(r"-?\d+", old):
        raise RefusedError(Status.SUBDOC_PATH_MISMATCH)
    number = int(old) + int(delta)
    if not -(1 << 63) <= number < 1 << 63:
        raise RefusedError(Status.SUBDOC_VALUE_CANTINSERT)
    return replace(text, path, str(number)), str(number)


def _array(text: str, path: str, *, create: bool) -> Member | None:
    try:
        found = locate(text, parse_path(path))
    except RefusedError as exc:
        if create and exc.status is Status.SUBDOC_PATH_ENOENT:
            return None
        raise
    if text[found.value] != "[":
        raise RefusedError(Status.SUBDOC_PATH_MISMATCH)
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
        raise RefusedError(Status.SUBDOC_VALUE_CANTINSERT) from exc


_CHANGES: dict[int, Callable[[str, str, str, bool], str]] = {
    0xC7: lambda text, path, value, create: put(text, path, value, add=True, create=create),
    0xC8: lambda text, path, value, create: put(text, path, value, add=False, create=create),
    0xC9: lambda text, path, _value, _create: delete(text, path),
    0xCA: lambda text, path, value, _create: replace(text, path, value),
    0xCB: lambda text, path, value, create: push(text, path, value, first=False, create=create),
    0xCC: lambda text, path, value, create: push(text, path, value, first=True, create=create),
    0xCD: lambda text, path, value, _create: insert(text, path, value),
    0xCE: lambda text, path, value, create: add_unique(text, path, value, create=create),
}


# ------------------------------------------------------------------ requests


class Spec(NamedTuple):
    """One path of a request, and what to do there."""

    opcode: int
    flags: int
    path: str
    value: str = ""

    @property
    def attribute(self) -> str:
        """The extended attribute that the path begins with; empty for a path of the document."""
        return str(parse_path(self.path)[0]) if self.flags & XATTR else ""


def parse_specs(value: bytes, *, mutation: bool, is_8: bool = False) -> list[Spec]:
    """Take the value of a request apart and check what does not need the document."""
    specs: list[Spec] = []
    at, head = 0, _MUTATION if mutation else _LOOKUP
    while at < len(value):
        if len(value) - at < head.size:
            raise ProtocolError("a path ends in the middle of its lengths")
        opcode, flags, *lengths = head.unpack_from(value, at)
        at += head.size
        texts = []
        for length in lengths:
            # Bytes that are no UTF-8 stay what they are, for a whole document; elsewhere they fail.
            texts.append(value[at : at + length].decode(errors="surrogateescape"))
            at += length
        if at > len(value):
            raise ProtocolError("a path is longer than its request")
        specs.append(Spec(opcode, flags, *texts))
    if not specs:
        raise ProtocolError("Request must include at least one path")
    if len(specs) > _MAX_SPECS:
        raise RefusedError(Status.SUBDOC_INVALID_COMBO, f"Request must contain at most {_MAX_SPECS} paths")
    known = {*_CHANGES, _COUNTER, _SET_DOCUMENT} if mutation else {_GET_DOCUMENT, _GET, _EXISTS, _COUNT}
    for spec in specs:
        if not _is_text(spec.path) or "\0" in spec.path:
            raise RefusedError(Status.SUBDOC_PATH_EINVAL)
        if spec.opcode not in known:
            raise RefusedError(Status.SUBDOC_INVALID_COMBO)
        if not spec.path and (spec.flags & XATTR or spec.opcode not in _WHOLE):
            raise RefusedError(Status.EINVAL, "Request must include path")
    names = {spec.attribute for spec in specs if spec.flags & XATTR and not spec.path.startswith("$")}
    if len(names) > 1 and not is_8:
        raise RefusedError(Status.SUBDOC_XATTR_INVALID_KEY_COMBO)
    return specs


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@dataclass
class Content:
    """A document as its paths see it."""

    body: bytes
    xattrs: dict[str, bytes]

    @classmethod
    def of(cls, document: StoredDocument | None) -> Content:
        if document is None:
            return cls(b"{}", {})
        if document.datatype & Datatype.XATTR:
            split = split_xattrs(document.value)
            return cls(split.body, split.xattrs)
        return cls(document.value, {})

    def text(self) -> str:
        if not is_json(self.body):
            raise RefusedError(Status.SUBDOC_DOC_NOTJSON)
        try:
            return self.body.decode()
        except UnicodeDecodeError as exc:
            raise RefusedError(Status.SUBDOC_DOC_NOTJSON) from exc

    def attribute(self, name: str, virtual: Callable[[], dict[str, Any]]) -> str:
        """An object with the attribute as its one member, so that the whole path applies to it."""
        if name.startswith("$"):
            values = {**virtual(), "$XTOC": sorted(self.xattrs)}
            if name not in values:
                raise RefusedError(Status.SUBDOC_XATTR_UNKNOWN_VATTR)
            return to_json({name: values[name]}).decode()
        if name not in self.xattrs:
            return "{}"
        return f"{{{json.dumps(name)}:{self.xattrs[name].decode()}}}"

    def sort_attributes(self) -> None:
        """Bring the attributes, and the names within each, into the order that 8.0 writes."""
        layout: dict[str, Any] = {"sort_keys": True, "ensure_ascii": False, "separators": (",", ":")}
        self.xattrs = {
            name: json.dumps(json.loads(self.xattrs[name]), **layout).encode() for name in sorted(self.xattrs)
        }

    def encode(self) -> tuple[bytes, int]:
        """Value and datatype as stored."""
        datatype = json_datatype(self.body)
        if not self.xattrs:
            return self.body, datatype
        return join_xattrs(self.xattrs, self.body), datatype | Datatype.XATTR


def lookup(
    specs: list[Spec], document: StoredDocument, virtual: Callable[[], dict[str, Any]]
) -> tuple[bool, bytes]:
    """Whether all paths were found, and the results."""
    content, parts, good = Content.of(document), [], True
    for spec in specs:
        status, value = Status.SUCCESS, b""
        try:
            value = _read_path(spec, content, virtual)
        except RefusedError as exc:
            status, good = exc.status, False
        parts.append(_RESULT.pack(status, len(value)) + value)
    return good, b"".join(parts)


def _read_path(spec: Spec, content: Content, virtual: Callable[[], dict[str, Any]]) -> bytes:
    if spec.opcode == _GET_DOCUMENT:
        return content.body
    text = content.attribute(spec.attribute, virtual) if spec.flags & XATTR else content.text()
    if spec.opcode == _COUNT:
        return str(count(text, spec.path)).encode()
    found = read(text, spec.path)
    return found.encode() if spec.opcode == _GET else b""


def mutate(specs: list[Spec], content: Content, macros: dict[str, str]) -> bytes:
    """Change `content`; the results of those paths that have one."""
    results = []
    for index, spec in enumerate(specs):
        try:
            result = _change(spec, content, macros)
        except RefusedError as exc:
            raise FailedSpecError(index, exc.status) from exc
        if result:
            results.append(bytes((index,)) + _RESULT.pack(Status.SUCCESS, len(result)) + result)
    return b"".join(results)


def _change(spec: Spec, content: Content, macros: dict[str, str]) -> bytes:
    if spec.opcode == _SET_DOCUMENT:
        content.body = spec.value.encode(errors="surrogateescape")
        return b""
    if not _is_text(spec.value):
        raise RefusedError(Status.SUBDOC_VALUE_CANTINSERT)
    value, name = spec.value, spec.attribute
    if spec.flags & _EXPAND:
        if value not in macros:
            raise RefusedError(Status.SUBDOC_XATTR_UNKNOWN_MACRO)
        value = macros[value]
    if name.startswith("$"):
        raise RefusedError(Status.SUBDOC_XATTR_CANT_MODIFY_VATTR)
    text = content.attribute(name, dict) if name else content.text()
    create, result = bool(spec.flags & _CREATE), ""
    if spec.opcode == _COUNTER:
        text, result = add_number(text, spec.path, value, create=create)
    else:
        text = _CHANGES[spec.opcode](text, spec.path, value, create)
    if not name:
        content.body = text.encode()
    elif (member := find(text, 0, name)) is None:
        content.xattrs.pop(name, None)
    else:
        content.xattrs[name] = text[member.value : member.end].encode()
    return result.encode()


def virtual_attributes(document: StoredDocument, body: bytes, vbucket: VBucket, seqno: int) -> dict[str, Any]:
    """``$document`` and ``$vbucket``."""
    kinds = [name for bit, name in ((1, "json"), (4, "xattr")) if document.datatype & bit] or ["raw"]
    seconds = str(document.cas // 10**9)
    return {
        "$document": {
            "CAS": f"0x{document.cas:016x}",
            "datatype": kinds,
            "deleted": False,
            "exptime": document.expiry,
            "flags": document.flags,
            "last_modified": seconds,
            "revid": str(document.rev),
            "seqno": f"0x{seqno:016x}",
            "value_bytes": len(body),
            "value_crc32c": f"0x{crc32c(body):08x}",
            "vbucket_uuid": f"0x{vbucket.vbuuid:016x}",
        },
        "$vbucket": {"HLC": {"mode": "real", "now": seconds}},
    }


def macro_values(cas: int, seqno: int, body: bytes) -> dict[str, str]:
    """What the macros stand for; the CAS has its bytes in the order of the replication metadata."""
    return {
        '"${Mutation.CAS}"': f'"0x{cas.to_bytes(8, "little").hex()}"',
        '"${Mutation.seqno}"': f'"0x{seqno:016x}"',
        '"${Mutation.value_crc32c}"': f'"0x{crc32c(body):08x}"',
    }


def _crc_entry(number: int) -> int:
    for _ in range(8):
        number = number >> 1 ^ (0x82F63B78 if number & 1 else 0)
    return number


_CRC = tuple(map(_crc_entry, range(256)))


def crc32c(data: bytes) -> int:
    crc = 0xFFFF_FFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFF_FFFF
