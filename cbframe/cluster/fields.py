"""Fields of an answer that nobody has checked yet: the right type, or a `ClusterMapError`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from cbframe.errors import ClusterMapError

_HEX = re.compile(r"[0-9A-Fa-f]{1,16}")


def text(source: Mapping[str, object], name: str, default: str | None = None) -> str:
    """A string; `default` stands for an absent one, None means that it must be there."""
    return _as_text(source.get(name, default), name, "a string")


def _as_text(value: object, name: str, wanted: str) -> str:
    if not isinstance(value, str):
        raise _wrong(name, value, wanted)
    try:
        value.encode()
    except UnicodeEncodeError as exc:  # half of a surrogate pair, escaped
        raise ClusterMapError(f"the cluster's answer has {name!r} with half of a character") from exc
    return value


def integer(source: Mapping[str, object], name: str, default: int | None = None) -> int:
    value = source.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool):
        raise _wrong(name, value, "a whole number")
    return value


def hexadecimal(source: Mapping[str, object], name: str) -> int:
    """A number that the cluster manager writes as hex digits without ``0x``."""
    value = text(source, name)
    # int() alone would also take "0x1f", "1_f" and " 1f".
    if not _HEX.fullmatch(value):
        raise _wrong(name, value, "a hexadecimal number")
    return int(value, 16)


def mapping(source: Mapping[str, object], name: str) -> Mapping[str, object]:
    """An object; an absent one is empty."""
    return as_mapping(source.get(name, {}), name)


def sequence(source: Mapping[str, object], name: str) -> Sequence[object]:
    """An array; an absent one is empty."""
    value = source.get(name, [])
    if not isinstance(value, list | tuple):
        raise _wrong(name, value, "an array")
    return value


def mappings(source: Mapping[str, object], name: str) -> list[Mapping[str, object]]:
    """An array of objects; an absent one is empty."""
    return [as_mapping(item, name) for item in sequence(source, name)]


def texts(source: Mapping[str, object], name: str) -> list[str]:
    """An array of strings; an absent one is empty."""
    return [_as_text(item, name, "an array of strings") for item in sequence(source, name)]


def as_mapping(value: object, name: str) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise _wrong(name, value, "an object")
    return value


def _wrong(name: str, value: object, wanted: str) -> ClusterMapError:
    return ClusterMapError(f"the cluster's answer has {name!r} of type {type(value).__name__}, not {wanted}")
