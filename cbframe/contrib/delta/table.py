"""Delta tables: what their log tells, and commits of data, positions and the number of the update."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cbframe.arrow.columns import COLLECTION_ID, KEY, SEQNO, VBUCKET
from cbframe.contrib.mirror import (
    APP,
    CHANGE,
    LOOK_BACK,
    Base,
    MirrorResult,
    Source,
    State,
    Table,
    unchanged_errors,
)
from cbframe.contrib.stored_rows import Format, Waiting
from cbframe.errors import DependencyError, SnapshotError
from cbframe.scan.spec import path_of_files
from cbframe.snapshot.manifest import Manifest

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
class DeltaResult(MirrorResult):
    """A Delta table that was written.

    Attributes
    ----------
    uri
        Where it is; see :class:`~cbframe.contrib.mirror.MirrorResult` for the others.
    """

    uri: str

    def _place(self) -> tuple[str, str]:
        return "table", self.uri


class Delta(Table):
    """A table of deltalake's."""

    format = Format(
        "Delta", {pa.uint8(): pa.int16(), pa.uint16(): pa.int32(), pa.uint32(): pa.int64()}, "`\0"
    )
    made_by, updated_by, removed = "to_delta", "update_delta", "vacuumed"

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        options = arguments["storage_options"]
        self.where = path_of_files("uri", arguments["uri"])
        self._arguments = arguments
        self._options = None if options is None else dict(options)
        self._library = _library()
        self._table: Any = None  # a `deltalake.DeltaTable`; None if there is none
        from deltalake.exceptions import CommitFailedError, DeltaError  # noqa: PLC0415 - optional

        self._lost, self._failed = (CommitFailedError,), (DeltaError, OSError)
        self.updates = self.number = 0
        with self.errors("open"):
            self.exists = self._library.DeltaTable.is_deltatable(self.where, storage_options=self._options)
            if self.exists:
                self._table = self._opened()
                self.number = self._table.version()
                self.updates = self._table.transaction_version(APP) or 0
        self._writing = self._library.WriterProperties(compression="ZSTD", max_row_group_size=_ROWS)

    def beside(self, name: str) -> Delta:
        return Delta({**self._arguments, "uri": f"{self.where.rstrip('/')}__{name}"})

    def _opened(self, version: int | None = None) -> Any:
        return self._library.DeltaTable(self.where, version=version, storage_options=self._options)

    # -- what there is

    def base(self) -> Base:
        with self.errors("read the log of"):
            commits = self._table.history(LOOK_BACK)
            if not any(APP in commit for commit in commits):
                commits = self._table.history()
        for commit in commits:
            if APP in commit:
                break
            if commit["operation"] not in _HARMLESS:
                raise self._changed(commit)
        else:
            raise self.refusal(
                "the log of the table does not tell how far it was read: it was not made by to_delta(), or "
                "that commit was cleaned up"
            )
        ours = [State(self._manifest(each), each["version"]) for each in commits if APP in each]
        # Whatever came after the newest has the same rows.
        base = Base.of([replace(ours[0], number=self.number), *ours[1:]])
        if self.updates != base.newest.manifest.version:
            raise self.refusal(
                f"the table does not fit its log: the last update is number {base.newest.manifest.version}, "
                f"and its transaction says {self.updates}"
            )
        return base

    def _manifest(self, commit: Mapping[str, Any]) -> Manifest:
        return Manifest.from_bytes(commit[APP].encode(), f"{self.where}, version {commit['version']}")

    def _changed(self, commit: Mapping[str, Any]) -> SnapshotError:
        what, version = commit["operation"], commit["version"]
        if what == "RESTORE":
            return self.refusal(
                f"the table was restored to what it was (version {version}): its rows are older than the "
                "positions up to which the bucket was read, and the changes in between would be missing"
            )
        return self.refusal(
            f"the table was changed by someone else ({what}, version {version}): it is no mirror any more"
        )

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
        tables: Iterable[pa.Table],
        kept: Iterable[pa.Table],
        manifest: Manifest,
        *,
        before: pa.Schema,  # noqa: ARG002 - no column keeps anything of what it was
    ) -> None:
        # deltalake must not be called while it takes rows: those that are read of it wait on disk.
        with closing(Waiting(self._arguments["spool_dir"])) as waiting:
            for table in kept:
                waiting.put(table)
            self._overwrite(schema, chain(tables, waiting.tables()), manifest)

    def _overwrite(self, schema: pa.Schema, tables: Iterable[pa.Table], manifest: Manifest) -> None:
        with unchanged_errors(tables) as batches, self.errors("write"):
            place: Any = self._table
            how: dict[str, Any] = {"mode": "overwrite", "schema_mode": "overwrite"}
            if place is None:
                place = self.where
                how = {"mode": "error", "configuration": _STATISTICS, "storage_options": self._options}
            elif not _STATISTICS.items() <= place.metadata().configuration.items():
                place.alter.set_table_properties(_STATISTICS)
            self._library.write_deltalake(
                place,
                pa.RecordBatchReader.from_batches(schema, batches),
                writer_properties=self._writing,
                commit_properties=self._properties(manifest),
                **how,
            )

    def merge(self, source: Source, manifest: Manifest, *, grown: bool) -> None:
        schema, tables = source.changes()
        before = self._table.version()
        with unchanged_errors(tables) as batches, self.errors("update"):
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
                .when_matched_delete(predicate=f"s.{CHANGE} = 'delete'")
                .when_matched_update_all(predicate=f"s.{CHANGE} = 'upsert'", except_cols=[CHANGE])
                .when_not_matched_insert_all(predicate=f"s.{CHANGE} = 'upsert'", except_cols=[CHANGE])
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
            custom_metadata={APP: manifest.to_bytes().decode()},
            # After any other commit the positions were read of another table.
            max_commit_retries=0,
            app_transactions=[self._library.Transaction(APP, manifest.version)],
        )


def _library() -> Any:
    """The module ``deltalake``."""
    try:
        import deltalake  # noqa: PLC0415 - optional
    except ImportError as exc:
        raise DependencyError("deltalake is not installed", hint="pip install 'cbframe[delta]'") from exc
    return deltalake
