"""What users import and call: a change here is a change of the interface."""

from __future__ import annotations

import inspect
import re
from functools import partial
from pathlib import Path

import pytest
from mypy import api

import cbframe

ROOT = Path(__file__).parent.parent
NAMES = [
    *("AccessError", "AllServerURLsConnectBucketError", "AsOf", "AuthFailError", "BlockReceiver", "Bucket"),
    *("BucketDataSource", "BucketDataSourceOptions", "BucketDataSourceStats", "BucketNotFoundError"),
    *("BucketScan", "CbframeError", "CertificateAuthenticator", "ChangeBatch", "ChangeStream", "Checkpoint"),
    *("ClusterMapError", "CollectionDrop", "Compaction", "ConfigurationError", "Conflict", "ConnectError"),
    *("ConsumerGroup", "ConversionError", "Datatype", "DeferringReceiver", "DependencyError", "Diagnosis"),
    *("Document", "EnvironmentAuth", "Feature", "GroupError", "LocalCluster", "Moment", "NodeStats"),
    *("Opcode", "OpenFlag"),
    *("PasswordAuthenticator", "ProgressReceiver", "ProtocolError", "ReadCancelledError", "ReadReport"),
    *("ReadResult", "ReadTimeoutError", "Receipt", "Receiver", "ReceiverError", "ReceiverEx"),
    *("ResourceError", "Rollback", "RollbackError", "ScanPartition", "ScanPlan", "ScanProgress"),
    *("SchemaDiff", "SchemaReport", "ServerError", "Snapshot", "SnapshotError", "SnapshotFlag"),
    "SnapshotResult",
    *("SnapshotVersion", "SpoolError", "StatsRates", "StatsView", "Status", "StreamEndReason", "StreamError"),
    *("SystemEvent", "SystemEventId", "SystemEventReceiver", "UPDATE_SECURITY_SETTINGS", "VBucketMetaData"),
    *("VBucketOffset", "VBucketState", "Verification", "XAttrsNotSupportedError", "__version__"),
    *("connect_bucket", "diff_schema", "doctor", "exponential_backoff_loop", "parse_failover_log"),
    *("read_bucket", "read_schema", "read_snapshot", "scan_bucket", "scan_polars", "show_stats"),
    *("stream_bucket", "upr_open", "write_snapshot"),
]
BUCKET = {
    "conn": "required",
    "bucket": None,
    "auth": None,
    "tls": None,
    "network": "auto",
    "scope": None,
    "collections": None,
}
SCAN = {
    **BUCKET,
    "columns": None,
    "filters": None,
    "keys_only": False,
    "parse": True,
    "metadata": ("key",),
    "vbuckets": None,
    "keys": "text",
    "key_prefix": None,
    "key_pattern": None,
    "n_rows": None,
    "errors": "keep",
    "nested": "struct",
    "schema": None,
    "infer_schema_length": None,
    "on_conflict": "widen",
    "max_struct_fields": 1000,
    "parse_dates": False,
    "expired": "drop",
    "transaction_records": "drop",
    "consistency": "snapshot",
    "batch_bytes": None,
    "buffer_bytes": None,
    "spool_dir": None,
    "spill_bytes": None,
    "timeout": None,
    "dtype_backend": "pyarrow",
    "progress": "auto",
    "event_log": None,
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


def test_read_bucket() -> None:
    parameters = inspect.signature(cbframe.read_bucket).parameters
    assert list(parameters) == ["conn", "bucket", "return_type", "split_by", *list(SCAN)[2:]]
    with pytest.raises(TypeError, match="unexpected keyword argument 'colums'"):
        cbframe.read_bucket("couchbase://localhost/default", colums=["a"])


def test_scan_polars() -> None:
    parameters = inspect.signature(cbframe.scan_polars).parameters
    refused = {"n_rows", "infer_schema_length", "parse_dates", "dtype_backend"}
    names = [name for name in SCAN if name not in refused]
    assert list(parameters) == [*names[:2], "sample_rows", *names[2:]]
    assert all(parameters[name].default == SCAN[name] for name in names[1:])


def test_a_scan() -> None:
    public = {name for name in vars(cbframe.BucketScan) if not name.startswith("_")}
    assert public == {
        *("as_of", "conflicts", "explain", "iter_batches", "partitions", "peek", "read", "sample", "source"),
        *("split", "stats", "to_arrow", "to_pandas", "to_parquet", "to_polars", "to_reader"),
    }
    assert hasattr(cbframe.BucketScan, "__arrow_c_stream__")


STREAM = {
    **BUCKET,
    "keys": "text",
    "key_prefix": None,
    "key_pattern": None,
    "vbuckets": None,
    "metadata": ("key", "vbucket", "seqno", "scope", "collection"),
    "start": "beginning",
    "on_rollback": "emit",
    "only_persisted": False,
    "batch_bytes": None,
    "max_latency": 0.25,
    "buffer_bytes": None,
    "transaction_records": "drop",
    "event_log": None,
    "group": None,
    "member": None,
    "members": None,
    "options": None,
}
DOCTOR = {**BUCKET, "proxies": None, "allow_plain": False, "timeout": 30.0}


@pytest.mark.parametrize(
    ("name", "expected"), [("scan_bucket", SCAN), ("stream_bucket", STREAM), ("doctor", DOCTOR)]
)
def test_what_is_called(name: str, expected: dict[str, object]) -> None:
    parameters = inspect.signature(getattr(cbframe, name)).parameters
    found = {
        name: "required" if p.default is inspect.Parameter.empty else p.default
        for name, p in parameters.items()
    }
    assert found == expected
    positional = [n for n, p in parameters.items() if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    assert positional == ["conn", "bucket"]


def test_a_stream() -> None:
    public = {name for name in vars(cbframe.ChangeStream) if not name.startswith("_")}
    assert public == {
        *("ack", "checkpoint", "checkpoint_after", "close", "commit", "epochs", "errors", "pause", "poll"),
        *("release", "resume", "source", "state", "stats", "to_pandas", "to_parquet", "transaction_records"),
        "unpersisted",
    }
    assert hasattr(cbframe.ChangeBatch, "__arrow_c_stream__")


def test_every_argument_has_a_name() -> None:
    """Also those of methods: Tab, ``?`` and type checkers see them."""
    catch_all = [
        f"{cls.__name__}.{name}"
        for cls in map(partial(getattr, cbframe), cbframe.__all__)
        if inspect.isclass(cls) and cls.__module__.startswith("cbframe.snapshot")
        for name, method in vars(cls).items()
        if not name.startswith("_") and inspect.isfunction(method)
        if inspect.Parameter.VAR_KEYWORD in {p.kind for p in inspect.signature(method).parameters.values()}
    ]
    assert catch_all == []


TYPES = {
    'cbframe.read_bucket("couchbase://h/b")': "DataFrame",
    'cbframe.read_bucket("couchbase://h/b", return_type="polars")': "DataFrame",
    'cbframe.read_bucket("couchbase://h/b", return_type="arrow")': "Any",
    'cbframe.read_bucket("couchbase://h/b", split_by="type")["hotel"]': "DataFrame",
    'cbframe.scan_bucket("couchbase://h/b").to_pandas()': "DataFrame",
    'cbframe.scan_polars("couchbase://h/b").collect()': "DataFrame",
    'cbframe.scan_bucket("couchbase://h/b").partitions(2)[0]': "ScanPartition",
    'cbframe.stream_bucket("couchbase://h/b")': "ChangeStream",
    'cbframe.stream_bucket("couchbase://h/b").checkpoint': "Checkpoint",
    'cbframe.read_schema("couchbase://h/b").expired': "int",
    'cbframe.doctor("couchbase://h/b").ok': "bool",
    'cbframe.connect_bucket("http://h", "default", "b", None)': "Bucket",
    'cbframe.write_snapshot("couchbase://h/b", "p", consistency="strict").as_of': "AsOf",
    'cbframe.Snapshot("p").version': "int",
    'cbframe.Snapshot("p").to_pandas(as_of=1)': "DataFrame",
    'to_delta("couchbase://h/b", "p")': "DeltaResult",
    'to_iceberg("couchbase://h/b", "l.t", catalog="c").rolled_back': "dict[int, int]",
}
WRONG = [
    'cbframe.scan_bucket("couchbase://h/b", colums=["a"])',
    'cbframe.read_bucket("couchbase://h/b", colums=["a"])',
    'cbframe.write_snapshot("couchbase://h/b", "p", consistency="eventual")',
    'cbframe.Snapshot("p").to_arrow(as_off=1)',
    'cbframe.scan_bucket("couchbase://h/b").partitions("2")',
    'update_delta("couchbase://h/b", "p", mode="overwrite")',
    'to_delta("couchbase://h/b", "p", colums=["a"])',
    'to_iceberg("couchbase://h/b", "l.t")',
]


def test_what_a_type_checker_sees(tmp_path: Path) -> None:
    heads = [
        *("import cbframe", "from cbframe.contrib.delta import to_delta, update_delta"),
        "from cbframe.contrib.iceberg import to_iceberg",
    ]
    lines = [*heads, *(f"reveal_type({call})" for call in TYPES), *WRONG]
    (program := tmp_path / "program.py").write_text("\n".join(lines))
    settings = ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(ROOT / ".mypy_cache")]
    said, failed, _ = api.run([*settings, "--no-pretty", str(program)])
    assert not failed
    told = [
        re.search(r'program\.py:([0-9]+): (error|note: Revealed type is "(.*)")', line)
        for line in said.splitlines()
    ]
    found = {int(each[1]): re.sub(r"\w+\.", "", each[3] or each[2]) for each in told if each}
    expected = [*TYPES.values(), *["error"] * len(WRONG)]
    assert [found.get(len(heads) + 1 + number) for number in range(len(expected))] == expected
