"""A column that no document has is reported before a bucket is read in partitions."""

from __future__ import annotations

import pytest

from cbframe import ConfigurationError, LocalCluster, scan_bucket


def test_a_misspelt_column_is_reported_by_the_sample() -> None:
    with LocalCluster(1, vbuckets=4) as cluster:
        scan = scan_bucket(cluster, columns=["nmae", "name"])
        assert scan.partitions(2)  # of an empty bucket nothing can be said
        cluster.upsert("a", {"name": 1})
        with pytest.warns(UserWarning, match="sample.*'nmae', which no document has"):
            scan.partitions(2)
        with pytest.raises(ConfigurationError, match="'nmae', which no document has"):
            scan.partitions(2, sample_rows=None)
        declared = scan_bucket(cluster, columns=["nmae", "name"], schema={"nmae": "int64"})
        assert declared.partitions(2)[0].schema.field("nmae").type == "int64"
