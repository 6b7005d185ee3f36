"""What is remembered of values, without any parser."""

from itertools import permutations

import pyarrow as pa
import pytest

from cbframe.arrow.documents.facts import Facts, Huge, MinusZero, load
from cbframe.arrow.documents.plan import Policy, plan_of


def learned(*documents: str, limit: int = 100) -> Facts:
    facts = Facts()
    for document in documents:
        facts.learn(load(document.encode()), limit)
    return facts


def test_load_keeps_what_json_alone_would_lose() -> None:
    document = load(b'{"a":-0,"b":9223372036854775808,"c":1e400,"d":9223372036854775807,"a":-0}')
    assert isinstance(document["a"], MinusZero)
    assert str(float(document["a"])) == "-0.0"
    assert document["b"] == 2**63
    assert document["d"] == 2**63 - 1
    assert isinstance(load(b'{"a":' + b"9" * 100_000 + b"}")["a"], Huge)


def test_only_news_are_news() -> None:
    facts = Facts()
    assert not facts.learn(None, 9)
    for value in (1, -5, 0.5, float("inf"), "x", True):
        assert facts.learn(value, 9), value
        assert not facts.learn(value, 9), value
    assert not facts.learn(-4, 9)
    assert facts.learn([], 9)
    assert facts.opaque
    assert not facts.learn([{"a": 1}], 9)


@pytest.mark.parametrize(
    "documents",
    [
        ['{"a":1}', '{"b":{"c":[1.5]}}', '{"b":{"c":["x"]}}', '{"b":{"c":[null,{}]}}'],
        ['{"a":1,"b":2}', '{"c":{"x":1,"y":2}}', '{"a":[{"z":1}]}', "{}"],
        ["9007199254740993", "0.5", "-7", "null"],
        ['{"k1":{"x":1}}', '{"k2":{"x":1}}', '{"k3":{"y":[]}}', '"scalar"'],
    ],
)
def test_the_order_does_not_matter(documents: list[str]) -> None:
    facts = [learned(*order, limit=2) for order in permutations(documents)]
    assert all(one == facts[0] for one in facts)


def test_what_is_opaque_keeps_nothing_inside() -> None:
    facts = learned('{"x":[1]}', "1")
    assert facts.opaque
    assert facts.fields == {}
    assert facts.families() == ("number", "object")


def test_of_too_many_names_only_the_values_are_known() -> None:
    facts = learned(*(f'{{"k{n}":{{"x":[{n}]}}}}' for n in range(102)))
    assert facts.fields == {}
    assert facts.values == learned(*(f'{{"x":[{n}]}}' for n in range(102)))
    assert facts.families() == ("object",)


def test_the_columns_with_most_fields_give_way_until_it_is_few_enough() -> None:
    columns = {
        "a": learned('{"x":1,"y":{"z":1}}'),
        "b": learned('{"x":1,"y":1}'),
        "c": learned("1"),
    }
    plan = plan_of(columns, Policy(max_members=4))
    assert {name: (member.how, member.held) for name, member in plan.members.items()} == {
        "a": ("json", True),
        "b": ("plain", False),
        "c": ("plain", False),
    }
    assert plan.types["b"] == pa.struct([("x", pa.int64()), ("y", pa.int64())])
