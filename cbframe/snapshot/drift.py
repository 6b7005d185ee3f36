"""How the schema of a snapshot came to be."""

from __future__ import annotations

import pandas as pd
import pyarrow as pa

from cbframe.arrow.documents.unify import Columns, differences
from cbframe.snapshot.history import History
from cbframe.snapshot.reader import documents_of


def schema_history(history: History) -> pd.DataFrame:
    """A row for each field that appeared, or changed its type: version, created, field, before, after."""
    rows = []
    before = nothing = Columns(pa.schema([]))
    for number in history.numbers():
        manifest = history.load(number)
        after = documents_of(manifest)
        rows += [
            (number, history.time_of(manifest), *each)
            for each in differences(nothing if manifest.kind == "create" else before, after)
        ]
        before = after
    return pd.DataFrame(rows, columns=["version", "created", "field", "before", "after"])
