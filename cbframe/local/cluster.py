"""``LocalCluster``: the public entry point of the embedded cluster.

What it does is done by an :class:`~cbframe.local.engine.Engine`, in this process or in another; the verbs
of both are the same, and are written once, in the engine.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial, update_wrapper
from itertools import islice
from pathlib import Path
from typing import IO, Any, Concatenate, Literal, ParamSpec, Self, TypeVar, cast
from urllib.parse import quote

from cbframe import errors
from cbframe.errors import CbframeError, ConfigurationError, ConnectError
from cbframe.local.bucket import Value, to_bytes
from cbframe.local.cluster_manager import HOST
from cbframe.local.engine import Engine
from cbframe.local.loop import ServerTLS
from cbframe.local.release import check_release
from cbframe.public import Closing
from cbframe.system import nobody_reads, reported, starting_process

P = ParamSpec("P")
T = TypeVar("T")

_BULK_STEP = 8192
_END_TIMEOUT = 10.0


class RemoteEngine:
    """Has the methods of :class:`Engine` by their names: they are called in the child.

    The messages are pickles, of plain values only. Nobody else has the ends of the two pipes.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        package_root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, (package_root, os.environ.get("PYTHONPATH"))))
        self._lock = threading.Lock()
        with starting_process():
            self._child = subprocess.Popen(
                [sys.executable, "-m", "cbframe.local", "--control"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": path},
            )
        try:
            self._exchange(options)
        except CbframeError:
            self.close()
            raise

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_"):
            raise AttributeError(name)
        return partial(self._call, name)

    def _call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        options = {option: _plain(value) for option, value in kwargs.items()}
        return self._exchange((name, tuple(map(_plain, args)), options))

    def upsert(self, key: str | bytes, value: Value, **options: Any) -> int:
        """With the bytes of the document: what JSON cannot have is refused on this side."""
        seqno: int = self._call("upsert", key, to_bytes(value), **options)
        return seqno

    def bulk_load(self, pairs: Iterable[tuple[bytes, bytes]], **options: Any) -> int:
        """In pieces, so that neither side holds everything twice."""
        iterator, loaded = iter(pairs), 0
        while batch := list(islice(iterator, _BULK_STEP)):
            loaded += self._call("bulk_load", batch, **options)
        return loaded

    def close(self) -> None:
        """End the child and wait for it."""
        child = self._child
        assert child.stdin is not None
        assert child.stdout is not None
        with suppress(OSError):  # It has ended already.
            child.stdin.close()
        try:
            child.wait(_END_TIMEOUT)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        child.stdout.close()

    def _exchange(self, message: Any) -> Any:
        stdin, stdout = self._child.stdin, self._child.stdout
        assert stdin is not None
        assert stdout is not None
        packed = pickle.dumps(message)
        with self._lock:
            try:
                stdin.write(packed)
                stdin.flush()
                error, result = pickle.load(stdout)  # noqa: S301 - our child's, see above
            except (OSError, EOFError, ValueError, pickle.UnpicklingError) as exc:
                raise ConnectError("the process of the local cluster has ended") from exc
        if error is not None:
            raise getattr(errors, error, CbframeError)(result)
        return result


def _plain(value: Any) -> Any:
    """An argument that can be pickled, and read without the caller's modules."""
    if isinstance(value, int) and not isinstance(value, bool):
        return int(value)
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        return value
    return dict(value) if isinstance(value, Mapping) else list(value)


def control(stdin: IO[bytes], stdout: IO[bytes]) -> int:
    """Do what the parent says, from the options of the cluster to the end of the input.

    Each answer has the name of an error or None, and its message or the result.
    """
    # Ctrl-C goes to the whole group of processes: the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    engine: Engine | None = None

    def call(message: Any) -> Any:
        nonlocal engine
        if engine is None:
            engine = Engine(**message)
            return None
        name, args, kwargs = message
        return getattr(engine, name)(*args, **kwargs)

    try:
        while True:
            message = pickle.load(stdin)  # noqa: S301 - our parent's
            answer: tuple[str | None, Any]
            try:
                answer = None, call(message)
            except CbframeError as exc:
                answer = type(exc).__name__, exc.message
            except (TypeError, ValueError, AttributeError) as exc:
                answer = CbframeError.__name__, f"{type(exc).__name__}: {exc}"
            stdout.write(pickle.dumps(answer))
            stdout.flush()
    except EOFError:
        return 0
    except OSError as exc:
        if not nobody_reads(exc):
            raise
        return 0
    finally:
        if engine is not None:
            engine.close()


def _verb(method: Callable[Concatenate[Engine, P], T]) -> Callable[Concatenate[LocalCluster, P], T]:
    """A method of :class:`LocalCluster` that is the engine's, with its signature and documentation."""
    name = method.__name__

    def call(self: LocalCluster, /, *args: P.args, **kwargs: P.kwargs) -> T:
        result: T = getattr(self._engine, name)(*args, **kwargs)
        return result

    update_wrapper(call, method)
    call.__module__, call.__qualname__ = __name__, f"LocalCluster.{name}"
    return call


class LocalCluster(Closing):
    """An embedded Couchbase on the loopback: real protocol, no installation.

    It holds one bucket in memory and serves it over KV, DCP and REST as a cluster does, well
    enough for cbframe, for the official SDKs' key-value part, and for learning what DCP does.

    Parameters
    ----------
    nodes
        How many; each has a data port and a REST port on 127.0.0.1, chosen by the system.
    vbuckets
        How many; 1 to 1024.
    bucket, username, password
        The one bucket and the one user.
    replicas
        Replica columns of the cluster map, fewer than `nodes`.
    process
        Run the cluster in a process of its own, for measurements: it then shares neither the
        interpreter lock nor the memory with the caller. It ends with its parent.
    version
        The server release whose behaviour is reproduced, 7.2.9 or 8.0.2 with Couchstore. "8.0" grants more
        features, refuses a HELLO that misses one that others need, names unknown flags, sends cluster maps
        only to those with an older one, has snapshot markers of version 2.2 with the purge seqno, begins
        fewer checkpoints, sorts extended attributes, and has more statuses and statistics. Its disk backfills
        of streams without values (DCP_OPEN flag 0x08, and no XATTRs) have a mutation for each key, deletions
        included. Data is on disk until :meth:`hold_in_memory` says otherwise.
    sending
        How DCP messages are handed to the socket. "node" is a data node's way: one message in each
        ``send`` (a TLS record each), the streams that have something in turn; in version "8.0" 1, 5 or
        50 messages with ``set_priority`` low, medium (the default) or high. "bulk" sends up to 128 KiB
        of one vbucket at a time, up to 1 MiB in a call: faster, and unlike any node.
    noop_interval
        Seconds between DCP NOOPs whatever the client asks for; None does as asked.
    seed
        Makes the vbucket and bucket uuids repeatable.
    tls
        Certificates: every node then has a TLS port beside each of its two.
    history
        Keep every version of every document, as a Magma bucket with change history does: clients
        may ask for change streams.
    marker_version
        The newest version of snapshot markers that clients may ask for: "2.0" or "2.2"; None for
        the newest of `version`.
    internal_host
        What the nodes call themselves in place of 127.0.0.1, which is then only their alternate address
        on the network ``external``; as in a container network, nobody outside can reach them by it.
    flush_enabled
        Whether the bucket may be flushed.
    ephemeral
        A bucket in memory only: a node that ends takes its data with it.
    skip_deletions
        Grant the feature of servers after 8.0 by which clients may have deletions left out of the first
        backfill of streams that begin at 0.

    Examples
    --------
    >>> from cbframe.local import LocalCluster
    >>> with LocalCluster(vbuckets=64) as cluster:
    ...     cluster.upsert("greeting", {"text": "hello"})
    1
    """

    def __init__(
        self,
        nodes: int = 1,
        vbuckets: int = 1024,
        *,
        bucket: str = "default",
        username: str = "Administrator",
        password: str = "password",  # noqa: S107 - a cluster on the loopback with made-up data
        replicas: int = 0,
        process: bool = False,
        version: Literal["7.2", "8.0"] = "7.2",
        sending: Literal["node", "bulk"] = "node",
        noop_interval: float | None = None,
        seed: int | None = None,
        tls: ServerTLS | None = None,
        history: bool = False,
        marker_version: Literal["2.0", "2.2"] | None = None,
        internal_host: str | None = None,
        flush_enabled: bool = True,
        ephemeral: bool = False,
        skip_deletions: bool = False,
    ) -> None:
        check_release(version)
        if sending not in {"node", "bulk"}:
            raise ConfigurationError(f"sending={sending!r} is neither 'node' nor 'bulk'")
        if marker_version not in {None, "2.0", "2.2"}:
            raise ConfigurationError(f"no snapshot marker has version {marker_version}, only 2.0 and 2.2")
        self.bucket = bucket
        self.username = username
        self.password = password
        self._options: dict[str, Any] = {
            "nodes": nodes,
            "vbuckets": vbuckets,
            "bucket": bucket,
            "username": username,
            "password": password,
            "replicas": replicas,
            "version": version,
            "sending": sending,
            "noop_interval": noop_interval,
            "seed": seed,
            "tls": None if tls is None else tls.options(),
            "history": history,
            "marker_version": marker_version,
            "internal_host": internal_host,
            "flush_enabled": flush_enabled,
            "ephemeral": ephemeral,
            "skip_deletions": skip_deletions,
        }
        self._process = process
        self._running: Engine | None = None

    def __repr__(self) -> str:
        state = f"{self.connection_string!r}" if self._running is not None else "not running"
        nodes, vbuckets = self._options["nodes"], self._options["vbuckets"]
        where = ", own process" if self._process else ""
        return f"<LocalCluster {state}, nodes={nodes}, vbuckets={vbuckets}{where}>"

    # ------------------------------------------------------------------ life

    def start(self) -> Self:
        """Bring the cluster up; does nothing if it is up.

        Raises
        ------
        ResourceError
            There is no thread, descriptor, memory or process for it; nothing of it runs then.
        """
        if self._running is not None:
            return self
        with reported():
            if self._process:
                # The remote engine has the engine's methods by name, not by inheritance.
                self._running = cast("Engine", RemoteEngine(self._options))
            else:
                self._running = Engine(**self._options)
        return self

    def close(self) -> None:
        """Shut down: every socket, thread and process is gone afterwards. May be repeated."""
        running, self._running = self._running, None
        if running is not None:
            running.close()

    def __enter__(self) -> Self:
        return self.start()

    @property
    def _engine(self) -> Engine:
        if self._running is None:
            raise ConnectError(
                "the local cluster is not running", hint="start() it, or use it in a with block"
            )
        return self._running

    # ------------------------------------------------------------------ addresses

    @property
    def members(self) -> list[int]:
        """Numbers of the nodes in the cluster: those that were ejected or failed over are not."""
        return list(self._engine.members())

    @property
    def connection_string(self) -> str:
        """``couchbase://127.0.0.1:PORT/BUCKET`` with the data port of the first node in the cluster."""
        return f"couchbase://{self.kv_addresses[0]}/{quote(self.bucket, safe='')}"

    @property
    def kv_addresses(self) -> list[str]:
        """``host:port`` of the data service of every node in the cluster, those that left not included."""
        return [f"{HOST}:{port}" for port in self._ports_of("kv")]

    @property
    def rest_urls(self) -> list[str]:
        """Base URL of the cluster manager of every node in the cluster."""
        return [f"http://{HOST}:{port}" for port in self._ports_of("mgmt")]

    @property
    def tls_connection_string(self) -> str:
        """``couchbases://127.0.0.1:PORT/BUCKET`` with the TLS port of the first node in the cluster.

        Raises
        ------
        ConfigurationError
            The cluster was made without certificates.
        """
        return f"couchbases://{HOST}:{self._tls_ports('kvSSL')[0]}/{quote(self.bucket, safe='')}"

    @property
    def tls_rest_urls(self) -> list[str]:
        """As `rest_urls`, with TLS; raises as `tls_connection_string`."""
        return [f"https://{HOST}:{port}" for port in self._tls_ports("mgmtSSL")]

    def _tls_ports(self, service: str) -> list[int]:
        if service not in self._engine.addresses():
            raise ConfigurationError(
                "the local cluster has no TLS ports", hint="give LocalCluster(tls=ServerTLS(...))"
            )
        return self._ports_of(service)

    def _ports_of(self, service: str) -> list[int]:
        ports = self._engine.addresses()[service]
        return [ports[node] for node in self.members]

    def ports(self, node: int = 0) -> dict[str, int]:
        """The ports of a node by the name of the service, as the cluster map has them."""
        return {service: ports[node] for service, ports in self._engine.addresses().items()}

    # ------------------------------------------------------------------ verbs of the engine

    advertise = _verb(Engine.advertise)
    set_alternate_address = _verb(Engine.set_alternate_address)
    add_node = _verb(Engine.add_node)
    rebalance = _verb(Engine.rebalance)
    failover = _verb(Engine.failover)
    kill = _verb(Engine.kill)
    restart = _verb(Engine.restart)

    upsert = _verb(Engine.upsert)
    delete = _verb(Engine.delete)
    expire = _verb(Engine.expire)
    expire_due = _verb(Engine.expire_due)
    get = _verb(Engine.get)
    bulk_load = _verb(Engine.bulk_load)
    load_sample = _verb(Engine.load_sample)
    high_seqnos = _verb(Engine.high_seqnos)
    failover_log = _verb(Engine.failover_log)
    item_count = _verb(Engine.item_count)

    create_scope = _verb(Engine.create_scope)
    create_collection = _verb(Engine.create_collection)
    drop_collection = _verb(Engine.drop_collection)
    drop_scope = _verb(Engine.drop_scope)
    modify_collection = _verb(Engine.modify_collection)

    prepare = _verb(Engine.prepare)
    commit = _verb(Engine.commit)
    abort = _verb(Engine.abort)
    hold_in_memory = _verb(Engine.hold_in_memory)
    hold_persistence = _verb(Engine.hold_persistence)
    hold_replication = _verb(Engine.hold_replication)
    release = _verb(Engine.release)
    corrupt = _verb(Engine.corrupt)
    mend = _verb(Engine.mend)

    move_vbucket = _verb(Engine.move_vbucket)
    fail_over = _verb(Engine.fail_over)
    roll_back = _verb(Engine.roll_back)
    flush_vbucket = _verb(Engine.flush_vbucket)
    set_purge_seqno = _verb(Engine.set_purge_seqno)
    purge = _verb(Engine.purge)

    flush = _verb(Engine.flush)
    delete_bucket = _verb(Engine.delete_bucket)
    pause_bucket = _verb(Engine.pause_bucket)
    resume_bucket = _verb(Engine.resume_bucket)

    add_user = _verb(Engine.add_user)
    revoke = _verb(Engine.revoke)

    cut = _verb(Engine.cut)
    garble = _verb(Engine.garble)
    dcp_connections = _verb(Engine.dcp_connections)

    # ------------------------------------------------------------------ states that end

    @contextmanager
    def _during(self, node: int, fault: str, value: object, after: object = False) -> Iterator[None]:
        """Set something of a node, and set it back afterwards."""
        engine = self._engine
        engine.set_fault(node, fault, value)
        try:
            yield
        finally:
            engine.set_fault(node, fault, after)

    def refuse(self, node: int = 0) -> AbstractContextManager[None]:
        """New data connections to a node are closed at once."""
        return self._during(node, "refusing", True)

    def stall(self, node: int = 0) -> AbstractContextManager[None]:
        """A node sends nothing; it reads, and its sockets stay open."""
        return self._during(node, "stalled", True)

    def chop(self, nbytes: int, node: int = 0) -> AbstractContextManager[None]:
        """A node sends at most that many bytes with each write."""
        if nbytes < 1:
            raise ConfigurationError(f"chop needs at least 1 byte, not {nbytes}")
        return self._during(node, "chop", nbytes, None)

    def delay(self, seconds: float, node: int = 0) -> AbstractContextManager[None]:
        """Whatever a node has to send, it sends `seconds` later."""
        if seconds < 0:
            raise ConfigurationError(f"a delay of {seconds} s cannot be")
        return self._during(node, "delay", seconds, 0.0)

    def drop_acks(self, node: int = 0) -> AbstractContextManager[None]:
        """A node forgets what clients acknowledge: once their windows are full, it only asks if they live.

        What was forgotten stays so: those connections are of no more use.
        """
        return self._during(node, "dropping_acks", True)

    def starting(self, node: int = 0) -> AbstractContextManager[None]:
        """A node that was started a moment ago and has not yet loaded the bucket.

        The cluster map names the node. Connections that used the bucket close, and SELECT_BUCKET is
        KEY_ENOENT for users with access to the bucket.
        """
        return self._during(node, "starting", True)

    def config_only(self, node: int = 0) -> AbstractContextManager[None]:
        """A node that has the bucket's map and not yet the bucket, as all from 7.6 on when they start.

        SELECT_BUCKET and GET_CLUSTER_CONFIG succeed; everything else that needs a bucket is CONFIG_ONLY.

        Raises
        ------
        ConfigurationError
            The cluster's `version` has no such state.
        """
        if self._options["version"] != "8.0":
            raise ConfigurationError(
                "nodes of this version do not answer CONFIG_ONLY", hint='LocalCluster(version="8.0")'
            )
        return self._during(node, "config_only", True)

    def recreate(self, *, vbuckets: int | None = None) -> None:
        """Delete the bucket and create another of the same name: another uuid, no data, no collections.

        Parameters
        ----------
        vbuckets
            How many the new one has; None for as many as before.
        """
        self._engine.recreate(vbuckets)
        if vbuckets is not None:
            self._options["vbuckets"] = vbuckets
