"""``python -m cbframe.local``."""

from __future__ import annotations

import sys

from cbframe.local.serve import serve

if __name__ == "__main__":
    sys.exit(serve())
