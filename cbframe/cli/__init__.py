r"""The command line: ``cbframe demo``, ``read``, ``snapshot``, ``stream``, ``doctor`` and ``serve``.

A bucket into a file, whose ending says the format (``.parquet``, ``.arrow``, ``.csv``, ``.ndjson``), or as
lines of JSON::

    cbframe read couchbases://cb.example.com/travel --ca-file ca.pem \
        --user reader --password-env CB_PASSWORD -o travel.parquet
    cbframe read couchbases://cb.example.com/travel --user reader --password-env CB_PASSWORD --json

A copy that the same command brings up to date, and what is in it (also ``verify``, ``compact``, ``vacuum``
and ``export``)::

    cbframe snapshot write couchbases://cb.example.com/travel travel --user reader --password-env CB_PASSWORD
    cbframe snapshot versions travel
    cbframe snapshot changes travel --since 1 --json
    cbframe snapshot read travel --as-of 1 -o travel.csv

What changes, a line for each change; and why a connection fails::

    cbframe stream couchbases://cb.example.com/travel --user reader --password-env CB_PASSWORD \
        --json --checkpoint travel.json
    cbframe doctor couchbases://cb.example.com/travel --user reader --password-env CB_PASSWORD

Passwords come from the environment, a file or the terminal. ``--client-cert`` and ``--client-key`` take the
place of a password; :mod:`cbframe.cluster.tls` says which authorities are trusted without ``--ca-file``.
Proxies are used only where they are asked for (``--proxy``, or ``--proxy-env`` with the name of a variable
such as ``HTTPS_PROXY``), and only for the cluster manager (``http://``, ``https://``), never for data nodes.

How it works
------------
``main()`` parses the arguments, calls the function that the command names, and returns the exit status. A
command is a function of its options in :mod:`~cbframe.cli.commands`; the demo is :mod:`~cbframe.cli.demo`,
and ``serve`` is :mod:`cbframe.local`. A command's module, and all libraries that it needs, are imported when
it is called, so that ``--help`` and mistyped arguments answer at once.

What a command prints goes to the standard output (:mod:`~cbframe.cli.output`), the progress line and errors
to the standard error.

======  ===========================================================================================
status  when
======  ===========================================================================================
0       it is done
1       an error, printed as ``cbframe: error: …`` with its hint and without a traceback; or the check
        that was asked for (``doctor``, ``snapshot verify``, ``demo``) found something wrong; or nobody
        reads the rest of the output, as with ``| head``: then without a word
2       mistyped arguments; of ``serve`` also a cluster that cannot be started
130     Ctrl-C; of ``stream``, which only ends so, it is the usual end and gives 0
======  ===========================================================================================

Passwords come from the environment, a file or the terminal, never from the command line, where every
process of the machine can see them.
"""

# ruff: noqa: PLC0415 - see above

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from cbframe import __version__
from cbframe.errors import CbframeError

_INTERRUPTED = 130
_FORMATS = (
    "The format follows the ending of FILE: .parquet, .arrow (IPC file), .csv or .ndjson. CSV holds nested "
    "fields as JSON text; CSV and NDJSON hold binary values as base64; NDJSON leaves missing fields out. "
    "Keys are text in all formats: a byte that is not UTF-8 is \\xHH. "
    "FILE appears whole or not at all."
)
_STREAMED = (
    "With --checkpoint, every change is printed at least once, over any number of runs: FILE is read if it "
    "is there, and written about once a second and at the end. With --json each line is a JSON object: "
    "change (upsert, delete, expire, rollback or drop), vbucket, seqno, scope, collection, key and value; a "
    "byte of a key that is not UTF-8 is \\xHH, and a value that is no JSON text is base64, in value_base64. "
    "After rollback, earlier changes of its vbucket with a larger seqno do not count; after drop, those of "
    "its vbucket and collection with a smaller one."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    argv = sys.argv[1:] if argv is None else list(argv)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            # It was closed before we began: nobody wants what is printed there.
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - for as long as we run
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that cannot show a city's name still gets the rest of the table.
            stream.reconfigure(errors="replace")
    try:
        if argv[:1] == ["serve"]:
            from cbframe.local.__main__ import serve

            return serve(argv[1:])
        from cbframe import core  # one that cannot be loaded is an error like others

        options = parser_of(f"cbframe {__version__}, {core.TITLE}").parse_args(argv)
        if getattr(options, "json", False) and isinstance(sys.stdout, io.TextIOWrapper):
            # JSON is UTF-8 whatever the terminal has: on Windows a document would be changed on its way.
            sys.stdout.reconfigure(encoding="utf-8", newline="\n")
        run: Callable[[argparse.Namespace], int] = options.run
        status = run(options)
        sys.stdout.flush()
        return status
    except CbframeError as exc:
        complain(f"cbframe: error: {exc}")
    except OSError as exc:
        from cbframe.system import nobody_reads

        if nobody_reads(exc):
            # They have seen enough. What is left in the buffer must not raise again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        else:
            complain(f"cbframe: error: {exc}")
    except KeyboardInterrupt:
        complain("cbframe: interrupted")
        return _INTERRUPTED
    return 1


def complain(text: str) -> None:
    """Print to the standard error; where that is gone, the exit status has to do."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


# --- arguments: nothing but the standard library


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


def _collections(text: str) -> list[str] | str:
    """``A,B``, or what stands for those that the user sees."""
    return text if text == "visible" else names(text)


_OPTIONS: dict[str, dict[str, Any]] = {
    "path": {"metavar": "PATH", "help": "the snapshot: a folder, or a URI such as s3://…"},
    "--as-of": {"type": _as_of, "metavar": "WHEN", "help": "a version, or a time in ISO 8601"},
    "--collections": {
        "type": _collections,
        "metavar": "A,B",
        "help": "only these collections; visible: those that the user sees",
    },
    "--columns": {"type": names, "metavar": "A,B", "help": "keep only these fields"},
    "--consistency": {
        "choices": ("snapshot", "strict"),
        "default": "snapshot",
        "help": "strict: compare all histories at the end, and read again what a node has lost meanwhile; "
        "default: snapshot",
    },
    "--expired": {
        "choices": ("drop", "keep"),
        "default": "drop",
        "help": "documents whose expiry has passed and that the server has not removed; default: drop",
    },
    "--json": {"action": "store_true", "help": "print JSON"},
    "--no-progress": {"action": "store_true", "help": "draw no progress line"},
    "--output": {"type": Path, "metavar": "FILE", "help": "write a file"},
    "--scope": {"metavar": "NAME", "help": "only this scope"},
    "--transaction-records": {
        "choices": ("drop", "keep"),
        "default": "drop",
        "help": "documents of transactions, whose keys begin with _txn:; default: drop",
    },
}
"""Arguments that several commands have."""


def _add(parser: argparse._ActionsContainer, name: str, **other: Any) -> None:
    flags = ["-o", name] if name == "--output" else [name]
    parser.add_argument(*flags, **(_OPTIONS[name] | other))


def _runs(module: str) -> Callable[[argparse.Namespace], int]:
    """What runs a command: the function of its name, ``module.name``, imported when it is called."""
    module, _, name = module.partition(".")

    def run(options: argparse.Namespace) -> int:
        status: int = getattr(import_module(f"cbframe.cli.{module}"), name)(options)
        return status

    return run


def parser_of(version: str) -> argparse.ArgumentParser:
    """The arguments of ``cbframe``: each command sets ``run``, which takes the options."""
    parser = argparse.ArgumentParser(
        prog="cbframe", description="Read a Couchbase bucket straight from the data service."
    )
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_demo(
        commands.add_parser(
            "demo",
            help="read a sample bucket from an embedded cluster and check the result",
            description="Start an embedded cluster, load sample data, read it over DCP, write a Parquet "
            "file, read that back and compare. Nothing needs to be installed or configured.",
        )
    )
    _add_read(
        commands.add_parser(
            "read",
            help="read a bucket, show its head or write a file",
            description="Read a bucket as it is now. Without -o, show the first documents and the fields.",
            epilog=_FORMATS,
        )
    )
    _add_snapshot(
        commands.add_parser(
            "snapshot",
            help="keep a Parquet copy of a bucket up to date, and read it",
            description="Parquet snapshots of a bucket: updated with what changed, readable as of any "
            "version.",
        )
    )
    _add_stream(
        commands.add_parser(
            "stream",
            help="print the changes of a bucket, one a line, until Ctrl-C",
            description="Print what changes in a bucket, one change a line, until Ctrl-C.",
            epilog=_STREAMED,
        )
    )
    _add_doctor(
        commands.add_parser(
            "doctor",
            help="find out why a connection fails",
            description="Look at one thing after the other: names, ports, TLS, user, bucket, nodes, DCP. "
            "The exit status is 1 if a step fails.",
        )
    )
    commands.add_parser("serve", help="run an embedded cluster on 127.0.0.1 until Ctrl-C", add_help=False)
    return parser


def _add_connection(parser: argparse.ArgumentParser) -> None:
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


def _add_demo(demo: argparse.ArgumentParser) -> None:
    demo.set_defaults(run=_runs("demo.demo"))
    demo.add_argument("--documents", type=positive, default=100_000, metavar="N", help="default: 100000")
    demo.add_argument("--nodes", type=positive, default=2, metavar="N", help="default: 2")
    demo.add_argument("--vbuckets", type=positive, default=1024, metavar="N", help="default: 1024")
    demo.add_argument("--keep", type=Path, metavar="PATH", help="keep the Parquet file: a file or a folder")
    _add(demo, "--json", help="print a report as JSON; all else goes to the standard error")


def _add_read(read: argparse.ArgumentParser) -> None:
    read.set_defaults(run=_runs("commands.read"))
    _add_connection(read)
    for name in ("--scope", "--collections", "--columns", "--expired", "--transaction-records"):
        _add(read, name)
    _add(read, "--consistency")
    form = read.add_mutually_exclusive_group()
    _add(form, "--output")
    _add(form, "--json", help="print each document as a line of JSON")
    _add(read, "--no-progress")


def _add_stream(stream: argparse.ArgumentParser) -> None:
    stream.set_defaults(run=_runs("commands.stream"))
    _add_connection(stream)
    stream.add_argument(
        "--from",
        dest="start",
        default="beginning",
        metavar="WHERE",
        help="beginning (default), now, or the file of a checkpoint",
    )
    stream.add_argument(
        "--checkpoint", type=Path, metavar="FILE", help="go on where FILE says, and keep it up"
    )
    _add(stream, "--scope")
    _add(stream, "--collections")
    stream.add_argument("--prefix", metavar="TEXT", help="only documents whose key begins so")
    _add(stream, "--transaction-records")
    stream.add_argument(
        "--limit",
        type=positive,
        metavar="N",
        help="end after N changes, or with --checkpoint, after the batch that has the Nth",
    )
    _add(stream, "--json")


def _add_doctor(doctor: argparse.ArgumentParser) -> None:
    doctor.set_defaults(run=_runs("commands.doctor"))
    _add_connection(doctor)
    for name in ("--scope", "--collections", "--json"):
        _add(doctor, name)


def _add_snapshot(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_runs("commands.snapshot"))
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)

    def command(
        name: str, text: str, description: str = "", epilog: str = "", *, connects: bool = False
    ) -> argparse.ArgumentParser:
        description = description or f"{text[0].upper()}{text[1:]}."
        found = commands.add_parser(name, help=text, description=description, epilog=epilog)
        if connects:
            _add_connection(found)
            _add(found, "--no-progress")
        _add(found, "path")
        return found

    write = command(
        "write",
        "copy a bucket, or bring a copy up to date",
        "Copy a bucket into Parquet files at PATH, or add what changed since. A version appears whole or not "
        "at all; after a crash, run it again. What the server rolled back, the snapshot rolls back.",
        connects=True,
    )
    _add(write, "--json")
    write.add_argument(
        "--mode",
        choices=("update", "create", "overwrite", "repair"),
        default="update",
        help="create: only if there is none; overwrite: begin again; repair: read again what is damaged; "
        "default: update",
    )
    for name in ("--columns", "--scope", "--collections"):
        _add(write, name)
    _add(write, "--transaction-records", default=None)
    _add(write, "--consistency")
    write.add_argument("--xattrs", action="store_true", default=None, help="keep extended attributes")
    write.add_argument(
        "--compression", default="zstd", metavar="NAME", help="zstd, snappy, gzip, lz4, brotli, none"
    )
    write.add_argument("--break-lock", action="store_true", help="take the lock of a writer that is dead")

    read = command(
        "read",
        "show the documents, or write them to a file",
        "Read the documents of a snapshot. Without -o, show the first ones and the fields.",
        _FORMATS,
    )
    for name in ("--as-of", "--columns", "--expired", "--output"):
        _add(read, name)

    changes = command(
        "changes",
        "show what changed between two versions",
        "Show what changed between two versions: how much, or with --json or -o each change.",
        _FORMATS,
    )
    when = "a version, or a time in ISO 8601"
    changes.add_argument("--since", type=_as_of, required=True, metavar="WHEN", help=when)
    changes.add_argument("--until", type=_as_of, metavar="WHEN", help="default: the newest version")
    _add(changes, "--json", help="print each change as a line of JSON")
    _add(changes, "--output")

    _add(command("versions", "list the versions that can be read"), "--json")
    verify = "Look at all files. The status is 1 where something is wrong."
    _add(command("verify", "look at all files", verify), "--json")

    compact = command(
        "compact",
        "rewrite the newest version as few files",
        "Rewrite the newest version as few files. Old files stay until vacuum.",
    )
    compact.add_argument(
        "--keep",
        default="1d",
        metavar="TIME",
        help="keep what a rollback of so much time may bring back: 90min, 36h, 7d; default: 1d",
    )
    _add(compact, "--json")

    vacuum = command("vacuum", "delete files that only older versions need")
    vacuum.add_argument(
        "--keep", type=positive, default=1, metavar="N", help="how many versions stay readable; default: 1"
    )
    _add(vacuum, "--json")

    export = command(
        "export",
        "write a folder of plain Parquet files",
        "Write the documents as a folder of plain Parquet files, which any tool reads.",
    )
    export.add_argument("folder", metavar="FOLDER", help="it must not exist")
    _add(export, "--as-of")
    _add(export, "--expired")
