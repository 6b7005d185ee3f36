"""The source text of a few fields, taken out of documents that stay as they are.

A document is validated as a whole on the way, and its fields are held against the kinds of values that
are expected of them: so it is known, before the parser sees any, which documents are odd.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import repeat
from operator import attrgetter
from typing import Annotated, Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cbframe.arrow.documents.plan import Plan
from cbframe.arrow.documents.rewrite import kind_of

Path = tuple[str, ...]
Field = tuple[Path, str | None]
"""Where it is, and the kind that is expected; None for any, of which the text is wanted."""
Search = tuple[Callable[[bytes, bytes], int], bytes]
"""A method of bytes, and what it looks for."""
NESTED = ("array", "object")

_Rows = npt.NDArray[np.int64]
_BLOCK = 1024
"""Documents that are decoded at once."""

_NULL = msgspec.Raw(b"null")
_ENCODE = msgspec.json.Encoder().encode
_LINES = msgspec.json.Encoder().encode_lines
_UNNAMED = re.compile(r'[\x00-\x1f"\\]')
_NEWLINE, _NULL_FIRST = b"\nn"
_INT64 = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
_TYPES: dict[str, Any] = {"boolean": bool | None, "integer": _INT64 | None, "string": str | None}


@dataclass(frozen=True, slots=True)
class Spot:
    """A field whose values are rewritten, and what most of them are.

    Attributes
    ----------
    path
        Members from the outside in.
    plan
        Its part of the plan.
    kind
        Of most values of some documents.
    search
        How to find it in a document, if it is an array or an object.
    """

    path: Path
    plan: Plan
    kind: str = ""
    search: Search | None = None

    @property
    def field(self) -> Field:
        """What to capture. Of most kinds the text can be made of what the parser makes of them."""
        return self.path, None if self.plan.how == "json" or self.kind not in _TYPES else self.kind


def spots_of(plan: Plan, path: Path = ()) -> Iterator[Spot | None]:
    """The fields that are rewritten; None stands for one that has to be rewritten in every document."""
    for name, member in plan.members.items():
        if not member.rewrites:
            continue
        where = (*path, name)
        # msgspec has no names with quotes.
        if _UNNAMED.search(name):
            yield None
        elif member.how in ("text", "json", "digits"):
            yield None if member.held or member.only is not None else Spot(where, member)
        elif pa.types.is_struct(member.type) and not member.conflict:
            yield from spots_of(member, where)
        else:
            yield None


@dataclass(frozen=True, slots=True)
class Tokens:
    """The values of a field as they are written, a row each.

    Attributes
    ----------
    offsets
        int64, one more than rows.
    data
        uint8: all texts, one behind the other.
    present
        Whether there is one, and it is not ``null``.
    begins
        Where it is in the document: behind a name that may be that of another one; -1 for nowhere. None if
        it was not sought.
    """

    offsets: npt.NDArray[np.int64]
    data: npt.NDArray[np.uint8]
    present: npt.NDArray[np.bool_]
    begins: npt.NDArray[np.int64] | None

    @property
    def first(self) -> npt.NDArray[np.uint8]:
        """The first byte of each."""
        return self.data[self.offsets[:-1]]

    def of(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """The texts of some rows, one behind the other."""
        wanted = np.zeros(len(self.present), bool)
        wanted[rows] = True
        some: npt.NDArray[np.uint8] = self.data[np.repeat(wanted, np.diff(self.offsets))]
        return some

    def having(self, characters: bytes) -> npt.NDArray[np.bool_]:
        """Which of them have any of some characters."""
        return self._count(characters) > 0

    def _count(self, characters: bytes) -> npt.NDArray[np.int64]:
        wanted = np.zeros(256, bool)
        wanted[list(characters)] = True
        found = np.concatenate([[0], np.cumsum(wanted[self.data])])
        count: npt.NDArray[np.int64] = found[self.offsets[1:]] - found[self.offsets[:-1]]
        return count

    def nesting(self, limit: int) -> list[int]:
        """Rows of values that may nest deeper than `limit`: they have so many brackets."""
        if not (np.diff(self.offsets) > limit).any():
            return []
        rows: list[int] = np.flatnonzero(self._count(b"[{") > limit).tolist()
        return rows

    def column(self) -> pa.Array:
        """As strings, and null."""
        buffers = [
            pa.py_buffer(np.packbits(self.present, bitorder="little")),
            pa.py_buffer(self.offsets.astype(np.int32)),
            pa.py_buffer(self.data),
        ]
        return pa.Array.from_buffers(pa.string(), len(self.present), buffers)


class Found:
    """Fields of documents.

    Parameters
    ----------
    sources
        Valid UTF-8.
    fields
        What to take out of them.

    Attributes
    ----------
    failed
        Rows that are no sound objects, or in which some field is not of the kind that is expected:
        nothing is taken out of these.
    """

    def __init__(self, sources: Iterable[bytes], fields: Sequence[Field]) -> None:
        self._reader = _reader(tuple(fields))
        self._found: list[Any] = []
        self.failed: list[int] = []
        decoding = map(self._reader.decode, sources)
        while True:
            try:
                # What comes before an error stays in the list; the next one is where to go on.
                self._found.extend(decoding)
            except (msgspec.DecodeError, RecursionError):
                self.failed.append(len(self._found))
                self._found.append(self._reader.nothing)
            else:
                return

    def values(self, number: int) -> list[Any]:
        """Those of the field of this number; if only its text is wanted, ``null`` where there is none."""
        level = self._found
        *outer, (last, _) = self._reader.ways[number]
        for member, nothing in outer:
            level = [each or nothing for each in map(attrgetter(member), level)]
        return list(map(attrgetter(last), level))


def usual(sources: Sequence[bytes], spots: Sequence[Spot]) -> list[Spot]:
    """The same fields, with the kinds of values that they have in most of a few documents."""
    found = Found(sources, [(spot.path, None) for spot in spots])
    made = []
    for number, spot in enumerate(spots):
        kinds = Counter(kind_of(raw) for raw in map(bytes, found.values(number)) if raw != b"null")
        if kinds["double"]:
            kinds["double"] += kinds.pop("integer", 0)
        kind = max(kinds, key=lambda kind: kinds[kind], default=spot.plan.family or "integer")
        search = _search_for(spot.path[-1], sources) if kind in NESTED else None
        made.append(replace(spot, kind=kind, search=search))
    return made


def _search_for(name: str, sources: Sequence[bytes]) -> Search:
    needle = _ENCODE(name) + b":"
    firsts = [source.find(needle) for source in sources]
    # From behind if it is closer, and there seems to be only one: its own members come behind it.
    late = 2 * sum(firsts) > sum(map(len, sources))
    alone = all(source.rfind(needle) == first for source, first in zip(sources, firsts, strict=True))
    return bytes.rfind if late and alone else bytes.find, needle


def capture(documents: pa.Array, spots: Sequence[Spot]) -> tuple[dict[int, Tokens], list[int]]:
    """The texts of those fields that need them, by number, and the rows that :class:`Found` fails for."""
    fields = [spot.field for spot in spots]
    texts: dict[int, list[tuple[bytes, _Rows]]] = {
        number: [] for number, (_, kind) in enumerate(fields) if kind is None
    }
    begins: dict[int, list[_Rows]] = {number: [] for number in texts}
    failed: list[int] = []
    # What is made of few documents at once stays in the processor's cache, and its memory is used again.
    for start in range(0, len(documents), _BLOCK):
        sources = documents[start : start + _BLOCK].to_pylist()
        found = Found(sources, fields)
        failed += [start + row for row in found.failed]
        for number, parts in texts.items():
            parts.append(_texts(found.values(number)))
            if (search := spots[number].search) is not None:
                seek, needle = search
                places = np.fromiter(map(seek, sources, repeat(needle)), np.int64, len(sources))
                begins[number].append(np.where(places < 0, places, places + len(needle)))
    return {
        number: _joined(parts, np.concatenate(begins[number]) if begins[number] else None)
        for number, parts in texts.items()
    }, failed


def _texts(raws: list[msgspec.Raw]) -> tuple[bytes, _Rows]:
    """The texts one behind the other, and their lengths."""
    text = _LINES(raws)
    ends = np.flatnonzero(np.frombuffer(text, np.uint8) == _NEWLINE)
    if len(ends) == len(raws):
        return text.translate(None, b"\n"), np.diff(ends, prepend=-1) - 1
    # A line ends inside of a value.
    each = list(map(bytes, raws))
    return b"".join(each), np.array(list(map(len, each)), np.int64)


def _joined(parts: list[tuple[bytes, _Rows]], begins: _Rows | None) -> Tokens:
    data = np.frombuffer(b"".join(text for text, _ in parts), np.uint8)
    offsets = np.concatenate([[0], np.cumsum(np.concatenate([lengths for _, lengths in parts]))])
    return Tokens(offsets, data, data[offsets[:-1]] != _NULL_FIRST, begins)


@dataclass(frozen=True, slots=True)
class _Reader:
    """Decodes some fields of an object.

    Attributes
    ----------
    decode
        Of a document.
    nothing
        An object without any of the fields.
    ways
        For each field how to get there: attributes from the outside in, each with an object that has
        nothing in it, for where there is none.
    """

    decode: Callable[[bytes], Any]
    nothing: Any
    ways: dict[int, list[tuple[str, Any]]]


@lru_cache(maxsize=64)
def _reader(shape: tuple[Field, ...]) -> _Reader:
    kind, nothing, ways = _struct(dict(enumerate(shape)))
    return _Reader(msgspec.json.Decoder(kind).decode, nothing, ways)


def _struct(fields: Mapping[int, Field]) -> tuple[Any, Any, dict[int, list[tuple[str, Any]]]]:
    """A type for some fields, an object of it without any, and the ways to the fields."""
    names: dict[str, str] = {}
    members: list[tuple[str, Any, Any]] = []
    ways: dict[int, list[tuple[str, Any]]] = {}
    inner: dict[str, dict[int, Field]] = {}
    for number, ((name, *rest), kind) in fields.items():
        if rest:
            inner.setdefault(name, {})[number] = tuple(rest), kind
        else:
            # Members of structs have plain names, so that a field may have any name.
            members.append((f"m{number}", *((msgspec.Raw, _NULL) if kind is None else (_TYPES[kind], None))))
            names[f"m{number}"] = name
            ways[number] = [(f"m{number}", None)]
    for name, below in inner.items():
        member = f"o{len(names)}"
        struct, nothing, further = _struct(below)
        members.append((member, struct | None, None))
        names[member] = name
        ways |= {number: [(member, nothing), *way] for number, way in further.items()}
    made = msgspec.defstruct("Wanted", members, rename=names, gc=False)
    return made, made(), ways
