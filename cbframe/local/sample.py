"""The sample data set: airlines, airports, routes, hotels with reviews, and a few oddities.

Everything follows from the count and the seed, so a test can make the truth again and compare.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from cbframe.local.bucket import LocalBucket

DEFAULT_SEED = 20240501
Kind: TypeAlias = Literal["document", "scalar", "binary", "deleted", "expired"]
"""``document`` is a JSON object, ``scalar`` other JSON, ``binary`` no JSON; ``deleted`` and
``expired`` were documents once."""
_BATCH = 4096

_COUNTRIES = [
    "United States",
    "France",
    "United Kingdom",
    "Deutschland",
    "España",
    "日本",
    "Österreich",
    "Türkiye",
]
_CITIES = [
    "Zürich", "København", "São Paulo", "Kraków", "京都", "Reykjavík", "Málaga", "Łódź", "Αθήνα", "Lyon",
    "Leeds", "Austin", "Tromsø", "İzmir", "Québec", "Nice", "Porto", "Göteborg", "Київ", "Cork",
]  # fmt: skip
_NAMES = [
    "Anaïs", "Björn", "Chloé", "Dániel", "Ewa", "Fátima", "Grace", "裕子", "İpek", "Jürgen",
    "Klára", "Liam", "Małgorzata", "Noël", "Ольга", "Pedro", "Søren", "Tariq", "Zoë", "William",
]  # fmt: skip
_WORDS = [
    "Aurora", "Northern", "Coastal", "Grand", "Étoile", "Polar", "Meridian", "Golden", "Harbour", "Alpine",
    "Señorial", "Azure", "Royal", "Wander", "Nimbus", "Boreal", "Pacific", "Sól", "Vista", "Élan",
]  # fmt: skip
_EQUIPMENT = ["320", "319", "738", "77W", "E90", "CR9", "AT7", "359"]
_REVIEW = (
    "The room was quiet and the breakfast excellent; the staff spoke three languages and found us a "
    "table on the terrace. We would come back, though the lift is small – très petit – and slow."
)


def sample_documents(count: int = 100_000, seed: int = DEFAULT_SEED) -> Iterator[tuple[bytes, bytes, Kind]]:
    """Key, value and kind of every document, in the order of loading."""
    rng = random.Random(seed)
    makers: list[tuple[str, Callable[[random.Random, int], Any]]] = [
        ("airline", _airline),
        ("airport", _airport),
        ("hotel", _hotel),
        ("route", _route),
    ]
    encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
    for number in range(count):
        draw = rng.random()
        if draw < 0.01:
            yield b"binary_%d" % number, b"\x89\x00\xff" + rng.randbytes(rng.randrange(16, 200)), "binary"
            continue
        if draw < 0.011:
            scalar: Any = rng.choice(
                [42, -1.5, "just text – únicode", True, None, [1, 2, 3], ["a", {"b": None}], []]
            )
            yield b"scalar_%d" % number, encode(scalar).encode(), "scalar"
            continue
        # Airlines and airports are few, hotels some, routes most, as in the data set that
        # everybody knows.
        which = 3 if draw > 0.30 else 2 if draw > 0.12 else 1 if draw > 0.05 else 0
        name, make = makers[which]
        end = rng.random()
        kind: Kind = "expired" if end < 0.01 else "deleted" if end < 0.02 else "document"
        yield b"%s_%d" % (name.encode(), number), encode(make(rng, number)).encode(), kind


def load_sample(bucket: LocalBucket, count: int, seed: int) -> int:
    """Put the sample into a bucket; how many keys.

    Batches are written first and their deleted and expired documents removed after, so that
    tombstones have a past, as real ones do.
    """
    documents = sample_documents(count, seed)
    loaded = 0
    while batch := list(islice(documents, _BATCH)):
        for kinds, datatype in ((("binary",), 0), (("document", "scalar", "deleted", "expired"), 1)):
            pairs = [(key, value) for key, value, kind in batch if kind in kinds]
            bucket.bulk_load(pairs, cid=0, flags=None, datatype=datatype)
        for key, _, kind in batch:
            if kind in {"deleted", "expired"}:
                bucket.delete(key, expired=kind == "expired")
        loaded += len(batch)
    return loaded


def _airline(rng: random.Random, number: int) -> dict[str, Any]:
    code = "".join(rng.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ", k=3))
    return {
        "id": number,
        "type": "airline",
        "name": f"{rng.choice(_WORDS)} {rng.choice(['Air', 'Airways', 'Avion', 'Linhas Aéreas'])}",
        "iata": code[:2],
        "icao": code,
        "callsign": rng.choice(_WORDS).upper() if rng.random() < 0.9 else None,
        "country": rng.choice(_COUNTRIES),
        "fleet": rng.randrange(3, 400),
    }


def _airport(rng: random.Random, number: int) -> dict[str, Any]:
    city = rng.choice(_CITIES)
    return {
        "id": number,
        "type": "airport",
        "airportname": f"{city} {rng.choice(_WORDS)}",
        "city": city,
        "country": rng.choice(_COUNTRIES),
        "faa": "".join(rng.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ", k=3)),
        "geo": _geo(rng),
        "tz": f"UTC{rng.randrange(-11, 13):+d}",
    }


def _hotel(rng: random.Random, number: int) -> dict[str, Any]:
    hotel: dict[str, Any] = {
        "id": number,
        "type": "hotel",
        "name": f"{rng.choice(_WORDS)} {rng.choice(_CITIES)}",
        "city": rng.choice(_CITIES),
        "country": rng.choice(_COUNTRIES),
        "geo": _geo(rng),
        "free_breakfast": rng.random() < 0.5,
        "pets_ok": rng.random() < 0.3,
        "price": round(rng.uniform(39, 640), 2),
        "public_likes": [rng.choice(_NAMES) for _ in range(rng.randrange(4))],
        "reviews": [_review(rng) for _ in range(rng.randrange(4))],
    }
    if rng.random() < 0.7:
        hotel["phone"] = f"+{rng.randrange(1, 99)} {rng.randrange(100, 999)} {rng.randrange(10**6, 10**7)}"
    return hotel


def _review(rng: random.Random) -> dict[str, Any]:
    return {
        "author": rng.choice(_NAMES),
        "date": f"20{rng.randrange(12, 25)}-{rng.randrange(1, 13):02d}-{rng.randrange(1, 29):02d}T"
        f"{rng.randrange(24):02d}:{rng.randrange(60):02d}:00Z",
        "content": _REVIEW[: rng.randrange(30, len(_REVIEW))],
        "ratings": {"Overall": rng.randrange(1, 6), "Rooms": rng.randrange(1, 6)},
    }


def _route(rng: random.Random, number: int) -> dict[str, Any]:
    return {
        "id": number,
        "type": "route",
        "airline": f"airline_{rng.randrange(1, 10_000)}",
        "sourceairport": rng.choice(_CITIES)[:3].upper(),
        "destinationairport": rng.choice(_CITIES)[:3].upper(),
        "stops": rng.randrange(3),
        "equipment": rng.choice(_EQUIPMENT),
        "distance": round(rng.uniform(80, 9800), 3),
        "schedule": [
            {
                "day": rng.randrange(7),
                "flight": f"{rng.choice('ABCDEF')}{rng.choice('XYZ')}{rng.randrange(100, 999)}",
                "utc": f"{rng.randrange(24):02d}:{rng.randrange(60):02d}:00",
            }
            for _ in range(rng.randrange(1, 4))
        ],
    }


def _geo(rng: random.Random) -> dict[str, float]:
    return {
        "lat": round(rng.uniform(-60, 70), 6),
        "lon": round(rng.uniform(-180, 180), 6),
        "alt": rng.randrange(0, 2500),
    }
