r"""``--where``: comparisons as people write them, made into the ``filters=`` of a read. Nothing is evaluated.

::

    type = 'hotel' and (price > 50 or `free rooms` is null) and geo.city in ('Bern', 'Chur')

A field is ``name``, ``geo.alt`` (a member) or, with other letters in it, ```user.name```; ``_cb_key`` is the
key. Operators are ``= == != <> < <= > >=``, ``in (…)``, ``not in (…)``, ``is null``, ``is not null`` and
``like 'abc%'``, for a prefix, in which ``\%``, ``\_`` and ``\\`` are these letters. Values are numbers, text
in quotes (a quote in it is doubled), ``true`` and ``false``. ``and`` comes before ``or``. There is no
``not (…)``: what is missing, or of another kind, would pass. :mod:`cbframe.arrow.filters` has the rule.
"""

from __future__ import annotations

import argparse
import re
import sys
import unicodedata
from collections.abc import Iterator
from math import isinf
from typing import Any

_PART = r"(?:[^\W\d][\w$@-]*|`(?:[^`]|``)+`)"
_TOKEN = re.compile(
    rf"""\s*(?:(?P<text>'(?:[^']|'')*'|"(?:[^"]|"")*")
    |(?P<number>[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?(?![\w.]))
    |(?P<name>{_PART}(?:\.{_PART})*)
    |(?P<sign><=|>=|==|!=|<>|[=<>(),]))""",
    re.VERBOSE,
)
_WORDS = ("and", "or", "not", "in", "is", "null", "true", "false", "like")
_COMPARISONS = ("=", "==", "!=", "<>", "<", "<=", ">", ">=")
_DEEPEST = 50
"""Parentheses in each other."""
_MOST = 1000
"""Lists of comparisons, one of which has to hold."""

Groups = list[list[tuple[tuple[str, ...], str, Any]]]


def filters_of(text: str) -> Groups:
    """The ``filters=`` that an expression means; an argparse.ArgumentTypeError shows where it is wrong."""
    return _Expression(text).filters()


class _Expression:
    def __init__(self, text: str) -> None:
        self._text = text
        self._next = 0
        self._tokens = [*self._split()]
        """Kind (text, number, name, sign, end), value and place of each."""

    def filters(self) -> Groups:
        found = self._any(0)
        self._expect("end", "'and', 'or' or the end is expected")
        return found

    def _split(self) -> Iterator[tuple[str, Any, int]]:
        at = 0
        while match := _TOKEN.match(self._text, at):
            kind, at = match.lastgroup or "", match.end()
            value: Any
            text = match[kind]
            if kind == "text":
                value = text[1:-1].replace(text[0] * 2, text[0])
            elif kind == "number":
                value = int(text) if len(text) < 1000 and text.lstrip("+-").isdecimal() else float(text)
                if isinstance(value, float) and isinf(value):
                    raise self._wrong("this number is too large", at - len(text))
            elif kind == "sign" or text.lower() in _WORDS:
                kind, value = "sign", text.lower()
            else:
                parts = re.findall(_PART, text)
                value = tuple(p[1:-1].replace("``", "`") if p[0] == "`" else p for p in parts)
            yield kind, value, at - len(text)
        if rest := self._text[at:].lstrip():
            what = "this quote is not closed" if rest[0] in "'\"`" else "this is not understood"
            raise self._wrong(what, len(self._text) - len(rest))
        yield "end", None, len(self._text)

    def _take(self, *signs: str) -> str | None:
        """The next sign or word, if it is one of these."""
        kind, value, _ = self._tokens[self._next]
        if kind != "sign" or value not in signs:
            return None
        self._next += 1
        return str(value)

    def _expect(self, kind: str, what: str, value: Any = None) -> Any:
        """The value of the next token, which has to be of a kind."""
        found = self._tokens[self._next]
        if found[0] != kind or value not in (None, found[1]):
            raise self._wrong(what)
        self._next += 1
        return found[1]

    def _sign(self, text: str) -> None:
        self._expect("sign", f"{text!r} is expected", text)

    def _any(self, depth: int) -> Groups:
        groups = self._all(depth)
        while self._take("or"):
            groups.extend(self._all(depth))
        return groups

    def _all(self, depth: int) -> Groups:
        groups = self._one(depth)
        while self._take("and"):
            right = self._one(depth)
            if len(groups) * len(right) > _MOST:
                raise self._wrong(f"before this are more than {_MOST} alternatives")
            groups = [[*some, *others] for some in groups for others in right]
        return groups

    def _one(self, depth: int) -> Groups:
        if not self._take("("):
            return [self._comparison()]
        if depth == _DEEPEST:
            raise self._wrong(f"before this are more than {_DEEPEST} parentheses in each other")
        groups = self._any(depth + 1)
        self._sign(")")
        return groups

    def _comparison(self) -> list[tuple[tuple[str, ...], str, Any]]:
        field = self._expect("name", "the name of a field is expected")
        match op := self._take(*_COMPARISONS, "is", "in", "not", "like"):
            case None:
                raise self._wrong("an operator is expected: = != < <= > >= [not] in, is [not] null, like")
            case "is":
                op = "is not" if self._take("not") else "is"
                self._expect("sign", "'null' or 'not null' is expected", "null")
                return [(field, op, None)]
            case "in" | "not":
                if op == "not":
                    self._sign("in")
                self._sign("(")
                values = [self._value()]
                while self._take(","):
                    values.append(self._value())
                self._sign(")")
                return [(field, "in" if op == "in" else "not in", values)]
            case "like":
                return [(field, *bound) for bound in self._bounds(field)]
        return [(field, {"=": "==", "<>": "!="}.get(op, op), self._value())]

    def _value(self) -> Any:
        kind, value, _ = self._tokens[self._next]
        if kind == "name":
            raise self._wrong(f"text stands in quotes: '{'.'.join(value)}'")
        if kind in ("text", "number"):
            return self._expect(kind, "")
        if (word := self._take("true", "false")) is None:
            raise self._wrong("a value is expected: a number, 'text', true or false (and for null: is null)")
        return word == "true"

    def _bounds(self, field: tuple[str, ...]) -> list[tuple[str, Any]]:
        """Texts that begin so are those from the prefix on, up to what comes after all of them."""
        kind, text, _ = self._tokens[self._next]
        match = re.fullmatch(r"((?:[^%_\\]|\\[%_\\])*)%", text, re.DOTALL) if kind == "text" else None
        if match is None:
            raise self._wrong(r"like takes text whose only % is its end; \%, \_ and \\ are these letters")
        self._next += 1
        bounds = [(">=", prefix := re.sub(r"\\(.)", r"\1", match[1]))]
        if after := prefix.rstrip(chr(sys.maxunicode)):
            following = ord(after[-1]) + 1
            # Surrogates are in no text.
            bounds.append(("<", after[:-1] + chr(0xE000 if following == 0xD800 else following)))
        # The text of a key may have escapes; its bytes have none.
        return [(op, bound.encode() if field == ("_cb_key",) else bound) for op, bound in bounds]

    def _wrong(self, what: str, at: int | None = None) -> argparse.ArgumentTypeError:
        at = self._tokens[self._next][2] if at is None else at
        shown = "".join(letter if letter.isprintable() else " " for letter in self._text)
        lead = shown[:at] if at <= 40 else f"…{shown[at - 40 : at]}"
        blanks = "".join("  " if unicodedata.east_asian_width(each) in "WF" else " " for each in lead)
        where = "at the end" if at == len(shown) else f"at character {at + 1}"
        return argparse.ArgumentTypeError(f"{what}, {where}\n  {lead}{shown[at : at + 30]}\n  {blanks}^")
