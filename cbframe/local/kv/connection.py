"""One KV connection: from HELLO to the operation, one request after the other."""

from __future__ import annotations

import json
import struct
import uuid
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Protocol

from cbframe.errors import ProtocolError
from cbframe.local.auth import MECHANISMS, NOBODY, Credentials, SaslAnswer, SaslServer, User
from cbframe.local.bucket import LocalBucket, UnknownCollectionError, UnknownScopeError, is_json
from cbframe.local.cluster_manager import ClusterConfig
from cbframe.local.items import deflate, inflate
from cbframe.local.kv.documents import (
    DocumentService,
    FrameInfo,
    duration_frame,
    mutation_token,
    parse_frame_info,
)
from cbframe.local.kv.stats import stats
from cbframe.local.loop import AnySocket, Channel, Loop
from cbframe.local.producer import Producer, open_error, value_error
from cbframe.local.release import GRANTED, error_map, granted_in_8, missing_need
from cbframe.wire.constants import (
    MAX_KEY_LENGTH,
    MAX_VALUE_LENGTH,
    Datatype,
    Feature,
    Magic,
    Opcode,
    ServerOpcode,
    Status,
    VBucketStateCode,
)
from cbframe.wire.framing import Frame
from cbframe.wire.messages import (
    BufferAck,
    DcpControl,
    DcpOpen,
    GetAllVBucketSeqnos,
    Hello,
    SaslAuth,
    SelectBucket,
    StreamRequest,
    encode_failover_log,
    encode_vbucket_seqnos,
    parse_request,
    split_key,
)

BEFORE_AUTH = frozenset(
    {
        Opcode.HELLO,
        Opcode.SASL_LIST_MECHS,
        Opcode.SASL_AUTH,
        Opcode.SASL_STEP,
        Opcode.GET_ERROR_MAP,
    }
)
LENGTHS: dict[int, str] = {
    Opcode.GET_ALL_VB_SEQNOS: "Request extras must be of length 0 or 4 or 8",
    Opcode.DCP_STREAM_REQ: "Request must include extras of length 48",
    Opcode.DCP_BUFFER_ACK: "Request must include extras of length 4",
    Opcode.GET_CLUSTER_CONFIG: "Request must include extras of length 16",
}
"""The real server's words for extras of another length."""
WITHOUT_BUCKET = BEFORE_AUTH | {
    Opcode.SELECT_BUCKET,
    Opcode.GET_CLUSTER_CONFIG,
    Opcode.NOOP,
    Opcode.QUIT,
    Opcode.VERSION,
}
CONFIG_ONLY = frozenset({Opcode.HELLO, Opcode.GET_ERROR_MAP, Opcode.GET_CLUSTER_CONFIG, Opcode.SELECT_BUCKET})
"""What a node answers that has a bucket's map, and not yet the bucket."""
GONE_IN_8 = frozenset(
    {
        *(0x08, 0x18, *range(0x30, 0x3D), *range(0x40, 0x48), 0x5A, 0x97, 0x9E, 0x9F),
        *(0xA6, 0xA7, 0xAA, 0xAC, 0xB0, 0xB1, 0xC1, 0xC2, 0xF0, 0xF2),
    }
)
"""Opcodes of former releases that 8.0 knows, and does not support; 0xAA is CREATE_CHECKPOINT."""
GET_EX = frozenset({0x49, 0x4A})
GET_EX_NEEDS = {Feature.XATTR: "Xattr", Feature.JSON: "JSON", Feature.SNAPPY_EVERYWHERE: "SnappyEverywhere"}
"""Reads of a document with its attributes, which 8.0 has and the embedded cluster does not, and what
they are refused without."""


def refusal(mechanism: str, *, external: bool) -> dict[str, str]:
    """The error that a failed login is answered with, where a directory was asked, too, if `external`."""
    # What to look for in the server's log.
    reference = {"ref": str(uuid.uuid4())}
    if mechanism not in MECHANISMS.split():
        return {"context": f'Requested mechanism "{mechanism}" is not supported'}
    if external:
        return {
            "context": f"Wrong credentials, or {mechanism} does not serve for external users",
            **reference,
        }
    return reference


ONLY_DCP = "The command can only be sent on a DCP connection"
"""The real server's words for a DCP command before DCP_OPEN."""
_MAX_BODY = 30 * 1024 * 1024
_REVISION = struct.Struct(">qq")
"""Epoch and number of a cluster map."""


class DataNode(Protocol):
    """What a connection needs of its node."""

    index: int
    bucket: LocalBucket
    config: ClusterConfig
    credentials: Credentials
    documents: DocumentService
    loop: Loop
    noop_interval: float | None
    idle_timeout: float
    dropping_acks: bool
    cut_after: int | None
    garble_after: int | None

    def watch(self, vbucket: int, change: int) -> None: ...
    def forget(self, connection: KvConnection) -> None: ...
    def close_namesake(self, name: str) -> None: ...
    def count_sent(self, nbytes: int) -> None: ...


class KvConnection(Channel):
    """State machine of one connection to a node's data port."""

    def __init__(self, node: DataNode, sock: AnySocket) -> None:
        super().__init__(node.loop, sock)
        self.node = node
        self.bucket = node.bucket
        self.features: frozenset[int] = frozenset()
        self.user: User | None = None
        self.selected = False
        self.is_8 = node.bucket.release.is_8
        self._known_map = (0, 0)
        """Epoch and revision of the newest map that the client has of the selected bucket."""
        self.producer: Producer | None = None
        self._sasl = SaslServer(node.credentials, scram_for_all=not node.bucket.release.is_8)
        self._buffer = bytearray()
        self._heard = self.now()
        self._began = 0.0
        """When the request at hand was read, for the answer's framing extras."""
        self._handlers: dict[int, Callable[[Frame], None]] = {
            Opcode.HELLO: self._hello,
            Opcode.SASL_LIST_MECHS: lambda f: self.respond(f, value=MECHANISMS.encode()),
            Opcode.SASL_AUTH: self._sasl_message,
            Opcode.SASL_STEP: self._sasl_message,
            Opcode.GET_ERROR_MAP: lambda f: self.respond_json(f, error_map(f.value, is_8=self.is_8)),
            Opcode.SELECT_BUCKET: self._select_bucket,
            Opcode.GET_CLUSTER_CONFIG: self._cluster_config,
            Opcode.NOOP: self.respond,
            Opcode.VERSION: lambda f: self.respond(f, value=self.bucket.release.build.encode()),
            Opcode.QUIT: self._quit,
            **{opcode: partial(run, self) for opcode, run in (QUERIES | COMMANDS).items()},
        }

    # ------------------------------------------------------------------ channel

    def received(self, data: bytes) -> None:
        self._heard = self.now()
        buffer = self._buffer
        buffer += data
        offset = 0
        try:
            while not (self.closed or self.closing):
                parsed = Frame.parse(buffer, offset, max_body=_MAX_BODY)
                if parsed is None:
                    break
                frame, offset = parsed
                self._handle(frame)
        except ProtocolError:
            # Bad magic, or a body beyond any limit: the real server hangs up as well.
            self.close()
            return
        del buffer[:offset]

    def on_secured(self, user: str | None) -> None:
        self.user = self.node.credentials.certified(user)

    def fill(self) -> None:
        if self.producer is not None:
            self.producer.fill()

    def messages_per_send(self) -> int:
        most = None if self.producer is None else self.producer.messages_per_send
        return super().messages_per_send() if most is None else most

    def on_timer(self, now: float) -> None:
        if now - self._heard > self.node.idle_timeout:
            self.close()
        elif self.producer is not None:
            self.producer.on_timer(now)

    def on_close(self) -> None:
        if self.producer is not None:
            self.producer.close()
        self.node.forget(self)

    def limit(self) -> int | None:
        return None if self.producer is None else self.node.cut_after

    def garbled(self) -> int | None:
        return None if self.producer is None else self.node.garble_after

    def sent(self, nbytes: int) -> None:
        if self.producer is not None:
            self.node.count_sent(nbytes)

    # ------------------------------------------------------------------ answers

    def respond(
        self,
        frame: Frame,
        status: Status = Status.SUCCESS,
        *,
        extras: bytes = b"",
        value: bytes = b"",
        cas: int = 0,
        datatype: int = 0,
        context: str = "",
    ) -> None:
        """Answer a request; `context` makes the value an error text."""
        if context:
            value, datatype = _to_json({"error": {"context": context}}), int(Datatype.JSON)
        if Feature.JSON not in self.features:
            datatype &= ~Datatype.JSON
        self.reply(frame, status, cas=cas, datatype=datatype, extras=extras, value=value)

    def reply(
        self,
        frame: Frame,
        status: int = 0,
        *,
        cas: int = 0,
        datatype: int = 0,
        extras: bytes = b"",
        key: bytes = b"",
        value: bytes = b"",
    ) -> None:
        """Send one answer in the framing that the client asked for."""
        magic, framing = Magic.RESPONSE, b""
        if Feature.TRACING in self.features:
            magic, framing = Magic.FLEX_RESPONSE, duration_frame(self.now() - self._began)
        answer = Frame(magic, frame.opcode, status, frame.opaque, cas, datatype, extras, key, value, framing)
        self.send(answer.encode())

    def deny(self, frame: Frame, privilege: str) -> None:
        """Refuse a request that the user lacks a privilege for; clients without XERROR are hung up on."""
        if Feature.XERROR not in self.features:
            self.close()
            return
        opcode = Opcode(frame.opcode).name
        context = f"Authorization failure: can't execute {opcode} operation without the {privilege} privilege"
        error = {"context": context, "ref": str(uuid.uuid4())}
        # Marked as JSON even if the client did not agree to that, as recorded.
        self.reply(frame, Status.EACCESS, datatype=int(Datatype.JSON), value=_to_json({"error": error}))

    def respond_json(self, frame: Frame, content: object, status: Status = Status.SUCCESS) -> None:
        self.respond(frame, status, value=_to_json(content), datatype=int(Datatype.JSON))

    def _respond_map(self, frame: Frame, known: tuple[int, int] | None, status: Status) -> None:
        """Answer with the map, or without a body if the client has this one or a newer one."""
        with self.bucket.lock:
            config, index = self.node.config, self.node.index
            content = config.terse(index) if self.selected else config.cluster(index)
        revision = content["revEpoch"], content["rev"]
        if known is not None and known >= revision:
            self.respond(frame, status)
        else:
            value, datatype = self._as_sent(content)
            self.respond(frame, status, value=value, datatype=datatype)
        self._known_map = max(revision, known or revision)

    def _as_sent(self, content: object) -> tuple[bytes, int]:
        """A map as the client wants it, and its datatype."""
        value, datatype = _to_json(content), int(Datatype.JSON)
        if Feature.SNAPPY_EVERYWHERE in self.features:
            return deflate(value), datatype | Datatype.SNAPPY
        return value, datatype

    def not_my_vbucket(self, frame: Frame) -> None:
        sparing = Feature.DEDUPE_NOT_MY_VBUCKET_CLUSTERMAP in self.features
        self._respond_map(frame, self._known_map if sparing else None, Status.NOT_MY_VBUCKET)

    def refuse(self, frame: Frame, status: Status) -> None:
        """Refuse a request, in a form that the client understands.

        Those who did not ask for extended errors (XERROR) do not know all statuses.
        """
        if status in {Status.UNKNOWN_COLLECTION, Status.UNKNOWN_SCOPE}:
            if self.features.isdisjoint({Feature.XERROR, Feature.COLLECTIONS}):
                self.respond(frame, Status.EINVAL)
            else:
                self.unknown_collection(frame, status)
        elif status is Status.EACCESS and Feature.XERROR not in self.features:
            self.close()
        else:
            self.respond(frame, status)

    def unknown_collection(self, frame: Frame, status: Status) -> None:
        error = {
            "error": {"context": "Unknown scope or collection in operation"},
            "manifest_uid": f"{self.bucket.manifest.uid:x}",
        }
        self.respond_json(frame, error, status)

    def holds(self, vbucket: int, *, active: bool) -> bool:
        """Whether this node has the vbucket, as its owner if `active`."""
        if vbucket >= len(self.bucket.map):
            return False
        row = self.bucket.map[vbucket]
        return self.node.index in (row[:1] if active else row)

    def watch(self, vbucket: int, change: int) -> None:
        self.node.watch(vbucket, change)

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        def run() -> None:
            call()
            self.flush()

        self.loop.call_later(seconds, run)

    def now(self) -> float:
        return self.loop.clock()

    # ------------------------------------------------------------------ dispatch

    def _handle(self, frame: Frame) -> None:
        if frame.is_response:
            if frame.opcode == Opcode.DCP_NOOP and self.producer is not None:
                self.producer.noop_answered()
            return
        if frame.magic not in (Magic.REQUEST, Magic.FLEX_REQUEST):
            raise ProtocolError(f"magic 0x{frame.magic:02x} is no request")
        self._began = self.now()
        known = frame.opcode in self._handlers or self.node.documents.knows(frame.opcode)
        if self.user is None and frame.opcode not in BEFORE_AUTH:
            self.respond(frame, Status.EACCESS)
        elif not known:
            self._unknown(frame)
        elif not self.selected and frame.opcode not in WITHOUT_BUCKET:
            self.respond(frame, Status.NO_BUCKET)
        elif self._is_placeholder() and frame.opcode not in CONFIG_ONLY:
            old = Feature.XERROR not in self.features
            self.respond(frame, Status.NOT_SUPPORTED if old else Status.CONFIG_ONLY)
        else:
            info = parse_frame_info(frame, len(self.bucket.map[0]) - 1)
            longest = MAX_KEY_LENGTH + (Feature.COLLECTIONS in self.features)
            try:
                if isinstance(info, Status):
                    self.respond(frame, info)
                elif len(frame.key) > longest:
                    self.respond(frame, Status.EINVAL, context=f"Key length exceeds {longest}")
                elif frame.opcode in self._handlers:
                    self._handlers[frame.opcode](frame)
                else:
                    self._document(frame, info)
            except ProtocolError as exc:
                self.respond(frame, Status.EINVAL, context=LENGTHS.get(frame.opcode, exc.message))

    def _unknown(self, frame: Frame) -> None:
        """Refuse a command that is not carried out here."""
        if not self.is_8 or frame.opcode not in GONE_IN_8 | GET_EX:
            self.respond(frame, Status.UNKNOWN_COMMAND)
            return
        missing = (name for code, name in GET_EX_NEEDS.items() if code not in self.features)
        name = next(missing, "") if frame.opcode in GET_EX else ""
        self.respond(frame, Status.NOT_SUPPORTED, context=f"{name} support must be enabled" if name else "")

    def _is_placeholder(self) -> bool:
        """Whether the node has the map of the selected bucket, and not yet the bucket."""
        return self.selected and self.node.index in self.node.config.config_only

    # ------------------------------------------------------------------ bootstrap

    def _hello(self, frame: Frame) -> None:
        wanted = Hello.parse(frame).features
        context = missing_need(wanted, is_8=self.is_8)
        if context:
            self.respond(frame, Status.EINVAL, context=context)
            return
        granted: frozenset[int] = GRANTED.intersection(wanted)
        # Each HELLO replaces the one before.
        self.features = frozenset()
        if self.is_8:
            granted = granted_in_8(wanted, granted)
            if self.producer is not None:
                granted -= {Feature.UNORDERED_EXECUTION}
            self.features = granted
        if self.bucket.skip_deletions:
            granted |= {Feature.SKIP_DELETIONS_IN_FIRST_BACKFILL}.intersection(wanted)
        self.respond(frame, value=b"".join(code.to_bytes(2, "big") for code in sorted(granted)))
        packs = Feature.SNAPPY_EVERYWHERE in granted
        self.features = granted | {Feature.SNAPPY} if packs else granted

    def _sasl_message(self, frame: Frame) -> None:
        message = parse_request(frame)
        assert isinstance(message, SaslAuth)
        if self.producer is not None:
            self.respond(frame, Status.NOT_SUPPORTED)
            return
        answer: SaslAnswer
        if frame.opcode == Opcode.SASL_AUTH:
            answer = self._sasl.auth(message.mechanism, message.payload)
        else:
            answer = self._sasl.step(message.payload)
        self.user = self._sasl.user
        value = answer.value
        refused = answer.status is Status.AUTH_ERROR or (
            answer.status is Status.EINVAL and message.mechanism.startswith("SCRAM") and not self.is_8
        )
        if refused and Feature.XERROR in self.features:
            # JSON, but not marked as such: the recorded clients had not agreed to that yet.
            external = answer.status is Status.AUTH_ERROR and self.node.credentials.asks_directory
            value = _to_json({"error": refusal(message.mechanism, external=external)})
        self.respond(frame, answer.status, value=value)

    def _select_bucket(self, frame: Frame) -> None:
        name = SelectBucket.parse(frame).bucket
        if self.producer is not None:
            context = "DCP connections cannot change bucket"
            self.respond(frame, Status.NOT_SUPPORTED, context=context)
        elif name == "@no bucket@":
            self.selected = False
            self.respond(frame)
        else:
            status = self._selection(name)
            self.selected = self.selected or status is Status.SUCCESS
            self._known_map = (0, 0)
            self.respond(frame, status)

    def _selection(self, name: str) -> Status:
        """The answer to SELECT_BUCKET: KEY_ENOENT is for users who could see such a bucket."""
        bucket, user = self.bucket, self.user or NOBODY
        known = name == bucket.name and not bucket.deleted
        if not user.may("data" if known else "admin"):
            return Status.EACCESS
        if not known or bucket.paused or self.node.index in self.node.config.starting:
            return Status.KEY_ENOENT
        return Status.SUCCESS

    def may_stream(self) -> bool:
        return self.user is not None and self.user.may("dcp")

    def rights(self, access: str, scope: int | None = None, collection: int | None = None) -> Status:
        """As :meth:`User.status`; the bucket's lock is held."""
        return (self.user or NOBODY).status(access, self.bucket.manifest, scope, collection)

    def sees(self, scope: int, collection: int | None) -> bool:
        """Whether a scope or collection exists for the user; the bucket's lock is held."""
        return (self.user or NOBODY).sees(self.bucket.manifest, scope, collection)

    def change_user(self, user: User) -> None:
        """The user has other rights: streams end that they do not include."""
        self.user = user
        if self.producer is not None:
            self.producer.check_rights()
            self.flush()

    def _cluster_config(self, frame: Frame) -> None:
        known = None
        if self.is_8 and frame.extras:
            if len(frame.extras) != _REVISION.size:
                raise ProtocolError(f"extras of {len(frame.extras)} bytes", opcode=frame.opcode)
            known = _REVISION.unpack(frame.extras)
            if known[1] < 1:
                context = "Revision number must not be less than 1"
                self.respond(frame, Status.EINVAL, context=context)
                return
        self._respond_map(frame, known, Status.SUCCESS)

    def push_config(self) -> None:
        """Send the client a new map if it asked for such pushes: the bucket's, and the cluster's."""
        brief = Feature.CLUSTERMAP_CHANGE_NOTIFICATION_BRIEF in self.features
        if self.user is None or not (brief or Feature.CLUSTERMAP_CHANGE_NOTIFICATION in self.features):
            return
        with self.bucket.lock:
            config, index = self.node.config, self.node.index
            maps = [(b"", config.cluster(index))]
            if self.selected:
                maps.insert(0, (self.bucket.name.encode(), config.terse(index)))
            for key, content in maps:
                revision = content["revEpoch"], content["rev"]
                if self.is_8 and key:
                    if self._known_map >= revision:
                        continue
                    self._known_map = revision
                value, datatype = (b"", 0) if brief else self._as_sent(content)
                notice = Frame(
                    Magic.SERVER_REQUEST,
                    ServerOpcode.CLUSTERMAP_CHANGE_NOTIFICATION,
                    datatype=int(datatype),
                    extras=_REVISION.pack(*revision),
                    key=key,
                    value=value,
                )
                self.send(notice.encode())
        self.flush()

    def _quit(self, frame: Frame) -> None:
        self.respond(frame)
        self.closing = True

    # ------------------------------------------------------------------ documents

    def _document(self, frame: Frame, info: FrameInfo) -> None:
        packed = b""
        if frame.datatype & Datatype.SNAPPY:
            if Feature.SNAPPY not in self.features:
                self.respond(frame, Status.EINVAL)
                return
            packed = frame.value
            frame = replace(frame, value=inflate(packed, MAX_VALUE_LENGTH + 1))
        if not self.holds(frame.vbucket, active=True):
            self.not_my_vbucket(frame)
            return
        key = frame.key if Feature.COLLECTIONS in self.features else b"\0" + frame.key
        try:
            cid, logical = split_key(key)
        except ProtocolError:
            logical = b""
        if not logical:
            self.respond(frame, Status.EINVAL, context="Key length must be >= 2")
            return
        with self.bucket.lock:
            manifest = self.bucket.manifest
            if cid not in manifest.ids() or not self.sees(manifest.scope_of(cid), cid):
                self.unknown_collection(frame, Status.UNKNOWN_COLLECTION)
                return
            outcome = self.node.documents.run(frame, key, info, packed)
            extras = outcome.extras
            if outcome.seqno is not None and Feature.MUTATION_SEQNO in self.features:
                vbuuid = self.bucket.vbuckets[frame.vbucket].vbuuid
                extras = mutation_token(vbuuid, outcome.seqno)
        self.respond(
            frame,
            outcome.status,
            extras=extras,
            value=outcome.value,
            cas=outcome.cas,
            datatype=outcome.datatype,
        )


# ------------------------------------------------------------------ questions about the bucket


def manifest(conn: KvConnection, frame: Frame) -> None:
    with conn.bucket.lock:
        conn.respond_json(frame, conn.bucket.manifest.json(conn.sees))


def collection_id(conn: KvConnection, frame: Frame) -> None:
    path = (frame.value or frame.key).decode(errors="replace")
    scope, dot, name = path.partition(".")
    if not dot:
        conn.respond(frame, Status.EINVAL)
        return
    with conn.bucket.lock:
        manifest = conn.bucket.manifest
        try:
            cid = manifest.collection(scope, name)
        except UnknownScopeError:
            conn.unknown_collection(frame, Status.UNKNOWN_SCOPE)
            return
        except UnknownCollectionError:
            cid = -1
        if cid < 0 or not conn.sees(manifest.scope_of(cid), cid):
            conn.unknown_collection(frame, Status.UNKNOWN_COLLECTION)
            return
        conn.respond(frame, extras=manifest.uid.to_bytes(8, "big") + cid.to_bytes(4, "big"))


def scope_id(conn: KvConnection, frame: Frame) -> None:
    name = (frame.value or frame.key).decode(errors="replace")
    with conn.bucket.lock:
        manifest = conn.bucket.manifest
        scope = manifest.scopes.get(name)
        if scope is None or not conn.sees(scope.id, None):
            conn.unknown_collection(frame, Status.UNKNOWN_SCOPE)
        else:
            conn.respond(frame, extras=manifest.uid.to_bytes(8, "big") + scope.id.to_bytes(4, "big"))


def all_seqnos(conn: KvConnection, frame: Frame) -> None:
    message = GetAllVBucketSeqnos.parse(frame)
    collections = Feature.COLLECTIONS in conn.features
    cid = message.collection_id
    state = message.state or VBucketStateCode.ANY_ALIVE
    if state > VBucketStateCode.DEAD or (cid is not None and not collections):
        context = "" if cid is not None else "Request vbucket state invalid"
        conn.respond(frame, Status.EINVAL, context=context)
        return
    with conn.bucket.lock:
        if cid is not None or not collections:
            manifest = conn.bucket.manifest
            if cid is not None and cid not in manifest.ids():
                status = Status.UNKNOWN_COLLECTION
            else:
                status = conn.rights("data", manifest.scope_of(cid or 0), cid or 0)
            if status is not Status.SUCCESS and (status is Status.EACCESS or not collections):
                conn.deny(frame, "Read")
                return
            if status is not Status.SUCCESS:
                conn.unknown_collection(frame, status)
                return
        seqnos: dict[int, int] = {}
        for vbucket, row in zip(conn.bucket.vbuckets, conn.bucket.map, strict=True):
            if not _in_state(row, conn.node.index, state):
                continue
            high: int | None = vbucket.high_seqno
            if not collections or cid is not None:
                high = vbucket.collection_high(cid or 0)
            if high is not None:
                seqnos[vbucket.id] = high
    conn.respond(frame, value=encode_vbucket_seqnos(seqnos))


def failover_log(conn: KvConnection, frame: Frame) -> None:
    if frame.opcode == Opcode.DCP_GET_FAILOVER_LOG and conn.producer is None:
        conn.respond(frame, Status.EINVAL, context=ONLY_DCP)
    elif frame.opcode == Opcode.GET_FAILOVER_LOG and conn.rights("data") is not Status.SUCCESS:
        conn.deny(frame, "Read")
    elif frame.opcode == Opcode.DCP_GET_FAILOVER_LOG and not conn.may_stream():
        conn.deny(frame, "DcpProducer")
    elif not conn.holds(frame.vbucket, active=False):
        conn.not_my_vbucket(frame)
    else:
        with conn.bucket.lock:
            log = encode_failover_log(conn.bucket.vbuckets[frame.vbucket].failover)
        conn.respond(frame, value=log)


def stat(conn: KvConnection, frame: Frame) -> None:
    group = frame.key.decode(errors="replace").split()
    if conn.user is None or not conn.user.may("admin"):
        conn.deny(frame, "SimpleStats")
        return
    with conn.bucket.lock:
        lines = stats(conn.bucket, conn.node.index, group)
    if lines is None:
        conn.respond(frame, Status.KEY_ENOENT)
        return
    marks = conn.is_8 and Feature.JSON in conn.features and group[:1] not in (["collections"], ["scopes"])
    for name, text in [*lines, ("", "")]:
        datatype = int(Datatype.JSON) if marks and is_json(text.encode()) else 0
        conn.reply(frame, key=name.encode(), value=text.encode(), datatype=datatype)


def _in_state(row: list[int], node: int, state: int) -> bool:
    if state == VBucketStateCode.ANY_ALIVE:
        return node in row
    if state == VBucketStateCode.ACTIVE:
        return row[0] == node
    return state == VBucketStateCode.REPLICA and node in row[1:]


QUERIES: dict[int, Callable[[KvConnection, Frame], None]] = {
    Opcode.COLLECTIONS_GET_MANIFEST: manifest,
    Opcode.COLLECTIONS_GET_ID: collection_id,
    Opcode.COLLECTIONS_GET_SCOPE_ID: scope_id,
    Opcode.GET_ALL_VB_SEQNOS: all_seqnos,
    Opcode.GET_FAILOVER_LOG: failover_log,
    Opcode.DCP_GET_FAILOVER_LOG: failover_log,
    Opcode.STAT: stat,
}


# ------------------------------------------------------------------ DCP


def dcp_open(conn: KvConnection, frame: Frame) -> None:
    message = DcpOpen.parse(frame)
    if not conn.may_stream():
        conn.deny(frame, "DcpProducer")
        return
    if conn.producer is not None:
        context = "The connection is already opened as a DCP connection"
        conn.respond(frame, Status.EINVAL, context=context)
        return
    wrong = open_error(message, frame.key, conn.features, is_8=conn.is_8) or value_error(message, frame)
    if wrong is not None:
        conn.respond(frame, Status.EINVAL, context=wrong)
        return
    if conn.is_8 and Feature.UNORDERED_EXECUTION in conn.features:
        context = "DCP on connections with unordered execution is not supported"
        conn.respond(frame, Status.NOT_SUPPORTED, context=context)
        return
    conn.node.close_namesake(message.name)
    conn.producer = Producer(conn, conn.bucket, message, conn.node.noop_interval)
    # Errors are JSON from now on, whatever HELLO said.
    conn.features |= {Feature.JSON}
    conn.respond(frame)


def dcp(conn: KvConnection, frame: Frame) -> None:
    producer = conn.producer
    if producer is None:
        conn.respond(frame, Status.EINVAL, context=ONLY_DCP)
        return
    if frame.opcode == Opcode.DCP_NOOP:
        # "This connection doesn't support the noop API": the server disconnects.
        conn.close()
        return
    message = parse_request(frame)
    if isinstance(message, BufferAck):
        if not conn.node.dropping_acks:
            producer.acknowledge(message)
    elif isinstance(message, DcpControl):
        status, context = producer.control(message)
        conn.respond(frame, status, context=context)
    elif isinstance(message, StreamRequest):
        producer.stream_request(frame, message)
    else:
        info = parse_frame_info(frame, 0)
        producer.close_stream(frame, info.sid if isinstance(info, FrameInfo) else 0)


COMMANDS: dict[int, Callable[[KvConnection, Frame], None]] = {
    Opcode.DCP_OPEN: dcp_open,
    Opcode.DCP_CONTROL: dcp,
    Opcode.DCP_STREAM_REQ: dcp,
    Opcode.DCP_CLOSE_STREAM: dcp,
    Opcode.DCP_BUFFER_ACK: dcp,
    Opcode.DCP_NOOP: dcp,
}


def _to_json(content: object) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode()
