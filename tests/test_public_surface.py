"""What users import and call: a change here is a change of the interface."""

from __future__ import annotations

import inspect

import pytest

import cbframe

NAMES = [
    "AccessError",
    "AllServerURLsConnectBucketError",
    "AsOf",
    "AuthFailError",
    "BlockReceiver",
    "Bucket",
    "BucketDataSource",
    "BucketDataSourceOptions",
    "BucketDataSourceStats",
    "BucketNotFoundError",
    "BucketScan",
    "CbframeError",
    "CertificateAuthenticator",
    "ClusterMapError",
    "Compaction",
    "ConfigurationError",
    "Conflict",
    "ConnectError",
    "ConversionError",
    "Datatype",
    "DeferringReceiver",
    "DependencyError",
    "Document",
    "EnvironmentAuth",
    "Feature",
    "LocalCluster",
    "NodeStats",
    "Opcode",
    "OpenFlag",
    "PasswordAuthenticator",
    "ProgressReceiver",
    "ProtocolError",
    "ReadCancelledError",
    "ReadResult",
    "ReadTimeoutError",
    "Receipt",
    "Receiver",
    "ReceiverError",
    "ReceiverEx",
    "RollbackError",
    "ScanPartition",
    "ScanProgress",
    "SchemaDiff",
    "SchemaReport",
    "ServerError",
    "Snapshot",
    "SnapshotError",
    "SnapshotFlag",
    "SnapshotResult",
    "SnapshotVersion",
    "SpoolError",
    "StatsRates",
    "Status",
    "StreamEndReason",
    "StreamError",
    "SystemEvent",
    "SystemEventId",
    "SystemEventReceiver",
    "UPDATE_SECURITY_SETTINGS",
    "VBucketMetaData",
    "VBucketState",
    "Verification",
    "XAttrsNotSupportedError",
    "__version__",
    "connect_bucket",
    "diff_schema",
    "exponential_backoff_loop",
    "parse_failover_log",
    "read_bucket",
    "read_schema",
    "read_snapshot",
    "scan_bucket",
    "upr_open",
    "write_snapshot",
]
SCAN = {
    "conn": "required",
    "bucket": None,
    "auth": None,
    "tls": None,
    "network": "auto",
    "scope": None,
    "collections": None,
    "columns": None,
    "filters": None,
    "keys_only": False,
    "parse": True,
    "metadata": ("key",),
    "vbuckets": None,
    "key_prefix": None,
    "n_rows": None,
    "errors": "keep",
    "nested": "struct",
    "schema": None,
    "infer_schema_length": None,
    "on_conflict": "widen",
    "max_struct_fields": 1000,
    "parse_dates": False,
    "batch_bytes": None,
    "buffer_bytes": None,
    "spool_dir": None,
    "timeout": None,
    "dtype_backend": "pyarrow",
    "progress": None,
    "options": None,
}


def test_the_names() -> None:
    assert sorted(cbframe.__all__) == NAMES
    assert dir(cbframe) == sorted(cbframe.__all__)


@pytest.mark.parametrize("name", NAMES)
def test_each_name_resolves(name: str) -> None:
    value = getattr(cbframe, name)
    if name in {"__version__", "UPDATE_SECURITY_SETTINGS"}:
        assert isinstance(value, str)
    else:
        assert value.__name__ == name
        assert inspect.getdoc(value)


def test_no_other_name() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = cbframe.nothing


def test_scan_bucket() -> None:
    parameters = inspect.signature(cbframe.scan_bucket).parameters
    found = {
        name: "required" if p.default is inspect.Parameter.empty else p.default
        for name, p in parameters.items()
    }
    assert found == SCAN
    positional = [n for n, p in parameters.items() if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    assert positional == ["conn", "bucket"]


def test_read_bucket() -> None:
    parameters = inspect.signature(cbframe.read_bucket).parameters
    assert list(parameters) == ["conn", "bucket", "return_type", "split_by", "arguments"]
    assert parameters["arguments"].kind is inspect.Parameter.VAR_KEYWORD
    with pytest.raises(TypeError, match="unexpected keyword argument 'colums'"):
        cbframe.read_bucket("couchbase://localhost/default", colums=["a"])


def test_a_scan() -> None:
    public = {name for name in vars(cbframe.BucketScan) if not name.startswith("_")}
    assert public == {
        "as_of",
        "conflicts",
        "iter_batches",
        "partitions",
        "peek",
        "read",
        "split",
        "stats",
        "to_arrow",
        "to_pandas",
        "to_parquet",
        "to_polars",
        "to_reader",
    }
    assert hasattr(cbframe.BucketScan, "__arrow_c_stream__")
