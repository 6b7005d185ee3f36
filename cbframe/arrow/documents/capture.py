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

_NULL = msgspec.Raw(b"null")
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
    """

    path: Path
    plan: Plan
    kind: str = ""

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


def usual(sources: Sequence[bytes], spots: Sequence[Spot]) -> list[Spot]:
    """The same fields, with the kinds of values that they have in most of a few documents."""
    captured = Captured(sources, [(spot.path, None) for spot in spots])
    made = []
    for number, spot in enumerate(spots):
        raws = map(bytes, captured.raws(number))
        kinds = Counter(kind_of(raw) for raw in raws if raw != b"null")
        if kinds["double"]:
            kinds["double"] += kinds.pop("integer", 0)
        made.append(replace(spot, kind=max(kinds, key=lambda kind: kinds[kind], default="integer")))
    return made


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
    """

    offsets: npt.NDArray[np.int64]
    data: npt.NDArray[np.uint8]
    present: npt.NDArray[np.bool_]

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


class Captured:
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

    def __init__(self, sources: Iterable[bytes], fields: Iterable[Field]) -> None:
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

    def raws(self, number: int) -> list[msgspec.Raw]:
        """The texts of the field of this number, which has to be raw; ``null`` where there is none."""
        return self.values(number)

    def values(self, number: int) -> list[Any]:
        """The values of the field of this number, one for each row."""
        level = self._found
        *outer, (last, _) = self._reader.ways[number]
        for member, nothing in outer:
            level = [each or nothing for each in map(attrgetter(member), level)]
        return list(map(attrgetter(last), level))

    def tokens(self, number: int) -> Tokens:
        """The same, as an array."""
        raws = self.raws(number)
        text = _LINES(raws)
        ends = np.flatnonzero(np.frombuffer(text, np.uint8) == _NEWLINE)
        if len(ends) == len(raws):
            text = text.translate(None, b"\n")
            ends -= np.arange(len(ends))
        else:
            # A line ends inside of a value.
            texts = list(map(bytes, raws))
            text = b"".join(texts)
            ends = np.cumsum(list(map(len, texts)))
        data = np.frombuffer(text, np.uint8)
        offsets = np.concatenate([[0], ends])
        return Tokens(offsets, data, data[offsets[:-1]] != _NULL_FIRST)


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
