"""From blocks of the wire to Arrow: record batches, which of their rows count, and types beyond one read.

How it works
------------
::

    node threads                                     consumer
    DataBlock ─record_batch─▶ receiver ─Handover─▶ batches ─▶ Spill ─▶ CurrentRows ─▶ rows that count

A block (:mod:`cbframe.wire.blocks`) is a receive buffer and columns of offsets into it. On the thread of its
node :func:`~cbframe.arrow.columns.record_batch` copies keys and values out of it, all at once: after that the
buffer is free, and no Python object was made for a document.

A receiver (:mod:`cbframe.arrow.receivers`) keeps what a stream needs to go on: for each vbucket the last
seqno and the metadata of its snapshot. It belongs to the threads of the nodes; a vbucket is touched by one
of them at a time. A batch and its receipt go to the consumer through a queue that never blocks the node: the
receipt does that, since the server sends on only what was acknowledged.

=======================  ==========================  ========================================================
what happens             in a bounded read           in a stream
=======================  ==========================  ========================================================
a batch arrives          it gets a number            it is handed on with the positions to which it leads
a snapshot begins        its rows may replace those  the position is within that snapshot
                         of batches before
a rollback               batches before it are       an item says after which position everything is
                         rolled back                 rolled back
a collection is dropped  its rows do not count       an item of its own
=======================  ==========================  ========================================================

In a bounded read, what counts is known only at the end (:mod:`cbframe.arrow.current_rows`): of each key the
highest seqno, if it was not rolled back and its collection exists and was not emptied later. Keys are
compared only in vbuckets that had several snapshots. Until then rows wait in a
:class:`~cbframe.arrow.spill.Spill`, in memory up to a budget and then in a file without a name.

Types beyond one read
---------------------
Within one read :mod:`cbframe.json` decides the types. Files of a snapshot and partitions are typed on their
own, and brought together afterwards by what is known of their columns (:mod:`cbframe.arrow.column_types`).
Filters (:mod:`cbframe.arrow.filters`) compare the values of documents, not what columns make of them. Types
that a caller names, and dates, are applied last (:mod:`cbframe.arrow.declared_types`).

On failure
----------
A document that cannot be inflated, or whose attributes are no UTF-8, is a ``ProtocolError`` of its vbucket:
the connection ends. A full disk is a ``SpoolError`` that names the folder, warned of as soon as the read's
progress tells that it will not fit.
"""
