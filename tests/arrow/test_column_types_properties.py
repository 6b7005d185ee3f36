"""Random files: against typing all of their documents together, and against a converter of single values."""

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import partial
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from documents_in_files import typed
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from json_documents import runs

from cbframe.arrow import column_types
from cbframe.arrow.column_types import Columns, Kind, Marks, differences, unify, widen
from cbframe.json.layout import FieldPath, Policy
from cbframe.scan.parquet import write_parquet


@pytest.fixture(autouse=True, scope="module")
def small_pieces() -> Any:
    """A few values are enough to take every way through the converters."""
    patch = pytest.MonkeyPatch()
    patch.setattr(column_types, "_TEXT_BYTES", 40)
    yield
    patch.undo()


# --- documents -------------------------------------------------------------------------------------


def without_later_marks(columns: Columns) -> Columns:
    """Columns without what is known of how text came to be."""
    return columns.mapped(lambda _, kind: replace(kind, digits=False, mixed=False, lost=False))


def alike(ours: Any, theirs: Any, kind: Kind) -> bool:
    """Whether cells are the same, but for how numbers are written where they are text."""
    if ours is None or theirs is None:
        return ours is theirs
    if kind.json:
        return told_alike(json.loads(ours), json.loads(theirs))
    if kind.item is not None:
        return all(alike(*pair, kind.item) for pair in zip(ours, theirs, strict=True))
    if pa.types.is_struct(kind.type):
        return all(alike(ours[name], theirs[name], member) for name, member in kind.members.items())
    if pa.types.is_string(kind.type):
        return ours == theirs or number(ours) == number(theirs) != ()
    return bool(ours == theirs)


def number(text: str) -> Any:
    """What a JSON token of a number is; () of any other text."""
    try:
        value = json.loads(text)
    except ValueError:
        return ()
    return () if isinstance(value, bool) or not isinstance(value, int | float) else value


def told_alike(ours: Any, theirs: Any) -> bool:
    """Whether JSON says the same: nulls are no members, and what was text in a file is a string."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        some, others = ({n: v for n, v in each.items() if v is not None} for each in (ours, theirs))
        return some.keys() == others.keys() and all(told_alike(some[name], others[name]) for name in some)
    if isinstance(ours, list) and isinstance(theirs, list):
        return len(ours) == len(theirs) and all(map(told_alike, ours, theirs))
    if isinstance(ours, str) and not isinstance(theirs, str):
        return theirs is not None and told_alike(json.loads(ours), theirs)
    return isinstance(ours, bool) == isinstance(theirs, bool) and bool(ours == theirs)


POLICIES = st.sampled_from([Policy(), Policy(), Policy(nested_as_text=True)])


@settings(deadline=None)
@given(st.lists(runs(), min_size=1, max_size=3), POLICIES)
def test_files_together_are_the_documents_together(files: list[list[bytes]], policy: Policy) -> None:
    parts = [typed(values, policy) for values in files]
    wide = unify([columns for _, columns in parts])
    tables = [widen(table, columns, wide) for table, columns in parts]
    whole, columns = typed([value for values in files for value in values], policy)
    assert wide.schema == columns.schema
    # What became text of one read is in its report, which is not looked at here.
    assert without_later_marks(wide) == without_later_marks(columns)
    assert [len(table) for table in tables] == [len(values) for values in files]
    rows = [row for table in tables for row in table.to_pylist()]
    for ours, theirs in zip(rows, whole.to_pylist(), strict=True) if wide.schema.names else ():
        for name, kind in wide.kinds.items():
            assert alike(ours[name], theirs[name], kind), (name, ours[name], theirs[name])


@settings(deadline=None, max_examples=40)
@given(values=runs(), others=runs())
def test_a_file_is_the_same_table_from_the_disk(
    values: list[bytes], others: list[bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    table, narrow = typed(values)
    wide = unify([narrow, typed(others)[1]])
    path = tmp_path_factory.mktemp("files") / "a.parquet"
    keyed = table.append_column("_cb_key", pa.array(range(len(table)), pa.int32()))
    write_parquet(keyed.to_reader(), path)
    read = pq.read_table(path)
    for columns in (narrow, wide):
        again = widen(read, narrow, columns)
        again.validate(full=True)
        assert again.num_rows == len(values)
        assert not again.num_columns or again.equals(widen(table, narrow, columns))


# --- columns of any types --------------------------------------------------------------------------

MAP = pa.map_(pa.string(), pa.int8())
LEAVES = [
    *(pa.null(), pa.bool_(), pa.int64(), pa.int64(), pa.uint64(), pa.decimal128(38, 0), pa.float64()),
    *(pa.string(), pa.string(), pa.int8(), pa.uint8(), pa.int16(), pa.uint32(), pa.float32()),
    *(pa.decimal128(5, 0), pa.decimal128(7, 3), pa.decimal128(38, 5), pa.decimal256(40, 0)),
    *(pa.large_string(), pa.date32(), pa.binary(), pa.timestamp("s"), pa.timestamp("us", "UTC")),
    *(pa.timestamp("ms", "Europe/Berlin"), pa.dictionary(pa.int32(), pa.string())),
    *(pa.dictionary(pa.int8(), pa.int64()), MAP),
]
NANOSECONDS = [pa.timestamp("ns"), pa.timestamp("ns", "UTC"), pa.timestamp("us")]
NAMES = st.sampled_from(["a", "b", "c", 'é"'])


@st.composite
def leaves(draw: st.DrawFn, types: Sequence[pa.DataType]) -> Kind:
    kind = column_types.kind_of(draw(st.sampled_from(types)))
    if pa.types.is_string(kind.type):
        return replace(kind, json=draw(st.booleans()))
    marked = replace(kind, **{mark: draw(st.booleans()) for mark in ("inexact", "negative", "far")})
    return kind if column_types._misplaced(marked) else marked


def struct_of(members: dict[str, Kind]) -> Kind:
    return Kind(pa.struct([(name, member.type) for name, member in members.items()]), members=members)


def list_of(item: Kind, make: Any) -> Kind:
    return Kind(make(item.type), item=item)


LISTS = [pa.list_, pa.list_, pa.large_list, lambda kind: pa.list_(kind, 2)]


def kinds(types: Sequence[pa.DataType]) -> st.SearchStrategy[Kind]:
    return st.recursive(
        leaves(types),
        lambda inner: st.one_of(
            st.dictionaries(NAMES, inner, max_size=3).map(struct_of),
            st.builds(list_of, inner, st.sampled_from(LISTS)),
        ),
        max_leaves=4,
    )


def columns(types: Sequence[pa.DataType]) -> st.SearchStrategy[Columns]:
    return st.dictionaries(NAMES, kinds(types), max_size=2).map(Columns)


def sorted_kind(kind: Kind) -> Kind:
    """The same with members by name.

    Whether strings in JSON text may have been numbers is left out: it depends on whether they were text of
    both before there was JSON, and so on what is unified first.
    """
    if kind.json:
        return replace(kind, mixed=False)
    if pa.types.is_struct(kind.type):
        return struct_of({name: sorted_kind(kind.members[name]) for name in sorted(kind.members)})
    if kind.item is not None:
        item = sorted_kind(kind.item)
        if pa.types.is_fixed_size_list(kind.type):
            return list_of(item, partial(pa.list_, list_size=kind.type.list_size))
        return list_of(item, pa.large_list if pa.types.is_large_list(kind.type) else pa.list_)
    return kind


def settled(each: Columns) -> dict[str, Kind]:
    return {name: sorted_kind(kind) for name, kind in sorted(each.kinds.items())}


@settings(deadline=None, max_examples=300)
@given(
    st.lists(columns([*LEAVES, *NANOSECONDS]), min_size=1, max_size=4),
    st.randoms(use_true_random=False),
    st.integers(0, 4),
)
def test_order_and_grouping_change_nothing(many: list[Columns], random: Random, cut: int) -> None:
    wide = unify(many)
    some = [Columns(settled(each)) for each in many]
    every = unify(some)
    assert settled(every) == settled(unify(some[::-1]))
    random.shuffle(some)
    assert settled(unify(some)) == settled(every)
    assert settled(unify([unify(some[:cut]), unify(some[cut:])])) == settled(every)
    assert settled(unify([*some, every, *some[:cut]])) == settled(every)
    assert unify([wide]) == wide
    assert unify([wide, wide]) == wide
    assert Columns.from_dict(json.loads(json.dumps(wide.to_dict()))) == wide
    assert differences(wide, wide) == []
    assert wide.select(wide.schema.names) == wide


@settings(deadline=None, max_examples=200)
@given(st.lists(columns(LEAVES[:9]), min_size=1, max_size=4), st.integers(0, 6))
def test_there_are_never_too_many_fields(many: list[Columns], limit: int) -> None:
    wide = unify(many, max_members=limit)
    assert sum(kind.nested() for kind in wide.kinds.values()) <= limit
    assert settled(wide).keys() == {name for each in many for name in each.schema.names}


def values_of(kind: Kind) -> st.SearchStrategy[Any]:
    return st.one_of(st.none(), sound_values(kind), sound_values(kind))


def sound_values(kind: Kind) -> st.SearchStrategy[Any]:
    of = kind.type
    if kind.json:
        return st.sampled_from(['"x"', "1", "[1, 2]", '{"a" :"\\n"}'])
    if pa.types.is_dictionary(of):
        of = of.value_type
    if pa.types.is_null(of):
        return st.none()
    if pa.types.is_boolean(of):
        return st.booleans()
    if pa.types.is_integer(of):
        most = 2 ** (of.bit_width - pa.types.is_signed_integer(of))
        edges = [0, 1, 2**53 + 1, 2**60, most - 1, -1, -most, -(2**53) - 1, -(2**60)]
        least = -most if pa.types.is_signed_integer(of) else 0
        some = [edge for edge in edges if least <= edge < most]
        return st.one_of(st.integers(least, most - 1), st.sampled_from(some))
    if pa.types.is_floating(of):
        return st.floats(width=of.bit_width, allow_nan=False, allow_infinity=False)
    if pa.types.is_decimal(of):
        most = 10**of.precision - 1
        units = st.one_of(st.integers(-most, most), st.sampled_from([0, -1, min(most, 2**100 + 2**60)]))
        return units.map(lambda unit: Decimal(f"{unit}e{-of.scale}"))
    if pa.types.is_date(of):
        return st.dates()
    if pa.types.is_timestamp(of):
        factor = {"s": 1, "ms": 10**3, "us": 10**6}[of.unit]
        return st.integers(-(10**10) * factor, 10**11 * factor)
    if pa.types.is_binary(of):
        return st.text(st.characters(exclude_categories=["Cs"]), max_size=3).map(str.encode)
    if pa.types.is_map(of):
        return st.lists(
            st.tuples(st.text('a"\n', max_size=2), st.one_of(st.none(), st.integers(0, 9))), max_size=2
        )
    if pa.types.is_struct(of):
        return st.fixed_dictionaries({name: values_of(member) for name, member in kind.members.items()})
    if kind.item is not None:
        size = {"min_size": 2, "max_size": 2} if pa.types.is_fixed_size_list(of) else {"max_size": 3}
        return st.lists(values_of(kind.item), **size)
    return st.one_of(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
        st.text('"\\/\x00\x1f\x7f x', max_size=4),
    )


def as_text(value: Any, kind: pa.DataType) -> str:
    match value:
        case str():
            return value
        case bytes():
            return value.decode()
        case bool():
            return "true" if value else "false"
        case Decimal():
            return f"{value:f}"
        case datetime():
            moment = value if value.tzinfo is None else value.astimezone(UTC)
            text = moment.replace(tzinfo=None).isoformat(timespec="microseconds").rstrip("0").rstrip(".")
            return text + ("" if value.tzinfo is None else "Z")
        case date():
            return value.isoformat()
    return repr(value)


def as_json(value: Any, kind: Kind) -> str:
    """One value as JSON text, the slow way."""
    if value is None:
        return "null"
    if kind.json:
        return str(value)
    if kind.item is not None and not pa.types.is_map(kind.type):
        return "[" + ",".join(as_json(item, kind.item) for item in value) + "]"
    if pa.types.is_struct(kind.type):
        pairs = [
            (name, as_json(value[name], member))
            for name, member in kind.members.items()
            if value[name] is not None
        ]
    elif pa.types.is_map(kind.type):
        item = kind.item or Kind(kind.type.item_type)
        pairs = [(name, as_json(inner, item)) for name, inner in value]
    else:
        text = as_text(value, kind.type)
        token = isinstance(value, bool | int | float | Decimal)
        return text if token else json.dumps(text, ensure_ascii=False)
    return "{" + ",".join(f"{json.dumps(name, ensure_ascii=False)}:{text}" for name, text in pairs) + "}"


def as_wide(value: Any, have: Kind, want: Kind) -> Any:
    """What becomes of one cell, the slow way."""
    if value is None or have.same(want):
        return value
    if want.json:
        return as_json(value, have)
    if pa.types.is_map(want.type):
        pairs = value.items() if have.members else value
        inside = {name: each for name, each in pairs if each is not None or not have.members}
        return [
            (name, as_wide(each, have.item or have.members[name], want.item)) for name, each in inside.items()
        ]
    if want.item is not None and have.item is not None:
        return [as_wide(item, have.item, want.item) for item in value]
    if pa.types.is_struct(want.type):
        return {
            name: as_wide(value[name], have.members[name], member) if name in have.members else None
            for name, member in want.members.items()
        }
    if pa.types.is_string(want.type):
        return as_text(value, have.type)
    if pa.types.is_floating(want.type):
        return float(value)
    return value


@st.composite
def files(draw: st.DrawFn) -> tuple[pa.Table, Columns]:
    """A table of sliced chunks, and what it is."""
    kinds_of = draw(st.dictionaries(NAMES, kinds(LEAVES), min_size=1, max_size=2))
    chunks, sizes = {}, draw(st.lists(st.integers(0, 5), max_size=3))
    marks = Marks()
    for name, kind in kinds_of.items():
        arrays = []
        for size in sizes:
            skipped = draw(st.integers(0, 2))
            cells = draw(st.lists(values_of(kind), min_size=size + 3, max_size=size + 3))
            arrays.append(pa.array(cells, kind.type)[skipped : skipped + size])
            marks.look(arrays[-1], (name,))
        chunks[name] = pa.chunked_array(arrays, kind.type)
    assume(all(map(valid, chunks.values())))
    bare = Columns(kinds_of)
    found = {mark: getattr(marks, mark) for mark in ("inexact", "negative", "far")}

    def marked(place: FieldPath, kind: Kind) -> Kind:
        return replace(kind, **{mark: place in places for mark, places in found.items()})

    return pa.table(chunks), bare.mapped(marked)


def valid(array: pa.ChunkedArray) -> bool:
    """Below a null struct, pa.array() makes an index into an empty dictionary."""
    try:
        array.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


@settings(deadline=None, max_examples=300)
@given(st.lists(files(), min_size=1, max_size=3))
def test_every_value_is_kept(some: list[tuple[pa.Table, Columns]]) -> None:
    wide = unify([narrow for _, narrow in some])
    want = wide.kinds
    for table, narrow in some:
        result = widen(table, narrow, wide)
        assert result.schema == wide.schema
        assert len(result) == len(table)
        result.validate(full=True)
        have = narrow.kinds
        rows = table.to_pylist()
        for number, row in enumerate(result.to_pylist()):
            for name, kind in want.items():
                expected = as_wide(rows[number][name], have[name], kind) if name in have else None
                assert plain(row[name]) == plain(expected)
    pa.concat_tables([widen(table, narrow, wide) for table, narrow in some]).validate(full=True)


def plain(value: Any) -> Any:
    """So that equal means the same, but for the type of an exact number, and for time zones."""
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    if isinstance(value, float):
        return repr(value)  # which tells -0.0 from 0.0
    if isinstance(value, datetime):
        return value if value.tzinfo is None else value.astimezone(UTC)
    return value


@settings(deadline=None)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1))
def test_doubles_are_written_as_python_writes_them(numbers: list[float]) -> None:
    table = pa.table({"a": [*numbers, None]})
    narrow = Columns.of_schema(table.schema)
    for json_text in (False, True):
        wide = unify([narrow, Columns({"a": Kind(pa.string(), json=json_text)})])
        assert widen(table, narrow, wide)["a"].to_pylist() == [*map(repr, numbers), None]


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1), min_size=1), st.integers(0, 63))
def test_integers_without_an_exact_double_are_found(numbers: list[int], shift: int) -> None:
    for number in [each << shift for each in numbers]:
        for sign in (1, -1):
            found = Marks()
            value = sign * (number & (2**64 - 1))
            kind = next((k for k in (pa.int64(), pa.uint64()) if fits(value, k)), pa.decimal128(38, 0))
            cell = Decimal(value) if pa.types.is_decimal(kind) else value
            found.look(pa.array([None, 1, cell], kind), ("a",))
            assert found.inexact == (set() if int(float(value)) == value else {("a",)})
            assert found.negative == ({("a",)} if value < 0 and pa.types.is_integer(kind) else set())


def fits(value: int, kind: pa.DataType) -> bool:
    least = -(2**63) if kind == pa.int64() else 0
    return least <= value < least + 2**64
