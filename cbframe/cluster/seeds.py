"""The seeds of a cluster: what DNS names in place of a host (RFC 2782), and the pass over them.

Where a name has no SRV records, the name itself is the seed.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias, TypeVar

from cbframe.cluster.connection_string import ConnectionString, HostPort, is_capella, strip_userinfo
from cbframe.errors import (
    AllServerURLsConnectBucketError,
    BucketNotFoundError,
    CbframeError,
    ConfigurationError,
    ConnectError,
    ProtocolError,
)

_T = TypeVar("_T")
_LOG = logging.getLogger("cbframe.cluster")
NO_RECORDS = "no SRV records"
NO_NAME = "no such name"


class SrvRecord(NamedTuple):
    """One target; those of the lowest priority come first, among these the heaviest."""

    priority: int
    weight: int
    target: str
    port: int


class NoAnswerError(Exception):
    """DNS names no records; the text says what it answered."""


Lookup: TypeAlias = Callable[[str, float], Sequence[SrvRecord]]
"""The records of a name, with a timeout in seconds; NoAnswerError says why there are none."""


@dataclass(frozen=True, slots=True, eq=False)
class Zone:
    """A domain whose names this process knows by itself, without DNS: that of a simulated cluster."""

    domain: str  # all names below it, and no others, are looked up here
    services: dict[str, Sequence[SrvRecord]]  # SRV records by name
    hosts: dict[str, str]  # addresses by name
    authority: str  # the certificate authority of the domain's hosts, as PEM text

    def lookup(self, name: str, _timeout: float) -> Sequence[SrvRecord]:
        if name not in self.services:
            raise NoAnswerError(NO_NAME)
        return self.services[name]


ZONES: list[Zone] = []
"""Those that are in force; empty but for simulations."""


def zone_of(host: str) -> Zone | None:
    """The zone that knows a host."""
    return next((zone for zone in ZONES if f".{host}".lower().endswith(f".{zone.domain}")), None)


def srv_name(target: ConnectionString) -> str | None:
    """The name whose SRV records stand for the seeds; None where the seeds are as given.

    It takes a scheme of the data service, and a single host name without a port.
    """
    if target.bootstrap != "kv" or len(target.hosts) != 1:
        return None
    if target.is_off("enable_dns_srv"):
        return None
    host = target.hosts[0]
    if host.port is not None or host.host.lower() == "localhost" or _is_address(host.host):
        return None
    service = f"_{target.scheme}._tcp."
    return f"{service}{host.host.removeprefix(service)}"


class Seeds:
    """The seeds of a cluster: those of its connection string, or those that DNS names in their place."""

    def __init__(self, given: ConnectionString, lookup: Lookup | None = None) -> None:
        self._given = given
        self._lookup = lookup
        self.name = srv_name(given)
        """What DNS is asked for; None where it is not."""
        self.target = given
        """The connection string with the seeds that DNS named last."""
        self._said = ""

    @property
    def named(self) -> bool:
        """Whether DNS has named seeds."""
        return self.target is not self._given

    def ask(self, timeout: float) -> bool:
        """Ask DNS, for `timeout` seconds at most; whether the seeds are others than before.

        Those that were named before stay where it names none now.
        """
        if self.name is None:
            return False
        host = self._given.hosts[0].host
        zone = zone_of(host)
        lookup = self._lookup or (ask_dns if zone is None else zone.lookup)
        try:
            records = lookup(self.name, timeout)
        except NoAnswerError as exc:
            records, self._said = [], str(exc)
        else:
            self._said = NO_RECORDS
        # A single dot says that there is no such service. Passwords for Capella do not go elsewhere: a name
        # server is trusted for less than the domain in the connection string.
        hosts = [
            HostPort(r.target.rstrip("."), r.port)
            for r in sorted(records, key=_preference)
            if r.target != "." and r.port and (is_capella(r.target) or not is_capella(host))
        ]
        before = self.target.hosts
        if hosts:
            self.target = replace(self._given, hosts=tuple(dict.fromkeys(hosts)))
        _LOG.debug("%s names %s", self.name, ", ".join(map(str, hosts)) or f"no seeds: {self._said}")
        return self.target.hosts != before

    def explain(self, error: ConnectError) -> None:
        """Name both questions in the error of a host that has no address, if SRV was asked, too."""
        if self.name is None or self.named or not error.unresolved:
            return
        host = self._given.hosts[0].host
        error.message = (
            f"the name {host!r} cannot be resolved: {self._said} for SRV of {self.name}, "
            f"and {error.unresolved} for A and AAAA of {host}"
        )
        error.args = (error.message,)


def ask_dns(name: str, timeout: float) -> Sequence[SrvRecord]:
    """The SRV records of a name; of a relative one also with the suffixes of the resolver's search list."""
    import dns.exception  # noqa: PLC0415 - slow to import
    import dns.resolver  # noqa: PLC0415

    try:
        answer = dns.resolver.resolve(name, "SRV", lifetime=timeout, search=not is_capella(name))
    except dns.resolver.NXDOMAIN:
        said = NO_NAME
    except dns.resolver.NoAnswer:
        said = NO_RECORDS
    except dns.exception.Timeout:
        said = f"no answer within {timeout:g} s"
    except dns.resolver.NoResolverConfiguration:
        said = "this machine has no name server"
    except dns.exception.DNSException as exc:
        said = f"the name servers failed ({type(exc).__name__})"
    else:
        return [SrvRecord(r.priority, r.weight, r.target.to_text(), r.port) for r in answer]
    raise NoAnswerError(said)


def _preference(record: SrvRecord) -> tuple[int, int]:
    return record.priority, -record.weight


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def first_success(seeds: Sequence[str], attempt: Callable[[str], _T]) -> _T:
    """The result of `attempt` for the first of `seeds` that does not fail."""
    if not seeds:
        raise ConfigurationError("missing at least 1 server address", hint='pass "couchbase://host"')
    causes: list[tuple[str, CbframeError]] = []
    for seed in seeds:
        try:
            return attempt(seed)
        except CbframeError as error:
            if error.permanent and (len(seeds) == 1 or not _is_of_one_node(error)):
                raise
            inner = error.__cause__
            if (
                isinstance(error, AllServerURLsConnectBucketError)
                and isinstance(inner, CbframeError)
                and error.server_urls == [strip_userinfo(seed)]
            ):
                error = inner  # it says the same of the same seed
            causes.append((strip_userinfo(seed), error))
    last = causes[-1][1]
    if all(isinstance(error, BucketNotFoundError) for _, error in causes):
        raise last
    reasons = "; ".join(f"{seed}: {strip_userinfo(error.message)}" for seed, error in causes)
    failure = AllServerURLsConnectBucketError(
        [seed for seed, _ in causes],
        f"could not connect to the bucket through any seed: {reasons}",
        hint=last.hint,
    )
    failure.permanent = all(error.permanent for _, error in causes)
    raise failure from last


def _is_of_one_node(error: CbframeError) -> bool:
    # Not the subclasses: those are about the user, the bucket and the cluster.
    return isinstance(error, ProtocolError) or type(error) is ConnectError
