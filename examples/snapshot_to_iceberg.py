"""Mirror a bucket in an Iceberg table, and bring it up to date: rows and positions are one commit.

Needs ``pip install 'cbframe[iceberg]' 'pyiceberg[sql-sqlite]'``.
"""

import tempfile
from contextlib import closing

from pyiceberg.catalog import load_catalog

from cbframe import LocalCluster
from cbframe.contrib.iceberg import to_iceberg, update_iceberg


def main() -> None:
    with LocalCluster(vbuckets=64) as cluster, tempfile.TemporaryDirectory() as folder:
        # Yours may be {"type": "rest", "uri": "https://…"}, or a name of pyiceberg's configuration.
        properties = {"type": "sql", "uri": f"sqlite:///{folder}/catalog.db", "warehouse": folder}
        with closing(load_catalog(**properties)) as catalog:
            catalog.create_namespace("lake")
            cluster.load_sample(5000)
            print(to_iceberg(cluster, "lake.travel", catalog=catalog))

            cluster.upsert("hotel_new", {"type": "hotel", "name": "Zum Bären", "stars": 4})
            cluster.delete("hotel_187")
            print(update_iceberg(cluster, "lake.travel", catalog=catalog))

            # What the server loses in a failover goes from the table, too.
            vbucket = max(cluster.high_seqnos(), key=cluster.high_seqnos().__getitem__)
            cluster.fail_over(vbucket, lose=3)
            print(update_iceberg(cluster, "lake.travel", catalog=catalog))

            table = catalog.load_table("lake.travel")
            assert len(table.snapshots()) == 3
            assert table.scan().count() == cluster.item_count()


if __name__ == "__main__":
    main()
