"""The cluster: where its nodes are, who owns which vbucket, and how to ask.

No sockets, threads or clocks here: HTTP goes through ``requests``, which only ``rest`` loads, and whatever
waits takes its ``sleep`` from the floor above.

From a connection string to the owners of the vbuckets:

1. ``connection_string`` reads the hosts, the bucket and the options, and refuses what cannot work.
2. Its ``Seeds`` put the nodes that DNS names (SRV) in place of a single host, and seed after seed is tried:
   the first that works wins, and if none does, one error names them all.
3. ``auth`` says who asks, with a password or a certificate. ``tls`` makes the one context that verifies
   cluster managers and data nodes alike.
4. A bucket config comes from the data service (GET_CLUSTER_CONFIG, in the floor above) or from the cluster
   manager: ``rest`` asks it, and ``answers`` says what its answers mean. The same module decodes the stream
   of configs that a manager sends while a connection stays open.
5. ``cluster_map`` turns a config, terse or verbose, into a :class:`~cbframe.cluster.cluster_map.ClusterMap`:
   the address of each data node on the network by which the cluster was reached, and the owner of each
   vbucket. A map replaces another one only if its revision is higher.
6. ``collections_manifest`` has the scopes and collections of a bucket, and their numbers.
"""
