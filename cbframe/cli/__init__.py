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

One process that keeps it up to date for months. It tells each update, and tries again what may mend: nodes
or an LDAP that do not answer, a timeout, another writer, a full disk. A wrong password or argument, another
bucket, a damaged snapshot, and before the first update any trouble with the folder, end it::

    cbframe snapshot write couchbases://cb.example.com/travel travel \
        --user reader --password-env CB_PASSWORD --every 5min --metrics-port 9187

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
130     Ctrl-C; of ``stream``, ``stats`` and ``--every``, which only end so, it is the usual end and gives 0,
        as does SIGTERM
======  ===========================================================================================
"""

# ruff: noqa: PLC0415 - see above

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import sys
from collections.abc import Iterable, Sequence
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
snapshot write {_CONN} travel --every 5min
snapshot write {_CONN} travel --every 1h --json
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
"""The end of the help of each command: those that begin with its name."""
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
    argv, options = sys.argv[1:] if argv is None else list(argv), argparse.Namespace()
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
        module, _, name = options.run.partition(".")
        status: int = getattr(import_module(f"cbframe.cli.{module}"), name)(options)
        sys.stdout.flush()
        return status
    except CbframeError as exc:
        complain(f"cbframe: error: {worded(exc, options)}")
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


_WORDS = {  # what errors say to programs, and what the command line has in its place
    r'auth=\("user", "password"\)(?: or auth=.*"\))?': "--user with --password-env or --password-file",
    r"(?:auth=)?CertificateAuthenticator\(.*?\)": "--client-cert and --client-key",
    r"options=BucketDataSourceOptions\(allow_plain=True\)": "--allow-plain",
    r"tls='ca\.pem'(?:, PEM text| \(cbframe read: --ca-file ca\.pem\))?": "--ca-file ca.pem",
    r'proxies=\{"https": "(http://user:.*?)"\}': r"--proxy-env names a variable that holds \1",
    r'proxies=\{"https": "(.*?)"\}': r"--proxy \1",
    r"filters=\[\(\('(.*?)', \.\.\.\), '(.*?)', \.\.\.\)\]": r'--where "\1.… \2 …"',
    r"read_bucket\(filters=\.\.\.\)": "cbframe read --where",
    r"read_schema\(\)|peek\(\)": "cbframe schema",
    r"Checkpoint\.save\(\)": "--checkpoint",
    r"(?:;|, or) raise recovery_timeout(?: to wait longer)?": "",
    r'write_snapshot\(\.\.\., mode="(\w+)"\)|mode="(\w+)"': r"cbframe snapshot write --mode \1\2",
    r"write_snapshot\(\)": "cbframe snapshot write",
    r"vacuum\(keep=\.\.\.\)": "cbframe snapshot vacuum --keep",
    r"Snapshot\(path\)\.(versions)|\b(changes|vacuum|verify)\(\)": r"cbframe snapshot \1\2",
    r"(?:,| or) a timedelta(?:, or a number of seconds)?": "",
}
_FLAGS = {"filters": "--where", "start": "--from", "tls": "--ca-file", "proxies": "--proxy"}


def worded(error: object, options: argparse.Namespace) -> str:
    """Its text, with the options of the command in place of the arguments of functions."""
    text = str(error)
    for pattern, words in _WORDS.items():
        text = re.sub(pattern.replace(" ", r"\s+"), words, text)  # lines may end at any blank

    def option(match: re.Match[str]) -> str:
        name, value = match[1], (match[2] or "").strip("\"'").replace("True", "")
        flag = _FLAGS.get(name, f"--{name}".replace("_", "-"))
        known = flag in _ARGUMENTS and {name, flag[2:].replace("-", "_")} & vars(options).keys()
        return f"{flag} {value}".rstrip() if known else match[0]

    return re.sub(
        r"""(?<![\w?&/\\.=-])(\w+)=("[\w.:-]+"|'[\w.:-]+'|True|\d+)?(?![\w."'({[/\\])""", option, text
    )


# --- arguments: nothing but the standard library


def positive(text: str) -> int:
    """A number of things."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: a number up to 65535, or 0 for a free one")
    return int(text)


def names(text: str) -> list[str]:
    """``A,B``"""
    return [name for name in text.split(",") if name]


def _as_of(text: str) -> int | str:
    """A version, or a time."""
    return int(text) if text.isdecimal() else text


def _span(text: str) -> str:
    """Some time; what the units are is known later."""
    if text.replace(".", "", 1).isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} has no unit: give 30s, 5min, 1h or 7d")
    return text


def _collections(text: str) -> list[str] | str:
    """``A,B``, or what stands for those that the user sees."""
    return text if text == "visible" else names(text)


_ARGUMENTS = {
    "conn": ("CONN", "couchbase://host/bucket, couchbases://… or http://host:8091"),
    "path": ("PATH", "the snapshot: a folder, or a URI such as s3://…"),
    "folder": ("FOLDER", "it must not exist"),
    "--all": ("", "look at all documents"),
    "--allow-plain": ("", "without TLS, send the password in clear text where a user of LDAP needs that"),
    "--as-of": ("WHEN", "a version, or a time in ISO 8601"),
    "--break-lock": ("", "take the lock of a writer that is dead"),
    "--bucket": ("BUCKET", "the bucket, if CONN does not name it"),
    "--ca-file": (
        "FILE",
        "the cluster's certificate authority; else the system's are trusted, and for Capella its own",
    ),
    "--checkpoint": ("FILE", "go on where FILE says, and keep it up"),
    "--client-cert": ("FILE", "client certificate, in place of --user"),
    "--client-key": ("FILE", "its key, if that is in another file"),
    "--collections": ("A,B", "only these collections; visible: those that the user sees"),
    "--columns": ("A,B", "keep only these fields"),
    "--compression": ("NAME", "zstd, snappy, gzip, lz4, brotli, none"),
    "--consistency": (
        "snapshot|strict",
        (
            "strict: compare all histories at the end, and read again what a node has lost meanwhile; "
            "default: %(default)s"
        ),
    ),
    "--documents": ("N", "default: %(default)s"),
    "--every": (
        "TIME",
        (
            "go on until Ctrl-C or SIGTERM: an update each 30s, 5min, 1h, counted from begin to begin; what "
            "the cluster or the disk refuses is tried again at the next turn"
        ),
    ),
    "--expired": (
        "drop|keep",
        "documents whose expiry has passed and that the server has not removed; default: %(default)s",
    ),
    "--format": (
        "table|ndjson|csv|parquet|arrow",
        "of what is printed: table (default), ndjson or csv; of FILE: else as it ends",
    ),
    "--from": ("WHERE", "beginning, now, or the file of a checkpoint; default: %(default)s"),
    "--json": ("", "print JSON"),
    "--keep": (
        "TIME",
        "keep what a rollback of so much time may bring back: 90min, 36h, 7d; default: %(default)s",
    ),
    "--keys-only": ("", "no values: the keys alone"),
    "--limit": ("N", "end after N documents"),
    "--max-lag": ("N", "a stream with more changes to come is lagging; default: %(default)s"),
    "--metrics-address": ("HOST", "default: %(default)s"),
    "--metrics-port": ("PORT", "serve /metrics and /health there"),
    "--mode": (
        "update|create|overwrite|repair",
        (
            "create: only if there is none; overwrite: begin again; repair: read again what is damaged; "
            "default: %(default)s"
        ),
    ),
    "--network": ("NAME", "which addresses of the nodes to use: default, external, …; else as CONN says"),
    "--no-progress": ("", "draw no progress line"),
    "--nodes": ("N", "default: %(default)s"),
    "--output": ("FILE", "write a file"),
    "--password-env": ("VAR", "environment variable that holds the password"),
    "--password-file": ("FILE", "file that holds the password; else it is asked for"),
    "--prefix": ("TEXT", "only documents whose key begins so"),
    "--proxy": ("URL", "HTTP proxy to the cluster manager, of http:// and https:// only"),
    "--proxy-env": ("VAR", "environment variable that holds its URL, such as HTTPS_PROXY"),
    "--scope": ("NAME", "only this scope"),
    "--since": ("WHEN", "a version, or a time in ISO 8601"),
    "--transaction-records": (
        "drop|keep",
        "documents of transactions, whose keys begin with _txn:; default: drop",
    ),
    "--until": ("WHEN", "default: the newest version"),
    "--user": ("USER", "user name"),
    "--vbuckets": ("N", "default: %(default)s"),
    "--where": (
        "EXPR",
        (
            "only documents for which this holds, such as \"type = 'hotel' and (price > 50 or price is "
            "null)\"; also in ('a', 'b'), like 'abc%%'; a name in `backquotes` may have any letters"
        ),
    ),
    "--xattrs": ("", "keep extended attributes"),
}
"""Each argument: what it takes (nothing, a value, or one of some: by default the first), and its help."""
_KINDS: dict[str, dict[str, Any]] = {
    "A,B": {"type": names},
    "FILE": {"type": Path},
    "N": {"type": positive},
    "PORT": {"type": _port},
    "TIME": {"type": _span},
    "WHEN": {"type": _as_of},
    "--collections": {"type": _collections},
    "--compression": {"default": "zstd"},
    "--format": {"default": None},
    "--from": {"dest": "start", "default": "beginning"},
    "--max-lag": {"default": 10_000},
    "--metrics-address": {"default": "127.0.0.1"},
    "--network": {"default": "auto"},
    "--where": {"type": filters_of, "dest": "filters"},
}
"""What else an argument has, by what it takes, or by its name."""
_ALSO = {"--limit": ("--limit", "--head"), "--output": ("-o", "--output")}
_WHICH = ("--scope", "--collections", "--columns", "--where", "--expired", "--transaction-records")
_CHANGES = ("--from", "--scope", "--collections", "--prefix", "--transaction-records")
_METRICS = ("--metrics-port", "--metrics-address")


def _add(parser: argparse._ActionsContainer, *arguments: str, **other: Any) -> None:
    """Add arguments of the table; `other` is what they have otherwise here."""
    for name in arguments:
        taken, text = _ARGUMENTS[name]
        how: dict[str, Any] = {"metavar": taken} if taken else {"action": "store_true"}
        if "|" in taken:
            how = {"choices": taken.split("|"), "default": taken.partition("|")[0]}
        how |= {"help": text, **_KINDS.get(taken, {}), **_KINDS.get(name, {}), **other}
        parser.add_argument(*_ALSO.get(name, (name,)), **how)


def _add_connection(parser: argparse.ArgumentParser) -> None:
    """Which bucket, and who wants it."""
    _add(parser, "conn", "--bucket", "--user")
    _add(parser.add_mutually_exclusive_group(), "--password-env", "--password-file")
    _add(parser, "--ca-file", "--client-cert", "--client-key", "--allow-plain", "--network")
    _add(parser.add_mutually_exclusive_group(), "--proxy", "--proxy-env")


def _add_format(parser: argparse.ArgumentParser) -> None:
    form = parser.add_mutually_exclusive_group()
    _add(form, "--format")
    _add(form, "--json", action="store_const", dest="format", const="ndjson", help="as --format ndjson")
    _add(parser, "--output")


class _Parser(argparse.ArgumentParser):
    def format_help(self) -> str:
        """End with two examples, or with all of a command that has no others; they are not wrapped."""
        words = self.prog.split()[1:]
        found = [line for line in _EXAMPLES.splitlines() if line.split()[: len(words)] == words]
        lines = "".join(f"  cbframe {line}\n" for line in found[: 2 if self._subparsers else None])
        return f"{super().format_help()}\nexamples:\n{lines}"


def _command(
    commands: argparse._SubParsersAction[_Parser],
    run: str,
    text: str,
    more: str = "",
    epilog: str = "",
    *,
    connects: bool = False,
) -> argparse.ArgumentParser:
    """A command: `run` is the module and the function that run it, imported when it is called."""
    name = run.partition(".")[2].removeprefix("snapshot_")
    description = f"{text[0].upper()}{text[1:]}. {more}"
    parser = commands.add_parser(name, help=text, description=description, epilog=epilog)
    parser.set_defaults(run=run)
    if connects:
        _add_connection(parser)
    return parser


def parser_of(version: str) -> argparse.ArgumentParser:
    """The arguments of ``cbframe``: each command sets ``run``, which names the function of the options."""
    parser = _Parser(prog="cbframe", description="Read a Couchbase bucket straight from the data service.")
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    text = "read a sample bucket from an embedded cluster and check the result"
    more = (
        "Starts an embedded cluster, loads sample data, reads it over DCP, writes a Parquet file, reads that "
        "back and compares. Nothing needs to be installed or configured."
    )
    demo = _command(commands, "demo.demo", text, more)
    for name, number in (("--documents", 100_000), ("--nodes", 2), ("--vbuckets", 1024)):
        _add(demo, name, default=number)
    _add(demo, "--keep", type=Path, metavar="PATH", help="keep the Parquet file: a file or a folder")
    _add(demo, "--json", help="print a report as JSON; all else goes to the standard error")

    text = "look at some documents, or read all into a file"
    more = (
        "A look shows some documents, whichever they are, and reads no more than that takes. With -o, --json "
        "or --format, all are read unless there is a --limit."
    )
    read = _command(commands, "commands.read", text, more, _FORMATS, connects=True)
    _add(read, *_WHICH, "--keys-only")
    _add(read, "--limit", help="end after N documents, whichever they are; default: 10 in a table, else all")
    _add(read, "--consistency")
    _add_format(read)
    _add(read, "--no-progress")

    text = "look at the fields: types, how much is missing, conflicts"
    schema = _command(commands, "commands.schema", text, connects=True)
    _add(schema, *_WHICH)
    how_many = schema.add_mutually_exclusive_group()
    _add(how_many, "--limit", help="look at N documents, whichever they are; default: 10000")
    _add(how_many, "--all")
    _add(schema, "--json", "--no-progress")

    text = "keep a Parquet copy of a bucket up to date, and read it"
    snapshot = commands.add_parser("snapshot", help=text, description=f"K{text[1:]}.")
    _add_snapshot(snapshot.add_subparsers(title="commands", metavar="COMMAND", required=True))

    text = "print the changes of a bucket, one a line, until Ctrl-C"
    stream = _command(commands, "commands.stream", text, epilog=_STREAMED, connects=True)
    _add(stream, *_CHANGES, "--checkpoint")
    _add(stream, "--limit", help="end after N changes; with --checkpoint, after the batch that has the Nth")
    _add(stream, "--json", *_METRICS, "--max-lag")

    text = "show how fast a bucket changes and streams, until Ctrl-C"
    more = "Live in a terminal, else a line each time."
    stats = _command(commands, "commands.stats", text, more, connects=True)
    _add(stats, *_CHANGES)
    stats.set_defaults(checkpoint=None, start="now")
    _add(stats, "--every", default="1s", help="how often: 500ms, 10s; default: %(default)s")
    _add(stats, "--limit", help="end when it was shown N times")

    text = "find out why a connection fails"
    more = (
        "Looks at one thing after the other: names, ports, TLS, user, bucket, nodes, DCP. The exit status is "
        "1 if a step fails."
    )
    doctor = _command(commands, "commands.doctor", text, more, connects=True)
    _add(doctor, "--scope", "--collections", "--json")

    commands.add_parser("serve", help="run an embedded cluster on 127.0.0.1 until Ctrl-C", add_help=False)
    text, more = "print what has a shell complete commands and arguments", 'eval "$(cbframe completion bash)"'
    completion = _command(commands, "commands.completion", text, f"To try it: {more}")
    completion.add_argument("shell", choices=SCRIPTS, metavar="SHELL", help=", ".join(SCRIPTS))
    return parser


def _add_snapshot(commands: argparse._SubParsersAction[_Parser]) -> None:
    text = "copy a bucket, or bring a copy up to date"
    more = (
        "The copy is Parquet files at PATH, to which an update adds what changed. A version appears whole or "
        "not at all; after a crash, run it again. What the server rolled back, the snapshot rolls back."
    )
    write = _command(commands, "commands.snapshot_write", text, more, connects=True)
    _add(write, "--no-progress", "path", "--json", "--every", *_METRICS, "--mode", *_WHICH[:4])
    _add(write, "--transaction-records", default=None)
    _add(write, "--consistency")
    _add(write, "--xattrs", default=None)
    _add(write, "--compression", "--break-lock")

    text, more = (
        "show the documents, or write them to a file",
        "Without -o, show the first ones and the fields.",
    )
    read = _command(commands, "commands.snapshot_read", text, more, _FORMATS)
    _add(read, "path", "--as-of", "--columns", "--where", "--expired")
    _add(read, "--limit", help="end after N documents, whichever they are")
    _add_format(read)

    text, more = "show what changed between two versions", "As counts, or with --json or -o change by change."
    changes = _command(commands, "commands.snapshot_changes", text, more, _FORMATS)
    _add(changes, "path")
    _add(changes, "--since", required=True)
    _add(changes, "--until")
    _add(changes, "--json", help="print each change as a line of JSON")
    _add(changes, "--output")

    versions = _command(commands, "commands.snapshot_versions", "list the versions that can be read")
    _add(versions, "path", "--json")
    more = "The status is 1 where something is wrong."
    _add(_command(commands, "commands.snapshot_verify", "look at all files", more), "path", "--json")

    text, more = "rewrite the newest version as few files", "Old files stay until vacuum."
    compact = _command(commands, "commands.snapshot_compact", text, more)
    _add(compact, "path")
    _add(compact, "--keep", default="1d")
    _add(compact, "--json")

    text = "delete files that only older versions need"
    vacuum = _command(commands, "commands.snapshot_vacuum", text)
    _add(vacuum, "path")
    text = "how many versions stay readable; default: %(default)s"
    _add(vacuum, "--keep", type=positive, default=1, metavar="N", help=text)
    _add(vacuum, "--json")

    text = "write a folder of plain Parquet files"
    export = _command(commands, "commands.snapshot_export", text, "Any tool reads them.")
    _add(export, "path", "folder", "--as-of", "--expired")


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
    if before[1:2] == ["serve"]:
        parser = import_module("cbframe.local.__main__").parser()
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
