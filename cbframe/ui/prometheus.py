"""A snapshot in Prometheus' text format, version 0.0.4."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TypeAlias

from cbframe.ui.snapshot import StatsSnapshot, reconnects_of

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""What an HTTP server says that it sends."""

_Samples: TypeAlias = Iterable[tuple[Mapping[str, str], float]]
_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})


def exposition(snapshot: StatsSnapshot, phases: Mapping[str, int]) -> str:
    """The text, which ends with a newline."""
    return "".join(
        line + "\n"
        for name, kind, about, samples in _families(snapshot, phases)
        for line in _family(name, kind, about, snapshot.bucket, samples)
    )


def _families(snapshot: StatsSnapshot, phases: Mapping[str, int]) -> Iterator[tuple[str, str, str, _Samples]]:
    stats, nodes = snapshot.stats, snapshot.stats.nodes
    kinds = ("mutation", "deletion", "expiration")
    yield (
        "documents_total",
        "counter",
        "Data messages received.",
        [
            ({"node": node, "kind": kind}, getattr(each, f"{kind}s"))
            for node, each in nodes.items()
            for kind in kinds
        ],
    )
    for name, about, attribute in (
        ("received_bytes_total", "Bytes received.", "bytes_received"),
        ("connection_errors_total", "Connections that ended with an error.", "errors"),
        ("rollbacks_total", "Vbuckets taken back.", "rollbacks"),
        ("snapshots_total", "Snapshot markers received.", "snapshots"),
        ("streams_opened_total", "Streams that the node granted.", "streams_opened"),
    ):
        yield (
            name,
            "counter",
            about,
            [({"node": node}, getattr(each, attribute)) for node, each in nodes.items()],
        )
    yield (
        "reconnects_total",
        "counter",
        "Connections beyond the first.",
        [({"node": node}, reconnects_of(each.tot_worker_connect_ok)) for node, each in nodes.items()],
    )
    yield (
        "window_held_bytes",
        "gauge",
        "Bytes received and not consumed yet.",
        [({"node": node}, window.held) for node, window in snapshot.windows.items()],
    )
    yield (
        "window_size_bytes",
        "gauge",
        "Bytes that a node sends ahead at most, 0 for no limit.",
        [({"node": node}, window.size) for node, window in snapshot.windows.items()],
    )
    yield (
        "vbuckets",
        "gauge",
        "Vbuckets by what becomes of them.",
        [({"phase": phase}, count) for phase, count in phases.items()],
    )
    if (lag := snapshot.total_lag) is not None:
        most = int(snapshot.lag.max())
        yield "lag_seqnos", "gauge", "Seqnos still to come, as far as is known.", [({}, lag)]
        yield "lag_seqnos_max", "gauge", "The same, of the vbucket with the most.", [({}, most)]
    if snapshot.share is not None:
        yield "progress_ratio", "gauge", "Share of a bounded read that is received.", [({}, snapshot.share)]
    yield "running", "gauge", "1 until the stream has ended.", [({}, int(not snapshot.ended))]
    yield (
        "events_total",
        "counter",
        "Counters of the client by their names; what each counts is in its documentation.",
        [({"event": name}, count) for name, count in stats.counts().items()],
    )


def _family(name: str, kind: str, about: str, bucket: str, samples: _Samples) -> Iterator[str]:
    lines = [
        f"cbframe_{name}{_labels({'bucket': bucket, **labels})} {_number(value)}" for labels, value in samples
    ]
    if lines:
        yield f"# HELP cbframe_{name} {about}"
        yield f"# TYPE cbframe_{name} {kind}"
        yield from lines


def _labels(labels: Mapping[str, str]) -> str:
    inner = ",".join(f'{name}="{value.translate(_ESCAPES)}"' for name, value in labels.items())
    return f"{{{inner}}}"


def _number(value: float) -> str:
    return repr(value)
