"""What users see of an error: ours alone, and short."""

from __future__ import annotations

import dataclasses
import enum
import importlib
import inspect
import pickle
import socket
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from doors import Door, each_door, read, stream

import cbframe
from cbframe import BucketDataSourceOptions, CbframeError, ConnectError, ReadTimeoutError, ResourceError
from cbframe.errors import RollbackError, SnapshotError
from cbframe.public import public

AUTH = ("Administrator", "password")
OPTIONS = BucketDataSourceOptions(connect_timeout=0.3)
LINES = 30


@pytest.fixture
def refused() -> Iterator[int]:
    """A port where nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


@pytest.fixture
def plain() -> Iterator[str]:
    """A port that speaks no TLS."""
    with cbframe.LocalCluster(vbuckets=1) as cluster:
        yield cluster.kv_addresses[0]


def shown_of(door: Door, seed: str, folder: Path, **arguments: Any) -> tuple[CbframeError, str]:
    """The error of a read, and what a terminal shows of it."""
    with pytest.raises(CbframeError) as caught:
        door(seed, folder, **{"bucket": "b", "auth": AUTH, "options": OPTIONS, **arguments})
    return caught.value, "".join(traceback.format_exception(caught.value))


def check(shown: str) -> None:
    assert "urllib3" not in shown
    assert "requests" not in shown
    assert "OSError" not in shown
    assert len(shown.splitlines()) <= LINES, shown


@each_door()
@pytest.mark.parametrize("scheme", ["couchbase", "http", "https"])
def test_a_port_that_refuses(door: Door, scheme: str, refused: int, tmp_path: Path) -> None:
    error, shown = shown_of(door, f"{scheme}://127.0.0.1:{refused}", tmp_path)
    assert isinstance(error, ConnectError)
    assert "Connection refused" in error.message
    assert error.hint
    check(shown)


@pytest.mark.parametrize("scheme", ["couchbase", "http"])
def test_a_wrong_name(scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = "no-such-host.invalid"
    real = socket.getaddrinfo

    def getaddrinfo(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == host:
            raise socket.gaierror(-2, "Name or service not known")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    error, shown = shown_of(read, f"{scheme}://{host}", tmp_path)
    assert isinstance(error, ConnectError)
    assert error.hint
    check(shown)


@each_door(read, stream)
@pytest.mark.parametrize("scheme", ["couchbases", "https"])
def test_no_tls_there(door: Door, scheme: str, plain: str, tmp_path: Path) -> None:
    error, shown = shown_of(door, f"{scheme}://{plain}", tmp_path)
    assert isinstance(error, ConnectError)
    assert "TLS" in str(error)
    check(shown)


@pytest.mark.parametrize("scheme", ["couchbase", "http"])
def test_a_timeout_says_first_what_was_in_the_way(scheme: str, refused: int, tmp_path: Path) -> None:
    error, shown = shown_of(read, f"{scheme}://127.0.0.1:{refused}", tmp_path, options=None, timeout=0.3)
    assert isinstance(error, ReadTimeoutError)
    said = error.message
    assert 0 <= said.find("Connection refused") < said.find("given up after 0.3 s")
    assert error.hint is not None
    assert "timeout=" not in error.hint
    check(shown)


def test_a_notebook_shows_it_shortly(refused: int) -> None:
    ultratb = pytest.importorskip("IPython.core.ultratb", reason="needs the extra notebook")
    error, _ = shown_of(read, f"http://127.0.0.1:{refused}", Path())
    # The first frame is that of the cell.
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_name != "read":
        trace = trace.tb_next
    form = ultratb.FormattedTB(mode="Context", theme_name="nocolor")
    shown = form.stb2text(form.structured_traceback(type(error), error, trace))
    assert "Connection refused" in shown
    assert "urllib3" not in shown
    assert len(shown.splitlines()) <= LINES, shown


def of(name: str, members: str) -> set[str]:
    return {f"{name}.{member}" for member in members.split()}


SILENT = {
    "cbframe": {
        *("diff_schema", "exponential_backoff_loop", "parse_failover_log", "show_stats"),
        "doctor",  # never raises
        *of("BucketDataSource", "as_of bounded bucket close connection_of finished high_seqnos kick map"),
        *of("BucketDataSource", "node_time problems progress sample_seqnos seqno_reports state stats trace"),
        *of("BucketDataSource", "vbucket_states vbucket_table wanted windows"),
        *of("BucketScan", "as_of conflicts stats source"),
        *of("ScanPartition", "refuse_secrets bucket schema vbuckets changes"),
        *of("ChangeStream", "ack release pause resume state source epochs stats errors checkpoint"),
        *of("ChangeStream", "checkpoint_after transaction_records unpersisted"),
    },
    "cbframe.contrib.delta": set(),
    "cbframe.contrib.iceberg": set(),
    "cbframe.contrib.dask": {"as_of"},
    "cbframe.contrib.polars": set(),
    "cbframe.contrib.spark": {"register", "CouchbaseDataSource.name"},
    "cbframe.contrib.spark.reader": {
        "CouchbaseReader.read",
        "FilteringReader.pushFilters",
        "CouchbaseStreamReader.getDefaultReadLimit",
        "CouchbaseStreamReader.read",
    },
}
"""What asks no cluster and no store of files, or only makes an iterator that does."""
ASKING = {"BucketDataSource", "BucketScan", "ScanPartition", "ChangeStream", "Snapshot"}
OTHERS = {
    *("LocalCluster", "ScanPlan", "StatsView", "ChangeBatch", "Checkpoint", "Document", "DeferringReceiver"),
    *("BucketDataSourceStats", "StatsRates", "Receipt"),
    *("CertificateAuthenticator", "EnvironmentAuth", "PasswordAuthenticator"),
}
"""Classes with methods that ask nobody, besides errors, enumerations, protocols and data."""


def members_of(module: str) -> Iterator[tuple[str, Any]]:
    """Public functions of a module, and those of its classes that ask a cluster or a store of files."""
    found = importlib.import_module(module)
    for name in getattr(found, "__all__", None) or vars(found):
        value = getattr(found, name)
        if name.startswith("_") or not getattr(value, "__module__", "").startswith("cbframe"):
            continue
        if module.startswith("cbframe.") and not value.__module__.startswith(module):
            continue
        if inspect.isfunction(value):
            yield name, value
        elif inspect.isclass(value) and (name in ASKING or "contrib" in module):
            for attribute, member in vars(value).items():
                function = getattr(member, "fget", getattr(member, "__func__", member))
                if inspect.isfunction(function) and not attribute.startswith("_"):
                    yield f"{name}.{attribute}", function
        elif inspect.isclass(value) and name not in OTHERS:
            silent = issubclass(value, BaseException | enum.Enum) or getattr(value, "_is_protocol", False)
            assert silent or dataclasses.is_dataclass(value) or issubclass(value, tuple | Mapping), name


@pytest.mark.parametrize("module", SILENT)
def test_no_function_that_asks_a_cluster_is_left_out(module: str) -> None:
    if "spark" in module:
        pytest.importorskip("pyspark", reason="needs the extra spark")
    bare = {
        name
        for name, function in members_of(module)
        if function.__code__.co_qualname != "public.<locals>.call"
    }
    assert bare == SILENT[module]


def test_the_last_line_names_a_section_of_the_documentation() -> None:
    @public
    def stream() -> None:
        raise RollbackError("rolled back", hint="read again", vbucket=3)

    with pytest.raises(RollbackError) as caught:
        stream()
    shown = traceback.format_exception(caught.value)
    assert "".join(shown[-2:]) == (
        "cbframe.errors.RollbackError: rolled back [vbucket 3]\n  hint: read again\n"
        "  see: cbframe/docs/troubleshooting.md#rollback-error\n"
    )
    assert "see:" not in str(caught.value)
    assert "see:" not in repr(caught.value)


def test_it_is_named_once() -> None:
    """Of an error that passes several public functions, of another process, and of one that has a cause."""

    @public
    def again(error: CbframeError) -> None:
        raise error

    @public
    def update(cause: CbframeError) -> None:
        try:
            again(cause)
        except RollbackError as exc:
            exc.add_note("of a worker")
            raise SnapshotError("no update") from exc

    cause = RollbackError("rolled back")
    for _ in range(2):
        with pytest.raises(RollbackError):
            again(cause)
    with pytest.raises(SnapshotError) as caught:
        update(pickle.loads(pickle.dumps(cause)))
    shown = "".join(traceback.format_exception(caught.value))
    assert shown.count("see:") == 1
    assert shown.endswith("troubleshooting.md#snapshot-error\n")
    assert shown.count("of a worker") == 1


def test_limits_of_the_system_are_ours() -> None:
    @public
    def function() -> None:
        raise MemoryError

    with pytest.raises(ResourceError, match=r"out of memory(.|\n)*#resource-error$"):
        function()


def test_other_exceptions_pass() -> None:
    @public
    def function(number: int) -> float:
        """Divide."""
        return 1 / number

    assert function(2) == 0.5
    assert function.__doc__ == "Divide."
    with pytest.raises(ZeroDivisionError):
        function(0)
