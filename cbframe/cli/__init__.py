r"""The command line: ``cbframe read``, ``schema``, ``snapshot``, ``stream``, ``stats``, ``doctor`` and more.

A look at some documents (:mod:`~cbframe.cli.expressions` has what ``--where`` takes), and at their fields; a
bucket into a file, whose ending says the format (``.parquet``, ``.arrow``, ``.csv``, ``.ndjson``), or as
lines of JSON::

    cbframe read couchbases://cb.example.com/travel --user reader --password-env CB_PASSWORD \
        --where "type = 'hotel' and price > 50" --limit 20
    cbframe schema couchbases://cb.example.com/travel --user reader --password-env CB_PASSWORD
    cbframe read couchbases://cb.example.com/travel --ca-file ca.pem \
        --user reader --password-env CB_PASSWORD -o travel.parquet
    cbframe read couchbases://cb.example.com/travel --user reader --password-env CB_PASSWORD --json

A copy that the same command brings up to date, and what is in it (also ``verify``, ``compact``, ``vacuum``
and ``export``)::

    cbframe snapshot write couchbases://cb.example.com/travel travel --user reader --password-env CB_PASSWORD
    cbframe snapshot versions travel
    cbframe snapshot changes travel --since 1 --json
    cbframe snapshot read travel --as-of 1 -o travel.csv

What changes, a line for each change, watched by Prometheus (:mod:`~cbframe.cli.monitoring`); how fast that
goes; and why a connection fails::

    cbframe stream couchbases://cb.example.com/travel --user reader --password-env CB_PASSWORD \
        --json --checkpoint travel.json --metrics-port 9187
    cbframe stats couchbases://cb.example.com/travel --user reader --password-env CB_PASSWORD
    cbframe doctor couchbases://cb.example.com/travel --user reader --password-env CB_PASSWORD

Passwords come from the environment, a file or the terminal, never from the command line, where every process
of the machine can see them. ``--client-cert`` and ``--client-key`` take the
place of a password; :mod:`cbframe.cluster.tls` says which authorities are trusted without ``--ca-file``.
Proxies are used only where they are asked for (``--proxy``, or ``--proxy-env`` with the name of a variable
such as ``HTTPS_PROXY``), and only for the cluster manager (``http://``, ``https://``), never for data nodes.
``cbframe completion`` prints what has bash, zsh or fish complete commands, arguments and their choices.

How it works
------------
``main()`` parses the arguments, calls the function that the command names, and returns the exit status. A
command is a function of its options in :mod:`~cbframe.cli.commands`; the demo is :mod:`~cbframe.cli.demo`,
and ``serve`` is :mod:`cbframe.local`. A command's module, and all libraries that it needs, are imported when
it is called, so that ``--help`` and mistyped arguments answer at once.

What a command prints goes to the standard output (:mod:`~cbframe.cli.output`), the progress line, remarks and
errors to the standard error. Nothing is bold or dim outside of a terminal, nor where ``NO_COLOR`` is set.

======  ===========================================================================================
status  when
======  ===========================================================================================
0       it is done
1       an error, printed as ``cbframe: error: …`` with its hint and without a traceback; or the check
        that was asked for (``doctor``, ``snapshot verify``, ``demo``) found something wrong; or nobody
        reads the rest of the output, as with ``| head``: then without a word
2       mistyped arguments, ``--where`` among them; of ``serve`` also a cluster that cannot be started
130     Ctrl-C; of ``stream`` and ``stats``, which only end so, it is the usual end and gives 0
======  ===========================================================================================
"""

# ruff: noqa: PLC0415 - see above

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from cbframe import __version__
from cbframe.cli.expressions import filters_of
from cbframe.errors import CbframeError

_INTERRUPTED = 130
_CONN = "couchbase://db/travel --user me --password-env PW"
_EXAMPLES = f"""demo --documents 2000
read {_CONN} --where "price > 50"
demo --documents 2000 --nodes 3 --keep travel.parquet
read {_CONN} --columns name -o travel.csv
schema {_CONN}
schema {_CONN} --all --json
snapshot write {_CONN} travel
snapshot write {_CONN} travel --mode repair
snapshot read travel
snapshot read travel --as-of 1 -o travel.csv
snapshot changes travel --since 1
snapshot changes travel --since 1 -o changes.parquet
snapshot versions travel
snapshot versions travel --json
snapshot verify travel
snapshot verify travel --json
snapshot compact travel
snapshot compact travel --keep 7d
snapshot vacuum travel
snapshot vacuum travel --keep 10
snapshot export travel plain
snapshot export travel first --as-of 1
stream {_CONN} --json --checkpoint travel.json
stream {_CONN} --metrics-port 9187
stats {_CONN}
stats {_CONN} --every 500ms --limit 3
doctor {_CONN}
doctor {_CONN} --json
completion bash > cbframe.bash
completion fish > cbframe.fish
"""
"""Of each command the first two that begin with its name are the end of its help."""
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
        if argv[:2] == ["completion", "--"]:
            found = _candidates(argv[2:])
            print("\n".join(found))
            return int(not found)
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
    "--format": {
        "choices": ("table", "ndjson", "csv", "parquet", "arrow"),
        "help": "of what is printed: table (default), ndjson or csv; of FILE: else as it ends",
    },
    "--json": {"action": "store_true", "help": "print JSON"},
    "--limit": {"type": positive, "metavar": "N", "help": "end after N documents"},
    "--no-progress": {"action": "store_true", "help": "draw no progress line"},
    "--output": {"type": Path, "metavar": "FILE", "help": "write a file"},
    "--prefix": {"metavar": "TEXT", "help": "only documents whose key begins so"},
    "--scope": {"metavar": "NAME", "help": "only this scope"},
    "--transaction-records": {
        "choices": ("drop", "keep"),
        "default": "drop",
        "help": "documents of transactions, whose keys begin with _txn:; default: drop",
    },
    "--where": {
        "type": filters_of,
        "dest": "filters",
        "metavar": "EXPR",
        "help": "only documents for which this holds, such as \"type = 'hotel' and (price > 50 or price is "
        "null)\"; also in ('a', 'b'), like 'abc%%'; a name in `backquotes` may have any letters",
    },
}
"""Arguments that several commands have."""


def _add(parser: argparse._ActionsContainer, name: str, **other: Any) -> None:
    flags = {"--output": ("-o", name), "--limit": (name, "--head")}.get(name, (name,))
    parser.add_argument(*flags, **(_OPTIONS[name] | other))


def _runs(module: str) -> Callable[[argparse.Namespace], int]:
    """What runs a command: the function of its name, ``module.name``, imported when it is called."""
    module, _, name = module.partition(".")

    def run(options: argparse.Namespace) -> int:
        status: int = getattr(import_module(f"cbframe.cli.{module}"), name)(options)
        return status

    return run


class _Parser(argparse.ArgumentParser):
    def format_help(self) -> str:
        """End with two examples, which are not wrapped."""
        words = self.prog.split()[1:]
        found = [line for line in _EXAMPLES.splitlines() if line.split()[: len(words)] == words]
        return f"{super().format_help()}\nexamples:\n  cbframe {found[0]}\n  cbframe {found[1]}\n"


def parser_of(version: str) -> argparse.ArgumentParser:
    """The arguments of ``cbframe``: each command sets ``run``, which takes the options."""
    parser = _Parser(prog="cbframe", description="Read a Couchbase bucket straight from the data service.")
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(
        target: str,
        add: Callable[[argparse.ArgumentParser], None],
        text: str,
        more: str = "",
        epilog: str = "",
    ) -> None:
        description = f"{text[0].upper()}{text[1:]}. {more}"
        found = commands.add_parser(target.split(".")[1], help=text, description=description, epilog=epilog)
        found.set_defaults(run=_runs(target))
        add(found)

    command(
        "demo.demo",
        _add_demo,
        "read a sample bucket from an embedded cluster and check the result",
        "Starts an embedded cluster, loads sample data, reads it over DCP, writes a Parquet file, reads that "
        "back and compares. Nothing needs to be installed or configured.",
    )
    command(
        "commands.read",
        _add_read,
        "look at some documents, or read all into a file",
        "A look shows some documents, whichever they are, and reads no more than that takes. With -o, --json "
        "or --format, all are read unless there is a --limit.",
        _FORMATS,
    )
    command("commands.schema", _add_schema, "look at the fields: types, how much is missing, conflicts")
    command("commands.snapshot", _add_snapshot, "keep a Parquet copy of a bucket up to date, and read it")
    text = "print the changes of a bucket, one a line, until Ctrl-C"
    command("commands.stream", _add_stream, text, epilog=_STREAMED)
    text = "show how fast a bucket changes and streams, until Ctrl-C"
    command("commands.stats", _add_stats, text, "Live in a terminal, else a line each time.")
    command(
        "commands.doctor",
        _add_doctor,
        "find out why a connection fails",
        "Looks at one thing after the other: names, ports, TLS, user, bucket, nodes, DCP. The exit status is "
        "1 if a step fails.",
    )
    commands.add_parser("serve", help="run an embedded cluster on 127.0.0.1 until Ctrl-C", add_help=False)
    text = "print what has a shell complete commands and arguments"
    command("commands.completion", _add_completion, text, 'To try it: eval "$(cbframe completion bash)"')
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
    demo.add_argument("--documents", type=positive, default=100_000, metavar="N", help="default: 100000")
    demo.add_argument("--nodes", type=positive, default=2, metavar="N", help="default: 2")
    demo.add_argument("--vbuckets", type=positive, default=1024, metavar="N", help="default: 1024")
    demo.add_argument("--keep", type=Path, metavar="PATH", help="keep the Parquet file: a file or a folder")
    _add(demo, "--json", help="print a report as JSON; all else goes to the standard error")


def _add_read(read: argparse.ArgumentParser) -> None:
    _add_connection(read)
    for name in ("--scope", "--collections", "--columns", "--where", "--expired", "--transaction-records"):
        _add(read, name)
    read.add_argument("--keys-only", action="store_true", help="no values: the keys alone")
    _add(read, "--limit", help="end after N documents, whichever they are; default: 10 in a table, else all")
    _add(read, "--consistency")
    _add_format(read)
    _add(read, "--no-progress")


def _add_format(parser: argparse.ArgumentParser) -> None:
    form = parser.add_mutually_exclusive_group()
    _add(form, "--format")
    _add(form, "--json", action="store_const", dest="format", const="ndjson", help="as --format ndjson")
    _add(parser, "--output")


def _add_schema(schema: argparse.ArgumentParser) -> None:
    _add_connection(schema)
    for name in ("--scope", "--collections", "--columns", "--where", "--expired", "--transaction-records"):
        _add(schema, name)
    how_many = schema.add_mutually_exclusive_group()
    _add(how_many, "--limit", help="look at N documents, whichever they are; default: 10000")
    how_many.add_argument("--all", action="store_true", help="look at all documents")
    _add(schema, "--json")
    _add(schema, "--no-progress")


def _add_changes(parser: argparse.ArgumentParser, start: str) -> None:
    """Which changes."""
    _add_connection(parser)
    parser.add_argument(
        "--from",
        dest="start",
        default=start,
        metavar="WHERE",
        help=f"beginning, now, or the file of a checkpoint; default: {start}",
    )
    for name in ("--scope", "--collections", "--prefix", "--transaction-records"):
        _add(parser, name)


def _add_stream(stream: argparse.ArgumentParser) -> None:
    _add_changes(stream, "beginning")
    stream.add_argument(
        "--checkpoint", type=Path, metavar="FILE", help="go on where FILE says, and keep it up"
    )
    _add(stream, "--limit", help="end after N changes; with --checkpoint, after the batch that has the Nth")
    _add(stream, "--json")
    _add_metrics(stream)
    stream.add_argument(
        "--max-lag",
        type=positive,
        default=10_000,
        metavar="N",
        help="more than so many changes behind is lagging; default: 10000",
    )


def _add_metrics(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--metrics-port", type=int, metavar="PORT", help="serve /metrics and /health there")
    parser.add_argument("--metrics-address", default="127.0.0.1", metavar="HOST", help="default: 127.0.0.1")


def _add_stats(stats: argparse.ArgumentParser) -> None:
    stats.set_defaults(checkpoint=None)
    _add_changes(stats, "now")
    stats.add_argument("--every", default="1s", metavar="TIME", help="how often: 500ms, 10s; default: 1s")
    _add(stats, "--limit", help="end when it was shown N times")


def _add_completion(completion: argparse.ArgumentParser) -> None:
    completion.add_argument("shell", choices=SCRIPTS, metavar="SHELL", help=", ".join(SCRIPTS))


def _add_doctor(doctor: argparse.ArgumentParser) -> None:
    _add_connection(doctor)
    for name in ("--scope", "--collections", "--json"):
        _add(doctor, name)


def _add_snapshot(parser: argparse.ArgumentParser) -> None:
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
    _add_metrics(write)
    write.add_argument(
        "--mode",
        choices=("update", "create", "overwrite", "repair"),
        default="update",
        help="create: only if there is none; overwrite: begin again; repair: read again what is damaged; "
        "default: update",
    )
    for name in ("--columns", "--where", "--scope", "--collections"):
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
    for name in ("--as-of", "--columns", "--where", "--expired"):
        _add(read, name)
    _add_format(read)

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


# --- completion: the shells ask for each word, so that the arguments are known in one place

SCRIPTS = {
    "bash": """_cbframe() {
    local IFS=$'\\n'
    COMPREPLY=($(cbframe completion -- "${COMP_WORDS[@]:0:COMP_CWORD+1}" 2>/dev/null))
}
complete -o default -F _cbframe cbframe
""",
    "fish": """complete -c cbframe -f -a "(
    cbframe completion -- (commandline -opc) (commandline -ct) 2>/dev/null
    or __fish_complete_path (commandline -ct))"
""",
    "zsh": """#compdef cbframe
_cbframe() {
    local -a found
    found=(${(f)"$(cbframe completion -- "${(@)words[1,CURRENT]}" 2>/dev/null)"})
    if (( $#found )); then compadd -a found; else _files; fi
}
[[ $funcstack[1] = _cbframe ]] && _cbframe || compdef _cbframe cbframe
""",
}


def _candidates(words: Sequence[str]) -> list[str]:
    """What the last word of a command may be; nothing where it is a file, or anything else."""
    parser, awaited = parser_of(""), None
    *before, last = words
    flag, equals, value = last.partition("=")
    if equals:  # bash gives --mode=create as three words, others as one
        before, last = [*before, flag], value
    lead = f"{flag}=" if flag and equals else ""
    for word in before[1:]:
        if awaited is not None and word not in ("", "="):
            awaited = None
        elif (option := parser._option_string_actions.get(word)) is not None:  # noqa: SLF001 - no public name
            awaited = option if option.nargs != 0 else None
        else:
            for each in parser._actions:  # noqa: SLF001
                parser = each.choices.get(word, parser) if isinstance(each.choices, dict) else parser
    found: Iterable[str] = parser._option_string_actions  # noqa: SLF001
    if awaited is not None:
        found = awaited.choices or ()
    elif not last.startswith("-"):
        positional = (each for each in parser._actions if not each.option_strings)  # noqa: SLF001
        found = [name for each in positional for name in each.choices or ()]
    return [lead + name for name in found if name.startswith(last)]
