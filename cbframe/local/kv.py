"""One KV connection: from HELLO to the operation, one request after the other.

:data:`HANDLERS` says what answers a request; operations on documents are the node's
:class:`~cbframe.local.documents.DocumentService`. From DCP_OPEN on the connection has a
:class:`~cbframe.local.dcp.Producer`, which fills what the channel sends.
"""

from __future__ import annotations

import json
import math
import os
import struct
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Protocol

from cbframe.errors import ProtocolError
from cbframe.local.auth import MECHANISMS, NOBODY, Credentials, SaslServer, User
from cbframe.local.bucket import (
    LocalBucket,
    UnknownCollectionError,
    UnknownScopeError,
    VBucket,
    json_datatype,
)
from cbframe.local.cluster_manager import ClusterConfig
from cbframe.local.dcp import Producer, open_error, value_error
from cbframe.local.documents import DocumentService, FrameInfo, parse_frame_info
from cbframe.local.items import MUTATION, collection_of, deflate, inflate, key_of
from cbframe.local.loop import AnySocket, Channel, Loop
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
    Observed,
    ObserveSeqno,
    SaslAuth,
    SelectBucket,
    StreamRequest,
    encode_failover_log,
    encode_vbucket_seqnos,
    parse_request,
    split_key,
)

_BEFORE_AUTH = frozenset(
    {Opcode.HELLO, Opcode.SASL_LIST_MECHS, Opcode.SASL_AUTH, Opcode.SASL_STEP, Opcode.GET_ERROR_MAP}
)
_WITHOUT_BUCKET = _BEFORE_AUTH | {
    Opcode.SELECT_BUCKET,
    Opcode.GET_CLUSTER_CONFIG,
    Opcode.NOOP,
    Opcode.QUIT,
    Opcode.VERSION,
}
_CONFIG_ONLY = frozenset(
    {Opcode.HELLO, Opcode.GET_ERROR_MAP, Opcode.GET_CLUSTER_CONFIG, Opcode.SELECT_BUCKET}
)
"""What a node answers that has a bucket's map, and not yet the bucket."""
_GONE_IN_8 = frozenset(
    {
        *(0x08, 0x18, *range(0x30, 0x3D), *range(0x40, 0x48), 0x5A, 0x97, 0x9E, 0x9F),
        *(0xA6, 0xA7, 0xAA, 0xAC, 0xB0, 0xB1, 0xC1, 0xC2, 0xF0, 0xF2),
    }
)
"""Opcodes of former releases that 8.0 knows, and does not support; 0xAA is CREATE_CHECKPOINT."""
_GET_EX = frozenset({0x49, 0x4A})
_GET_EX_NEEDS = {Feature.XATTR: "Xattr", Feature.JSON: "JSON", Feature.SNAPPY_EVERYWHERE: "SnappyEverywhere"}
"""Reads of a document with its attributes, which 8.0 has and the embedded cluster does not, and what
they are refused without."""
_LENGTHS: dict[int, str] = {
    Opcode.GET_ALL_VB_SEQNOS: "Request extras must be of length 0 or 4 or 8",
    Opcode.DCP_STREAM_REQ: "Request must include extras of length 48",
    Opcode.DCP_BUFFER_ACK: "Request must include extras of length 4",
    Opcode.GET_CLUSTER_CONFIG: "Request must include extras of length 16",
}
"""The real server's words for extras of another length."""
_ONLY_DCP = "The command can only be sent on a DCP connection"
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
        self.is_8 = node.bucket.is_8
        self.features: frozenset[int] = frozenset()
        self.user: User | None = None
        self.selected = False
        self.producer: Producer | None = None
        self._known_map = (0, 0)
        """Epoch and revision of the newest map that the client has of the selected bucket."""
        self._sasl = SaslServer(node.credentials, scram_for_all=not self.is_8)
        self._buffer = bytearray()
        self._heard = self.now()
        self._began = 0.0
        """When the request at hand was read, for the answer's framing extras."""

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

    def watch(self, vbucket: int, change: int) -> None:
        self.node.watch(vbucket, change)

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        def run() -> None:
            call()
            self.flush()

        self.loop.call_later(seconds, run)

    def now(self) -> float:
        return self.loop.clock()

    # ------------------------------------------------------------------ answers

    def respond(
        self,
        frame: Frame,
        status: int = Status.SUCCESS,
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
        self._reply(frame, status, cas=cas, datatype=datatype, extras=extras, value=value)

    def _reply(
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
            # How long the server had the request, in a floating point of 16 bits.
            micros = 1e6 * max(self.now() - self._began, 0.0)
            encoded = min(0xFFFF, round(math.pow(2 * micros, 1 / 1.74)))
            magic, framing = Magic.FLEX_RESPONSE, b"\x02" + encoded.to_bytes(2, "big")
        answer = Frame(magic, frame.opcode, status, frame.opaque, cas, datatype, extras, key, value, framing)
        self.send(answer.encode())

    def respond_json(self, frame: Frame, content: object, status: Status = Status.SUCCESS) -> None:
        self.respond(frame, status, value=_to_json(content), datatype=int(Datatype.JSON))

    def deny(self, frame: Frame, privilege: str) -> None:
        """Refuse a request that the user lacks a privilege for; clients without XERROR are hung up on."""
        if Feature.XERROR not in self.features:
            self.close()
            return
        opcode = Opcode(frame.opcode).name
        context = f"Authorization failure: can't execute {opcode} operation without the {privilege} privilege"
        error = {"context": context, "ref": str(uuid.uuid4())}
        # Marked as JSON even if the client did not agree to that, as recorded.
        self._reply(frame, Status.EACCESS, datatype=int(Datatype.JSON), value=_to_json({"error": error}))

    def refuse(self, frame: Frame, status: Status) -> None:
        """Refuse a request, in a form that the client understands.

        Those who did not ask for extended errors (XERROR) do not know all statuses.
        """
        if status in {Status.UNKNOWN_COLLECTION, Status.UNKNOWN_SCOPE}:
            if self.features.isdisjoint({Feature.XERROR, Feature.COLLECTIONS}):
                self.respond(frame, Status.EINVAL)
            else:
                self._unknown_collection(frame, status)
        elif status is Status.EACCESS and Feature.XERROR not in self.features:
            self.close()
        else:
            self.respond(frame, status)

    def _unknown_collection(self, frame: Frame, status: Status) -> None:
        error = {
            "error": {"context": "Unknown scope or collection in operation"},
            "manifest_uid": f"{self.bucket.manifest.uid:x}",
        }
        self.respond_json(frame, error, status)

    def not_my_vbucket(self, frame: Frame) -> None:
        sparing = Feature.DEDUPE_NOT_MY_VBUCKET_CLUSTERMAP in self.features
        self._respond_map(frame, self._known_map if sparing else None, Status.NOT_MY_VBUCKET)

    def _respond_map(self, frame: Frame, known: tuple[int, int] | None, status: Status) -> None:
        """Answer with the map, or without a body if the client has this one or a newer one."""
        with self.bucket.lock:
            config, index = self.node.config, self.node.index
            content = config.terse(index) if self.selected else config.cluster(index)
        revision = content["revEpoch"], content["rev"]
        if known is not None and known >= revision:
            self.respond(frame, status)
        else:
            value, datatype = self._map_as_sent(content)
            self.respond(frame, status, value=value, datatype=datatype)
        self._known_map = max(revision, known or revision)

    def _map_as_sent(self, content: object) -> tuple[bytes, int]:
        """A map as the client wants it, and its datatype."""
        value, datatype = _to_json(content), int(Datatype.JSON)
        if Feature.SNAPPY_EVERYWHERE in self.features:
            return deflate(value), datatype | Datatype.SNAPPY
        return value, datatype

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
                value, datatype = (b"", 0) if brief else self._map_as_sent(content)
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

    # ------------------------------------------------------------------ rights, and what is here

    def may_stream(self) -> bool:
        return self.user is not None and self.user.may("dcp")

    def rights(self, access: str, scope: int | None = None, collection: int | None = None) -> Status:
        """As :meth:`User.status`; the bucket's lock is held."""
        return (self.user or NOBODY).status(access, self.bucket.manifest, scope, collection)

    def _sees(self, scope: int, collection: int | None) -> bool:
        """Whether a scope or collection exists for the user; the bucket's lock is held."""
        return (self.user or NOBODY).sees(self.bucket.manifest, scope, collection)

    def change_user(self, user: User) -> None:
        """The user has other rights: streams end that they do not include."""
        self.user = user
        if self.producer is not None:
            self.producer.check_rights()
            self.flush()

    def holds(self, vbucket: int, *, active: bool) -> bool:
        """Whether this node has the vbucket, as its owner if `active`."""
        if vbucket >= len(self.bucket.map):
            return False
        row = self.bucket.map[vbucket]
        return self.node.index in (row[:1] if active else row)

    # ------------------------------------------------------------------ dispatch

    def _handle(self, frame: Frame) -> None:
        if frame.is_response:
            if frame.opcode == Opcode.DCP_NOOP and self.producer is not None:
                self.producer.noop_answered()
            return
        if frame.magic not in (Magic.REQUEST, Magic.FLEX_REQUEST):
            raise ProtocolError(f"magic 0x{frame.magic:02x} is no request")
        self._began = self.now()
        placeholder = self.selected and self.node.index in self.node.config.config_only
        if self.user is None and frame.opcode not in _BEFORE_AUTH:
            self.respond(frame, Status.EACCESS)
        elif frame.opcode not in HANDLERS and not self.node.documents.knows(frame.opcode):
            self._unknown(frame)
        elif not self.selected and frame.opcode not in _WITHOUT_BUCKET:
            self.respond(frame, Status.NO_BUCKET)
        elif placeholder and frame.opcode not in _CONFIG_ONLY:
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
                elif frame.opcode in HANDLERS:
                    HANDLERS[frame.opcode](self, frame)
                else:
                    self._document(frame, info)
            except ProtocolError as exc:
                self.respond(frame, Status.EINVAL, context=_LENGTHS.get(frame.opcode, exc.message))

    def _unknown(self, frame: Frame) -> None:
        """Refuse a command that is not carried out here."""
        if not self.is_8 or frame.opcode not in _GONE_IN_8 | _GET_EX:
            self.respond(frame, Status.UNKNOWN_COMMAND)
            return
        missing = (name for code, name in _GET_EX_NEEDS.items() if code not in self.features)
        name = next(missing, "") if frame.opcode in _GET_EX else ""
        self.respond(frame, Status.NOT_SUPPORTED, context=f"{name} support must be enabled" if name else "")

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
            if cid not in manifest.ids() or not self._sees(manifest.scope_of(cid), cid):
                self._unknown_collection(frame, Status.UNKNOWN_COLLECTION)
                return
            done = self.node.documents.run(frame, key, info, packed)
            extras = done.extras
            if done.seqno is not None and Feature.MUTATION_SEQNO in self.features:
                extras = struct.pack(">QQ", self.bucket.vbuckets[frame.vbucket].vbuuid, done.seqno)
        self.respond(
            frame, done.status, extras=extras, value=done.value, cas=done.cas, datatype=done.datatype
        )

    # ------------------------------------------------------------------ bootstrap

    def hello(self, frame: Frame) -> None:
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

    def list_mechanisms(self, frame: Frame) -> None:
        self.respond(frame, value=MECHANISMS.encode())

    def get_error_map(self, frame: Frame) -> None:
        self.respond_json(frame, error_map(frame.value, is_8=self.is_8))

    def authenticate(self, frame: Frame) -> None:
        message = parse_request(frame)
        assert isinstance(message, SaslAuth)
        if self.producer is not None:
            self.respond(frame, Status.NOT_SUPPORTED)
            return
        if frame.opcode == Opcode.SASL_AUTH:
            status, value = self._sasl.auth(message.mechanism, message.payload)
        else:
            status, value = self._sasl.step(message.payload)
        self.user = self._sasl.user
        failed = status is Status.AUTH_ERROR
        malformed = status is Status.EINVAL and message.mechanism.startswith("SCRAM") and not self.is_8
        if (failed or malformed) and Feature.XERROR in self.features:
            # JSON, but not marked as such: the recorded clients had not agreed to that yet.
            value = _to_json({"error": self._login_error(message.mechanism, failed=failed)})
        self.respond(frame, status, value=value)

    def _login_error(self, mechanism: str, *, failed: bool) -> dict[str, str]:
        if mechanism not in MECHANISMS.split():
            return {"context": f'Requested mechanism "{mechanism}" is not supported'}
        error = {"ref": str(uuid.uuid4())}  # What to look for in the server's log.
        if failed and self.node.credentials.asks_directory:
            context = f"Wrong credentials, or {mechanism} does not serve for external users"
            error = {"context": context, **error}
        return error

    def select_bucket(self, frame: Frame) -> None:
        name = SelectBucket.parse(frame).bucket
        if self.producer is not None:
            self.respond(frame, Status.NOT_SUPPORTED, context="DCP connections cannot change bucket")
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

    def cluster_config(self, frame: Frame) -> None:
        known = None
        if self.is_8 and frame.extras:
            if len(frame.extras) != _REVISION.size:
                raise ProtocolError(f"extras of {len(frame.extras)} bytes", opcode=frame.opcode)
            known = _REVISION.unpack(frame.extras)
            if known[1] < 1:
                self.respond(frame, Status.EINVAL, context="Revision number must not be less than 1")
                return
        self._respond_map(frame, known, Status.SUCCESS)

    def version(self, frame: Frame) -> None:
        self.respond(frame, value=self.bucket.release.build.encode())

    def quit(self, frame: Frame) -> None:
        self.respond(frame)
        self.closing = True

    # ------------------------------------------------------------------ questions about the bucket

    def get_manifest(self, frame: Frame) -> None:
        with self.bucket.lock:
            self.respond_json(frame, self.bucket.manifest.json(self._sees))

    def collection_id(self, frame: Frame) -> None:
        path = (frame.value or frame.key).decode(errors="replace")
        scope, dot, name = path.partition(".")
        if not dot:
            self.respond(frame, Status.EINVAL)
            return
        with self.bucket.lock:
            manifest = self.bucket.manifest
            try:
                cid = manifest.collection(scope, name)
            except UnknownScopeError:
                self._unknown_collection(frame, Status.UNKNOWN_SCOPE)
                return
            except UnknownCollectionError:
                cid = -1
            if cid < 0 or not self._sees(manifest.scope_of(cid), cid):
                self._unknown_collection(frame, Status.UNKNOWN_COLLECTION)
                return
            self.respond(frame, extras=struct.pack(">QI", manifest.uid, cid))

    def scope_id(self, frame: Frame) -> None:
        name = (frame.value or frame.key).decode(errors="replace")
        with self.bucket.lock:
            manifest = self.bucket.manifest
            scope = manifest.scopes.get(name)
            if scope is None or not self._sees(scope.id, None):
                self._unknown_collection(frame, Status.UNKNOWN_SCOPE)
            else:
                self.respond(frame, extras=struct.pack(">QI", manifest.uid, scope.id))

    def all_seqnos(self, frame: Frame) -> None:
        message = GetAllVBucketSeqnos.parse(frame)
        collections = Feature.COLLECTIONS in self.features
        cid = message.collection_id
        state = message.state or VBucketStateCode.ANY_ALIVE
        if state > VBucketStateCode.DEAD or (cid is not None and not collections):
            context = "" if cid is not None else "Request vbucket state invalid"
            self.respond(frame, Status.EINVAL, context=context)
            return
        with self.bucket.lock:
            if cid is not None or not collections:
                manifest = self.bucket.manifest
                if cid is not None and cid not in manifest.ids():
                    status = Status.UNKNOWN_COLLECTION
                else:
                    status = self.rights("data", manifest.scope_of(cid or 0), cid or 0)
                if status is not Status.SUCCESS and (status is Status.EACCESS or not collections):
                    self.deny(frame, "Read")
                    return
                if status is not Status.SUCCESS:
                    self._unknown_collection(frame, status)
                    return
            seqnos: dict[int, int] = {}
            for vbucket, row in zip(self.bucket.vbuckets, self.bucket.map, strict=True):
                if not _in_state(row, self.node.index, state):
                    continue
                high: int | None = vbucket.high_seqno
                if not collections or cid is not None:
                    high = vbucket.collection_high(cid or 0)
                if high is not None:
                    seqnos[vbucket.id] = high
        self.respond(frame, value=encode_vbucket_seqnos(seqnos))

    def failover_log(self, frame: Frame) -> None:
        if frame.opcode == Opcode.DCP_GET_FAILOVER_LOG and self.producer is None:
            self.respond(frame, Status.EINVAL, context=_ONLY_DCP)
        elif frame.opcode == Opcode.GET_FAILOVER_LOG and self.rights("data") is not Status.SUCCESS:
            self.deny(frame, "Read")
        elif frame.opcode == Opcode.DCP_GET_FAILOVER_LOG and not self.may_stream():
            self.deny(frame, "DcpProducer")
        elif not self.holds(frame.vbucket, active=False):
            self.not_my_vbucket(frame)
        else:
            with self.bucket.lock:
                log = encode_failover_log(self.bucket.vbuckets[frame.vbucket].failover)
            self.respond(frame, value=log)

    def observe_seqno(self, frame: Frame) -> None:
        asked = ObserveSeqno.parse(frame).vbuuid
        if not self.holds(frame.vbucket, active=False):
            self.not_my_vbucket(frame)
            return
        with self.bucket.lock:
            received, persisted, log = self.bucket.vbuckets[frame.vbucket].copy(self.node.index)
        persisted = 0 if self.bucket.ephemeral else persisted
        found = Observed(frame.vbucket, log[0].vbuuid, persisted, received)
        ends = {older.vbuuid: newer.seqno for newer, older in pairwise(log)}
        if asked in ends:
            found = replace(found, asked=asked, ends=ends[asked])
        elif asked != found.vbuuid:
            self.respond(frame, Status.KEY_ENOENT)
            return
        self.respond(frame, value=found.encode())

    def stat(self, frame: Frame) -> None:
        group = frame.key.decode(errors="replace").split()
        if self.user is None or not self.user.may("admin"):
            self.deny(frame, "SimpleStats")
            return
        with self.bucket.lock:
            lines = stats(self.bucket, self.node.index, group)
        if lines is None:
            self.respond(frame, Status.KEY_ENOENT)
            return
        plain = (
            not self.is_8 or Feature.JSON not in self.features or group[:1] in (["collections"], ["scopes"])
        )
        for name, text in [*lines, ("", "")]:
            value = text.encode()
            datatype = 0 if plain else json_datatype(value)
            self._reply(frame, key=name.encode(), value=value, datatype=datatype)

    # ------------------------------------------------------------------ DCP

    def dcp_open(self, frame: Frame) -> None:
        message = DcpOpen.parse(frame)
        if not self.may_stream():
            self.deny(frame, "DcpProducer")
            return
        if self.producer is not None:
            context = "The connection is already opened as a DCP connection"
            self.respond(frame, Status.EINVAL, context=context)
            return
        wrong = open_error(message, frame.key, self.features, is_8=self.is_8) or value_error(message, frame)
        if wrong is not None:
            self.respond(frame, Status.EINVAL, context=wrong)
            return
        if self.is_8 and Feature.UNORDERED_EXECUTION in self.features:
            context = "DCP on connections with unordered execution is not supported"
            self.respond(frame, Status.NOT_SUPPORTED, context=context)
            return
        self.node.close_namesake(message.name)
        self.producer = Producer(self, self.bucket, message, self.node.noop_interval)
        # Errors are JSON from now on, whatever HELLO said.
        self.features |= {Feature.JSON}
        self.respond(frame)

    def dcp(self, frame: Frame) -> None:
        producer = self.producer
        if producer is None:
            self.respond(frame, Status.EINVAL, context=_ONLY_DCP)
            return
        if frame.opcode == Opcode.DCP_NOOP:
            # "This connection doesn't support the noop API": the server disconnects.
            self.close()
            return
        message = parse_request(frame)
        if isinstance(message, BufferAck):
            if not self.node.dropping_acks:
                producer.acknowledge(message)
        elif isinstance(message, DcpControl):
            status, context = producer.control(message)
            self.respond(frame, status, context=context)
        elif isinstance(message, StreamRequest):
            producer.stream_request(frame, message)
        else:
            info = parse_frame_info(frame, 0)
            producer.close_stream(frame, info.sid if isinstance(info, FrameInfo) else 0)


def _in_state(row: list[int], node: int, state: int) -> bool:
    if state == VBucketStateCode.ANY_ALIVE:
        return node in row
    if state == VBucketStateCode.ACTIVE:
        return row[0] == node
    return state == VBucketStateCode.REPLICA and node in row[1:]


def _to_json(content: object) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode()


HANDLERS: dict[int, Callable[[KvConnection, Frame], None]] = {
    Opcode.HELLO: KvConnection.hello,
    Opcode.SASL_LIST_MECHS: KvConnection.list_mechanisms,
    Opcode.SASL_AUTH: KvConnection.authenticate,
    Opcode.SASL_STEP: KvConnection.authenticate,
    Opcode.GET_ERROR_MAP: KvConnection.get_error_map,
    Opcode.SELECT_BUCKET: KvConnection.select_bucket,
    Opcode.GET_CLUSTER_CONFIG: KvConnection.cluster_config,
    Opcode.NOOP: KvConnection.respond,
    Opcode.VERSION: KvConnection.version,
    Opcode.QUIT: KvConnection.quit,
    Opcode.COLLECTIONS_GET_MANIFEST: KvConnection.get_manifest,
    Opcode.COLLECTIONS_GET_ID: KvConnection.collection_id,
    Opcode.COLLECTIONS_GET_SCOPE_ID: KvConnection.scope_id,
    Opcode.GET_ALL_VB_SEQNOS: KvConnection.all_seqnos,
    Opcode.GET_FAILOVER_LOG: KvConnection.failover_log,
    Opcode.DCP_GET_FAILOVER_LOG: KvConnection.failover_log,
    Opcode.OBSERVE_SEQNO: KvConnection.observe_seqno,
    Opcode.STAT: KvConnection.stat,
    Opcode.DCP_OPEN: KvConnection.dcp_open,
    Opcode.DCP_CONTROL: KvConnection.dcp,
    Opcode.DCP_STREAM_REQ: KvConnection.dcp,
    Opcode.DCP_CLOSE_STREAM: KvConnection.dcp,
    Opcode.DCP_BUFFER_ACK: KvConnection.dcp,
    Opcode.DCP_NOOP: KvConnection.dcp,
}
"""Each may raise ProtocolError, which is answered with EINVAL; requests for documents are not here."""


# --- lines of the STAT groups that clients ask for


def stats(bucket: LocalBucket, node: int, group: list[str]) -> list[tuple[str, str]] | None:
    """Names and values of a group, ``NAME [vbucket]``, or of the node; None if it is not known."""
    if not group:
        return [*_general(bucket)]
    groups = _GROUPS
    if bucket.release.is_8:
        groups = _GROUPS | _GROUPS_OF_8
        if group[0] in _ZEROS_OF_8:
            return [(name, _WORDS.get(name, "0")) for name in _ZEROS_OF_8[group[0]]]
        if group[0] in {"collections", "scopes"}:
            return [*_manifest(bucket, scopes=group[0] == "scopes")]
    if group[0] not in groups:
        return None
    wanted = [vb for vb in bucket.vbuckets if node in bucket.map[vb.id]]
    if len(group) > 1:
        wanted = [vb for vb in wanted if str(vb.id) == group[1]]
    lines = groups[group[0]]
    return [
        line for vb in wanted for line in lines(vb, "active" if bucket.map[vb.id][0] == node else "replica")
    ]


def _general(bucket: LocalBucket) -> Iterator[tuple[str, str]]:
    """What a node says of itself, of the hundreds of lines those by which clients tell the time."""
    yield "pid", str(os.getpid())
    yield "time", str(bucket.now())
    yield "pointer_size", "64"


def _seqnos(vb: VBucket, _state: str) -> Iterator[tuple[str, str]]:
    high = vb.high_seqno
    for name, number in (
        ("high_seqno", high),
        ("abs_high_seqno", high),
        ("last_persisted_seqno", high),
        ("uuid", vb.vbuuid),
        ("purge_seqno", vb.purge_seqno),
        ("last_persisted_snap_start", high),
        ("last_persisted_snap_end", high),
        ("high_prepared_seqno", 0),
        ("high_completed_seqno", 0),
        ("max_visible_seqno", high),
    ):
        yield f"vb_{vb.id}:{name}", str(number)


def _details(vb: VBucket, state: str) -> Iterator[tuple[str, str]]:
    yield f"vb_{vb.id}", state
    for name, number in (
        ("num_items", vb.documents),
        ("db_data_size", vb.stored_bytes),
        ("high_seqno", vb.high_seqno),
        ("uuid", vb.vbuuid),
        ("purge_seqno", vb.purge_seqno),
        ("max_visible_seqno", vb.max_visible(vb.high_seqno)),
    ):
        yield f"vb_{vb.id}:{name}", str(number)


def _failovers(vb: VBucket, _state: str) -> Iterator[tuple[str, str]]:
    yield f"vb_{vb.id}:num_entries", str(len(vb.failover))
    yield f"vb_{vb.id}:num_erroneous_entries_erased", "0"
    for i, entry in enumerate(vb.failover):
        yield f"vb_{vb.id}:{i}:id", str(entry.vbuuid)
        yield f"vb_{vb.id}:{i}:seq", str(entry.seqno)


def _names(text: str) -> list[str]:
    return text.split()


_GROUPS = {"vbucket-seqno": _seqnos, "vbucket-details": _details, "failovers": _failovers}

_DETAILS_OF_8 = _names("""
    num_items num_temp_items num_non_resident num_prepared_sync_writes ht_memory ht_num_items
    ht_num_deleted_items ht_num_in_memory_items ht_num_in_memory_non_resident_items ht_num_temp_items
    ht_item_memory ht_item_memory_uncompressed ht_cache_size ht_size num_ejects ops_create ops_delete
    ops_get ops_reject ops_update queue_size queue_memory queue_fill queue_drain queue_age pending_writes
    uuid purge_seqno bloom_filter bloom_filter_size bloom_filter_key_count bloom_filter_memory
    rollback_item_count hp_vb_req_size might_contain_xattrs max_deleted_revid high_completed_seqno
    sync_write_accepted_count sync_write_committed_count sync_write_committed_not_durable_count
    sync_write_aborted_count max_visible_seqno persistence_seqno max_cas max_cas_str total_abs_drift
    total_abs_drift_count drift_ahead_threshold_exceeded drift_behind_threshold_exceeded
    logical_clock_ticks drift_ahead_threshold drift_behind_threshold high_seqno topology
    high_prepared_seqno STATE db_data_size db_file_size db_prepare_size history_items_flushed
""")
"""In the order in which 8.0 has them; the state of the vbucket has no name."""
_WORDS = {
    "bloom_filter": "ENABLED",
    "might_contain_xattrs": "false",
    "max_cas_str": "1970-01-01T00:00:00.0",
    "topology": "null",
    "ep_warmup": "enabled",
    "ep_warmup_state": "done",
    "ep_warmup_thread": "complete",
    "ep_warmup_estimated_value_count": "unknown",
    "ep_secondary_warmup_status": "complete",
    "ep_secondary_warmup_state": "done",
}
"""What is not 0 of the statistics that are made up here."""
_NUMBERS = _names("collections_mem_used items data_size ops_store ops_delete ops_get")
_ZEROS_OF_8 = {
    "dcp": _names("""
        ep_dcp_count ep_dcp_producer_count ep_dcp_consumer_count ep_dcp_total_bytes
        ep_dcp_total_uncompressed_data_size ep_dcp_queue_fill ep_dcp_backfill_disk ep_dcp_backfill_memory
        ep_dcp_items_sent ep_dcp_items_remaining ep_dcp_num_running_backfills ep_dcp_max_running_backfills
        ep_dcp_dead_conn_count
    """),
    "warmup": _names("""
        ep_warmup ep_warmup_state ep_warmup_thread ep_warmup_oom ep_warmup_dups ep_warmup_time
        ep_warmup_key_count ep_warmup_value_count ep_warmup_estimated_key_count
        ep_warmup_estimated_value_count ep_warmup_access_log_keys_loaded
        ep_primary_warmup_min_memory_threshold ep_primary_warmup_min_items_threshold ep_warmup_keys_time
        ep_warmup_estimate_time ep_secondary_warmup_status ep_secondary_warmup_time
        ep_secondary_warmup_state ep_secondary_warmup_min_memory_threshold
        ep_secondary_warmup_min_items_threshold ep_secondary_warmup_estimated_value_count
        ep_warmup_access_log_keys_loaded
    """),
}
"""Groups whose numbers are all 0 here."""


def _details_of_8(vb: VBucket, state: str) -> Iterator[tuple[str, str]]:
    known = {name.partition(":")[2]: number for name, number in [*_seqnos(vb, state), *_details(vb, state)]}
    for name in _DETAILS_OF_8:
        number = known.get(name, _WORDS.get(name, "0"))
        yield (f"vb_{vb.id}", state) if name == "STATE" else (f"vb_{vb.id}:{name}", number)


def _state(vb: VBucket, state: str) -> Iterator[tuple[str, str]]:
    yield f"vb_{vb.id}", state


_GROUPS_OF_8 = {"vbucket-details": _details_of_8, "vbucket": _state}


def _manifest(bucket: LocalBucket, *, scopes: bool) -> Iterator[tuple[str, str]]:
    """What the manifest says, then the numbers of each collection or scope."""
    manifest = bucket.manifest
    items: Counter[int] = Counter()
    sizes: Counter[int] = Counter()
    for vb in bucket.vbuckets:
        for frame in vb.current(0):
            if frame[1] == MUTATION:
                cid = collection_of(key_of(frame))
                items[cid] += 1
                sizes[cid] += len(frame)
    yield "manifest_uid", f"{manifest.uid:x}"
    newest_first = sorted(manifest.scopes.items(), key=lambda item: -item[1].id)
    numbered: list[tuple[str, list[int], dict[str, str]]] = []
    for name, scope in newest_first:
        prefix, members = f"0x{scope.id:x}", scope.collections
        of_scope = {"name": name, "collections": str(len(members))}
        if scopes:
            yield from ((f"{prefix}:{field}", text) for field, text in of_scope.items())
            numbered.append((prefix, list(members.values()), of_scope))
        for collection, cid in members.items():
            own = f"{prefix}:0x{cid:x}"
            yield f"{own}:name", collection
            if not scopes:
                yield f"{own}:metered", "no"
                yield f"{own}:history", str(manifest.history).lower()
                numbered.append((own, [cid], {"name": collection, "scope_name": name}))
    if not scopes:
        # The default collection, then the newest first.
        numbered.sort(key=lambda entry: (entry[1] != [0], -entry[1][0]))
    for prefix, cids, names in numbered:
        for field in _NUMBERS:
            known = {"items": items, "data_size": sizes}.get(field, Counter())
            yield f"{prefix}:{field}", str(sum(known[cid] for cid in cids))
        yield from ((f"{prefix}:{field}", text) for field, text in names.items())
