"""A Delta table that mirrors a bucket, and is updated exactly once with what changed.

Needs ``pip install 'cbframe[delta]'``.

>>> from cbframe.contrib.delta import to_delta, update_delta  # doctest: +SKIP
>>> to_delta("couchbase://host/travel", "travel-delta", auth=("reader", "…"))  # doctest: +SKIP
>>> update_delta("couchbase://host/travel", "travel-delta", auth=("reader", "…"))  # doctest: +SKIP

The table
---------
One row for each document, in any order: ``_cb_key``, the metadata ``_cb_…``, and the fields, as
:func:`cbframe.read_bucket` has them. Delta has fewer types than Arrow, and delta-rs some limits:

* ``_cb_seqno``, ``_cb_cas`` and ``_cb_rev_seqno`` are unsigned 64-bit numbers. They are ``long`` here, bit by
  bit: the same number up to 2^63, which no server reaches before the year 2262; ``view("uint64")`` of
  numpy gives any back. As decimals they would be exact, too, but delta-rs (1.6) rounds the statistics of
  decimals to doubles and cuts them at 2^63, and then finds no row by ``cas = …``; so do polars and
  duckdb, which read those statistics.
* Fields that are uint64 in Arrow are ``decimal(20, 0)``, exact in deltalake, polars and duckdb. For the
  said reason the table has no statistics but of metadata (``delta.dataSkippingStatsColumns``): rows are found
  as they should, and files are not skipped by the values of fields.
* The narrower unsigned numbers are the next wider signed ones.
* A field that is null in all documents is no column. In a list of nothing but nulls, items are strings. An
  object in which nothing was ever found is the text ``{}``.
* Delta's names differ in more than upper and lower case: of ``name`` and ``Name`` the second, in order of
  appearance, is ``Name_``. A backtick or NUL in a name is ``_``.

Updates
-------
What changed comes as one MERGE: data and positions are one commit, so a crash loses and doubles nothing.
The positions are in its metadata, under ``cbframe``, in the format of a snapshot's manifest; its version is
the application transaction ``cbframe``, and both must fit. Columns that no document had before are added.
Where a type gets wider, or a field appears inside of an object, the table is rewritten in one commit:
Delta cannot change a column's type, and MERGE of delta-rs (1.6) makes nulls of objects that get a new member.
No value is lost by that; what :mod:`cbframe.arrow.column_types` says of text holds: where a column was
double before it became text, 1 is ``1.0``.

A document whose expiry has passed is a row until the server removes it: no change reports that it expires.
Rows are found by ``_cb_expiry``, in seconds since the epoch, where 0 is never. Records of transactions, whose
keys begin with ``_txn:``, are no rows unless ``transaction_records="keep"`` says so; an update deletes those
that earlier releases have written.

What the server rolls back, the table rolls back: rows are deleted, and those that they had replaced come from
an earlier version of the table. Where its files are vacuumed, or it is more than fifty commits ago, that
vbucket alone is read again from the start.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any, Literal, Unpack, cast

import pyarrow as pa
import pyarrow.compute as pc

from cbframe.arrow.columns import COLLECTION_ID, KEY, SEQNO, VBUCKET
from cbframe.contrib import mirror
from cbframe.contrib.stored_rows import Fields, Format, Tables, Waiting
from cbframe.errors import DependencyError
from cbframe.public import Connectable, ServerURLs
from cbframe.scan.spec import path_of_files
from cbframe.snapshot.manifest import Manifest

__all__ = ["DeltaResult", "to_delta", "update_delta"]

_HARMLESS = {"OPTIMIZE", "VACUUM START", "VACUUM END", "SET TBLPROPERTIES"}
"""What others may do: the rows stay as they are."""
_STATISTICS = {
    "delta.dataSkippingStatsColumns": ",".join(
        (KEY, VBUCKET, SEQNO, "_cb_cas", "_cb_rev_seqno", "_cb_expiry", COLLECTION_ID)
    )
}
"""delta-rs rounds those of decimals, and what is looked for by them is not found."""
_ROWS = 1 << 17
"""Rows of a row group: deltalake holds those that are not complete in memory."""
_SAME = "t._cb_collection_id = s._cb_collection_id AND t._cb_key = s._cb_key"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaResult(mirror.MirrorResult):
    """A Delta table that was written.

    Attributes
    ----------
    uri
        Where it is; see :class:`~cbframe.contrib.mirror.MirrorResult` for the others.
    """

    uri: str

    def _place(self) -> tuple[str, str]:
        return "table", self.uri


class Delta(mirror.Table):
    """A table of deltalake's."""

    format = Format(
        "Delta", {pa.uint8(): pa.int16(), pa.uint16(): pa.int32(), pa.uint32(): pa.int64()}, "`\0"
    )
    made_by, updated_by, removed = "to_delta", "update_delta", "vacuumed"

    def __init__(
        self, uri: object, storage_options: Mapping[str, str] | None = None, spool_dir: Any = None
    ) -> None:
        self.where = path_of_files("uri", uri)
        self._options = None if storage_options is None else dict(storage_options)
        self._spool_dir = spool_dir
        try:
            import deltalake  # noqa: PLC0415 - optional
            from deltalake.exceptions import CommitFailedError, DeltaError  # noqa: PLC0415 - as above
        except ImportError as exc:
            raise DependencyError("deltalake is not installed", hint="pip install 'cbframe[delta]'") from exc
        self._library: Any = deltalake
        self._table: Any = None  # a `deltalake.DeltaTable`; None if there is none
        self._lost, self._failed = (CommitFailedError,), (DeltaError, OSError)
        with self.errors("open"):
            self.exists = deltalake.DeltaTable.is_deltatable(self.where, storage_options=self._options)
            if self.exists:
                self._table = self._opened()
                self.number = self._table.version()
                self.updates = self._table.transaction_version(mirror.APP) or 0
        self._writing = deltalake.WriterProperties(compression="ZSTD", max_row_group_size=_ROWS)

    def beside(self, name: str) -> Delta:
        return Delta(f"{self.where.rstrip('/')}__{name}", self._options, self._spool_dir)

    def _opened(self, version: int | None = None) -> Any:
        return self._library.DeltaTable(self.where, version=version, storage_options=self._options)

    # -- what there is

    def states(self) -> list[mirror.State]:
        with self.errors("read the log of"):
            commits = self._table.history(mirror.LOOK_BACK)
            if not any(mirror.APP in commit for commit in commits):
                commits = self._table.history()
        for commit in commits:
            if mirror.APP in commit:
                break
            if (what := commit["operation"]) == "RESTORE":
                raise self.changed(f"restored to what it was (version {commit['version']})", back=True)
            if what not in _HARMLESS:
                raise self.changed(f"{what}, version {commit['version']}")
        else:
            raise self.refusal(
                "the log of the table does not tell how far it was read: it was not made by to_delta(), or "
                "that commit was cleaned up"
            )
        newest, *older = (
            mirror.State(
                Manifest.from_bytes(each[mirror.APP].encode(), f"{self.where}, version {each['version']}"),
                each["version"],
            )
            for each in commits
            if mirror.APP in each
        )
        if self.updates != newest.manifest.version:
            raise self.refusal(
                f"the table does not fit its log: the last update is number {newest.manifest.version}, "
                f"and its transaction says {self.updates}"
            )
        # Whatever came after the newest has the same rows.
        return mirror.lineage([replace(newest, number=self.number), *older])

    def is_text(self, number: int) -> bool:
        with self.errors("read"):
            return bool(self._dataset(number).schema.field(KEY).type == pa.string())

    def _read(self, number: int, schema: pa.Schema, some: pc.Expression | None) -> Iterator[pa.Table]:
        for batch in self._dataset(number).to_batches(columns=schema.names, filter=some):
            if len(batch):
                yield pa.Table.from_batches([batch])

    def _dataset(self, number: int) -> Any:
        table = self._table if number == self.number else self._opened(number)
        return table.to_pyarrow_dataset()

    # -- commits

    def result(self, **fields: Any) -> DeltaResult:
        with self.errors("read the log of"):
            if self._table is None:
                self._table = self._opened()
            else:
                self._table.update_incremental()
            return DeltaResult(uri=self.where, version=int(self._table.version()), **fields)

    def overwrite(
        self,
        schema: pa.Schema,
        tables: Tables,
        manifest: Manifest,
        *,
        kept: Tables = (),
        before: Fields = (),  # noqa: ARG002 - no column keeps anything of what it was
    ) -> None:
        place: Any = self._table
        how: dict[str, Any] = {"mode": "overwrite", "schema_mode": "overwrite"}
        if place is None:
            place = self.where
            how = {"mode": "error", "configuration": _STATISTICS, "storage_options": self._options}
        with closing(Waiting(self._spool_dir)) as waiting:
            # deltalake must not be called while it takes rows: those that are read of it wait on disk.
            for table in kept:
                waiting.put(table)
            with mirror.unchanged_errors(chain(tables, waiting.tables())) as batches, self.errors("write"):
                if place is self._table and not _STATISTICS.items() <= place.metadata().configuration.items():
                    place.alter.set_table_properties(_STATISTICS)
                self._library.write_deltalake(
                    place,
                    pa.RecordBatchReader.from_batches(schema, batches),
                    writer_properties=self._writing,
                    commit_properties=self._properties(manifest),
                    **how,
                )

    def merge(self, source: mirror.Source, manifest: Manifest, *, grown: bool) -> None:
        schema = source.shape.schema.append(pa.field(mirror.CHANGE, pa.string()))
        before, upserted = self._table.version(), f"s.{mirror.CHANGE} = 'upsert'"
        with mirror.unchanged_errors(source.changes()) as batches, self.errors("update"):
            (
                self._table.merge(
                    pa.RecordBatchReader.from_batches(schema, batches),
                    predicate=_SAME,
                    source_alias="s",
                    target_alias="t",
                    merge_schema=grown,
                    writer_properties=self._writing,
                    commit_properties=self._properties(manifest),
                )
                .when_matched_delete(predicate=f"s.{mirror.CHANGE} = 'delete'")
                .when_matched_update_all(upserted, except_cols=[mirror.CHANGE])
                .when_not_matched_insert_all(upserted, except_cols=[mirror.CHANGE])
                .execute()
            )
        # Nothing comes of deletions of what the table does not have.
        if self._table.version() == before:
            self.note(manifest)

    def note(self, manifest: Manifest) -> None:
        with self.errors("update"):
            self._library.write_deltalake(
                self._table,
                self._table.to_pyarrow_dataset().schema.empty_table(),
                mode="append",
                commit_properties=self._properties(manifest),
            )

    def _properties(self, manifest: Manifest) -> Any:
        return self._library.CommitProperties(
            custom_metadata={mirror.APP: manifest.to_bytes().decode()},
            # After any other commit the positions were read of another table.
            max_commit_retries=0,
            app_transactions=[self._library.Transaction(mirror.APP, manifest.version)],
        )


# --- what is called


@mirror.with_arguments
def to_delta(
    conn: ServerURLs | Connectable,
    uri: str | os.PathLike[str],
    *,
    mode: Literal["error", "overwrite"] = "error",
    storage_options: Mapping[str, str] | None = None,
    table_per: Literal["collection"] | None = None,
    **arguments: Unpack[mirror.MirrorArguments],
) -> DeltaResult:
    """Copy a bucket into a Delta table, which :func:`update_delta` brings up to date.

    The table appears whole or not at all. Documents wait in temporary files (`spool_dir`); memory is
    some hundred MB, since deltalake makes files of 100 MB in memory. What the table looks like is in the
    documentation of this module. It has documents whose expiry has passed until the server removes them.

    Parameters
    ----------
    conn, bucket, auth, tls, network
        As of :func:`cbframe.scan_bucket`.
    uri
        A folder, or what deltalake knows: ``s3://…``, ``abfss://…``.
    mode
        ``"error"`` refuses to if there is a table. ``"overwrite"`` begins again in the same table: earlier
        versions stay until they are vacuumed.
    storage_options
        Of deltalake, for what `uri` is in.
    table_per
        ``"collection"`` makes a table for each collection that has documents, with columns of its own, named
        as ``travel__inventory__hotel``. The table `uri`, without rows, has the positions of all, and is
        committed last: by it an update finds what a process that ended has left unfinished.
    scope, collections, columns, filters, keys, key_prefix, key_pattern, keys_only, parse, xattrs, nested, \
schema, on_conflict, max_struct_fields, parse_dates, transaction_records
        What the table holds, as of :func:`cbframe.write_snapshot`; updates hold to it.
    consistency, only_persisted
        As of :func:`cbframe.write_snapshot`, and for this commit only.
    batch_bytes, buffer_bytes, spool_dir, spill_bytes, timeout, progress, event_log, options
        As of :func:`cbframe.scan_bucket`.
    clock
        Tells the time of day that is written down.

    Raises
    ------
    ConfigurationError
        An argument is invalid.
    ConversionError
        A type was declared that Delta does not have.
    DependencyError
        deltalake is not installed.
    SnapshotError
        There is a table, or it cannot be written.
    CbframeError
        The bucket could not be read.
    """
    table = partial(Delta, uri, storage_options, arguments["spool_dir"])
    return cast("DeltaResult", mirror.copied(table, {"conn": conn, **arguments}, mode, table_per))


@mirror.with_arguments
def update_delta(
    conn: ServerURLs | Connectable,
    uri: str | os.PathLike[str],
    *,
    storage_options: Mapping[str, str] | None = None,
    **arguments: Unpack[mirror.MirrorArguments],
) -> DeltaResult:
    """Bring a Delta table up to date with what changed in the bucket since.

    Rows and positions are one commit: a process that ends at any moment leaves the table as it was, or as it
    should be, and the next update goes on from there. Where nothing changed, there is no commit.

    Parameters
    ----------
    uri
        Where :func:`to_delta` made the table.
    scope, collections, columns, filters, keys, key_prefix, key_pattern, keys_only, parse, xattrs, nested, \
schema, on_conflict, max_struct_fields, parse_dates, transaction_records
        What the table holds need not be given again; anything else than then is an error.
    conn, bucket, auth, tls, network, consistency, only_persisted, batch_bytes, buffer_bytes, spool_dir, \
spill_bytes, timeout, progress, event_log, options, storage_options, clock
        As of :func:`to_delta`.

    Raises
    ------
    ConfigurationError
        An argument is invalid, or differs from what the table was made with.
    DependencyError
        deltalake is not installed.
    SnapshotError
        There is no table that :func:`to_delta` made, or someone else changed it; the bucket was flushed or
        created again; another writer was faster. The table stays as it is.
    CbframeError
        The bucket could not be read.
    """
    table = partial(Delta, uri, storage_options, arguments["spool_dir"])
    return cast("DeltaResult", mirror.updated(table, {"conn": conn, **arguments}))
