"""Connection strings: ``couchbase://h1,h2/bucket?network=…`` and the ``http://h:8091`` seeds."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal
from urllib.parse import unquote

from cbframe.cluster.address import CAPELLA, HostPort, is_capella
from cbframe.cluster.auth import PasswordAuthenticator
from cbframe.cluster.string_options import checked, remarks, with_options
from cbframe.errors import ConfigurationError
from cbframe.options import BucketDataSourceOptions

__all__ = ["ConnectionString", "HostPort", "parse_connection_string"]

_HINT = "write couchbase://host1,host2/bucket, couchbases://host/bucket or http://host:8091"
_PORTS = {"couchbase": 11210, "couchbases": 11207, "http": 8091, "https": 18091}
_KV = ("couchbase", "couchbases")
_ENCRYPTED = ("couchbases", "https")
_REST_PORTS = (8091, 18091)
_KV_PORTS = (11210, 11207)
_NEXT_URL = re.compile(r",(?=\s*[A-Za-z][A-Za-z0-9+.-]*://)")
_BUCKET = re.compile(r"[A-Za-z0-9_.%-]{1,100}")


@dataclass(frozen=True, slots=True, repr=False)
class ConnectionString:
    """Where a cluster is, and how to begin with it."""

    scheme: str  # `couchbase`, `couchbases`, `http` or `https`
    hosts: tuple[HostPort, ...]  # as given; seeds fills in the ports
    bucket: str | None = None  # name from the path, if there was one
    params: tuple[tuple[str, str], ...] = ()
    credentials: PasswordAuthenticator | None = field(default=None)

    @property
    def tls(self) -> bool:
        return self.scheme in _ENCRYPTED

    @property
    def capella(self) -> bool:
        """Whether all hosts are in Couchbase's cloud."""
        return all(is_capella(each.host) for each in self.hosts)

    @property
    def bootstrap(self) -> Literal["kv", "rest"]:
        """Which service the hosts name: the data service, or the cluster manager."""
        return "kv" if self.scheme in _KV else "rest"

    @property
    def network(self) -> str:
        return self.option("network") or "auto"

    def on_network(self, network: str) -> ConnectionString:
        """The same on another network; ``auto`` leaves the choice to the ``network`` option."""
        # The types may lie: this comes from notebooks.
        name: object = network
        if not isinstance(name, str) or not name:
            raise ConfigurationError(
                f"network={name!r} names no network", hint='"auto", "default" or a name such as "external"'
            )
        return self if name == "auto" else replace(self, params=(*self.params, ("network", name)))

    def option(self, name: str) -> str | None:
        """The value of an option; the last one if it is given twice."""
        return dict(self.params).get(name)

    def with_options(self, options: BucketDataSourceOptions) -> BucketDataSourceOptions:
        """The options of a source, and what the string says where they are at their defaults."""
        return with_options(options, dict(self.params))

    def remarks(self) -> list[str]:
        """What there is to say of options that are not known."""
        return remarks(dict(self.params), quote=self.credentials is None)

    def seeds(self) -> tuple[HostPort, ...]:
        """The hosts, those without a port at the port of the scheme."""
        return tuple(host.with_port(_PORTS[self.scheme]) for host in self.hosts)

    def rest_urls(self) -> tuple[str, ...]:
        """Base URLs of the cluster manager; none for the data service's schemes."""
        return () if self.bootstrap == "kv" else self.urls()

    def urls(self) -> tuple[str, ...]:
        """Each seed as a URL of its own, without credentials."""
        return tuple(f"{self.scheme}://{seed}" for seed in self.seeds())

    def __str__(self) -> str:
        """The string again, without credentials and with the names only of unknown options."""
        path = f"/{self.bucket}" if self.bucket else ""
        # Options may hold anything, a key's passphrase too.
        shown = [f"{name}={value if name == 'network' else '…'}" for name, value in self.params]
        query = f"?{'&'.join(shown)}" if shown else ""
        return f"{self.scheme}://{','.join(map(str, self.hosts))}{path}{query}"

    def __repr__(self) -> str:
        return f"ConnectionString({str(self)!r})"


def parse_connection_string(target: str | Sequence[str]) -> ConnectionString:
    """Read a connection string, or the list of seed URLs of the reference."""
    given = [target] if isinstance(target, str) else list(target)
    if not all(isinstance(part, str) for part in given):
        raise ConfigurationError("a connection string is not a string", hint=_HINT)
    pieces = [piece.strip() for part in given for piece in _NEXT_URL.split(part)]
    if not any(pieces):
        raise ConfigurationError("the connection string is empty", hint=_HINT)
    parsed = [_parse_piece(piece) for piece in pieces]
    schemes = {piece.scheme for piece in parsed}
    if len(schemes) > 1:
        raise ConfigurationError(
            f"seeds mix the schemes {' and '.join(sorted(schemes))}", hint="use one scheme"
        )
    buckets = {piece.bucket for piece in parsed if piece.bucket is not None}
    if len(buckets) > 1:
        raise ConfigurationError(
            f"seeds name the buckets {' and '.join(sorted(buckets))}", hint="name one bucket"
        )
    return ConnectionString(
        parsed[0].scheme,
        tuple(dict.fromkeys(host for piece in parsed for host in piece.hosts)),
        next(iter(buckets), None),
        tuple(dict.fromkeys(param for piece in parsed for param in piece.params)),
        _common_credentials([piece.credentials for piece in parsed]),
    )


def _parse_piece(text: str) -> ConnectionString:
    """One URL, or bare hosts."""
    # A password with an unescaped "/", "," or "?" moves the borders of all parts, so that a piece
    # of it may end up anywhere. Where there is an "@", errors quote nothing.
    quote = "@" not in text
    scheme, separator, rest = text.partition("://")
    if not separator:
        scheme, rest = "couchbase", text
    scheme = scheme.lower()
    if scheme == "couchbase2":
        raise ConfigurationError(
            "couchbase2:// is the protocol of the SDKs' gateway, which has no DCP",
            hint="use couchbase:// or couchbases://",
        )
    if scheme not in _PORTS:
        raise ConfigurationError(f"unknown scheme{f' {scheme!r}' if quote else ''}", hint=_HINT)
    rest, _, query = rest.partition("?")
    authority, _, path = rest.partition("/")
    credentials, addresses = _split_credentials(scheme, authority)
    hosts = tuple(HostPort.parse(address.strip(), quote=quote) for address in addresses)
    # No "+" for a space, as in forms: the path of a file may have one.
    pairs = [option.partition("=") for option in query.split("&") if option]
    params = tuple((unquote(name), unquote(value)) for name, _, value in pairs)
    found = ConnectionString(scheme, hosts, _bucket(scheme, path, quote=quote), params, credentials)
    _check_capella(found, quote=quote)
    for host in hosts:
        _check_port(scheme, host)
    return replace(found, params=checked(params, scheme, encrypted=found.tls, quote=quote))


def _split_credentials(scheme: str, authority: str) -> tuple[PasswordAuthenticator | None, list[str]]:
    found: list[PasswordAuthenticator | None] = []
    addresses: list[str] = []
    for part in authority.split(","):
        userinfo, at, address = part.rpartition("@")
        addresses.append(address)
        if not at:
            found.append(None)
            continue
        if scheme in _KV:
            raise ConfigurationError(
                f"{scheme}:// takes no user name or password", hint='pass them as auth=("user", "password")'
            )
        username, _, password = userinfo.partition(":")
        found.append(PasswordAuthenticator(unquote(username), unquote(password)))
    return _common_credentials(found), addresses


def _common_credentials(found: Sequence[PasswordAuthenticator | None]) -> PasswordAuthenticator | None:
    # http://user:password@h1,h2 speaks for both hosts. The other way round it may be a password
    # with a comma in it, and h1 its first half.
    if any(item not in (None, found[0]) for item in found):
        raise ConfigurationError(
            "the seeds have different user names or passwords",
            hint='pass auth=("user", "password") instead, or write a comma in a password as %2C',
        )
    return found[0]


def _check_capella(found: ConnectionString, *, quote: bool) -> None:
    """Refuse what cannot work with Couchbase's cloud: it has TLS only, and no cluster manager for clients."""
    if not any(is_capella(host.host) for host in found.hosts):
        return
    if any(host.host.lower() == CAPELLA for host in found.hosts):
        raise ConfigurationError(
            f"{CAPELLA} is the site of Couchbase's cloud, and no cluster",
            hint=f"copy the connection string from the cluster's Connect page: couchbases://cb.<id>.{CAPELLA}",
        )
    wrong_ports = {*_REST_PORTS, 11210}
    match found.scheme:
        case "couchbases" if not any(host.port in wrong_ports for host in found.hosts):
            return
        case "couchbases":
            what = "the data service of Capella is at port 11207, which need not be given"
        case "couchbase":
            what = "Capella takes connections with TLS only, and couchbase://, or no scheme, is without"
        case scheme:
            what = f"{scheme}:// is for the cluster manager, which Capella does not open to clients"
    hosts = tuple(HostPort(h.host) if h.port in {*wrong_ports, 11207} else h for h in found.hosts)
    # Nothing is repeated of a string that may hold a password.
    right = str(replace(found, scheme="couchbases", hosts=hosts))
    login = '; pass user and password as auth=("user", "password")'
    raise ConfigurationError(
        what, hint=f"write {right}" if quote else f"write couchbases://cb.<id>.{CAPELLA}/bucket{login}"
    )


def _check_port(scheme: str, host: HostPort) -> None:
    if scheme in _KV and host.port in _REST_PORTS:
        rest = "https" if host.port == 18091 else "http"
        raise ConfigurationError(
            f"port {host.port} is the cluster manager's, {scheme}:// is for the data service",
            hint=f"use {rest}://{host}, or leave the port out",
        )
    if scheme not in _KV and host.port in _KV_PORTS:
        kv = "couchbases" if host.port == 11207 else "couchbase"
        raise ConfigurationError(
            f"port {host.port} is the data service's, {scheme}:// is for the cluster manager",
            hint=f"use {kv}://{host}, or leave the port out",
        )


def _bucket(scheme: str, path: str, *, quote: bool) -> str | None:
    path = path.strip("/")
    # The reference's users paste the manager's entry point.
    if not path or (scheme not in _KV and path in ("pools", "pools/default")):
        return None
    name = unquote(path)
    if not _BUCKET.fullmatch(name):
        shown = f" {name!r}" if quote else ""
        raise ConfigurationError(
            f"not a bucket name{shown}",
            hint="letters, digits and _ . % - only; escape special characters in a password",
        )
    return name
