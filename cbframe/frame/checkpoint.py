"""How far a change stream's consumer has got: to be stored with its data, and to go on from."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from cbframe.cluster.manifest import CollectionName
from cbframe.dcp.metadata import VBucketMetaData
from cbframe.dcp.positions import Position
from cbframe.errors import ConfigurationError
from cbframe.frame.asof import AsOf
from cbframe.frame.parquet import whole_file
from cbframe.system import sync_folder
from cbframe.wire.constants import MAX_SEQNO, MAX_VBUCKETS
from cbframe.wire.failover import FailoverEntry

_FORMAT = "cbframe checkpoint"
_VERSION = 1
CHECKPOINT_KEY = b"cbframe.checkpoint"
"""Of a file of changes: what says how far all of them reach."""
_HINT = "take an older one, or start anew: what comes then comes again"


@dataclass(frozen=True, slots=True)
class VBucketOffset:
    """How far one vbucket is, and what the server needs to know to go on from there.

    Attributes
    ----------
    seqno
        Everything up to here was consumed.
    snap_start, snap_end
        The snapshot that it is in. At its end the vbucket's state is whole; inside of it, it is not.
    failover_log
        The vbucket's histories, newest first: name, and the seqno at which it began.
    manifest_uid, purge_seqno
        Newest change of the collections that was told, and how far deletions were purged; 0 for unknown.
    snapshots
        Ends of some snapshots before, newest first: after a rollback the stream goes back to one of them.
    base
        Where the stream began; 0 for the beginning of the vbucket.
    """

    seqno: int
    snap_start: int
    snap_end: int
    failover_log: tuple[tuple[int, int], ...] = ()
    manifest_uid: int = 0
    purge_seqno: int = 0
    snapshots: tuple[int, ...] = ()
    base: int = 0

    @property
    def vbuuid(self) -> int:
        """The history that `seqno` belongs to; 0 where none is known or needed."""
        return self._metadata().vbuuid_at(self.seqno)

    def _metadata(self) -> VBucketMetaData:
        log = tuple(FailoverEntry(*entry) for entry in self.failover_log)
        return VBucketMetaData(
            snap_start=self.snap_start,
            snap_end=self.snap_end,
            failover_log=log,
            purge_seqno=self.purge_seqno,
            manifest_uid=self.manifest_uid,
        )

    @classmethod
    def of(cls, position: Position) -> VBucketOffset:
        """The offset of a stream's position."""
        stored = VBucketMetaData()
        if position.metadata is not None:
            stored = VBucketMetaData.from_json(position.metadata)
        start, end = stored.snap_start, stored.snap_end
        if not start <= position.seqno <= end:
            start = end = position.seqno
        log = tuple((entry.vbuuid, entry.seqno) for entry in stored.failover_log)
        uid, purged = stored.manifest_uid, stored.purge_seqno
        return cls(position.seqno, start, end, log, uid, purged, position.ends, position.base)

    def position(self) -> Position:
        """Where a stream goes on from here."""
        metadata = self._metadata().to_json() if self.failover_log else None
        return Position(self.seqno, metadata, self.snapshots, self.base)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; numbers as text: many readers of JSON lose digits beyond 2^53."""
        return {
            "vbuuid": str(self.vbuuid),
            "seqno": str(self.seqno),
            "snap_start": str(self.snap_start),
            "snap_end": str(self.snap_end),
            "failover_log": [[str(vbuuid), str(seqno)] for vbuuid, seqno in self.failover_log],
            "manifest_uid": str(self.manifest_uid),
            "purge_seqno": str(self.purge_seqno),
            "snapshots": [str(end) for end in self.snapshots],
            "base": str(self.base),
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> VBucketOffset:
        """Read what :meth:`to_dict` gave.

        Raises
        ------
        ConfigurationError
            It is no such thing.
        """
        try:
            found = cls(
                _u64(fields["seqno"]),
                _u64(fields["snap_start"]),
                _u64(fields["snap_end"]),
                tuple((_u64(vbuuid), _u64(seqno)) for vbuuid, seqno in fields["failover_log"]),
                _u64(fields["manifest_uid"]),
                _u64(fields["purge_seqno"]),
                tuple(_u64(end) for end in fields["snapshots"]),
                _u64(fields["base"]),
            )
        except (KeyError, TypeError, ValueError) as exc:
            raise ConfigurationError("the checkpoint has an offset that is none", hint=_HINT) from exc
        if not found.snap_start <= found.seqno <= found.snap_end or found.base > found.seqno:
            raise ConfigurationError(
                f"the checkpoint has seqno {found.seqno} outside of its snapshot, "
                f"{found.snap_start} to {found.snap_end}, or before its base",
                hint=_HINT,
            )
        return found


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """How far a consumer has got in all vbuckets of a bucket.

    Store it in one transaction with the data that it stands for, and nothing is lost or doubled;
    store it after the data, and some changes may come twice.

    Attributes
    ----------
    bucket, bucket_uuid
        Of which bucket, and of which life of it: streams of another one refuse it.
    offsets
        By vbucket; those that are missing begin at their start.
    scope, collections, key_prefix
        What the stream was asked for: one that asks for something else has not seen what lies before.
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

    def __repr__(self) -> str:
        changes = sum(offset.seqno for offset in self.offsets.values())
        return f"<Checkpoint of {self.bucket!r}: {len(self.offsets)} vbuckets, {changes:,} changes>"

    @property
    def as_of(self) -> AsOf:
        """History and seqno of each vbucket."""
        return AsOf({vb: (offset.vbuuid, offset.seqno) for vb, offset in self.offsets.items()})

    @classmethod
    def after(cls, as_of: AsOf, bucket: str, bucket_uuid: str = "") -> Checkpoint:
        """Behind a read: a stream from here brings what changed since.

        Parameters
        ----------
        as_of
            What the read is a picture of: ``df.attrs["cbframe"]["as_of"]``, or :attr:`BucketScan.as_of`. The
            read has to be of the same scope and collections as the stream.
        bucket
            Where it is from.
        bucket_uuid
            Refuse another life of the bucket; empty to take any: histories that are unknown to it begin
            anew in any case.
        """
        return cls(
            bucket,
            bucket_uuid,
            {
                vb: VBucketOffset(seqno, seqno, seqno, ((vbuuid, 0),), snapshots=(seqno,))
                for vb, (vbuuid, seqno) in as_of.items()
                if seqno
            },
        )

    def updated(self, offsets: Mapping[int, VBucketOffset]) -> Checkpoint:
        """The same with other offsets for some vbuckets, such as those of a batch."""
        return replace(self, offsets={**self.offsets, **offsets})

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
        return json.dumps(content)

    @classmethod
    def from_json(cls, text: str | bytes) -> Checkpoint:
        """Read what :meth:`to_json` gave.

        Raises
        ------
        ConfigurationError
            It is cut, of a later version, or no checkpoint at all.
        """
        try:
            content: Any = json.loads(text)
        except (ValueError, RecursionError) as exc:
            raise ConfigurationError("the checkpoint is cut, or no JSON", hint=_HINT) from exc
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise ConfigurationError("this JSON is no checkpoint", hint="Checkpoint.save() writes them")
        if content.get("version") != _VERSION:
            raise ConfigurationError(
                f"the checkpoint has version {content.get('version')!r}; known is {_VERSION}",
                hint="read it with the release that wrote it, or a later one",
            )
        try:
            prefix = content["key_prefix"]
            return cls(
                _text(content["bucket"]),
                _text(content["bucket_uuid"]),
                {_vbucket(vb): VBucketOffset.from_dict(each) for vb, each in content["vbuckets"].items()},
                None if content["scope"] is None else _text(content["scope"]),
                None if content["collections"] is None else tuple(map(_text, content["collections"])),
                None if prefix is None else bytes.fromhex(prefix),
                {
                    int(cid): CollectionName(_text(scope), _text(name))
                    # Checkpoints of 0.1.0 have none.
                    for cid, (scope, name) in content.get("collection_names", {}).items()
                },
            )
        except ConfigurationError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            raise ConfigurationError("the checkpoint has fields that are none", hint=_HINT) from exc

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a file, whole or not at all: whatever happens, the one before or this one is there."""
        path = Path(path).expanduser()
        with whole_file(path) as file:
            file.write(self.to_json().encode())
        sync_folder(path.parent)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Checkpoint:
        """Read a file that :meth:`save` wrote, or how far a folder of :meth:`ChangeStream.to_parquet` is.

        Raises
        ------
        ConfigurationError
            There is no such file, or it is no checkpoint.
        """
        path = Path(path).expanduser()
        if path.is_dir():
            return cls.from_json(_newest(path))
        try:
            text = path.read_bytes()
        except OSError as exc:
            raise ConfigurationError(
                f"the checkpoint {os.fspath(path)!r} cannot be read: {exc.strerror}",
                hint='without one, start="beginning" or start="now"',
            ) from exc
        return cls.from_json(text)


def change_files(folder: Path) -> list[Path]:
    """The files of changes in a folder, oldest first."""
    return sorted(folder.glob("changes-*.parquet"))


def _newest(folder: Path) -> bytes:
    """What the last file of changes says of how far all of them reach."""
    files = change_files(folder)
    if not files:
        raise ConfigurationError(
            f"the folder {str(folder)!r} has no changes", hint='begin with start="beginning" or start="now"'
        )
    metadata = pq.read_metadata(files[-1]).metadata or {}
    if CHECKPOINT_KEY not in metadata:
        raise ConfigurationError(f"{files[-1].name} has no checkpoint: it is no file of changes")
    stored: bytes = metadata[CHECKPOINT_KEY]
    return stored


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("no text")
    return value


def _vbucket(text: str) -> int:
    number = int(text)
    if not 0 <= number < MAX_VBUCKETS:
        raise ValueError(f"no vbucket {number}")
    return number


def _u64(text: object) -> int:
    # Only digits: a number that went through a double has lost some of them.
    if not isinstance(text, str) or not text.isascii() or not text.isdigit() or int(text) > MAX_SEQNO:
        raise ValueError(f"{text!r} is no unsigned 64-bit integer in text")
    return int(text)
