"""Where a cluster is and who asks, alike for all commands that connect."""

from __future__ import annotations

import argparse
from typing import Any


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
