"""Where a cluster is and who asks, alike for all commands that connect.

Passwords come from the environment, a file or the terminal, never from the command line.
"""

from __future__ import annotations

import argparse
import getpass
import os
import sys
from typing import Any

from cbframe.cluster.auth import AuthSource, CertificateAuthenticator
from cbframe.cluster.connection_string import parse_connection_string
from cbframe.errors import ConfigurationError
from cbframe.options import BucketDataSourceOptions


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
