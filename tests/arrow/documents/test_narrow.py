"""Most documents parsed as they are, where a few have values of another kind: against rewriting them all."""

from itertools import pairwise
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from json_documents import anything, blanks, documents, numbers, strings, unsound

from cbframe.arrow.documents import engine as engine_module
from cbframe.arrow.documents import narrow
from cbframe.arrow.documents import typer as typer_module
from cbframe.arrow.documents.plan import Policy
from cbframe.arrow.documents.result import TypedColumns
from cbframe.arrow.documents.typer import JsonTyper

NEVER = 1 << 40


def typed(values: list[bytes], cuts: list[int], few: int, **policy: Any) -> tuple[TypedColumns, int]:
    """The columns, and how many rows were made without rewriting most of them."""
    made = 0
    convert = narrow.convert

    def counting(*arguments: Any) -> Any:
        nonlocal made
        chunk = convert(*arguments)
        made += 0 if chunk is None else len(chunk)
        return chunk

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typer_module, "engine", engine_module.Engine)
        patch.setattr(narrow, "_FEW", few)
        patch.setattr(narrow, "convert", counting)
        patch.setattr(engine_module, "_LEAF", 2)
        patch.setattr(engine_module, "_STEP", 4)
        typer = JsonTyper(Policy(**policy), max_depth=20)
        for start, stop in pairwise([0, *sorted(min(cut, len(values)) for cut in cuts), len(values)]):
            typer.add(pa.array(values[start:stop], pa.binary()))
        return typer.finish(), made


def assert_same(values: list[bytes], cuts: list[int], **policy: Any) -> int:
    slow, none = typed(values, cuts, NEVER, **policy)
    fast, made = typed(values, cuts, 1, **policy)
    assert none == 0
    fast.table.validate(full=True)
    assert fast == slow
    # repr tells -0.0 from 0.0, which == does not.
    assert repr(fast.table.to_pylist()) == repr(slow.table.to_pylist())
    return made


ODD = ["true", "17", "-0", "0", "1.50", "1E5", '"x"', '"\\u0041\\n"', "null", "123456789012345678901234"]
USUAL = {
    "boolean": ["true", "false"],
    "integer": ["1", "-7", "9223372036854775807", "-9223372036854775808"],
    "double": ["1.50", "0.1", "3", "-0", "-0.0", "9007199254740993"],
    "string": ['"x"', '"\\u00e9"', '"1"', '""'],
}


@pytest.mark.parametrize("usual", USUAL)
@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize(
    "where", ['{"a":%s}', '{"b":1, "n" : {"a": %s ,"c":null}}', '{"ü":"\\"a\\":1","a"\n:%s}']
)
@pytest.mark.parametrize("on_conflict", ["widen", "json"])
def test_scalars(usual: str, odd: str, where: str, on_conflict: str) -> None:
    cells = [*USUAL[usual] * 6, odd, '"other"', "true", *USUAL[usual] * 6]
    values = [where.replace("%s", cell).encode() for cell in cells]
    values += [b"{", b'{"n":null}', b'{"n":{}}', b"{}"]
    values *= 2
    # What was learned of the first half is enough for the second.
    made = assert_same(values, [len(values) // 2], on_conflict=on_conflict)
    # An integer -0 is not told from 0 by its column.
    assert made >= len(values) // 2 or (usual, odd) == ("integer", "-0")


def test_the_last_of_two_values_counts_also_where_the_first_is_of_another_kind() -> None:
    usual = [b'{"a":{"a":1.5}}'] * 4
    values = [*usual, b'{"a":true,"a":{"a":"kept"}}', *usual]
    for cuts in ([], [4], [5]):
        assert_same(values * 2, cuts)
        assert typed(values * 2, cuts, 1)[0].table["a"].to_pylist()[4] == {"a": "kept"}


NESTED = [
    "[]",
    "[1, 2]",
    '["]","\\""]',
    '{"a":[1]}',
    '{"t":{"t":[]}}',
    "{}",
    "[\n1\n]",
    '[{"a":1,"a":2}]',
    "[null]",
]


@pytest.mark.parametrize("odd", ['"x"', "1", "true", "null", "1e400", '"[1]"', "{}", "[[[[]]]]"])
@pytest.mark.parametrize("where", ['{"t":%s}', '{"b":1,"n":{"c":null,"t":%s}}', '{"b":{"u":[1]}, "t" :%s}'])
def test_arrays_and_objects(odd: str, where: str) -> None:
    cells = [*NESTED * 4, odd, '"other"', *NESTED * 4]
    values = [where.replace("%s", cell).encode() for cell in cells] * 2
    made = assert_same(values, [len(values) // 2])
    assert made >= len(values) // 2 or '" :' in where


def test_digits() -> None:
    values = [b'{"a":%d}' % number for number in (1, -5, 0, 10**30, -(2**63) - 1, 2**64, 7)] * 3
    values += [b'{"a":-0}', b'{"a":null}', b"{}", *[b'{"a":1}'] * 20]
    values *= 2
    assert assert_same(values, [len(values) // 2]) >= len(values) // 2
    # By the plan of the first ones; there is something to learn of the others.
    for cell in (b"1.5", b'"1"', b"true", b"[1]"):
        assert_same(values + [b'{"a":%s}' % cell] * 40, [len(values)])


DECOYS = [
    b'{"x":{"t":[1]},"t":[1]}',
    b'{"t":[1],"x":{"t":[1]}}',
    b'{"x\\"t":[1],"t":[1]}',
    b'{"x":"\\"t\\":[1]","t":[1]}',
    b'{"\\u0074":[1]}',
    b'{"\\u0074":[1],"x":{"t":[1]}}',
    b'{"x":{"t":[1]},"t":{"t":[1]}}',
    b'{"t":{"t":[1]},"x":{"t":{"t":[1]}}}',
    b'{"t":[1],"t":[2]}',
    b'{"x":{"t":[2]},"t":[1],"x":{"t":[1]}}',
    b'{"t": [ 1 ] }',
]


@settings(deadline=None)
@given(st.lists(st.sampled_from(DECOYS), min_size=8, max_size=30), st.booleans(), st.booleans())
def test_members_that_look_like_the_one_that_is_meant(values: list[bytes], t: bool, x: bool) -> None:
    """A value is struck out where it is, or the way is not taken."""
    values = [*values, *[b'{"t":"odd"}'] * t, *[b'{"x":{"t":"odd"}}'] * x]
    assert_same(values + values, [len(values)])


def test_depth_is_that_of_the_document() -> None:
    for depth in (17, 18, 19, 20, 21, 30, 2000):
        deep = b'{"n":{"t":' + b"[" * depth + b"]" * depth + b"}}"
        values = [b'{"n":{"t":[1]}}'] * 20 + [b'{"n":{"t":1}}', deep, b'{"n":{"t":"' + b"[" * 50 + b'"}}']
        assert assert_same(values + values, [len(values)]) >= len(values)


cells = st.one_of(numbers, strings, anything)


@st.composite
def mostly(draw: st.DrawFn) -> list[bytes]:
    """Documents of which most have a few cells where the others have any."""
    usual = draw(st.lists(cells, min_size=1, max_size=3))
    others = draw(st.lists(cells, max_size=3))
    name = draw(st.sampled_from(['"a"', '"\\u0061"', '"a\\"b"', '"ü"', '""']))
    found = []
    for _ in range(draw(st.integers(4, 12))):
        cell = draw(st.sampled_from(usual * 5 + others))
        text = f"{{{name}{draw(blanks)}:{draw(blanks)}{cell}{draw(blanks)}}}"
        if draw(st.booleans()):
            text = f'{{"b":{draw(blanks)}{text},"c":{draw(st.sampled_from(usual))}}}'
        found.append(text.encode())
    return found + draw(st.lists(st.one_of(documents(anything), unsound), max_size=2))


@settings(deadline=None)
@given(
    mostly(),
    st.lists(st.integers(0, 40), max_size=4),
    st.sampled_from(["widen", "json", "null"]),
    st.booleans(),
    st.integers(2, 6),
)
def test_all_is_as_if_each_was_rewritten(
    values: list[bytes], cuts: list[int], on_conflict: str, nested_as_text: bool, most: int
) -> None:
    assert_same(
        values + values,
        [*cuts, len(values)],
        on_conflict=on_conflict,
        nested_as_text=nested_as_text,
        max_members=most,
    )
