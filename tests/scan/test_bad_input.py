"""Whatever is at the other end: one clear error in time, no thread, no socket, no password shown."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import struct
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from servers import (
    PASSWORD,
    USER,
    Answer,
    Garbage,
    Memcached,
    Reply,
    TcpServer,
    answer_to,
    free_port,
    manager,
)

from cbframe import BucketDataSourceOptions, LocalCluster, read_bucket, scan_bucket
from cbframe.dcp.source import Supervisor
from cbframe.errors import (
    AccessError,
    AuthFailError,
    CbframeError,
    ClusterMapError,
    ConfigurationError,
    ConnectError,
    ProtocolError,
    ReadTimeoutError,
    StreamError,
)
from cbframe.scan.session import Run
from cbframe.scan.spec import ScanSpec
from cbframe.wire.constants import Opcode, Status
from cbframe.wire.framing import Frame, request
from cbframe.wire.messages import SnapshotMarker, StreamEnd

from .kit import PROMPT, QUICK, fill, interrupted

TIMEOUT = 1.0
BOUND = 6.0
"""Generous: the machine may be busy. A hang would take longer."""
SHORT = replace(QUICK, connect_timeout=0.3)


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Ctrl-C raises, also in a run that was started in the background, where it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def failure(target: Any, *, place: str = "", bound: float = BOUND, **arguments: Any) -> CbframeError:
    """The error of a read; in time, with its place, without the password, and nothing left behind."""
    threads = set(threading.enumerate())
    arguments.setdefault("auth", (USER, PASSWORD))
    arguments.setdefault("timeout", TIMEOUT)
    arguments.setdefault("options", SHORT)
    began = time.monotonic()
    with pytest.raises(CbframeError) as caught:
        read_bucket(target, **arguments)
    assert time.monotonic() - began < bound
    error = caught.value
    told = "".join(traceback.format_exception(error)) + repr(error) + str(error)
    cause: BaseException | None = error
    while cause is not None:
        told += repr(cause) + repr(vars(cause))
        cause = cause.__cause__ or cause.__context__
    assert PASSWORD not in told
    if place:
        assert place in told
        assert place in str(error)
    ours = [thread for thread in threading.enumerate() if thread.name.startswith("cbframe-")]
    assert set(ours) <= threads
    return error


# ---------------------------------------------------------------------- who and where


@pytest.mark.parametrize("over", ["kv", "rest"])
def test_wrong_password(cluster: LocalCluster, over: str) -> None:
    target: Any = cluster
    place = cluster.kv_addresses[0]
    if over == "rest":
        target, place = cluster.rest_urls, cluster.rest_urls[0].removeprefix("http://")
    error = failure(target, bucket="default", place=place)
    assert isinstance(error, AuthFailError)
    if over == "kv":
        assert "Administrator" in str(error)
        assert error.hint


def test_password_in_a_url_is_not_shown(cluster: LocalCluster) -> None:
    url = cluster.rest_urls[0].replace("http://", f"http://{USER}:{PASSWORD}@")
    assert isinstance(failure(url, bucket="default", auth=None), AuthFailError)
    assert PASSWORD not in repr(scan_bucket(url, "default"))


@pytest.mark.parametrize("scheme", ["couchbase", "http"])
@pytest.mark.parametrize("seeds", [1, 2])
def test_nobody_listens(scheme: str, seeds: int) -> None:
    addresses = [f"127.0.0.1:{free_port()}" for _ in range(seeds)]
    target = [f"{scheme}://{address}" for address in addresses]
    error = failure(target, bucket="default", place=addresses[-1])
    assert isinstance(error, ConnectError)
    assert all(address in str(error) for address in addresses)
    assert error.hint


def test_no_such_host(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    error = failure("couchbase://no-such-host.invalid/default", place="no-such-host.invalid")
    assert isinstance(error, ConnectError)
    assert "DNS" in str(error.hint)


@pytest.mark.parametrize(
    ("scheme", "timeout"), [("couchbase", TIMEOUT), ("http", TIMEOUT), ("couchbase", None)]
)
def test_a_silent_port(scheme: str, timeout: float | None) -> None:
    """Without a timeout of the read, the connection's own is enough."""
    with TcpServer() as server:
        seed = f"{scheme}://{server.address}"
        error = failure(seed, bucket="default", place=server.address, timeout=timeout)
        assert isinstance(error, ConnectError | ReadTimeoutError)
        assert error.hint


def test_http_at_the_port_of_the_data_service() -> None:
    with manager(Reply(200, b"{}")) as server:
        error = failure(f"couchbase://{server.address}/default", place=server.address)
        # It waits for the end of a line that never comes, or answers with an error page.
        assert isinstance(error, ProtocolError | ConnectError | ReadTimeoutError)
        assert "data service" in str(error.hint)


def test_memcached_at_the_port_of_the_manager(cluster: LocalCluster) -> None:
    error = failure(f"http://{cluster.kv_addresses[0]}", bucket="default", place=cluster.kv_addresses[0])
    assert isinstance(error, ConnectError)


@pytest.mark.parametrize(
    "data",
    [
        b"\x00",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"220 mail.example ESMTP\r\n",
        b"\xff" * 1000,
        b"\x81" * 1000,
        random.Random(1).randbytes(64).translate(None, delete=b"\x80\x81\x18"),
        struct.pack(">BBHBBHIIQ", 0x81, 0x1F, 0, 0, 0, 0, 0xFFFF_FFFF, 1, 0),
        struct.pack(">BBHBBHIIQ", 0x81, 0x1F, 0xFFFF, 0xFF, 0, 0, 10, 1, 0),
        struct.pack(">BBHBBHIIQ", 0x81, 0x20, 0, 0, 0, 0, 0, 99, 0),
        request(Opcode.DCP_MUTATION, extras=bytes(31), key=b"\0k").encode(),
    ],
)
def test_garbage(data: bytes) -> None:
    with Garbage(data) as server:
        error = failure(server.url, place=server.address)
        assert isinstance(error, ProtocolError | ConnectError | ReadTimeoutError)


# ---------------------------------------------------------------------- the bootstrap


def complete(frame: Frame) -> bytes:
    """A whole stream of one document."""
    log = answer_to(frame, struct.pack(">QQ", 77, 0))
    marker = SnapshotMarker(0, 0, 1, 2).frame(frame.opaque).encode()
    extras = struct.pack(">QQIIIHB", 1, 1, 0, 0, 0, 0, 0)
    data = request(
        Opcode.DCP_MUTATION, opaque=frame.opaque, datatype=1, extras=extras, key=b"\0k", value=b'{"a":1}'
    )
    return log + marker + data.encode() + StreamEnd(0, 0).frame(frame.opaque).encode()


def test_the_scripted_node_can_be_read() -> None:
    with Memcached({Opcode.DCP_STREAM_REQ: complete}) as server:
        frame = read_bucket(server.url, auth=(USER, PASSWORD), timeout=20)
        assert frame.loc["k", "a"] == 1


def test_closed_at_every_stage() -> None:
    """Every connection is closed in place of its n-th answer, for each n that the longest one has."""
    with Memcached({Opcode.DCP_STREAM_REQ: complete}) as server:
        read_bucket(server.url, auth=(USER, PASSWORD), timeout=20)
    # The first connection asks for the map; the second one for the stream.
    last = server.requests.index(Opcode.DCP_STREAM_REQ) - server.requests.index(Opcode.GET_CLUSTER_CONFIG)
    assert 10 < last < 28
    for number in range(1, 30):
        with Memcached({Opcode.DCP_STREAM_REQ: complete}, close_after=number) as server:
            if number > last:
                assert read_bucket(server.url, auth=(USER, PASSWORD), timeout=20).loc["k", "a"] == 1
                continue
            error = failure(server.url, place=server.address, timeout=0.15)
            assert isinstance(error, ConnectError | ReadTimeoutError), number


STAGES = [
    *(Opcode.HELLO, Opcode.SASL_LIST_MECHS, Opcode.SASL_AUTH, Opcode.SASL_STEP, Opcode.SELECT_BUCKET),
    *(Opcode.GET_CLUSTER_CONFIG, Opcode.DCP_OPEN, Opcode.DCP_CONTROL),
    *(Opcode.GET_ALL_VB_SEQNOS, Opcode.DCP_STREAM_REQ),
]


@pytest.mark.parametrize("opcode", STAGES, ids=lambda opcode: opcode.name)
@pytest.mark.parametrize("how", ["closes", "refuses", "silent", "half", "wrong opaque", "wrong opcode"])
def test_every_stage_goes_wrong(opcode: Opcode, how: str) -> None:
    answers: dict[str, Answer] = {
        "closes": lambda frame: None,
        "refuses": lambda frame: answer_to(frame, status=Status.EINTERNAL),
        "silent": lambda frame: b"",
        "half": lambda frame: answer_to(frame, b"x" * 100)[:50],
        "wrong opaque": lambda frame: Frame(0x81, frame.opcode, opaque=frame.opaque + 7).encode(),
        "wrong opcode": lambda frame: Frame(0x81, 0x0A, opaque=frame.opaque).encode(),
    }
    with Memcached({opcode: answers[how]}) as server:
        # A busy machine may not come to the stage in time.
        for seconds in (0.3, 3, 30):
            error = failure(server.url, place=server.address, timeout=seconds, bound=seconds + BOUND)
            assert isinstance(error, CbframeError)
            if opcode in server.requests:
                break
        assert opcode in server.requests


WRONG: dict[Opcode, list[bytes]] = {
    Opcode.GET_ALL_VB_SEQNOS: [b"\0" * 7],
    Opcode.DCP_STREAM_REQ: [b"\0" * 15, b""],
    Opcode.GET_CLUSTER_CONFIG: [
        *(b"", b"{", b"[]", b"{}", b"\xff\xfe"),
        b'{"vBucketServerMap":{"serverList":[],"vBucketMap":[]}}',
    ],
    Opcode.SASL_LIST_MECHS: [b"", b"PLAIN", b"GSSAPI X"],
    Opcode.SASL_AUTH: [b"not SCRAM"],
    Opcode.SASL_STEP: [b"v=AAAA"],
    Opcode.HELLO: [b"\0"],
}


@pytest.mark.parametrize(
    ("opcode", "value"), [(each, value) for each, values in WRONG.items() for value in values]
)
def test_answers_of_the_wrong_length_or_kind(opcode: Opcode, value: bytes) -> None:
    status = Status.AUTH_CONTINUE if opcode == Opcode.SASL_AUTH else Status.SUCCESS
    with Memcached({opcode: lambda frame: answer_to(frame, value, status=status)}) as server:
        failure(server.url, place=server.address, timeout=1)


def control(opcode: int, extras: bytes, value: bytes = b"") -> Callable[[Frame], bytes]:
    """A granted stream request, and then one message."""

    def answer(frame: Frame) -> bytes:
        log = answer_to(frame, struct.pack(">QQ", 77, 0))
        return log + request(opcode, opaque=frame.opaque, extras=extras, value=value).encode()

    return answer


@pytest.mark.parametrize(
    "answer",
    [
        control(Opcode.DCP_SNAPSHOT_MARKER, b"\0" * 19),
        control(Opcode.DCP_SNAPSHOT_MARKER, b""),
        control(Opcode.DCP_SNAPSHOT_MARKER, b"\0", b"\0" * 35),
        control(Opcode.DCP_SNAPSHOT_MARKER, b"\x09", b"\0" * 36),
        control(Opcode.DCP_SNAPSHOT_MARKER, struct.pack(">QQI", 9, 3, 1)),
        control(Opcode.DCP_STREAM_END, b""),
        control(Opcode.DCP_STREAM_END, b"\0" * 3),
        control(Opcode.DCP_SEQNO_ADVANCED, b"\0" * 7),
        control(Opcode.DCP_OSO_SNAPSHOT, b""),
        control(Opcode.DCP_SYSTEM_EVENT, b"\0" * 12),
        control(Opcode.DCP_SYSTEM_EVENT, b"\0" * 13, b"\0" * 15),
        control(Opcode.DCP_MUTATION, b"\0" * 30),
        control(Opcode.DCP_MUTATION, struct.pack(">QQIIIHB", 1, 1, 0, 0, 0, 0, 0)),
        control(Opcode.DCP_DELETION, b"\0" * 17),
        control(Opcode.DCP_EXPIRATION, b"\0" * 21),
        lambda frame: answer_to(frame, b"\0" * 7, status=Status.ROLLBACK),
    ],
)
def test_truncated_messages(answer: Answer) -> None:
    with Memcached({Opcode.DCP_STREAM_REQ: answer}) as server:
        error = failure(server.url, place=server.address, timeout=20, bound=20)
        assert isinstance(error, ProtocolError)


@pytest.mark.parametrize("status", [Status.EINVAL, Status.EACCESS, Status.UNKNOWN_COLLECTION])
def test_a_stream_that_is_refused_for_good(status: Status) -> None:
    with Memcached({Opcode.DCP_STREAM_REQ: lambda frame: answer_to(frame, status=status)}) as server:
        error = failure(server.url, place=server.address)
        assert isinstance(error, StreamError | AccessError)


@pytest.mark.parametrize("status", [Status.NOT_MY_VBUCKET, Status.ETMPFAIL, Status.ROLLBACK])
def test_a_stream_that_is_refused_again_and_again(status: Status) -> None:
    value = bytes(8) if status == Status.ROLLBACK else b""
    answers = {Opcode.DCP_STREAM_REQ: lambda frame: answer_to(frame, value, status=status)}
    with Memcached(answers) as server:
        assert isinstance(failure(server.url, timeout=0.5), ReadTimeoutError | StreamError)


def test_a_map_without_an_owner() -> None:
    server = Memcached()
    config = server.config()
    config["vBucketServerMap"]["vBucketMap"] = [[0], [-1]]
    server._answers[Opcode.GET_CLUSTER_CONFIG] = lambda frame: answer_to(frame, json.dumps(config).encode())
    with server:
        error = failure(server.url, timeout=3)
        assert isinstance(error, ClusterMapError)
        assert "no owner for 1 of 2 vbuckets" in str(error)
        assert error.hint


# ---------------------------------------------------------------------- REST


@pytest.mark.parametrize(
    ("status", "body", "kind", "expected"),
    [
        (401, b"", "text/plain", AuthFailError),
        (403, b'{"permissions":[]}', "application/json", AccessError),
        (404, b"Not found.", "text/plain", ConnectError),
        (500, b"[]", "application/json", ConnectError),
        (503, b"busy", "text/plain", ConnectError),
        (302, b"", "text/plain", ConnectError),
        (200, b"<!doctype html><h1>Welcome</h1>", "text/html", ConnectError),
        (200, b"", "application/json", ConnectError),
        (200, b"[1]", "application/json", ConnectError),
        (200, b'"text"', "application/json", ConnectError),
        (200, b"\xff\xfe", "application/json", ConnectError),
        (200, b"{}", "application/json", CbframeError),
        (200, b"[" * 100_000, "application/json", CbframeError),
    ],
)
@pytest.mark.parametrize("collections", [None, "a.b"])
def test_rest(
    status: int, body: bytes, kind: str, expected: type[CbframeError], collections: str | None
) -> None:
    with manager(Reply(status, body, kind)) as server:
        error = failure(
            f"http://{server.address}", bucket="default", place=server.address, collections=collections
        )
        assert isinstance(error, expected)


# ---------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("target", "arguments", "words"),
    [
        ("", {}, "empty"),
        ([], {}, "empty"),
        ("ftp://h/b", {}, "scheme"),
        ("couchbase://h", {}, "no bucket"),
        ("couchbase://h:8091/b", {}, "port 8091"),
        ("http://h:11210/b", {}, "port 11210"),
        ("couchbase://u:geheim-7f3a@h/b", {}, "no user name"),
        ("couchbase://h:99999/b", {}, ""),
        ("couchbase2://h/b", {}, "gateway"),
        (["couchbase://h/b", "http://h"], {}, "mix"),
        ("couchbase://h/b", {"auth": None}, "no user name and password"),
        ("couchbase://h/b", {"auth": "geheim-7f3a"}, "auth"),
        ("couchbase://h/b", {"auth": ("u", None)}, "NoneType"),
        ("couchbase://h/b", {"auth": ("", "p")}, "user name"),
        (None, {}, "NoneType"),
        ("couchbase://h/b", {"columns": ["a.b", ("a.b",)]}, "two fields"),
        ("couchbase://h/b", {"columns": ["a.b"], "nested": "json"}, "keeps 'a' as text"),
        ("couchbase://h/b", {"schema": pa.schema([("a", "int8"), ("a", "string")])}, "two columns 'a'"),
        ("couchbase://h/b", {"key_pattern": re.compile("(?=a)")}, "key_pattern= is no pattern"),
        ("couchbase://h/b", {"columns": ["a"], "parse": False}, "columns= needs the documents"),
        ("couchbase://h/b", {"metadata": "colour"}, "colour"),
        ("couchbases://h/b", {"tls": "/no/such/file"}, "certificate"),
    ],
)
def test_arguments_that_cannot_be_meant(target: Any, arguments: dict[str, Any], words: str) -> None:
    error = failure(target, bound=1, **arguments)
    assert isinstance(error, ConfigurationError)
    assert words in str(error)
    assert error.hint or not words


def test_unknown_field(cluster: LocalCluster) -> None:
    cluster.upsert("k", {"name": "x", "age": 1})
    error = failure(cluster, auth=("Administrator", "password"), columns=["name", "nmae"])
    assert isinstance(error, ConfigurationError)
    assert "'nmae'" in str(error)
    assert "read_schema()" in str(error.hint)


def test_a_missing_password_is_told_before_anything_is_connected() -> None:
    with TcpServer() as server:
        failure(server.url, auth=None, bound=1)
        assert server.accepted == 0


@pytest.mark.parametrize("node", ["h:1", None])
def test_a_read_that_was_all_but_over_names_who_had_a_problem(node: str | None) -> None:
    counts = SimpleNamespace(total=SimpleNamespace(documents=1), vbuckets_done=1, vbuckets=1)
    found = SimpleNamespace(vbuckets=1, node_of=lambda _: "h:1")
    source: Any = SimpleNamespace(stats=lambda: counts, map=found, as_of={0: (1, 1)})
    receiver: Any = SimpleNamespace(last_error=node and ConnectError("cut", node=node))
    error = Run(ScanSpec.of("couchbase://h/b", timeout=1))._too_slow(source, receiver)
    assert error.node == node


# ---------------------------------------------------------------------- Ctrl-C


class Interruption(threading.Thread):
    """Sends this process a SIGINT when it is due."""

    def __init__(self) -> None:
        super().__init__()
        self.due = threading.Event()
        self.sent = 0.0
        self.start()

    def run(self) -> None:
        self.due.wait(20)
        self.sent = time.monotonic()
        os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_in_the_middle(cluster: LocalCluster) -> None:
    fill(cluster, 3000)
    node = cluster._engine.nodes[0]

    interruption = Interruption()

    def stall() -> None:
        node.loop.set_stalled(True)
        interruption.due.set()

    scan = scan_bucket(cluster, buffer_bytes=100, progress=lambda _: node.loop.call(stall), options=QUICK)
    with pytest.raises(KeyboardInterrupt):
        scan.to_arrow()
    assert time.monotonic() - interruption.sent < PROMPT
    interruption.join()
    assert not [t for t in threading.enumerate() if t.name.startswith(("cbframe-node", "cbframe-cluster"))]


def test_ctrl_c_raised_in_a_callback(cluster: LocalCluster) -> None:
    fill(cluster, 3000)
    with pytest.raises(KeyboardInterrupt):
        read_bucket(cluster, buffer_bytes=100, progress=lambda _: signal.raise_signal(signal.SIGINT))


@pytest.mark.parametrize("scheme", ["couchbase", "http"])
def test_ctrl_c_at_a_silent_port(scheme: str) -> None:
    interruption = Interruption()

    class Silent(TcpServer):
        def serve(self, sock: socket.socket) -> None:
            interruption.due.set()
            super().serve(sock)

    with Silent() as server:
        options = BucketDataSourceOptions(connect_timeout=2 * PROMPT)
        with pytest.raises(KeyboardInterrupt):
            read_bucket(f"{scheme}://{server.address}", "default", auth=(USER, PASSWORD), options=options)
        assert time.monotonic() - interruption.sent < PROMPT
        interruption.join()


@pytest.mark.parametrize("scheme", ["couchbase", "http"])
@pytest.mark.parametrize("started", [False, True])
def test_ctrl_c_before_or_while_the_threads_start(
    cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch, scheme: str, started: bool
) -> None:
    """What is open then has nobody yet who would close it."""
    start = Supervisor.start

    def interrupted(self: Supervisor) -> None:
        if started:
            start(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(Supervisor, "start", interrupted)
    conn = cluster.rest_urls if scheme == "http" else cluster.connection_string
    with pytest.raises(KeyboardInterrupt):
        read_bucket(conn, "default", auth=(cluster.username, cluster.password))
    assert "cbframe-cluster" not in [thread.name for thread in threading.enumerate()]


def test_ctrl_c_in_a_process_of_its_own() -> None:
    ended, _, errors = interrupted(
        """
        import cbframe
        with cbframe.LocalCluster(vbuckets=64) as cluster:
            cluster.bulk_load((b"k%d" % n, b'{"a":1}') for n in range(1000))
            cbframe.read_bucket(cluster)  # imports what it needs: that is not what is interrupted
            with cluster.stall():
                # While it waits: Python itself loses an interrupt that meets it while it tidies up.
                cbframe.read_bucket(cluster, progress=lambda _: print("begun", flush=True))
        """
    )
    assert ended == -signal.SIGINT
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert "Exception in thread" not in errors
    assert "Error" not in errors.replace("KeyboardInterrupt", "")
    assert errors.count("Traceback") == 1
