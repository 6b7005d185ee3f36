"""Commits to a Delta table: data, positions and the number of the update in one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from cbframe.arrow.columns import COLLECTION_ID, KEY, SEQNO, VBUCKET
from cbframe.contrib.delta.log import APP, delta_errors, library
from cbframe.snapshot.manifest import Manifest

CHANGE = "_cb_change"
"""What to do with a row of a MERGE; no column of the table, and no field can have the name."""
STATISTICS = {
    "delta.dataSkippingStatsColumns": ",".join(
        (KEY, VBUCKET, SEQNO, "_cb_cas", "_cb_rev_seqno", "_cb_expiry", COLLECTION_ID)
    )
}
"""delta-rs rounds those of decimals, and what is looked for by them is not found."""
_ROWS = 1 << 17
"""Rows of a row group: deltalake holds those that are not complete in memory."""
_SAME = "t._cb_collection_id = s._cb_collection_id AND t._cb_key = s._cb_key"


class Committer:
    """Writes one commit."""

    def __init__(self, uri: str, table: Any, storage_options: Mapping[str, str] | None) -> None:
        self._uri = uri
        self._table = table
        self._storage_options = None if storage_options is None else dict(storage_options)
        self._library = library()
        self._writing = self._library.WriterProperties(compression="ZSTD", max_row_group_size=_ROWS)

    def version(self) -> int:
        """Of the table."""
        with delta_errors(self._uri, "read the log of the Delta table"):
            if self._table is None:
                options = self._storage_options
                self._table = self._library.DeltaTable(self._uri, storage_options=options)
            else:
                self._table.update_incremental()
            return int(self._table.version())

    def overwrite(self, schema: pa.Schema, tables: Iterable[pa.Table], manifest: Manifest) -> None:
        """Have these rows be the whole table."""
        source = _Guarded(tables)
        reader = pa.RecordBatchReader.from_batches(schema, source.batches())
        with source.reporting(), delta_errors(self._uri, "write the Delta table"):
            if self._table is not None and not STATISTICS.items() <= self._configuration().items():
                self._table.alter.set_table_properties(STATISTICS)
            self._library.write_deltalake(
                self._uri if self._table is None else self._table,
                reader,
                mode="error" if self._table is None else "overwrite",
                schema_mode=None if self._table is None else "overwrite",
                configuration=STATISTICS if self._table is None else None,
                storage_options=self._storage_options if self._table is None else None,
                writer_properties=self._writing,
                commit_properties=self._properties(manifest),
            )

    def merge(
        self, changes: tuple[pa.Schema, Iterator[pa.Table]], manifest: Manifest, *, widen: bool
    ) -> None:
        """Change, add and delete rows.

        Where nothing comes of it, as of deletions of what the table does not have, it is noted.
        """
        schema, tables = changes
        source = _Guarded(tables)
        reader = pa.RecordBatchReader.from_batches(schema, source.batches())
        before = self._table.version()
        with source.reporting(), delta_errors(self._uri, "update the Delta table"):
            (
                self._table.merge(
                    reader,
                    predicate=_SAME,
                    source_alias="s",
                    target_alias="t",
                    merge_schema=widen,
                    writer_properties=self._writing,
                    commit_properties=self._properties(manifest),
                )
                .when_matched_delete(predicate=f"s.{CHANGE} = 'delete'")
                .when_matched_update_all(predicate=f"s.{CHANGE} = 'upsert'", except_cols=[CHANGE])
                .when_not_matched_insert_all(predicate=f"s.{CHANGE} = 'upsert'", except_cols=[CHANGE])
                .execute()
            )
        if self._table.version() == before:
            self.note(manifest)

    def note(self, manifest: Manifest) -> None:
        """Write down how far the bucket was read: no row changed."""
        with delta_errors(self._uri, "update the Delta table"):
            self._library.write_deltalake(
                self._table,
                self._table.to_pyarrow_dataset().schema.empty_table(),
                mode="append",
                commit_properties=self._properties(manifest),
            )

    def _configuration(self) -> Mapping[str, str]:
        found: Mapping[str, str] = self._table.metadata().configuration
        return found

    def _properties(self, manifest: Manifest) -> Any:
        return self._library.CommitProperties(
            custom_metadata={APP: manifest.to_bytes().decode()},
            # After any other commit the positions were read of another table.
            max_commit_retries=0,
            app_transactions=[self._library.Transaction(APP, manifest.version)],
        )


class _Guarded:
    """Tables for a library that makes its own error of any that comes on the way."""

    def __init__(self, tables: Iterable[pa.Table]) -> None:
        self._tables = tables
        self._error: BaseException | None = None

    def batches(self) -> Iterator[pa.RecordBatch]:
        """What the library takes."""
        try:
            for table in self._tables:
                yield from table.to_batches()
        except BaseException as exc:
            self._error = exc
            raise

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """Raises the error as it was."""
        try:
            yield
        except Exception as exc:
            if self._error is None or self._error is exc:
                raise
            raise self._error from None
