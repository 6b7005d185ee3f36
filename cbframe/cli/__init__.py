"""The command line: ``cbframe demo``, ``read``, ``snapshot``, ``stream``, ``doctor`` and ``serve``.

Libraries are imported where they are used, so that ``--help`` and mistyped arguments answer at once.
"""

# ruff: noqa: PLC0415 - see above

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from cbframe import __version__
from cbframe.cli.arguments import (
    FORMATS,
    STREAMED,
    add_collections,
    add_columns,
    add_connection,
    add_consistency,
    add_doctor,
    add_expired,
    add_json,
    add_output,
    add_progress,
    add_snapshot,
    add_stream,
    add_transaction_records,
    positive,
)
from cbframe.errors import CbframeError

_INTERRUPTED = 130


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
        options = _parser().parse_args(argv)
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


def _parser() -> argparse.ArgumentParser:
    from cbframe import core  # one that cannot be loaded is an error like others

    parser = argparse.ArgumentParser(
        prog="cbframe", description="Read a Couchbase bucket straight from the data service."
    )
    parser.add_argument("--version", action="version", version=f"cbframe {__version__}, {core.TITLE}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    demo = commands.add_parser(
        "demo",
        help="read a sample bucket from an embedded cluster and check the result",
        description="Start an embedded cluster, load sample data, read it over DCP, write a Parquet "
        "file, read that back and compare. Nothing needs to be installed or configured.",
    )
    demo.add_argument("--documents", type=positive, default=100_000, metavar="N", help="default: 100000")
    demo.add_argument("--nodes", type=positive, default=2, metavar="N", help="default: 2")
    demo.add_argument("--vbuckets", type=positive, default=1024, metavar="N", help="default: 1024")
    demo.add_argument("--keep", type=Path, metavar="PATH", help="keep the Parquet file: a file or a folder")
    add_json(demo, "print a report as JSON; all else goes to the standard error")
    demo.set_defaults(run=_demo)

    read = commands.add_parser(
        "read",
        help="read a bucket, show its head or write a file",
        description="Read a bucket as it is now. Without -o, show the first documents and the fields.",
        epilog=FORMATS,
    )
    add_connection(read)
    add_collections(read)
    add_columns(read)
    add_expired(read)
    add_transaction_records(read)
    add_consistency(read)
    form = read.add_mutually_exclusive_group()
    add_output(form)
    add_json(form, "print each document as a line of JSON")
    add_progress(read)
    read.set_defaults(run=_read)

    snapshot = commands.add_parser(
        "snapshot",
        help="keep a Parquet copy of a bucket up to date, and read it",
        description="Parquet snapshots of a bucket: updated with what changed, readable as of any version.",
    )
    add_snapshot(snapshot, _snapshot)

    stream = commands.add_parser(
        "stream",
        help="print the changes of a bucket, one a line, until Ctrl-C",
        description="Print what changes in a bucket, one change a line, until Ctrl-C.",
        epilog=STREAMED,
    )
    add_stream(stream)
    stream.set_defaults(run=_stream)

    doctor = commands.add_parser(
        "doctor",
        help="find out why a connection fails",
        description="Look at one thing after the other: names, ports, TLS, user, bucket, nodes, DCP. "
        "The exit status is 1 if a step fails.",
    )
    add_doctor(doctor)
    doctor.set_defaults(run=_doctor)

    commands.add_parser("serve", help="run an embedded cluster on 127.0.0.1 until Ctrl-C", add_help=False)
    return parser


def _demo(options: argparse.Namespace) -> int:
    from cbframe.cli.demo import demo

    return demo(options)


def _read(options: argparse.Namespace) -> int:
    from cbframe.cli.read import read

    return read(options)


def _snapshot(options: argparse.Namespace) -> int:
    from cbframe.cli.snapshot import snapshot

    return snapshot(options)


def _stream(options: argparse.Namespace) -> int:
    from cbframe.cli.stream import stream

    return stream(options)


def _doctor(options: argparse.Namespace) -> int:
    import json

    from cbframe.cli.credentials import connection
    from cbframe.cli.output import say
    from cbframe.scan.doctor import doctor

    arguments = connection(options)
    finer = arguments.pop("options")
    found = doctor(
        **arguments,
        scope=options.scope,
        collections=options.collections,
        proxies=finer.proxies,
        allow_plain=finer.allow_plain,
    )
    say(json.dumps(found.to_dict(), ensure_ascii=False, indent=2) if options.json else str(found))
    return 0 if found.ok else 1
