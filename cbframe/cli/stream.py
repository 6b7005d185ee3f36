"""``cbframe stream``: the changes of a bucket, one a line."""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from cbframe.cli.credentials import connection
from cbframe.dcp.handover import monotonic
from cbframe.errors import ConfigurationError
from cbframe.scan.changes import CHANGE_TYPE, ChangeBatch
from cbframe.scan.checkpoint import Checkpoint
from cbframe.scan.stream import ChangeStream, stream_bucket

Row = dict[str, Any]
_COLUMNS = {
    "change": CHANGE_TYPE,
    "vbucket": "_cb_vbucket",
    "seqno": "_cb_seqno",
    "scope": "_cb_scope",
    "collection": "_cb_collection",
    "key": "_cb_key",
    "value": "_cb_value",
}
_SAVE_EVERY = 1.0
_LOOK = 0.25


def stream(options: argparse.Namespace) -> int:
    """Print changes until Ctrl-C, which is the usual end."""
    path: Path | None = options.checkpoint
    if path is not None and not path.absolute().parent.is_dir():
        raise ConfigurationError(f"the folder {path.absolute().parent} does not exist")
    changes = stream_bucket(
        **connection(options),
        start=_start(options),
        scope=options.scope,
        collections=options.collections,
        key_prefix=options.prefix,
        transaction_records=options.transaction_records,
    )
    printer = _Printer(changes, _as_json if options.json else _text_of, path, options.limit)
    with changes, contextlib.suppress(KeyboardInterrupt):
        printer.run()
    with contextlib.suppress(OSError, ValueError):  # the standard error may be gone
        print(f"{printer.count:,} changes", file=sys.stderr)
    return 0


def _start(options: argparse.Namespace) -> Any:
    if options.checkpoint is not None and options.checkpoint.exists():
        return Checkpoint.load(options.checkpoint)
    if options.start in ("beginning", "now"):
        return options.start
    return Checkpoint.load(options.start)


@dataclass
class _Printer:
    """Prints batches, and stores how far they were printed."""

    changes: ChangeStream
    line_of: Callable[[Row], str]
    path: Path | None
    limit: int | None
    count: int = 0
    _saved: Checkpoint | None = None
    _saved_at: float = field(default_factory=monotonic)

    def run(self) -> None:
        """Print until there is enough, or no more."""
        try:
            while self.limit is None or self.count < self.limit:
                batch = self.changes.poll(_LOOK)
                if batch is not None:
                    self._print(batch)
                elif self.changes.state in ("finished", "closed"):
                    return
                if monotonic() >= self._saved_at + _SAVE_EVERY:
                    self._save()
        finally:
            self._save()

    def _print(self, batch: ChangeBatch) -> None:
        for row in _rows(batch):
            # Where it is to go on later, it ends between two batches: inside of one there is no checkpoint.
            if self.count == self.limit and self.path is None:
                return
            sys.stdout.write(self.line_of(row) + "\n")
            self.count += 1
        # Only what has left this process counts as printed.
        sys.stdout.flush()
        self.changes.ack(batch)

    def _save(self) -> None:
        checkpoint = self.changes.checkpoint
        if self.path is not None and checkpoint.bucket_uuid and checkpoint != self._saved:
            checkpoint.save(self.path)
            self._saved = checkpoint
        self._saved_at = monotonic()


def _rows(batch: ChangeBatch) -> Iterator[Row]:
    """What is printed, in order."""
    for rollback in batch.rollbacks:
        yield {"change": "rollback", "vbucket": rollback.vbucket, "seqno": rollback.seqno}
    rows = batch.record_batch
    columns = {name: rows.column(column).to_pylist() for name, column in _COLUMNS.items()}
    for values in zip(*columns.values(), strict=True):
        yield dict(zip(columns, values, strict=True))
    for drop in batch.drops:
        yield {
            "change": "drop",
            "vbucket": drop.vbucket,
            "seqno": drop.seqno,
            "scope": drop.scope,
            "collection": drop.collection,
        }


def _json_text(value: bytes) -> str | None:
    """A document on one line, every number as it is written; None if it is no JSON."""
    try:
        return msgspec.json.format(value.decode(), indent=-1)
    except (UnicodeDecodeError, msgspec.DecodeError, RecursionError):
        return None


def _as_json(row: Row) -> str:
    fields = {name: value for name, value in row.items() if name != "value"}
    if "key" not in row:
        return json.dumps(fields, ensure_ascii=False)
    value: bytes | None = row["value"]
    text = "null" if value is None else _json_text(value)
    if text is None:
        assert value is not None
        fields["value_base64"] = base64.b64encode(value).decode()
        return json.dumps(fields, ensure_ascii=False)
    # As it stands there: no digit is lost.
    return f'{json.dumps(fields, ensure_ascii=False)[:-1]}, "value": {text}}}'


def _text_of(row: Row) -> str:
    place = f"{row['vbucket']:>4}:{row['seqno']:<8}"
    parts = [f"{place} {row['change']:<8}"]
    if row.get("collection") is not None and (row["scope"], row["collection"]) != ("_default", "_default"):
        parts.append(f"{row['scope']}.{row['collection']}")
    if "key" in row:
        parts.append(_shown(row["key"]))
    if row.get("value") is not None:
        parts.append(_json_text(row["value"]) or f"{len(row['value']):,} bytes")
    line = "  ".join(parts)
    if sys.stdout.isatty() and len(line) > (width := shutil.get_terminal_size().columns):
        line = line[: width - 1] + "…"
    return line


def _shown(key: str) -> str:
    """A key on one line, whatever is in it."""
    return key if key.isprintable() else repr(key)[1:-1]
