from __future__ import annotations

import random
import struct
from collections.abc import Callable

import pytest

from cbframe.local import subdocument
from cbframe.local.subdocument import RefusedError, parse_path
from cbframe.wire.constants import Opcode, Status
from cbframe.wire.framing import request

from .client import Client

TEXT = ' {"a" : {"b": 1, "c.d":[ 10 ,{"e":"x"}, [] ]} ,"n":-5, "empty": {}}'


def test_paths() -> None:
    assert parse_path("") == []
    assert parse_path("a") == ["a"]
    assert parse_path("a.b[0][-1].c") == ["a", "b", 0, -1, "c"]
    assert parse_path("`a.b`.c") == ["a.b", "c"]
    assert parse_path("[2]") == [2]


@pytest.mark.parametrize("path", ["a..b", ".", "a[", "a[x]", "a]b", "`a", "a."])
def test_what_is_no_path(path: str) -> None:
    with pytest.raises(RefusedError) as caught:
        parse_path(path)
    assert caught.value.status is Status.SUBDOC_PATH_EINVAL


def test_reading() -> None:
    assert subdocument.read(TEXT, "a.b") == "1"
    assert subdocument.read(TEXT, "a.`c.d`[1].e") == '"x"'
    assert subdocument.read(TEXT, "a.`c.d`[-1]") == "[]"
    assert subdocument.count(TEXT, "a.`c.d`") == 3
    assert subdocument.count(TEXT, "") == 3


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda t: subdocument.put(t, "b", "2", add=True, create=False), '{"a":[1, 2] ,"o":{},"b":2}'),
        (lambda t: subdocument.put(t, "a", "2", add=False, create=False), '{"a":2 ,"o":{}}'),
        (
            lambda t: subdocument.put(t, "o.x.y", "2", add=True, create=True),
            '{"a":[1, 2] ,"o":{"x":{"y":2}}}',
        ),
        (lambda t: subdocument.delete(t, "a"), '{"o":{}}'),
        (lambda t: subdocument.delete(t, "o"), '{"a":[1, 2]}'),
        (lambda t: subdocument.delete(t, "a[-1]"), '{"a":[1] ,"o":{}}'),
        (lambda t: subdocument.insert(t, "a[2]", "9"), '{"a":[1, 2,9] ,"o":{}}'),
        (lambda t: subdocument.push(t, "q", "1", first=True, create=True), '{"a":[1, 2] ,"o":{},"q":[1]}'),
        (lambda t: subdocument.add_number(t, "a[0]", "-3", create=False)[0], '{"a":[-2, 2] ,"o":{}}'),
    ],
)
def test_changing(change: Callable[[str], str], text: str) -> None:
    assert change('{"a":[1, 2] ,"o":{}}') == text


@pytest.mark.parametrize(
    ("change", "status"),
    [
        (lambda: subdocument.read(TEXT, "a.x"), Status.SUBDOC_PATH_ENOENT),
        (lambda: subdocument.read(TEXT, "n.x"), Status.SUBDOC_PATH_MISMATCH),
        (lambda: subdocument.read(TEXT, "a[0]"), Status.SUBDOC_PATH_MISMATCH),
        (lambda: subdocument.put(TEXT, "x.y", "1", add=False, create=False), Status.SUBDOC_PATH_ENOENT),
        (lambda: subdocument.put(TEXT, "n", "1", add=True, create=False), Status.SUBDOC_PATH_EEXISTS),
        (lambda: subdocument.put(TEXT, "n", "1 2", add=False, create=False), Status.SUBDOC_VALUE_CANTINSERT),
        (lambda: subdocument.delete(TEXT, "x"), Status.SUBDOC_PATH_ENOENT),
        (lambda: subdocument.insert(TEXT, "a.`c.d`[9]", "1"), Status.SUBDOC_PATH_ENOENT),
        (lambda: subdocument.add_unique(TEXT, "a.`c.d`", "1", create=False), Status.SUBDOC_PATH_MISMATCH),
        (lambda: subdocument.add_unique("[1,2]", "", "2", create=False), Status.SUBDOC_PATH_EEXISTS),
        (lambda: subdocument.add_number(TEXT, "n", "0", create=False), Status.SUBDOC_DELTA_EINVAL),
        (lambda: subdocument.add_number(TEXT, "a", "1", create=False), Status.SUBDOC_PATH_MISMATCH),
    ],
)
def test_refusals(change: Callable[[], object], status: Status) -> None:
    with pytest.raises(RefusedError) as caught:
        change()
    assert caught.value.status is status


@pytest.mark.parametrize("seed", range(6))
def test_every_request_is_answered(kv: Client, seed: int) -> None:
    """Odd requests, and odd documents, do not silence the node."""
    rng = random.Random(seed)
    paths = [b"", b"a", b"a.b", b"[0]", b"a[-1]", b"$document", b"$x", b"_s.a", b"\xff", b"a\0b", b"[", b"`"]
    values = [b"", b"1", b"-1", b'{"a":1}', b"[1]", b"\xff", b'"\\ud800"', b"NaN", b"1e999"]
    values += [b'"${Mutation.CAS}"']
    bodies = [
        *values,
        b'{"a":[1,"\\ud800"]}',
        b'[{"a":1}]',
        b"[" * 3000 + b"]" * 3000,
        '"é"'.encode("utf-16"),
    ]
    for opaque in range(400):
        extras = struct.pack(">II", 0, 0)
        if opaque % 10 == 0:
            kv.operate(Opcode.SET, key=b"\0k", extras=extras, value=rng.choice(bodies))
        change = rng.random() < 0.6
        value = b""
        for _ in range(rng.randrange(4)):
            path, new = rng.choice(paths), rng.choice(values)
            op = rng.choice([*range(0xC5, 0xD3), 0, 1, 4])
            flags = rng.choice([0, 0, 1, 4, 5, 0x14])
            head = struct.pack(">BBH", op, flags, len(path))
            value += head + (struct.pack(">I", len(new)) + path + new if change else path)
        if rng.random() < 0.05:
            value = value[:-1]
        opcode = Opcode.SUBDOC_MULTI_MUTATION if change else Opcode.SUBDOC_MULTI_LOOKUP
        answer = kv.call(request(opcode, opaque=opaque, key=b"\0k", value=value))
        assert answer.opcode == opcode
        kv.operate(Opcode.GET, key=b"\0k")
