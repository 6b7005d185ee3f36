"""An embedded Couchbase on the loopback, for tests, examples and trying things out.

How it works
------------
::

    LocalCluster ── Engine ─┬─ LocalBucket: LocalManifest, VBucket × n, the map    one lock
                            ├─ Credentials
                            ├─ ClusterConfig: what REST and data nodes say of the cluster
                            └─ LocalNode × n ── Loop (a thread) ─┬─ RestConnection × n
                                                                 └─ KvConnection × n
                                                                    └─ Producer ── ActiveStream × n

``LocalCluster`` (:mod:`~cbframe.local.cluster`) has the verbs; the ``Engine`` does them, in this process
or, with ``process=True``, in a child that is called by name through a pipe. There is one copy of the data
for all nodes: who owns a vbucket is a row of ``LocalBucket.map``, and moving or failing it over changes
that row.

**Stored form.** A change is kept as the DCP frame that announces it (:mod:`~cbframe.local.items`), at the
place of its seqno in ``VBucket.history``; ``live`` marks what nothing has superseded. Superseded frames
stay, since a failover may cut the history back to any seqno. A backfill is a join of stored frames, made
once for each kind of connection, and sent as slices of that block.

**Threads.** Each node has one, its ``Loop``: sockets, timers, calls from outside. Everything of a node and
its connections runs there. The bucket is shared: each request, and each verb, takes ``LocalBucket.lock``. A
write calls ``LocalBucket.written`` under the lock, which wakes the loops that have a stream of the vbucket.
A verb never waits for a loop while it holds the lock (:meth:`Engine._on_all`), because that loop may wait
for it.

**A DCP stream**, from its request (:mod:`~cbframe.local.dcp`):

=====================  =========================  ====================================================
state                  what it sends next         goes on when
=====================  =========================  ====================================================
granted                the failover log           at once; with stream numbers when it is its turn
backfill               a disk snapshot            the client's window has room (``Producer.fill``)
live                   a memory snapshot          ``VBucket`` has more (``LocalNode.feed``)
up to date             nothing                    a write wakes it
ended                  STREAM_END                 ``end`` is reached, or the vbucket, the collections or
                                                  the rights are gone
=====================  =========================  ====================================================

**Fidelity.** Conversations recorded with 7.2.9 and 8.0.2 are replayed by tests against this server and
compared byte by byte. Where the two differ, the code asks ``bucket.is_8``; :mod:`~cbframe.local.release`
has what can be written as tables.

**Faults** are states of a node (``LocalCluster.stall``, ``refuse``, ``chop`` and so on), read by the loop
each time it sends or accepts. ``close()`` ends every thread, socket and process.
"""

from cbframe.local.cluster import LocalCluster
from cbframe.local.loop import ServerTLS

__all__ = ["LocalCluster", "ServerTLS"]
