"""The compiled converter, the Python one, and rules over ``json`` give the same."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import reduce
from operator import or_
from typing import Any

import json_oracle as oracle
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from json_documents import anything, documents, nest, scalars, tame, unsound

from cbframe.core import COMPILED
from cbframe.json import reference, typer
from cbframe.json.layout import FIELDS, NAMES, NO_FACTS, NOTHING, SOME, Configuration, Instructions, type_of

needs_core = pytest.mark.skipif(COMPILED is None, reason="needs the compiled core")
CORES = [
    pytest.param(typer.CompiledConverter, id="rust", marks=needs_core),
    pytest.param(reference.Converter, id="python"),
]
LONG = [
    "9" * 38,
    "-" + "9" * 39,
    "340282366920938463463374607431768211456",
    "1" * 5000,
    "-0",
    "123456789012345678",
]
DEEP = st.tuples(
    st.sampled_from([56, 58, 59, 60, 61, 62, 199, 200, 201]), st.sampled_from(["[", '{"a":']), scalars
)
odd = st.one_of(
    st.sampled_from(
        [*LONG, "0.5", '"x"', "[]", "{}", "[null]", '"\\ud83d\\ude00"', '"\\\\ud800"', '"-0"', "[-0 ]"]
    ),
    st.sampled_from(
        ['"\\ud800"', '"\\ude00x"', '"\\ud83d\\ud83d\\ude00"', "NaN", "-Infinity", "-", "01", "1.", '"\t"']
    ),
    DEEP.map(lambda parts: parts[1] * parts[0] + parts[2] + {"[": "]"}.get(parts[1], "}") * parts[0]),
)
members = st.tuples(
    st.one_of(
        st.integers(0, 9).map(lambda n: f'"n{n}"'),
        st.sampled_from(['"\\u0000"', '"b\\u0000"', '"a"', '"\\n"']),
    ),
    st.recursive(st.one_of(scalars, odd), nest, max_leaves=4),
).map(":".join)
many = st.lists(members, max_size=6).map(lambda each: "{" + ",".join(each) + "}")
values = st.one_of(
    documents(tame),
    documents(anything),
    documents(st.one_of(odd, many, st.lists(many, max_size=3).map(lambda each: f"[{','.join(each)}]"))),
    many.map(str.encode),
    unsound,
)
batches = st.lists(values, max_size=10)
names = st.sampled_from([b"a", b"b", b"c", b"n1", b"n2", b"", b"\0", b"b\0"])
configurations: st.SearchStrategy[Configuration] = st.recursive(
    st.just((FIELDS, [], None, None)),
    lambda inner: st.tuples(
        st.sampled_from([FIELDS, FIELDS, SOME, NAMES, NOTHING]),
        st.lists(st.tuples(names, inner), max_size=3, unique_by=lambda each: each[0]),
        st.none() | inner,
        st.none(),
    ),
    max_leaves=6,
).map(lambda each: (each[0] if each[0] == SOME else FIELDS, each[1], None, None))
SCALARS = ["null", "bool", "int64", "uint64", "decimal", "double", "text", "written", "json"]
dropped = st.sampled_from([0, 0, 0, 0b000001, 0b110000, 0b001111, 0b110111, 0b111001])
layouts: st.SearchStrategy[Instructions] = st.recursive(
    st.tuples(st.sampled_from(SCALARS), dropped, st.none()),
    lambda inner: st.one_of(
        st.tuples(st.just("list"), dropped.map(lambda kinds: kinds & 0b101111), inner),
        st.tuples(st.just("map"), dropped.map(lambda kinds: kinds & 0b011111), inner),
        st.tuples(
            st.just("struct"),
            dropped.map(lambda kinds: kinds & 0b011111),
            st.lists(st.tuples(names, inner), max_size=3, unique_by=lambda each: each[0]),
        ),
    ),
    max_leaves=5,
)


def shred(to: Any, values: Sequence[bytes], at: int = 0, reasons: Sequence[int] | None = None) -> list[int]:
    """Have a converter take documents in, which stand in the bucket from a place on."""
    count = len(values)
    around = b'{"a":"\\ud800",-0'  # of other documents in the same array
    found = to.shred(
        np.frombuffer(b"".join([around, *values, around]), np.uint8),
        np.cumsum([len(around), *map(len, values)], dtype=np.int32),
        np.array([0] * count if reasons is None else reasons, np.uint8),
        (np.arange(at, at + count) * 7 % 3).astype(np.uint16),
        np.arange(at, at + count, dtype=np.uint64) // 2,
    )
    assert found.dtype == np.uint8
    return list(map(int, found))


def exactly(cell: Any) -> Any:
    """A cell by its text: -0.0 is another number than 0.0."""
    return repr(cell)


def built(by: Any, name: bytes, layout: Instructions) -> tuple[pa.DataType, list[str]] | None:
    """A column's type and cells; None if it cannot hold its values."""
    try:
        [array] = by.build([(name, layout)])
    except ValueError:
        return None
    array.validate(full=True)
    return array.type, list(map(exactly, array.to_pylist()))


def layout_of(column: oracle.Column) -> Instructions:
    if column.json:
        return "json", 0, None
    if pa.types.is_struct(column.type):
        return "struct", 0, [(name.encode(), layout_of(each)) for name, each in column.members.items()]
    if column.item is not None:
        return "map" if pa.types.is_map(column.type) else "list", 0, layout_of(column.item)
    scalars = {type_of((name, 0, None)): name for name in reversed(SCALARS[:7])}
    return scalars[column.type], 0, None


def places_of(facts: dict[str, Any], place: tuple[bytes | None, ...] = ()) -> list[tuple[bytes | None, ...]]:
    """All places in which values are, and one in which there is none."""
    found = [place, (*place, b"none")]
    for name, inner in facts["fields"]:
        found += places_of(inner, (*place, name.encode()))
    for inner in (facts["item"], facts["values"]):
        if inner is not None:
            found += places_of(inner, (*place, None))
    return found


def rows_of(by: Any, place: Sequence[bytes | None]) -> list[tuple[str, list[int]]]:
    return [(kind, rows.tolist()) for kind, rows in by.rows_by_kind(list(place))]


def same_as_oracle(found: dict[str, Any], wanted: oracle.Facts, limit: int) -> None:
    """Facts, where no name is data."""
    assert found["counts"] == dict(wanted.kinds)
    assert (found["low"], found["high"], found["long"]) == (wanted.low, wanted.high, wanted.long)
    if not wanted.long:
        assert (found["inexact"], found["beyond"]) == (wanted.inexact, wanted.beyond)
    assert found["members"] == wanted.count
    assert found["nul"] == any("\0" in name for name in wanted.members)
    if found["item"] is not None and wanted.item is not None:
        same_as_oracle(found["item"], wanted.item, limit)
    else:
        assert found["item"] is None or not found["item"]["counts"]
        assert wanted.item is None or not wanted.item.kinds
    assert found["values"] is None
    assert [name for name, _ in found["fields"]] == sorted(wanted.members)
    for name, inner in found["fields"]:
        same_as_oracle(inner, wanted.members[name], limit)


def check_with_oracle(by: Any, values: list[bytes], limit: int) -> None:
    """Reasons, facts and columns are those that follow from ``json``."""
    read = [oracle.read(value) for value in values]
    assert [reason == 0 for reason in shred(by, values)] == [each is not None for each in read]
    sound = [each for each in read if each is not None]
    facts = oracle.merged(map(oracle.Facts.of, sound))
    found = by.facts().to_dict()
    if all(value.depth < 30 for value in sound):
        if limit >= 1000:
            same_as_oracle(found, facts, limit)
        for name, column in oracle.columns(facts, limit).items():
            cells = [oracle.cell(None if each is None else each.content.get(name), column) for each in read]
            wanted = (type_of(layout_of(column)), list(map(exactly, cells)))
            assert built(by, name.encode(), layout_of(column)) == wanted


def check_with_core(
    values: list[bytes],
    known: Configuration | None,
    limit: int,
    rest: bool,
    some: list[tuple[bytes, Instructions]],
) -> None:
    """All that the compiled converter gives, the Python one gives."""
    one = typer.CompiledConverter(limit, known, keeps_rest=rest)
    other = reference.Converter(limit, known, keeps_rest=rest)
    for each in (values[: len(values) // 2], values):  # nothing is left of a batch before
        assert shred(one, each) == shred(other, each)
        facts = one.facts().to_dict()
        assert other.facts().to_dict() == facts
        for place in places_of(facts):
            assert rows_of(other, place) == rows_of(one, place)
        assert one.rest().equals(other.rest())
        columns = [built(one, name, layout) for name, layout in some]
        assert [built(other, name, layout) for name, layout in some] == columns
        for place in places_of(facts) if None not in columns else ():
            assert rows_of(other, place) == rows_of(one, place)


def check_blocks(values: list[bytes], limit: int) -> None:
    """The same of large batches, each of several blocks."""
    padded = [value + b" " * 6000 for value in values * (80 // len(values))]
    facts = oracle.merged(oracle.Facts.of(each) for each in map(oracle.read, values) if each is not None)
    columns = [(name.encode(), layout_of(each)) for name, each in oracle.columns(facts, limit).items()]
    one, other = typer.CompiledConverter(limit), reference.Converter(limit)
    # The columns of the second batch are those of the first, and so are built block by block; others are not.
    for each in (columns, columns, columns[1:], [(name, ("json", 0, None)) for name, _ in columns]):
        assert shred(one, padded) == shred(other, padded)
        found = one.facts().to_dict()
        assert other.facts().to_dict() == found
        try:
            wanted = other.build(each)
        except ValueError:
            with pytest.raises(ValueError, match="cannot hold"):
                one.build(each)
        else:
            for _ in range(2):
                arrays = one.build(each)
                assert [array.type for array in arrays] == [array.type for array in wanted]
                assert [exactly(array.to_pylist()) for array in arrays] == [
                    exactly(array.to_pylist()) for array in wanted
                ]
                for array in arrays:
                    array.validate(full=True)
        assert one.rest().equals(other.rest())
        for place in places_of(found):
            assert rows_of(other, place) == rows_of(one, place)


def check_merging(batches: list[list[bytes]], limit: int) -> None:
    """Facts of batches are those of all documents, in any order, of either core, and however often stored."""
    kinds: list[Any] = [reference.Converter]
    if COMPILED is not None:
        kinds.append(typer.CompiledConverter)
    stored = []
    for kind in kinds:
        each, at, facts = kind(limit), 0, []
        for values in batches:
            shred(each, values, at)
            facts.append(each.facts())
            at += len(values)
        merged = reduce(or_, facts)
        assert reduce(or_, reversed(facts)).to_dict() == merged.to_dict()
        assert reduce(lambda one, other: other | one, facts).to_dict() == merged.to_dict()
        whole = [value for values in batches for value in values]
        shred(each, whole)
        # What is deeper than level 60 depends on whether objects around it are maps: these take two levels.
        if all(read is None or read.depth < 30 for read in map(oracle.read, whole)):
            assert each.facts().to_dict() == merged.to_dict()
            assert each.facts().shape() == merged.shape()
        stored.append(([json.loads(json.dumps(found.to_dict())) for found in facts], merged.to_dict()))
    for parts, together in stored:
        for kind in (reference.Facts, typer.Facts):
            read = [kind.from_dict(found) for found in parts]
            assert [json.loads(json.dumps(each.to_dict())) for each in read] == parts
            assert reduce(or_, read).to_dict() == together
    assert all(each == stored[0] for each in stored)


def both(length: int) -> Any:
    """The quick form of a property, and its long one."""
    long = pytest.param(length, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])
    return pytest.mark.parametrize("examples", [50, long], ids=["quick", "long"])


def test_facts_of_no_values() -> None:
    assert reference.Facts().inner_dict() == NO_FACTS


limits = st.sampled_from([0, 2, 1000])


@both(2000)
@pytest.mark.parametrize("kind", CORES)
def test_as_json(kind: Any, examples: int) -> None:
    @settings(deadline=None, max_examples=examples)
    @given(batches, st.sampled_from([2, 1000]))
    def holds(values: list[bytes], limit: int) -> None:
        check_with_oracle(kind(limit), values, limit)

    holds()


@needs_core
@both(3000)
def test_as_the_core(examples: int) -> None:
    some = st.lists(st.tuples(names, layouts), max_size=4)

    @settings(deadline=None, max_examples=examples)
    @given(batches, st.none() | configurations, limits, st.booleans(), some)
    def holds(values: Any, known: Any, limit: int, rest: bool, some: Any) -> None:
        check_with_core(values, known, limit, rest, some)

    holds()


@needs_core
@both(500)
def test_blocks_as_the_core(examples: int) -> None:
    @settings(deadline=None, max_examples=examples // 5)
    @given(batches.filter(bool), st.sampled_from([2, 1000]))
    def holds(values: list[bytes], limit: int) -> None:
        check_blocks(values[:40], limit)

    holds()


@both(1000)
def test_facts_merge_in_any_order_and_are_stored(examples: int) -> None:
    @settings(deadline=None, max_examples=examples)
    @given(st.lists(batches, min_size=1, max_size=3), limits)
    def holds(some: list[list[bytes]], limit: int) -> None:
        check_merging(some, limit)

    holds()


NAMED = {
    "integers past 4,300 digits": [b'{"a":%s}' % (b"9" * 4301), b'{"a":-%s}' % (b"1" * 9000), b'{"a":1}'],
    "integers of 38 and 39 digits": [
        b'{"a":%s}' % (b"9" * 38),
        b'{"a":-%s}' % (b"9" * 39),
        b'{"b":-%s}' % (b"1" * 38),
    ],
    "integers that are doubles": [
        b'{"a":9007199254740993}',
        b'{"a":0.5}',
        b'{"b":9007199254740992}',
        b'{"b":1e0}',
    ],
    "integers of 64 bits": [
        b'{"a":18446744073709551615}',
        b'{"b":-9223372036854775808}',
        b'{"c":18446744073709551616}',
    ],
    "tokens that are no JSON": [
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":-Infinity}',
        b'{"a":nan}',
        b'{"a":1}',
    ],
    "half of a surrogate pair": [
        rb'{"a":"\ud800"}',
        rb'{"a":"\ud800\ud800\udc00"}',
        rb'{"a":"\udc00"}',
        rb'{"\uD83D":1}',
        rb'{"a":"\\ud800"}',
        rb'{"a":"\\\ud83d\ude00"}',
        rb'{"a":"\\ud83d\ude00"}',
        rb'{"a":"\uD83D\uDE00\uDE00"}',
        '{"a":"\U0001f600"}'.encode(),
    ],
    "names that come twice": [
        b'{"a":1,"b":{"x":1,"x":"y"},"a":"z"}',
        b'{"a":{"x":1},"a":{"y":[2]}}',
        rb'{"a":-0,"a":0.5,"\u0061":[1]}',
    ],
    "NUL in names": [rb'{"\u0000":1,"a":{"b\u0000":2}}', b'{"a":{"c":1}}', rb'{"\u0000":"x"}'],
    "minus zero": [
        b'{"a":-0,"b":-0.0,"c":"-0"}',
        b'{"a":[-0 , -0]}',
        b'{"a":0,"b":0.0}',
        b'{"d":-0,"e":[0.5]}',
    ],
    "beyond doubles": [b'{"a":1e400,"b":1e308,"c":-1e-400}', b'{"a":-1e999}', b'{"b":%s}' % (b"1" * 310)],
    "numbers as written": [
        b'{"a":1.50,"b":[1E5, 2e-3]}',
        b'{"a":"x","b":["y",0.10]}',
        b'{"a":true,"b":{"c": 1.0}}',
    ],
    "blanks and escapes": [b' {"a" : [ 1 , "\\/\\u0041" ] }\n', b'{"a":{"x":  "\\t"}}', b'{"a":"\\"{["}'],
    "usual forms": [
        json.dumps({"a": [1, {"b": "ü\n"}], "b": None}, ensure_ascii=ascii_only, separators=signs).encode()
        for ascii_only in (True, False)
        for signs in ((",", ":"), (", ", ": "))
    ],
    "no documents": [
        *(b"", b" \n", b"\xef\xbb\xbf{}", b'{"a":"\xff"}', b"[]", b"1", b"{}{}", b'{"a":01}'),
        *(b'{"a":1,}', b"\xff"),
    ],
}


@pytest.mark.parametrize("values", NAMED.values(), ids=NAMED)
@pytest.mark.parametrize("kind", CORES)
def test_named_as_json(kind: Any, values: list[bytes]) -> None:
    check_with_oracle(kind(1000), values, 1000)
    check_with_oracle(kind(1), values, 1)
    check_merging([values[:1], values[1:]], 1000)


@needs_core
@pytest.mark.parametrize("values", NAMED.values(), ids=NAMED)
def test_named_as_the_core(values: list[bytes]) -> None:
    for name in SCALARS:
        layout: Instructions = (name, 0, None)
        columns: list[tuple[bytes, Instructions]] = [(each, layout) for each in (b"a", b"b", b"c", b"\0")]
        columns += [(b"a", ("list", 0b101111, layout)), (b"a", ("map", 0b011111, layout))]
        columns += [(b"b", ("struct", 0b011111, [(b"x", layout), (b"c", layout)]))]
        check_with_core(values, (SOME, [(b"b", (FIELDS, [], None, None))], None, None), 1000, True, columns)
        check_with_core(values, None, 1000, True, columns)


@pytest.mark.parametrize("kind", CORES)
@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b'{"a":%s}' % (b"[" * 199 + b"]" * 199), 0),
        (b'{"a":%s}' % (b"[" * 200 + b"]" * 200), 4),
        (b'{"a":%s,"a":1}' % (b"[" * 200 + b"]" * 200), 4),
        (b'{"a":%s}' % (b"[" * 200 + b"]" * 199), 4),
        (b'{"a":%s}' % (b"[" * 199 + b"]" * 198), 5),
        (b"[" * 100_000, 4),
        (b'{"a":"%s"}' % (b"[" * 300), 0),
        (b'{"a":[%s]}' % b",".join([b'[{},"]"]'] * 300), 0),
        (b"\t", 2),
        (b'{"a":"\xff"', 3),
        (b'{"a":"\\ud800"}', 5),
        (b" [1] ", 6),
    ],
)
def test_reasons(kind: Any, value: bytes, reason: int) -> None:
    assert shred(kind(1000), [value, b"{}"], reasons=[0, 1]) == [reason, 1]


@pytest.mark.parametrize("kind", CORES)
def test_many_documents(kind: Any) -> None:
    """More values than are converted at once, some of them missing, some in few documents."""
    count = 40_000
    values = [
        b'{"a":%d%s}' % (row, b',"b":["x"],"c%d":null' % (row % 3) if row % 7 == 0 else b"")
        for row in range(count)
    ]
    by = kind(1000)
    assert set(shred(by, values)) == {0}
    facts = dict(by.facts().to_dict()["fields"])
    assert (facts["a"]["high"], facts["b"]["present"], facts["c1"]["present"]) == (count - 1, 5715, 1905)
    a, b = by.build([(b"a", ("int64", 0, None)), (b"b", ("list", 0, ("text", 0, None)))])
    assert a.equals(pa.array(range(count)))
    assert b.equals(pa.array([["x"] if row % 7 == 0 else None for row in range(count)]))


@pytest.mark.parametrize("kind", CORES)
def test_parts_that_do_not_belong_together(kind: Any) -> None:
    by = kind(1000)
    one = np.zeros(1, np.uint8)
    with pytest.raises(ValueError, match="there is no batch"):
        by.facts()
    for offsets in ([0], [0, 3], [2, 1], [-1, 2]):
        with pytest.raises(ValueError, match="do not belong together"):
            by.shred(b"{}", np.array(offsets, np.int32), one, one.astype(np.uint16), one.astype(np.uint64))
    with pytest.raises(ValueError, match="there is no batch"):
        by.build([])


@pytest.mark.parametrize("kind", CORES)
def test_only_names_count_that_the_batch_has(kind: Any) -> None:
    """Facts do not depend on batches before, nor on values that came before others of the same name."""
    by = kind(3)
    for numbers in ([1, 2], [3, 4], [1, 2, 3, 4], [5]):
        shred(by, [b'{"a":{"n%d":1}}' % number for number in numbers])
        facts = dict(by.facts().to_dict()["fields"])["a"]
        data = len(numbers) > 3
        assert (facts["values"] is not None, len(facts["names"])) == (data, 4 if data else 0)
    wide = b'{"a":{"p":1,"q":1,"r":1,"s":1}'
    shred(by, [wide, wide + b',"a":{"x":1}}'])
    facts = dict(by.facts().to_dict()["fields"])["a"]
    assert (facts["values"], [name for name, _ in facts["fields"]]) == (None, ["x"])
