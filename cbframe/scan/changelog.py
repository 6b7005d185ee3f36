"""Changes in a folder of Parquet files, each of which says how far all of them reach."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import pyarrow as pa
import pyarrow.parquet as pq

from cbframe.arrow.columns import KEY, SEQNO, VBUCKET, formed, key_bytes
from cbframe.errors import CbframeError, ConfigurationError
from cbframe.scan.changes import CHANGE_TYPE, ChangeBatch
from cbframe.scan.checkpoint import CHECKPOINT_KEY, Checkpoint, change_files
from cbframe.system import replace, sync, sync_folder

_GROUP_BYTES = 16 << 20
_LOOK = 0.25


@dataclass(frozen=True, slots=True)
class Rotation:
    """When a file is complete: at the first of these, and not before it has a row."""

    rows: float = 1_000_000
    bytes: float = 64 << 20
    seconds: float = 60.0

    @classmethod
    def of(cls, wanted: Mapping[str, float] | None) -> Self:
        """What was asked for."""
        try:
            found = cls(**(wanted or {}))
        except TypeError:
            raise ConfigurationError(
                f"rotate={wanted!r}", hint='write {"rows": 1_000_000, "bytes": 64 << 20, "seconds": 60}'
            ) from None
        numbers: tuple[object, ...] = (found.rows, found.bytes, found.seconds)
        if not all(isinstance(n, int | float) and not isinstance(n, bool) and n > 0 for n in numbers):
            raise ConfigurationError(f"rotate={wanted!r}", hint="each number must be positive")
        return found


class Changes(Protocol):
    """What is written: a change stream."""

    @property
    def schema(self) -> pa.Schema: ...
    @property
    def checkpoint(self) -> Checkpoint: ...
    def release(self, batch: ChangeBatch) -> None: ...
    def ack(self, batch: ChangeBatch) -> None: ...
    def checkpoint_after(self, batch: ChangeBatch) -> Checkpoint: ...
    @property
    def state(self) -> str: ...


class ChangeLog:
    """Writes the changes of a stream into a folder."""

    def __init__(
        self,
        stream: Changes,  # whose changes; nobody else takes its batches
        folder: Path,  # where to
        rotation: Rotation,  # when a file is complete
        compression: str,  # of the files
        clock: Callable[[], float],  # monotonic seconds
        *,
        poll: Callable[[float | None], ChangeBatch | None],
    ) -> None:
        self._stream = stream
        self._poll = poll
        self._folder = folder
        self._rotation = rotation
        self._compression = compression
        self._clock = clock
        self._schema = _plain(stream.schema)
        folder.mkdir(parents=True, exist_ok=True)
        for scratch in folder.glob(".changes-*.tmp"):
            scratch.unlink()  # of a process that was killed
        files = change_files(folder)
        if files and Checkpoint.load(folder) != stream.checkpoint:
            raise ConfigurationError(
                f"the folder {str(folder)!r} has changes, and the stream does not begin where they end",
                hint="begin it with start=Checkpoint.load(folder), or name an empty folder",
            )
        if files:
            # Who reads the folder reads all files: keys stay of the type that they have there.
            kind = pq.read_schema(files[-1]).field(KEY).type
            at = self._schema.get_field_index(KEY)
            self._schema = self._schema.set(at, self._schema.field(KEY).with_type(kind))
        self._number = int(files[-1].stem.rpartition("-")[2]) + 1 if files else 1
        self._written: list[Path] = []
        self._file: _File | None = None

    def run(self, seconds: float | None) -> list[Path]:
        """Write until the stream ends, or `seconds` are over; the files that were written."""
        until = None if seconds is None else self._clock() + seconds
        try:
            try:
                while self._step(until):
                    pass
            except (CbframeError, KeyboardInterrupt):
                # What has come is whole all the same.
                self._complete()
                raise
            self._complete()
        finally:
            if self._file is not None:
                self._file.discard()
        return self._written

    def _step(self, until: float | None) -> bool:
        """Write what comes next; whether there may be more."""
        now = self._clock()
        if until is not None and now >= until:
            return False
        batch = self._poll(_LOOK if until is None else min(_LOOK, until - now))
        if batch is not None:
            if self._file is None:
                path = self._folder / f"changes-{self._number:012d}.parquet"
                self._file = _File(path, self._schema, self._compression, self._clock())
            self._file.add(batch)
            self._stream.release(batch)
        elif self._stream.state in ("closed", "finished"):
            return False
        if self._file is not None and self._file.is_complete(self._rotation, self._clock()):
            self._complete()
        return True

    def _complete(self) -> None:
        """Let the file appear, with the checkpoint behind its last row."""
        file, last = self._file, None if self._file is None else self._file.last
        if file is None or last is None:
            return
        file.complete(self._stream.checkpoint_after(last))
        self._file = None
        self._written.append(file.path)
        self._number += 1
        self._stream.ack(last)


class _File:
    """A file that is being written beside its name, which it takes when it is complete."""

    def __init__(self, path: Path, schema: pa.Schema, compression: str, now: float) -> None:
        self.path = path
        self.last: ChangeBatch | None = None
        self._since = now
        self._rows = self._nbytes = self._waiting_bytes = 0
        self._waiting: list[pa.RecordBatch] = []
        self._schema = schema
        self._compression = compression
        self._scratch = path.with_name(f".{path.name}.tmp")
        self._file = self._scratch.open("wb")
        self._writer: Any = pq.ParquetWriter(self._file, schema, compression=compression)

    def is_complete(self, rotation: Rotation, now: float) -> bool:
        full = self._rows >= rotation.rows or self._nbytes >= rotation.bytes
        return full or now >= self._since + rotation.seconds

    def add(self, batch: ChangeBatch) -> None:
        rows = _with_keys(pa.Table.from_batches([batch.record_batch]), self._schema).cast(self._schema)
        rollbacks, drops = _marks(batch, self._schema)
        for table in (rollbacks, rows, drops):
            self._waiting += table.to_batches()
            self._rows += len(table)
            self._nbytes += table.nbytes
            self._waiting_bytes += table.nbytes
        self.last = batch
        if self._waiting_bytes >= _GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            self._writer.write_table(pa.Table.from_batches(self._waiting, self._schema))
        self._waiting.clear()
        self._waiting_bytes = 0

    def complete(self, checkpoint: Checkpoint) -> None:
        """Let it appear."""
        self._flush()
        metadata = {CHECKPOINT_KEY: checkpoint.to_json().encode()}
        if hasattr(self._writer, "add_key_value_metadata"):
            self._writer.add_key_value_metadata(metadata)
            self._writer.close()
        else:
            # Before pyarrow 17, the metadata of a file has to be known when it is begun.
            self._writer.close()
            self._write_again(metadata)
        sync(self._file)
        self._file.close()
        replace(self._scratch, self.path)
        sync_folder(self.path.parent)

    def _write_again(self, metadata: Mapping[bytes, bytes]) -> None:
        """The same rows in a file that tells this from its beginning."""
        self._file.close()
        first = self._scratch.with_name(f"{self._scratch.name}.again.tmp")
        replace(self._scratch, first)
        self._file = self._scratch.open("wb")
        schema = self._schema.with_metadata(metadata)
        with (
            pq.ParquetFile(first) as before,
            pq.ParquetWriter(self._file, schema, compression=self._compression) as writer,
        ):
            for number in range(before.num_row_groups):
                writer.write_table(before.read_row_group(number).cast(schema))
        first.unlink()

    def discard(self) -> None:
        """Let it never have been."""
        self._writer.close()
        self._file.close()
        self._scratch.unlink(missing_ok=True)


def _with_keys(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """Rows whose keys are of the type that a folder has."""
    kind = schema.field(KEY).type
    if rows[KEY].type == kind:
        return rows
    keys = key_bytes(rows[KEY]) if pa.types.is_binary(kind) else formed(rows[KEY], "text")
    return rows.set_column(rows.column_names.index(KEY), KEY, keys)


def _plain(schema: pa.Schema) -> pa.Schema:
    """Text in place of dictionaries, and no column that a mark could not leave out."""
    fields = [
        field.with_type(pa.string() if pa.types.is_dictionary(field.type) else field.type).with_nullable(True)
        for field in schema
    ]
    return pa.schema(fields)


def _marks(batch: ChangeBatch, schema: pa.Schema) -> tuple[pa.Table, pa.Table]:
    """Rows that tell of what is void: before those of the batch, and behind them."""
    rollbacks = [
        {CHANGE_TYPE: "rollback", VBUCKET: each.vbucket, SEQNO: each.seqno} for each in batch.rollbacks
    ]
    drops = [
        {
            CHANGE_TYPE: "drop",
            VBUCKET: each.vbucket,
            SEQNO: each.seqno,
            "_cb_scope": each.scope,
            "_cb_collection": each.collection,
        }
        for each in batch.drops
    ]
    return pa.Table.from_pylist(rollbacks, schema), pa.Table.from_pylist(drops, schema)
