"""The arguments that say where a cluster is and who asks, alike for all commands that connect."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def add_connection(parser: argparse.ArgumentParser) -> None:
    """Give a command the arguments of a connection."""
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
        "--ca-file", metavar="FILE", help="the cluster's certificate authority; else the system's are trusted"
    )
    parser.add_argument("--client-cert", metavar="FILE", help="client certificate, in place of --user")
    parser.add_argument("--client-key", metavar="FILE", help="its key, if that is in another file")
    parser.add_argument(
        "--network",
        default="auto",
        metavar="NAME",
        help="which addresses of the nodes to use: default, external, …; else as CONN says",
    )


def connection(options: argparse.Namespace) -> dict[str, Any]:
    """What the arguments say, as keyword arguments of ``scan_bucket`` and its like.

    Raises
    ------
    ConfigurationError
        They contradict each other, or a password cannot be had.
    """
    from cbframe.cli.credentials import credentials  # noqa: PLC0415 - only where something is connected

    return {
        "conn": options.conn,
        "bucket": options.bucket,
        "auth": credentials(options),
        "tls": options.ca_file,
        "network": options.network,
    }


def names(text: str | None) -> Sequence[str] | None:
    """The names in ``a,b``; None for none given."""
    return None if text is None else [name for name in text.split(",") if name]
