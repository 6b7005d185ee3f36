"""A Delta table in an object store that speaks S3."""

from __future__ import annotations

from typing import Any

import pytest
from object_store import BUCKET, KEY, REGION, SECRET
from scan.kit import fill, truth

from cbframe import LocalCluster
from cbframe.contrib.delta import to_delta, update_delta

pytestmark = [pytest.mark.s3, pytest.mark.filterwarnings("default")]
deltalake = pytest.importorskip("deltalake")


def test_a_table_and_a_failover(endpoint: str, outside: Any) -> None:
    uri = f"s3://{BUCKET}/travel"
    options = {
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_ENDPOINT_URL": f"http://{endpoint}",
        "AWS_REGION": REGION,
        "AWS_ALLOW_HTTP": "true",
    }
    with LocalCluster(nodes=2, vbuckets=16, seed=1) as cluster:
        fill(cluster, 300)
        to_delta(cluster, uri, parse=False, storage_options=options)
        cluster.delete("key-000001")
        cluster.fail_over(2, lose=3)
        cluster.upsert("more", {})
        result = update_delta(cluster, uri, storage_options=options)
        assert result.rolled_back == {2: result.rolled_back[2]}
        expected = {(key.decode(), row.seqno) for key, row in truth(cluster).items()}
    table = deltalake.DeltaTable(uri, storage_options=options)
    assert table.version() == 1
    found = table.to_pyarrow_table(columns=["_cb_key", "_cb_seqno"])
    assert len(found) == len(expected)
    assert {(row["_cb_key"], int(row["_cb_seqno"])) for row in found.to_pylist()} == expected
    assert outside.list_objects_v2(Bucket=BUCKET, Prefix="travel/_delta_log/")["KeyCount"] >= 2
    assert SECRET not in str(result)
