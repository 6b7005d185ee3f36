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
``main()`` parses the arguments (:mod:`~cbframe.cli.arguments`), calls the function that the command names,
and returns the exit status. A command is a function of its options: :mod:`~cbframe.cli.commands` has those
that read a bucket, :mod:`~cbframe.cli.snapshot` those of a snapshot, :mod:`~cbframe.cli.demo` the demo;
``serve`` is :mod:`cbframe.local`. A command's module, and all libraries that it needs, are imported when it
is called, so that ``--help`` and mistyped arguments answer at once.

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
from pathlib import Path

from cbframe import __version__
from cbframe.cli.arguments import parser_of
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
