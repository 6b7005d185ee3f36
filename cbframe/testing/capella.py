"""A cluster of Couchbase's cloud, as its users see it; on this machine."""

from __future__ import annotations

import contextlib
import secrets
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from cbframe.cluster.connection_string import CAPELLA, ZONES, SrvRecord, Zone
from cbframe.errors import DependencyError
from cbframe.local import LocalCluster, ServerTLS
from cbframe.local.cluster_manager import HOST


class LocalCapella:
    """A :class:`~cbframe.LocalCluster` that is reached as a Capella cluster is.

    Its name has SRV records only. Its nodes take TLS only, by names of their own; those by which they know
    each other exist inside only. Its user may read and stream, and see no statistics of the nodes. While it
    runs, this process, and no other, resolves its names without DNS, and trusts its certificate authority
    for them in place of Capella's root certificate.

    Parameters
    ----------
    nodes, vbuckets, bucket
        As for :class:`~cbframe.LocalCluster`.
    name
        Part of the host names, different for each that runs at the same time.
    private_endpoint
        All nodes have the one name of a private endpoint, and differ by their ports.

    Attributes
    ----------
    cluster
        The cluster itself, to write documents and to change nodes.
    username, password
        The user, who may only read.

    Raises
    ------
    DependencyError
        :mod:`trustme` is not installed, which makes the certificates.

    Examples
    --------
    >>> from cbframe import read_bucket
    >>> from cbframe.testing import LocalCapella
    >>> with LocalCapella(vbuckets=4) as capella:
    ...     _ = capella.cluster.upsert("greeting", {"text": "hello"})
    ...     len(read_bucket(capella.connection_string, auth=capella.auth))
    1
    """

    def __init__(
        self,
        nodes: int = 2,
        vbuckets: int = 64,
        *,
        bucket: str = "travel",
        name: str = "local",
        private_endpoint: bool = False,
    ) -> None:
        try:
            import trustme  # noqa: PLC0415 - optional
        except ImportError as exc:
            raise DependencyError("LocalCapella needs trustme", hint="pip install trustme") from exc
        domain = f"{name}.{CAPELLA}"
        self.host = f"{'pe' if private_endpoint else 'cb'}.{domain}"
        """The name of the cluster."""
        self.username, self.password = "reader", secrets.token_urlsafe(12)
        self._private = private_endpoint
        self._undo = contextlib.ExitStack()
        authority = trustme.CA(organization_name="cbframe.testing.LocalCapella")
        self._certificate = authority.issue_cert(f"*.{domain}")
        self._zone = Zone(domain, {}, {}, authority.cert_pem.bytes().decode())
        self._shape = (nodes, vbuckets, bucket)

    def __repr__(self) -> str:
        return f"<LocalCapella {self.connection_string!r}>"

    @property
    def connection_string(self) -> str:
        """``couchbases://cb.NAME.cloud.couchbase.com/BUCKET``."""
        return f"couchbases://{self.host}/{quote(self._shape[2], safe='')}"

    @property
    def auth(self) -> tuple[str, str]:
        """User and password."""
        return self.username, self.password

    def start(self) -> Self:
        """Bring it up; does nothing if it is up. Raises as :meth:`cbframe.LocalCluster.start`."""
        if self._zone in ZONES:
            return self
        nodes, vbuckets, bucket = self._shape
        with contextlib.ExitStack() as undo:
            folder = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="cbframe-")))
            self._certificate.private_key_and_cert_chain_pem.write_to_path(folder / "node.pem")
            self.cluster = undo.enter_context(
                LocalCluster(
                    nodes,
                    vbuckets,
                    bucket=bucket,
                    password=secrets.token_urlsafe(12),
                    tls=ServerTLS(folder / "node.pem"),
                    internal_host=f"node.internal.{self._zone.domain}",
                )
            )
            self.cluster.add_user(self.username, self.password, access="dcp")
            self.follow()
            ZONES.append(self._zone)
            undo.callback(ZONES.remove, self._zone)
            self._undo = undo.pop_all()
        return self

    def close(self) -> None:
        """Shut down; its names and its authority are forgotten. May be repeated."""
        self._undo.close()

    def follow(self) -> None:
        """Name the nodes that joined the cluster since, or came back on other ports, and no others."""
        records: list[SrvRecord] = []
        for node in self.cluster.members:
            host = self.host if self._private else f"node-{node + 1:03}.{self._zone.domain}"
            ports = {name: port for name, port in self.cluster.ports(node).items() if name.endswith("SSL")}
            self.cluster.set_alternate_address(node, host, **ports)
            records.append(SrvRecord(0, 0, f"{host}.", ports["kvSSL"]))
        self._zone.hosts.clear()
        self._zone.hosts.update({record.target.rstrip("."): HOST for record in records})
        self._zone.services[f"_couchbases._tcp.{self.host}"] = records

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
