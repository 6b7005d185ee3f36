"""The cluster: where its nodes are, who owns which vbucket, and how to ask.

No sockets, threads or clocks here: HTTP goes through ``requests`` (only :mod:`cbframe.cluster.rest`
loads it), and whatever waits takes its ``sleep`` from the floor above.
"""
