"""Read a bucket into a pandas DataFrame, and ask how far each vbucket was read."""

from cbframe import LocalCluster, read_bucket


def main() -> None:
    with LocalCluster(nodes=2, vbuckets=64) as cluster:
        for number in range(1000):
            cluster.upsert(
                f"order_{number}", {"number": number, "total": number * 1.25, "paid": number % 3 == 0}
            )
        cluster.delete("order_0")

        # Against a real cluster: read_bucket("couchbase://host/bucket", auth=("user", "password"))
        orders = read_bucket(cluster)

    print(orders.sort_values("number").head(), end="\n\n")
    print(orders.dtypes, end="\n\n")
    print(orders.groupby("paid")["total"].agg(["count", "mean"]), end="\n\n")
    print(orders.attrs["cbframe"]["as_of"])

    assert len(orders) == 999
    assert "order_0" not in orders.index
    assert str(orders["number"].dtype) == "int64[pyarrow]"
    assert orders.loc["order_10", "total"] == 12.5
    # 1,000 mutations and a deletion: 1,001 changes, over all vbuckets.
    assert orders.attrs["cbframe"]["as_of"].changes == 1001


if __name__ == "__main__":
    main()
