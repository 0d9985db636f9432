"""`python -m ops.bench queue`: our queue and its peers in interleaved rounds, on one machine, by one harness.

The machine is noisy, so what counts is the ratio within a round; the last line has the medians of those.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from subprocess import SubprocessError
from typing import Any

from ops.bench import alone, figures, hotspots, web
from ops.bench.harness import OURS, Harness, find
from ops.bench.report import show
from ops.bench.servers import BenchFailed

__all__ = ["add_arguments", "run", "show"]

PEERS = ("ours", "limit-tasks", "bullmq", "arq-tuned", "saq", "streaq-uvloop", "taskiq", "dramatiq")
#: What a peer can fail with; the round goes on without it, and the result file says so.
FAILURES = (RuntimeError, OSError, SubprocessError, BenchFailed, KeyError)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `queue`."""
    parser.add_argument("--peers", default=",".join(PEERS), help="rows to measure, in the harness' names")
    parser.add_argument("--peers-dir", type=Path, default=Path("../shared/peers"), help="where the peers' harness lies")
    parser.add_argument("--setup", action="store_true", help="first install the peers with the harness' setup.sh")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds")
    parser.add_argument("--scale", type=float, default=1.0, help="part of each peer's number of jobs (ours: 30,000)")
    parser.add_argument("--aof", choices=("everysec", "no", "always"), default="everysec", help="of Redis, for all")
    parser.add_argument("--idle-workers", type=int, default=4, help="workers in the idle measurement; 0: none")
    parser.add_argument("--idle-s", type=float, default=10.0, help="how long it looks at them")
    parser.add_argument("--two-workers", action="store_true", help="a row of ours with two worker processes")
    parser.add_argument("--profile", action="store_true", help="where our time goes, function by function")
    parser.add_argument("--no-latency", action="store_true", help="only throughput")
    parser.add_argument("--no-web", action="store_true", help="leave out the latency through HTTP")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure; returns rounds, medians, ratios and errors."""
    harness = find(options.peers_dir)
    if harness is None:
        print(f"skipped: no peers harness in {options.peers_dir}; ours alone", flush=True)
        rows: Sequence[str] = ["ours"]
    else:
        if options.setup:
            harness.setup()
        rows = _installed(harness, [*options.peers.split(","), *(["ours-2-workers"] if options.two_workers else [])])
    session = Session(harness, options)
    for number in range(options.rounds):
        session.round(number, rows)
    session.idle(rows)
    if options.profile:
        session.profile()
    return session.document()


def _installed(harness: Harness, wanted: list[str]) -> list[str]:
    unknown = sorted(set(wanted) - set(harness.registry.PEERS))
    if unknown:
        sys.exit(f"no such peer: {', '.join(unknown)}; there are {', '.join(harness.registry.PEERS)}")
    missing = [name for name in wanted if not harness.installed(name)]
    if missing:
        print(f"not installed, left out: {', '.join(missing)} (--setup installs them)", flush=True)
    return [name for name in wanted if name not in missing]


class Session:
    """The rounds of one call."""

    def __init__(self, harness: Harness | None, options: argparse.Namespace) -> None:
        self.harness = harness
        self.options = options
        self.rounds: list[dict[str, dict[str, Any]]] = []
        self.idling: dict[str, dict[str, Any]] = {}
        self.profiled: dict[str, Any] = {}
        self.errors: list[str] = []

    def round(self, number: int, rows: Sequence[str]) -> None:
        """One figure of each row; every round starts with another row, so that none always follows the same."""
        found: dict[str, dict[str, Any]] = {}
        self.rounds.append(found)
        start = number % len(rows)
        for name in [*rows[start:], *rows[:start]]:
            row = self._row(name)
            if row:
                found[name] = row
                print(f"round {number + 1}: {_told(name, row)}", flush=True)
        if "ours" in rows and not (self.options.no_web or self.options.no_latency):
            through = self._tried("ours through HTTP", lambda: web.latency(self.options.aof, self.options.scale))
            if through:
                found["ours-http"] = through
                print(f"round {number + 1}: {_told('ours-http', through)}", flush=True)

    def idle(self, rows: Sequence[str]) -> None:
        """What idle workers cost; once, it hardly varies."""
        harness, options = self.harness, self.options
        if harness is None or options.idle_workers < 1:
            return
        for name in (
            row for row in rows if row == "ours" or row not in OURS
        ):  # our entries have one and the same worker
            look = partial(harness.idle, name, options.aof, options.idle_workers, options.idle_s)
            cost = self._tried(f"{name} idle", look)
            if cost:
                self.idling[name] = cost
                print(f"idle: {name}: {_told_idle(cost)}", flush=True)

    def profile(self) -> None:
        """Where the time of ours goes."""
        options = self.options
        self.profiled = self._tried("profile", lambda: hotspots.measure(options.aof, options.scale))

    def document(self) -> dict[str, Any]:
        """Everything, for the result file."""
        return {
            "rounds": self.rounds,
            "medians": figures.medians(self.rounds),
            "idle": self.idling,
            "profile": self.profiled,
            "ratios": self.ratios(),
            "errors": self.errors,
            "peers": self.harness.versions() if self.harness else {},
        }

    def ratios(self) -> dict[str, float | None]:
        """Our jobs/s over theirs, medians of same-round ratios."""
        python = self.harness.python_queues() if self.harness else []
        beside = {"vs_best_python": python, "vs_bullmq": ["bullmq"], "vs_limit_tasks": ["limit-tasks"]}
        ratios = {name: figures.ratio(self.rounds, "ours", "jobs_s", them) for name, them in beside.items()}
        return {**ratios, **self._of_ours()}

    def _of_ours(self) -> dict[str, float]:
        # What a job of ours costs; with two workers, how near Redis is to full.
        medians = figures.medians(self.rounds)
        ours, two = medians.get("ours", {}), medians.get("ours-2-workers", {})
        found = {
            "reads_per_job": ours.get("reads"),
            "redis_us": ours.get("redis_us"),
            "worker_us": ours.get("worker_us"),
        }
        found["two_workers_redis_percent"] = two.get("redis_percent")
        found["two_workers_vs_one"] = figures.ratio(self.rounds, "ours-2-workers", "jobs_s", ["ours"])
        return {name: value for name, value in found.items() if value is not None}

    def _row(self, name: str) -> dict[str, Any]:
        aof, scale = self.options.aof, self.options.scale
        source: Any = alone if self.harness is None else self.harness
        arguments = (aof, scale) if self.harness is None else (name, aof, scale)
        row = self._tried(name, lambda: source.throughput(*arguments))
        if row and not self.options.no_latency:
            timed = self._tried(f"{name} latency", lambda: source.latency(*arguments))
            row.update({key: value for key, value in timed.items() if key != "n"})
        return {**row, **_cpu(row)}

    def _tried(self, what: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        try:
            return measure()
        except FAILURES as error:
            self.errors.append(f"round {len(self.rounds)}: {what}: {error}"[:1000])
            print(f"FAILED: {what}: {error}", flush=True)
            return {}


def _cpu(row: dict[str, Any]) -> dict[str, float]:
    """CPU a job in microseconds, and how much of a core Redis used meanwhile."""
    names = {"redis_us": "redis_cpu_1k", "worker_us": "worker_cpu_1k"}
    found = {name: 1000 * row[source] for name, source in names.items() if source in row}
    if "redis_us" in found:
        found["redis_percent"] = found["redis_us"] * row["jobs_s"] / 10_000
    return found


def _told(name: str, row: dict[str, Any]) -> str:
    parts = [f"{row['jobs_s']:,.0f} jobs/s"] if "jobs_s" in row else []
    if "p50" in row:
        parts.append(f"idle latency p50 {row['p50']:.2f} ms, p99 {row['p99']:.2f} ms")
    return f"{name}: {', '.join(parts)}"


def _told_idle(cost: dict[str, Any]) -> str:
    workers, redis = cost["worker_cpu_percent"], cost["redis_cpu_percent"]
    return f"{cost['commands_s']:.1f} commands/s, workers {workers:.1f} % CPU, redis {redis:.1f} %"
