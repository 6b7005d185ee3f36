"""The Couchbase binary protocol: bytes to messages and back. No sockets, threads, clocks or logging here.

Everything on a connection is a frame: 24 bytes of header, then framing extras, extras, key and value.
There are two ways to read frames, and which one applies depends only on the opcode:

- Mutations, deletions and expirations become columns. :func:`~cbframe.wire.blocks.frame_decoder` reads a
  whole receive buffer at once and gives one :class:`~cbframe.wire.blocks.DataBlock`, whose keys and values
  are offsets into that buffer. No Python object is made per document.
- All others become one :class:`~cbframe.wire.framing.Frame` each, and from it a typed message (``messages``).
  Each class encodes itself (``frame``) and reads itself back (``parse``), so that the embedded cluster uses
  the same definitions.

The files, from the bottom up::

    constants   opcodes, statuses, flags, limits
    framing     header and frame
    messages    requests, and what a data node says: system events, seqnos, failover log; keys and values
    blocks      data messages as columns
    sasl        PLAIN and SCRAM

Lengths, offsets and counts are the peer's and are checked before they are followed. What does not fit is a
:class:`~cbframe.ProtocolError` with the opcode, the vbucket or the offset; an opcode or a code that this
version does not know is no error.
"""
