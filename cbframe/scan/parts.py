"""Partitions written by processes of this machine, as a folder of Parquet files."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from cbframe.dcp.counters import NodeStats
from cbframe.dcp.handover import monotonic
from cbframe.dcp.stats import BucketDataSourceStats, add_up
from cbframe.dcp.workers import in_processes
from cbframe.scan.destination import Destination
from cbframe.scan.divide import SAMPLE_ROWS, Divider
from cbframe.scan.parquet import write_parquet
from cbframe.scan.partition import ScanPartition, divided
from cbframe.scan.report import ReadReport
from cbframe.scan.result import ReadResult
from cbframe.scan.spec import ScanSpec, positive

_PER_WORKER = 4
"""Partitions for each: who is quick takes more of them, and each file is a good part of all."""


@dataclass(frozen=True, slots=True)
class Written:
    """What there is to say about a partition besides its documents, and the counters of its nodes."""

    report: ReadReport
    nodes: dict[str, NodeStats]


def to_folder(spec: ScanSpec, place: Destination, compression: str, workers: int) -> ReadResult:
    """Write a file for each of some partitions; the folder appears whole or not at all."""
    began = monotonic()
    positive("workers", workers)
    divider = Divider(spec, sample_rows=SAMPLE_ROWS)
    parts = divided(divider, _PER_WORKER * workers, consistency="snapshot", with_secrets=True)
    with place.folder(spec.spool_dir) as scratch:
        write = partial(_write, folder=scratch, compression=compression)
        done = in_processes(write, parts, workers)
    report = ReadReport.merged(each.report for each in done)
    count = len(report.as_of)
    nodes = {node for each in done for node in each.nodes}
    counters = {node: add_up(each.nodes[node] for each in done if node in each.nodes) for node in nodes}
    return ReadResult(
        parts[0].schema.empty_table(),
        report.bucket,
        report.as_of,
        report.conflicts,
        report.rejected,
        BucketDataSourceStats((), counters, vbuckets=count, vbuckets_done=count, at=monotonic()),
        monotonic() - began,
        report.documents,
        report.expired,
        report.transaction_records,
        report.moment,
    )


def _write(part: ScanPartition, folder: Path, compression: str) -> Written:
    """In a worker process."""
    result, reader = part.streamed()
    count = write_parquet(reader, folder / f"part-{part.number:05d}.parquet", compression)
    return Written(replace(result, documents=count).report, dict(result.stats.nodes))
