"""From a fresh socket to a usable connection, as generators that never touch the socket.

A handshake yields request frames and is sent the response to each. Whoever runs it does the IO:
:class:`~cbframe.dcp.connection.DcpConnection` on a node's thread, :func:`~cbframe.dcp.query.ask`
for a few questions. For many at a time there are conversations (:mod:`cbframe.dcp.talk`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar

from cbframe.dcp.controls import CONTROLS, DcpSettings
from cbframe.errors import (
    PAUSED_HINT,
    AccessError,
    AuthFailError,
    BucketNotFoundError,
    CbframeError,
    ProtocolError,
    ServerError,
    XAttrsNotSupportedError,
)
from cbframe.wire.constants import Feature, Opcode, OpenFlag, Status, VBucketStateCode
from cbframe.wire.frame import Frame
from cbframe.wire.messages import parse_vbucket_seqnos
from cbframe.wire.requests import (
    DcpControl,
    DcpOpen,
    GetAllVBucketSeqnos,
    Hello,
    Plain,
    SaslAuth,
    SelectBucket,
    parse_features,
)
from cbframe.wire.sasl import ScramClient, choose_mechanism, plain_payload

T = TypeVar("T")
Steps: TypeAlias = Generator[Frame, Frame, T]

AGENT = "cbframe"
_TEMPORARY = (
    Status.ENOMEM,
    Status.EBUSY,
    Status.ETMPFAIL,
    Status.NOT_INITIALIZED,
    Status.KEY_ENOENT,
    Status.CONFIG_ONLY,
    Status.NO_BUCKET,
)
_NOT_YET = "the node or the bucket was started a moment ago, and is not ready yet: try again"
_ABSENT = (Status.EINVAL, Status.NOT_SUPPORTED)
"""How a node answers to an option that it, or the bucket, does not have."""
_RELEASE = re.compile(rb"([0-9]{1,4})\.([0-9]{1,4})")
_KEYS_ONLY_FROM_DISK = (7, 6)


@dataclass(frozen=True, slots=True)
class Login:
    """Who connects, to which bucket. The password stays out of the repr.

    The user name is None where the client's certificate has said it already.
    """

    username: str | None
    password: str = field(repr=False)
    bucket: str
    tls: bool
    allow_plain: bool
    nonce: Callable[[], str] = field(repr=False)

    @property
    def user(self) -> str:
        """For error messages."""
        return "of the client certificate" if self.username is None else repr(self.username)


@dataclass(frozen=True, slots=True)
class Session:
    """What a handshake reached.

    Attributes
    ----------
    features
        Those that HELLO granted.
    granted
        Options of the connection that the node granted, with the value that it took.
    seqnos
        High seqnos of the node's vbuckets.
    """

    features: frozenset[int]
    granted: Mapping[str, str]
    seqnos: dict[int, int]

    @property
    def collections(self) -> bool:
        return Feature.COLLECTIONS in self.features


def authenticate(login: Login, *more: Feature) -> Steps[frozenset[int]]:
    """Offer features, those of every connection and `more`, and authenticate.

    Raises
    ------
    AuthFailError
        The credentials are wrong, or no mechanism is safe enough.
    ServerError
        Any other refusal.
    """
    wanted = (
        Feature.TCP_NODELAY,
        Feature.XATTR,
        Feature.XERROR,
        Feature.SELECT_BUCKET,
        Feature.JSON,
        Feature.COLLECTIONS,
        *more,
    )
    answer = yield Hello(AGENT, wanted).frame()
    require(answer, "HELLO was refused")
    granted = frozenset(parse_features(answer.value)) & frozenset(int(code) for code in wanted)
    if login.username is not None:
        yield from _authenticate(login, login.username)
    return granted


def log_in(login: Login, *more: Feature) -> Steps[frozenset[int]]:
    """Authenticate as :func:`authenticate` does, and select the bucket.

    Raises
    ------
    BucketNotFoundError
        The bucket does not exist, or the user may not see it: the server does not say which. Not permanent
        where the node may only not have it yet.
    AuthFailError, ServerError
        As :func:`authenticate`.
    """
    granted = yield from authenticate(login, *more)
    answer = yield SelectBucket(login.bucket).frame()
    if answer.status == Status.EACCESS:
        raise BucketNotFoundError(
            f"bucket {login.bucket!r} does not exist or user {login.user} has no access to it",
            hint="check the bucket's name; the user needs the role Data Reader and Data DCP Reader on it",
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


def open_dcp(login: Login, settings: DcpSettings) -> Steps[Session]:
    """Log in, turn the connection into a DCP producer's, and ask for its high seqnos.

    Raises
    ------
    AccessError
        The user may not read over DCP.
    XAttrsNotSupportedError
        Xattrs are wanted and the node does not grant them.
    """
    more = [Feature.DUPLEX, Feature.CLUSTERMAP_CHANGE_NOTIFICATION]
    if settings.compression:
        more.append(Feature.SNAPPY)
    features = yield from log_in(login, *more)
    if settings.xattrs and Feature.XATTR not in features:
        raise XAttrsNotSupportedError(
            "the node does not grant extended attributes", status=Status.NOT_SUPPORTED
        )
    granted = yield from open_producer(settings, f"user {login.user}", f"bucket {login.bucket!r}")
    seqnos = yield from sample_seqnos()
    return Session(features, granted, seqnos)


def open_producer(settings: DcpSettings, user: str, bucket: str) -> Steps[dict[str, str]]:
    """Turn a connection that is logged in into a DCP producer's; the options that the node granted.

    `user` and `bucket` are what errors call them.

    Raises
    ------
    AccessError
        The user may not read over DCP.
    ServerError
        The bucket has no DCP, or the node refuses what is needed.
    """
    flags = OpenFlag.PRODUCER
    if settings.stream_id is None:
        # Servers cannot frame a deletion that has both its time and a stream's number.
        flags |= OpenFlag.INCLUDE_DELETE_TIMES
    if settings.xattrs:
        flags |= OpenFlag.INCLUDE_XATTRS
    if settings.no_value:
        flags |= OpenFlag.NO_VALUE_WITH_UNDERLYING_DATATYPE
    answer = yield DcpOpen(settings.name, flags).frame()
    if settings.no_value and answer.status == Status.EINVAL and (yield from _has_sound_keys()):
        flags ^= OpenFlag.NO_VALUE_WITH_UNDERLYING_DATATYPE | OpenFlag.NO_VALUE
        answer = yield DcpOpen(settings.name, flags).frame()
    if answer.status == Status.EACCESS:
        raise AccessError(
            f"{user} may not read {bucket} over DCP",
            hint="grant the role Data DCP Reader (Community Edition: bucket_full_access)",
        )
    if answer.status == Status.NOT_SUPPORTED:
        raise _permanent(
            ServerError(
                f"{bucket} has no DCP",
                status=answer.status,
                hint="memcached buckets cannot be streamed",
            )
        )
    require(answer, "DCP_OPEN was refused")
    return (yield from negotiate(settings))


def _has_sound_keys() -> Steps[bool]:
    """Whether NO_VALUE alone may be asked of this server.

    From 7.6 on it reads only the keys from disk, and gives deleted documents as mutations, with metadata
    that nobody wrote. Servers that are too old for the other flag are older than that.
    """
    answer = yield Plain(Opcode.VERSION).frame()
    version = _RELEASE.match(answer.value) if answer.status == Status.SUCCESS else None
    return version is not None and (int(version[1]), int(version[2])) < _KEYS_ONLY_FROM_DISK


def negotiate(settings: DcpSettings) -> Steps[dict[str, str]]:
    """Ask for the options of the connection; those that were granted, with their values.

    Raises
    ------
    ServerError
        The node refuses one without which the connection is of no use; or it refuses another, but
        not because it does not have it.
    """
    granted: dict[str, str] = {}
    for control in CONTROLS:
        for value in control.values(settings):
            answer = yield DcpControl(control.key, value).frame()
            if answer.status == Status.SUCCESS:
                granted[control.key] = value
                break
            if control.needed or answer.status not in _ABSENT:
                require(answer, f"DCP_CONTROL {control.key}={value} was refused", control.hint)
    return granted


def sample_seqnos() -> Steps[dict[int, int]]:
    """High seqno of each vbucket that is active on the node."""
    answer = yield GetAllVBucketSeqnos(VBucketStateCode.ACTIVE).frame()
    require(answer, "GET_ALL_VB_SEQNOS was refused")
    return parse_vbucket_seqnos(answer.value)


def fetch_config(login: Login) -> Steps[bytes]:
    """Log in and ask for the cluster map: the terse configuration, as JSON."""
    yield from log_in(login)
    answer = yield Plain(Opcode.GET_CLUSTER_CONFIG).frame()
    require(answer, "GET_CLUSTER_CONFIG was refused")
    return answer.value


def fetch_cluster_config(login: Login) -> Steps[bytes]:
    """Authenticate and ask for the configuration of the whole cluster, as JSON: its nodes, no bucket."""
    yield from authenticate(login)
    answer = yield Plain(Opcode.GET_CLUSTER_CONFIG).frame()
    require(answer, "GET_CLUSTER_CONFIG was refused")
    return answer.value


def fetch_manifest(login: Login) -> Steps[bytes | None]:
    """Log in and ask for the collections manifest, as JSON; None where there are no collections."""
    features = yield from log_in(login)
    if Feature.COLLECTIONS not in features:
        return None
    answer = yield Plain(Opcode.COLLECTIONS_GET_MANIFEST).frame()
    if answer.status in (Status.UNKNOWN_COMMAND, Status.NOT_SUPPORTED):
        return None
    require(answer, "COLLECTIONS_GET_MANIFEST was refused")
    return answer.value


def _authenticate(login: Login, username: str) -> Steps[None]:
    answer = yield Plain(Opcode.SASL_LIST_MECHS).frame()
    require(answer, "SASL_LIST_MECHS was refused")
    mechanism = choose_mechanism(
        answer.value.decode(errors="replace").split(), allow_plain=login.allow_plain or login.tls
    )
    if mechanism == "PLAIN":
        answer = yield SaslAuth(mechanism, plain_payload(username, login.password)).frame()
        _check_auth(answer, login, mechanism)
        return
    scram = ScramClient(mechanism, username, login.password, login.nonce)
    answer = yield SaslAuth(mechanism, scram.first()).frame()
    if answer.status != Status.AUTH_CONTINUE:
        _check_auth(answer, login, mechanism)
        raise ProtocolError("the server skipped the SCRAM challenge", opcode=Opcode.SASL_AUTH)
    answer = yield SaslAuth(mechanism, scram.final(answer.value), Opcode.SASL_STEP).frame()
    _check_auth(answer, login, mechanism)
    scram.verify(answer.value)


def _check_auth(answer: Frame, login: Login, mechanism: str) -> None:
    if answer.status in (Status.AUTH_ERROR, Status.EACCESS):
        raise AuthFailError(
            f"the server refused user {login.user} or the password ({mechanism})",
            hint="check user name and password; the user must exist on this cluster",
        )
    require(answer, f"authentication with {mechanism} failed")


def require(answer: Frame, message: str, hint: str | None = None) -> None:
    """Go on only if the node did what it was asked.

    Raises
    ------
    AccessError, BucketNotFoundError, ServerError
        It refused; permanent unless another time may be better.
    """
    status = answer.status
    if status == Status.SUCCESS:
        return
    if status == Status.EACCESS:
        raise AccessError(f"{message}: no permission")
    if status == Status.BUCKET_PAUSED:
        raise BucketNotFoundError(f"{message}: the bucket is paused", hint=PAUSED_HINT)
    if status in (Status.CONFIG_ONLY, Status.NO_BUCKET):
        hint = hint or _NOT_YET
    error = ServerError(f"{message} ({Status.describe(status)})", status=status, hint=hint)
    raise error if status in _TEMPORARY else _permanent(error)


def _permanent(error: CbframeError) -> CbframeError:
    error.permanent = True
    return error
