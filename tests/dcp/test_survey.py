"""What a look asks of a node: many questions at a time, and one with many answers."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest
from wire.golden import load

from cbframe import BucketDataSourceOptions, LocalCluster
from cbframe.dcp import survey as survey_module
from cbframe.dcp.handshake import Steps, open_dcp
from cbframe.dcp.positions import VBucketOffset
from cbframe.dcp.survey import UNKNOWN, BucketState, Size, survey, survey_bucket, survey_sizes
from cbframe.dcp.transport import Stream, Waker
from cbframe.errors import (
    ROLES_HINT,
    AccessError,
    CbframeError,
    ClusterMapError,
    ConfigurationError,
    ConnectError,
    ProtocolError,
    ReadTimeoutError,
)
from cbframe.testing import FakeClock, Peer, ScriptedTransport
from cbframe.wire.constants import Opcode, Status
from cbframe.wire.framing import Frame, response
from cbframe.wire.messages import GetAllVBucketSeqnos, encode_failover_log, encode_vbucket_seqnos

from . import server
from .server import LOGIN, SETTINGS, good_answer, refusal, replaced

NODE = "a:11210"
ALL = range(1024)
DETAILS = b"vbucket-details"
OPTIONS = BucketDataSourceOptions()


def lines(asked: Frame, told: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Answers to STAT, with the one that ends them."""
    return b"".join(
        response(Opcode.STAT, opaque=asked.opaque, key=key, value=value).encode()
        for key, value in [*told, (b"", b"")]
    )


def node_of(count: int = len(ALL), stat: Callable[[Frame], bytes] | None = None) -> Peer:
    """A node with so many vbuckets: number n has history 100 + n and seqno n."""

    def history(asked: Frame) -> bytes:
        value = encode_failover_log([(100 + asked.vbucket, 0)])
        return response(asked.opcode, opaque=asked.opaque, value=value).encode()

    def stats(asked: Frame) -> bytes:
        assert asked.key == DETAILS
        assert stat is not None
        return stat(asked)

    return replaced(
        lambda asked: good_answer(asked).encode(),
        {
            Opcode.GET_ALL_VB_SEQNOS: encode_vbucket_seqnos({vb: vb for vb in range(count)}),
            Opcode.GET_FAILOVER_LOG: history,
            Opcode.STAT: stats,
        },
    )


def ask(
    peer: Peer, *, wanted: Any = ALL, sizes: bool = False, on: Callable[[Stream], object] | None = None
) -> Any:
    return talk(peer, survey_sizes(LOGIN, wanted) if sizes else survey(LOGIN, wanted), on)


def talk(peer: Peer, steps: Steps[Any], on: Callable[[Stream], object] | None = None) -> Any:
    clock = FakeClock()
    transport = ScriptedTransport({NODE: peer}, clock)
    transport.on_connect = on
    with contextlib.closing(Waker()) as waker:
        found = server.ask(NODE, steps, transport=transport, waker=waker, clock=clock, timeout=7)
    assert transport.closed == 1
    return found


class Distance:
    """Counts the round trips of a stream: what was sent before an answer is read costs one."""

    def __init__(self, stream: Any) -> None:
        self.trips = self.most = self._waiting = 0
        self._sent = stream.send_all
        self._received = stream.receive_into
        stream.send_all, stream.receive_into = self.send_all, self.receive_into

    def send_all(self, data: bytes, timeout: float) -> None:
        offset = 0
        while (parsed := Frame.parse(data, offset)) is not None:
            offset = parsed[1]
            self._waiting += 1
        self.most = max(self.most, self._waiting)
        self._sent(data, timeout)

    def receive_into(self, view: memoryview) -> int | None:
        self.trips += bool(self._waiting)
        self._waiting = 0
        count: int | None = self._received(view)
        return count


def test_histories_are_asked_for_together() -> None:
    far: list[Distance] = []
    found = ask(node_of(), on=lambda stream: far.append(Distance(stream)))
    assert found == {vb: VBucketOffset.at(100 + vb, vb) for vb in ALL}
    assert far[0].trips < 10, "a trip for each of 1024 would be felt"
    assert far[0].most <= 512, "neither side must wait for the other to read"


def test_some_that_the_node_has() -> None:
    found = ask(node_of(8), wanted={3, 6, 77})
    assert found == {3: VBucketOffset.at(103, 3), 6: VBucketOffset.at(106, 6)}


def test_one_that_has_left() -> None:
    honest = node_of(4)

    def log(asked: Frame) -> bytes | None:
        return refusal(asked, Status.NOT_MY_VBUCKET).encode() if asked.vbucket == 2 else honest(asked)

    assert sorted(ask(replaced(honest, {Opcode.GET_FAILOVER_LOG: log}))) == [0, 1, 3]


def swapped(before: list[bytes], answer: bytes) -> bytes:
    """Two answers in the wrong order."""
    before.append(answer)
    return b"" if len(before) % 2 else before[-1] + before[-2]


def test_a_history_that_ends_while_it_is_looked_at() -> None:
    """The seqno may be of a later history than the one that is told, never of an earlier one."""
    seqnos = map(encode_vbucket_seqnos, [{0: 100, 1: 5}, {0: 90}])

    def sampled(asked: Frame) -> bytes:
        return response(asked.opcode, opaque=asked.opaque, value=next(seqnos)).encode()

    # Not 0: (100, 100); and the vbucket that went meanwhile is asked for elsewhere.
    found = ask(replaced(node_of(2), {Opcode.GET_ALL_VB_SEQNOS: sampled}))
    assert found == {0: VBucketOffset.at(100, 90)}


@pytest.mark.parametrize(
    "how",
    [
        lambda asked, answer, before: swapped(before, answer),
        lambda asked, answer, before: answer + answer,
        lambda asked, answer, before: response(Opcode.GET_FAILOVER_LOG, opaque=asked.opaque + 1).encode(),
        lambda asked, answer, before: response(Opcode.GET, opaque=asked.opaque).encode(),
    ],
    ids=["swapped", "twice", "another opaque", "another opcode"],
)
def test_answers_to_something_else(how: Callable[[Frame, Any, list[bytes]], bytes]) -> None:
    honest = node_of(8)
    before: list[bytes] = []
    odd = replaced(honest, {Opcode.GET_FAILOVER_LOG: lambda asked: how(asked, honest(asked), before)})
    with pytest.raises(ProtocolError, match="an answer to nothing that was asked") as caught:
        ask(odd)
    assert caught.value.node == NODE
    assert caught.value.permanent


def test_who_may_not_read_the_whole_bucket_asks_a_producer() -> None:
    """GET_FAILOVER_LOG needs the right to read the bucket, DCP_GET_FAILOVER_LOG that to open DCP."""
    opened: list[str] = []
    whole = node_of(8)

    def opening(asked: Frame) -> bytes | None:
        opened.append(asked.key.decode())
        return whole(asked)

    def log(asked: Frame) -> bytes:
        assert opened
        value = encode_failover_log([(100 + asked.vbucket, 0)])
        return response(asked.opcode, opaque=asked.opaque, value=value).encode()

    answers = {Opcode.GET_FAILOVER_LOG: Status.EACCESS, Opcode.DCP_OPEN: opening}
    peer = replaced(whole, {**answers, Opcode.DCP_GET_FAILOVER_LOG: log})
    assert ask(peer, wanted=range(4)) == {vb: VBucketOffset.at(100 + vb, vb) for vb in range(4)}
    assert opened == ["cbframe:look:nonce"]


@pytest.mark.parametrize(
    ("opcode", "message"),
    [(Opcode.DCP_OPEN, "DCP_OPEN was"), (Opcode.DCP_GET_FAILOVER_LOG, "the failover log was")],
)
def test_refusals_of_both(opcode: Opcode, message: str) -> None:
    with pytest.raises(AccessError, match=f"{message} refused: no permission") as caught:
        ask(replaced(node_of(8), dict.fromkeys((Opcode.GET_FAILOVER_LOG, opcode), Status.EACCESS)))
    assert (caught.value.node, caught.value.hint) == (NODE, ROLES_HINT)


def test_seqnos_of_some_collections_where_the_node_gives_no_others() -> None:
    """As nodes of 7.0 do for users of some collections."""
    of_collections = {8: {0: 3, 1: 7}, 9: {1: 9, 2: 1}}

    def sampled(asked: Frame) -> bytes:
        collection = GetAllVBucketSeqnos.parse(asked).collection_id
        if collection is None:
            return refusal(asked, Status.EACCESS).encode()
        value = encode_vbucket_seqnos(of_collections[collection])
        return response(asked.opcode, opaque=asked.opaque, value=value).encode()

    def seqnos(*collections: int) -> Any:
        steps = open_dcp(LOGIN, replace(SETTINGS, collections=collections), "test")
        return talk(replaced(node_of(), {Opcode.GET_ALL_VB_SEQNOS: sampled}), steps).seqnos

    assert seqnos(8, 9) == {0: 3, 1: 9, 2: 1}
    with pytest.raises(AccessError, match="GET_ALL_VB_SEQNOS was refused"):
        seqnos()


# -- sizes


def sizes(stat: Callable[[Frame], bytes], count: int = 1) -> Any:
    """What a node that tells this says of the sizes of its vbuckets."""
    return ask(node_of(count, stat), wanted=range(count), sizes=True)


NO_SIZE = Size(None, None)


def test_sizes() -> None:
    told = [
        (b"vb_0", b"active"),
        (b"vb_0:num_items", b"12"),
        (b"vb_0:db_data_size", b"3456"),
        (b"vb_0:db_file_size", b"9999"),
        (b"vb_1:num_items", b"0"),
        (b"vb_700:num_items", b"7"),  # a replica
        (b"vb_2:db_data_size", b"5"),
    ]
    found = sizes(lambda asked: lines(asked, told), 4)
    assert found == {0: Size(12, 3456), 1: Size(0, None), 2: Size(None, 5), 3: NO_SIZE}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((b"vb_0:num_items", value) for value in (b"", b"-1", b"1e5", b"9" * 20, b"\xff\xff", b"1\n")),
        (b"vb_99999999999:num_items", b"1"),
        (b"vb_:num_items", b"1"),
        (b"vb_0:more:num_items", b"1"),
        ("vb_\N{ARABIC-INDIC DIGIT THREE}:num_items".encode(), b"1"),
        (b"\x00:num_items", b"1"),
    ],
)
def test_nonsense_is_no_size(key: bytes, value: bytes) -> None:
    assert sizes(lambda asked: lines(asked, [(key, value)])) == {0: NO_SIZE}


@pytest.mark.parametrize(
    "status",
    [Status.EACCESS, Status.KEY_ENOENT, Status.UNKNOWN_COMMAND, Status.NOT_SUPPORTED, Status.ETMPFAIL],
)
@pytest.mark.parametrize("told", [[], [(b"vb_0:num_items", b"5")]], ids=["at once", "later"])
def test_a_node_that_does_not_tell(status: Status, told: list[tuple[bytes, bytes]]) -> None:
    found = sizes(lambda asked: lines(asked, told)[:-24] + refusal(asked, status).encode(), 2)
    assert found == {0: NO_SIZE, 1: NO_SIZE}


def test_a_recorded_refusal() -> None:
    """What a real node said to STAT: with that its answer is over."""
    side = load("hello_empty", "s2c")
    message = next(each for each in side.messages if each["op"] == "STAT")
    data = side.data[message["offset"] :][: message["len"]]
    parsed = Frame.parse(data)
    assert parsed is not None
    assert parsed[0].status == Status.EACCESS
    assert sizes(lambda asked: data[:12] + asked.opaque.to_bytes(4, "big") + data[16:]) == {0: NO_SIZE}


def test_answers_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cbframe.dcp.transport._MOST_ANSWERS", 50)
    line = (b"vb_0:num_items", b"1")
    assert sizes(lambda asked: lines(asked, [line] * 49)) == {0: Size(1, None)}
    with pytest.raises(ProtocolError, match="over 50 answers to one question"):
        sizes(lambda asked: lines(asked, [line] * 50))


@pytest.mark.parametrize(
    ("rest", "kind"),
    [(b"", ReadTimeoutError), (None, ConnectError), (b"\x99", ProtocolError)],
    ids=["silent", "closed", "garbage"],
)
def test_a_series_that_does_not_end(rest: bytes | None, kind: type[CbframeError]) -> None:
    def stat(asked: Frame) -> bytes | None:
        return None if rest is None else lines(asked, [(b"vb_0:num_items", b"1")])[:-24] + rest

    with pytest.raises(kind) as caught:
        ask(replaced(node_of(1), {Opcode.STAT: stat}), sizes=True)
    assert caught.value.node == NODE


def test_several_questions_with_several_answers() -> None:
    """Each ends with its own last answer."""

    def steps() -> Steps[list[bytes]]:
        asked = [Frame(0x80, Opcode.STAT, key=name) for name in (b"x", b"y")]
        found = [(yield asked).key]
        while found.count(b"") < len(asked):
            found.append((yield ()).key)
        return found

    found = talk(lambda asked: lines(asked, [(asked.key + b"1", b""), (asked.key + b"2", b"")]), steps())
    assert found == [b"x1", b"x2", b"", b"y1", b"y2", b""]


# -- of all nodes


def look(cluster: LocalCluster, **options: Any) -> BucketState:
    auth = cluster.username, cluster.password
    return survey_bucket(cluster.connection_string, cluster.bucket, auth, OPTIONS, **options)


def survey_changed(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[dict[int, Any]], dict[int, Any]]
) -> None:
    """Have nodes tell something else."""
    honest = survey_module.survey

    def changed(login: Any, wanted: Any) -> Any:
        return change((yield from honest(login, wanted)))

    monkeypatch.setattr(survey_module, "survey", changed)


@pytest.mark.parametrize("nodes", [1, 3])
@pytest.mark.parametrize("seeds", ["kv", "rest"])
def test_all_vbuckets(nodes: int, seeds: str) -> None:
    with LocalCluster(nodes=nodes, vbuckets=64, seed=1) as cluster:
        cluster.bulk_load((b"%d" % n, b"{}") for n in range(300))
        urls = cluster.connection_string if seeds == "kv" else cluster.rest_urls
        found = survey_bucket(urls, cluster.bucket, (cluster.username, cluster.password), OPTIONS)
        assert {vb: at.seqno for vb, at in found.positions.items()} == cluster.high_seqnos()
        assert all(at.history == cluster.failover_log(vb)[0][0] for vb, at in found.positions.items())
        assert len(found.map.nodes) == nodes


def test_some_vbuckets(pair: LocalCluster) -> None:
    assert list(look(pair, vbuckets=[3, 1]).positions) == [1, 3]
    with pytest.raises(ConfigurationError, match="vbucket 4 does not exist"):
        look(pair, vbuckets=[4])


def test_vbuckets_on_their_way(pair: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that is asked too early has not got them yet; one that never has them is an error."""
    naps: list[float] = []

    def without_3(found: dict[int, Any]) -> dict[int, Any]:
        return {vb: at for vb, at in found.items() if vb != 3}

    with monkeypatch.context() as patch:
        survey_changed(patch, lambda found: without_3(found) if len(naps) < 2 else found)
        assert len(look(pair, sleep=naps.append).positions) == 4
    assert naps == [0.5, 0.5]
    survey_changed(monkeypatch, without_3)
    with pytest.raises(ClusterMapError, match="no owner for 1 of 4 vbuckets"):
        look(pair, sleep=naps.append)


@pytest.mark.parametrize("comes_back", [True, False])
def test_a_node_that_is_started_anew(pair: LocalCluster, comes_back: bool) -> None:
    """It is waited for, but not for ever."""
    clock = FakeClock()
    began = clock()
    pair.kill(1)

    def sleep(seconds: float) -> None:
        clock.advance(seconds)
        if comes_back and clock() == began + 20:
            pair.restart(1, same_ports=True)

    if comes_back:
        found = look(pair, sizes=True, time=True, sleep=sleep, clock=clock)
        assert found.positions.keys() == found.sizes.keys() == set(range(4))
        assert found.time is not None
        assert clock() == began + 20
    else:
        with pytest.raises(ConnectError) as caught:
            look(pair, sizes=True, time=True, sleep=sleep, clock=clock)
        assert caught.value.node in pair.kv_addresses
        assert clock() == began + OPTIONS.recovery_timeout


def test_two_nodes_that_both_have_a_vbucket(pair: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old one goes on answering for a while: the map decides."""
    before = look(pair).positions
    survey_changed(monkeypatch, lambda own: dict.fromkeys(range(4), (99, 99)) | own)
    assert look(pair).positions == before


@pytest.mark.parametrize("error", [ReadTimeoutError("slow"), ConnectError("closed")])
def test_no_time_for_statistics(
    alone: LocalCluster, monkeypatch: pytest.MonkeyPatch, error: CbframeError
) -> None:
    """Nothing but estimates is missing."""

    def silent(login: Any, vbuckets: Any) -> Any:
        raise error
        yield

    monkeypatch.setattr(survey_module, "survey_sizes", silent)
    found = look(alone, sizes=True)
    assert found.sizes == {0: UNKNOWN}
    assert len(found.positions) == 1


def test_the_time(pair: LocalCluster) -> None:
    pair.add_user("reader", "secret", access="dcp")
    before = int(time.time())
    found = look(pair, time=True).time
    assert found is not None
    assert before <= found <= time.time()
    assert look(pair).time is None
    # Who may not see statistics is not told.
    reader = survey_bucket(pair.connection_string, "default", ("reader", "secret"), OPTIONS, time=True)
    assert reader.time is None
