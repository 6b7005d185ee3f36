"""Keep a Parquet copy of a bucket: update it, and remove what a failover lost."""

import tempfile
from pathlib import Path

from cbframe import LocalCluster, Snapshot, read_bucket, read_snapshot, write_snapshot


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, LocalCluster(nodes=2, vbuckets=64, seed=1) as cluster:
        path = Path(folder) / "travel"
        cluster.load_sample(5000)
        print(write_snapshot(cluster, path), end="\n\n")

        # Later calls read what changed since.
        cluster.upsert("hotel_new", {"type": "hotel", "name": "The New One"})
        cluster.delete(str(read_snapshot(path, columns=["type"]).index[0]))
        print(write_snapshot(cluster, path), end="\n\n")

        # A node fails, and with it the last changes of its vbuckets.
        vbucket = next(vb for vb, seqno in cluster.high_seqnos().items() if seqno > 60)
        cluster.fail_over(vbucket, lose=5)
        result = write_snapshot(cluster, path)
        print(result, end="\n\n")

        snapshot = Snapshot(path)
        now = read_snapshot(path)
        before = read_snapshot(path, as_of=1)
        truth = read_bucket(cluster)
        print(f"{len(before):,} documents in version 1, {len(now):,} now")
        print(snapshot.changes(since=1, until=2)["_change_type"].value_counts().to_dict())
        print(snapshot.compact(keep="0s"))
        print(f"{len(snapshot.vacuum())} files deleted")
        print(snapshot.verify())

    assert result.rolled_back
    assert result.retracted > 0
    assert sorted(now.index) == sorted(truth.index)


if __name__ == "__main__":
    main()
