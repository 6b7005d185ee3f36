"""Parquet copies of a bucket that update, survive crashes, and follow rollbacks of the server.

What there is
-------------
A snapshot is a folder, local or in an object store::

    manifest/00000001.json, 00000002.json, ...   one for each version, complete by itself
    data/00000002-3f…-000.parquet, ...           rows that are changes; written once, never touched again
    lock.json                                    who writes

A version is a manifest (:mod:`cbframe.snapshot.manifest` has the format): which files count, up to which
seqno each vbucket is complete, and what no longer counts of earlier files: rows above a seqno (a rollback),
rows of a collection before a seqno (it was emptied), rows of dropped collections. Files are never changed and
manifests never replaced, so readers need no lock: they read one manifest, then the files that it names.

One update
----------
:func:`~cbframe.snapshot.writer.write_snapshot` holds the lock. Then

1. files that a killed writer left are deleted: no manifest names them;
2. :class:`~cbframe.snapshot.bucket_changes.ChangeReader` streams on from the positions of the last version
   to where the bucket is now. Batches are converted as they come, and wait in memory up to a budget, then on
   disk. When all are there, their types are decided, and they are written as Parquet
   (:class:`~cbframe.snapshot.files.ChangeFiles`);
3. the next manifest is made, and published: a file that appears whole, under a name that nobody else may
   take.

Before 3 nothing has happened, as far as readers can see; after it the version is there. A process that ends
at any moment leaves the last version, and the next update goes on from it.

Rollbacks
---------
A server that rolls a vbucket back to a seqno sends only what comes after it. Older versions of documents
that were replaced since may never have been sent. So the vbucket is rolled back further, to the end of the
last version at or before that seqno, where nothing is missing
(:class:`~cbframe.snapshot.manifest.RollbackPoints`), and read again from there. What the snapshot had after
that no longer counts. The positions are in earlier manifests; reading these may take seconds, so the thread
of the node does not do it: the receiver asks the consumer's thread, and the stream goes on after that.

A vbucket that has less than the snapshot without a rollback is treated alike. If that is so of all, and the
server knows none of their histories, it is another bucket: the update is refused.

Reading
-------
:class:`~cbframe.snapshot.files.Live` finds the rows that are documents: of each key the newest row that was
not rolled back. It reads keys and metadata, and gives a mask for each file.
:class:`~cbframe.snapshot.reader.VersionReader` reads row groups by these masks, skips those that no filter
can pass, and widens the columns of each file to those of the version (:mod:`cbframe.arrow.column_types`):
files of different types need not be written again. :func:`~cbframe.snapshot.reader.changes` compares
two versions.

On failure
----------
=========================  ==================================================================================
what                       then
=========================  ==================================================================================
a writer is killed         the last version stays; the next writer deletes the files of the one that ended
a damaged or missing file  reads of versions that need it are a ``SnapshotError``; ``mode="repair"`` takes its
                           vbuckets back to before it, and reads them again
a damaged manifest         its version cannot be read, others can; ``mode="repair"`` puts it aside, and goes
                           on from the newest that is whole
two writers                the lock refuses the second; if it is broken, publishing refuses one of the two
clocks that differ         versions have ascending times in any case
=========================  ==================================================================================

``compact()`` writes the rows that can still count into few new files, as a version of its own; ``vacuum()``
deletes the files that only older versions need (:mod:`cbframe.snapshot.maintenance`).
"""
