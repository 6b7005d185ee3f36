"""The Arrow PyCapsule interface of what is read when a consumer asks."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pyarrow as pa

from cbframe.errors import ConversionError


class ArrowExport:
    """A consumer that asks for the schema first, as DuckDB does, gets the stream of that same read."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: pa.RecordBatchReader | None = None
        self._schema: pa.Schema | None = None

    def __reduce__(self) -> tuple[type[ArrowExport], tuple[()]]:
        # What waits for its consumer is of this process.
        return ArrowExport, ()

    def schema(self, read: Callable[[], pa.RecordBatchReader], *, again: bool = False) -> Any:
        """The schema as a capsule; reads, unless a read waits for its consumer."""
        with self._lock:
            if self._waiting is None or again:
                self._waiting = read()
            self._schema = self._waiting.schema
            return self._schema.__arrow_c_schema__()

    def stream(self, read: Callable[[], pa.RecordBatchReader], requested_schema: Any) -> Any:
        """The stream as a capsule: of the read that waits, or of another one with the same schema."""
        with self._lock:
            reader, self._waiting = self._waiting or read(), None
            given, self._schema = self._schema, reader.schema if self._schema is not None else None
        if given is not None and not given.equals(reader.schema):
            self._schema = None
            other = next(
                (
                    name
                    for name in [*given.names, *reader.schema.names]
                    if _type(given, name) != _type(reader.schema, name)
                ),
                "the order of its columns",
            )
            raise ConversionError(
                f"the bucket's schema changed while it was queried: {other!r} "
                f"was {_type(given, other)} and is {_type(reader.schema, other)}",
                hint="run the query again, or declare the type with schema=",
            )
        return reader.__arrow_c_stream__(requested_schema)


def _type(schema: pa.Schema, name: str) -> str:
    at = schema.get_field_index(name)
    return "absent" if at < 0 else str(schema.field(at).type)
