"""Bounded reads and change streams: from arguments to tables, DataFrames and record batches.

A bounded read
--------------
::

    scan_bucket(...) ── ScanSpec ── BucketScan ──▶ ReadSession ──▶ Run ──▶ BucketDataSource (dcp)
     scan               spec        scan           session         session        │ node threads
                                                                                  ▼
       ReadResult ◀── Outcome ◀── Pipeline ◀── add() ◀── take() ◀── DeferringBatchReceiver (arrow)
       result         shape       pipeline      the caller's thread

* ``spec``: every public function makes one frozen ``ScanSpec`` of its arguments. It checks all arguments,
  before anything is connected, and knows the defaults. It can be pickled: partitions are specs with pins.
* ``names``: where collections are asked for by name, a connection to the cluster turns names into ids before
  the read, and looks again after it. A collection that went meanwhile is an error.
* ``session``: a ``Run`` starts the source and takes record batches from its receiver, on the caller's
  thread, until every vbucket is at the seqno that the bucket had at the start. Bytes are acknowledged to a
  node only when the pipeline has taken them, so the flow-control window bounds what is under way.
* ``pipeline``: batches are cut down to what is wanted (keys, filters, expiry), their documents are
  typed, and everything waits, in memory up to a budget and then in a temporary file, until the read is
  complete. Only then it is known which rows count (``arrow.current_rows``: newest version of each key, no
  rollback, no dropped collection) and which types hold all values. Rows that do not count leave no trace in
  types or counts.
* ``shape``: the typed documents get the form that was asked for: the agreed columns of partitions, declared
  types, selected and flattened columns. ``dataframe`` makes pandas of it, ``parquet`` files.
* ``result``: as of which positions the result is (``AsOf``), conflicts, rejected documents, what was left
  out.

A read fails as a whole: whatever is raised, no part of it was returned, and threads, sockets and temporary
files are gone. Ctrl-C is such an error.

Partitions
----------
``partition`` asks all nodes where their vbuckets are, agrees on a schema from a sample, and pins each part to
the seqnos of one moment. A part is a ``ReadSession`` with pins and an agreement, in whatever process. After
the read its pins compare what was reached: with ``consistency="strict"`` another history, or a later seqno,
is an error. ``microbatch`` reads the changes between two offsets in the same way, for Spark.

Change streams
--------------
``stream`` runs a source without an end. Node threads put batches, rollbacks and system events into a
``ChangeReceiver``; the consumer's thread forms ``ChangeBatch`` objects (``changes``), delivers them, and
moves the checkpoint (``checkpoint``) when they are acknowledged. What was delivered and not acknowledged
holds back the bytes of its node.

A batch is delivered when it has `batch_bytes`, when its first row is `max_latency` seconds old, when a
rollback comes, or when nothing more will come. The batch after a rollback begins with it: it rolls back rows
of batches before, none of its own. The stream ends with an error when the source gives up
(``recovery_timeout``), and without one when all collections that it was for are gone. A member of a ``group``
is connected again, between two batches, whenever its share of the vbuckets has changed.

``doctor`` takes the steps of a connection one by one, and says which one fails. ``progress`` counts, and
draws nothing: forms of progress are brought by the floor above. ``plan`` says what a read will do.
"""
