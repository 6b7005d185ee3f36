"""Explore a bucket: a report of its fields, a frame for each kind of document, the type conflicts."""

import cbframe

HOTELS = [{"type": "hotel", "name": f"Hotel {n}", "rooms": n, "geo": {"lat": n / 10}} for n in range(5)]
ROUTES = [{"type": "route", "airline": "AF", "stops": n or "none"} for n in range(3)]


def main() -> None:
    with cbframe.LocalCluster() as cluster:
        for number, document in enumerate(HOTELS + ROUTES):
            cluster.upsert(f"{document['type']}_{number}", document)

        print(cbframe.read_schema(cluster))

        frames = cbframe.read_bucket(cluster, split_by="type")
        print(frames["hotel"].drop(columns="type"))
        for conflict in frames["route"].attrs["cbframe"]["conflicts"]:
            print(f"{conflict['path']}: {conflict['types']} became {conflict['action']}")

        few = cbframe.read_bucket(
            cluster, columns=["name", "geo.lat"], filters=[("type", "==", "hotel"), ("rooms", ">", 2)]
        )
        print(few)

        # As the documents come, and never all of them in memory.
        rows = sum(batch.num_rows for batch in cbframe.scan_bucket(cluster).iter_batches())
        print(f"{rows} documents in batches")


if __name__ == "__main__":
    main()
