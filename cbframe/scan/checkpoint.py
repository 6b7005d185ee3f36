"""How far a consumer of changes is, and a folder of Parquet files that says how far it reaches.

A :class:`Checkpoint` is stored as JSON: in a file, or in the metadata of each file of a :class:`ChangeLog`,
of which the newest counts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic
from typing import Any, Protocol, Self

import pyarrow as pa
import pyarrow.parquet as pq

from cbframe import system
from cbframe.arrow.columns import KEY, SEQNO, VBUCKET, formed, key_bytes
from cbframe.cluster.collections_manifest import CollectionName
from cbframe.dcp.positions import GO_BACK, VBucketOffset, u64_of
from cbframe.errors import CbframeError, ConfigurationError
from cbframe.scan.changes import CHANGE_TYPE, ChangeBatch
from cbframe.scan.parquet import whole_file
from cbframe.scan.result import AsOf
from cbframe.wire.constants import MAX_VBUCKETS

_FORMAT = "cbframe checkpoint"
_VERSION = 1
_METADATA = b"cbframe.checkpoint"
"""Of a file of changes: what says how far all of them reach."""
_GROUP_BYTES = 16 << 20
_POLL = 0.25


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """How far a consumer has got in all vbuckets of a bucket.

    Store it in one transaction with the data that it stands for, and nothing is lost or doubled;
    store it after the data, and some changes may be delivered twice.

    Attributes
    ----------
    bucket, bucket_uuid
        Of which bucket, and of which life of it: streams of another one refuse it.
    offsets
        By vbucket; those that are missing begin at their start.
    scope, collections, key_prefix, transaction_records, key_pattern
        What the stream was asked for: one that asks for something else has not seen what lies before.
        ``transaction_records`` is None in checkpoints of 0.1.0, after a read and at the beginning: a stream
        with any choice may begin there.
    collection_names
        Names by collection id, as far as the stream knew them: a collection that is dropped later is
        reported by its id alone. Not compared.
    """

    bucket: str
    bucket_uuid: str
    offsets: Mapping[int, VBucketOffset] = field(repr=False)
    scope: str | None = None
    collections: tuple[str, ...] | None = None
    key_prefix: bytes | None = field(default=None, repr=False)
    collection_names: Mapping[int, CollectionName] = field(default_factory=dict, repr=False, compare=False)
    transaction_records: str | None = None
    key_pattern: str | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        changes = sum(offset.seqno for offset in self.offsets.values())
        return f"<Checkpoint of {self.bucket!r}: {len(self.offsets)} vbuckets, {changes:,} changes>"

    @property
    def as_of(self) -> AsOf:
        """History and seqno of each vbucket."""
        return AsOf.of(self.offsets)

    @classmethod
    def after(cls, as_of: AsOf, bucket: str, bucket_uuid: str = "") -> Checkpoint:
        """After a read: a stream from here brings what changed since.

        Parameters
        ----------
        as_of
            The vbucket positions of the read: ``df.attrs["cbframe"]["as_of"]``, or :attr:`BucketScan.as_of`.
            The read has to be of the same scope and collections as the stream.
        bucket
            Where it is from.
        bucket_uuid
            Refuse another life of the bucket; empty to take any: histories that are unknown to it begin
            again in any case.
        """
        return cls(
            bucket,
            bucket_uuid,
            {vb: VBucketOffset.at(vbuuid, seqno, (seqno,)) for vb, (vbuuid, seqno) in as_of.items() if seqno},
        )

    def updated(self, offsets: Mapping[int, VBucketOffset]) -> Checkpoint:
        """The same with other offsets for some vbuckets, such as those of a batch."""
        return replace(self, offsets={**self.offsets, **offsets})

    def leads_to(self, other: Checkpoint) -> bool:
        """Whether a stream at `other` begins here; those of 0.1.0 do not know of transaction records."""
        if self.transaction_records is None:
            other = replace(other, transaction_records=None)
        return self == other

    def to_json(self) -> str:
        """Text that :meth:`from_json` reads."""
        content = {
            "format": _FORMAT,
            "version": _VERSION,
            "bucket": self.bucket,
            "bucket_uuid": self.bucket_uuid,
            "scope": self.scope,
            "collections": None if self.collections is None else list(self.collections),
            "key_prefix": None if self.key_prefix is None else self.key_prefix.hex(),
            "collection_names": {
                str(cid): [name.scope, name.name] for cid, name in sorted(self.collection_names.items())
            },
            "vbuckets": {str(vb): offset.to_dict() for vb, offset in sorted(self.offsets.items())},
        }
        if self.transaction_records is not None:
            content["transaction_records"] = self.transaction_records
        if self.key_pattern is not None:
            content["key_pattern"] = self.key_pattern
        return json.dumps(content)

    @classmethod
    def from_json(cls, text: str | bytes) -> Checkpoint:
        """Read what :meth:`to_json` gave.

        Raises
        ------
        ConfigurationError
            It is cut, of a later version, or no checkpoint at all.
        """
        return cls._read(text, "the checkpoint")

    @classmethod
    def _read(cls, text: str | bytes, what: str) -> Checkpoint:
        """Read JSON; `what` it is, for messages."""
        try:
            content: Any = json.loads(text)
        except (ValueError, RecursionError) as exc:
            raise ConfigurationError(f"{what} is cut, or no JSON", hint=GO_BACK) from exc
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise ConfigurationError(
                f"{what} is JSON, and no checkpoint", hint="Checkpoint.save() writes them"
            )
        if content.get("version") != _VERSION:
            raise ConfigurationError(
                f"{what} has version {content.get('version')!r}; known is {_VERSION}",
                hint="read it with the release that wrote it, or a later one",
            )
        vbucket: int | None = None
        try:
            prefix = content["key_prefix"]
            offsets = {}
            for number, fields in content["vbuckets"].items():
                vbucket = _vbucket(number)
                offsets[vbucket] = VBucketOffset.from_dict(fields)
            vbucket = None
            return cls(
                _text(content["bucket"]),
                _text(content["bucket_uuid"]),
                offsets,
                None if content["scope"] is None else _text(content["scope"]),
                None if content["collections"] is None else tuple(map(_text, content["collections"])),
                None if prefix is None else bytes.fromhex(prefix),
                {
                    int(cid): CollectionName(_text(scope), _text(name))
                    # Checkpoints of 0.1.0 have none.
                    for cid, (scope, name) in content.get("collection_names", {}).items()
                },
                None if (records := content.get("transaction_records")) is None else _text(records),
                None if (pattern := content.get("key_pattern")) is None else _text(pattern),
            )
        except ConfigurationError as exc:
            raise ConfigurationError(f"{what}: {exc.message}", hint=exc.hint, vbucket=vbucket) from exc
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            raise ConfigurationError(f"{what} has a field that is not readable", hint=GO_BACK) from exc

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a file, whole or not at all: whatever happens, the one before or this one is there."""
        path = Path(path).expanduser()
        with whole_file(path) as file:
            file.write(self.to_json().encode())
        system.sync_folder(path.parent)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Checkpoint:
        """Read a file that :meth:`save` wrote, or how far a folder of :meth:`ChangeStream.to_parquet` is.

        Raises
        ------
        ConfigurationError
            There is no such file, or it is no checkpoint.
        """
        path = Path(path).expanduser()
        what = f"the checkpoint {os.fspath(path)!r}"
        if path.is_dir():
            return cls._read(_newest(path), what)
        try:
            text = path.read_bytes()
        except OSError as exc:
            raise ConfigurationError(
                f"{what} cannot be read: {exc.strerror}", hint='without one, start="beginning" or start="now"'
            ) from exc
        return cls._read(text, what)


def _newest(folder: Path) -> bytes:
    """What the last file of changes says of how far all of them reach."""
    files = change_files(folder)
    if not files:
        raise ConfigurationError(
            f"the folder {str(folder)!r} has no changes", hint='begin with start="beginning" or start="now"'
        )
    metadata = pq.read_metadata(files[-1]).metadata or {}
    if _METADATA not in metadata:
        raise ConfigurationError(f"{files[-1].name} has no checkpoint: it is no file of changes")
    stored: bytes = metadata[_METADATA]
    return stored


def change_files(folder: Path) -> list[Path]:
    """The files of changes in a folder, oldest first."""
    return sorted(folder.glob("changes-*.parquet"))


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("no text")
    return value


def _vbucket(text: str) -> int:
    number = u64_of(text)
    if number >= MAX_VBUCKETS:
        raise ValueError(f"no vbucket {number}")
    return number


# --- a folder of changes


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
        *,
        poll: Callable[[float | None], ChangeBatch | None],
    ) -> None:
        self._stream = stream
        self._poll = poll
        self._folder = folder
        self._rotation = rotation
        self._compression = compression
        # Text in place of dictionaries, and no column that rows without a document could not leave out.
        self._schema = pa.schema(
            (each.name, pa.string() if pa.types.is_dictionary(each.type) else each.type)
            for each in stream.schema
        )
        folder.mkdir(parents=True, exist_ok=True)
        for scratch in folder.glob(".changes-*.tmp"):
            scratch.unlink()  # of a process that was killed
        files = change_files(folder)
        if files and not Checkpoint.load(folder).leads_to(stream.checkpoint):
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
        until = None if seconds is None else monotonic() + seconds
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
        now = monotonic()
        if until is not None and now >= until:
            return False
        batch = self._poll(_POLL if until is None else min(_POLL, until - now))
        if batch is not None:
            if self._file is None:
                path = self._folder / f"changes-{self._number:012d}.parquet"
                self._file = _File(path, self._schema, self._compression, monotonic())
            self._file.add(batch)
            self._stream.release(batch)
        elif self._stream.state in ("closed", "finished"):
            return False
        if self._file is not None and self._file.is_complete(self._rotation, monotonic()):
            self._complete()
        return True

    def _complete(self) -> None:
        """Let the file appear, with the checkpoint after its last row."""
        file, last = self._file, None if self._file is None else self._file.last
        if file is None or last is None:
            return
        file.complete(self._stream.checkpoint_after(last))
        self._file = None
        self._written.append(file.path)
        self._number += 1
        self._stream.ack(last)


class _File:
    """A file that takes its name when it is complete."""

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
        rollbacks, drops = _ended(batch, self._schema)
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
        metadata = {_METADATA: checkpoint.to_json().encode()}
        if hasattr(self._writer, "add_key_value_metadata"):
            self._writer.add_key_value_metadata(metadata)
            self._writer.close()
        else:
            # Before pyarrow 17, the metadata of a file has to be known when it is begun.
            self._writer.close()
            self._write_again(metadata)
        system.sync(self._file)
        self._file.close()
        system.replace(self._scratch, self.path)
        system.sync_folder(self.path.parent)

    def _write_again(self, metadata: Mapping[bytes, bytes]) -> None:
        """The same rows in a file that has this from its beginning."""
        self._file.close()
        first = self._scratch.with_name(f"{self._scratch.name}.again.tmp")
        system.replace(self._scratch, first)
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


def _ended(batch: ChangeBatch, schema: pa.Schema) -> tuple[pa.Table, pa.Table]:
    """Rows for rollbacks and drops: before those of the batch, and after them."""
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
