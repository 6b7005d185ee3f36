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
