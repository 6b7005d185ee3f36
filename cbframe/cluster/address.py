"""Hosts and ports: reading them, writing them, and keeping user names out of what is shown."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from cbframe.errors import ConfigurationError

CAPELLA = "cloud.couchbase.com"
"""The domain of Couchbase's cloud."""
_LABEL = re.compile(r"[^\W]([\w-]{0,61}[\w])?")
_USERINFO = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)\S*@")


def strip_userinfo(text: str) -> str:
    """`text` without the ``user:password@`` of any URL in it.

    Greedy on purpose: a password may hold ``/`` or ``@`` that somebody forgot to escape.
    """
    return _USERINFO.sub(r"\1", text)


def is_capella(host: str) -> bool:
    """Whether a host is one of Couchbase's cloud."""
    return f".{host.removesuffix('.')}".lower().endswith(f".{CAPELLA}")


def bare_host(host: str) -> str:
    """`host` in lower case, without the brackets of an IPv6 address: the form to compare."""
    return host.removeprefix("[").removesuffix("]").lower()


def join_address(host: str, port: int) -> str:
    """``host:port``, with brackets around an IPv6 address."""
    host = host.removeprefix("[").removesuffix("]")
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split_address(address: str) -> tuple[str, int] | None:
    """Host (without brackets) and port of ``host:port``; None if it is no such thing."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not _is_port(port):
        return None
    if host.startswith("[") != host.endswith("]") or (":" in host and not host.startswith("[")):
        return None
    return host.removeprefix("[").removesuffix("]"), int(port)


@dataclass(frozen=True, slots=True)
class HostPort:
    """A host, without brackets, and the port if one was given."""

    host: str
    port: int | None = None

    def with_port(self, default: int) -> HostPort:
        """The same host, at `default` if it had no port."""
        return self if self.port is not None else HostPort(self.host, default)

    def __str__(self) -> str:
        if self.port is not None:
            return join_address(self.host, self.port)
        return f"[{self.host}]" if ":" in self.host else self.host

    @classmethod
    def parse(cls, text: str, *, quote: bool = True) -> HostPort:
        """Read ``host``, ``host:port``, ``[v6]`` or ``[v6]:port``."""
        shown = f" {text!r}" if quote else ""
        if text.startswith("["):
            host, bracket, rest = text[1:].partition("]")
            if not bracket or not _is_ipv6(host) or (rest and not rest.startswith(":")):
                raise ConfigurationError(
                    f"not an IPv6 address{shown}", hint="write [2001:db8::1] or [2001:db8::1]:11210"
                )
            port = rest[1:] if rest else None
        elif text.count(":") > 1:
            raise ConfigurationError(
                f"more than one colon in the host{shown}", hint="put an IPv6 address in brackets: [::1]:11210"
            )
        else:
            host, colon, port_text = text.partition(":")
            port = port_text if colon else None
            if not _is_name(host):
                raise ConfigurationError(
                    f"not a host name{shown}" if host else "a host name is empty",
                    hint="put the name of your cluster in place of <…>"
                    if "<" in host
                    else "write couchbase://host1,host2/bucket or http://host:8091",
                )
        if port is None:
            return cls(host)
        if not _is_port(port):
            raise ConfigurationError(
                f"not a port{f' {port!r}' if quote else ''}", hint="ports are 1 to 65535"
            )
        return cls(host, int(port))


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 5 and 0 < int(text) <= 0xFFFF


def _is_ipv6(host: str) -> bool:
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True


def _is_name(host: str) -> bool:
    # Checked here because an empty label fails much later otherwise, inside the resolver, as a
    # UnicodeError that no HTTP library turns into one of its own.
    labels = host.removesuffix(".").split(".")
    return len(host) <= 253 and all(_LABEL.fullmatch(label) for label in labels)
