"""Hand a scan to polars and to duckdb: any consumer of Arrow takes it as it is.

Needs ``pip install 'cbframe[polars,duckdb]'``.
"""

import duckdb
import polars as pl
import pyarrow as pa

from cbframe import LocalCluster, scan_bucket


def main() -> None:
    with LocalCluster(vbuckets=64) as cluster:
        cluster.load_sample(5000)
        scan = scan_bucket(cluster, columns=["type", "country", "price"])

        # Both go through __arrow_c_stream__, and each of them reads the bucket again.
        hotels = pl.DataFrame(scan).filter(pl.col("type") == "hotel")
        documents = pa.RecordBatchReader.from_stream(scan)

        by_country = hotels.group_by("country").agg(pl.len(), pl.col("price").mean()).sort("country")
        print(by_country)

        with duckdb.connect() as database:
            database.register("documents", documents)
            rows = database.execute(
                "select country, count(*), avg(price) from documents"
                " where type = 'hotel' group by country order by country"
            ).fetchall()
        for country, count, price in rows:
            print(f"{country:<16} {count:>5} {price:>8.2f}")

    assert len(rows) == by_country.height > 1
    assert sum(count for _, count, _ in rows) == hotels.height


if __name__ == "__main__":
    main()
