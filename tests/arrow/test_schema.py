"""The order of types, without any parser: documents in, columns out."""

from collections import Counter

import pytest

from cbframe.arrow.schema import Beyond, MinusZero, Mismatch, Node, Schema, load


def learned(*documents: str, max_fields: int = 100) -> Schema:
    schema = Schema(max_fields)
    for document in documents:
        schema.learn(load(document.encode()))
    return schema


def test_load_keeps_what_json_alone_would_lose() -> None:
    document = load(b'{"a":-0,"b":9223372036854775808,"c":1e400,"d":9223372036854775807,"a":-0}')
    assert isinstance(document["a"], MinusZero)
    assert str(float(document["a"])) == "-0.0"
    assert isinstance(document["b"], Beyond)
    assert document["d"] == 2**63 - 1
    assert isinstance(load(b'{"a":' + b"9" * 100_000 + b"}")["a"], Beyond)


def test_columns_keep_the_order_of_first_appearance() -> None:
    schema = learned('{"b":null,"a":1}', '{"c":{"y":1,"x":[]},"b":true}')
    assert {name: str(kind) for name, kind in schema.typed().items()} == {
        "b": "bool",
        "a": "int64",
        "c": "struct<y: int64, x: list<item: null>>",
    }
    assert not schema.splits


@pytest.mark.parametrize("order", [1, -1])
def test_an_integer_without_exact_double_is_remembered(order: int) -> None:
    node = Node()
    values = [2**53 + 1, 0.5][::order]
    node.widen(values[0], "a")
    with pytest.raises(Mismatch) as raised:
        node.widen(values[1], "a")
    assert raised.value.path == "a"
    assert raised.value.types == Counter({"integer": 1, "double": 1})


def test_the_plan_changes_only_when_a_field_leaves_the_typed_columns() -> None:
    schema = learned('{"a":1,"b":{"c":1}}', '{"b":{"c":1.5,"d":null}}', '{"e":[[]]}')
    assert schema.plan == 0
    schema.learn({"a": "x"})
    assert schema.plan == 1
    schema.learn({"a": [], "b": {"c": 1}})
    assert schema.plan == 1
    assert list(schema.typed()) == ["b", "e"]
    assert schema.columns["a"].conflict == ("a", Counter({"integer": 1, "string": 1}))


def test_fields_past_the_limit_overflow() -> None:
    schema = learned('{"a":1,"b":1}', '{"c":1,"a":2}', max_fields=2)
    assert list(schema.columns) == ["a", "b"]
    assert schema.overflow
    assert schema.splits


def test_nested_fields_past_the_limit_take_the_largest_column() -> None:
    schema = learned('{"a":{"x":1,"y":{"z":1}},"b":{"x":1}}', '{"b":{"y":1}}', max_fields=4)
    assert list(schema.typed()) == ["b"]
    assert schema.columns["a"].text
    assert schema.columns["a"].conflict is None
    # The fields that left make room again.
    schema.learn({"b": {"z": 1, "w": 1}})
    assert list(schema.typed()) == ["b"]
    schema.learn({"b": {"v": 1}})
    assert list(schema.typed()) == []
