"""One table for each kind of document."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cbframe.arrow.columns import DATATYPE, VALUE, is_json
from cbframe.arrow.documents.guard import Reason, inspect, screen
from cbframe.arrow.documents.projection import Path, Projection
from cbframe.arrow.documents.typer import JsonTyper
from cbframe.cluster.manifest import Manifest
from cbframe.errors import ConfigurationError
from cbframe.frame.assemble import Assembled, add_documents, assembled_of
from cbframe.frame.names import Names
from cbframe.frame.shape import lacking
from cbframe.scan.spec import ScanSpec

_DEPTH = 200
_MOST = 1000
"""Tables; who asks for more has named a field that tells documents apart, not their kinds."""
_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_TEXT = msgspec.json.Decoder(str).decode


def split_tables(
    raw: pa.Table, manifest: Manifest | None, path: Path, target: ScanSpec, names: Names
) -> dict[str | None, Assembled]:
    """Type each kind of document for itself.

    Parameters
    ----------
    raw
        Documents as they came.
    path
        The field whose value tells the kind.

    Raises
    ------
    ConfigurationError
        Too many kinds; or ``columns=`` or ``parse_dates=`` names what no document of any kind has.
    ConversionError
        Values are no JSON objects, or do not fit, and that was to be an error.
    """
    projection = Projection(target.columns) if target.columns else None
    tables: dict[str | None, Assembled] = {}
    schemas: list[pa.Schema] = []
    for label, rows in groups_of(raw, path).items():
        part = raw.take(pa.array(rows))
        typer = JsonTyper(target.policy())
        for batch in part.to_batches():
            add_documents(typer, [batch if projection is None else projected(batch, projection)])
        typed = typer.finish()
        schemas.append(typed.table.schema)
        tables[label] = assembled_of(part, typed, manifest, target, names, lenient=True)
    if tables:
        unknown = [path for path in target.columns or () if all(lacking(each, path) for each in schemas)]
        _refuse("columns", map(".".join, unknown))
    if tables and isinstance(target.parse_dates, tuple):
        there = {name for each in tables.values() for name in each.table.column_names}
        _refuse("parse_dates", (name for name in target.parse_dates if name not in there))
    return tables


def projected(batch: pa.RecordBatch, projection: Projection) -> pa.RecordBatch:
    """A batch whose values are cut down."""
    values = projection.apply(batch.column(VALUE), is_json(batch.column(DATATYPE).to_numpy()))
    columns = [values if name == VALUE else batch.column(name) for name in batch.schema.names]
    return pa.RecordBatch.from_arrays(columns, schema=batch.schema)


def _refuse(argument: str, unknown: Iterable[str]) -> None:
    """What one kind of documents has not may be a field of another, but not of none."""
    for name in unknown:
        raise ConfigurationError(
            f"{argument}= names {name!r}, which no document has",
            hint="read without it to see the fields, or look with peek()",
        )


def groups_of(raw: pa.Table, path: Path) -> dict[str | None, npt.NDArray[np.int64]]:
    """Rows by the value of a field, which is a string or is named by its JSON text.

    Rows without such a value are under None: the field is missing, null, an array or an object, or the
    value is no document.

    Parameters
    ----------
    raw
        With values and datatypes.

    Raises
    ------
    ConfigurationError
        There are more than a thousand different values.
    """
    projection = Projection([path])
    labels: dict[str | None, int] = {}
    codes = [
        _codes(batch.column(VALUE), is_json(batch.column(DATATYPE).to_numpy()), projection, path, labels)
        for batch in raw.to_batches()
    ]
    if not codes:
        return {}
    code = np.concatenate(codes)
    order = np.argsort(code, kind="stable")
    ends = np.cumsum(np.bincount(code, minlength=len(labels)))[:-1]
    rows = dict(zip(labels, np.split(order, ends), strict=True))
    return {label: rows[label] for label in sorted(rows, key=lambda label: (label is None, label or ""))}


def _codes(
    values: pa.Array,
    called_json: npt.NDArray[np.bool_],
    projection: Projection,
    path: Path,
    labels: dict[str | None, int],
) -> npt.NDArray[np.int64]:
    """The number of each row's label; new ones are added."""
    # Many documents, few kinds: only those that differ are looked at.
    cut = projection.apply(values, called_json).dictionary_encode()
    known = cut.dictionary
    sound = inspect(known, screen(known, np.ones(len(known), bool)), _DEPTH) == Reason.GOOD
    numbers = np.empty((2, max(len(known), 1)), np.int64)
    indices = cut.indices.to_numpy()
    for json in (False, True):
        used = np.unique(indices[called_json == json])
        for at in used.tolist():
            label = _label(known[at].as_py(), path) if json and sound[at] else None
            numbers[int(json), at] = labels.setdefault(label, len(labels))
            if len(labels) > _MOST:
                raise ConfigurationError(
                    f"split_by={'.'.join(path)!r} has more than {_MOST:,} different values",
                    hint="name a field that tells kinds of documents apart, or read them with filters=",
                )
    found: npt.NDArray[np.int64] = numbers[called_json.astype(np.int64), indices]
    return found


def _label(document: bytes, path: Path) -> str | None:
    raw = document
    for name in path:
        if raw[:1] != b"{":
            return None
        raw = bytes(_FIELDS(raw).get(name, b"null"))
    if raw[:1] == b'"':
        return _TEXT(raw)
    return None if raw[:1] in (b"{", b"[", b"n") else raw.decode()


def without_rows(tables: Iterable[Assembled]) -> Assembled:
    """What all of them together tell besides their rows."""
    parts = list(tables)
    rejected: Counter[str] = Counter()
    for each in parts:
        rejected.update(each.rejected)
    conflicts = tuple(conflict for each in parts for conflict in each.conflicts)
    return Assembled(pa.table({}), conflicts, dict(rejected))
