"""What of a bucket a snapshot holds: decided when it is made, and kept in its manifest."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from cbframe.arrow.documents.filters import make_filters, restored_filters, stored_filters
from cbframe.cluster.tls import TLSLike
from cbframe.errors import ConfigurationError
from cbframe.frame.target import ScanTarget, declared_types, make_target
from cbframe.typing import Connectable, ServerURLs

METADATA = ("key", "vbucket", "seqno", "cas", "rev_seqno", "expiry", "flags", "datatype")
_DEFAULTS: dict[str, Any] = {
    "scope": None,
    "collections": None,
    "columns": None,
    "filters": None,
    "key_prefix": None,
    "keys_only": False,
    "parse": True,
    "xattrs": False,
    "nested": "struct",
    "schema": None,
    "on_conflict": "widen",
    "max_struct_fields": 1000,
    "parse_dates": False,
    "transaction_records": "drop",
}
WANTED = frozenset(_DEFAULTS)
"""The arguments that are kept."""


def stored_form(given: Mapping[str, Any]) -> dict[str, Any]:
    """What was asked for, as JSON has it; what was left out is not in it.

    Raises
    ------
    ConfigurationError
        It has no such form.
    """
    chosen = {name: value for name, value in given.items() if value is not None}
    if isinstance(chosen.get("collections"), str):
        chosen["collections"] = [chosen["collections"]]
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
        if isinstance(given["schema"], pa.Schema):
            chosen["columns"] = [[name] for name in schema.names]
    if chosen.get("nested") == "flatten":
        raise ConfigurationError('nested="flatten" is for reading a snapshot, not for writing one')
    try:
        # As it will be read: tuples are lists.
        form: dict[str, Any] = json.loads(json.dumps(chosen))
    except (TypeError, ValueError) as exc:
        raise ConfigurationError(
            "an argument of a snapshot cannot be written to its manifest",
            hint="give plain numbers, strings and lists",
        ) from exc
    return form


def agreed(
    given: Mapping[str, Any],
    stored: Mapping[str, Any],
    *,
    made: str = "the snapshot",
    anew: str = 'mode="overwrite"',
) -> None:
    """Refuse to update a snapshot with something else.

    Parameters
    ----------
    made, anew
        For messages: what was made, and how it is made anew.

    Raises
    ------
    ConfigurationError
        An argument was given that is not as it was when the snapshot was made.
    """
    for name, value in given.items():
        if value != stored.get(name, _DEFAULTS[name]):
            shown = "another one" if name == "schema" else repr(stored.get(name, _DEFAULTS[name]))
            raise ConfigurationError(
                f"{made} was made with {name}={shown}",
                hint=f"leave {name}= out to update it, or make it anew with {anew}",
            )


def target_of(
    conn: ServerURLs | Connectable,
    bucket: str | None,
    stored: Mapping[str, Any],
    *,
    auth: Any,
    tls: TLSLike,
    network: str,
) -> ScanTarget:
    """What is read.

    Raises
    ------
    ConfigurationError
        An argument cannot be meant.
    """
    asked = _DEFAULTS | dict(stored)
    schema = asked["schema"]
    if schema is not None:
        read = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(schema)))
        schema = {field.name: field.type for field in read}
    dates = asked["parse_dates"]
    target = make_target(
        conn,
        bucket,
        auth=auth,
        tls=tls,
        network=network,
        scope=asked["scope"],
        collections=asked["collections"],
        columns=_paths(asked["columns"]),
        filters=restored_filters(asked["filters"]),
        keys_only=asked["keys_only"],
        parse=asked["parse"],
        metadata=(*METADATA, "xattrs") if asked["xattrs"] else METADATA,
        vbuckets=None,
        errors="keep",
        nested=asked["nested"],
        key_prefix=asked["key_prefix"],
        n_rows=None,
        schema=schema,
        infer_schema_length=None,
        on_conflict=asked["on_conflict"],
        max_struct_fields=asked["max_struct_fields"],
        parse_dates=dates if isinstance(dates, bool) else tuple(dates),
    )
    # Files have documents until the server has removed them: who reads says by when they have expired.
    return replace(target, expired="keep", transaction_records=asked["transaction_records"])


def _paths(columns: Sequence[Any] | None) -> list[Any] | None:
    return None if columns is None else [tuple(c) if isinstance(c, list) else c for c in columns]
