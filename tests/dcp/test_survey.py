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
from cbframe.dcp.positions import Ends, ReachedEnds, VBucketOffset
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
from .server import LOGIN, SETTINGS, good_answer, refusal

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

    def answer(asked: Frame) -> bytes:
        if asked.opcode == Opcode.GET_ALL_VB_SEQNOS:
            value = encode_vbucket_seqnos({vb: vb for vb in range(count)})
        elif asked.opcode == Opcode.GET_FAILOVER_LOG:
            value = encode_failover_log([(100 + asked.vbucket, 0)])
        elif asked.opcode == Opcode.STAT:
            assert asked.key == DETAILS
            assert stat is not None
            return stat(asked)
        else:
            return good_answer(asked).encode()
        return response(asked.opcode, opaque=asked.opaque, value=value).encode()

    return answer


def ask(
    peer: Peer, *, wanted: Any = ALL, sizes: bool = False, on: Callable[[Stream], object] | None = None
) -> tuple[Any, FakeClock]:
    clock, waker = FakeClock(), Waker()
    transport = ScriptedTransport({NODE: peer}, clock)
    transport.on_connect = on
    try:
        steps: Steps[Any] = survey_sizes(LOGIN, wanted) if sizes else survey(LOGIN, wanted)
        found = server.ask(NODE, steps, transport=transport, waker=waker, clock=clock, timeout=7)
    finally:
        waker.close()
    assert transport.closed == 1
    return found, clock


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
    found, _ = ask(node_of(), on=lambda stream: far.append(Distance(stream)))
    assert found == {vb: VBucketOffset.at(100 + vb, vb) for vb in ALL}
    assert far[0].trips < 10, "a trip for each of 1024 would be felt"
    assert far[0].most <= 512, "neither side must wait for the other to read"


def test_some_that_the_node_has() -> None:
    found, _ = ask(node_of(8), wanted={3, 6, 77})
    assert found == {3: VBucketOffset.at(103, 3), 6: VBucketOffset.at(106, 6)}


def test_one_that_has_left() -> None:
    honest = node_of(4)

    def answer(asked: Frame) -> bytes | None:
        if asked.opcode == Opcode.GET_FAILOVER_LOG and asked.vbucket == 2:
            return refusal(asked, Status.NOT_MY_VBUCKET).encode()
        return honest(asked)

    assert sorted(ask(answer)[0]) == [0, 1, 3]


def swapped(before: list[bytes], answer: bytes) -> bytes:
    """Two answers in the wrong order."""
    before.append(answer)
    return b"" if len(before) % 2 else before[-1] + before[-2]


def test_a_history_that_ends_while_it_is_looked_at() -> None:
    """The seqno may be of a later history than the one that is told, never of an earlier one."""
    seqnos = iter([{0: 100, 1: 5}, {0: 90}])
    ordinary = node_of(2)

    def answer(asked: Frame) -> bytes:
        if asked.opcode == Opcode.GET_ALL_VB_SEQNOS:
            value = encode_vbucket_seqnos(next(seqnos))
            return response(asked.opcode, opaque=asked.opaque, value=value).encode()
        return ordinary(asked)

    # Not 0: (100, 100); and the vbucket that went meanwhile is asked for elsewhere.
    assert ask(answer)[0] == {0: VBucketOffset.at(100, 90)}


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
def test_answers_to_something_else(how: Callable[[Frame, bytes, list[bytes]], bytes]) -> None:
    honest = node_of(8)
    before: list[bytes] = []

    def answer(asked: Frame) -> bytes | None:
        good = honest(asked)
        assert good is not None
        return how(asked, good, before) if asked.opcode == Opcode.GET_FAILOVER_LOG else good

    with pytest.raises(ProtocolError, match="an answer to nothing that was asked") as caught:
        ask(answer)
    assert caught.value.node == NODE
    assert caught.value.permanent


def refusing(honest: Peer, *opcodes: Opcode) -> Peer:
    def answer(asked: Frame) -> bytes | None:
        return refusal(asked, Status.EACCESS).encode() if asked.opcode in opcodes else honest(asked)

    return answer


def test_who_may_not_read_the_whole_bucket_asks_a_producer() -> None:
    """GET_FAILOVER_LOG needs the right to read the bucket, DCP_GET_FAILOVER_LOG that to open DCP."""
    opened: list[str] = []
    whole = node_of(8)

    def honest(asked: Frame) -> bytes | None:
        if asked.opcode == Opcode.DCP_OPEN:
            opened.append(asked.key.decode())
        elif asked.opcode == Opcode.DCP_GET_FAILOVER_LOG and opened:
            value = encode_failover_log([(100 + asked.vbucket, 0)])
            return response(asked.opcode, opaque=asked.opaque, value=value).encode()
        return whole(asked)

    found, _ = ask(refusing(honest, Opcode.GET_FAILOVER_LOG), wanted=range(4))
    assert found == {vb: VBucketOffset.at(100 + vb, vb) for vb in range(4)}
    assert opened == ["cbframe:look:nonce"]


@pytest.mark.parametrize(
    ("opcode", "message"),
    [(Opcode.DCP_OPEN, "DCP_OPEN was"), (Opcode.DCP_GET_FAILOVER_LOG, "the failover log was")],
)
def test_refusals_of_both(opcode: Opcode, message: str) -> None:
    with pytest.raises(AccessError, match=f"{message} refused: no permission") as caught:
        ask(refusing(node_of(8), Opcode.GET_FAILOVER_LOG, opcode))
    assert (caught.value.node, caught.value.hint) == (NODE, ROLES_HINT)


def test_seqnos_of_some_collections_where_the_node_gives_no_others() -> None:
    """As nodes of 7.0 do for users of some collections."""
    of_collections = {8: {0: 3, 1: 7}, 9: {1: 9, 2: 1}}

    def answer(asked: Frame) -> bytes:
        if asked.opcode != Opcode.GET_ALL_VB_SEQNOS:
            return good_answer(asked).encode()
        collection = GetAllVBucketSeqnos.parse(asked).collection_id
        if collection is None:
            return refusal(asked, Status.EACCESS).encode()
        value = encode_vbucket_seqnos(of_collections[collection])
        return response(asked.opcode, opaque=asked.opaque, value=value).encode()

    def seqnos(*collections: int) -> dict[int, int]:
        clock, waker = FakeClock(), Waker()
        steps = open_dcp(LOGIN, replace(SETTINGS, collections=collections), "test")
        transport = ScriptedTransport({NODE: answer}, clock)
        with contextlib.closing(waker):
            session = server.ask(NODE, steps, transport=transport, waker=waker, clock=clock, timeout=7)
        return session.seqnos

    assert seqnos(8, 9) == {0: 3, 1: 9, 2: 1}
    with pytest.raises(AccessError, match="GET_ALL_VB_SEQNOS was refused"):
        seqnos()


# -- sizes


def test_sizes() -> None:
    def stat(asked: Frame) -> bytes:
        told = [
            (b"vb_0", b"active"),
            (b"vb_0:num_items", b"12"),
            (b"vb_0:db_data_size", b"3456"),
            (b"vb_0:db_file_size", b"9999"),
            (b"vb_1:num_items", b"0"),
            (b"vb_700:num_items", b"7"),  # a replica
            (b"vb_2:db_data_size", b"5"),
        ]
        return lines(asked, told)

    found, _ = ask(node_of(4, stat), wanted=range(4), sizes=True)
    assert found == {0: Size(12, 3456), 1: Size(0, None), 2: Size(None, 5), 3: Size(None, None)}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (b"vb_0:num_items", b""),
        (b"vb_0:num_items", b"-1"),
        (b"vb_0:num_items", b"1e5"),
        (b"vb_0:num_items", b"9" * 20),
        (b"vb_0:num_items", b"\xff\xff"),
        (b"vb_0:num_items", b"1\n"),
        (b"vb_99999999999:num_items", b"1"),
        (b"vb_:num_items", b"1"),
        (b"vb_0:more:num_items", b"1"),
        ("vb_\N{ARABIC-INDIC DIGIT THREE}:num_items".encode(), b"1"),
        (b"\x00:num_items", b"1"),
    ],
)
def test_nonsense_is_no_size(key: bytes, value: bytes) -> None:
    found, _ = ask(node_of(1, lambda asked: lines(asked, [(key, value)])), wanted=range(1), sizes=True)
    assert found == {0: Size(None, None)}


@pytest.mark.parametrize(
    "status",
    [Status.EACCESS, Status.KEY_ENOENT, Status.UNKNOWN_COMMAND, Status.NOT_SUPPORTED, Status.ETMPFAIL],
)
def test_a_node_that_does_not_tell(status: Status) -> None:
    found, _ = ask(node_of(2, lambda asked: refusal(asked, status).encode()), wanted=range(2), sizes=True)
    assert found == {0: Size(None, None), 1: Size(None, None)}


def test_a_node_that_breaks_off() -> None:
    def stat(asked: Frame) -> bytes:
        some = lines(asked, [(b"vb_0:num_items", b"5")])
        return some[:-24] + refusal(asked, Status.ETMPFAIL).encode()

    assert ask(node_of(1, stat), wanted=range(1), sizes=True)[0] == {0: Size(None, None)}


def test_a_recorded_refusal() -> None:
    """What a real node said to STAT: with that its answer is over."""
    side = load("hello_empty", "s2c")
    message = next(each for each in side.messages if each["op"] == "STAT")
    data = side.data[message["offset"] :][: message["len"]]
    parsed = Frame.parse(data)
    assert parsed is not None
    assert parsed[0].status == Status.EACCESS

    def stat(asked: Frame) -> bytes:
        return data[:12] + asked.opaque.to_bytes(4, "big") + data[16:]

    assert ask(node_of(1, stat), wanted=range(1), sizes=True)[0] == {0: Size(None, None)}


def test_answers_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cbframe.dcp.transport._MOST_ANSWERS", 50)
    line = (b"vb_0:num_items", b"1")
    assert ask(node_of(1, lambda asked: lines(asked, [line] * 49)), wanted=range(1), sizes=True)[0] == {
        0: Size(1, None)
    }
    with pytest.raises(ProtocolError, match="over 50 answers to one question"):
        ask(node_of(1, lambda asked: lines(asked, [line] * 50)), wanted=range(1), sizes=True)


@pytest.mark.parametrize(
    ("rest", "kind"),
    [(b"", ReadTimeoutError), (None, ConnectError), (b"\x99", ProtocolError)],
    ids=["silent", "closed", "garbage"],
)
def test_a_series_that_does_not_end(rest: bytes | None, kind: type[CbframeError]) -> None:
    def stat(asked: Frame) -> bytes:
        return lines(asked, [(b"vb_0:num_items", b"1")])[:-24] + (rest or b"")

    honest = node_of(1, stat)

    def answer(asked: Frame) -> bytes | None:
        if asked.opcode == Opcode.STAT and rest is None:
            return None
        return honest(asked)

    with pytest.raises(kind) as caught:
        ask(answer, sizes=True)
    assert caught.value.node == NODE


def test_several_questions_with_several_answers() -> None:
    """Each ends with its own last answer."""

    def steps() -> Steps[list[bytes]]:
        asked = [Frame(0x80, Opcode.STAT, key=name) for name in (b"x", b"y")]
        found = [(yield asked).key]
        while found.count(b"") < len(asked):
            found.append((yield ()).key)
        return found

    clock, waker = FakeClock(), Waker()
    peer = {NODE: lambda asked: lines(asked, [(asked.key + b"1", b""), (asked.key + b"2", b"")])}
    try:
        transport = ScriptedTransport(peer, clock)
        found = server.ask(NODE, steps(), transport=transport, waker=waker, clock=clock, timeout=7)
    finally:
        waker.close()
    assert found == [b"x1", b"x2", b"", b"y1", b"y2", b""]


# -- of all nodes


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


def test_some_vbuckets() -> None:
    with LocalCluster(nodes=2, vbuckets=8) as cluster:
        auth = cluster.username, cluster.password
        found = survey_bucket(cluster.connection_string, "default", auth, OPTIONS, vbuckets=[6, 1])
        assert list(found.positions) == [1, 6]
        with pytest.raises(ConfigurationError, match="vbucket 8 does not exist"):
            survey_bucket(cluster.connection_string, "default", auth, OPTIONS, vbuckets=[8])


def test_vbuckets_on_their_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that is asked too early has not got them yet; one that never has them is an error."""
    with LocalCluster(nodes=2, vbuckets=8) as cluster:
        auth = cluster.username, cluster.password
        honest, naps = survey_module.survey, []

        def without_3(found: dict[int, tuple[int, int]]) -> dict[int, tuple[int, int]]:
            return {vb: at for vb, at in found.items() if vb != 3}

        def late(login, wanted):  # type: ignore[no-untyped-def]
            found = yield from honest(login, wanted)
            return without_3(found) if len(naps) < 2 else found

        monkeypatch.setattr(survey_module, "survey", late)
        found = survey_bucket(cluster.connection_string, "default", auth, OPTIONS, sleep=naps.append)
        assert len(found.positions) == 8
        assert naps == [0.5, 0.5]

        def never(login, wanted):  # type: ignore[no-untyped-def]
            return without_3((yield from honest(login, wanted)))

        monkeypatch.setattr(survey_module, "survey", never)
        with pytest.raises(ClusterMapError, match="no owner for 1 of 8 vbuckets"):
            survey_bucket(cluster.connection_string, "default", auth, OPTIONS, sleep=naps.append)


@pytest.mark.parametrize("comes_back", [True, False])
def test_a_node_that_is_started_anew(comes_back: bool) -> None:
    """It is waited for, but not for ever."""
    with LocalCluster(nodes=2, vbuckets=8, seed=1) as cluster:
        auth, clock = (cluster.username, cluster.password), FakeClock()
        seeds = cluster.connection_string
        began = clock()
        cluster.kill(1)

        def sleep(seconds: float) -> None:
            clock.advance(seconds)
            if comes_back and clock() == began + 20:
                cluster.restart(1, same_ports=True)

        def look_now() -> BucketState:
            return survey_bucket(
                seeds, "default", auth, OPTIONS, sizes=True, time=True, sleep=sleep, clock=clock
            )

        if comes_back:
            found = look_now()
            assert found.positions.keys() == found.sizes.keys() == set(range(8))
            assert found.time is not None
            assert clock() == began + 20
        else:
            with pytest.raises(ConnectError) as caught:
                look_now()
            assert caught.value.node in cluster.kv_addresses
            assert clock() == began + OPTIONS.recovery_timeout


def test_two_nodes_that_both_have_a_vbucket(monkeypatch: pytest.MonkeyPatch) -> None:
    """The old one goes on answering for a while: the map decides."""
    with LocalCluster(nodes=2, vbuckets=2, seed=1) as cluster:
        auth, honest = (cluster.username, cluster.password), survey_module.survey

        def both(login, wanted):  # type: ignore[no-untyped-def]
            own = yield from honest(login, wanted)
            return dict.fromkeys(range(2), (99, 99)) | own

        before = survey_bucket(cluster.connection_string, "default", auth, OPTIONS).positions
        monkeypatch.setattr(survey_module, "survey", both)
        assert survey_bucket(cluster.connection_string, "default", auth, OPTIONS).positions == before


@pytest.mark.parametrize("error", [ReadTimeoutError("slow"), ConnectError("closed")])
def test_no_time_for_statistics(monkeypatch: pytest.MonkeyPatch, error: CbframeError) -> None:
    """Nothing but estimates is missing."""
    with LocalCluster(nodes=1, vbuckets=2, seed=1) as cluster:
        auth = cluster.username, cluster.password

        def silent(login, vbuckets):  # type: ignore[no-untyped-def]
            raise error
            yield

        monkeypatch.setattr(survey_module, "survey_sizes", silent)
        found = survey_bucket(cluster.connection_string, "default", auth, OPTIONS, sizes=True)
        assert found.sizes == {0: UNKNOWN, 1: UNKNOWN}
        assert len(found.positions) == 2


def test_ends_that_were_reached() -> None:
    """A plain mapping may lie ahead; what was reached and is not any more is read as far as it goes."""
    ahead, reached = Ends({0: 10}), Ends(ReachedEnds({0: 10}))
    for ends in (ahead, reached):
        ends.begin([0])
        assert ends.known
        assert ends.of(0, {0: 12}) == 10
    assert ahead.of(0, {0: 7}) == 10
    assert reached.of(0, {0: 7}) == 7


def test_the_time(pair: LocalCluster) -> None:
    pair.add_user("reader", "secret", access="dcp")
    url, admin = pair.connection_string, (pair.username, pair.password)
    before = int(time.time())
    found = survey_bucket(url, "default", admin, OPTIONS, time=True).time
    assert found is not None
    assert before <= found <= time.time()
    assert survey_bucket(url, "default", admin, OPTIONS).time is None
    # Who may not see statistics is not told.
    assert survey_bucket(url, "default", ("reader", "secret"), OPTIONS, time=True).time is None
