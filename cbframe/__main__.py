"""``python -m cbframe``."""

from __future__ import annotations

import sys

from cbframe.cli import main

if __name__ == "__main__":
    sys.exit(main())
