"""A snapshot as users see it: its versions, its documents as of any of them, what changed between two."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.fs as pafs

from cbframe.arrow.column_types import Columns, differences
from cbframe.arrow.columns import KeyForm, check_key_form
from cbframe.arrow.filters import make_filters
from cbframe.errors import ConfigurationError, DependencyError, SnapshotError
from cbframe.public import public
from cbframe.scan.result import AsOf, Clock, utc_now
from cbframe.scan.scan import ArrowExport
from cbframe.scan.spec import (
    METADATA_NAMES,
    NESTED,
    ColumnsLike,
    Exclusion,
    FiltersLike,
    Nested,
    names,
    paths_of,
    positive,
    seconds_of,
)
from cbframe.scan.store import Store, open_store, writing
from cbframe.snapshot.files import DATA, FILE_BYTES, Live, check_form
from cbframe.snapshot.maintenance import Compaction, Verification, compact, count, export, vacuum, verify
from cbframe.snapshot.manifest import Counts, History, Manifest, VersionLike
from cbframe.snapshot.reader import VersionReader, changes, documents_of

if TYPE_CHECKING:
    import pandas as pd


_READ = ("as_of", "columns", "filters", "metadata", "nested", "keys", "expired")
_COUNTED = 1_000_000
"""Rows that are counted for a ``repr``."""
_LONGEST = 100 * 365 * 86400.0
"""Seconds: no snapshot is older, and there is no date much earlier."""


@dataclass(frozen=True, slots=True)
class SnapshotVersion:
    """A version of a snapshot.

    Attributes
    ----------
    version
        Its number.
    kind
        ``create``, ``update``, ``repair`` or ``compact``.
    created
        Its time: after that of the version before, whatever the clocks of those who wrote them said.
    counts
        Rows of this version: upserted, deleted, retracted.
    files, nbytes
        Files that it consists of, those of earlier versions included, and their size.
    as_of
        Its vbucket positions.
    """

    version: int
    kind: str
    created: datetime
    counts: Counts
    files: int
    nbytes: int
    as_of: AsOf


class Snapshot:
    """A Parquet snapshot, as :func:`cbframe.write_snapshot` makes it. No cluster is needed.

    Any consumer of the Arrow PyCapsule interface (polars, duckdb, pyarrow, pandas) takes it as it is, for
    its documents as of the newest version.

    Parameters
    ----------
    path
        A folder, or a URI that pyarrow or fsspec know.
    filesystem, storage_options
        What `path` is in: a file system of pyarrow's, or options for that of fsspec.

    Raises
    ------
    SnapshotError
        There is no snapshot.
    """

    @public
    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        filesystem: pafs.FileSystem | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        self._store: Store = open_store(path, filesystem=filesystem, storage_options=storage_options)
        self._history = History(self._store)
        self._history.at(None)
        self._export = ArrowExport()

    def __repr__(self) -> str:
        newest = self._history.at(None)
        time = self._history.time_of(newest).astimezone(UTC)
        return (
            f"<Snapshot {self._store.root!r} of {newest.bucket!r}: version {newest.version} of "
            f"{time:%Y-%m-%d %H:%M} UTC, {self._contents(newest)} in {count(len(newest.files), 'file')}>"
        )

    def _contents(self, manifest: Manifest) -> str:
        """Documents, and deletions that are kept: counted where that is fast, else bounded."""
        rows = sum(entry.rows for entry in manifest.files)
        upserts = sum(entry.upserts for entry in manifest.files)
        most, documents, tombstones = "at most ", upserts, rows - upserts
        if rows <= _COUNTED:
            with suppress(SnapshotError):  # of files that are gone or damaged
                live = Live(self._store, manifest, moment=self._moment(manifest, "drop"))
                documents = sum(part.count for part in live.parts())
                kept = sum(part.count for part in Live(self._store, manifest, deletions=True).parts())
                most, tombstones = "", kept - documents - live.expired
        return f"{most}{count(documents, 'document')} and {count(tombstones, 'tombstone')}"

    @property
    @public
    def versions(self) -> list[SnapshotVersion]:
        """The versions that can be read, oldest first."""
        there = {f"{DATA}/{name}" for name in self._store.names(DATA)}
        manifests = map(self._history.load, self._history.numbers())
        return [
            self._version_of(each) for each in manifests if all(entry.name in there for entry in each.files)
        ]

    def _version_of(self, manifest: Manifest) -> SnapshotVersion:
        return SnapshotVersion(
            manifest.version,
            manifest.kind,
            self._history.time_of(manifest),
            manifest.counts,
            len(manifest.files),
            sum(entry.nbytes for entry in manifest.files),
            self._as_of(manifest),
        )

    def _as_of(self, manifest: Manifest) -> AsOf:
        return AsOf.of(dict(enumerate(manifest.positions)), self._history.time_of(manifest))

    @property
    @public
    def version(self) -> int:
        """The newest version."""
        return self._history.at(None).version

    @property
    @public
    def as_of(self) -> AsOf:
        """The vbucket positions of the newest version: for each vbucket its history, and a seqno."""
        return self._as_of(self._history.at(None))

    @property
    @public
    def checkpoint(self) -> dict[int, dict[str, Any]]:
        """Where the next update goes on: by vbucket, what a stream request needs."""
        newest = self._history.at(None)
        return {
            vbucket: {
                "vbuuid": position.vbuuid,
                "seqno": position.seqno,
                "snapshot": (position.snap_start, position.snap_end),
                "failover_log": [tuple(entry) for entry in position.failover_log],
                "manifest_uid": position.manifest_uid,
                "purge_seqno": position.purge_seqno,
            }
            for vbucket, position in enumerate(newest.positions)
        }

    @property
    @public
    def schema(self) -> pa.Schema:
        """Of the newest version's documents."""
        return self._reader(None).schema

    @public
    def schema_history(self) -> pd.DataFrame:
        """How the schema came to be: for each version, the fields that appeared or changed their type.

        Returns
        -------
        pandas.DataFrame
            Columns ``version``, ``created``, ``field``, ``before`` and ``after``.
        """
        import pandas as pd  # noqa: PLC0415 - slow to import

        rows = []
        before = nothing = Columns({})
        for number in self._history.numbers():
            manifest = self._history.load(number)
            after = documents_of(manifest)
            rows += [
                (number, self._history.time_of(manifest), *each)
                for each in differences(nothing if manifest.kind == "create" else before, after)
            ]
            before = after
        return pd.DataFrame(rows, columns=["version", "created", "field", "before", "after"])

    def _reader(self, as_of: VersionLike, expired: str = "keep", **wanted: Any) -> VersionReader:
        manifest = self._history.at(as_of)
        return VersionReader(self._store, manifest, moment=self._moment(manifest, expired), **wanted)

    def _moment(self, manifest: Manifest, expired: str) -> int | None:
        """By when documents of a version have expired, in seconds since the epoch; None to keep them."""
        if expired not in get_args(Exclusion):
            raise ConfigurationError(
                f"expired={expired!r}", hint=f"choose from: {', '.join(get_args(Exclusion))}"
            )
        time = manifest.node_time or self._history.time_of(manifest)
        return int(time.timestamp()) if expired == "drop" else None

    @public
    def to_reader(
        self,
        *,
        as_of: VersionLike = None,
        columns: ColumnsLike | None = None,
        filters: FiltersLike | None = None,
        metadata: str | Iterable[str] = ("key",),
        nested: Nested = "struct",
        keys: KeyForm | None = None,
        expired: Exclusion = "drop",
    ) -> pa.RecordBatchReader:
        """The documents as a stream of record batches; of memory, it takes some bytes a row and a row group.

        Parameters
        ----------
        as_of, columns, filters, metadata, nested, keys, expired
            As of :func:`cbframe.read_snapshot`.
        """
        reader = self._reader(as_of, expired, **_checked(columns, filters, metadata, nested, keys))
        batches = (batch for table in reader.tables() for batch in table.to_batches())
        return pa.RecordBatchReader.from_batches(reader.schema, batches)

    @public
    def to_arrow(
        self,
        *,
        as_of: VersionLike = None,
        columns: ColumnsLike | None = None,
        filters: FiltersLike | None = None,
        metadata: str | Iterable[str] = ("key",),
        nested: Nested = "struct",
        keys: KeyForm | None = None,
        expired: Exclusion = "drop",
    ) -> pa.Table:
        """The documents as an Arrow table.

        Parameters
        ----------
        as_of, columns, filters, metadata, nested, keys, expired
            As of :func:`cbframe.read_snapshot`.
        """
        manifest = self._history.at(as_of)
        reader = self._reader(manifest.version, expired, **_checked(columns, filters, metadata, nested, keys))
        tables = [*reader.tables()]
        about = {
            "bucket": manifest.bucket,
            "version": manifest.version,
            "as_of": self._as_of(manifest),
            "time": self._history.time_of(manifest).isoformat(),
            "expired": reader.expired,
        }
        schema = reader.schema.with_metadata({b"cbframe": json.dumps(about).encode()})
        tables = [table.replace_schema_metadata(schema.metadata) for table in tables]
        return pa.concat_tables(tables) if tables else schema.empty_table()

    @public
    def to_pandas(
        self,
        *,
        as_of: VersionLike = None,
        columns: ColumnsLike | None = None,
        filters: FiltersLike | None = None,
        metadata: str | Iterable[str] = ("key",),
        nested: Nested = "struct",
        keys: KeyForm | None = None,
        expired: Exclusion = "drop",
        dtype_backend: str | None = "pyarrow",
    ) -> pd.DataFrame:
        """The documents as a DataFrame whose index is the key.

        Parameters
        ----------
        as_of, columns, filters, metadata, nested, keys, expired, dtype_backend
            As of :func:`cbframe.read_snapshot`.
        """
        from cbframe.scan.dataframe import to_pandas  # noqa: PLC0415 - pandas is slow to import

        table = self.to_arrow(**_chosen(locals()))
        about = json.loads(table.schema.metadata[b"cbframe"])
        about["as_of"] = AsOf(
            {int(vb): (at[0], at[1]) for vb, at in about["as_of"].items()},
            datetime.fromisoformat(about["time"]),
        )
        return to_pandas(table, dtype_backend, about)

    @public
    def to_polars(
        self,
        *,
        as_of: VersionLike = None,
        columns: ColumnsLike | None = None,
        filters: FiltersLike | None = None,
        metadata: str | Iterable[str] = ("key",),
        nested: Nested = "struct",
        keys: KeyForm | None = None,
        expired: Exclusion = "drop",
    ) -> Any:
        """The documents as a polars DataFrame.

        Parameters
        ----------
        as_of, columns, filters, metadata, nested, keys, expired
            As of :func:`cbframe.read_snapshot`.

        Raises
        ------
        DependencyError
            polars is not installed.
        """
        wanted = _chosen(locals())
        try:
            import polars as pl  # noqa: PLC0415 - optional
        except ImportError as exc:
            raise DependencyError("polars is not installed", hint="pip install 'cbframe[polars]'") from exc
        return pl.from_arrow(self.to_arrow(**wanted))

    @public
    def dataset(
        self,
        *,
        as_of: VersionLike = None,
        columns: ColumnsLike | None = None,
        filters: FiltersLike | None = None,
        metadata: str | Iterable[str] = ("key",),
        nested: Nested = "struct",
        keys: KeyForm | None = None,
        expired: Exclusion = "drop",
    ) -> pads.Dataset:
        """The documents as a dataset of pyarrow's, in memory.

        One on disk, of any size, is what :meth:`export` makes.

        Parameters
        ----------
        as_of, columns, filters, metadata, nested, keys, expired
            As of :func:`cbframe.read_snapshot`.
        """
        return pads.dataset(self.to_arrow(**_chosen(locals())))

    @public
    def __arrow_c_schema__(self) -> Any:
        """The schema; the next stream that a consumer asks for is of the same version."""
        return self._export.schema(self.to_reader, again=True)

    @public
    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        """Hand the documents over to any Arrow consumer."""
        return self._export.stream(self.to_reader, requested_schema)

    @public
    def __len__(self) -> int:
        """How many documents there are, without those that have expired."""
        newest = self._history.at(None)
        live = Live(self._store, newest, moment=self._moment(newest, "drop"))
        return sum(part.count for part in live.parts())

    @public
    def export(
        self,
        path: str | os.PathLike[str],
        *,
        as_of: VersionLike = None,
        keys: KeyForm | None = None,
        expired: Exclusion = "drop",
        compression: str = "zstd",
    ) -> Path:
        """Write the documents as a folder of plain Parquet files, which any tool reads.

        Parameters
        ----------
        path
            The folder, on this machine; it must not exist, and appears whole or not at all.
        as_of, keys, expired
            As of :func:`cbframe.read_snapshot`.
        compression
            Of the files.

        Raises
        ------
        SnapshotError
            There is something at `path`.
        """
        check_form(compression)
        check_key_form(keys)
        return export(self._reader(as_of, expired, keys=keys), open_store(path), compression)

    @public
    def verify(self) -> Verification:
        """Look at all files: digests, rows, and that each version goes on where the one before ends."""
        return verify(self._store, self._history)

    @public
    def compact(
        self,
        *,
        keep: str | timedelta = "1d",
        compression: str = "zstd",
        file_bytes: int = FILE_BYTES,
        clock: Clock = utc_now,
    ) -> Compaction:
        """Write the newest version again, into few files, as a version of its own.

        Where that would change neither rows nor files, nothing is written, and the result says so.

        Documents that were deleted, and older versions of documents, are left out, but for what came within
        `keep` and was not ``only_persisted``: the server may roll back what it has sent lately, and then they
        count again. A rollback to before that has its vbucket read again from the start. :meth:`vacuum`
        deletes the old files.

        Parameters
        ----------
        keep
            A ``timedelta``, or a text as ``"90min"``, ``"1d"``. A failover loses seconds, rarely minutes.
        compression, file_bytes, clock
            As of :func:`cbframe.write_snapshot`.
        """
        check_form(compression, file_bytes)
        span = _span(keep)
        with writing(self._store, clock=clock):
            return compact(
                self._store,
                self._history,
                keep=span,
                now=clock(),
                compression=compression,
                file_bytes=file_bytes,
            )

    @public
    def vacuum(self, *, keep: int = 1, clock: Clock = utc_now) -> list[str]:
        """Delete the files that only older versions need, and what crashed writers left; their names.

        Parameters
        ----------
        keep
            How many of the newest versions stay readable, 1 or more.
        """
        keep = positive("keep", keep)
        with writing(self._store, clock=clock):
            return vacuum(self._store, self._history, keep)

    @public
    def changes(
        self, since: VersionLike, until: VersionLike = None, *, keys: KeyForm | None = None
    ) -> pd.DataFrame:
        """What changed between two versions: a row for each change, with ``_change_type``.

        Parameters
        ----------
        since, until
            Versions, or times; None for the newest one.
        keys
            As of :func:`cbframe.read_snapshot`.

        Returns
        -------
        pandas.DataFrame
            ``upsert``, ``delete`` and ``expire`` are what the bucket sent: a document whose expiry passes is
            reported when the server has removed it. Where changes were rolled back:
            ``restore`` (an older version of the document counts again) and ``retract`` (there was none). And
            ``drop``, of a document whose collection was dropped or emptied. In order within each vbucket.

        Raises
        ------
        SnapshotError
            Files of a version in between were deleted by :meth:`vacuum`.
        """
        from cbframe.scan.dataframe import to_pandas  # noqa: PLC0415 - pandas is slow to import

        return to_pandas(self.changes_to_arrow(since, until, keys=keys), "pyarrow")

    @public
    def changes_to_arrow(
        self, since: VersionLike, until: VersionLike = None, *, keys: KeyForm | None = None
    ) -> pa.Table:
        """What :meth:`changes` tells, as an Arrow table."""
        check_key_form(keys)
        return changes(self._store, self._history, self._history.at(since), self._history.at(until), keys)


def _span(keep: str | timedelta) -> timedelta:
    given: object = keep
    if not isinstance(given, str | timedelta):
        # vacuum() takes a number, of versions.
        raise ConfigurationError(
            f"keep={given!r} is no span of time", hint='give "90min", "1d" or a timedelta'
        )
    return timedelta(seconds=min(seconds_of("keep", keep), _LONGEST))


def _chosen(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Of the ``locals()`` of a function, the arguments by which documents are read."""
    return {name: arguments[name] for name in _READ}


def _checked(
    columns: Any, filters: Any, metadata: str | Iterable[str], nested: str, keys: str | None
) -> dict[str, Any]:
    """Arguments of a read, as the reader takes them."""
    check_key_form(keys)
    if nested not in NESTED or nested == "json":
        raise ConfigurationError(
            f"nested={nested!r}", hint='choose "struct" or "flatten"; "json" is decided when it is written'
        )
    return {
        "columns": None if columns is None else paths_of(columns),
        "filters": None if filters is None else make_filters(filters),
        "metadata": names("metadata", metadata, hint=f"choose from: {', '.join(METADATA_NAMES)}"),
        "nested": nested,
        "keys": keys,
    }


@public
def read_snapshot(
    path: str | os.PathLike[str],
    *,
    columns: ColumnsLike | None = None,
    filters: FiltersLike | None = None,
    as_of: VersionLike = None,
    metadata: str | Iterable[str] = ("key",),
    nested: Nested = "struct",
    keys: KeyForm | None = None,
    expired: Exclusion = "drop",
    return_type: str = "pandas",
    dtype_backend: str | None = "pyarrow",
    filesystem: pafs.FileSystem | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Any:
    """Read the documents of a snapshot: of each the newest version that counts, without deleted ones.

    No cluster is needed. Files, and parts of files, that no wanted row can be in are not read.

    Parameters
    ----------
    path
        Where :func:`cbframe.write_snapshot` made it.
    columns, filters, metadata, nested
        As of :func:`cbframe.scan_bucket`. Filters give the rows that they give of a bucket; where a
        version no longer has what they compare (text that holds 60 and ``"60"``), they are an error.
    as_of
        A version, or a time (``datetime`` or ISO 8601; without zone it is UTC); None for the newest.
    keys
        ``"text"`` or ``"binary"``, as of :func:`cbframe.scan_bucket`; None for the form that the snapshot was
        made with.
    expired
        ``"drop"`` leaves out documents whose expiry had passed at the time of the version, as
        :func:`cbframe.scan_bucket` does; ``"keep"`` gives those that the server had not removed. The time is
        the latest that a data node had reported, or that of the version where none had. Files have these
        documents in any case, and no event says that one expires.
    return_type
        ``"pandas"``, ``"arrow"`` or ``"polars"``.
    dtype_backend
        Of pandas: ``"pyarrow"``, ``"numpy_nullable"`` or None.
    filesystem, storage_options
        What `path` is in.

    Raises
    ------
    ConfigurationError
        An argument is invalid.
    SnapshotError
        There is no snapshot, or a file of it is gone or damaged.
    """
    wanted = _chosen(locals())
    snapshot = Snapshot(path, filesystem=filesystem, storage_options=storage_options)
    match return_type:
        case "pandas":
            return snapshot.to_pandas(dtype_backend=dtype_backend, **wanted)
        case "arrow":
            return snapshot.to_arrow(**wanted)
        case "polars":
            return snapshot.to_polars(**wanted)
    raise ConfigurationError(f"return_type={return_type!r}", hint="choose from: pandas, arrow, polars")
