"""An embedded Couchbase on the loopback, for tests, examples and trying things out."""

from cbframe.local.cluster import LocalCluster
from cbframe.local.loop import ServerTLS

__all__ = ["LocalCluster", "ServerTLS"]
