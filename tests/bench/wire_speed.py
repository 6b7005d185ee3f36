"""Measure reads against a reader written by hand and other versions of cbframe, in turn, round by round.

    python tests/bench/wire_speed.py                                   # everything; takes hours on two cores
    python tests/bench/wire_speed.py --forms node --jobs raw,df --sizes 300000x256 --rounds 3
    python tests/bench/wire_speed.py --peer today=/another/venv/bin/python
    python tests/bench/wire_speed.py --table                           # of what was measured before

Each run is a line of JSON in ``--out``. What stands there is not measured again, so a run that was
interrupted goes on where it was. README.md beside this file explains forms, jobs and figures.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pkgutil
import queue
import random
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
LEFT_OUT = tuple(f"cbframe.{name}" for name in "__main__ _core _rust cli contrib local testing ui".split())
"""What a read does not import."""
METADATA = ["key", "vbucket", "seqno", "cas", "rev_seqno", "expiry", "flags", "datatype"]
AS_A_NODE = ["--slice", "1", "--batch", "300"]
FORMS = {
    "node": (AS_A_NODE, ["raw", "df", "columns", "parquet"]),
    "wire": ([], ["raw", "df", "columns", "odd", "parquet", "python"]),
    "tls": ([*AS_A_NODE, "--tls", "server.pem"], ["raw", "df"]),
    "recorded": (["--pattern", str(HERE / "kv72_pattern.npz")], ["raw", "df"]),
    "processes": ([*AS_A_NODE, "--processes", "4"], ["raw", "df"]),
    "two-nodes": (["--nodes", "2"], ["df", "parquet", "workers"]),
    "large": ([], ["1GB", "4GB"]),
    "local": ([], ["import", "latency", "snapshot"]),
}
"""How the server sends, and what is measured so."""
HANDWRITTEN = {
    "raw": ["raw"],
    "columns": ["columns", "pyarrow-df"],
    "df": ["pyarrow-df"],
    "parquet": ["pyarrow-df"],
    "python": ["pyarrow-df"],
}
"""Modes of the handwritten reader beside a job."""
TARGETS: list[tuple[str, str, str, str, float, float]] = [
    ("node", "raw", "cpu", "today", 0.20, 0.25),
    ("node", "df", "cpu", "today", 0.20, 0.25),
    ("node", "raw", "wall", "raw", 1.0, 1.0),
    ("node", "df", "wall", "pyarrow-df", 1.0, 1.0),
    ("tls", "raw", "cpu", "today", 0.35, 0.35),
    ("wire", "python", "cpu", "pyarrow-df", 4.0, 4.0),
    ("wire", "raw", "cpu", "raw", 0.35, 0.5),
    ("wire", "df", "cpu", "pyarrow-df", 0.15, 0.17),
    ("wire", "columns", "cpu", "pyarrow-df", 0.10, 0.10),
    ("wire", "columns", "cpu", "columns", 1.0, 1.0),
    ("wire", "odd", "cpu", "clean", 1.25, 1.25),
    ("wire", "parquet", "cpu", "pyarrow-df", 0.5, 0.5),
    ("wire", "df", "rss_mb", "1.3 x table + 150", 1.0, 1.0),
    ("large", "1GB", "rss_mb", "", 300, 300),
    ("large", "4GB", "rss_mb", "", 300, 300),
    ("local", "snapshot", "cpu", "compacted", 1.5, 1.4),
    ("local", "latency", "wall", "", 0.02, 0.02),
    ("wire", "parquet", "result_mb", "today", 1.0, 1.0),
    ("local", "import", "cpu", "today", 1.05, 1.05),
]
"""Form, job, what of it, beside whom, and how many times that it may be: small and large documents."""


# One run, in a process of its own.


def cpu() -> float:
    """Seconds of this process and of its children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def peak() -> float:
    """MB; of the largest child, if that is more."""
    status = Path("/proc/self/status")
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if status.exists():  # ru_maxrss begins with what the parent had
        own = int(status.read_text().split("VmHWM:")[1].split()[0])
    return max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) / 1024


def preload() -> None:
    """Import what a read needs: that is no part of what is measured."""
    import pandas  # noqa: F401, ICN001
    import pyarrow.dataset
    import pyarrow.parquet  # noqa: F401

    import cbframe

    for module in pkgutil.walk_packages(cbframe.__path__, "cbframe."):
        if not module.name.startswith(LEFT_OUT):
            importlib.import_module(module.name)


def latency() -> dict[str, Any]:
    """How long changes take to the receiver of a quiet stream: two in succession, then silence."""
    from cbframe import BucketDataSource, LocalCluster

    class Times:
        """A receiver that notes when each change came."""

        def __init__(self) -> None:
            self.came: queue.SimpleQueue[float] = queue.SimpleQueue()

        def data_update(self, *_: object) -> None:
            self.came.put(time.perf_counter())

        data_delete = data_update

        def on_error(self, error: Exception) -> None:
            raise SystemExit(str(error))

        def ignore(self, *_: object) -> None: ...

        snapshot_start = set_metadata = rollback = ignore

        def get_metadata(self, _: int) -> tuple[None, int]:
            return None, 0

    receiver, seconds = Times(), []
    with LocalCluster(vbuckets=64, process=True) as cluster:
        place, auth = cluster.connection_string, (cluster.username, cluster.password)
        before = cpu()
        with BucketDataSource(place, "default", cluster.bucket, "", None, auth, receiver) as source:
            cluster.upsert("first", {})
            receiver.came.get(timeout=60)
            for number in range(100):
                time.sleep(0.05)
                sent = []
                for key in (f"a{number}", f"b{number}"):
                    sent.append(time.perf_counter())
                    cluster.upsert(key, {})
                seconds += [receiver.came.get(timeout=60) - began for began in sent]
            receives = source.stats().receives
        spent = cpu() - before
    figures = {"wall": statistics.median(seconds), "slowest": max(seconds), "cpu": spent, "rss_mb": peak()}
    return figures | {"docs": len(seconds), "receives": receives}


def client(job: str, place: str, tls: str, source_options: dict[str, Any]) -> dict[str, Any]:
    """Do a job and return its figures."""
    if job == "import":  # an interpreter that does nothing else, ten times
        before, began = cpu(), time.perf_counter()
        for _ in range(10):
            subprocess.run([sys.executable, "-c", "import cbframe"], check=True)
        seconds = {"cpu": (cpu() - before) / 10, "wall": (time.perf_counter() - began) / 10}
        return seconds | {"docs": 0, "rss_mb": peak()}
    preload()
    if job == "latency":
        return latency()
    import cbframe

    auth = ("Administrator", "password")
    figures: dict[str, Any] = {}
    snapshot = job in {"write", "compact", "read"}  # at `tls`
    scan = cbframe.scan_bucket(
        place,
        auth=auth,
        tls=None if snapshot else tls or None,
        parse=job != "raw",
        columns=["total", "customer.id"] if job == "columns" else None,
        metadata=METADATA if job == "raw" else "key",
        options=cbframe.BucketDataSourceOptions(**source_options) if source_options else None,
    )
    with tempfile.TemporaryDirectory() as scratch:
        before, began = cpu(), time.perf_counter()
        if job in {"parquet", "workers"}:
            written = scan.to_parquet(Path(scratch, "bench"), workers=2 if job == "workers" else None)
        elif job == "write":
            figures["result_mb"] = cbframe.write_snapshot(place, tls, auth=auth).nbytes / 1e6
        elif job == "compact":
            cbframe.Snapshot(tls).compact(keep="0s")
        elif job == "read":
            result: Any = cbframe.read_snapshot(tls)
        else:
            result = scan.to_arrow() if job == "raw" else scan.to_pandas()
        figures |= {"cpu": cpu() - before, "wall": time.perf_counter() - began, "rss_mb": peak()}
        if job in {"parquet", "workers"}:
            import pyarrow.dataset

            files = [written] if written.is_file() else list(written.iterdir())
            figures["docs"] = pyarrow.dataset.dataset(written, format="parquet").count_rows()
            figures["result_mb"] = sum(file.stat().st_size for file in files) / 1e6
        elif job not in {"write", "compact"}:
            size = result.nbytes if job == "raw" else int(result.memory_usage(index=True).sum())
            figures |= {"docs": len(result), "result_mb": size / 1e6}
    if scan.stats is not None:
        figures["receives"] = scan.stats.receives
    home = Path(cbframe.__file__).parent
    commit = subprocess.run(["git", "-C", home, "describe", "--always", "--dirty=+", "--exclude=*"],
                            capture_output=True, text=True, check=False)  # fmt: skip
    core = getattr(sys.modules.get("cbframe.core"), "NAME", "python")
    return figures | {"commit": commit.stdout.strip() or cbframe.__version__, "core": core}


# The runner.


@dataclass(frozen=True)
class Contender:
    """Who does a job, and of which server."""

    who: str
    command: list[str]
    """Its last arguments are the server's."""
    server: list[str]
    env: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """Everything that the runs of one form and size have in common."""

    options: argparse.Namespace
    form: str
    docs: int
    value_bytes: int
    scratch: Path
    done: list[dict[str, Any]]

    @property
    def size(self) -> str:
        return f"{self.docs}x{self.value_bytes}"

    def missing(self, job: str, who: str, number: int) -> bool:
        key = (self.size, self.form, job, who, number)
        return not any(key == tuple(line[name] for name in KEY) for line in self.done)

    def measure(self, job: str, who: str, number: int, command: list[str], env: dict[str, str]) -> None:
        """Run a client, unless it was before, and note its figures."""
        if not self.missing(job, who, number):
            return
        load, pipe = os.getloadavg()[0], subprocess.PIPE
        process = subprocess.Popen(
            command, env=os.environ | env, text=True, stdout=pipe, stderr=pipe, start_new_session=True
        )
        try:
            out, err = process.communicate(timeout=self.options.timeout)
        except BaseException as e:
            # Its workers, too.
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            if isinstance(e, subprocess.TimeoutExpired):
                late = f"{self.form} {job}: {who} had not ended after {self.options.timeout} s"
                raise SystemExit(late) from None
            raise
        if process.returncode:
            raise SystemExit(f"{self.form} {job}: {who} ended with {process.returncode}:\n{err[-2000:]}")
        figures: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
        line = dict(zip(KEY, (self.size, self.form, job, who, number), strict=True)) | {"load": load}
        line |= {name: round(of, 4) if isinstance(of, float) else of for name, of in figures.items()}
        with self.options.out.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.done.append(line)
        print(f"{self.size} {self.form} {job} {who} #{number}: {figures['cpu']:.2f} CPU s, "
              f"{figures['wall']:.2f} s, load {load:.1f}", file=sys.stderr, flush=True)  # fmt: skip

    @contextmanager
    def server(self, arguments: list[str]) -> Iterator[str]:
        """A replay server that is ready; the port of its first node."""
        size = ("--docs", str(self.docs), "--value-bytes", str(self.value_bytes))
        process = subprocess.Popen(
            [sys.executable, str(HERE / "replay_server.py"), "--port", "0", *size, *arguments],
            stdout=subprocess.PIPE,
            cwd=self.scratch,
        )
        try:
            assert process.stdout is not None
            words = process.stdout.readline().decode().split()
            if not words:
                raise SystemExit(f"the replay server did not start: {process.wait()}")
            yield words[1]
        finally:
            process.terminate()
            process.communicate()

    def contenders(self, job: str, server: list[str]) -> Iterator[Contender]:
        """All who do a job."""
        client = [str(HERE / "wire_speed.py"), "--client"]
        does = {"odd": "df", "python": "df", "1GB": "parquet", "4GB": "parquet"}.get(job, job)
        ours = [sys.executable, *client, does]
        if self.form == "large":
            server = [*server, "--repeat", str(-(-int(job[0]) * 10**9 // (self.docs * self.value_bytes)))]
        if job == "odd":
            yield Contender("clean", ours, server)
            server = [*server, "--odd", "0.01"]
        yield Contender("cbframe", ours, server, {"CBFRAME_CORE": "python"} if job == "python" else {})
        for mode in HANDWRITTEN.get(job, []) if self.form not in {"processes", "two-nodes"} else []:
            command = [sys.executable, str(HERE / "handwritten_reader.py"), "--mode", mode]
            yield Contender(mode, command, server)
        for peer in self.options.peer if job not in {"python", "1GB", "4GB"} else []:
            who, _, rest = peer.partition("=")
            python, *settings = rest.split(",")
            pairs = dict(setting.split("=", 1) for setting in settings)
            env = {name: value for name, value in pairs.items() if name.isupper()}
            given = {name: json.loads(value) for name, value in pairs.items() if not name.isupper()}
            command = [python, *client, does]
            if given:
                command[-2:] = ["--source-options", json.dumps(given), "--client", does]
            yield Contender(who, command, server, env)

    def rounds(self, jobs: list[str], server: list[str]) -> None:
        """All jobs in turn, each by all its contenders in turn."""
        with ExitStack() as stack:
            ports: dict[tuple[str, ...], str] = {}
            for number in range(1 if self.form == "large" else self.options.rounds):
                for job in jobs:
                    # Nobody is always the one that finds the caches warm.
                    for contender in list(self.contenders(job, server))[:: 1 if number % 2 else -1]:
                        if not self.missing(job, contender.who, number):
                            continue
                        arguments = tuple(contender.server)
                        if arguments not in ports and self.form != "local":
                            ports[arguments] = stack.enter_context(self.server(contender.server))
                        place = self.place(contender, ports.get(arguments, ""))
                        self.measure(job, contender.who, number, [*contender.command, *place], contender.env)

    def place(self, contender: Contender, port: str) -> list[str]:
        """The arguments by which a contender finds its server."""
        tls = str(self.scratch / "ca.pem") if "--tls" in contender.server else ""
        if "--mode" in contender.command:
            return ["--port", port, *(["--tls", tls] if tls else [])]
        return [f"couchbase{'s' if tls else ''}://127.0.0.1:{port}/bench", tls]

    def snapshot(self) -> None:
        """A first copy, 20 updates of 1 %, a compacted copy; both are read in turn."""
        from replay_server import documents, key_of

        from cbframe import LocalCluster

        numbers = range(self.options.rounds)
        if not any(self.missing("snapshot", who, n) for who in ("cbframe", "compacted") for n in numbers):
            return
        command = [sys.executable, str(HERE / "wire_speed.py"), "--client"]
        updated, compacted = self.scratch / "updated", self.scratch / "compacted"
        for path in (updated, compacted):
            shutil.rmtree(path, ignore_errors=True)
        some = random.Random(1)

        def step(job: str, path: Path, place: str = "127.0.0.1/bench") -> None:
            """Measured each time, since it is done each time."""
            key = (self.size, self.form, job)
            before = sum(key == tuple(line[name] for name in KEY[:3]) for line in self.done)
            does = "compact" if job == "compact" else "write"
            self.measure(job, "cbframe", before, [*command, does, place, str(path)], {})

        with LocalCluster(nodes=1, vbuckets=1024, process=True) as cluster:
            place = cluster.connection_string
            cluster.bulk_load((key_of(i), v) for i, v in enumerate(documents(self.docs, self.value_bytes)))
            step("first copy", updated, place)
            for number in range(20):
                keys = some.sample(range(self.docs), self.docs // 100)
                values = documents(len(keys), self.value_bytes, seed=number)
                cluster.bulk_load((key_of(i), v) for i, v in zip(keys, values, strict=True))
                step("update", updated, place)
        shutil.copytree(updated, compacted)
        step("compact", compacted)
        for number in numbers:
            for who, path in (("cbframe", updated), ("compacted", compacted)):
                self.measure("snapshot", who, number, [*command, "read", "127.0.0.1/bench", str(path)], {})


KEY = ("size", "form", "job", "who", "round")


def certificates(folder: Path) -> None:
    import trustme

    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(folder / "server.pem")


# Tables.


def table(lines: list[dict[str, Any]]) -> None:
    """Print medians of what was measured, and which figures are reached."""
    for size in dict.fromkeys(line["size"] for line in lines):
        docs, value_bytes = map(int, size.split("x"))
        found: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
        for line in lines:
            if line["size"] == size:
                found.setdefault((line["form"], line["job"], line["who"]), []).append(line)
        print(f"\n{docs:,} documents of {value_bytes:,} B:\n")
        head(
            "form",
            "job",
            "who",
            "CPU s",
            "wall s",
            "receives per million",
            "peak RSS MB",
            "result MB",
            "rounds",
        )
        order = list(FORMS)
        for (form, job, who), runs in sorted(found.items(), key=lambda item: order.index(item[0][0])):
            cells = [form, job, who, spread(runs, "cpu"), spread(runs, "wall")]
            cells.append(middle(runs, lambda run: run["receives"] / run["docs"] * 1e6))
            cells += [middle(runs, lambda run: run["rss_mb"]), middle(runs, lambda run: run["result_mb"])]
            print(f"| {' | '.join(cells)} | {len(runs)} |")
        print()
        head("form", "job", "what", "beside", "at most", "measured", "reached")
        for form, job, what, other, *limits in TARGETS:
            limit = limits[value_bytes >= 700]
            ratios = compared(found, form, job, what, other)
            if ratios:
                value = statistics.median(ratios)
                reached = "yes" if value <= limit else "no"
                print(f"| {form} | {job} | {what} | {other} | {limit} | {value:.3g} "
                      f"({min(ratios):.3g}-{max(ratios):.3g}) | {reached} |")  # fmt: skip
    ours = [line for line in lines if "commit" in line]
    versions = sorted({f"{line['who']} {line['commit']} ({line['core']})" for line in ours})
    loads = [line["load"] for line in lines]
    print(f"\n{'; '.join(versions)}. Load of the machine: {min(loads):.1f} to {max(loads):.1f}.")


def head(*names: str) -> None:
    print(f"| {' | '.join(names)} |\n|{'---|' * len(names)}")


def spread(runs: list[dict[str, Any]], name: str) -> str:
    values = [run[name] for run in runs]
    digits = 2 if min(values) >= 0.1 else 3
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def middle(runs: list[dict[str, Any]], of: Callable[[dict[str, Any]], float]) -> str:
    try:
        return f"{statistics.median(map(of, runs)):,.0f}"
    except (KeyError, ZeroDivisionError):
        return ""


def compared(
    found: dict[tuple[str, str, str], list[dict[str, Any]]], form: str, job: str, what: str, other: str
) -> list[float]:
    """A figure of each round, divided by that of the other in the same round."""
    runs = {run["round"]: run for run in found.get((form, job, "cbframe"), [])}
    if not other:
        return [run[what] for run in runs.values()]
    if other.startswith("1.3"):
        return [run[what] / (1.3 * run["result_mb"] + 150) for run in runs.values()]
    others = {run["round"]: run for run in found.get((form, job, other), [])}
    return [run[what] / others[number][what] for number, run in runs.items() if number in others]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--forms", default=",".join(FORMS))
    parser.add_argument("--jobs", default="", help="those of a form by default")
    parser.add_argument("--sizes", default="1000000x256,200000x1536", help="documents x bytes")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON[,OPTION=VALUE]",
                        help="an interpreter with another cbframe, source options, or variables "
                        "of the environment; the figures to reach are of one named today")  # fmt: skip
    parser.add_argument("--timeout", type=float, default=900, help="seconds for a client")
    parser.add_argument("--out", type=Path, default=Path("wire_speed.jsonl"))
    parser.add_argument("--table", action="store_true", help="measure nothing")
    parser.add_argument("--source-options", type=json.loads, default={}, help=argparse.SUPPRESS)
    parser.add_argument("--client", nargs=3, metavar=("JOB", "PLACE", "TLS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.client:
        print(json.dumps(client(*options.client, options.source_options)))
        return 0
    done = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # an import does not compile each time
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    for size in options.sizes.split(",") if not options.table else []:
        docs, value_bytes = map(int, size.split("x"))
        for form in options.forms.split(","):
            server, jobs = FORMS[form]
            jobs = [job for job in jobs if not options.jobs or job in options.jobs.split(",")]
            with tempfile.TemporaryDirectory() as scratch:
                run = Run(options, form, docs, value_bytes, Path(scratch), done)
                if "--tls" in server:
                    certificates(run.scratch)
                run.rounds([job for job in jobs if job != "snapshot"], server)
                if "snapshot" in jobs:
                    run.snapshot()
    table(done)
    return 0


if __name__ == "__main__":
    sys.exit(main())
