"""Mirror a bucket in a Delta table, and bring it up to date: rows and positions are one commit.

Needs ``pip install 'cbframe[delta]'``.
"""

import tempfile

from deltalake import DeltaTable

from cbframe import LocalCluster
from cbframe.contrib.delta import to_delta, update_delta


def main() -> None:
    with LocalCluster(vbuckets=64) as cluster, tempfile.TemporaryDirectory() as folder:
        uri = f"{folder}/travel"
        cluster.load_sample(5000)
        print(to_delta(cluster, uri))

        cluster.upsert("hotel_new", {"type": "hotel", "name": "Zum Bären", "stars": 4})
        cluster.delete("hotel_187")
        print(update_delta(cluster, uri))

        # What the server loses in a failover goes from the table, too.
        vbucket = max(cluster.high_seqnos(), key=cluster.high_seqnos().__getitem__)
        cluster.fail_over(vbucket, lose=3)
        print(update_delta(cluster, uri))

        table = DeltaTable(uri)
        assert table.version() == 2
        assert table.to_pyarrow_dataset().count_rows() == cluster.item_count()


if __name__ == "__main__":
    main()
