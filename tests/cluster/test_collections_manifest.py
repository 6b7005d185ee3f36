"""Scopes, collections and their numbers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cbframe.cluster.collections_manifest import CollectionName, CollectionsManifest
from cbframe.errors import ClusterMapError, ConfigurationError

ANSWER: dict[str, Any] = {
    "uid": "1f",
    "scopes": [
        {"name": "_default", "uid": "0", "collections": [{"name": "_default", "uid": "0", "maxTTL": 0}]},
        {
            "name": "inventory",
            "uid": "8",
            "collections": [{"name": "hotel", "uid": "a"}, {"name": "airline", "uid": "FFFFFFFF"}],
        },
        {"name": "empty", "uid": "9", "collections": []},
    ],
}


@pytest.mark.parametrize("form", [dict, json.dumps, lambda answer: json.dumps(answer).encode()])
def test_parse(form: Any) -> None:
    manifest = CollectionsManifest.parse(form(ANSWER))
    assert manifest.uid == 0x1F
    assert manifest.scopes == {"_default": 0, "inventory": 8, "empty": 9}
    assert manifest.collections == {
        0: CollectionName("_default", "_default"),
        10: CollectionName("inventory", "hotel"),
        0xFFFFFFFF: CollectionName("inventory", "airline"),
    }
    assert str(manifest.collections[10]) == "inventory.hotel"


def test_lookup() -> None:
    manifest = CollectionsManifest.parse(ANSWER)
    assert manifest.id_of("_default._default") == 0
    assert manifest.id_of("inventory.hotel") == 10
    assert manifest.scope_id("inventory") == 8
    assert list(manifest.collections_of("inventory")) == [10, 0xFFFFFFFF]
    assert manifest.collections_of("empty") == {}


@pytest.mark.parametrize(
    "path", ["inventory.none", "none.hotel", "inventory.", ".hotel", "inventory.hotel.x"]
)
def test_unknown_collection_lists_the_known(path: str) -> None:
    with pytest.raises(ConfigurationError, match="no collection") as caught:
        CollectionsManifest.parse(ANSWER).id_of(path)
    assert caught.value.hint == "the user sees: _default._default, inventory.airline, inventory.hotel"


def test_collection_without_scope() -> None:
    with pytest.raises(ConfigurationError, match=r"as in _default\.hotel"):
        CollectionsManifest.parse(ANSWER).id_of("hotel")


def test_unknown_scope_lists_the_known() -> None:
    manifest = CollectionsManifest.parse(ANSWER)
    for look in (manifest.scope_id, manifest.collections_of):
        with pytest.raises(ConfigurationError, match="the user sees: _default, empty, inventory"):
            look("none")


def test_bucket_whose_default_collection_was_dropped() -> None:
    manifest = CollectionsManifest.parse({"uid": "3", "scopes": []})
    with pytest.raises(ConfigurationError, match="the user sees: none"):
        manifest.id_of("_default._default")


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\xff",
        "[]",
        "[" * 200_000,
        {},
        {"uid": 3, "scopes": []},
        {"uid": "0x3", "scopes": []},
        {"uid": "", "scopes": []},
        {"uid": " 3", "scopes": []},
        {"uid": "1" * 17, "scopes": []},
        {"uid": "3", "scopes": {}},
        {"uid": "3", "scopes": [1]},
        {"uid": "3", "scopes": [{"uid": "0"}]},
        {"uid": "3", "scopes": [{"name": "a", "uid": "100000000"}]},
        {"uid": "3", "scopes": [{"name": "a", "uid": "8"}, {"name": "a", "uid": "9"}]},
        {
            "uid": "3",
            "scopes": [{"name": "a", "uid": "8", "collections": [{"name": n, "uid": "8"} for n in "ab"]}],
        },
    ],
)
def test_no_manifest(answer: Any) -> None:
    with pytest.raises(ClusterMapError):
        CollectionsManifest.parse(answer)
