"""DCP: connections, streams, and the threads that run them.

Theory of operation
===================

A :class:`~cbframe.dcp.source.BucketDataSource` runs on threads of its own::

    cbframe-cluster     source.py       runs the coordinator, starts and ends all other threads
    cbframe-node-…      node.py         one a connection: its socket, its protocol, the receiver's callbacks
    cbframe-persistence-…               one a node, with only_persisted: asks what it has on disk
    cbframe-map         source.py       one fetch of the cluster map, then it ends
    cbframe-config      maps.py         with http:// seeds: receives each new map from a cluster manager
    cbframe-resolve, cbframe-rest       single calls that cannot be interrupted; they may be left behind

Three parts know nothing of threads, sockets and clocks, and are tested without them:

* :class:`~cbframe.dcp.connection.DcpConnection`: bytes in, events out, bytes to send. Owned by one node
  thread. A stream is a state machine, ``TRANSITIONS`` in :mod:`~cbframe.dcp.streams`; all else is the
  peer's error.
* :class:`~cbframe.dcp.coordinator.Coordinator`: messages in, instructions out
  (:mod:`~cbframe.dcp.messages`). Owned by the supervisor's thread. Its two state machines are drawn in its
  module.
* the conversations in :mod:`~cbframe.dcp.handshake` and :mod:`~cbframe.dcp.survey`: generators of requests,
  which are sent the answers.

A read goes like this. The supervisor gets `Started`; the coordinator says `FetchMap`. With `MapFetched` it
knows the owner of each vbucket and says `StartNode` for each. The node's thread connects, logs in, opens
DCP, and posts `NodeReady` with the high seqnos; once all ends are pinned, the coordinator says
`OpenStreams`. The thread asks the receiver where each vbucket stands and requests its stream from there.
Blocks of documents go from the socket's buffer to the receiver by reference. It acknowledges them now, or
later from any thread (`Receipt`); until then they count against the window, and a node whose window is full
stops sending: that is all the back-pressure there is. At its end a stream becomes `StreamEnded`, the
vbucket is done, and after the last one comes `Finish`.

Who calls whom: threads call each other by queues only. A node's thread has an inbox and a waker, the
supervisor a deque and an event. No lock is held while a receiver or a hook of the user runs. Other threads
may read counters, streams and the coordinator's results at any time; they are written by one thread each.

What happens on failure:

* a connection breaks, times out or gets bytes that make no sense: the thread ends with `NodeDown`; its
  vbuckets are pending again, and a new thread continues each from where the receiver's data end, after a
  back-off.
* a vbucket has moved (NOT_MY_VBUCKET, STATE_CHANGED): the map that came with the answer is used, or one is
  fetched.
* the server has lost history (ROLLBACK): the receiver rolls the vbucket back, and the stream is requested
  again from there. A position outside of the history (ERANGE) is rolled back to 0.
* a node leaves the map: `StopNode`; its vbuckets are requested of others once its thread has ended, never
  before.
* attempts fail for too long, or with an error that no attempt heals: `Fail`, unless the source is an
  endless one.
* whatever ends the run: all threads are stopped and joined, and all sockets closed, before the supervisor
  ends.

For questions about a cluster, without streams to read: :mod:`~cbframe.dcp.survey` (where the vbuckets are)
and :mod:`~cbframe.dcp.probe` (why a connection fails), by :class:`~cbframe.dcp.transport.Line`.
"""
