"""Seeds that DNS names, asked of a real server by the real library, and the pass over them."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import dns.message
import dns.name
import dns.rcode
import dns.resolver
import dns.rrset
import pytest

from cbframe import cluster
from cbframe.cluster.connection_string import (
    ZONES,
    NoAnswerError,
    Seeds,
    SrvRecord,
    Zone,
    ask_dns,
    first_success,
    parse_connection_string,
    srv_name,
    zone_of,
)
from cbframe.errors import (
    AccessError,
    AllServerURLsConnectBucketError,
    BucketNotFoundError,
    ConfigurationError,
    ConnectError,
    ProtocolError,
)

LONG = 10.0


@pytest.fixture(autouse=True)
def no_dns() -> None:
    """Here it is asked: a server of the test's own."""


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("couchbase://db.example.com", "_couchbase._tcp.db.example.com"),
        ("couchbases://db.example.com/travel?network=external", "_couchbases._tcp.db.example.com"),
        ("db.example.com", "_couchbase._tcp.db.example.com"),
        ("couchbases://_couchbases._tcp.db.example.com", "_couchbases._tcp.db.example.com"),
        ("couchbase://db.example.com:11210", None),
        ("couchbase://a,b", None),
        ("couchbase://10.0.0.1", None),
        ("couchbase://[::1]", None),
        ("couchbase://localhost", None),
        ("http://db.example.com", None),
        ("couchbase://db.example.com?enable_dns_srv=false", None),
        ("couchbase://db.example.com?enable_dns_srv=true", "_couchbase._tcp.db.example.com"),
    ],
)
def test_what_is_asked(text: str, name: str | None) -> None:
    assert srv_name(parse_connection_string(text)) == name


def found(text: str, records: Sequence[SrvRecord]) -> str:
    asked = []

    def lookup(name: str, timeout: float) -> Sequence[SrvRecord]:
        asked.append((name, timeout))
        return records

    seeds = Seeds(parse_connection_string(text), lookup)
    changed = seeds.ask(2.5)
    assert asked == [("_couchbase._tcp.db", 2.5)]
    assert changed == seeds.named == (str(seeds.target) != text)
    assert not seeds.ask(2.5)
    return str(seeds.target)


def test_the_order_of_the_records() -> None:
    records = [
        SrvRecord(2, 100, "c.", 11210),
        SrvRecord(1, 1, "b.", 12000),
        SrvRecord(1, 9, "a.", 11210),
        SrvRecord(1, 1, "b.", 12000),
    ]
    assert found("couchbase://db/travel", records) == "couchbase://a:11210,b:12000,c:11210/travel"


def test_names_of_capella_stand_for_hosts_of_capella_only() -> None:
    records = [
        SrvRecord(0, 0, "thief.example.", 11207),
        SrvRecord(1, 0, "N1.x.cloud.couchbase.com.", 11207),
        SrvRecord(2, 0, "cloud.couchbase.com.thief.example.", 11207),
    ]
    seeds = Seeds(parse_connection_string("couchbases://cb.x.cloud.couchbase.com"), lambda *_: records)
    seeds.ask(5)
    assert str(seeds.target) == "couchbases://N1.x.cloud.couchbase.com:11207"


@pytest.mark.parametrize(
    "records",
    [[], [SrvRecord(0, 0, ".", 0)], [SrvRecord(0, 0, "a.", 0)]],
    ids=["none", "no such service", "no port"],
)
def test_nothing_is_named(records: list[SrvRecord]) -> None:
    assert found("couchbase://db", records) == "couchbase://db"


def test_other_seeds_are_named_later_and_stay_while_dns_is_away() -> None:
    zone: list[str] = ["old."]

    def lookup(_name: str, _timeout: float) -> Sequence[SrvRecord]:
        if not zone:
            raise NoAnswerError("no answer within 5 s")
        return [SrvRecord(0, 0, target, 11210) for target in zone]

    seeds = Seeds(parse_connection_string("couchbase://db/b"), lookup)
    assert seeds.ask(5)
    assert not seeds.ask(5)
    zone[:] = ["new."]
    assert seeds.ask(5)
    zone.clear()
    assert not seeds.ask(5)
    assert str(seeds.target) == "couchbase://new:11210/b"


@pytest.mark.parametrize(
    ("text", "scheme"),
    [
        ("couchbases://db.example/b", "couchbases"),
        ("db.example", "couchbase"),
        ("couchbases://db.example:11207", None),
        ("couchbase://db.example,other.example", None),
        ("http://db.example", None),
    ],
)
def test_both_questions_are_in_the_error(text: str, scheme: str | None) -> None:
    def lookup(_name: str, _timeout: float) -> Sequence[SrvRecord]:
        raise NoAnswerError("no such name")

    seeds = Seeds(parse_connection_string(text), lookup)
    seeds.ask(5)
    error = ConnectError("as before", hint="as before")
    seeds.explain(error)
    assert str(error) == "as before\n  hint: as before"  # the host has an address
    error.unresolved = "no name server answers"
    seeds.explain(error)
    message = (
        f"the name 'db.example' cannot be resolved: no such name for SRV of _{scheme}._tcp.db.example, "
        "and no name server answers for A and AAAA of db.example"
    )
    assert str(error) == f"{message if scheme else 'as before'}\n  hint: as before"


def test_a_zone_answers_for_its_names_only() -> None:
    zone = Zone("x.example", {"_couchbases._tcp.cb.x.example": [SrvRecord(0, 0, "n1.x.example.", 1)]}, {}, "")
    ZONES.append(zone)
    try:
        assert zone_of("N1.x.Example") is zone_of("x.example") is zone
        assert zone_of("notx.example") is zone_of("127.0.0.1") is None
        seeds = Seeds(parse_connection_string("couchbases://cb.x.example/b"))
        assert seeds.ask(5)
        assert str(seeds.target) == "couchbases://n1.x.example:1/b"
        seeds = Seeds(parse_connection_string("couchbase://cb.x.example/b"))
        assert not seeds.ask(5)
    finally:
        ZONES.remove(zone)


# --- over the wire


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, list[str]]]:
    """A name server on this machine; names that it does not have do not exist."""
    zone: dict[str, list[str]] = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))

        def serve() -> None:
            while True:
                data, peer = sock.recvfrom(4096)
                if not data:
                    return
                question = dns.message.from_wire(data)
                answer = dns.message.make_response(question)
                name = question.question[0].name
                records = zone.get(name.to_text().rstrip("."))
                if records is None:
                    answer.set_rcode(dns.rcode.NXDOMAIN)
                elif records:
                    answer.answer.append(dns.rrset.from_text(name, 60, "IN", "SRV", *records))
                sock.sendto(answer.to_wire(), peer)

        thread = threading.Thread(target=serve, name="test-dns")
        thread.start()
        resolver = dns.resolver.Resolver(configure=False)
        resolver.nameservers, resolver.port = ["127.0.0.1"], sock.getsockname()[1]
        monkeypatch.setattr(dns.resolver, "default_resolver", resolver)
        try:
            yield zone
        finally:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bell:
                bell.sendto(b"", sock.getsockname())
            thread.join()


def named(text: str, timeout: float = LONG) -> str:
    seeds = Seeds(parse_connection_string(text))
    seeds.ask(timeout)
    return str(seeds.target)


def test_a_real_server(answers: dict[str, list[str]]) -> None:
    answers["_couchbases._tcp.db.example.com"] = [
        "20 5 11207 late.example.com.",
        "10 5 12007 n1.example.com.",
    ]
    wanted = "couchbases://n1.example.com:12007,late.example.com:11207/b"
    assert named("couchbases://db.example.com/b") == wanted


def test_the_search_list_is_not_for_names_of_capella(answers: dict[str, list[str]]) -> None:
    dns.resolver.get_default_resolver().search = [dns.name.from_text("corp.example")]
    name = "cb.x.cloud.couchbase.com"
    answers[f"_couchbases._tcp.{name}.corp.example"] = ["0 0 11207 n1.x.cloud.couchbase.com."]
    assert named(f"couchbases://{name}") == f"couchbases://{name}"


@pytest.mark.parametrize("name", ["cb-srv.default", "cb-srv"])
def test_a_relative_name_is_looked_up_in_the_search_list(answers: dict[str, list[str]], name: str) -> None:
    suffixes = ["default.svc.cluster.local", "svc.cluster.local", "cluster.local"]
    dns.resolver.get_default_resolver().search = [dns.name.from_text(suffix) for suffix in suffixes]
    dns.resolver.get_default_resolver().ndots = 5
    node = "cb-0000.cb.default.svc.cluster.local"
    answers["_couchbase._tcp.cb-srv.default.svc.cluster.local"] = [f"0 0 11210 {node}."]
    assert named(f"couchbase://{name}") == f"couchbase://{node}:11210"


@pytest.mark.parametrize(
    ("records", "said"), [(None, "no such name"), ([], "no SRV records")], ids=["no such name", "no records"]
)
def test_a_real_server_that_has_none(
    answers: dict[str, list[str]], records: list[str] | None, said: str
) -> None:
    if records is not None:
        answers["_couchbase._tcp.db.example.com"] = records
    assert named("couchbase://db.example.com") == "couchbase://db.example.com"
    with pytest.raises(NoAnswerError, match=said):
        ask_dns("_couchbase._tcp.db.example.com", LONG)


def test_a_server_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        resolver = dns.resolver.Resolver(configure=False)
        resolver.nameservers, resolver.port = ["127.0.0.1"], silent.getsockname()[1]
        monkeypatch.setattr(dns.resolver, "default_resolver", resolver)
        assert named("couchbase://db.example.com", 0.1) == "couchbase://db.example.com"
        with pytest.raises(NoAnswerError, match=r"no answer within 0\.1 s"):
            ask_dns("_couchbase._tcp.db.example.com", 0.1)


def test_a_machine_without_a_name_server(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(*_arguments: object, **_options: object) -> object:
        raise dns.resolver.NoResolverConfiguration

    monkeypatch.setattr(dns.resolver, "resolve", resolve)
    with pytest.raises(NoAnswerError, match="no name server"):
        ask_dns("_couchbase._tcp.db.example.com", LONG)


# --- the pass over the seeds


def test_stops_at_the_first_success() -> None:
    tried: list[str] = []

    def attempt(seed: str) -> str:
        tried.append(seed)
        if seed == "a":
            raise ProtocolError("odd bytes")
        return seed.upper()

    assert first_success(["a", "b", "c"], attempt) == "B"
    assert tried == ["a", "b"]


def test_all_failed() -> None:
    causes = {"http://u:s3cret@a": ConnectError("no"), "b": ConnectError("via http://u:s3cret@b", hint="try")}

    def attempt(seed: str) -> None:
        raise causes[seed]

    with pytest.raises(AllServerURLsConnectBucketError) as caught:
        first_success(list(causes), attempt)
    assert "http://a: no; b: via http://b" in str(caught.value)
    assert caught.value.hint == "try"
    assert caught.value.__cause__ is causes["b"]
    assert caught.value.server_urls == ["http://a", "b"]


def test_permanent_error_ends_the_pass() -> None:
    def attempt(seed: str) -> None:
        raise AccessError("no") if seed == "b" else ConnectError("down")

    with pytest.raises(AccessError):
        first_success(["a", "b", "c"], attempt)


def test_a_bucket_that_no_node_has() -> None:
    """Each node may only not have it yet; together they are one clear error."""

    def attempt(seed: str) -> None:
        error = BucketNotFoundError(f"not on {seed}")
        error.permanent = False
        raise error if seed in where else ConnectError("down")

    where = ["a", "b"]
    with pytest.raises(BucketNotFoundError, match="not on b") as caught:
        first_success(["a", "b"], attempt)
    assert not caught.value.permanent
    with pytest.raises(AllServerURLsConnectBucketError, match="not on b; c: down"):
        first_success(["a", "b", "c"], attempt)


def test_other_errors_are_bugs_and_pass() -> None:
    with pytest.raises(ZeroDivisionError):
        first_success(["a", "b"], lambda _: 1 // 0)


def test_no_seeds() -> None:
    with pytest.raises(ConfigurationError, match="at least 1"):
        first_success([], str)


def test_only_http_loads_requests() -> None:
    paths = Path(cluster.__file__).parent.glob("[!_]*.py")
    modules = [path.stem for path in paths if path.stem != "rest"]
    names = ", ".join(f"cbframe.cluster.{name}" for name in modules)
    code = f"import sys, {names}; print('requests' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "False"
