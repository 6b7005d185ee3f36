"""Watch what changes in a bucket, and see the newest state of what changed lately."""

from cbframe import LocalCluster, stream_bucket


def main() -> None:
    with LocalCluster(nodes=2, vbuckets=64) as cluster:
        for n in range(1000):
            cluster.upsert(f"sensor-{n}", {"n": n, "state": "on"})

        # Only what changes from now on. Nothing is read of the thousand documents that are there.
        with stream_bucket(cluster, start="now") as stream:
            cluster.upsert("sensor-7", {"n": 7, "state": "hot", "degrees": 81.5})
            cluster.upsert("sensor-8", {"n": 8, "state": "off"})
            cluster.delete("sensor-9")

            seen = 0
            while seen < 3 and (batch := stream.poll(10.0)) is not None:
                print(batch.to_pandas()[["_change_type", "_cb_vbucket", "_cb_seqno"]])
                seen += len(batch)
                stream.ack(batch)  # the nodes may send more, and the checkpoint is after it

            cluster.upsert("sensor-7", {"n": 7, "state": "on", "degrees": 40})
            lately = stream.to_pandas(last="5min")
            while "sensor-7" not in lately.index:
                lately = stream.to_pandas(last="5min")
            print(lately[["n", "state", "degrees"]])
            print(stream)
            print(stream.checkpoint)

    assert seen == 3
    assert lately.loc["sensor-7", "state"] == "on"


if __name__ == "__main__":
    main()
