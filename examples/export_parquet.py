"""Export a bucket to a Parquet file and read it back."""

import json
import tempfile
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

from cbframe import LocalCluster, scan_bucket


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, LocalCluster(nodes=2, vbuckets=64) as cluster:
        cluster.load_sample(5000)
        existing = cluster.item_count()

        # The file appears whole or not at all. The types are those of the documents.
        scan = scan_bucket(cluster, metadata=["key", "vbucket", "seqno"])
        path = scan.to_parquet(Path(folder) / "travel.parquet")

        file = pq.read_metadata(path)
        frame = pd.read_parquet(path, dtype_backend="pyarrow")
        origin = json.loads(pq.read_schema(path).metadata[b"cbframe"])

    print(f"{file.num_rows:,} documents, {file.num_columns:,} leaf columns")
    print(f"{origin['bucket']!r} as of {scan.as_of}")
    print(frame.loc[frame["type"] == "hotel", ["_cb_key", "name", "price", "geo"]].head(3))
    for reason, count in scan.last.rejected.items():
        print(f"{count} documents in _cb_value: {reason}")

    assert len(frame) == existing
    assert frame["_cb_key"].is_unique
    assert len(origin["as_of"]) == 64


if __name__ == "__main__":
    main()
