"""Arguments of the commands. Nothing but the standard library: ``--help`` answers at once."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

Run = Callable[[argparse.Namespace], int]

FORMATS = (
    "The format follows the ending of FILE: .parquet, .arrow (IPC file), .csv or .ndjson. CSV holds nested "
    "fields as JSON text; CSV and NDJSON hold binary values as base64; NDJSON leaves missing fields out. "
    "Keys are text in all formats: a byte that is not UTF-8 is \\xHH. "
    "FILE appears whole or not at all."
)


def positive(text: str) -> int:
    """A number of things."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not positive")
    return number


def names(text: str) -> list[str]:
    """``A,B``"""
    return [name for name in text.split(",") if name]


def _as_of(text: str) -> int | str:
    """A version, or a time."""
    return int(text) if text.isdecimal() else text


def add_connection(parser: argparse.ArgumentParser) -> None:
    """Which bucket, and who wants it."""
    parser.add_argument(
        "conn", metavar="CONN", help="couchbase://host/bucket, couchbases://… or http://host:8091"
    )
    parser.add_argument("--bucket", help="the bucket, if CONN does not name it")
    parser.add_argument("--user", help="user name")
    secret = parser.add_mutually_exclusive_group()
    secret.add_argument("--password-env", metavar="VAR", help="environment variable that holds the password")
    secret.add_argument(
        "--password-file",
        type=Path,
        metavar="FILE",
        help="file that holds the password; else it is asked for",
    )
    parser.add_argument(
        "--ca-file",
        metavar="FILE",
        help="the cluster's certificate authority; else the system's are trusted, and for Capella its own",
    )
    parser.add_argument("--client-cert", metavar="FILE", help="client certificate, in place of --user")
    parser.add_argument("--client-key", metavar="FILE", help="its key, if that is in another file")
    parser.add_argument(
        "--allow-plain",
        action="store_true",
        help="without TLS, send the password in clear text where a user of LDAP needs that",
    )
    parser.add_argument(
        "--network",
        default="auto",
        metavar="NAME",
        help="which addresses of the nodes to use: default, external, …; else as CONN says",
    )
    proxy = parser.add_mutually_exclusive_group()
    proxy.add_argument(
        "--proxy", metavar="URL", help="HTTP proxy to the cluster manager, of http:// and https:// only"
    )
    proxy.add_argument(
        "--proxy-env", metavar="VAR", help="environment variable that holds its URL, such as HTTPS_PROXY"
    )


def add_progress(parser: argparse.ArgumentParser) -> None:
    """Whether progress is shown."""
    parser.add_argument("--no-progress", action="store_true", help="draw no progress line")


def add_columns(parser: argparse.ArgumentParser) -> None:
    """Which fields."""
    parser.add_argument("--columns", type=names, metavar="A,B", help="keep only these fields")


def collection_names(text: str) -> list[str] | str:
    """``A,B``, or what stands for those that the user sees."""
    return text if text == "visible" else names(text)


def add_collections(parser: argparse.ArgumentParser) -> None:
    """Which scope, or which collections."""
    parser.add_argument("--scope", metavar="NAME", help="only this scope")
    parser.add_argument(
        "--collections",
        type=collection_names,
        metavar="A,B",
        help="only these collections; visible: those that the user sees",
    )


def add_expired(parser: argparse.ArgumentParser) -> None:
    """Whether documents that have expired are wanted."""
    parser.add_argument(
        "--expired",
        choices=("drop", "keep"),
        default="drop",
        help="documents whose expiry has passed and that the server has not removed; default: drop",
    )


def add_transaction_records(parser: argparse.ArgumentParser, default: str | None = "drop") -> None:
    """Whether records of transactions are wanted."""
    parser.add_argument(
        "--transaction-records",
        choices=("drop", "keep"),
        default=default,
        help="documents of transactions, whose keys begin with _txn:; default: drop",
    )


def add_consistency(parser: argparse.ArgumentParser) -> None:
    """What happens where a node loses data meanwhile."""
    parser.add_argument(
        "--consistency",
        choices=("snapshot", "strict"),
        default="snapshot",
        help="strict: compare all histories at the end, and read again what a node has lost meanwhile; "
        "default: snapshot",
    )


def add_output(parser: argparse._ActionsContainer) -> None:
    """A file."""
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write a file")


STREAMED = (
    "With --checkpoint, every change is printed at least once, over any number of runs: FILE is read if it "
    "is there, and written about once a second and at the end. With --json each line is a JSON object: "
    "change (upsert, delete, expire, rollback or drop), vbucket, seqno, scope, collection, key and value; a "
    "byte of a key that is not UTF-8 is \\xHH, and a value that is no JSON text is base64, in value_base64. "
    "rollback voids what "
    "came before of its vbucket with a larger seqno, drop what came of its vbucket and collection with a "
    "smaller one."
)


def add_stream(parser: argparse.ArgumentParser) -> None:
    """``cbframe stream``."""
    add_connection(parser)
    parser.add_argument(
        "--from",
        dest="start",
        default="beginning",
        metavar="WHERE",
        help="beginning (default), now, or the file of a checkpoint",
    )
    parser.add_argument(
        "--checkpoint", type=Path, metavar="FILE", help="go on where FILE says, and keep it up"
    )
    add_collections(parser)
    parser.add_argument("--prefix", metavar="TEXT", help="only documents whose key begins so")
    add_transaction_records(parser)
    parser.add_argument(
        "--limit",
        type=positive,
        metavar="N",
        help="end after N changes, or with --checkpoint, after the batch that has the Nth",
    )
    add_json(parser)


def add_doctor(parser: argparse.ArgumentParser) -> None:
    """``cbframe doctor``."""
    add_connection(parser)
    add_collections(parser)
    add_json(parser)


def add_snapshot(parser: argparse.ArgumentParser, run: Run) -> None:
    """``cbframe snapshot``: each command sets ``command``; all are run by `run`."""
    parser.set_defaults(run=run)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)

    def command(name: str, text: str, description: str = "", epilog: str = "") -> argparse.ArgumentParser:
        return commands.add_parser(
            name, help=text, description=description or f"{text[0].upper()}{text[1:]}.", epilog=epilog
        )

    write = command(
        "write",
        "copy a bucket, or bring a copy up to date",
        "Copy a bucket into Parquet files at PATH, or add what changed since. A version appears whole or not "
        "at all; after a crash, run it again. What the server took back, the snapshot takes back.",
    )
    add_connection(write)
    add_progress(write)
    _add_path(write)
    add_json(write)
    write.add_argument(
        "--mode",
        choices=("update", "create", "overwrite", "repair"),
        default="update",
        help="create: only if there is none; overwrite: begin again; repair: read again what is damaged; "
        "default: update",
    )
    add_columns(write)
    add_collections(write)
    add_transaction_records(write, None)
    add_consistency(write)
    write.add_argument("--xattrs", action="store_true", default=None, help="keep extended attributes")
    write.add_argument(
        "--compression", default="zstd", metavar="NAME", help="zstd, snappy, gzip, lz4, brotli, none"
    )
    write.add_argument("--break-lock", action="store_true", help="take the lock of a writer that is dead")

    read = command(
        "read",
        "show the documents, or write them to a file",
        "Read the documents of a snapshot. Without -o, show the first ones and the fields.",
        FORMATS,
    )
    _add_path(read)
    read.add_argument("--as-of", type=_as_of, metavar="WHEN", help="a version, or a time in ISO 8601")
    add_columns(read)
    add_expired(read)
    add_output(read)

    changes = command(
        "changes",
        "show what changed between two versions",
        "Show what changed between two versions: how much, or with --json or -o each change.",
        FORMATS,
    )
    _add_path(changes)
    changes.add_argument(
        "--since", type=_as_of, required=True, metavar="WHEN", help="a version, or a time in ISO 8601"
    )
    changes.add_argument("--until", type=_as_of, metavar="WHEN", help="default: the newest version")
    add_json(changes, "print each change as a line of JSON")
    add_output(changes)

    versions = command("versions", "list the versions that can be read")
    _add_path(versions)
    add_json(versions)

    verify = command(
        "verify", "look at all files", "Look at all files. The status is 1 where something is wrong."
    )
    _add_path(verify)
    add_json(verify)

    compact = command(
        "compact",
        "rewrite the newest version as few files",
        "Rewrite the newest version as few files. Old files stay until vacuum.",
    )
    _add_path(compact)
    compact.add_argument(
        "--keep",
        default="1d",
        metavar="TIME",
        help="keep what a rollback of so much time may bring back: 90min, 36h, 7d; default: 1d",
    )
    add_json(compact)

    vacuum = command("vacuum", "delete files that only older versions need")
    _add_path(vacuum)
    vacuum.add_argument(
        "--keep", type=positive, default=1, metavar="N", help="how many versions stay readable; default: 1"
    )
    add_json(vacuum)

    export = command(
        "export",
        "write a folder of plain Parquet files",
        "Write the documents as a folder of plain Parquet files, which any tool reads.",
    )
    _add_path(export)
    export.add_argument("folder", metavar="FOLDER", help="it must not exist")
    export.add_argument("--as-of", type=_as_of, metavar="WHEN", help="a version, or a time in ISO 8601")
    add_expired(export)


def _add_path(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", help="the snapshot: a folder, or a URI such as s3://…")


def add_json(parser: argparse._ActionsContainer, text: str = "print JSON") -> None:
    """JSON in the place of what people read."""
    parser.add_argument("--json", action="store_true", help=text)
