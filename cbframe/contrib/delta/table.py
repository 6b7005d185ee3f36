"""Commits to a Delta table: data, positions and the number of the update in one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from cbframe.arrow.columns import COLLECTION_ID, KEY, SEQNO, VBUCKET
from cbframe.errors import CbframeError, DependencyError, SnapshotError
from cbframe.snapshot.manifest import Manifest

APP = "cbframe"
"""The application whose transaction counts the updates, and the name of the commits' metadata."""
_LOOK_BACK = 50
"""Commits among which versions are looked for that can be gone back to."""
_HARMLESS = {"OPTIMIZE", "VACUUM START", "VACUUM END", "SET TBLPROPERTIES"}
"""What others may do: the rows stay as they are."""
_OVERWRITE = 'to_delta(..., mode="overwrite") makes it again; old versions stay until they are vacuumed'


@dataclass(frozen=True, slots=True)
class Base:
    """The state of a table that is continued."""

    table: Any  # A `deltalake.DeltaTable`, at the version that is continued
    manifest: Manifest  # of the last update. Its `files` are empty: those are in Delta's own log
    ancestors: list[Manifest]  # it and the updates before it, newest first
    versions: Mapping[int, int]  # by the version of an update, that of the table


def library() -> Any:
    """The module ``deltalake``."""
    try:
        import deltalake  # noqa: PLC0415 - optional
    except ImportError as exc:
        raise DependencyError("deltalake is not installed", hint="pip install 'cbframe[delta]'") from exc
    return deltalake


@contextmanager
def delta_errors(uri: str, doing: str) -> Iterator[None]:
    """Turns an error of deltalake's into one that says what to do."""
    from deltalake.exceptions import CommitFailedError, DeltaError  # noqa: PLC0415 - optional

    try:
        yield
    except CbframeError:
        raise
    except CommitFailedError as exc:
        raise SnapshotError(
            "another writer has changed the table meanwhile",
            path=uri,
            hint="nothing was written: let one process write at a time, and update again",
        ) from exc
    except (DeltaError, OSError) as exc:
        raise SnapshotError(f"cannot {doing} ({exc})", path=uri) from exc


def open_table(uri: str, storage_options: Mapping[str, str] | None) -> Any:
    """The table as it is now; None if there is none."""
    deltalake = library()
    options = None if storage_options is None else dict(storage_options)
    with delta_errors(uri, "open the Delta table"):
        if not deltalake.DeltaTable.is_deltatable(uri, storage_options=options):
            return None
        return deltalake.DeltaTable(uri, storage_options=options)


def base_of(table: Any, uri: str) -> Base:
    """What the log tells of the last update."""
    with delta_errors(uri, "read the log of the Delta table"):
        commits = table.history(_LOOK_BACK)
        if not any(APP in commit for commit in commits):
            commits = table.history()
        transaction = table.transaction_version(APP)
    for commit in commits:
        if APP in commit:
            break
        if commit["operation"] not in _HARMLESS:
            raise _changed(commit, uri)
    else:
        raise SnapshotError(
            "the log of the table does not tell how far it was read: it was not made by to_delta(), or that "
            "commit was cleaned up",
            path=uri,
            hint=_OVERWRITE,
        )
    ours = [(commit["version"], _manifest(commit, uri)) for commit in commits if APP in commit]
    newest = ours[0][1]
    if transaction != newest.version:
        raise SnapshotError(
            f"the table does not fit its log: the last update is number {newest.version}, and its "
            f"transaction says {transaction}",
            path=uri,
            hint=_OVERWRITE,
        )
    ancestors = [*_line([manifest for _, manifest in ours])]
    return Base(table, newest, ancestors, {manifest.version: version for version, manifest in ours})


def _manifest(commit: Mapping[str, Any], uri: str) -> Manifest:
    return Manifest.from_bytes(commit[APP].encode(), f"{uri}, version {commit['version']}")


def _line(manifests: list[Manifest]) -> Iterator[Manifest]:
    """A version, and what it was made from, as far as they are there."""
    parent = manifests[0].version
    for each in manifests:
        if each.version == parent:
            yield each
            if each.kind == "create":
                return
            parent = each.parent


def _changed(commit: Mapping[str, Any], uri: str) -> SnapshotError:
    what, version = commit["operation"], commit["version"]
    if what == "RESTORE":
        return SnapshotError(
            f"the table was restored to what it was (version {version}): its rows are older than the "
            "positions up to which the bucket was read, and the changes in between would be missing",
            path=uri,
            hint=_OVERWRITE,
        )
    return SnapshotError(
        f"the table was changed by someone else ({what}, version {version}): it is no mirror any more",
        path=uri,
        hint=_OVERWRITE,
    )


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
        with _unchanged_errors(tables) as batches, delta_errors(self._uri, "write the Delta table"):
            place: Any = self._table
            how: dict[str, Any] = {"mode": "overwrite", "schema_mode": "overwrite"}
            if place is None:
                place = self._uri
                how = {"mode": "error", "configuration": STATISTICS, "storage_options": self._storage_options}
            elif not STATISTICS.items() <= place.metadata().configuration.items():
                place.alter.set_table_properties(STATISTICS)
            self._library.write_deltalake(
                place,
                pa.RecordBatchReader.from_batches(schema, batches),
                writer_properties=self._writing,
                commit_properties=self._properties(manifest),
                **how,
            )

    def merge(
        self, changes: tuple[pa.Schema, Iterator[pa.Table]], manifest: Manifest, *, widen: bool
    ) -> None:
        """Change, add and delete rows."""
        schema, tables = changes
        before = self._table.version()
        with _unchanged_errors(tables) as batches, delta_errors(self._uri, "update the Delta table"):
            (
                self._table.merge(
                    pa.RecordBatchReader.from_batches(schema, batches),
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
        # Nothing comes of deletions of what the table does not have.
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

    def _properties(self, manifest: Manifest) -> Any:
        return self._library.CommitProperties(
            custom_metadata={APP: manifest.to_bytes().decode()},
            # After any other commit the positions were read of another table.
            max_commit_retries=0,
            app_transactions=[self._library.Transaction(APP, manifest.version)],
        )


@contextmanager
def _unchanged_errors(tables: Iterable[pa.Table]) -> Iterator[Iterator[pa.RecordBatch]]:
    """Batches for a library that makes its own error of any that comes on the way; raises it as it was."""
    error: BaseException | None = None

    def batches() -> Iterator[pa.RecordBatch]:
        nonlocal error
        try:
            for table in tables:
                yield from table.to_batches()
        except BaseException as exc:
            error = exc
            raise

    try:
        yield batches()
    except Exception as exc:
        if error is None or error is exc:
            raise
        raise error from None
