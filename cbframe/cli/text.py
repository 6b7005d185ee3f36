"""What the commands print: titles, aligned tables, the head of a read."""

from __future__ import annotations

import shutil
import sys
import textwrap
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import pandas as pd
import pyarrow as pa

from cbframe.arrow.columns import KEY
from cbframe.scan.convert import to_pandas
from cbframe.scan.report import left_out
from cbframe.scan.result import ReadResult
from cbframe.ui.progress import TextProgress

INDENT = "  "
HEAD_ROWS = 5
_WIDEST_CELL = 26


@contextmanager
def progress_line() -> Iterator[TextProgress]:
    sys.stdout.flush()
    with TextProgress(sys.stderr) as progress:
        yield progress


def say(text: str) -> None:
    # At once: the progress line goes to another stream.
    print(text, flush=True)


def title(text: str, *, first: bool = False) -> None:
    say(f"{'' if first else chr(10)}{text}")


def _columns() -> int:
    return min(100, max(40, shutil.get_terminal_size((80, 24)).columns))


def _cells(text: str) -> int:
    """Columns of a terminal that a text takes: 京 takes two."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def say_rows(rows: Iterable[Sequence[str]], header: Sequence[str] | None = None) -> None:
    """An aligned table: the first column to the left, the others to the right."""
    lines = [*([header] if header else []), *rows]
    widths = [max(_cells(line[i]) for line in lines) for i in range(len(lines[0]))]
    for first, *others in lines:
        cells = [first + " " * (widths[0] - _cells(first))]
        cells += [f"{text:>{width}}" for text, width in zip(others, widths[1:], strict=True)]
        say(INDENT + "  ".join(cells))


def show_head(table: pa.Table) -> None:
    say("")
    say(textwrap.indent(_head(table), INDENT))


def show_table(table: pa.Table) -> None:
    show_head(table)
    say("")
    for line in _fields(table):
        say(line)


def _head(table: pa.Table) -> str:
    """The first documents with as many of their own fields as fit, simple ones first."""
    top = table.slice(0, HEAD_ROWS)
    present = [name for name in top.column_names if name != KEY and top[name].null_count < top.num_rows]
    present.sort(key=lambda name: (pa.types.is_nested(top.schema.field(name).type), top[name].null_count))
    frame = to_pandas(top, "pyarrow")
    room = _columns() - len(INDENT)
    chosen: list[str] = []
    text = frame[chosen].to_string()
    with pd.option_context("display.unicode.east_asian_width", True):
        for name in present:
            wider = frame[[*chosen, name]].to_string(max_colwidth=_WIDEST_CELL)
            if max(map(_cells, wider.splitlines())) > room:
                continue
            chosen.append(name)
            text = wider
    left_out = table.num_columns - 1 - len(chosen)
    text = "\n".join(line.rstrip() for line in text.splitlines())
    return text + (f"\n… and {left_out} more columns" if left_out else "") if chosen else "no fields"


def _fields(table: pa.Table) -> Iterator[str]:
    """The fields by type, simple types first; each nested field on its own line."""
    by_type: dict[str, list[str]] = defaultdict(list)
    nested = []
    for field in table.schema:
        if field.name == KEY:
            continue
        if pa.types.is_nested(field.type):
            nested.append((field.name, str(field.type).replace("item: ", "").replace("element: ", "")))
        else:
            by_type[str(field.type)].append(field.name)
    width = max(map(_cells, [*by_type, *(name for name, _ in nested)]), default=0)
    rows = [(kind, ", ".join(names)) for kind, names in by_type.items()]
    for left, right in [*rows, *nested]:
        lead = INDENT + left + " " * (width - _cells(left) + 2)
        yield from textwrap.wrap(
            right,
            _columns(),
            initial_indent=lead,
            subsequent_indent=" " * (width + 4),
            break_on_hyphens=False,
        )


def show_nodes(result: ReadResult) -> None:
    rows = []
    for name, node in [*result.stats.nodes.items(), ("all", result.stats.total)]:
        removed = node.deletions + node.expirations
        numbers = (node.streams_ended, node.mutations, removed, node.snapshots, node.buffer_acks)
        counts = [f"{number:,}" for number in numbers]
        megabytes = f"{node.bytes_received / 1e6:.1f}"
        rows.append((name, *counts[:3], megabytes, *counts[3:]))
    say_rows(rows, ("node", "vbuckets", "documents", "tombstones", "MB", "snapshots", "acks"))


_ACTIONS = {"text": "kept as text", "json": "kept as JSON text", "null": "made null", "map": "names are data"}


def show_remarks(result: ReadResult) -> None:
    """The vbucket positions of the table, and what is not in a column of its own type."""
    as_of = result.as_of
    rows = [("as of", f"{len(as_of):,} vbuckets, {as_of.changes:,} changes")]
    written = next(((vbucket, *at) for vbucket, at in as_of.items() if at[1]), None)
    if written is not None:
        rows.append(("", "vbucket {}: history {:016x}, seqno {:,}, and so on".format(*written)))
    for conflict in result.conflicts:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(conflict.types.items()))
        names = "" if conflict.names is None else f", {conflict.names:,} names"
        rows.append((_ACTIONS[conflict.action], f"{conflict.path}: {kinds}{names}"))
    if all(conflict.action == "map" for conflict in result.conflicts):
        rows.append(("conflicts", "none: every field has one type"))
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in result.rejected.items())
    rows.append(("kept in _cb_value", reasons or "none: every document is a JSON object"))
    if excluded := left_out(result.expired, result.transaction_records):
        rows.append(("left out", excluded))
    for name, text in rows:
        say(f"{INDENT}{name:<18}  {text}")
