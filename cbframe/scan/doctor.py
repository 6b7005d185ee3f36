"""Why a connection fails: every step from the name to the first change, one after the other."""

from __future__ import annotations

import contextlib
import json
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from time import monotonic
from typing import Any, Literal

from cbframe import core
from cbframe.cluster.auth import Authenticator, as_authenticator
from cbframe.cluster.cluster_map import ClusterMap, parse_bucket_config
from cbframe.cluster.connection_string import ConnectionString, HostPort, Seeds, parse_connection_string
from cbframe.cluster.tls import (
    AUTHORITY_AHEAD,
    Peer,
    TLSContext,
    TLSLike,
    capella_root,
    client_context,
    date_of,
    make_tls_context,
    successor_of_capellas_root,
)
from cbframe.dcp import messages
from cbframe.dcp.maps import make_login
from cbframe.dcp.probe import BUCKET, DCP, LOGIN, ROLE, SERVICE, Probe, first_marker, out_of_time
from cbframe.dcp.transport import Waker, at_once, split_address
from cbframe.errors import (
    AccessError,
    AuthFailError,
    BucketNotFoundError,
    CbframeError,
    ConfigurationError,
    ConnectError,
    ProtocolError,
)
from cbframe.options import BucketDataSourceOptions
from cbframe.public import Connectable, ServerURLs, as_html
from cbframe.scan.names import Names
from cbframe.scan.spec import ScanSpec

Status = Literal["ok", "failed", "skipped"]
ARGUMENTS, DNS, TCP, TLS, NODES, STREAM = "arguments", "DNS", "TCP", "TLS", "nodes", "stream"
STEPS = (ARGUMENTS, DNS, TCP, TLS, SERVICE, LOGIN, BUCKET, NODES, ROLE, DCP, STREAM)
"""Their names, in order."""
_EACH = 5.0
"""Seconds for one turn: to connect, to make TLS, or for one answer."""
_SOON = 30 * 86400.0
"""Seconds before the end of a node's certificate at which it is warned of."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a diagnosis."""

    name: str  # one of STEPS
    status: Status  # `"ok"`, `"failed"` or `"skipped"`
    detail: str  # what was found, or why it failed
    remedy: str | None = None  # what to do about it


@dataclass(frozen=True)
class Diagnosis:
    """What :func:`cbframe.doctor` has found. Renders as a table, in a terminal and in a notebook.

    Attributes
    ----------
    target
        What was looked at.
    steps
        In their order.
    seconds
        How long it took.
    core
        ``"rust"`` or ``"python"``: which one reads would run on.
    """

    target: str
    steps: tuple[Step, ...]
    seconds: float = field(compare=False)
    core: str = core.NAME

    @property
    def ok(self) -> bool:
        """Whether no step has failed."""
        return self.failed is None

    @property
    def failed(self) -> Step | None:
        """The first step that has failed; the others may follow from it."""
        return next((step for step in self.steps if step.status == "failed"), None)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "target": self.target,
            "ok": self.ok,
            "core": self.core,
            "seconds": round(self.seconds, 3),
            "steps": [
                {"step": each.name, "status": each.status, "detail": each.detail, "remedy": each.remedy}
                for each in self.steps
            ],
        }

    def _title(self) -> str:
        failed = self.failed
        verdict = "everything is well" if failed is None else f"the step {failed.name!r} has failed"
        return f"{self.target}: {verdict}"

    def _rows(self) -> list[tuple[str, str, str, str]]:
        """Name, status, what was found and a remedy of each step, and of the core last."""
        what, remedy = "the compiled core reads", ""
        if self.core != "rust":
            what, remedy = "the Python reference reads: the results are the same, and it is slower", core.HINT
        steps = [(each.name, each.status, each.detail, each.remedy or "") for each in self.steps]
        return [*steps, ("core", "", what, remedy)]

    def __str__(self) -> str:
        lines = [self._title()]
        for name, status, detail, remedy in self._rows():
            lines += _wrapped(f"  {status:<8} {name:<10}", detail)
            if remedy:
                lines += _wrapped(" " * 18 + "-> ", remedy)
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return as_html(self._title(), ("step", "status", "what", "remedy"), self._rows())


def _wrapped(lead: str, text: str) -> list[str]:
    return textwrap.wrap(
        text, 100, initial_indent=lead, subsequent_indent=" " * len(lead), break_on_hyphens=False
    ) or [lead.rstrip()]


def doctor(
    conn: ServerURLs | Connectable,
    bucket: str | None = None,
    *,
    auth: Any = None,
    tls: TLSLike = None,
    network: str = "auto",
    scope: str | None = None,
    collections: str | Iterable[str] | None = None,
    proxies: Mapping[str, str] | None = None,
    allow_plain: bool = False,
    timeout: float = 30.0,
) -> Diagnosis:
    """Find out why a connection fails, or that it does not. Never raises.

    Looks at one thing after the other: the arguments; names and ports of the seeds; TLS, with the
    certificate's names and dates, and the authority that vouches for it; whether the right service
    answers; user and password; the bucket; the data service of every node, as far as it can be reached
    from here; the role; DCP; and whether changes come. What depends on something that failed is skipped.

    Parameters
    ----------
    conn, bucket, auth, tls, network, scope, collections
        As for :func:`cbframe.scan_bucket`.
    proxies
        As of :class:`~cbframe.BucketDataSourceOptions`: for ``http://`` and ``https://`` seeds, which are
        reached through the proxy then; data nodes are looked at without.
    allow_plain
        As of :class:`~cbframe.BucketDataSourceOptions`.
    timeout
        Seconds for all of it; at most five for each turn: to connect, to make TLS, or for one answer. A
        healthy cluster takes about 14 round trips, with TLS 20.

    Returns
    -------
    Diagnosis
        A table: show it, print it, or ask ``.ok``, ``.failed`` and ``.to_dict()``.
    """
    began = monotonic()
    examination = _Examination(timeout, began)
    try:
        options = BucketDataSourceOptions(proxies=proxies, allow_plain=allow_plain)
        target = ScanSpec.of(
            conn,
            bucket,
            auth=auth,
            tls=tls,
            network=network,
            scope=scope,
            collections=collections,
            timeout=timeout,
            options=options,
        )
        parsed = parse_connection_string(target.server_urls).on_network(network)
        authenticator = as_authenticator(target.auth)
        context = client_context(target.tls, authenticator, parsed)
    except (CbframeError, UserWarning) as exc:  # warnings may be errors
        examination.failed(ARGUMENTS, exc if isinstance(exc, CbframeError) else ConfigurationError(str(exc)))
        title = _shown(conn)
    else:
        examination.ok(ARGUMENTS, f"bucket {target.bucket!r} at {parsed}", *parsed.remarks())
        title = f"bucket {target.bucket!r} at {parsed}"
        try:
            examination.run(target, parsed, authenticator, context)
        except _StopError:
            pass
        except Exception as exc:  # noqa: BLE001 - whatever it is, it is what was to be found
            examination.stopped_by(exc)
    return Diagnosis(title, examination.complete(), monotonic() - began)


def _shown(conn: object) -> str:
    """A connection string that may be wrong, without what may be a password in it."""
    if isinstance(conn, str):
        with contextlib.suppress(CbframeError):
            return str(parse_connection_string(conn))
    return "the connection"


class _StopError(Exception):
    """A step has failed on which all others depend."""


class _Examination:
    """Takes the steps, and notes what comes of them."""

    def __init__(self, timeout: float, began: float) -> None:
        self._until = began + timeout
        self._steps: dict[str, Step] = {}

    def left(self) -> float:
        return self._until - monotonic()

    def ok(self, name: str, detail: str, *remedies: str) -> None:
        self._steps[name] = Step(name, "ok", detail, "; ".join(dict.fromkeys(remedies)) or None)

    def skipped(self, name: str, detail: str) -> None:
        self._steps[name] = Step(name, "skipped", detail)

    def failed(self, name: str, error: CbframeError, remedy: str | None = None) -> None:
        place = f" [{error.node}]" if error.node else ""
        self._steps[name] = Step(name, "failed", f"{error.message}{place}", remedy or error.hint)

    def stopped_by(self, exc: Exception) -> None:
        """The first step that has no result fails with this."""
        error = exc if isinstance(exc, CbframeError) else messages.unexpected(exc, "in this step")
        self.failed(next((name for name in STEPS if name not in self._steps), STREAM), error)

    def complete(self) -> tuple[Step, ...]:
        """All steps; those that were not taken are skipped."""
        failed = next((step.name for step in self._steps.values() if step.status == "failed"), None)
        because = "" if failed is None else f"after {failed} has failed"
        return tuple(self._steps.get(name) or Step(name, "skipped", because) for name in STEPS)

    def run(
        self,
        target: ScanSpec,
        parsed: ConnectionString,
        authenticator: Authenticator,
        context: TLSContext | None,
    ) -> None:
        self._target, self._parsed = target, parsed
        self._authenticator, self._context = authenticator, context
        self._login = make_login(
            parsed, authenticator, target.bucket, context, allow_plain=target.options.allow_plain
        )
        self._probe = Probe(context, _EACH, self.left)
        seeds = self._behind_proxy() or self._reach()
        config, origin = self._ask_manager(seeds) if parsed.bootstrap == "rest" else self._ask_node(seeds)
        found = self._read_map(config, origin)
        self._look_at_nodes(found)
        if not found.unowned():
            self._stream()

    # -- the seeds

    def _behind_proxy(self) -> list[str]:
        """The seeds, where a proxy is asked for them: none of them is looked at from here."""
        parsed, proxies = self._parsed, self._target.options.proxies
        if parsed.bootstrap != "rest" or proxies is None:
            return []
        from cbframe.cluster.rest import proxy_address, proxy_for  # noqa: PLC0415 - requests is slow to import

        proxy = proxy_for(parsed.scheme, proxies)
        if proxy is None:
            return []
        for name in (DNS, TCP, TLS):
            self.skipped(name, f"the proxy {proxy_address(proxy)} is asked")
        return [str(seed) for seed in parsed.seeds()]

    def _reach(self) -> list[str]:
        """The seeds that can be reached, as far as TLS."""
        parsed, probe = self._parsed, self._probe
        known = Seeds(parsed)
        known.ask(min(_EACH, max(0.1, self.left())))
        seeds = [str(seed) for seed in known.target.seeds()]
        named = f"SRV records name {len(seeds)} seed{'s' * (len(seeds) > 1)}; " if known.named else ""

        def resolve(seed: str, waker: Waker) -> str:
            try:
                found = probe.addresses(seed, waker)
            except ConnectError as exc:
                known.explain(exc)
                raise
            return f"{seed} is {', '.join(found)}"

        def connect(seed: str, waker: Waker) -> str:
            probe.connect(seed, waker)
            return f"{seed} is open"

        seeds = self._each(DNS, seeds, resolve, named)
        seeds = self._each(TCP, seeds, connect)
        if self._context is None:
            self.skipped(TLS, f"{parsed.scheme}:// is not encrypted")
            return seeds
        remedies: list[str] = []

        def secure(seed: str, waker: Waker) -> str:
            peer = probe.secure(seed, waker)
            if not peer.authority and parsed.capella:
                with contextlib.suppress(CbframeError):  # one authority alone: it vouches, or another has
                    peer = Probe(make_tls_context(capella_root()), _EACH, self.left).secure(seed, waker)
            remedies.extend(_endings(peer, time.time()))
            return _certificate(seed, peer)

        seeds = self._each(TLS, seeds, secure)
        self.ok(TLS, self._steps[TLS].detail, *remedies)
        return seeds

    def _each(
        self, name: str, seeds: list[str], look: Callable[[str, Waker], str], before: str = ""
    ) -> list[str]:
        """Those for which it works, all at the same time; one is enough."""
        good: dict[str, str] = {}
        bad: list[CbframeError] = []
        for seed, outcome in zip(seeds, at_once([partial(look, seed) for seed in seeds]), strict=True):
            if isinstance(outcome, CbframeError):
                outcome.node = outcome.node or seed
                bad.append(outcome)
            else:
                good[seed] = outcome
        if not good:
            texts = [f"{exc.message} [{exc.node}]" for exc in bad]
            self._steps[name] = Step(name, "failed", "; ".join(texts), bad[-1].hint)
            raise _StopError
        texts = [*good.values(), *(f"{exc.node}: {exc.message}" for exc in bad)]
        self.ok(name, before + "; ".join(texts))
        return list(good)

    def _ask_node(self, seeds: list[str]) -> tuple[Mapping[str, Any], HostPort]:
        """The cluster map, from a data node."""
        login = self._login
        for seed in seeds:
            outcome = self._probe.fetch_config(seed, login, self._authenticator, self._parsed.network)
            if outcome.error is None or outcome.stage not in ("", SERVICE):
                break
        stages = (SERVICE, LOGIN, BUCKET)
        by = f"by {outcome.mechanism}" + "; SCRAM is refused" * (outcome.mechanism == "PLAIN")
        texts = {
            SERVICE: f"{seed} is a data node",
            LOGIN: f"user {login.user} is known, {by}"
            if login.username
            else "the client certificate is accepted",
        }
        failed = len(stages) if outcome.error is None else stages.index(outcome.stage or SERVICE)
        for name in stages[: min(failed, 2)]:
            self.ok(name, texts[name])
        if outcome.error is not None:
            self.failed(stages[failed], outcome.error)
            raise _StopError
        try:
            config = json.loads(outcome.answer)
        except (ValueError, RecursionError):
            config = None
        if not isinstance(config, dict):
            self.failed(BUCKET, ProtocolError("the cluster map is no JSON object", node=seed))
            raise _StopError
        return config, HostPort(*split_address(seed))

    def _ask_manager(self, seeds: list[str]) -> tuple[Mapping[str, Any], HostPort]:
        """The cluster map, from a cluster manager."""
        from cbframe.cluster.rest import RestClient  # noqa: PLC0415 - requests is slow to import

        client = RestClient(
            [f"{self._parsed.scheme}://{seed}" for seed in seeds],
            self._authenticator,
            timeout=max(0.1, min(_EACH, self.left())),
            tls_context=self._context,
            proxies=self._target.options.proxies,
        )
        name = SERVICE
        try:
            try:
                client.node_services()
            except (AuthFailError, AccessError) as exc:
                self.ok(SERVICE, "the cluster manager answers")
                name = LOGIN if isinstance(exc, AuthFailError) else BUCKET
                raise
            self.ok(SERVICE, "the cluster manager answers")
            self.ok(LOGIN, "user and password are accepted")
            name = BUCKET
            return client.bucket_config(self._target.bucket)
        except CbframeError as exc:
            self.failed(name, exc)
            raise _StopError from exc

    # -- the cluster

    def _read_map(self, config: Mapping[str, Any], origin: HostPort) -> ClusterMap:
        network, tls = self._parsed.network, self._parsed.tls
        try:
            found = parse_bucket_config(config, origin=origin, network=network, tls=tls)
        except CbframeError as exc:
            self.failed(BUCKET, exc)
            raise _StopError from exc
        missing = len(found.unowned())
        texts = f"{found.vbuckets} vbuckets on {len(found.nodes)} nodes"
        if missing:
            self.failed(
                BUCKET,
                BucketNotFoundError(f"{texts}, and {missing} vbuckets have no node"),
                "bring the node that failed back, or fail it over",
            )
        else:
            self.ok(BUCKET, texts)
        return found

    def _look_at_nodes(self, found: ClusterMap) -> None:
        outcomes = self._probe.open_dcp(found.nodes, self._login)
        away = {
            node: each.error for node, each in outcomes.items() if each.error and each.stage in ("", SERVICE)
        }
        if away:
            error = messages.with_addresses(next(iter(away.values())), found)
            others = _other_networks(found, self._probe, list(away))
            error.message = f"{len(away)} of {len(outcomes)} nodes cannot be reached: {error.message}"
            self.failed(NODES, error, others or error.hint)
        else:
            where = "" if found.network == "default" else f", by their addresses on network {found.network!r}"
            self.ok(NODES, f"{', '.join(outcomes)} can be reached{where}")
        there = {node: each for node, each in outcomes.items() if node not in away}
        texts = {
            ROLE: f"user {self._login.user} may stream",
            DCP: f"opened on {len(there)} of {len(outcomes)} nodes",
        }
        for name, stages in ((ROLE, (LOGIN, BUCKET, ROLE)), (DCP, (DCP,))):
            wrong = next((each.error for each in there.values() if each.error and each.stage in stages), None)
            if wrong is not None:
                self.failed(name, wrong)
                raise _StopError
            if there:
                self.ok(name, texts[name])
        if away:
            raise _StopError

    def _stream(self) -> None:
        target, left = self._target, self.left()
        try:
            if left <= 0:
                raise out_of_time()
            names = Names(target, replace(target.options, connect_timeout=min(_EACH, left)))
            marker = first_marker(
                target.server_urls,
                target.bucket,
                target.auth,
                min(2 * _EACH, left),
                left,
                tls=target.tls,
                network=target.network,
                of=names.resolve_collections(),
            )
        except CbframeError as exc:
            self.failed(STREAM, exc)
            return
        if marker is None:
            self.ok(STREAM, "streams were granted; there are no documents")
        else:
            self.ok(STREAM, f"changes come: vbucket {marker[0]} up to seqno {marker[1]:,}")


def _certificate(seed: str, peer: Peer) -> str:
    text = f"{seed} speaks {peer.version}"
    if not peer.until:
        return text
    text += f"; its certificate holds until {date_of(peer.until)}"
    if peer.bundled:
        return (
            f"{text}; Capella's root certificate, which comes with cbframe ({peer.authority}), vouches for it"
        )
    by = f"; {peer.authority} vouches for it" if peer.authority else f", issued by {peer.issuer}"
    return text + by


def _endings(peer: Peer, now: float) -> Iterator[str]:
    """What to do about certificates that end before long."""
    if 0 < peer.until < now + _SOON:
        yield f"renew the node's certificate before {date_of(peer.until)}: nobody can connect after that"
    if 0 < peer.authority_until < now + AUTHORITY_AHEAD:
        if peer.bundled:
            yield successor_of_capellas_root(peer.authority_until)
        else:
            yield (
                f"give the successor of the authority {peer.authority}, too, in tls=: it ends on "
                f"{date_of(peer.authority_until)}"
            )


def _other_networks(found: ClusterMap, probe: Probe, away: list[str]) -> str | None:
    """What to do where nodes are on other networks, too: whether those can be reached is tried."""
    networks: dict[str, list[str]] = {}
    for node in away:
        for name, address in found.elsewhere[node].items():
            networks.setdefault(name, []).append(address)
    for name, addresses in networks.items():
        if any(at_once([partial(probe.connect, address) for address in addresses])):
            continue  # one of them has an error
        return f'give network="{name}": {", ".join(addresses)} can be reached from here'
    if networks:
        return f"the nodes are also on: {', '.join(networks)}; none of these can be reached from here, either"
    return None
