"""The wire: bytes to messages and back. No sockets, threads, clocks or logging here."""
