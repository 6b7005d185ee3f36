"""Checkpoints: exact, whole on the disk, and refused where they do not belong."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbframe import Checkpoint, ConfigurationError, VBucketOffset
from cbframe.cluster.collections_manifest import CollectionName

U64 = st.integers(0, 2**64 - 1)


@st.composite
def offsets(draw: st.DrawFn) -> VBucketOffset:
    start, seqno, end = sorted(draw(st.lists(U64, min_size=3, max_size=3)))
    return VBucketOffset(
        seqno,
        start,
        end,
        tuple(draw(st.lists(st.tuples(U64, U64), max_size=3))),
        draw(U64),
        draw(U64),
        tuple(sorted(draw(st.lists(st.integers(0, seqno), max_size=4)), reverse=True)),
        draw(st.integers(0, seqno)),
    )


CHECKPOINTS = st.builds(
    Checkpoint,
    st.text(max_size=10),
    st.text(max_size=40),
    st.dictionaries(st.integers(0, 1023), offsets(), max_size=5),
    st.none() | st.text(max_size=10),
    st.none() | st.lists(st.text(max_size=10), max_size=3).map(tuple),
    st.none() | st.binary(max_size=10),
)
ONE = Checkpoint("b", "u", {7: VBucketOffset(2**63 + 1, 5, 2**64 - 1, ((2**64 - 1, 9), (3, 0)))})


@given(CHECKPOINTS)
def test_json_and_back(checkpoint: Checkpoint) -> None:
    assert Checkpoint.from_json(checkpoint.to_json()) == checkpoint


def test_numbers_are_text() -> None:
    (fields,) = json.loads(ONE.to_json())["vbuckets"].values()

    def numbers(value: Any) -> bool:
        if isinstance(value, list):
            return any(map(numbers, value))
        return isinstance(value, int | float)

    assert not any(map(numbers, fields.values()))
    assert fields["seqno"] == "9223372036854775809"
    assert fields["vbuuid"] == "18446744073709551615"
    assert ONE.as_of == {7: (2**64 - 1, 2**63 + 1)}


def test_names_of_collections() -> None:
    """They are knowledge, and no part of the position; checkpoints of 0.1.0 have none."""
    named = replace(
        ONE, collection_names={8: CollectionName("shop", "orders"), 2**32 - 1: CollectionName("a", "b")}
    )
    read = Checkpoint.from_json(named.to_json())
    assert read.collection_names == named.collection_names
    assert read == ONE
    content = json.loads(named.to_json())
    del content["collection_names"]
    assert Checkpoint.from_json(json.dumps(content)).collection_names == {}
    for wrong in ({"8": ["shop"]}, {"x": ["shop", "orders"]}, {"8": [1, "orders"]}, [8], 8, None):
        content["collection_names"] = wrong
        with pytest.raises(ConfigurationError, match="a field that is not readable"):
            Checkpoint.from_json(json.dumps(content))


def test_a_file_and_back(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.json"
    ONE.save(path)
    assert Checkpoint.load(path) == ONE
    other = replace(ONE, bucket="c")
    other.save(str(path))
    assert Checkpoint.load(str(path)) == other
    with pytest.raises(ConfigurationError, match="nowhere does not exist"):
        ONE.save(tmp_path / "nowhere" / "checkpoint.json")
    assert list(tmp_path.iterdir()) == [path]


def test_a_disk_that_is_full_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "checkpoint.json"
    ONE.save(path)

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        replace(ONE, bucket="c").save(path)
    assert Checkpoint.load(path) == ONE
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("cut", range(0, len(ONE.to_json()), 7))
def test_one_that_is_cut(cut: int) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Checkpoint.from_json(ONE.to_json()[:cut])
    assert caught.value.hint


def changed(path: list[str], value: Any) -> str:
    content = json.loads(ONE.to_json())
    place = content
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    return json.dumps(content)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["[]", "{}"], "and no checkpoint"),
        (["[" * 100_000], "cut, or no JSON"),
        ([changed(["version"], 2)], "has version 2; known is 1"),
        (
            [
                *(changed(["bucket"], 1), changed(["vbuckets"], []), changed(["vbuckets"], {"1024": {}})),
                changed(["key_prefix"], "x"),
            ],
            "a field that is not readable",
        ),
        (
            [
                changed(["vbuckets", "7"], {}),
                *(changed(["vbuckets", "7", "seqno"], seqno) for seqno in (9.2e18, 9, "-1", str(2**64), "٣")),
                changed(["vbuckets", "7", "failover_log"], [["1"]]),
            ],
            "the position of a vbucket is not readable",
        ),
        ([changed(["vbuckets", "7", "seqno"], "4")], "outside of its snapshot"),
        (
            [changed(["vbuckets", "7", "base"], str(2**64 - 1))],
            "before seqno 18446744073709551615, where the stream began",
        ),
    ],
)
def test_what_is_none(texts: list[str], message: str) -> None:
    for text in texts:
        with pytest.raises(ConfigurationError, match=message) as caught:
            Checkpoint.from_json(text)
        assert caught.value.hint


def test_a_position_that_cannot_be_is_named_with_its_file_and_vbucket(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.json"
    path.write_text(changed(["vbuckets", "7", "seqno"], "4"))
    with pytest.raises(
        ConfigurationError, match=r"checkpoint\.json.* seqno 4, outside of its snapshot"
    ) as caught:
        Checkpoint.load(path)
    assert caught.value.vbucket == 7


def test_one_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read: No such file"):
        Checkpoint.load(tmp_path / "nothing.json")
    with pytest.raises(ConfigurationError, match="has no changes"):
        Checkpoint.load(tmp_path)


def test_other_offsets() -> None:
    offset = VBucketOffset(1, 1, 1)
    assert ONE.updated({3: offset}).offsets == {7: ONE.offsets[7], 3: offset}
    assert list(ONE.offsets) == [7]
    assert repr(ONE) == "<Checkpoint of 'b': 1 vbuckets, 9,223,372,036,854,775,809 changes>"
