"""A bucket as a polars LazyFrame, which reads what a query needs, when the query is run.

A LazyFrame has a schema before anything is read. So its columns are agreed as those of partitions are
(:func:`cbframe.scan.partition.agree`), and every read has these columns and types, or is an error. Of a
query polars hands down the columns that it uses, a predicate, and how many rows it wants. What filters can
say of the predicate (:class:`_Conditions`) becomes ``filters=`` of the read, and polars evaluates all of it
again on every batch.

Predicates are taken apart with ``Expr.meta.pop()``. What a node is follows from building it again and
comparing the two, so that no form in which polars stores expressions is relied on. What is not recognised
is left to polars.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import permutations
from math import inf, isfinite
from operator import eq, ge, gt, le, lt, ne
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeAlias, Unpack

import pyarrow as pa

from cbframe.arrow.columns import KEY
from cbframe.arrow.filters import METADATA, make_filters
from cbframe.contrib import spelled
from cbframe.contrib.pushdown import Written, type_at, written
from cbframe.errors import DependencyError
from cbframe.json.layout import Path
from cbframe.public import Connectable, ServerURLs, public
from cbframe.scan.partition import AgreedScan, agree, refuse_secrets
from cbframe.scan.scan import scan_bucket
from cbframe.scan.shape import joined
from cbframe.scan.spec import ScanArguments, ScanSpec

if TYPE_CHECKING:
    import polars as pl

__all__ = ["scan_polars"]

Groups: TypeAlias = list[list[Written]]
"""One of these has to hold, each of them as a whole."""
_OLDEST = (1, 33)
"""Before, a scan that a query names twice is read twice, and errors of a read lose their class."""
_PARTS = 16
"""Into which documents are divided where all are looked at: not all of them are in memory at once."""
_MOST_GROUPS = 64
_MOST_VALUES = 1000
"""Of `is_in`: a field whose values are of several kinds is compared with each."""
_DEEPEST = 100
_EXACT = 1 << 53
"""Below, an integer is the same as a double."""
_OPERATORS = {"==": eq, "!=": ne, "<": lt, "<=": le, ">": gt, ">=": ge}
_OPPOSITE = {"==": "!=", "!=": "==", "<": ">=", ">=": "<", ">": "<=", "<=": ">"}
_BETWEEN = {"both": (">=", "<="), "left": (">=", "<"), "right": (">", "<="), "none": (">", "<")}
_REFUSED = {"n_rows", "infer_schema_length", "parse_dates", "dtype_backend"}
"""What needs all documents in one place, or is pandas'."""
_ARGUMENTS = ScanArguments.__annotations__.keys() - _REFUSED


@spelled(scan_bucket, _ARGUMENTS)
def scan_polars(
    conn: ServerURLs | Connectable,
    bucket: str | None = None,
    *,
    sample_rows: int | None = 10_000,
    **arguments: Unpack[ScanArguments],
) -> pl.LazyFrame:
    """A bucket as a polars LazyFrame; the key is the column ``_cb_key``.

    The bucket is looked at now, for the schema, and read each time that the frame is collected or sunk, as
    it is then: only the columns that the query uses, and of conditions what ``filters=`` can say. These are
    comparisons of numbers and booleans, of text and keys for equality, ``is_in``, ``is_between``,
    ``is_not_null``, the beginning of a key; also of members of structs, and joined by and, or and not.
    Order of text, dates, decimals, ``is_null`` and all else are evaluated by polars on each batch: a column
    of text has numbers as text, and null is also what did not fit. ``head(n)``, where nothing filters
    before it, reads only as many vbuckets as that takes.

    Memory does not depend on the size of the bucket with ``collect(engine="streaming")`` and with sinks, as
    far as the query allows: a read is complete in a temporary file (``spool_dir=``) before its first row is
    there. A query that names the frame twice reads twice where polars does not merge the two.

    DuckDB takes the frame: ``duckdb.sql("from frame where n > 5")``. DuckDB 2 hands conditions and columns
    down to it, 1.5 conditions, older ones nothing; all take the rows at once, in memory.

    Parameters
    ----------
    sample_rows
        Columns and types follow from this many documents of vbuckets far from each other; None looks at all
        documents, and takes as long as to read them. A name in `columns` or `filters` that none of a sample
        has is a warning. What does not fit them later, in documents that no condition leaves out, is an error
        that names the field, or null with ``on_conflict="null"``. With a pyarrow schema in `schema` no
        document is looked at.
    conn, bucket, auth, tls, network, scope, collections, columns, filters, keys_only, parse, metadata, \
vbuckets, keys, key_prefix, key_pattern, errors, nested, schema, on_conflict, max_struct_fields, expired, \
transaction_records, consistency, batch_bytes, buffer_bytes, spool_dir, spill_bytes, timeout, progress, \
event_log, options
        As for :func:`cbframe.scan_bucket`.

    Returns
    -------
    polars.LazyFrame
        It can be serialized where a partition can be pickled: without a plain password.

    Raises
    ------
    DependencyError
        polars is not installed, or older than 1.33.
    ConfigurationError
        An argument is invalid.
    CbframeError
        The bucket could not be looked at. ``collect()`` raises those of a read.

    Examples
    --------
    >>> import cbframe, polars as pl
    >>> with cbframe.LocalCluster(vbuckets=64) as cluster:
    ...     _ = cluster.upsert("hotel_1", {"type": "hotel", "price": 310})
    ...     _ = cluster.upsert("hotel_2", {"type": "hotel", "price": 89})
    ...     frame = cbframe.scan_polars(cluster).filter(pl.col("price") > 100)
    ...     print(frame.select("_cb_key").collect().to_series().to_list())
    ['hotel_1']
    """
    spec = ScanSpec.of(conn, bucket, **arguments)
    pl = _polars()
    scan, _, _ = agree(spec, _PARTS, sample_rows=sample_rows)
    from polars.io.plugins import register_io_source  # noqa: PLC0415 - optional

    types = pl.from_arrow(scan.schema.empty_table()).schema
    return register_io_source(_Source(scan), schema=types, validate_schema=True, is_pure=True)


def _polars() -> ModuleType:
    hint = "pip install 'cbframe[polars]'"
    try:
        import polars as pl  # noqa: PLC0415 - optional
    except ImportError as exc:
        raise DependencyError("polars is not installed", hint=hint) from exc
    if tuple(map(int, pl.__version__.split(".")[:2])) < _OLDEST:
        raise DependencyError(f"polars {pl.__version__} is older than {_OLDEST[0]}.{_OLDEST[1]}", hint=hint)
    return pl


class _Source:
    """What polars calls for each read."""

    def __init__(self, scan: AgreedScan) -> None:
        self._scan = scan

    def __reduce__(self) -> tuple[type[_Source], tuple[AgreedScan]]:
        refuse_secrets(self._scan.spec)
        # A function that reports progress stays in this process.
        return _Source, (replace(self._scan, spec=replace(self._scan.spec, progress=None)),)

    @public
    def __call__(
        self,
        with_columns: Sequence[str] | None,
        predicate: pl.Expr | None,
        n_rows: int | None,
        _batch_size: int | None,
    ) -> Iterator[pl.DataFrame]:
        """Read. Not as a generator: errors that are raised in one lose their class in polars before 2."""
        pl = _polars()
        scan, names = self._scan, with_columns or self._scan.schema.names
        if n_rows == 0:
            return iter([pl.from_arrow(scan.schema.empty_table()).select(names)])
        if n_rows is not None:
            # Of so many rows those are wanted that pass, not so many that pass.
            scan = replace(scan, spec=replace(scan.spec, n_rows=n_rows))
        elif predicate is not None and (groups := _Conditions(pl, scan).groups(predicate)) is not None:
            both = [ours + theirs for ours in scan.spec.filters or ((),) for theirs in make_filters(groups)]
            scan = replace(scan, spec=replace(scan.spec, filters=tuple(both)))
        if with_columns is not None:
            scan = scan.select([*names, *(() if predicate is None else predicate.meta.root_names())])
        _, reader = scan.stream()
        return _frames(pl, reader, names, predicate)


def _frames(
    pl: ModuleType, reader: pa.RecordBatchReader, names: Sequence[str], predicate: pl.Expr | None
) -> Iterator[pl.DataFrame]:
    for batch in reader:
        frame = pl.from_arrow(batch)
        yield (frame if predicate is None else frame.filter(predicate)).select(names)


class _Conditions:
    """Finds filters of a scan that every row passes for which an expression is true."""

    def __init__(self, pl: ModuleType, scan: AgreedScan) -> None:
        self._pl = pl
        self._schema = scan.schema
        # A column with a dot in its name may be a member, or a field that is called so: nobody can tell.
        names = scan.schema.names if scan.spec.columns is None else METADATA
        self._paths: dict[str, Path] = {name: (name,) for name in names if "." not in name}
        self._paths |= {joined(path): path for path in scan.spec.columns or ()}

    def groups(self, expr: pl.Expr, *, negative: bool = False, depth: int = 0) -> Groups | None:
        """Filters for the rows for which it is true, or, if `negative`, false; None if all may be such."""
        inputs = expr.meta.pop() if depth < _DEEPEST else []
        if len(inputs) == 1 and expr.meta.eq(~inputs[0]):
            return self.groups(inputs[0], negative=not negative, depth=depth + 1)
        for left, right in permutations(inputs) if len(inputs) == 2 else ():
            both = expr.meta.eq(left & right)
            if both or expr.meta.eq(left | right):
                parts = [self.groups(each, negative=negative, depth=depth + 1) for each in (left, right)]
                return _all(parts) if both != negative else _any(parts)
        found = [each for each in self._comparisons(expr, inputs, negative=negative) if each is not None]
        return [found] if found else None

    def _comparisons(
        self, expr: pl.Expr, inputs: list[pl.Expr], *, negative: bool
    ) -> Iterator[Written | None]:
        """All of which hold."""
        if (place := self._place(expr)) is not None and pa.types.is_boolean(place[1]):
            yield written(*place, "==", not negative, negative=False)
            return
        sides = [(each, place) for each in inputs if (place := self._place(each)) is not None]
        literals = [each for each in inputs if each.meta.is_literal()]
        if len(sides) != 1 or len(literals) != len(inputs) - 1:
            return
        ((column, (path, kind)),) = sides
        values = [self._values(each, kind) for each in literals]
        match literals:
            case []:
                if expr.meta.eq(column.is_null() if negative else column.is_not_null()):
                    yield written(path, kind, "is not", None, negative=False)
            case [literal]:
                for op, compare in _OPERATORS.items():
                    # Python and polars put literals on the right.
                    if expr.meta.eq(compare(column, literal)):
                        yield _compared(path, kind, _OPPOSITE[op] if negative else op, values[0])
                        return
                if expr.meta.eq(column.is_in(literal)):
                    some = [each for each in values[0] if each is not None]
                    yield written(path, kind, "in", some, negative=negative) if values[0] else None
                elif path == (KEY,) and not negative and expr.meta.eq(column.str.starts_with(literal)):
                    yield from _beginning(*values[0])
            case [one, other]:
                for (low, least), (high, most) in permutations(zip((one, other), values, strict=True)):
                    for closed, (above, below) in _BETWEEN.items():
                        same = expr.meta.eq(column.is_between(low, high, closed))  # type: ignore[arg-type]
                        if same and not negative:
                            yield _compared(path, kind, above, least)
                            yield _compared(path, kind, below, most)

    def _place(self, expr: pl.Expr) -> tuple[Path, pa.DataType] | None:
        """The field of a column, of a member of one, or of integers made doubles, and its type."""
        if expr.meta.is_column():
            column = expr.meta.output_name()
            path = self._paths.get(column)
            return None if path is None else (path, self._schema.field(column).type)
        inputs = expr.meta.pop()
        inner = self._place(inputs[0]) if len(inputs) == 1 else None
        if inner is None:
            return None
        place, kind = inner
        if pa.types.is_integer(kind) and expr.meta.eq(inputs[0].cast(self._pl.Float64, strict=False)):
            return inner
        name = expr.meta.output_name(raise_if_undetermined=False) or ""
        member = type_at((name,), kind)
        same = member is not None and expr.meta.eq(inputs[0].struct.field(name))
        return ((*place, name), member) if same else None

    def _values(self, literal: pl.Expr, kind: pa.DataType) -> list[Any]:
        """What is compared with a column of a type; nothing where polars may round, or has another order."""
        series = self._pl.select(literal).to_series()
        if isinstance(series.dtype, self._pl.List):
            series = series.explode()
        values: list[Any] = series.to_list()
        own = self._pl.from_arrow(pa.nulls(0, kind)).dtype == series.dtype
        low, high = -inf, inf
        if pa.types.is_integer(kind):
            signed = pa.types.is_signed_integer(kind)
            low, high = -signed << (kind.bit_width - 1), (1 << (kind.bit_width - signed)) - 1
        numbers = [each for each in values if isinstance(each, int | float)]
        exact = all(
            low <= each <= high and isfinite(each) and (own or abs(each) < _EXACT) for each in numbers
        )
        return values if exact and len(values) <= _MOST_VALUES else []


def _compared(path: Path, kind: pa.DataType, op: str, values: list[Any]) -> Written | None:
    unequal = op == "!="
    one = len(values) == 1
    return written(path, kind, "==" if unequal else op, values[0], negative=unequal) if one else None


def _beginning(prefix: Any = None) -> Iterator[Written]:
    """Filters for the keys that begin so."""
    # Keys that are not UTF-8 are shown with backslashes. No byte of UTF-8 is the last one.
    if isinstance(prefix, str) and prefix and "\\" not in prefix:
        first = prefix.encode()
        yield (KEY,), ">=", first
        yield (KEY,), "<", first[:-1] + bytes([first[-1] + 1])


def _any(parts: Sequence[Groups | None]) -> Groups | None:
    """Filters for the rows that pass one of some."""
    found = [group for part in parts for group in part or ()]
    return found if None not in parts and len(found) <= _MOST_GROUPS else None


def _all(parts: Sequence[Groups | None]) -> Groups | None:
    """Filters for the rows that pass all of some, as many of them as do not become too long."""
    found: Groups = [[]]
    for part in sorted(filter(None, parts), key=len, reverse=True):
        if len(found) * len(part) <= _MOST_GROUPS:
            found = [one + other for one in found for other in part]
    return found if found != [[]] else None
