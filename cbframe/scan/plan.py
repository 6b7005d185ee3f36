"""What a scan will do: what nodes send, what is left out here, how much there is, what memory it takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from cbframe.arrow.spill import SPILL_BYTES, spill_folder
from cbframe.dcp.survey import UNKNOWN, Size
from cbframe.scan.names import Names
from cbframe.scan.spec import ScanSpec

_SHOWN, _WIDTH = 6, 110


class NodePlan(NamedTuple):
    """What is read from a node; as of :class:`ScanPlan`."""

    vbuckets: tuple[int, ...]
    changes: int
    size: Size


class ScanPlan:
    """What a scan will do. Made by :meth:`BucketScan.explain`; ``print`` shows it, in at most 20 lines.

    Attributes
    ----------
    bucket, scope, collections
        What the nodes send documents of; None for all.
    values, compressed
        Whether they send values, too, and whether compressed that they have so (``"force"``: all).
    nodes, vbuckets, changes
        What is read, by ``host:port`` and together; all seqnos, the most documents that there can be.
    size
        Estimates of ``documents`` and ``bytes`` on disk in these vbuckets, whatever is selected of them; None
        for what not all nodes tell this user.
    tests, left_out, columns
        What is looked at here: arguments about keys, fields and operators without values; what else is left
        out, and counted; fields that are parsed, None for all and empty where nothing is.
    n_rows
        After how many documents the read ends, whatever there is; None for all of them.
    window_bytes, batch_bytes, spill_bytes, spool_dir
        What a node may send ahead where memory is bounded (0 for no limit), values that are converted at
        once, documents that wait in memory, and where others do.
    """

    def __init__(self, spec: ScanSpec) -> None:
        names = Names(spec, spec.options)
        names.resolve_collections()
        spec = names.target
        look = spec.look(spec.vbuckets, first_map=names.map, sizes=True)
        self.bucket, self.scope, self.collections = spec.bucket, spec.scope, spec.named
        self.values, self.compressed = not spec.keys_only, spec.options.compression
        self.vbuckets = tuple(look.positions)
        of_node: dict[str, list[int]] = {}
        for vbucket in self.vbuckets:
            of_node.setdefault(look.map.node_of(vbucket) or "without owner", []).append(vbucket)
        self.nodes: dict[str, NodePlan] = {}
        for node, vbuckets in sorted(of_node.items()):
            size = Size.total(look.sizes.get(vbucket, UNKNOWN) for vbucket in vbuckets)
            changes = sum(look.positions[vbucket].seqno for vbucket in vbuckets)
            self.nodes[node] = NodePlan(tuple(vbuckets), changes, size)
        self.changes = sum(node.changes for node in self.nodes.values())
        self.size = Size.total(node.size for node in self.nodes.values())
        keys = (name for name in ("key_prefix", "key_pattern") if getattr(spec, name) is not None)
        groups = (" and ".join(f"{each} ..." for each in group) for group in spec.filters or ())
        self.tests = (*keys, *groups)
        excluded = {"expired documents": spec.expired, "records of transactions": spec.transaction_records}
        self.left_out = tuple(name for name, choice in excluded.items() if choice == "drop")
        fields = None if spec.columns is None else tuple(map(".".join, spec.columns))
        self.columns = fields if spec.parsed else ()
        self.n_rows = spec.n_rows
        self.window_bytes, self.batch_bytes = spec.window(bounded=True), spec.batch_size
        self.spill_bytes = SPILL_BYTES if spec.spill_bytes is None else spec.spill_bytes
        self.spool_dir = spill_folder(spec.spool_dir)

    def __repr__(self) -> str:
        where = "all collections" if self.scope is None else f"scope {self.scope!r}"
        where = where if self.collections is None else _some(self.collections)
        how = {True: ", compressed as they are stored", "force": ", all compressed"}.get(self.compressed, "")
        parsed = "all fields" if self.columns is None else _some(self.columns)
        why = "" if self.size.documents is not None else ": not all nodes show statistics to this user"
        shown = list(self.nodes.items())[:_SHOWN]
        lines = [
            f"scan      of {self.bucket!r}: {len(self.vbuckets):,} vbuckets with {self.changes:,} changes",
            f"in them   {_estimate(self.size)}{why}",
            *(f"node      {name}: {len(n.vbuckets):,} vbuckets, {_estimate(n.size)}" for name, n in shown),
            *([f"          and {len(self.nodes) - _SHOWN} more"] if len(self.nodes) > _SHOWN else []),
            f"sent      {where}: keys and {f'values{how}' if self.values else 'no values'}",
            f"tested    {_some(self.tests)}",
            f"left out  {_some(self.left_out)}",
            f"parsed    {parsed}",
            *([] if self.n_rows is None else [f"ends      after {self.n_rows:,} documents"]),
            f"memory    {_mb(self.window_bytes)} for each connection, {_mb(self.spill_bytes)} of documents",
            f"disk      other documents wait in {self.spool_dir!r}; tables are in memory",
        ]
        return "\n".join(line if len(line) <= _WIDTH else f"{line[: _WIDTH - 1]}…" for line in lines)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN]) or 'nothing'}{more}"


def _estimate(size: Size) -> str:
    known = "" if size.documents is None else f"about {size.documents:,} documents"
    return (known or "an unknown number of documents") + (f", {_mb(size.bytes)}" if size.bytes else "")


def _mb(nbytes: int) -> str:
    return f"{nbytes / 1e6:,.1f} MB"
