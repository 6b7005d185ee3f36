"""``cbframe read``: the head of a bucket, or a file."""

from __future__ import annotations

import argparse
import getpass
import os
import sys
from contextlib import ExitStack

from cbframe.cli.files import writer_of
from cbframe.cli.text import progress_line, say, show_remarks, show_table
from cbframe.cluster.auth import AuthSource, CertificateAuthenticator
from cbframe.cluster.connstr import parse_connection_string
from cbframe.errors import ConfigurationError
from cbframe.frame.read import scan_bucket


def read(options: argparse.Namespace) -> int:
    """Read a bucket as the options say."""
    write = None if options.output is None else writer_of(options.output)
    auth = _credentials(options)
    columns = None if options.columns is None else [name for name in options.columns.split(",") if name]
    with ExitStack() as stack:
        progress = None if options.no_progress else stack.enter_context(progress_line())
        scan = scan_bucket(
            options.conn,
            options.bucket,
            auth=auth,
            tls=options.ca_file,
            network=options.network,
            columns=columns,
            progress=progress,
        )
        if write is None:
            result = scan.read()
        else:
            rows = write(scan.to_reader(), options.output)
            assert scan.last is not None
            result = scan.last
    table = result.table
    if write is not None:
        size = options.output.stat().st_size / 1e6
        say(f"{options.output}: {rows:,} documents, {table.num_columns} columns, {size:,.1f} MB")
    else:
        say(f"{table.num_rows:,} documents in {result.seconds:.1f} s")
        show_table(table)
    show_remarks(result)
    return 0


def _credentials(options: argparse.Namespace) -> AuthSource:
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
        password = os.environ.get(options.password_env)
        if password is None:
            raise ConfigurationError(
                f"the environment variable {options.password_env} is not set",
                hint="--password-env takes the name of a variable, not the password",
            )
        return options.user, password
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
