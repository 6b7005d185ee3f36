"""The commands ``cbframe read``, ``schema``, ``stream``, ``stats``, ``doctor`` and those of ``snapshot``."""

from __future__ import annotations

import argparse
import base64
import getpass
import json
import os
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from time import monotonic
from typing import Any

import msgspec
import pyarrow as pa

from cbframe.arrow.columns import KEY, SEQNO, VBUCKET
from cbframe.cli import SCRIPTS, worded
from cbframe.cli.monitoring import TIME, Monitor, Updates, follow_stats, keep_updated, served, until_stopped
from cbframe.cli.output import (
    HEAD_ROWS,
    INDENT,
    Write,
    cut,
    note,
    print_rows,
    printable,
    say,
    say_rows,
    show_head,
    show_remarks,
    show_table,
    styled,
    width,
    writer_of,
)
from cbframe.cluster.auth import AuthSource, CertificateAuthenticator
from cbframe.cluster.connection_string import parse_connection_string
from cbframe.errors import ConfigurationError
from cbframe.json.typer import OURS
from cbframe.options import BucketDataSourceOptions
from cbframe.scan.changes import CHANGE_TYPE, ChangeBatch
from cbframe.scan.checkpoint import Checkpoint
from cbframe.scan.doctor import doctor as diagnose
from cbframe.scan.progress import Progress
from cbframe.scan.result import utc_now
from cbframe.scan.scan import scan_bucket
from cbframe.scan.schema import read_schema
from cbframe.scan.spec import seconds_of
from cbframe.scan.stream import RECOVERY, ChangeStream, stream_bucket
from cbframe.snapshot.snapshot import Snapshot, SnapshotVersion
from cbframe.snapshot.writer import SnapshotResult, size, write_snapshot
from cbframe.ui.show import is_terminal

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
_WHICH = ("scope", "collections", "columns", "filters", "expired", "transaction_records")
_SAMPLE = 10_000
_SAVE_EVERY = 1.0
_LOOK = 0.25


# --- where the cluster is, and who asks


def connection(options: argparse.Namespace) -> dict[str, Any]:
    """What the arguments say, as keyword arguments of ``scan_bucket`` and its like."""
    return {
        "conn": options.conn,
        "bucket": options.bucket,
        "auth": _credentials(options),
        "tls": options.ca_file,
        "network": options.network,
        "options": BucketDataSourceOptions(proxies=_proxies(options), allow_plain=options.allow_plain),
    }


def _proxies(options: argparse.Namespace) -> dict[str, str] | None:
    url = options.proxy
    if url is not None and "@" in url:
        raise ConfigurationError(
            "--proxy holds credentials, which every process on this machine can see",
            hint="--proxy-env names an environment variable that holds the URL",
        )
    if options.proxy_env is not None:
        url = _of_environment("--proxy-env", options.proxy_env, "URL")
    return None if url is None else {"all": url}


def _of_environment(option: str, name: str, what: str) -> str:
    if (value := os.environ.get(name)) is None:
        raise ConfigurationError(
            f"the environment variable {name} is not set",
            hint=f"{option} takes the name of a variable, not the {what}",
        )
    return value


def _credentials(options: argparse.Namespace) -> AuthSource:
    """Who asks, as the arguments say."""
    if parse_connection_string(options.conn).credentials is not None:
        raise ConfigurationError(
            "the connection string holds credentials, which every process on this machine can see",
            hint="use --user with --password-env or --password-file",
        )
    if options.client_cert or options.client_key:
        if options.user:
            raise ConfigurationError("--user and --client-cert exclude each other", hint="give one of them")
        return CertificateAuthenticator(options.client_cert, options.client_key)
    if not options.user:
        raise ConfigurationError("no user is named", hint="give --user")
    if options.password_env is not None:
        return options.user, _of_environment("--password-env", options.password_env, "password")
    if options.password_file is not None:
        try:
            return options.user, options.password_file.read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as exc:
            raise ConfigurationError(f"the password file cannot be read: {exc}") from exc
    if not sys.stdin.isatty():
        raise ConfigurationError(
            "there is no terminal to ask for the password on", hint="use --password-env or --password-file"
        )
    return options.user, getpass.getpass(f"Password of {options.user}: ")


# --- read, doctor, stream


def _given(found: object, *names: str) -> dict[str, Any]:
    """Some attributes, to be arguments or members of the same names."""
    return {name: getattr(found, name) for name in names}


def _wanted(options: argparse.Namespace) -> dict[str, Any]:
    """Which documents, as keyword arguments of ``scan_bucket`` and its like."""
    return connection(options) | _given(options, *_WHICH)


def read(options: argparse.Namespace) -> int:
    """``cbframe read``: show some documents of a bucket, or write all to a file or the standard output."""
    write, form = _destination(options)
    peek = form == "table"
    scan = scan_bucket(
        **_wanted(options),
        keys_only=options.keys_only,
        consistency=options.consistency,
        n_rows=options.limit or (HEAD_ROWS if peek else None),
        # A few documents are there before anybody asks how far they are.
        progress=None if options.no_progress else "auto" if peek else "text",
    )
    if peek:
        table = scan.read().table
        show_head(table, chosen=options.columns is not None)
        some = len(table) == (options.limit or HEAD_ROWS)
        note("  some documents: --limit N shows more, -o FILE writes all" if some else "  all documents")
        return 0
    reader = scan.to_reader()
    if write is None:
        print_rows(reader, form)
        return 0
    _wrote(options, write(reader, options.output), len(reader.schema), "documents")
    assert scan.last is not None
    show_remarks(scan.last)
    return 0


def _destination(options: argparse.Namespace) -> tuple[Write | None, str]:
    """What writes the file that is asked for, if one is; and the format of what is printed."""
    if options.output is not None:
        return writer_of(options.output, options.format), ""
    if options.format in ("parquet", "arrow"):
        raise ConfigurationError(f"{options.format} is written to a file, not printed", hint="give -o FILE")
    return None, options.format or "table"


def schema(options: argparse.Namespace) -> int:
    """``cbframe schema``: print the fields, of some documents or all."""
    rows = None if options.all else options.limit or _SAMPLE
    progress: Progress = None if options.no_progress else "text" if options.all else "auto"
    found = read_schema(**_wanted(options), n_rows=rows, progress=progress)
    some = found.rows == rows
    if options.json:
        fields = json.loads(found.to_pandas().reset_index().to_json(orient="records"))
        about = {"bucket": found.bucket, "documents": found.rows, "complete": not some}
        say(_json({**about, "rejected": found.rejected, "fields": fields}))
        return 0
    for at, line in enumerate(str(found).splitlines()):
        say(styled(line) if at < 2 else cut(line, width()))
    if some:
        note("of some documents: --limit N looks at more, --all at all")
    return 0


def doctor(options: argparse.Namespace) -> int:
    """``cbframe doctor``: print what was found; 1 if a step fails."""
    arguments = connection(options)
    finer = arguments.pop("options")
    how = _given(options, "scope", "collections") | _given(finer, "proxies", "allow_plain")
    found = diagnose(**arguments, **how)
    _print_result(options, found.to_dict(), worded(found, options))
    return 0 if found.ok else 1


def stream(options: argparse.Namespace) -> int:
    """``cbframe stream``: print changes."""
    path: Path | None = options.checkpoint
    if path is not None and not path.absolute().parent.is_dir():
        raise ConfigurationError(f"the folder {path.absolute().parent} does not exist")
    with served(Monitor(options.max_lag), options) as monitor, _opened(options) as changes:
        monitor.source = changes.source
        printer = _Printer(changes, _as_json if options.json else _text_of, path, options.limit)
        with until_stopped():
            printer.run()
    note(f"{printer.count:,} changes")
    return 0


def stats(options: argparse.Namespace) -> int:
    """``cbframe stats``: show how a stream goes."""
    with _opened(options) as changes, until_stopped():
        follow_stats(changes, every=seconds_of("--every", options.every), limit=options.limit)
    note(f"{changes.stats.total.documents:,} changes")
    return 0


def _opened(options: argparse.Namespace) -> ChangeStream:
    arguments = connection(options)
    return stream_bucket(
        **arguments | {"options": replace(arguments["options"], recovery_timeout=RECOVERY)},
        **_given(options, "scope", "collections", "transaction_records"),
        start=_start(options),
        key_prefix=options.prefix,
    )


def completion(options: argparse.Namespace) -> int:
    """``cbframe completion``: print what has a shell complete."""
    sys.stdout.write(SCRIPTS[options.shell])
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
        yield {"change": "rollback", **_given(rollback, "vbucket", "seqno")}
    rows = batch.record_batch
    columns = {name: rows.column(column).to_pylist() for name, column in _COLUMNS.items()}
    for values in zip(*columns.values(), strict=True):
        yield dict(zip(columns, values, strict=True))
    for drop in batch.drops:
        yield {"change": "drop", **_given(drop, "vbucket", "seqno", "scope", "collection")}


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
        parts.append(printable(row["key"]))
    if row.get("value") is not None:
        parts.append(_json_text(row["value"]) or f"{len(row['value']):,} bytes")
    line = "  ".join(parts)
    return cut(line, width()) if is_terminal(sys.stdout) else line


_PLACE = (KEY, CHANGE_TYPE, VBUCKET, SEQNO)
_COUNTS = (
    *("path", "bucket", "version", "changed", "upserted", "deleted"),
    *("retracted", "dropped", "rolled_back", "read_again", "nbytes", "rejected", "transaction_records"),
)


# --- snapshot


def snapshot_write(options: argparse.Namespace) -> int:
    """``cbframe snapshot write``: copy a bucket, or bring a copy up to date, once or again and again."""
    names = ("path", "mode", "compression", "xattrs", "consistency", *_WHICH[:4], _WHICH[5])
    arguments = connection(options) | _given(options, *names)
    if options.every is not None:
        return _keep_writing(options, arguments)
    with served(Monitor(0, quiet=options.no_progress), options) as monitor:
        result = write_snapshot(**arguments, progress=monitor, break_lock=options.break_lock)
    _print_result(options, _result(result), textwrap.indent(str(result), INDENT))
    return 0


def _keep_writing(options: argparse.Namespace, arguments: dict[str, Any]) -> int:
    if options.mode != "update":
        raise ConfigurationError(
            f"--every updates, and --mode {options.mode} does not", hint="run it once with --mode before"
        )
    if not (every := seconds_of("--every", options.every)):
        raise ConfigurationError("--every is no time at all", hint="give a time such as 30s, 5min or 1h")
    watch = Updates(every, quiet=options.no_progress or not is_terminal(sys.stderr))

    def update() -> SnapshotResult:
        # Who is known to be dead now is not the one who has the lock later.
        breaks = options.break_lock and not watch.counts["updates_total"]
        result = write_snapshot(**arguments, progress=watch, break_lock=breaks)
        now, lines = utc_now(), str(result).splitlines()[1 : None if result.changed else 2]
        text = "; ".join(" ".join(line.split()) for line in lines)
        about = {"time": now.isoformat(timespec="seconds"), **_result(result)}
        say(json.dumps(about, ensure_ascii=False) if options.json else f"{now:{TIME}}  {text}")
        return result

    with until_stopped(), served(watch, options):
        keep_updated(update, watch, text_of=lambda error: worded(error, options))
    note(f"{watch.counts['updates_total']:,} updates, {watch.counts['failures_total']:,} failed")
    return 0


def _result(result: SnapshotResult) -> dict[str, Any]:
    return _given(result, *_COUNTS) | {
        "seconds": round(result.seconds, 3),
        "vbuckets": len(result.as_of),
        "changes": result.as_of.changes,
        "conflicts": [conflict.path for conflict in result.conflicts],
        "clock_behind": result.clock_behind.total_seconds(),
    }


def snapshot_read(options: argparse.Namespace) -> int:
    """``cbframe snapshot read``: show the documents, or write them."""
    write, form = _destination(options)
    names = ("as_of", "columns", "filters", "expired")
    reader = Snapshot(options.path).to_reader(**_given(options, *names), keys="text")
    if options.limit is not None:
        reader = pa.RecordBatchReader.from_batches(reader.schema, _first(options.limit, reader))
    if write is not None:
        _wrote(options, write(reader, options.output), len(reader.schema), "documents")
        return 0
    if form != "table":
        print_rows(reader, form)
        return 0
    if options.limit is not None:
        show_head(reader.read_all(), chosen=options.columns is not None)
        return 0
    head: list[pa.RecordBatch] = []
    rows = 0
    for batch in reader:
        if rows < HEAD_ROWS:
            head.append(batch.slice(0, HEAD_ROWS - rows))
        rows += len(batch)
    say(f"{rows:,} documents")
    show_table(pa.Table.from_batches(head, reader.schema))
    return 0


def _first(rows: int, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        yield batch.slice(0, rows)
        rows -= len(batch)
        if rows <= 0:
            return


def snapshot_changes(options: argparse.Namespace) -> int:
    """``cbframe snapshot changes``: show or write what is different between two versions."""
    write = None if options.output is None else writer_of(options.output)
    table = Snapshot(options.path).changes_to_arrow(options.since, options.until, keys="text")
    if write is not None:
        _wrote(options, write(table.to_reader(), options.output), table.num_columns, "changes")
    elif options.json:
        print_rows(table.to_reader(), "ndjson")
    else:
        counts = Counter(table[CHANGE_TYPE].to_pylist())
        say(f"{len(table):,} changes")
        if counts:
            say_rows((kind, f"{count:,}") for kind, count in sorted(counts.items()))
            say("")
            show_head(
                table[:HEAD_ROWS].select(
                    [*_PLACE, *(n for n in table.column_names if not n.startswith((OURS, CHANGE_TYPE)))]
                )
            )
    return 0


def snapshot_versions(options: argparse.Namespace) -> int:
    """``cbframe snapshot versions``: list them."""
    versions = Snapshot(options.path).versions
    if options.json:
        say(_json([_version(each) for each in versions]))
        return 0
    header = ["version", "kind", "created (UTC)", "upserted", "deleted", "retracted", "files", "size"]
    rows = []
    for each in versions:
        numbers = (f"{number:,}" for number in (*asdict(each.counts).values(), each.files))
        about = str(each.version), each.kind, f"{each.created:%Y-%m-%d %H:%M:%S}", *numbers
        rows.append((*about, size(each.nbytes), f"{each.as_of.changes:,}"))
    say_rows(rows, [*header, "changes"])
    return 0


def _version(version: SnapshotVersion) -> dict[str, Any]:
    return {
        **_given(version, "version", "kind", "files", "nbytes"),
        **asdict(version.counts),
        "created": version.created.isoformat(),
        "vbuckets": len(version.as_of),
        "changes": version.as_of.changes,
    }


def snapshot_verify(options: argparse.Namespace) -> int:
    """``cbframe snapshot verify``: look at all files; 1 if something is wrong."""
    found = Snapshot(options.path).verify()
    _print_result(options, {"ok": found.ok, **asdict(found)}, worded(found, options))
    return 0 if found.ok else 1


def snapshot_compact(options: argparse.Namespace) -> int:
    """``cbframe snapshot compact``: write few files."""
    done = Snapshot(options.path).compact(keep=options.keep)
    sizes = {"rows": done.rows, "files": done.files, "nbytes": done.nbytes}
    about = {
        **_given(done, "version", "changed"),
        "clock_behind": done.clock_behind.total_seconds(),
        **{name: {"before": before, "after": after} for name, (before, after) in sizes.items()},
    }
    _print_result(options, about, str(done))
    return 0


def snapshot_vacuum(options: argparse.Namespace) -> int:
    """``cbframe snapshot vacuum``: delete files that only older versions need."""
    deleted = Snapshot(options.path).vacuum(keep=options.keep)
    lines = [f"{len(deleted):,} files deleted", *(INDENT + name for name in deleted)]
    _print_result(options, deleted, "\n".join(lines))
    return 0


def snapshot_export(options: argparse.Namespace) -> int:
    """``cbframe snapshot export``: write plain Parquet files."""
    folder = Snapshot(options.path).export(options.folder, as_of=options.as_of, expired=options.expired)
    files = sorted(folder.glob("*.parquet"))
    some = "file" if len(files) == 1 else "files"
    say(f"{folder}: {len(files):,} {some}, {size(sum(file.stat().st_size for file in files))}")
    return 0


def _wrote(options: argparse.Namespace, rows: int, columns: int, what: str) -> None:
    nbytes = options.output.stat().st_size
    say(f"{options.output}: {rows:,} {what}, {columns} columns, {size(nbytes)}")


def _print_result(options: argparse.Namespace, value: Any, text: str) -> None:
    say(_json(value) if options.json else text)


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)
