"""Who asks: passwords come from the environment, a file or the terminal, never from the command line."""

from __future__ import annotations

import argparse
import getpass
import os
import sys

from cbframe.cluster.auth import AuthSource, CertificateAuthenticator
from cbframe.cluster.connstr import parse_connection_string
from cbframe.errors import ConfigurationError


def credentials(options: argparse.Namespace) -> AuthSource:
    """Who asks, as the arguments say.

    Raises
    ------
    ConfigurationError
        They contradict each other, or a password cannot be had.
    """
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
