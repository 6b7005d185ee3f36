"""Parts of a read that other processes and machines can do, together a read of one bucket."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, get_args

import pyarrow as pa

from cbframe.arrow.columns import KEY
from cbframe.arrow.documents.filters import predicates
from cbframe.cluster.auth import Authenticator, CertificateAuthenticator
from cbframe.cluster.connection_string import parse_connection_string
from cbframe.cluster.tls import TLSContext
from cbframe.dcp.look import Look
from cbframe.errors import ConfigurationError, ConversionError
from cbframe.json.typer import OURS
from cbframe.public import public
from cbframe.scan.agreed import Agreement
from cbframe.scan.asof import AsOf
from cbframe.scan.divide import Divider, refuse_undividable, shares
from cbframe.scan.moment import utc_now
from cbframe.scan.pins import Pins
from cbframe.scan.result import ReadResult
from cbframe.scan.session import ReadSession
from cbframe.scan.spec import METADATA_NAMES, Consistency, ScanSpec, flag, one_of

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True, kw_only=True)
class PartSettings:
    """What all partitions of a scan have in common, but for the vbuckets."""

    spec: ScanSpec
    agreement: Agreement
    with_secrets: bool  # whether a password may be pickled with them

    def refuse_secrets(self) -> None:
        """What may not leave this process must not be pickled."""
        spec = self.spec
        if any(isinstance(each, TLSContext) for each in (spec.tls, spec.options.tls_config)):
            raise ConfigurationError(
                "a TLS context cannot be sent to other processes",
                hint="tls= takes certificate authorities as PEM text, too, or the path of a file",
            )
        if self.with_secrets:
            return
        auth = spec.auth
        by_reference = callable(auth) and not isinstance(auth, Authenticator)
        plain = isinstance(auth, CertificateAuthenticator) and not auth.holds_key
        secret = "private key" if isinstance(auth, CertificateAuthenticator) else "password"
        url = parse_connection_string(spec.server_urls).credentials is not None
        if any("@" in proxy for proxy in (spec.options.proxies or {}).values()):
            raise ConfigurationError(
                "a partition is not sent to other processes with the password of a proxy in it",
                hint="name a proxy without a password, or partitions(..., include_credentials=True)",
            )
        if url or not (by_reference or plain or auth is None):
            raise ConfigurationError(
                f"a partition is not sent to other processes with a {secret} in it",
                hint='give auth=EnvironmentAuth("CB_USER", "CB_PASSWORD"), another callable that they can '
                "import, or paths of files with a key; or partitions(..., include_credentials=True)",
            )


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class ScanPartition:
    """Some vbuckets of a scan, to be read anywhere. Made by :meth:`BucketScan.partitions`.

    It can be pickled: no socket is in it, and no password unless that was asked for. Reading it connects
    to the nodes that have its vbuckets, most often a single one, and to a seed before that.

    Attributes
    ----------
    number
        From 0.
    node
        The node that had its vbuckets, ``host:port``, or most of them. It is asked wherever they are.
    as_of
        The vbucket positions of all partitions together, cut down to its vbuckets: each is read to this
        seqno at least.
    schema
        Of all partitions.
    documents
        An estimate: how many there are in its vbuckets as a whole, whatever the scan selects of them by
        collections and filters. None if a node does not tell, which it does to whom it shows statistics.
    bytes
        An estimate: what its vbuckets as a whole take up on the disks, compressed, with keys and metadata.
        None if a node does not tell; it cannot of a bucket that is in memory only.
    """

    number: int
    node: str
    as_of: AsOf
    schema: pa.Schema
    _pins: Pins
    _settings: PartSettings = field(repr=False)
    documents: int | None = None
    bytes: int | None = None

    def __reduce__(self) -> tuple[type[ScanPartition], tuple[Any, ...]]:
        self._settings.refuse_secrets()
        return ScanPartition, (
            self.number,
            self.node,
            self.as_of,
            self.schema,
            self._pins,
            self._settings,
            self.documents,
            self.bytes,
        )

    def __repr__(self) -> str:
        some = f"at most {self.changes:,}" if self.documents is None else f"about {self.documents:,}"
        size = "" if self.bytes is None else f", {self.bytes:,} bytes"
        return (
            f"<ScanPartition {self.number} of {self.bucket!r}: {len(self.as_of)} vbuckets of {self.node}, "
            f"{some} documents{size}>"
        )

    def refuse_secrets(self) -> None:
        """Raise what pickling would raise.

        Raises
        ------
        ConfigurationError
            There is a password in it, or something that exists in this process only.
        """
        self._settings.refuse_secrets()

    @property
    def bucket(self) -> str:
        """Where the documents are."""
        return self._settings.spec.bucket

    @property
    def vbuckets(self) -> tuple[int, ...]:
        """Those that are read."""
        return tuple(self.as_of)

    @property
    def changes(self) -> int:
        """The seqnos of its vbuckets, summed: as many documents as there can be at most."""
        return self.as_of.changes

    @public
    def result(self) -> ReadResult:
        """Read it: the documents, their vbucket positions, and what there is to say about them.

        The server sends whole snapshots. Where documents were written since the partitions were made, the
        newer versions come and the older ones are gone: ``as_of`` of the result, other than that of the
        partition, tells how far each vbucket really was. With ``consistency="strict"`` that is an
        error. So on a bucket at rest every attempt gives the same rows, and on another each gives what is
        no older than the pinned moment.

        Raises
        ------
        ConversionError
            Documents do not fit the agreed schema.
        RollbackError, StreamError
            With ``"strict"``: the history of a vbucket is another one, or it went on.
        CbframeError
            As :meth:`BucketScan.read`.
        """
        result = self._session().read()
        self._check(result.table.schema)
        return replace(result, table=result.table.select(self.schema.names))

    @public
    def read(self) -> pa.Table:
        """Read it into an Arrow table, as :meth:`result` does; its metadata has ``as_of``."""
        return self.result().table

    @public
    def to_pandas(self) -> pd.DataFrame:
        """Read it into a DataFrame whose index is the document key, as :meth:`result` does.

        The dtypes of all partitions are the same: with ``dtype_backend=None``, integers and booleans have
        pandas' nullable types, since numpy's cannot hold missing values.
        """
        from cbframe.scan.convert import to_pandas  # noqa: PLC0415 - pandas is slow to import

        result = self.result()
        backend = self._settings.spec.dtype_backend
        return to_pandas(result.table, backend, result.report.to_dict(), fixed_dtypes=True)

    @public
    def to_reader(self) -> pa.RecordBatchReader:
        """Read it into record batches, as :meth:`result` does; memory as with a scan's ``to_reader``."""
        return self.streamed()[1]

    @public
    def streamed(self) -> tuple[ReadResult, pa.RecordBatchReader]:
        """What :meth:`to_reader` gives, and before it all of :meth:`result` but the documents."""
        result, reader = self._session().stream()
        self._check(reader.schema)
        schema = self.schema.with_metadata(reader.schema.metadata)
        batches = (batch.select(schema.names) for batch in reader)
        return result, pa.RecordBatchReader.from_batches(schema, batches)

    def __arrow_c_schema__(self) -> Any:
        """The schema of all partitions; nothing is read."""
        return self.schema.__arrow_c_schema__()

    @public
    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        """Hand a new read over to any Arrow consumer."""
        return self.to_reader().__arrow_c_stream__(requested_schema)

    @public
    def select(self, columns: Sequence[str]) -> ScanPartition:
        """The same with some of the columns, besides the key: no more is read than they need.

        Raises
        ------
        ConfigurationError
            There is no such column.
        """
        unknown = [name for name in columns if name not in self.schema.names]
        if unknown:
            raise ConfigurationError(
                f"the partitions have no column {unknown[0]!r}", hint="their attribute schema tells which"
            )
        names = dict.fromkeys([KEY, *columns])
        settings = replace(self._settings, spec=narrowed(self._settings.spec, names))
        schema = pa.schema([self.schema.field(name) for name in names])
        return replace(self, schema=schema, _settings=settings)

    def _session(self) -> ReadSession:
        own = self._settings
        return ReadSession(own.spec.of_vbuckets(self.vbuckets), pins=self._pins, agreement=own.agreement)

    def _check(self, schema: pa.Schema) -> None:
        """Whether it has all agreed columns, and none that tells more of documents than these can."""
        later = schema.names[:] if not {"scope", "collection"} & {*self._settings.spec.metadata} else []
        if "_cb_collection" in later:
            raise ConversionError(
                "documents are of collections, and the agreed schema has no column for them",
                hint="collections came since the partitions were made: make them again",
            )
        other = [each.name for each in self.schema if each not in schema]
        if other:
            raise ConversionError(f"columns are not the agreed ones: {', '.join(other)}")


def divided(
    divider: Divider,  # it knows the scan, and finds out what its partitions have in common
    n: int,
    *,
    consistency: Consistency | None,
    with_secrets: bool,
) -> list[ScanPartition]:
    """What :meth:`BucketScan.partitions` promises."""
    refuse_undividable(divider.spec, n)
    with_secrets = flag("include_credentials", with_secrets)
    consistency = consistency or divider.spec.consistency
    one_of(*get_args(Consistency))("consistency", consistency)
    look = divider.look(time=divider.spec.expired == "drop")
    moment = divider.moment(look)
    spec, agreement, schema = divider.agree(look, n, moment)
    inside: Consistency = "strict" if "strict" in (consistency, spec.consistency) else "snapshot"
    # A function that reports progress stays in this process.
    settings = PartSettings(
        spec=replace(spec, progress=None, consistency=inside),
        agreement=agreement,
        with_secrets=with_secrets,
    )
    # Once more: the sample took its time.
    time = utc_now()
    pins = Pins(AsOf({}, time), "", consistency, moment)
    return _pinned(divider.look(look, sizes=True), n, pins, schema, settings)


def _pinned(look: Look, n: int, pins: Pins, schema: pa.Schema, settings: PartSettings) -> list[ScanPartition]:
    """The partitions of what was looked at."""
    found = []
    for number, share in enumerate(shares(look, n)):
        as_of = AsOf.of({vb: look.positions[vb] for vb in share.vbuckets}, pins.as_of.time)
        own = replace(pins, as_of=as_of, bucket_uuid=look.map.uuid)
        sizes = [look.sizes[vb] for vb in share.vbuckets]
        documents, stored = _sum(size.documents for size in sizes), _sum(size.bytes for size in sizes)
        found.append(ScanPartition(number, share.node, as_of, schema, own, settings, documents, stored))
    return found


def _sum(numbers: Iterable[int | None]) -> int | None:
    """A sum, if all is known."""
    total = 0
    for number in numbers:
        if number is None:
            return None
        total += number
    return total


def narrowed(target: ScanSpec, names: Collection[str]) -> ScanSpec:
    """A target that reads no more than some of its columns need, as far as names show that."""
    fields = [name for name in names if not name.startswith(OURS)]
    odd = any(name.startswith(OURS) and name.removeprefix(OURS) not in METADATA_NAMES for name in names)
    if not target.parsed or target.nested == "flatten" or odd:
        return target
    if not fields:
        # Values need not even be sent, if nobody has to look at them.
        by_fields = any(not each.of_metadata for each in predicates(target.filters))
        needless = not by_fields and target.errors == "keep"
        return replace(target, keys_only=True, columns=None) if needless else target
    if target.columns is None:
        return replace(target, columns=tuple((name,) for name in fields))
    return replace(target, columns=tuple(path for path in target.columns if ".".join(path) in fields))
