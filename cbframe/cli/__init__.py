"""The command line: ``cbframe demo``, ``read``, ``stream``, ``doctor`` and ``serve``.

Libraries are imported where they are used, so that ``--help`` and mistyped arguments answer at once.
"""

# ruff: noqa: PLC0415 - see above

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from cbframe import __version__
from cbframe.cli.connection import add_connection
from cbframe.errors import CbframeError

_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv
        Arguments without the program's name; None for those of the process.

    Returns
    -------
    int
        Exit status: 0, 1 for an error or a difference, 2 for mistyped arguments (raised as
        ``SystemExit`` by argparse), 130 after Ctrl-C.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that cannot show a city's name still gets the rest of the table.
            stream.reconfigure(errors="replace")
    try:
        if argv[:1] == ["serve"]:
            from cbframe.local.serve import serve

            return serve(argv[1:])
        options = _parser().parse_args(argv)
        run: Callable[[argparse.Namespace], int] = options.run
        status = run(options)
        sys.stdout.flush()
        return status
    except CbframeError as exc:
        print(f"cbframe: error: {exc}", file=sys.stderr)
    except BrokenPipeError:
        # Whoever read our output has seen enough. What is left in the buffer must not raise again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as exc:
        print(f"cbframe: error: {exc}", file=sys.stderr)
    except KeyboardInterrupt:
        print("cbframe: interrupted", file=sys.stderr)
        return _INTERRUPTED
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cbframe", description="Read a Couchbase bucket straight from the data service."
    )
    parser.add_argument("--version", action="version", version=f"cbframe {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    demo = commands.add_parser(
        "demo",
        help="read a sample bucket from an embedded cluster and check the result",
        description="Start an embedded cluster, load sample data, read it over DCP, write a Parquet "
        "file, read that back and compare. Nothing needs to be installed or configured.",
    )
    demo.add_argument("--documents", type=_positive, default=100_000, metavar="N", help="default: 100000")
    demo.add_argument("--nodes", type=_positive, default=2, metavar="N", help="default: 2")
    demo.add_argument("--vbuckets", type=_positive, default=1024, metavar="N", help="default: 1024")
    demo.add_argument("--keep", type=Path, metavar="PATH", help="keep the Parquet file: a file or a folder")
    demo.set_defaults(run=_demo)

    read = commands.add_parser(
        "read",
        help="read a bucket, show its head or write a file",
        description="Read a bucket as it is now. Without -o, show the first documents and the fields.",
        epilog="The format follows the ending of FILE: .parquet, .arrow (IPC file), .csv or .ndjson. CSV "
        "holds nested fields as JSON text; CSV and NDJSON hold binary values as base64; NDJSON leaves "
        "missing fields out. FILE appears whole or not at all.",
    )
    add_connection(read)
    read.add_argument("--columns", metavar="A,B", help="keep only these fields")
    read.add_argument("-o", "--output", type=Path, metavar="FILE", help="write a file")
    read.add_argument("--no-progress", action="store_true", help="draw no progress line")
    read.set_defaults(run=_read)

    stream = commands.add_parser(
        "stream",
        help="print the changes of a bucket, one a line, until Ctrl-C",
        description="Print what changes in a bucket, one change a line, until Ctrl-C.",
        epilog="With --checkpoint, every change is printed at least once, over any number of runs: FILE is "
        "read if it is there, and written about once a second and at the end. With --json each line is a "
        "JSON object: change (upsert, delete, expire, rollback or drop), vbucket, seqno, scope, collection, "
        "key and value; keys and values that are no JSON text are base64, in key_base64 and value_base64. "
        "rollback voids what came before of its vbucket with a larger seqno, drop what came of its vbucket "
        "and collection with a smaller one.",
    )
    add_connection(stream)
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
    stream.add_argument("--scope", metavar="NAME", help="only this scope")
    stream.add_argument("--collections", metavar="A,B", help="only these collections")
    stream.add_argument("--prefix", metavar="TEXT", help="only documents whose key begins so")
    stream.add_argument(
        "--limit",
        type=_positive,
        metavar="N",
        help="end after N changes, or with --checkpoint, after the batch that has the Nth",
    )
    stream.add_argument("--json", action="store_true", help="print JSON")
    stream.set_defaults(run=_stream)

    doctor = commands.add_parser(
        "doctor",
        help="find out why a connection fails",
        description="Look at one thing after the other: names, ports, TLS, user, bucket, nodes, DCP. "
        "The exit status is 1 if a step fails.",
    )
    add_connection(doctor)
    doctor.add_argument("--json", action="store_true", help="print JSON")
    doctor.set_defaults(run=_doctor)

    commands.add_parser("serve", help="run an embedded cluster on 127.0.0.1 until Ctrl-C", add_help=False)
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not positive")
    return number


def _demo(options: argparse.Namespace) -> int:
    from cbframe.cli.demo import demo

    return demo(options)


def _read(options: argparse.Namespace) -> int:
    from cbframe.cli.read import read

    return read(options)


def _stream(options: argparse.Namespace) -> int:
    from cbframe.cli.stream import stream

    return stream(options)


def _doctor(options: argparse.Namespace) -> int:
    from cbframe.cli.doctor import doctor

    return doctor(options)
