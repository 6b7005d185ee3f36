"""An embedded Couchbase on the loopback, for tests, examples and trying things out."""

from cbframe.local.cluster import LocalCluster

__all__ = ["LocalCluster"]
