"""Neither passwords nor anything of documents in logs, reprs, messages or tracebacks."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from scan import kit

import cbframe
from cbframe import BucketDataSource, BucketDataSourceOptions, CbframeError, LocalCluster, ReceiverError
from cbframe.arrow.columns import raw_schema, record_batch
from cbframe.cluster.connection_string import parse_connection_string
from cbframe.dcp.handshake import Login
from cbframe.dcp.receiver import Document
from cbframe.testing import FaultProxy, RecordingReceiver
from cbframe.wire.blocks import DataBlock
from cbframe.wire.constants import Opcode
from cbframe.wire.framing import Frame, request
from tests.wire.pipeline import block_of

PASSWORD = "hunter2-pass"
KEY = "customer-7781"
VALUE = "diagnosis-42"
PRIVATE = (PASSWORD, KEY, VALUE, PASSWORD.encode().hex(), KEY.encode().hex(), VALUE.encode().hex())
QUICK = replace(kit.QUICK, recovery_timeout=2)


def clean(*texts: object) -> None:
    joined = "\n".join(map(str, texts))
    assert not [word for word in PRIVATE if word in joined], joined


def told(error: BaseException) -> str:
    """All that a program may print of an error of ours; what others raised is theirs."""
    hint = getattr(error, "hint", None)
    lines = traceback.format_exception(type(error), error, error.__traceback__, chain=False)
    return "\n".join([str(error), repr(error), repr(error.args), str(hint), *lines])


@pytest.fixture
def cluster(caplog: pytest.LogCaptureFixture) -> Iterator[LocalCluster]:
    caplog.set_level(logging.DEBUG)
    with LocalCluster(nodes=2, vbuckets=4, seed=1, password=PASSWORD) as running:
        for n in range(50):
            running.upsert(f"{KEY}-{n}", {"text": VALUE}, xattrs={"_sync": {"note": VALUE}})
        yield running
    clean(caplog.text)


def test_a_read(cluster: LocalCluster) -> None:
    scan = cbframe.scan_bucket(cluster, metadata="xattrs", options=QUICK)
    table = scan.to_arrow()
    assert VALUE in str(table.to_pylist()), "or else nothing private was there"
    clean(repr(scan), scan.as_of, repr(scan.stats), scan.conflicts, repr(cluster), repr(scan.last))


def test_a_read_that_is_cut_again_and_again(cluster: LocalCluster) -> None:
    with FaultProxy(cluster) as proxy:
        for after in range(500, 6000, 500):
            proxy.cut(after_bytes=after)
        clean(repr(proxy))
        scan = cbframe.scan_bucket(cluster, options=QUICK)
        assert len(scan.to_arrow()) == 50


@pytest.mark.parametrize("scheme", ["couchbase", "http"])
def test_a_wrong_password(cluster: LocalCluster, scheme: str) -> None:
    conn = cluster.connection_string if scheme == "couchbase" else cluster.rest_urls
    with pytest.raises(CbframeError) as caught:
        cbframe.read_bucket(conn, "default", auth=("Administrator", PASSWORD + "!"), options=QUICK)
    clean(told(caught.value))


def test_a_password_in_a_url(cluster: LocalCluster) -> None:
    url = cluster.rest_urls[0].replace("://", f"://Administrator:{PASSWORD}@")
    clean(repr(parse_connection_string(url)), str(parse_connection_string(url)))
    scan = cbframe.scan_bucket(url, "default", options=QUICK)
    clean(repr(scan))
    assert len(scan.to_arrow()) == 50
    for wrong in (url.replace("http", "couchbase"), url + "/a/b,c", url.replace(PASSWORD, f"{PASSWORD}/x")):
        with pytest.raises(CbframeError) as caught:
            cbframe.scan_bucket(wrong, "default", options=QUICK).to_arrow()
        clean(told(caught.value))


class Careless(RecordingReceiver):
    """Says in its exceptions whatever it has."""

    def data_update(self, vbucket: int, key: bytes, seqno: int, document: Document) -> None:
        clean(repr(document), str(document))
        raise KeyError(f"{vbucket} {key!r} {seqno} {document.value!r}")


def test_a_receiver_that_raises(cluster: LocalCluster) -> None:
    receiver = Careless()
    place, auth = cluster.connection_string, (cluster.username, cluster.password)
    options = replace(QUICK, seq_end="now", connect_timeout=1, recovery_timeout=0.5)
    source = BucketDataSource(place, "default", cluster.bucket, "", None, auth, receiver, options)
    with source, pytest.raises(CbframeError) as caught:
        source.wait(20)
    clean(told(caught.value), repr(source), source.trace(), source.vbucket_states(), source.stats())
    clean(*map(told, receiver.errors))
    (error, *_) = [error for error in receiver.errors if isinstance(error, ReceiverError)]
    # Whoever wants to know finds it: the receiver's own exception is the cause.
    assert isinstance(error.__cause__, KeyError)
    assert KEY in str(error.__cause__)


# --- values by themselves


def mutation(**fields: object) -> Frame:
    parts = {"extras": bytes(31), "key": b"\0" + KEY.encode(), "value": VALUE.encode(), **fields}
    return request(Opcode.DCP_MUTATION, vbucket=5, **parts)  # type: ignore[arg-type]


def block(frame: Frame) -> DataBlock:
    return block_of(frame.encode(), collections=True)


BROKEN: dict[str, dict[str, object]] = {
    "extras": {"extras": bytes(5)},
    "collection id": {"key": b"\x80"},
    "snappy": {"datatype": 2},
    "xattrs": {"datatype": 4},
    "an attribute": {"datatype": 4, "value": b"\0\0\0\x17\0\0\0\x13name\0\xff" + VALUE.encode() + b"\0"},
    "both": {"datatype": 6},
}


@pytest.mark.parametrize("what", BROKEN)
def test_errors_of_decoding(what: str) -> None:
    frame = mutation(**BROKEN[what])
    clean(repr(frame), str(frame))
    with pytest.raises(CbframeError) as caught:
        record_batch(block(frame), raw_schema(("_cb_xattrs",)))
    clean(told(caught.value))


@pytest.mark.parametrize(
    "make",
    [
        lambda: cbframe.PasswordAuthenticator("user", PASSWORD),
        lambda: Login("user", PASSWORD, "bucket", False, True, lambda: "n"),
        lambda: block(mutation()),
        lambda: Document(0x57, 1, 1, 1, 0, 0, 0, VALUE.encode()),
        lambda: LocalCluster(password=PASSWORD),
        BucketDataSourceOptions,
    ],
)
def test_reprs(make: Callable[[], object]) -> None:
    made = make()
    clean(repr(made), str(made), f"{made}", [made], {"made": made})
