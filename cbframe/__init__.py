"""Read a Couchbase bucket straight from the data service, over DCP, into Arrow and pandas.

====================  ========================================================================================
``read_bucket``       a bucket as it is now, as a DataFrame, an Arrow table or a polars DataFrame
``scan_bucket``       the same, described first and run later: record batches, Parquet, partitions
``scan_polars``       the same as a polars LazyFrame, which reads what a query needs
``read_schema``       the fields of the documents: types, missing values, examples
``write_snapshot``    a Parquet copy, updated with what changed; ``read_snapshot`` and ``Snapshot`` read it
``stream_bucket``     changes as they happen, from the beginning, from now on or from a checkpoint
``doctor``            why a connection fails, step by step
``show_stats``        what a stream does, as a live widget or as text
``BucketDataSource``  the DCP client underneath, with the callbacks of Go's ``cbdatasource``
``LocalCluster``      an embedded Couchbase on the loopback, for tests and examples
====================  ========================================================================================

:mod:`cbframe.contrib` has Dask, Spark, Delta and Iceberg, :mod:`cbframe.cli` the command line.
:mod:`cbframe.json` documents the types of columns, :mod:`cbframe.cluster.connection_string` how to name a
cluster, :mod:`cbframe.cluster.auth` the roles that a user needs, and :mod:`cbframe.errors` the errors.

Names are loaded when they are first used: ``import cbframe`` is quick, and loads no library.

The core
--------
What is done for every byte is compiled Rust, built with the package where ``cargo`` (1.85 or newer) is on
``PATH``. Elsewhere a reference in Python gives the same results, slower; its first read warns and says how
to get the compiled core. ``cbframe --version`` and :func:`doctor` say which one runs.
``CBFRAME_CORE=rust`` or ``python`` chooses. With ``CBFRAME_REQUIRE_CORE=1`` an installation without the
compiled core fails.

Packages
--------
Each imports only from those below it; ``tests/test_floors.py`` checks that.

=========  =================================================================
cli        the commands: read, schema, snapshot, stream, stats, doctor and more
ui         progress, and the statistics of a stream: text, widget, Prometheus
snapshot   Parquet snapshots: updates, versions, rollbacks, maintenance
scan       bounded reads and change streams: tables, DataFrames, files
arrow      blocks of documents as record batches; which rows count
json       JSON documents as typed columns
dcp        the client: threads, sockets, vbucket streams, rollbacks
cluster    connection strings, cluster maps, collections, TLS, users
wire       bytes to messages and back: no socket, no clock
=========  =================================================================

Below all: ``errors``, ``options``, ``system``, ``typing``, ``core``. Beside them: ``local``, the embedded
cluster; ``testing``, doubles for tests; ``contrib``.

Glossary
--------
===================  ========================================================================================
vbucket              one of the shards of a bucket, most often 1,024; the CRC32 of a key selects it
seqno                number of a change within its vbucket, ascending; says nothing across vbuckets
high seqno           the newest seqno of a vbucket: where a bounded read of it ends
vbuuid               id of one history of a vbucket; a failover begins a new history
failover log         the histories of a vbucket, newest first: vbuuid, and the seqno where each began
mutation             a change that writes a document
deletion             a change that removes a document
expiration           a deletion because the expiry has passed; sent when the server removes the document
tombstone            what the server keeps of a deletion until it purges it, by default for three days
collection id        number of a collection in keys and events; 0 is the default collection
manifest uid         version of the list of scopes and collections; each change raises it
system event         a change of that list within a stream: collection or scope created, dropped, modified
snapshot marker      announces a range of seqnos; only at its end is the vbucket consistent
stream end           the message that ends a vbucket's stream, with the reason: complete, moved, dropped, ...
rollback             the server lacks changes that were received: those after a seqno are rolled back
flow control window  bytes that a node may send before it is sent an acknowledgement
position             where the stream of a vbucket is: vbuuid, seqno, snapshot; :class:`VBucketOffset`
as of                the vbuuid and seqno of each vbucket up to which a result is complete; :class:`AsOf`
checkpoint           positions of all vbuckets that a consumer has processed; :class:`Checkpoint`
record batch         Arrow: columns of equal length with one schema
===================  ========================================================================================
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_HOMES = {
    "cbframe.cluster.auth": ("CertificateAuthenticator", "EnvironmentAuth", "PasswordAuthenticator"),
    "cbframe.dcp.timers": ("exponential_backoff_loop",),
    "cbframe.cluster.rest": ("Bucket", "connect_bucket"),
    "cbframe.contrib.polars": ("scan_polars",),
    "cbframe.dcp.handshake": ("upr_open",),
    "cbframe.dcp.messages": ("UPDATE_SECURITY_SETTINGS",),
    "cbframe.dcp.positions": ("VBucketMetaData", "VBucketOffset"),
    "cbframe.dcp.receiver": (
        "BlockReceiver",
        "DeferringReceiver",
        "Document",
        "ProgressReceiver",
        "Receipt",
        "Receiver",
        "ReceiverEx",
        "SystemEventReceiver",
    ),
    "cbframe.dcp.source": ("BucketDataSource",),
    "cbframe.dcp.stats": ("NodeStats", "BucketDataSourceStats", "StatsRates"),
    "cbframe.dcp.streams": ("VBucketState",),
    "cbframe.errors": (
        "AccessError",
        "AllServerURLsConnectBucketError",
        "AuthFailError",
        "BucketNotFoundError",
        "CbframeError",
        "ClusterMapError",
        "ConfigurationError",
        "ConnectError",
        "ConversionError",
        "DependencyError",
        "GroupError",
        "ProtocolError",
        "ReadCancelledError",
        "ReadTimeoutError",
        "ReceiverError",
        "ResourceError",
        "RollbackError",
        "ServerError",
        "SnapshotError",
        "SpoolError",
        "StreamError",
        "XAttrsNotSupportedError",
    ),
    "cbframe.local": ("LocalCluster",),
    "cbframe.options": ("BucketDataSourceOptions",),
    "cbframe.scan.changes": ("ChangeBatch", "CollectionDrop", "Rollback"),
    "cbframe.scan.checkpoint": ("Checkpoint",),
    "cbframe.scan.doctor": ("Diagnosis", "doctor"),
    "cbframe.scan.group": ("ConsumerGroup",),
    "cbframe.scan.partition": ("ScanPartition",),
    "cbframe.scan.plan": ("ScanPlan",),
    "cbframe.scan.progress": ("ScanProgress",),
    "cbframe.scan.result": ("AsOf", "Conflict", "Moment", "ReadReport", "ReadResult"),
    "cbframe.scan.scan": ("BucketScan", "read_bucket", "scan_bucket"),
    "cbframe.scan.schema": ("SchemaDiff", "SchemaReport", "diff_schema", "read_schema"),
    "cbframe.scan.stream": ("ChangeStream", "stream_bucket"),
    "cbframe.snapshot.maintenance": ("Compaction", "Verification"),
    "cbframe.snapshot.snapshot": ("read_snapshot", "Snapshot", "SnapshotVersion"),
    "cbframe.snapshot.writer": ("SnapshotResult", "write_snapshot"),
    "cbframe.ui.show": ("StatsView", "show_stats"),
    "cbframe.wire.constants": (
        "Datatype",
        "Feature",
        "Opcode",
        "OpenFlag",
        "SnapshotFlag",
        "Status",
        "StreamEndReason",
        "SystemEventId",
    ),
    "cbframe.wire.messages": ("SystemEvent", "parse_failover_log"),
}
_COMPANIONS = dict.fromkeys(
    ("cbframe.contrib.polars", "cbframe.scan.scan", "cbframe.scan.stream", "cbframe.snapshot.writer"),
    "cbframe.ui.show",
)
"""What must be there with a module that cannot know of it: a lower floor imports no higher one."""
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = ["__version__", *sorted(_HOME_OF)]  # noqa: PLE0604 - names are strings, by construction


def __getattr__(name: str) -> object:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'cbframe' has no attribute {name!r}")
    if home in _COMPANIONS:
        import_module(_COMPANIONS[home])
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__


if TYPE_CHECKING:
    from cbframe.cluster.auth import CertificateAuthenticator as CertificateAuthenticator
    from cbframe.cluster.auth import EnvironmentAuth as EnvironmentAuth
    from cbframe.cluster.auth import PasswordAuthenticator as PasswordAuthenticator
    from cbframe.cluster.rest import Bucket as Bucket
    from cbframe.cluster.rest import connect_bucket as connect_bucket
    from cbframe.contrib.polars import scan_polars as scan_polars
    from cbframe.dcp.handshake import upr_open as upr_open
    from cbframe.dcp.messages import UPDATE_SECURITY_SETTINGS as UPDATE_SECURITY_SETTINGS
    from cbframe.dcp.positions import VBucketMetaData as VBucketMetaData
    from cbframe.dcp.positions import VBucketOffset as VBucketOffset
    from cbframe.dcp.receiver import BlockReceiver as BlockReceiver
    from cbframe.dcp.receiver import DeferringReceiver as DeferringReceiver
    from cbframe.dcp.receiver import Document as Document
    from cbframe.dcp.receiver import ProgressReceiver as ProgressReceiver
    from cbframe.dcp.receiver import Receipt as Receipt
    from cbframe.dcp.receiver import Receiver as Receiver
    from cbframe.dcp.receiver import ReceiverEx as ReceiverEx
    from cbframe.dcp.receiver import SystemEventReceiver as SystemEventReceiver
    from cbframe.dcp.source import BucketDataSource as BucketDataSource
    from cbframe.dcp.stats import BucketDataSourceStats as BucketDataSourceStats
    from cbframe.dcp.stats import NodeStats as NodeStats
    from cbframe.dcp.stats import StatsRates as StatsRates
    from cbframe.dcp.streams import VBucketState as VBucketState
    from cbframe.dcp.timers import exponential_backoff_loop as exponential_backoff_loop
    from cbframe.errors import AccessError as AccessError
    from cbframe.errors import AllServerURLsConnectBucketError as AllServerURLsConnectBucketError
    from cbframe.errors import AuthFailError as AuthFailError
    from cbframe.errors import BucketNotFoundError as BucketNotFoundError
    from cbframe.errors import CbframeError as CbframeError
    from cbframe.errors import ClusterMapError as ClusterMapError
    from cbframe.errors import ConfigurationError as ConfigurationError
    from cbframe.errors import ConnectError as ConnectError
    from cbframe.errors import ConversionError as ConversionError
    from cbframe.errors import DependencyError as DependencyError
    from cbframe.errors import GroupError as GroupError
    from cbframe.errors import ProtocolError as ProtocolError
    from cbframe.errors import ReadCancelledError as ReadCancelledError
    from cbframe.errors import ReadTimeoutError as ReadTimeoutError
    from cbframe.errors import ReceiverError as ReceiverError
    from cbframe.errors import ResourceError as ResourceError
    from cbframe.errors import RollbackError as RollbackError
    from cbframe.errors import ServerError as ServerError
    from cbframe.errors import SnapshotError as SnapshotError
    from cbframe.errors import SpoolError as SpoolError
    from cbframe.errors import StreamError as StreamError
    from cbframe.errors import XAttrsNotSupportedError as XAttrsNotSupportedError
    from cbframe.local import LocalCluster as LocalCluster
    from cbframe.options import BucketDataSourceOptions as BucketDataSourceOptions
    from cbframe.scan.changes import ChangeBatch as ChangeBatch
    from cbframe.scan.changes import CollectionDrop as CollectionDrop
    from cbframe.scan.changes import Rollback as Rollback
    from cbframe.scan.checkpoint import Checkpoint as Checkpoint
    from cbframe.scan.doctor import Diagnosis as Diagnosis
    from cbframe.scan.doctor import doctor as doctor
    from cbframe.scan.group import ConsumerGroup as ConsumerGroup
    from cbframe.scan.partition import ScanPartition as ScanPartition
    from cbframe.scan.plan import ScanPlan as ScanPlan
    from cbframe.scan.progress import ScanProgress as ScanProgress
    from cbframe.scan.result import AsOf as AsOf
    from cbframe.scan.result import Conflict as Conflict
    from cbframe.scan.result import Moment as Moment
    from cbframe.scan.result import ReadReport as ReadReport
    from cbframe.scan.result import ReadResult as ReadResult
    from cbframe.scan.scan import BucketScan as BucketScan
    from cbframe.scan.scan import read_bucket as read_bucket
    from cbframe.scan.scan import scan_bucket as scan_bucket
    from cbframe.scan.schema import SchemaDiff as SchemaDiff
    from cbframe.scan.schema import SchemaReport as SchemaReport
    from cbframe.scan.schema import diff_schema as diff_schema
    from cbframe.scan.schema import read_schema as read_schema
    from cbframe.scan.stream import ChangeStream as ChangeStream
    from cbframe.scan.stream import stream_bucket as stream_bucket
    from cbframe.snapshot.maintenance import Compaction as Compaction
    from cbframe.snapshot.maintenance import Verification as Verification
    from cbframe.snapshot.snapshot import Snapshot as Snapshot
    from cbframe.snapshot.snapshot import SnapshotVersion as SnapshotVersion
    from cbframe.snapshot.snapshot import read_snapshot as read_snapshot
    from cbframe.snapshot.writer import SnapshotResult as SnapshotResult
    from cbframe.snapshot.writer import write_snapshot as write_snapshot
    from cbframe.ui.show import StatsView as StatsView
    from cbframe.ui.show import show_stats as show_stats
    from cbframe.wire.constants import Datatype as Datatype
    from cbframe.wire.constants import Feature as Feature
    from cbframe.wire.constants import Opcode as Opcode
    from cbframe.wire.constants import OpenFlag as OpenFlag
    from cbframe.wire.constants import SnapshotFlag as SnapshotFlag
    from cbframe.wire.constants import Status as Status
    from cbframe.wire.constants import StreamEndReason as StreamEndReason
    from cbframe.wire.constants import SystemEventId as SystemEventId
    from cbframe.wire.messages import SystemEvent as SystemEvent
    from cbframe.wire.messages import parse_failover_log as parse_failover_log
