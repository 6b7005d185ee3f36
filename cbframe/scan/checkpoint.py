"""How far a change stream's consumer has got: to be stored with its data, and to go on from."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from cbframe.cluster.collections_manifest import CollectionName
from cbframe.dcp.positions import VBucketOffset, u64_of
from cbframe.errors import ConfigurationError
from cbframe.scan.asof import AsOf
from cbframe.scan.parquet import whole_file
from cbframe.system import sync_folder
from cbframe.wire.constants import MAX_VBUCKETS

_FORMAT = "cbframe checkpoint"
_VERSION = 1
CHECKPOINT_KEY = b"cbframe.checkpoint"
"""Of a file of changes: what says how far all of them reach."""
_HINT = "take an older one, or start again from the beginning: what comes then comes again"


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
        return AsOf.of(self.offsets)

    @classmethod
    def after(cls, as_of: AsOf, bucket: str, bucket_uuid: str = "") -> Checkpoint:
        """Behind a read: a stream from here brings what changed since.

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
        return cls._read(text, "the checkpoint")

    @classmethod
    def _read(cls, text: str | bytes, what: str) -> Checkpoint:
        """Read JSON; `what` it is, for messages."""
        try:
            content: Any = json.loads(text)
        except (ValueError, RecursionError) as exc:
            raise ConfigurationError(f"{what} is cut, or no JSON", hint=_HINT) from exc
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
            )
        except ConfigurationError as exc:
            raise ConfigurationError(f"{what}: {exc.message}", hint=exc.hint, vbucket=vbucket) from exc
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            raise ConfigurationError(f"{what} has a field that is not readable", hint=_HINT) from exc

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
        what = f"the checkpoint {os.fspath(path)!r}"
        if path.is_dir():
            return cls._read(_newest(path), what)
        try:
            text = path.read_bytes()
        except OSError as exc:
            raise ConfigurationError(
                f"{what} cannot be read: {exc.strerror}",
                hint='without one, start="beginning" or start="now"',
            ) from exc
        return cls._read(text, what)


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
    number = u64_of(text)
    if number >= MAX_VBUCKETS:
        raise ValueError(f"no vbucket {number}")
    return number
