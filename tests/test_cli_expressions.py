"""``--where``: what an expression means, and where a wrong one is wrong."""

from __future__ import annotations

import argparse
import json
import operator
import string
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbframe import LocalCluster, scan_bucket
from cbframe.arrow.filters import make_filters
from cbframe.cli import main
from cbframe.cli.expressions import filters_of

HOTEL = (("type",), "==", "hotel")
DEAR = (("price",), ">", 50)
A, B, C, D = (((name,), "==", number) for number, name in enumerate("abcd", 1))


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("type = 'hotel'", [[HOTEL]]),
        ("type='hotel' and price > 50", [[HOTEL, DEAR]]),
        ('type == "hotel" AND (price>50)', [[HOTEL, DEAR]]),
        ("type = 'hotel' or price > 50", [[HOTEL], [DEAR]]),
        ("a = 1 and (b = 2 or c = 3)", [[A, B], [A, C]]),
        ("a = 1 and b = 2 or c = 3", [[A, B], [C]]),
        ("(a = 1 or b = 2) and (c = 3 or d = 4)", [[A, C], [A, D], [B, C], [B, D]]),
        ("geo.alt <= -1.5e3", [[(("geo", "alt"), "<=", -1500.0)]]),
        ("`user.name`.`a``b` <> ''", [[(("user.name", "a`b"), "!=", "")]]),
        ("a in ('x', 2,true , false)", [[(("a",), "in", ["x", 2, True, False])]]),
        ("a not in (.5)", [[(("a",), "not in", [0.5])]]),
        ("a is null or a is not null", [[(("a",), "is", None)], [(("a",), "is not", None)]]),
        ("s = 'it''s' and t = \"'\" and u = 'say \"so\"'", None),
        ("größe_1 >= +3 and first-name != 'x'", None),
        ("s like 'ab%'", [[(("s",), ">=", "ab"), (("s",), "<", "ac")]]),
        (r"s like '50\% \_\\%'", [[(("s",), ">=", "50% _\\"), (("s",), "<", "50% _]")]]),
        ("_cb_key like 'hä%'", [[(("_cb_key",), ">=", "hä".encode()), (("_cb_key",), "<", "hå".encode())]]),
        ("s like '%'", [[(("s",), ">=", "")]]),
        ("s like '\ud7ff%'", [[(("s",), ">=", "\ud7ff"), (("s",), "<", "\ue000")]]),
        ("s like 'a\U0010ffff%'", [[(("s",), ">=", "a\U0010ffff"), (("s",), "<", "b")]]),
        ("n = 18446744073709551615", [[(("n",), "==", 2**64 - 1)]]),
    ],
)
def test_what_it_means(text: str, means: list[list[Any]] | None) -> None:
    found = filters_of(text)
    assert make_filters(found), "filters= takes it"
    if means is not None:
        assert found == means
        assert repr(found) == repr(means), "1 is not 1.0, nor True"


@pytest.mark.parametrize(
    ("text", "at", "what"),
    [
        ("", None, "the name of a field is expected"),
        ("  ", None, "the name of a field is expected"),
        ("type = hotel and x = 1", 7, "text stands in quotes: 'hotel'"),
        ("price >", None, "a value is expected"),
        ("price > > 3", 8, "a value is expected"),
        ("price 50", 6, "an operator is expected"),
        ("50 < price", 0, "the name of a field is expected"),
        ("a = null", 4, "is null"),
        ("a is 3", 5, "'null' or 'not null' is expected"),
        ("a not = 3", 6, "'in' is expected"),
        ("not a = 3", 0, "the name of a field is expected"),
        ("a in 3", 5, "'(' is expected"),
        ("a in ()", 6, "a value is expected"),
        ("a in (1 2)", 8, "')' is expected"),
        ("(a = 1", None, "')' is expected"),
        ("a = 1)", 5, "'and', 'or' or the end is expected"),
        ("a = 1 b = 2", 6, "'and', 'or' or the end is expected"),
        ("a = 'x", 4, "this quote is not closed"),
        ("`a = 1", 0, "this quote is not closed"),
        ("a = 1; drop", 5, "this is not understood"),
        ("a = 12abc", 4, "this is not understood"),
        ("a = 1e999", 4, "this number is too large"),
        ("a = " + "9" * 1000, 4, "this number is too large"),
        ("a like 'x'", 7, "whose only % is its end"),
        ("a like 'x_y%'", 7, "whose only % is its end"),
        ("a like 3", 7, "whose only % is its end"),
        ("__import__('os')", 10, "an operator is expected"),
        ("京都 = '京' and b = c", 17, "text stands in quotes: 'c'"),
        ("x" * 60 + " = \x1b", 63, "this is not understood"),
        ("(" * 51 + "a = 1", 51, "50 parentheses"),
        (" and ".join(["(a = 1 or b = 2)"] * 10), None, "more than 1000 alternatives"),
    ],
)
def test_where_it_is_wrong(text: str, at: int | None, what: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError) as caught:
        filters_of(text)
    told, shown, pointer = str(caught.value).split("\n")
    assert what in told
    at = len(text) if at is None else at
    assert told.endswith("at the end" if at == len(text) else f"at character {at + 1}")
    assert shown.isprintable()
    wide = sum(letter in "京都" for letter in shown[: len(pointer)])
    place = len(pointer) - 1 - wide
    assert shown[place : place + 5] == text[at : at + 5].replace("\x1b", " ")


def test_the_command_line_shows_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["read", "couchbase://nowhere/b", "--where", "type = hotel and price > 50"])
    assert exit_.value.code == 2
    *_, told, shown, pointer = capsys.readouterr().err.splitlines()
    assert told.endswith("argument --where: text stands in quotes: 'hotel', at character 8")
    assert (shown, pointer) == ("  type = hotel and price > 50", "         ^")


@given(st.text(st.sampled_from(string.printable + "京é\U0010ffff"), max_size=40))
def test_any_text_is_filters_or_an_error(text: str) -> None:
    try:
        found = filters_of(text)
    except argparse.ArgumentTypeError:
        return
    assert all(found)


# --- and it selects what it says

OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
COMPARISONS = st.tuples(st.sampled_from("ab"), st.sampled_from([*OPERATORS]), st.integers(0, 3))
TREES = st.recursive(
    COMPARISONS,
    lambda trees: st.tuples(st.sampled_from(["and", "or"]), st.lists(trees, min_size=2, max_size=3)),
    max_leaves=6,
)


def written(tree: Any) -> str:
    if len(tree) == 3:
        return "{} {} {}".format(*tree)
    word, parts = tree
    return "(" + f" {word} ".join(map(written, parts)) + ")"


def holds(tree: Any, document: dict[str, int]) -> bool:
    if len(tree) == 3:
        field, sign, value = tree
        return OPERATORS[sign](document[field], value)
    word, parts = tree
    return (all if word == "and" else any)(holds(part, document) for part in parts)


@given(TREES)
def test_its_alternatives_are_equal_to_it(tree: Any) -> None:
    groups = filters_of(written(tree))
    signs = {**OPERATORS, "==": operator.eq}
    for a in range(-1, 5):
        for b in range(-1, 5):
            document = {"a": a, "b": b}
            passed = any(
                all(signs[op](document[field[0]], value) for field, op, value in group) for group in groups
            )
            assert passed == holds(tree, document)


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    names = ["", "a", "ab", "ab%", "abc", "ab\uffff", "ab\U0010ffff", "ac", "b", "Ab"]
    with LocalCluster(vbuckets=4) as cluster:
        for number, name in enumerate(names):
            cluster.upsert(f"hotel_{number}", {"name": name, "price": number * 10})
        cluster.upsert("hotelx", {"name": 5})
        cluster.upsert("mötel", {"price": "dear"})
        yield cluster


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("name like 'ab%'", "2 3 4 5 6"),
        (r"name like 'ab\%%'", "3"),
        ("name like '%'", "0 1 2 3 4 5 6 7 8 9"),
        (r"_cb_key like 'hotel\_%' and price >= 80", "8 9"),
        ("price in (10, 30, 'dear') and name is not null", "1 3"),
        ("name = 'a' or (price > 60 and price < 80)", "1 7"),
    ],
)
def test_it_selects(cluster: LocalCluster, text: str, keys: str) -> None:
    found = scan_bucket(cluster, filters=filters_of(text)).to_arrow()["_cb_key"].to_pylist()
    assert sorted(found) == [f"hotel_{number}" for number in keys.split()]


def test_keys_by_their_beginning(cluster: LocalCluster) -> None:
    found = scan_bucket(cluster, filters=filters_of("_cb_key like 'mö%'"), keys_only=True).to_arrow()
    assert found["_cb_key"].to_pylist() == ["mötel"]


def test_read_and_snapshots_take_it(
    cluster: LocalCluster, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PW", cluster.password)
    login = [cluster.connection_string, "--user", cluster.username, "--password-env", "PW"]
    where = ["--where", "price > 70 and name is not null"]
    assert main(["read", *login, *where, "--json", "--no-progress"]) == 0
    folder = str(tmp_path / "copy")
    assert main(["snapshot", "write", *login, folder, *where, "--json", "--no-progress"]) == 0
    assert main(["snapshot", "read", folder, "--where", "price > 80", "--json"]) == 0
    lines = capfd.readouterr().out.split("{\n")
    read, (result, _, last) = lines[0], lines[1].partition("}\n")
    assert sorted(json.loads(line)["price"] for line in read.splitlines()) == [80, 90]
    assert '"upserted": 2' in result
    assert json.loads(last)["price"] == 90
