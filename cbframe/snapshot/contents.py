"""What of a bucket a snapshot holds: decided when it is made, and kept in its manifest."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

import numpy as np
import pyarrow as pa

from cbframe.arrow.documents.filters import make_filters, restored_filters, stored_filters
from cbframe.errors import ConfigurationError
from cbframe.scan.names import difference, settled
from cbframe.scan.spec import VISIBLE, ScanSpec, declared_types, flag

METADATA = ("key", "vbucket", "seqno", "cas", "rev_seqno", "expiry", "flags", "datatype")
_OF_SCANS = (
    "scope",
    "collections",
    "columns",
    "filters",
    "keys",
    "key_prefix",
    "keys_only",
    "parse",
    "nested",
    "schema",
    "on_conflict",
    "max_struct_fields",
    "parse_dates",
    "transaction_records",
)
_DEFAULTS: dict[str, Any] = {
    **{each.name: each.default for each in fields(ScanSpec) if each.name in _OF_SCANS},
    "schema": None,
    "xattrs": False,
}
WANTED = frozenset(_DEFAULTS)
"""The arguments that are kept."""


def stored_form(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What was asked for, as JSON has it; what was left out is not in it."""
    chosen = {name: arguments[name] for name in _DEFAULTS if arguments.get(name) is not None}
    if isinstance(chosen.get("collections"), str) and chosen["collections"] != VISIBLE:
        chosen["collections"] = [chosen["collections"]]
    for name in ("collections", "columns", "parse_dates"):
        if isinstance(value := chosen.get(name), Iterable) and not isinstance(value, str | bytes | Mapping):
            chosen[name] = list(value)
    if isinstance(chosen.get("key_prefix"), bytes):
        try:
            chosen["key_prefix"] = chosen["key_prefix"].decode()
        except UnicodeDecodeError as exc:
            raise ConfigurationError("key_prefix= of a snapshot has to be text") from exc
    if "filters" in chosen:
        make_filters(chosen["filters"])
        chosen["filters"] = stored_filters(chosen["filters"])
    if "schema" in chosen:
        schema = pa.schema(list(declared_types(chosen["schema"]).items()))
        chosen["schema"] = base64.b64encode(schema.serialize().to_pybytes()).decode()
        if isinstance(arguments["schema"], pa.Schema):
            chosen["columns"] = [[name] for name in schema.names]
    if chosen.get("nested") == "flatten":
        raise ConfigurationError('nested="flatten" is for reading a snapshot, not for writing one')
    try:
        # As it will be read: tuples are lists.
        form: dict[str, Any] = json.loads(json.dumps(chosen, default=_plain))
    except (TypeError, ValueError) as exc:
        raise ConfigurationError(
            "an argument of a snapshot cannot be written to its manifest",
            hint="give plain numbers, strings and lists",
        ) from exc
    return form


def named(
    given: dict[str, Any], arguments: Mapping[str, Any], stored: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What was given, with the names of the collections that the user sees now where it asks for these."""
    if given.get("collections") != VISIBLE:
        return given
    found = settled(spec_of(arguments, {**(stored or {}), **given})).named
    return {**given, "collections": list(found or ())}


def agreed(
    given: Mapping[str, Any],
    stored: Mapping[str, Any],
    *,
    made: str = "the snapshot",  # for messages: what was made, and how it is made again
    remedy: str = 'mode="overwrite"',
) -> None:
    """Refuse to update a snapshot with something else."""
    for name, value in given.items():
        before = stored.get(name, _DEFAULTS[name])
        if value != before:
            # Filters and prefixes may hold keys, or values that nobody should read in a log.
            secret = name in ("schema", "filters", "key_prefix") and before is not None
            before_it = f"another {name}=" if secret else f"{name}={before!r}"
            what = difference(before, value) if name == "collections" else ""
            raise ConfigurationError(
                f"{made} was made with {before_it}{what}",
                hint=f"leave {name}= out to update it, or make it again with {remedy}",
            )


def _plain(value: Any) -> Any:
    """A scalar of numpy's as Python has it."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"a {type(value).__name__} has no form in JSON")


def spec_of(arguments: Mapping[str, Any], stored: Mapping[str, Any]) -> ScanSpec:
    """The scan that reads what is stored, in the way that the ``locals()`` of a function say."""
    asked = _DEFAULTS | dict(stored)
    if asked["schema"] is not None:
        read = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(asked["schema"])))
        asked["schema"] = {field.name: field.type for field in read}
    asked["columns"] = _paths(asked["columns"])
    asked["filters"] = restored_filters(asked["filters"])
    xattrs = flag("xattrs", asked.pop("xattrs"))
    asked["metadata"] = (*METADATA, "xattrs") if xattrs else METADATA
    # Files have documents until the server has removed them: who reads says by when they have expired.
    return ScanSpec.of_arguments({**arguments, **asked, "expired": "keep"})


def _paths(columns: Any) -> Any:
    """Paths are tuples again; what is no list is refused later."""
    return [tuple(c) if isinstance(c, list) else c for c in columns] if isinstance(columns, list) else columns
