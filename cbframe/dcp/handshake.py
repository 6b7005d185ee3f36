"""From a fresh socket to a usable connection, as generators that never touch the socket.

A generator yields requests, which are sent together, and is sent the answers, one at a time. Requests that do
not need each other's answers go out together: on a connection to another continent every round trip is felt.
Who runs a generator does the IO: :class:`~cbframe.dcp.connection.DcpConnection` on a node's thread,
:class:`~cbframe.dcp.transport.Line` for single questions, :func:`upr_open` on a socket of the caller's.

The round trips of :func:`open_dcp`, with SCRAM: HELLO, SASL_LIST_MECHS, SASL_AUTH · SASL_STEP, SELECT_BUCKET,
GET_ALL_VB_SEQNOS, DCP_OPEN and all DCP_CONTROL · controls that were refused, with their next values.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from secrets import token_hex
from typing import Protocol, TypeAlias, TypeVar

from cbframe.errors import (
    PAUSED_HINT,
    ROLES_HINT,
    AccessError,
    AuthFailError,
    BucketNotFoundError,
    CbframeError,
    ConnectError,
    ProtocolError,
    ServerError,
    XAttrsNotSupportedError,
)
from cbframe.options import RANDOM_PART, BucketDataSourceOptions, check_connection_name
from cbframe.public import public
from cbframe.wire.constants import (
    HEADER_LENGTH,
    MAX_BODY_LENGTH,
    Feature,
    Opcode,
    OpenFlag,
    Status,
    VBucketStateCode,
)
from cbframe.wire.framing import Frame, parse_header
from cbframe.wire.messages import (
    DcpControl,
    DcpOpen,
    GetAllVBucketSeqnos,
    Hello,
    Plain,
    SaslAuth,
    SelectBucket,
    noop_reply,
    parse_features,
    parse_vbucket_seqnos,
)
from cbframe.wire.sasl import SCRAM_HASHES, ScramClient, choose_mechanism, plain_payload

T = TypeVar("T")
Steps: TypeAlias = Generator[Sequence[Frame], Frame, T]
"""Yields requests to send now, none to wait only, and is sent the next answer.

Nodes answer in the order in which they are asked (no client of ours asks for another one), so the answers
of requests that were yielded together come one after the other. STAT has several, the last without a key.
"""
Then: TypeAlias = Callable[[frozenset[int]], Sequence[Frame]]
"""Given the features that were granted: the requests to send together with the end of a login."""

AGENT = "cbframe"
_TEMPORARY = (
    Status.ENOMEM,
    Status.EBUSY,
    Status.ETMPFAIL,
    Status.NOT_INITIALIZED,
    Status.KEY_ENOENT,
    Status.CONFIG_ONLY,
    Status.NO_BUCKET,
    Status.WOULD_THROTTLE,
    Status.RATE_LIMITED_NETWORK_INGRESS,
    Status.RATE_LIMITED_NETWORK_EGRESS,
    Status.RATE_LIMITED_MAX_CONNECTIONS,
    Status.RATE_LIMITED_MAX_COMMANDS,
)
_NOT_YET = "the node or the bucket was started a moment ago, and is not ready yet: try again"
_NO_SEQNOS = "GET_ALL_VB_SEQNOS was refused"
_ABSENT = (Status.EINVAL, Status.NOT_SUPPORTED)
"""How a node answers to an option that it, or the bucket, does not have."""
_SKIPS = frozenset({Feature.SKIP_DELETIONS_IN_FIRST_BACKFILL, Feature.COLLECTIONS})
"""Without these a node refuses DCP_OPEN as a whole if it is asked to skip deletions."""
_RELEASE = re.compile(rb"([0-9]{1,4})\.([0-9]{1,4})")
_KEYS_ONLY_FROM_DISK = (7, 6)
_BEST = next(iter(SCRAM_HASHES))
_WRONG = (Status.AUTH_ERROR, Status.EACCESS)
_USER = "check user name and password; the user must exist on this cluster"
_DIRECTORY = (
    f"{_USER}. Users of a directory (LDAP) cannot log in by SCRAM: connect with TLS (couchbases://), or send "
    "the password in clear text with options=BucketDataSourceOptions(allow_plain=True)"
)
SEQNOS = GetAllVBucketSeqnos(VBucketStateCode.ACTIVE).frame()
"""Asks for the high seqno of each vbucket that is active on the node."""
_CONFIG = Plain(Opcode.GET_CLUSTER_CONFIG).frame()
_MANIFEST = Plain(Opcode.COLLECTIONS_GET_MANIFEST).frame()
TIME = Plain(Opcode.STAT)
"""Asks for statistics of the node itself; its time of day is one of some hundred lines."""
NUMBER = re.compile(rb"[0-9]{1,19}")
"""Statistics are text: anything else is no number."""
_YEAR_10000 = 253_402_300_800
_MOST_CONNECTIONS = 4
"""To a node, with ``connections_per_node="auto"``."""


# -- what is asked of a connection


def connection_name(prefix: str) -> str:
    """A name that no other connection has: the server closes the older of two with one name."""
    return f"{prefix}:{token_hex((RANDOM_PART - 1) // 2)}"


def connections_at_most(options: BucketDataSourceOptions) -> int:
    """Connections to a node, at most: all that is limited for each node is divided by this."""
    if options.connections_per_node == "auto":
        return 1 if options.max_bytes_per_sec is not None else _MOST_CONNECTIONS
    return options.connections_per_node


def rate_of(options: BucketDataSourceOptions) -> int | None:
    """Bytes a second of each connection; None for no limit."""
    rate = options.max_bytes_per_sec
    return None if rate is None else max(1, rate // connections_at_most(options))


def window_of(options: BucketDataSourceOptions) -> int:
    """Flow-control window of each connection in bytes; 0 for none."""
    window, rate = options.feed_buffer_size_bytes // connections_at_most(options), rate_of(options)
    if rate is not None:
        # What a node sends at first, unasked, must not spoil the average.
        window = min(window, rate // 10)
    return max(1, window) if options.feed_buffer_size_bytes else 0


@dataclass(frozen=True, slots=True)
class Control:
    """One DCP_CONTROL of a connection."""

    key: str
    values: Callable[[BucketDataSourceOptions], tuple[str, ...]]  # the best first; none to leave out
    needed: bool = False
    hint: str | None = None  # what to do where a needed one is refused
    feature: Feature | None = None  # it is asked for only where HELLO granted this


def _always(_: BucketDataSourceOptions) -> tuple[str, ...]:
    return ("true",)


def _if(wanted: object, *values: str) -> tuple[str, ...]:
    return values if wanted else ()


def _seconds(seconds: float) -> str:
    """Whole seconds where possible: old servers take no fractions."""
    return str(int(seconds)) if float(seconds).is_integer() else str(seconds)


CONTROLS: tuple[Control, ...] = (
    # Noop is a must with collections or xattrs, and old servers want it enabled before its interval.
    Control("enable_noop", _always, needed=True),
    Control("set_noop_interval", lambda options: (_seconds(options.noop_interval_secs),), needed=True),
    Control(
        "connection_buffer_size",
        lambda options: _if(options.feed_buffer_size_bytes, str(window_of(options))),
        needed=True,
    ),
    # Without these a node keeps a slow reader's place in memory.
    Control("supports_cursor_dropping", _always),
    Control("supports_cursor_dropping_vulcan", _always),
    # Has an effect with INCLUDE_DELETE_TIMES only, which numbered streams do without.
    Control("enable_expiry_opcode", lambda options: _if(options.stream_id is None, "true")),
    Control("send_stream_end_on_client_close_stream", _always),
    Control("v7_dcp_status_codes", _always),
    Control("max_marker_version", lambda _: ("2.2",), feature=Feature.COLLECTIONS),
    # Needs the feature; a node that does not compress sends what it has.
    Control("force_value_compression", lambda options: _if(options.compression == "force", "true")),
    Control("set_priority", lambda options: _if(options.priority, str(options.priority))),
    Control("backfill_order", lambda options: _if(options.backfill_order, str(options.backfill_order))),
    Control(
        "enable_out_of_order_snapshots",
        lambda options: _if(options.out_of_order, "true_with_seqno_advanced", "true"),
    ),
    Control("flatbuffers_system_events", lambda options: _if(options.flatbuffers_system_events, "true")),
    Control(
        "change_streams",
        lambda options: _if(options.change_streams, "true"),
        needed=True,
        hint="only Magma buckets of Enterprise Edition 7.2 and later keep a history",
    ),
    Control(
        "enable_stream_id",
        lambda options: _if(options.stream_id is not None, "true"),
        needed=True,
        hint="servers before 6.5 cannot number their streams: leave stream_id out",
    ),
)
"""Everything that a client may ask for, in the order in which it is sent."""
_Wish: TypeAlias = tuple[Control, tuple[str, ...]]
"""A control, and the values to ask for, the best first."""


# -- conversations


@dataclass(frozen=True, slots=True)
class Login:
    """Who connects, to which bucket. The password stays out of the repr.

    The user name is None where the client's certificate has said it already. ``allow_plain`` is True where
    the server may see the password: it is verified, or the caller says so.
    """

    username: str | None
    password: str = field(repr=False)
    bucket: str
    tls: bool
    allow_plain: bool
    nonce: Callable[[], str] = field(repr=False)
    external: set[str] = field(default_factory=set, repr=False, compare=False)
    """Users for whom SCRAM was refused, and PLAIN was not: the next connections begin with that."""

    @property
    def user(self) -> str:
        """For error messages."""
        return "of the client certificate" if self.username is None else repr(self.username)


@dataclass(frozen=True, slots=True)
class Session:
    """What a handshake reached."""

    features: frozenset[int]  # those that HELLO granted
    granted: Mapping[str, str]  # options of the connection that the node granted, with the value that it took
    seqnos: dict[int, int]  # high seqnos of the node's vbuckets

    @property
    def collections(self) -> bool:
        return Feature.COLLECTIONS in self.features


def authenticate(login: Login, *more: Feature, then: Then) -> Steps[tuple[frozenset[int], Frame]]:
    """Offer features, those of every connection and `more`, and authenticate."""
    wanted = (
        Feature.TCP_NODELAY,
        Feature.XATTR,
        Feature.XERROR,
        Feature.SELECT_BUCKET,
        Feature.JSON,
        Feature.COLLECTIONS,
        *more,
    )
    first = [Hello(AGENT, wanted).frame()]
    scram = None
    known = login.username in login.external
    if login.username is not None and not known:
        # The best mechanism, before the list is known: nodes without it refuse, and the list has others.
        scram = ScramClient(_BEST, login.username, login.password, login.nonce)
        first += [Plain(Opcode.SASL_LIST_MECHS).frame(), SaslAuth(_BEST, scram.first()).frame()]
    answer = yield first
    require(answer, "HELLO was refused")
    granted = frozenset(parse_features(answer.value)) & frozenset(int(code) for code in wanted)
    if scram is None:
        after = then(granted)
        if known:
            return granted, (yield from _by_plain(login, after, "PLAIN"))
        return granted, (yield after)
    return granted, (yield from _authenticate(login, scram, then(granted)))


def log_in(login: Login, *more: Feature, then: Then) -> Steps[frozenset[int]]:
    """Authenticate as :func:`authenticate` does, and select the bucket; the answers to `then` come next."""
    select = SelectBucket(login.bucket).frame()
    granted, answer = yield from authenticate(login, *more, then=lambda granted: [select, *then(granted)])
    if answer.status == Status.EACCESS:
        raise BucketNotFoundError(
            f"bucket {login.bucket!r} does not exist or user {login.user} has no access to it",
            hint=f"check the bucket's name; {ROLES_HINT}",
        )
    if answer.status == Status.KEY_ENOENT:
        error = BucketNotFoundError(
            f"the node has no bucket {login.bucket!r}",
            hint="check the bucket's name; a node that was started a moment ago has no buckets yet",
        )
        error.permanent = False
        raise error
    require(answer, f"bucket {login.bucket!r} could not be selected")
    return granted


def open_dcp(login: Login, options: BucketDataSourceOptions, name: str) -> Steps[Session]:
    """Log in, ask for the high seqnos, and turn the connection into a DCP producer's, of this name."""
    more = [Feature.DUPLEX, Feature.CLUSTERMAP_CHANGE_NOTIFICATION]
    if options.compression:
        more.append(Feature.SNAPPY)
    if options.skip_first_deletions:
        more.append(Feature.SKIP_DELETIONS_IN_FIRST_BACKFILL)

    def then(features: frozenset[int]) -> Sequence[Frame]:
        if options.include_xattrs and Feature.XATTR not in features:
            raise XAttrsNotSupportedError(
                "the node does not grant extended attributes", status=Status.NOT_SUPPORTED
            )
        return [SEQNOS, *_opening(options, name, features)]

    features = yield from log_in(login, *more, then=then)
    seqnos = yield ()
    if seqnos.status in _TEMPORARY:
        require(seqnos, _NO_SEQNOS)  # a node that is not ready hangs up when it is
    # Otherwise looked at last: who may not read over DCP, and where there is none, hears of that first.
    user, bucket = f"user {login.user}", f"bucket {login.bucket!r}"
    granted = yield from _opened(options, name, features, user, bucket, (yield ()))
    return Session(features, granted, (yield from sample_seqnos(options.collections or (), seqnos)))


def _opening(
    options: BucketDataSourceOptions,
    name: str,
    features: frozenset[int] | None,  # those that HELLO granted, where they are known
    *,
    sound_keys: bool = False,
) -> list[Frame]:
    """DCP_OPEN, and each control with its best value."""
    check_connection_name(name)
    flags = OpenFlag.PRODUCER
    if options.stream_id is None:
        # Servers cannot frame a deletion that has both its time and a stream's number.
        flags |= OpenFlag.INCLUDE_DELETE_TIMES
    if options.include_xattrs:
        flags |= OpenFlag.INCLUDE_XATTRS
    if options.no_value:
        flags |= OpenFlag.NO_VALUE if sound_keys else OpenFlag.NO_VALUE_WITH_UNDERLYING_DATATYPE
    if options.skip_first_deletions and (features or frozenset()) >= _SKIPS:
        flags |= OpenFlag.SKIP_DELETIONS_IN_FIRST_BACKFILL
    return [DcpOpen(name, flags).frame(), *_controls(_wishes(options, features))]


def _opened(
    options: BucketDataSourceOptions,
    name: str,
    features: frozenset[int] | None,
    user: str,  # for error messages, as the bucket
    bucket: str,
    answer: Frame,
) -> Steps[dict[str, str]]:
    """Take the answers to :func:`_opening`, of which `answer` is the first; what was granted."""
    wishes = _wishes(options, features)
    if options.no_value and answer.status == Status.EINVAL:
        for _ in wishes:
            yield ()  # without a producer they are refused, too
        if (yield from _has_sound_keys()):
            answer = yield _opening(options, name, features, sound_keys=True)
    if answer.status == Status.EACCESS:
        raise AccessError(f"{user} may not read {bucket} over DCP", hint=ROLES_HINT)
    if answer.status == Status.NOT_SUPPORTED:
        hint = "memcached buckets cannot be streamed"
        raise _permanent(ServerError(f"{bucket} has no DCP", status=answer.status, hint=hint))
    require(answer, "DCP_OPEN was refused")
    return (yield from _negotiate(wishes))


def _has_sound_keys() -> Steps[bool]:
    """Whether NO_VALUE alone may be asked of this server.

    From 7.6 on it reads only the keys from disk, and gives deleted documents as mutations, with metadata
    that nobody wrote. Servers that are too old for the other flag are older than that.
    """
    answer = yield [Plain(Opcode.VERSION).frame()]
    version = _RELEASE.match(answer.value) if answer.status == Status.SUCCESS else None
    return version is not None and (int(version[1]), int(version[2])) < _KEYS_ONLY_FROM_DISK


def _wishes(options: BucketDataSourceOptions, features: frozenset[int] | None) -> list[_Wish]:
    """The controls to send; `features` are None where they are not known."""
    known = (c for c in CONTROLS if features is None or c.feature is None or c.feature in features)
    wishes = ((control, control.values(options)) for control in known)
    return [wish for wish in wishes if wish[1]]


def _controls(wishes: Sequence[_Wish]) -> list[Frame]:
    return [DcpControl(control.key, values[0]).frame() for control, values in wishes]


def _negotiate(wishes: list[_Wish]) -> Steps[dict[str, str]]:
    """Take the answers to the controls that were sent; the options that were granted, with their values.

    What was refused is asked for again with the next value.
    """
    granted: dict[str, str] = {}
    again: list[Frame] = []
    while wishes:
        refused: list[_Wish] = []
        for control, (value, *others) in wishes:
            answer = yield again
            again = []
            if answer.status == Status.SUCCESS:
                granted[control.key] = value
                continue
            if control.needed or answer.status not in _ABSENT:
                require(answer, f"DCP_CONTROL {control.key}={value} was refused", control.hint)
            if others:
                refused.append((control, tuple(others)))
        wishes, again = refused, _controls(refused)
    return granted


def high_seqnos(answer: Frame) -> dict[int, int]:
    """By vbucket, of the answer to `SEQNOS`."""
    require(answer, _NO_SEQNOS)
    return parse_vbucket_seqnos(answer.value)


def sample_seqnos(collections: Sequence[int] = (), answer: Frame | None = None) -> Steps[dict[int, int]]:
    """High seqno of each vbucket that is active on the node."""
    if answer is None:
        answer = yield [SEQNOS]
    if answer.status != Status.EACCESS or not collections:
        return high_seqnos(answer)
    found: dict[int, int] = {}
    asked = [GetAllVBucketSeqnos(VBucketStateCode.ACTIVE, each).frame() for each in collections]
    for _ in collections:
        for vb, seqno in high_seqnos((yield asked)).items():
            found[vb] = max(seqno, found.get(vb, 0))
        asked = []
    return found


def time_of(answer: Frame) -> int | None:
    """Seconds since the epoch, if the answer to `TIME` is the line that has them."""
    if answer.status != Status.SUCCESS or answer.key != b"time" or not NUMBER.fullmatch(answer.value):
        return None
    seconds = int(answer.value)
    return seconds if seconds < _YEAR_10000 else None


def fetch_config(login: Login) -> Steps[bytes]:
    """Log in and ask for the cluster map: the terse configuration, as JSON."""
    yield from log_in(login, then=lambda _: [_CONFIG])
    return _config((yield ()))


def fetch_cluster_config(login: Login) -> Steps[bytes]:
    """Authenticate and ask for the configuration of the whole cluster, as JSON: its nodes, no bucket."""
    _, answer = yield from authenticate(login, then=lambda _: [_CONFIG])
    return _config(answer)


def fetch_manifest(login: Login) -> Steps[tuple[bytes, bytes | None]]:
    """Log in, and ask for the cluster map and the collections manifest, as JSON.

    The manifest is None where there are no collections.
    """
    features = yield from log_in(
        login, then=lambda features: [_CONFIG, _MANIFEST] if Feature.COLLECTIONS in features else [_CONFIG]
    )
    config = _config((yield ()))
    return config, None if Feature.COLLECTIONS not in features else _manifest((yield ()))


def fetch_manifest_again() -> Steps[bytes | None]:
    """The collections manifest, on a connection where :func:`fetch_manifest` has asked for it."""
    return _manifest((yield [_MANIFEST]))


def _manifest(answer: Frame) -> bytes | None:
    if answer.status in (Status.UNKNOWN_COMMAND, Status.NOT_SUPPORTED):
        return None
    require(answer, "COLLECTIONS_GET_MANIFEST was refused")
    return answer.value


def _config(answer: Frame) -> bytes:
    require(answer, "GET_CLUSTER_CONFIG was refused")
    return answer.value


def _authenticate(login: Login, scram: ScramClient, then: Sequence[Frame]) -> Steps[Frame]:
    """Authenticate, after HELLO; the first answer to `then`, which is sent with the last step.

    Of users of a directory (LDAP) the server has no keys: SCRAM is refused for them, and PLAIN serves.
    """
    username = login.username
    assert username is not None, "there is a password to show"
    answer = yield ()
    require(answer, "SASL_LIST_MECHS was refused")
    offered = answer.value.decode(errors="replace").upper().split()
    mechanism = tried = choose_mechanism(offered, allow_plain=login.allow_plain)
    answer = yield ()
    if answer.status == Status.AUTH_CONTINUE:
        mechanism = tried = _BEST
    if mechanism != "PLAIN":
        if mechanism != _BEST:
            scram = ScramClient(mechanism, username, login.password, login.nonce)
            answer = yield [SaslAuth(mechanism, scram.first()).frame()]
        sent: Sequence[Frame] = ()
        if answer.status == Status.AUTH_CONTINUE:
            sent = then
            answer = yield [SaslAuth(mechanism, scram.final(answer.value), Opcode.SASL_STEP).frame(), *sent]
            if answer.status == Status.SUCCESS:
                scram.verify(answer.value)
                return (yield ())
        elif answer.status == Status.SUCCESS:
            raise ProtocolError("the server skipped the SCRAM challenge", opcode=Opcode.SASL_AUTH)
        if answer.status not in _WRONG or not login.allow_plain or "PLAIN" not in offered:
            _check_auth(answer, login, mechanism, _DIRECTORY if "PLAIN" in offered else _USER)
        for _ in sent:
            yield ()  # who is not known yet is refused whatever is asked
        tried = f"{mechanism}, then PLAIN"
    answer = yield from _by_plain(login, then, tried)
    if tried != "PLAIN":
        login.external.add(username)
    return answer


def _by_plain(login: Login, then: Sequence[Frame], tried: str) -> Steps[Frame]:
    """Show the password; the first answer to `then`. Errors name the mechanisms that were tried."""
    assert login.username is not None, "there is a password to show"
    payload = plain_payload(login.username, login.password)
    answer = yield [SaslAuth("PLAIN", payload).frame(), *then]
    _check_auth(answer, login, tried, f"{_USER}, or in the directory (LDAP) that the cluster asks")
    return (yield ())


def _check_auth(answer: Frame, login: Login, tried: str, hint: str) -> None:
    if answer.status in _WRONG:
        raise AuthFailError(f"the server refused user {login.user} or the password ({tried})", hint=hint)
    silent = answer.status == Status.ETMPFAIL and tried.endswith("PLAIN")
    later = "the directory (LDAP) that the cluster asks does not answer" if silent else None
    require(answer, f"authentication with {tried} failed", later)


def require(answer: Frame, message: str, hint: str | None = None) -> None:
    """Go on only if the node did what it was asked."""
    status = answer.status
    if status == Status.SUCCESS:
        return
    if status == Status.EACCESS:
        raise AccessError(f"{message}: no permission", hint=hint)
    if status == Status.BUCKET_PAUSED:
        raise BucketNotFoundError(f"{message}: the bucket is paused", hint=PAUSED_HINT)
    if status in (Status.CONFIG_ONLY, Status.NO_BUCKET):
        hint = hint or _NOT_YET
    error = ServerError(f"{message} ({Status.describe(status)})", status=status, hint=hint)
    raise error if status in _TEMPORARY else _permanent(error)


def _permanent(error: CbframeError) -> CbframeError:
    error.permanent = True
    return error


class ByteSocket(Protocol):
    """What is needed of a blocking socket."""

    def sendall(self, data: bytes, /) -> None: ...
    def recv(self, size: int, /) -> bytes: ...


def _open_producer(options: BucketDataSourceOptions, name: str) -> Steps[dict[str, str]]:
    """Turn a connection that is logged in into a DCP producer's."""
    answer = yield _opening(options, name, None)
    return (yield from _opened(options, name, None, "the user", "the selected bucket", answer))


@public
def upr_open(
    sock: ByteSocket,
    name: str,
    buffer_size: int = 20_000_000,
    *,
    options: BucketDataSourceOptions | None = None,
) -> dict[str, str]:
    """Open DCP on a connection of your own, with NOOPs, flow control and whatever the options say.

    For programs that speak the protocol themselves, with :mod:`cbframe.wire`; a
    :class:`~cbframe.BucketDataSource` does this and all the rest by itself.

    Parameters
    ----------
    sock
        A blocking socket to a data node: HELLO and authentication are done, the bucket is selected.
    name
        Of the connection, 1 to 200 characters of printable ASCII without braces: the server closes an older
        one of the same name.
    buffer_size
        Flow-control window in bytes; 0 for none.
    options
        Finer settings of the connection.

    Returns
    -------
    dict
        Options that the node granted, with their values.

    Raises
    ------
    AccessError, ServerError
        The node refuses.
    ConnectError, ProtocolError
        The connection has ended, or something else than an answer came.

    Examples
    --------
    >>> upr_open(sock, "audit:1")["enable_noop"]  # doctest: +SKIP
    'true'
    """
    options = replace(
        options or BucketDataSourceOptions(),
        compression=False,
        feed_buffer_size_bytes=buffer_size,
        connections_per_node=1,
        max_bytes_per_sec=None,
    )
    steps = _open_producer(options, name)
    sent = answered = 0
    frames = next(steps)
    while True:
        numbered = [replace(frame, opaque=number) for number, frame in enumerate(frames, sent + 1)]
        if numbered:
            sock.sendall(b"".join(frame.encode() for frame in numbered))
        sent += len(numbered)
        answered += 1
        try:
            frames = steps.send(_answer(sock, answered))
        except StopIteration as done:
            granted: dict[str, str] = done.value
            return granted


def _answer(sock: ByteSocket, opaque: int) -> Frame:
    """The next answer; not a byte more is taken."""
    while True:
        head = _exactly(sock, HEADER_LENGTH)
        header = parse_header(head, max_body=MAX_BODY_LENGTH)
        parsed = Frame.parse(head + _exactly(sock, header.body_length))
        assert parsed is not None, "it is whole"
        frame = parsed[0]
        if frame.opcode == Opcode.DCP_NOOP and not frame.is_response:
            sock.sendall(noop_reply(frame).encode())
        elif frame.is_response:
            if frame.opaque != opaque:
                raise ProtocolError("an answer to nothing that was asked", opcode=frame.opcode)
            return frame


def _exactly(sock: ByteSocket, count: int) -> bytes:
    found = b""
    while len(found) < count:
        data = sock.recv(count - len(found))
        if not data:
            raise ConnectError("the node closed the connection while DCP was opened")
        found += data
    return found
