"""Query a bucket with polars and with duckdb: of what a query asks for, they read no more than that.

Needs ``pip install 'cbframe[polars,duckdb]'``.
"""

import duckdb
import polars as pl
import pyarrow as pa

from cbframe import LocalCluster, scan_bucket, scan_polars


def main() -> None:
    with LocalCluster(vbuckets=64) as cluster:
        cluster.load_sample(5000)

        # A LazyFrame: documents that are no hotels are not typed, and of the others two columns are.
        hotels = scan_polars(cluster).filter(pl.col("type") == "hotel")
        by_country = (
            hotels.group_by("country").agg(pl.len(), pl.col("price").mean()).sort("country").collect()
        )
        print(by_country)
        print(hotels.select("name", "price").head(3).collect())

        # Any consumer of Arrow takes a scan, through __arrow_c_stream__, and reads all of what it describes.
        scan = scan_bucket(cluster, columns=["country", "price"], filters=[("type", "==", "hotel")])
        documents = pa.RecordBatchReader.from_stream(scan)
        with duckdb.connect() as database:
            database.register("documents", documents)
            rows = database.execute(
                "select country, count(*), avg(price) from documents group by country order by country"
            ).fetchall()
        for country, count, price in rows:
            print(f"{country:<16} {count:>5} {price:>8.2f}")

    assert len(rows) == by_country.height > 1
    assert [count for _, count, _ in rows] == by_country["len"].to_list()


if __name__ == "__main__":
    main()
