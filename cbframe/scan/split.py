"""One table for each kind of document."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cbframe.arrow.columns import DATATYPE, SEQNO, VBUCKET, is_json
from cbframe.arrow.exclusion import LeftOut
from cbframe.errors import ConfigurationError
from cbframe.json.layout import Path
from cbframe.json.typer import VALUE, Documents, texts_at, typed
from cbframe.scan.conflicts import Conflict, keys_at
from cbframe.scan.names import Names
from cbframe.scan.outcome import Outcome
from cbframe.scan.pipeline import Found, Pipeline, beside
from cbframe.scan.shape import lacking
from cbframe.scan.spec import ScanSpec

_MOST = 1000
"""Tables; who asks for more has named a field that tells documents apart, not their kinds."""


def split_tables(
    pipeline: Pipeline, path: Path, target: ScanSpec, names: Names
) -> tuple[dict[str | None, tuple[Found, pa.Table]], LeftOut]:
    """Convert each kind of document for itself."""
    raw, manifest = pipeline.unconverted()
    tables: dict[str | None, tuple[Found, pa.Table]] = {}
    schemas: list[pa.Schema] = []
    for label, rows in groups_of(raw, path).items():
        part = raw.take(pa.array(rows))
        table, settled = typed(documents_in(part), target.policy())
        schemas.append(table.schema)
        outcome = Outcome(target, len(part), settled.reasons(), lenient=True)
        if outcome.looks:
            outcome.look(part, table)
        conflicts = outcome.conflicts(settled.disagreements(), partial(keys_at, [part], form=target.keys))
        part, table = outcome.form(part, table)
        table = beside(names.head(part, manifest), table)
        tables[label] = Found(table.schema, iter(()), conflicts, settled.reasons()), table
    if tables:
        unknown = [path for path in target.columns or () if all(lacking(each, path) for each in schemas)]
        _refuse("columns", map(".".join, unknown))
    if tables and isinstance(target.parse_dates, tuple):
        there = {name for _, each in tables.values() for name in each.column_names}
        _refuse("parse_dates", (name for name in target.parse_dates if name not in there))
    return tables, pipeline.left_out


def documents_in(raw: pa.Table) -> list[Documents]:
    """Documents that are not converted, to be so."""
    return [
        Documents(
            batch.column(VALUE),
            is_json(batch.column(DATATYPE).to_numpy()),
            batch.column(VBUCKET).to_numpy(),
            batch.column(SEQNO).to_numpy(),
        )
        for batch in raw.to_batches()
    ]


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
    """
    labels: dict[str | None, int] = {}
    codes: list[npt.NDArray[np.int64]] = []
    for documents in documents_in(raw):
        # Many documents, few kinds.
        texts = texts_at(documents, path).dictionary_encode()
        numbers = [
            labels.setdefault(label, len(labels)) for label in map(_label, texts.dictionary.to_pylist())
        ]
        indices = texts.indices
        if indices.null_count:
            numbers.append(labels.setdefault(None, len(labels)))
            indices = indices.fill_null(len(numbers) - 1)
        if len(labels) > _MOST:
            raise ConfigurationError(
                f"split_by={'.'.join(path)!r} has more than {_MOST:,} different values",
                hint="name a field that tells kinds of documents apart, or read them with filters=",
            )
        codes.append(np.array(numbers, np.int64)[indices.to_numpy()])
    if not codes:
        return {}
    code = np.concatenate(codes)
    order = np.argsort(code, kind="stable")
    ends = np.cumsum(np.bincount(code, minlength=len(labels)))[:-1]
    rows = dict(zip(labels, np.split(order, ends), strict=True))
    return {label: rows[label] for label in sorted(rows, key=lambda label: (label is None, label or ""))}


def _label(text: str) -> str | None:
    if text[0] == '"':
        label: str = json.loads(text)
        return label
    return None if text[0] in "{[n" else text


def told_of(
    tables: Iterable[tuple[Found, pa.Table]],
) -> tuple[tuple[Conflict, ...], dict[str, int]]:
    """Conflicts and rejected documents of all tables together."""
    rejected: Counter[str] = Counter()
    conflicts: list[Conflict] = []
    for found, _ in tables:
        rejected.update(found.rejected)
        conflicts += found.conflicts
    return tuple(conflicts), dict(rejected)
