"""What is said to users who may not stream all that was asked for."""

from __future__ import annotations

import pytest

from cbframe.cluster.collections_manifest import CollectionName, CollectionsManifest
from cbframe.dcp.messages import access_hint
from cbframe.errors import ROLES_HINT
from cbframe.wire.messages import StreamFilter

WHOLE, OF_SCOPE, OF_COLLECTIONS = StreamFilter(), StreamFilter(scope=8), StreamFilter((8, 9))


def manifest(*names: str) -> CollectionsManifest:
    collections = {8 + n: CollectionName(*name.split(".")) for n, name in enumerate(names)}
    return CollectionsManifest(1, {"shop": 8, "_system": 9}, collections)


@pytest.mark.parametrize("wanted", [WHOLE, OF_SCOPE, OF_COLLECTIONS])
@pytest.mark.parametrize("seen", [None, manifest(), manifest("_system._mobile")])
def test_who_sees_nothing_needs_roles(wanted: StreamFilter, seen: CollectionsManifest | None) -> None:
    assert access_hint(wanted, seen) == ROLES_HINT


def test_what_to_give() -> None:
    seen = manifest("shop.orders", "_default._default", "_system._mobile")
    visible = f'or collections="visible" for all that the user sees; to read more, {ROLES_HINT}'
    told = "the user sees _default._default, shop.orders"
    assert access_hint(WHOLE, seen) == (
        f"{told}: give collections=['_default._default', 'shop.orders'], {visible}"
    )
    assert access_hint(OF_SCOPE, seen) == f"{told}: give collections=['shop.orders'], {visible}"
    assert access_hint(OF_COLLECTIONS, seen) == (
        f"{told}, and may not stream all of these: name fewer; to read more, {ROLES_HINT}"
    )


def test_many_names_are_cut() -> None:
    seen = manifest(*(f"shop.c{n:02d}" for n in range(20)))
    hint = access_hint(WHOLE, seen)
    assert hint.startswith("the user sees shop.c00, shop.c01,")
    assert "shop.c07 and 12 more: give some of these as collections=[...], or" in hint
    assert "shop.c08" not in hint
