"""Seeds by DNS: a name that stands for a cluster, by its SRV records (RFC 2782).

Asked with dnspython where that is installed (``pip install 'cbframe[dns]'``); without it, and where a
name has no such records, the name itself is the seed.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeAlias

from cbframe.cluster.address import HostPort
from cbframe.cluster.connstr import ConnectionString

_LOG = logging.getLogger("cbframe.cluster")
_NO = ("false", "off", "no", "0")


class SrvRecord(NamedTuple):
    """One target; those of the lowest priority come first, among these the heaviest."""

    priority: int
    weight: int
    target: str
    port: int


Lookup: TypeAlias = Callable[[str, float], Sequence[SrvRecord]]
"""The records of a name, asked for within so many seconds; none where there are none."""


def srv_name(target: ConnectionString) -> str | None:
    """The name whose records stand for the seeds; None where they are what they are.

    Asked for is with a scheme of the data service, and a single name without a port.
    """
    if target.bootstrap != "kv" or len(target.hosts) != 1:
        return None
    if (target.option("enable_dns_srv") or "true").lower() in _NO:
        return None
    host = target.hosts[0]
    if host.port is not None or host.host.lower() == "localhost" or _is_address(host.host):
        return None
    return f"_{target.scheme}._tcp.{host.host}"


def with_srv_seeds(
    target: ConnectionString, timeout: float, lookup: Lookup | None = None
) -> ConnectionString:
    """The same with the seeds that DNS names; as it is where it names none.

    Parameters
    ----------
    target
        Where the cluster is.
    timeout
        Seconds for the question.
    lookup
        Asks; dnspython by default.
    """
    name = srv_name(target)
    if name is None:
        return target
    records = (lookup or ask_dns)(name, timeout)
    # A single dot says that there is no such service.
    hosts = [HostPort(r.target.rstrip("."), r.port) for r in sorted(records, key=_first) if r.target != "."]
    if not hosts:
        return target
    _LOG.debug("%s names the seeds %s", name, ", ".join(map(str, hosts)))
    return replace(target, hosts=tuple(dict.fromkeys(hosts)))


def ask_dns(name: str, timeout: float) -> list[SrvRecord]:
    """What DNS says; nothing where dnspython is missing, or DNS cannot be asked."""
    try:
        import dns.exception  # noqa: PLC0415 - optional
        import dns.resolver  # noqa: PLC0415
    except ImportError:
        _LOG.debug("without dnspython, %s is not asked for", name)
        return []
    try:
        answer = dns.resolver.resolve(name, "SRV", lifetime=timeout, search=False)
    except dns.exception.DNSException as exc:
        _LOG.debug("%s: %s", name, type(exc).__name__)
        return []
    return [SrvRecord(r.priority, r.weight, r.target.to_text(), r.port) for r in answer]


def _first(record: SrvRecord) -> tuple[int, int]:
    return record.priority, -record.weight


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
