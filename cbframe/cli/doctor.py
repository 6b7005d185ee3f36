"""``cbframe doctor``: why a connection fails."""

from __future__ import annotations

import argparse
import json

from cbframe.cli.connection import connection
from cbframe.cli.text import say
from cbframe.frame.doctor import doctor as examine


def doctor(options: argparse.Namespace) -> int:
    """Print a diagnosis; 1 if a step has failed."""
    found = examine(**connection(options))
    say(json.dumps(found.to_dict(), ensure_ascii=False, indent=2) if options.json else str(found))
    return 0 if found.ok else 1
