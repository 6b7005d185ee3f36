"""Documents for property tests: JSON text of any form, and what is none."""

from __future__ import annotations

import json

from hypothesis import strategies as st

EDGES = [0, 2**53 - 1, 2**53, 2**53 + 1, 2**53 + 2, 2**63 - 1024, 2**63 - 1, 2**63, 2**64, 10**25]
numbers = st.one_of(
    st.integers(-3, 3).map(str),
    st.sampled_from([sign + str(edge) for edge in EDGES for sign in ("", "-")]),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.sampled_from(["1.50", "1e2", "1E+2", "-0.0", "0e0", "1e400", "1e-400", "9007199254740993.0", "1e19"]),
)
strings = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=4).map(json.dumps),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=4).map(
        lambda s: json.dumps(s, ensure_ascii=False)
    ),
    st.sampled_from(['"2024-02-17T17:33:38Z"', '"2026-01-02"', '"{\\"a\\":1}"', '"},{"', '"NaN"']),
)
names = st.sampled_from(['"a"', '"b"', '"c"', '"\\u0061"', '""', '"a.b"', '"ü"'])
blanks = st.sampled_from(["", "", "", " ", "\n", " \r\n\t"])


def objects(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    member = st.tuples(blanks, names, blanks, values, blanks).map(
        lambda m: f"{m[0]}{m[1]}{m[2]}:{m[3]}{m[4]}"
    )
    return st.lists(member, max_size=3).map(lambda members: "{" + ",".join(members) + "}")


def nest(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    arrays = st.tuples(blanks, st.lists(values, max_size=3)).map(lambda a: "[" + a[0] + ",".join(a[1]) + "]")
    return st.one_of(arrays, objects(values))


scalars = st.one_of(st.sampled_from(["null", "true", "false"]), numbers, strings)
anything = st.recursive(scalars, nest, max_leaves=6)
tame = st.recursive(
    st.one_of(st.just("null"), st.integers(-9, 9).map(str), st.just("1.5")), nest, max_leaves=5
)
UNSOUND = [
    *(b"", b" ", b"{", b"}", b"}{", b'{"a":', b"1}", b'{"a":1}{"a":2}', b'{"a":NaN}', b"[]"),
    *(b"1", b'{"a":"\xff"}'),
]
UNSOUND += [
    b'{"a":"\\ud800"}',
    b'{"a":1}}',
    b'{"a":1},{"a":2}',
    b'{"a":1}\0',
    b"null",
    b'{"a":-Infinity}',
    b'{"a":01}',
]
unsound = st.sampled_from(UNSOUND)


def documents(values: st.SearchStrategy[str]) -> st.SearchStrategy[bytes]:
    return st.tuples(blanks, objects(values), blanks).map(lambda parts: "".join(parts).encode())


values = st.one_of(
    st.lists(documents(tame), max_size=12),
    st.lists(documents(anything), max_size=12),
    st.lists(st.one_of(documents(tame), documents(anything), unsound), max_size=12),
)


@st.composite
def runs(draw: st.DrawFn) -> list[bytes]:
    """Values, each of them repeated: long enough runs that most are parsed in C++."""
    return [value for value in draw(values) for _ in range(draw(st.sampled_from([1, 1, 2, 5])))]
