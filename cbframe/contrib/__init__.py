"""Hand-overs to other libraries. None is imported unless it is asked for.

``dask``
    A bucket as a Dask DataFrame: each of its partitions is a :class:`~cbframe.ScanPartition`, which a worker
    reads. The graph holds specs and pins, no sockets, and no password unless that was asked for.
``polars``
    A bucket as a LazyFrame: the columns, conditions and numbers of rows of a query go down to the read.
``spark``
    A data source for Spark. A batch read is the same partitions, planned on the driver and read on
    executors. A stream is :mod:`cbframe.scan.microbatch`: Spark stores one offset for each batch, and
    executors read the changes between two of them. They cannot report what they met, so a vbucket whose
    history is not the one of the offset is delivered again from its beginning, after a row ``reset``.
``delta``, ``iceberg``
    A Delta or Iceberg table that mirrors a bucket. An update fetches what changed since the positions in the
    metadata of the table's last commit, as a snapshot's update does, and commits rows and positions at once.
    What the server rolled back comes from the earlier version of the table that has it. ``mirror`` decides
    what is written, ``stored_rows`` says how tables hold the columns; what reads the log of a table, and
    commits, is a :class:`~cbframe.contrib.mirror.Table` of each format.

``pushdown`` has what Spark and polars share: which conditions a filter of a scan can say.

All of them stand on floors below: they know no socket and no thread. An error is one of
:mod:`cbframe.errors`; what is not installed is a :class:`~cbframe.DependencyError` that names the extra to
install.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from functools import wraps
from inspect import Parameter, signature
from typing import Any

from cbframe.public import P, T, public


def spelled(like: Callable[..., Any], names: Container[str]) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """For functions that take some arguments as another one does: show them, and call with its defaults."""
    theirs = [each for each in signature(like).parameters.values() if each.name in names]

    def decorated(function: Callable[P, T]) -> Callable[P, T]:
        given = signature(function)
        own = [each for each in given.parameters.values() if each.kind != Parameter.VAR_KEYWORD]
        shown = given.replace(parameters=[*own, *theirs])

        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            bound = shown.bind(*args, **kwargs)
            bound.apply_defaults()
            return function(*bound.args, **bound.kwargs)

        call.__signature__ = shown  # type: ignore[attr-defined]
        return public(call)

    return decorated
