"""``cbframe read``: the head of a bucket, or a file."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack

from cbframe.cli.credentials import connection
from cbframe.cli.output import ndjson, progress_line, say, show_remarks, show_table, writer_of
from cbframe.scan.scan import scan_bucket


def read(options: argparse.Namespace) -> int:
    """Read a bucket as the options say."""
    write = None if options.output is None else writer_of(options.output)
    arguments = connection(options)
    with ExitStack() as stack:
        progress = None if options.no_progress else stack.enter_context(progress_line())
        scan = scan_bucket(
            **arguments,
            scope=options.scope,
            collections=options.collections,
            columns=options.columns,
            expired=options.expired,
            transaction_records=options.transaction_records,
            consistency=options.consistency,
            progress=progress,
        )
        if options.json:
            for batch in scan.to_reader():
                sys.stdout.buffer.writelines(ndjson(batch))
            return 0
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
