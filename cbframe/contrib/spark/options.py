"""What is asked for with ``option(...)``, and the types that Spark has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa
from msgspec import DecodeError
from pyspark.sql.datasource import (
    EqualTo,
    Filter,
    GreaterThan,
    GreaterThanOrEqual,
    In,
    IsNotNull,
    LessThan,
    LessThanOrEqual,
    Not,
)
from pyspark.sql.pandas.types import to_arrow_schema
from pyspark.sql.types import StructType

from cbframe.arrow.columns import KEY
from cbframe.arrow.filters import METADATA, decoded, make_filters
from cbframe.cluster.auth import EnvironmentAuth
from cbframe.errors import ConfigurationError
from cbframe.json.typer import OURS
from cbframe.scan.scan import BucketScan, scan_bucket
from cbframe.scan.spec import METADATA_NAMES, VISIBLE

_LARGER = {
    pa.uint8(): pa.int16(),
    pa.uint16(): pa.int32(),
    pa.uint32(): pa.int64(),
    pa.uint64(): pa.decimal128(20, 0),
    pa.null(): pa.string(),
}
_BOTH = frozenset(
    (
        *("connection", "bucket", "partitions", "columns", "scope", "collections", "metadata"),
        *("on_conflict", "sample_rows", "tls", "user_env", "password_env", "transaction_records"),
    )
)
BATCH = _BOTH | {"consistency", "expired", "pushdown"}
STREAM = _BOTH | {"changes", "start", "max_changes_per_batch", "on_rollback", "whole_snapshots"}


def arrow_schema(schema: StructType) -> pa.Schema:
    """What Spark calls a schema, as Arrow has it; TIMESTAMP is a moment, in whatever zone it is shown.

    Raises
    ------
    ConfigurationError
        Two columns have one name.
    """
    twice = [name for name, count in Counter(schema.fieldNames()).items() if count > 1]
    if twice:
        raise ConfigurationError(f"the schema has two columns {twice[0]!r}", hint="leave one out")
    return to_arrow_schema(schema, timezone="UTC")


def checked(options: Mapping[str, str], known: Iterable[str]) -> dict[str, str]:
    """Options by their names in small letters.

    Raises
    ------
    ConfigurationError
        There is no such option, the connection is missing, one names nothing, or a column is a part of one.
    """
    found = {name.lower(): value for name, value in options.items()}
    unknown = [name for name in options if name.lower() not in known]
    if unknown or "connection" not in found:
        raise ConfigurationError(
            f"there is no option {unknown[0]!r}" if unknown else 'option("connection", ...) is missing',
            hint=f"options are: {', '.join(sorted(known))}",
        )
    nothing = next(
        (name for name in ("collections", "columns") if name in found and not listed(found[name])), None
    )
    if nothing is not None:
        raise ConfigurationError(
            f"{nothing}={found[nothing]!r} names no {nothing}", hint="leave the option out for all"
        )
    member = next((name for name in listed(found.get("columns", "")) if "." in name), None)
    if member is not None:
        raise ConfigurationError(
            f"columns={member!r}: a member of an object is no column here",
            hint=f"take {member.partition('.')[0]!r}, and select {member!r} of the frame",
        )
    return found


def scan_of(options: Mapping[str, str], **arguments: Any) -> BucketScan:
    """The scan that the options ask for."""
    names: dict[str, Any] = {"columns": listed(options["columns"])} if "columns" in options else {}
    on_conflict = choice_of(options, "on_conflict", "raise", "null")
    if "schema" not in arguments and on_conflict == "raise":
        on_conflict = "widen"  # a schema is sought that holds all values
    if "schema" in arguments:
        names.pop("columns", None)
    arguments.setdefault("metadata", ("key", *listed(options.get("metadata", ""))))
    return scan_bucket(
        options["connection"],
        options.get("bucket"),
        auth=auth_of(options),
        tls=options.get("tls"),
        scope=options.get("scope"),
        collections=collections_of(options),
        on_conflict=on_conflict,  # type: ignore[arg-type]
        expired=choice_of(options, "expired", "drop", "keep"),  # type: ignore[arg-type]
        transaction_records=choice_of(options, "transaction_records", "drop", "keep"),  # type: ignore[arg-type]
        **names,
        **arguments,
    )


def auth_of(options: Mapping[str, str]) -> EnvironmentAuth:
    """Where user and password are: no secret is among the options."""
    return EnvironmentAuth(options.get("user_env", "CB_USER"), options.get("password_env", "CB_PASSWORD"))


def number_of(options: Mapping[str, str], name: str, default: int) -> int:
    """A positive number.

    Raises
    ------
    ConfigurationError
        It is none.
    """
    text = options.get(name, str(default))
    if not text.isdecimal() or not int(text):
        raise ConfigurationError(f"{name}={text!r} is no positive number")
    return int(text)


def choice_of(options: Mapping[str, str], name: str, *choices: str) -> str:
    """One of some words; the first if nothing is said.

    Raises
    ------
    ConfigurationError
        It is another.
    """
    chosen = options.get(name, choices[0])
    if chosen not in choices:
        raise ConfigurationError(f"{name}={chosen!r}", hint=f"choose from: {', '.join(choices)}")
    return chosen


def collections_of(options: Mapping[str, str]) -> str | list[str] | None:
    """As :func:`cbframe.scan_bucket` takes them."""
    text = options.get("collections")
    return text if text is None or text.strip() == VISIBLE else listed(text)


def listed(text: str) -> list[str]:
    """Names between commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def is_told(name: str) -> bool:
    """Whether a column can be had of a schema: those of fields, the key, and metadata."""
    return not name.startswith(OURS) or name.removeprefix(OURS) in {"key", *METADATA_NAMES}


def larger(kind: pa.DataType) -> pa.DataType:
    """A type that Spark has."""
    if pa.types.is_struct(kind):
        return pa.struct([(member.name, larger(member.type)) for member in kind])
    if pa.types.is_list(kind):
        return pa.list_(larger(kind.value_type))
    if pa.types.is_map(kind):
        return pa.map_(larger(kind.key_type), larger(kind.item_type))
    return _LARGER.get(kind, kind)


Written = tuple[tuple[str, ...], str, Any]
_OPERATORS: dict[type[Filter], str] = {
    EqualTo: "==",
    GreaterThan: ">",
    GreaterThanOrEqual: ">=",
    LessThan: "<",
    LessThanOrEqual: "<=",
    In: "in",
    IsNotNull: "is not",
}
_NEGATIVE = {"==": "!=", "in": "not in"}


def pushed(filters: Iterable[Filter], schema: pa.Schema) -> list[Written]:
    """Those of the filters that a scan can take, as ``filters=`` of it.

    Parameters
    ----------
    schema
        Of the frame.
    """
    found = []
    for each in filters:
        negative = isinstance(each, Not)
        written = _written(each.child if negative else each, schema)
        if written is not None and negative:
            path, op, value = written
            written = (path, _NEGATIVE[op], value) if op in _NEGATIVE else None
        if written is not None:
            found.append(written)
    return found


def _written(each: Filter, schema: pa.Schema) -> Written | None:
    op = _OPERATORS.get(type(each))
    if op is None:
        return None
    path = tuple(each.attribute)
    kind = _type_of(path, schema)
    if kind is None or (path[0].startswith(OURS) and (path[0] not in METADATA or op == "is not")):
        return None
    value = getattr(each, "value", None)
    values: tuple[Any, ...] = () if op == "is not" else (value,)
    if op == "in":
        values = tuple(each.value)
    if not all(_is_exact(kind, one, path, op) for one in values):
        return None
    try:
        make_filters([(path, op, value)])
    except ConfigurationError:
        return None
    return path, op, value


def _type_of(path: tuple[str, ...], schema: pa.Schema) -> pa.DataType | None:
    kind: pa.DataType = pa.struct(list(schema))
    for name in path:
        at = kind.get_field_index(name) if pa.types.is_struct(kind) else -1
        if at < 0:
            return None
        kind = kind.field(at).type
    return kind


def _is_exact(kind: pa.DataType, value: Any, path: tuple[str, ...], op: str) -> bool:
    """Whether every document that passes in Spark passes as a document."""
    if pa.types.is_boolean(kind):
        return isinstance(value, bool)
    if pa.types.is_integer(kind) or pa.types.is_float64(kind):
        return isinstance(value, int | float) and not isinstance(value, bool)
    if path == (KEY,):
        # Keys that are not UTF-8 are shown with backslashes.
        return isinstance(value, str) and op in ("==", "in") and "\\" not in value
    if not (pa.types.is_string(kind) and isinstance(value, str) and op in ("==", "in")):
        return False
    try:
        decoded(value)
    except DecodeError:
        return True  # no number, boolean, array or object is written like that
    return False
