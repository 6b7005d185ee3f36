"""Seeds that DNS names: asked for where that can be meant, and by the real library of a real server."""

from __future__ import annotations

import builtins
import socket
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import dns.message
import dns.rcode
import dns.resolver
import dns.rrset
import pytest

from cbframe.cluster.connstr import parse_connection_string
from cbframe.cluster.srv import SrvRecord, ask_dns, srv_name, with_srv_seeds

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

    target = with_srv_seeds(parse_connection_string(text), 2.5, lookup)
    assert asked == [("_couchbase._tcp.db", 2.5)]
    return str(target)


def test_the_order_of_the_records() -> None:
    records = [
        SrvRecord(2, 100, "c.", 11210),
        SrvRecord(1, 1, "b.", 12000),
        SrvRecord(1, 9, "a.", 11210),
        SrvRecord(1, 1, "b.", 12000),
    ]
    assert found("couchbase://db/travel", records) == "couchbase://a:11210,b:12000,c:11210/travel"


@pytest.mark.parametrize("records", [[], [SrvRecord(0, 0, ".", 0)]], ids=["none", "no such service"])
def test_nothing_is_named(records: list[SrvRecord]) -> None:
    assert found("couchbase://db", records) == "couchbase://db"


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *arguments: Any) -> Any:
        if name.startswith("dns"):
            raise ImportError(name)
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", refuse)
    assert ask_dns("_couchbase._tcp.db", 1) == []


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


def test_a_real_server(answers: dict[str, list[str]]) -> None:
    answers["_couchbases._tcp.db.example.com"] = [
        "20 5 11207 late.example.com.",
        "10 5 12007 n1.example.com.",
    ]
    target = with_srv_seeds(parse_connection_string("couchbases://db.example.com/b"), LONG)
    assert str(target) == "couchbases://n1.example.com:12007,late.example.com:11207/b"


@pytest.mark.parametrize("records", [None, []], ids=["no such name", "no such records"])
def test_a_real_server_that_has_none(answers: dict[str, list[str]], records: list[str] | None) -> None:
    if records is not None:
        answers["_couchbase._tcp.db.example.com"] = records
    target = parse_connection_string("couchbase://db.example.com")
    assert with_srv_seeds(target, LONG) == target


def test_a_server_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        resolver = dns.resolver.Resolver(configure=False)
        resolver.nameservers, resolver.port = ["127.0.0.1"], silent.getsockname()[1]
        monkeypatch.setattr(dns.resolver, "default_resolver", resolver)
        target = parse_connection_string("couchbase://db.example.com")
        assert with_srv_seeds(target, 0.1) == target
