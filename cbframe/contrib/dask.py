"""A bucket as a Dask DataFrame: the workers read it, each some vbuckets.

::

    from cbframe.contrib.dask import read_bucket

    frame = read_bucket("couchbase://host/travel", auth=EnvironmentAuth("CB_USER", "CB_PASSWORD"))
    frame.groupby("type").size().compute()
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Unpack

from cbframe.arrow.columns import KEY
from cbframe.contrib import spelled
from cbframe.errors import ConfigurationError, DependencyError
from cbframe.public import Connectable, ServerURLs, public
from cbframe.scan.dataframe import to_pandas
from cbframe.scan.partition import ScanPartition
from cbframe.scan.result import AsOf, ReadReport
from cbframe.scan.scan import BucketScan, scan_bucket
from cbframe.scan.spec import ScanArguments, ScanSpec

if TYPE_CHECKING:
    import dask.dataframe as dd
    import pandas as pd


@spelled(scan_bucket, ScanArguments.__annotations__)
def read_bucket(
    conn: ServerURLs | Connectable,
    bucket: str | None = None,
    *,
    npartitions: int = 16,
    sample_rows: int | None = 10_000,
    include_credentials: bool = False,
    **arguments: Unpack[ScanArguments],
) -> dd.DataFrame:
    """Read a bucket into a Dask DataFrame whose index is the document key.

    The bucket is looked at now, and read by the workers when something is computed. All partitions are
    read as of now, however late, and again if a worker is lost: see :meth:`cbframe.BucketScan.partitions`.
    Only columns that are used are read.

    Parameters
    ----------
    npartitions
        A partition has to fit into the memory of a worker, some times over. With as many as nodes, or
        more, each is read from one node.
    consistency, sample_rows, include_credentials
        As of :meth:`cbframe.BucketScan.partitions`. Without `include_credentials` a plain password is
        refused: give ``auth=EnvironmentAuth("CB_USER", "CB_PASSWORD")``, and set these variables for the
        workers.
    conn, bucket, auth, tls, network, scope, collections, columns, filters, keys_only, parse, metadata, \
vbuckets, keys, key_prefix, key_pattern, errors, nested, schema, on_conflict, max_struct_fields, expired, \
transaction_records, batch_bytes, buffer_bytes, spool_dir, spill_bytes, timeout, \
dtype_backend, progress, event_log, options
        As for :func:`cbframe.scan_bucket`.
    n_rows, infer_schema_length, parse_dates
        Refused, as by :meth:`cbframe.BucketScan.partitions`: they need all documents in one place.

    Returns
    -------
    dask.dataframe.DataFrame
        Its columns have the types of the agreed schema, its divisions are unknown. :func:`as_of` tells
        its vbucket positions. How far each partition really was, and which values did not fit, is in
        the ``attrs["cbframe"]`` of the partitions; :func:`report` makes one report of them.

    Raises
    ------
    DependencyError
        Dask is not installed.
    ConfigurationError
        A password would be sent to the workers, or the scan cannot be divided.
    CbframeError
        The bucket could not be looked at.
    """
    spec = ScanSpec.of(conn, bucket, **arguments)
    try:
        import dask  # noqa: PLC0415 - optional
        import dask.dataframe as dd  # noqa: PLC0415 - as above
    except ImportError as exc:
        raise DependencyError("dask is not installed", hint="pip install 'cbframe[dask]'") from exc
    parts = BucketScan(spec).partitions(
        npartitions,
        consistency=spec.consistency,
        sample_rows=sample_rows,
        include_credentials=include_credentials,
    )
    # Now, and not as an error of Dask's when the graph is sent.
    parts[0].refuse_secrets()
    pinned = AsOf({vb: at for part in parts for vb, at in part.as_of.items()})
    meta = to_pandas(parts[0].schema.empty_table(), spec.dtype_backend, {"as_of": pinned}, fixed_dtypes=True)
    # Of columns of Python objects Dask would make text: of bytes, arrays and objects, too.
    with dask.config.set({"dataframe.convert-string": False}):
        frame: dd.DataFrame = dd.from_map(_load, parts, meta=meta, label="read-bucket")
    return frame


def as_of(frame: dd.DataFrame) -> AsOf:
    """The vbucket positions of a frame of :func:`read_bucket`: it holds at least what is up to there."""
    found: AsOf = frame._meta.attrs["cbframe"]["as_of"]  # noqa: SLF001 - Dask has no attrs of its own
    return found


@public
def report(frame: dd.DataFrame) -> ReadReport:
    """What there is to say about reading a frame that :func:`read_bucket` made, of all partitions as one.

    Such as the values that became null with ``on_conflict="null"``, and the documents that were rejected.

    The workers tell it when they have read, so this computes the frame, and sends nothing but reports
    here. To read the bucket once for both, keep what is read in the workers' memory::

        frame = read_bucket(..., on_conflict="null").persist()
        report(frame).conflicts
        frame.groupby("type").size().compute()

    Parameters
    ----------
    frame
        From :func:`read_bucket`, or its ``persist()``. Of some of its columns the report is of these. Of a
        frame that is derived from it, partition by partition, the report is of what was read for it, and
        not of what became of that.

    Raises
    ------
    ConfigurationError
        The frame has lost the reports: its partitions are not those of a read any more.
    CbframeError
        A partition could not be read.
    """
    import dask  # noqa: PLC0415 - optional

    reports = dask.compute(*(dask.delayed(_report)(part) for part in frame.to_delayed()))
    return ReadReport.merged(reports)


def _report(part: pd.DataFrame) -> ReadReport:
    """In a worker: the report of a partition that was read there."""
    about = getattr(part, "attrs", {}).get("cbframe", {})
    if "rejected" not in about:
        raise ConfigurationError(
            "the frame has partitions without a report of their read",
            hint="give the frame that read_bucket() returned, or its persist()",
        )
    return ReadReport.of_dict(about)


def _load(part: ScanPartition, columns: Sequence[str]) -> pd.DataFrame:
    """Dask asks for the columns that it needs by this very name; without a default also if it needs none."""
    if [KEY, *columns] == part.schema.names:
        return part.to_pandas()
    return part.select([*columns]).to_pandas()[[*columns]]
