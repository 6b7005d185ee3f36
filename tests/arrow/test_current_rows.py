"""Which rows of a read still count at its end."""

from __future__ import annotations

import random
import re
from fnmatch import fnmatchcase
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_receivers import D, E, M, m, put

from cbframe import ConfigurationError
from cbframe.arrow import current_rows
from cbframe.arrow.columns import KEY, OPCODE
from cbframe.arrow.current_rows import (
    ARRIVED,
    EXPIRED,
    TRANSACTION_RECORD,
    VERSION,
    CurrentRows,
    KeyFilter,
    KeyPattern,
    LeftOut,
    has_expired,
    key_test,
    newest,
    of_transactions,
)
from cbframe.arrow.receivers import DeferringBatchReceiver
from cbframe.core import COMPILED
from cbframe.wire.constants import Opcode, SnapshotFlag, SystemEventId
from cbframe.wire.messages import SystemEvent


def run(*steps: object) -> list[tuple[str, int]]:
    """What is left after steps: a list is a block; others are what they say, with a vbucket first."""
    receiver = DeferringBatchReceiver()
    play(receiver, *steps)
    arrived = [batch for batch, _ in receiver.take(0)]
    found, *others = (left(receiver, arrived, rows) for rows in (1, 3, 1000))
    assert all(other == found for other in others)
    return found


def left(receiver: DeferringBatchReceiver, arrived: list[pa.RecordBatch], rows: int) -> list[tuple[str, int]]:
    """Documents that count, where they wait in batches of so many rows."""
    numbers = np.repeat(np.arange(len(arrived)), [len(batch) for batch in arrived])
    table = pa.Table.from_batches(arrived, receiver.schema).append_column(ARRIVED, pa.array(numbers))
    batches = table.combine_chunks().to_batches(max_chunksize=rows)
    current = CurrentRows([lambda batch=batch: batch for batch in batches], receiver)  # type: ignore[misc]
    found = []
    for number, heads in enumerate(batches):
        mask = current.mask(number, heads) & (heads["_cb_opcode"].to_numpy() == Opcode.DCP_MUTATION)
        some = heads.filter(pa.array(mask))
        keys, seqnos = some["_cb_key"].to_pylist(), some["_cb_seqno"].to_pylist()
        found += [(key.decode(), seqno) for key, seqno in zip(keys, seqnos, strict=True)]
    return found


def play(receiver: DeferringBatchReceiver, *steps: object) -> None:
    for step in steps:
        match step:
            case ("snapshot", int(vbucket)):
                receiver.snapshot_start(vbucket, 0, 0, 0)
            case ("history", int(vbucket)):
                receiver.snapshot_start(vbucket, 0, 0, SnapshotFlag.DISK | SnapshotFlag.HISTORY)
            case ("duplicates", int(vbucket)):
                receiver.snapshot_start(vbucket, 0, 0, SnapshotFlag.MAY_CONTAIN_DUPLICATE_KEYS)
            case ("rollback", int(vbucket)):
                receiver.rollback(vbucket, 0)
            case ("event", int(vbucket), int(seqno), int(kind), int(cid)):
                event = SystemEvent(vbucket, seqno, kind, 0, "c", b"", 7, 0, cid)
                receiver.system_event(vbucket, event)
            case list():
                put(receiver, *step)


def dropped(vbucket: int, seqno: int, collection: int) -> tuple[object, ...]:
    return "event", vbucket, seqno, int(SystemEventId.DROP_COLLECTION), collection


def created(vbucket: int, seqno: int, collection: int) -> tuple[object, ...]:
    return "event", vbucket, seqno, int(SystemEventId.CREATE_COLLECTION), collection


S0, S1 = ("snapshot", 0), ("snapshot", 1)
R0 = ("rollback", 0)
LATER = [m(0, 3, "a", 8), m(0, 4, "b", 8)]


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([], []),
        ([S0, [m(0, 1, "a"), m(0, 2, "b")]], [("a", 1), ("b", 2)]),
        # a newer version in a later snapshot, in the same block or in another
        ([S0, [m(0, 1, "a")], S0, [m(0, 2, "a")]], [("a", 2)]),
        ([S0, S0, [m(0, 1, "a"), m(0, 2, "a")]], [("a", 2)]),
        ([S0, [m(0, 1, "a"), m(0, 2, "b")], S0, [m(0, 3, "a")]], [("b", 2), ("a", 3)]),
        # a deletion takes the document away, a new mutation brings it back
        ([S0, [(0, 1, "a", D, 0), m(0, 2, "b")]], [("b", 2)]),
        ([S0, [m(0, 1, "a")], S0, [(0, 2, "a", D, 0)]], []),
        ([S0, [m(0, 1, "a")], S0, [(0, 2, "a", E, 0)]], []),
        ([S0, [m(0, 1, "a")], S0, [(0, 2, "a", D, 0)], S0, [m(0, 3, "a")]], [("a", 3)]),
        # the same key in another vbucket's block or another collection is another document
        ([S0, S0, [m(0, 1, "a"), m(0, 2, "a", 8)]], [("a", 1), ("a", 2)]),
        ([S0, S0, [m(0, 1, "a", 8), m(0, 2, "a", 9), m(0, 3, "a", 8)]], [("a", 2), ("a", 3)]),
        # a deletion in one vbucket while another has two snapshots
        ([S0, S1, S1, [(0, 1, "a", D, 0), m(1, 1, "b"), m(1, 2, "b")]], [("b", 2)]),
        # all before a rollback is rolled back, in its vbucket only
        ([S0, S1, [m(0, 1, "a"), m(1, 1, "b")], R0], [("b", 1)]),
        ([S0, [m(0, 1, "a"), m(0, 2, "x")], R0, S0, [m(0, 1, "a")]], [("a", 1)]),
        ([S0, [m(0, 5, "a")], R0, S0, [m(0, 2, "a")]], [("a", 2)]),
        ([S0, [m(0, 5, "a")], R0, S0, [(0, 2, "a", D, 0)]], []),
        ([S0, [m(0, 5, "a")], R0, S0, [m(0, 4, "a")], R0, S0, [m(0, 3, "a")]], [("a", 3)]),
        ([R0, S0, [m(0, 1, "a")]], [("a", 1)]),
        # a snapshot may say that it holds several versions
        ([("history", 0), [m(0, 1, "a"), m(0, 2, "a")]], [("a", 2)]),
        ([("duplicates", 0), [m(0, 1, "a"), m(0, 2, "a"), (0, 3, "a", D, 0), m(0, 4, "b")]], [("b", 4)]),
        # a collection that is dropped in one vbucket is gone from all of them
        (
            [S0, S1, [m(0, 1, "a", 8), m(0, 2, "b", 9), m(1, 1, "c", 8)], dropped(0, 3, 8), [m(0, 4, "d")]],
            [("b", 2), ("d", 4)],
        ),
        ([S0, [m(0, 1, "a")], dropped(0, 2, 0)], []),
        # one that is created is new
        ([S0, [m(0, 1, "a")], created(0, 2, 8), [m(0, 3, "b", 8)]], [("a", 1), ("b", 3)]),
        # so what it had before is gone: in this vbucket, and there only
        (
            [
                S0,
                S1,
                [m(0, 1, "a", 8), m(0, 2, "b", 9), m(1, 1, "c", 8)],
                created(0, 3, 8),
                [m(0, 4, "d", 8)],
            ],
            [("b", 2), ("c", 1), ("d", 4)],
        ),
        # what was rolled back does not come to count by it: the events come again, elsewhere
        (
            [S0, [m(0, 1, "x")], created(0, 6, 8), [m(0, 7, "a", 8)], R0, S0, created(0, 1, 8), LATER],
            [("a", 3), ("b", 4)],
        ),
        # the version before it does not count either where there are several
        ([S0, S0, [m(0, 1, "a", 8)], created(0, 3, 8), [m(0, 4, "a", 8)], created(0, 5, 8)], []),
    ],
)
def test_what_survives(steps: list[object], expected: list[tuple[str, int]]) -> None:
    assert run(*steps) == expected


@pytest.mark.parametrize("seed", range(40))
def test_against_a_plain_dictionary(seed: int) -> None:
    rng = random.Random(seed)
    steps: list[object] = []
    expected: dict[tuple[int, int, str], int] = {}
    seqnos = dict.fromkeys(range(3), 0)
    for _ in range(rng.randint(1, 30)):
        action = rng.random()
        vbucket = rng.randrange(3)
        if action < 0.1:
            steps.append(("rollback", vbucket))
            expected = {name: seqno for name, seqno in expected.items() if name[0] != vbucket}
            seqnos[vbucket] = 0
            continue
        steps.append(("snapshot", vbucket))
        items = []
        for key in rng.sample("abcdef", rng.randint(1, 6)):
            seqnos[vbucket] += rng.randint(1, 3)
            opcode, collection = rng.choice((M, M, M, D, E)), rng.choice((0, 8))
            # A key lives in one vbucket only.
            name = f"{key}{vbucket}"
            items.append((vbucket, seqnos[vbucket], name, opcode, collection))
            if opcode == M:
                expected[vbucket, collection, name] = seqnos[vbucket]
            else:
                expected.pop((vbucket, collection, name), None)
        steps.append(items)
    found = run(*steps)
    assert sorted(found) == sorted((name, seqno) for (_, _, name), seqno in expected.items())


rows = st.lists(
    st.tuples(
        st.sampled_from([b"", b"a", b"b", b"ab", b"a\0", b"k" * 40]),
        st.sampled_from([0, 8, 2**32 - 1]),
        st.sampled_from([0, 1, 2, 2**63, 2**64 - 1]),
    ),
    max_size=30,
)


@given(some=rows, cut=st.integers(0, 30))
def test_the_newest_of_each_document(some: list[tuple[bytes, int, int]], cut: int) -> None:
    """As a dictionary finds them, with both cores; of versions with one seqno it is the last."""
    best: dict[tuple[bytes, int], int] = {}
    for row, (key, collection, seqno) in enumerate(some):
        before = best.setdefault((key, collection), row)
        if seqno >= some[before][2]:
            best[key, collection] = row
    kinds = (pa.binary(), pa.uint32(), pa.uint64())
    columns = zip(VERSION, kinds, strict=True)
    arrays = {
        name: pa.chunked_array([pa.array(part, kind) for part in (values[:cut], values[cut:])], kind)
        for (name, kind), values in zip(columns, [[row[i] for row in some] for i in range(3)], strict=True)
    }
    for core in dict.fromkeys((None, COMPILED)):
        with patch.object(current_rows, "COMPILED", core):
            assert np.flatnonzero(newest(pa.table(arrays))).tolist() == sorted(best.values())


# --- documents that a read leaves out: no older version takes their place


def test_keys_of_transactions() -> None:
    keys = [b"_txn:atr-1", b"_txn:", b"_txn", b"x_txn:", b"_Txn:a", b"", b"\xff_txn:", b"_txn:\xff"]
    want = [True, True, False, False, False, False, False, True]
    for array in (pa.array(keys), pa.chunked_array([keys[:3], keys[3:]])):
        assert of_transactions(array).tolist() == want
    assert of_transactions(pa.array(["_txn:a", "a", "_tx"])).tolist() == [True, False, False]
    assert of_transactions(pa.array([], pa.binary())).tolist() == []


def test_expiries() -> None:
    expiry = np.array([0, 1, 99, 100, 101, 2**32 - 1], np.uint32)
    assert has_expired(expiry, 100).tolist() == [False, True, True, False, False, False]
    assert not has_expired(expiry, 0).any()
    # Seconds go beyond 32 bits some day.
    assert has_expired(expiry, 2**33).tolist() == [False, True, True, True, True, True]


@pytest.mark.parametrize("mark", [EXPIRED, TRANSACTION_RECORD])
def test_a_marked_version_hides_older_ones(mark: int) -> None:
    """A marked version that is deleted later is no document that was left out."""
    receiver = DeferringBatchReceiver()
    receiver.snapshot_start(3, 0, 4, 1)
    put(receiver, m(3, 1, "a"), m(3, 2, "b"), m(3, 3, "c"))
    receiver.snapshot_start(3, 5, 7, 1)
    put(receiver, m(3, 5, "a"), m(3, 6, "c"), (3, 7, "c", E, 0))
    batches = [
        _marked(batch, mark, number) if number else batch.append_column(ARRIVED, pa.array([0] * len(batch)))
        for number, (batch, _) in enumerate(receiver.take(0))
    ]
    current = CurrentRows([lambda batch=batch: batch for batch in batches], receiver)  # type: ignore[misc]
    table = pa.concat_tables(
        pa.Table.from_batches([batch]).filter(
            pa.array(current.mask(number, batch) & (batch[OPCODE].to_numpy() != Opcode.DCP_EXPIRATION))
        )
        for number, batch in enumerate(batches)
    )
    assert dict(zip(table[KEY].to_pylist(), table[OPCODE].to_pylist(), strict=True)) == {
        b"a": mark,
        b"b": Opcode.DCP_MUTATION,
    }
    left_out = LeftOut.of(table[OPCODE].to_numpy())
    assert left_out == (LeftOut(1, 0) if mark == EXPIRED else LeftOut(0, 1))
    assert left_out + LeftOut(2, 3) == LeftOut(2 + left_out.expired, 3 + left_out.transaction_records)


def _marked(batch: pa.RecordBatch, mark: int, number: int) -> pa.RecordBatch:
    opcode = batch.column(OPCODE).to_numpy()
    marked = np.where(opcode == Opcode.DCP_MUTATION, np.uint8(mark), opcode)
    columns = {name: batch.column(name) for name in batch.schema.names} | {OPCODE: pa.array(marked)}
    marked_batch = pa.RecordBatch.from_arrays([*columns.values()], schema=batch.schema)
    return marked_batch.append_column(ARRIVED, pa.array([number] * len(batch)))


def test_marks_are_no_opcodes() -> None:
    opcodes = np.array([*Opcode], np.uint16)
    opcodes = opcodes[opcodes < 256].astype(np.uint8)
    assert not {EXPIRED, TRANSACTION_RECORD} & {*opcodes.tolist()}


# --- patterns of keys: what matches is what Python's own modules find

KEYS = [
    b"hotel::1",
    b"hotel::1::eu",
    b"hotel::\xff::eu",
    "hôtel::1".encode(),
    b"Hotel::1",
    b"motel::1",
    b"hotel::",
    b"a*b",
    b"a\nb",
    b"a[b]c",
    b"a^b\\c",
    b"",
    b"tail\n",
    b"\xc3",
]


def found(pattern: KeyPattern | None, keys: list[bytes] = KEYS, prefix: bytes | None = None) -> list[bytes]:
    # In the middle of a batch: Arrow's arrays have offsets.
    batch = pa.RecordBatch.from_arrays([pa.array([b"hotel::0", *keys, b"hotel::2"], pa.binary())], [KEY])
    kept = KeyFilter(prefix, pattern, drops_transactions=False).reduce(batch.slice(1, len(keys)))
    kept.validate(full=True)
    return kept.column(KEY).to_pylist()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("glob", "expected"),
    [
        ("hotel::*", [b"hotel::1", b"hotel::1::eu", b"hotel::\xff::eu", b"hotel::"]),
        ("hotel::*::eu", [b"hotel::1::eu", b"hotel::\xff::eu"]),
        ("h?tel::1", [b"hotel::1", "hôtel::1".encode()]),
        ("[hm]otel::1", [b"hotel::1", b"motel::1"]),
        ("[!h]otel::1", [b"Hotel::1", b"motel::1"]),
        ("[g-i]?tel::?", [b"hotel::1", "hôtel::1".encode()]),
        ("h[ôx]tel*", ["hôtel::1".encode()]),
        ("hotel::1", [b"hotel::1"]),
        ("a[*]b", [b"a*b"]),
        ("a?b", [b"a*b", b"a\nb"]),
        ("a[[]b[]]c", [b"a[b]c"]),
        ("a[]^\\]b[!x]c", [b"a^b\\c"]),
        ("*\n", [b"tail\n"]),
        ("*", KEYS),
        ("**", KEYS),
        ("a[b", []),
    ],
)
def test_globs(glob: str, expected: list[bytes]) -> None:
    assert found(glob) == expected


PIECES = st.sampled_from(["a", "b", "é", "*", "?", "[", "]", "!", "-", "^", "\\", ".", "\n", "{", "|", "$"])


@given(
    st.lists(PIECES, min_size=1, max_size=7).map("".join), st.lists(st.lists(PIECES, max_size=5).map("".join))
)
def test_globs_are_those_of_python(glob: str, texts: list[str]) -> None:
    try:
        kept = found(glob, [text.encode() for text in texts])
    except ConfigurationError:
        # A range that goes backwards: Python takes it for an empty one.
        assert re.search(r"\[.*-", glob, re.DOTALL)
        return
    assert [each.decode() for each in kept] == [text for text in texts if fnmatchcase(text, glob)]


@pytest.mark.parametrize(
    "pattern",
    [
        re.compile(rb"^hotel::\d+$"),
        re.compile(rb"otel"),
        re.compile(rb"hotel", re.IGNORECASE),
        re.compile(rb"a.b"),
        re.compile(rb"a.b", re.DOTALL),
        re.compile(rb"^b", re.MULTILINE),
        re.compile(rb"\xff"),
        re.compile(b"\xff"),
        re.compile(rb"[\x80-\xff]"),
        re.compile(rb"(?P<kind>\w+)::\d(?:::eu)?\b"),
        re.compile(rb"\A\w{3,5}::"),
    ],
)
def test_expressions_of_bytes_find_what_python_finds(pattern: re.Pattern[bytes]) -> None:
    assert found(pattern) == [key for key in KEYS if pattern.search(key)]


@pytest.mark.parametrize(
    "pattern",
    [
        re.compile(r"^h.tel::\d+$"),
        re.compile("ô"),
        re.compile(r"^[a-zô]+::"),
        re.compile(r"a.b", re.DOTALL | re.ASCII),
    ],
)
def test_expressions_of_text_find_what_python_finds(pattern: re.Pattern[str]) -> None:
    sound = [key for key in KEYS if b"\xff" not in key and key != b"\xc3"]
    assert found(pattern, sound) == [key for key in sound if pattern.search(key.decode())]
    # Of what is no UTF-8, the text in it is looked at.
    assert b"hotel::\xff::eu" in found(re.compile(r"^hotel::.*eu$|::eu$"))


@pytest.mark.parametrize(
    "pattern",
    [
        re.compile("secret(?=x)"),
        re.compile(r"(secret)\1"),
        re.compile("secret x", re.VERBOSE),
        re.compile(rb"secret", re.LOCALE),
        re.compile("secret++"),
        # RE2 takes these for something else than Python does.
        re.compile("secre{,2}t"),
        "secret[z-a]",
        "secret\ud800",
    ],
)
def test_what_cannot_be_looked_for_is_refused(pattern: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        key_test(pattern)
    assert caught.value.hint is not None
    assert "secret" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_a_pattern_and_a_prefix() -> None:
    assert found("*::eu", prefix=b"hotel::1") == [b"hotel::1::eu"]
    assert found(None, prefix=b"a") == [key for key in KEYS if key.startswith(b"a")]
    assert found(None) == KEYS
    assert key_test("hotel::*") == (b"hotel::", None)
    assert key_test("hotel::*::eu")[0] == b"hotel::"
    assert key_test(re.compile("^hotel")) == (b"", "^hotel")
