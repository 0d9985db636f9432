"""Where the time goes while one worker runs no-op jobs, function by function, in the worker and in Redis.

Three looks: the worker's Python functions, sampled by its own CPU clock (`SampledWorker`); the C functions of worker
and Redis, by `perf` where it is installed and allowed; and what Redis says of each command. Nothing of it slows the
calls themselves, as a tracing profiler would.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import uvloop

from ops.bench import alone
from ops.bench.crew import Crew, crew
from ops.bench.machine import ROOT
from ops.bench.noop import NoopWorker
from ops.bench.report import Column, as_table
from ops.bench.servers import Aof, RedisServer, cpu_s

COMMAND = [sys.executable, "-m", "workers", "ops.bench.hotspots.SampledWorker"]
#: Where SampledWorker writes what it saw.
FILE = "BENCH_SAMPLES"
EVERY_S = 0.001
JOBS = 60_000
TOP = 15
#: Commands of clients; all others in these measurements run inside scripts.
OUTER = ("evalsha", "eval", "blpop", "xread", "ping", "info", "hget", "hello", "select", "client|setinfo")
PERF_LINE = re.compile(r"^\s+([\d.]+)%\s+(\S+)\s+\[(.)\]\s+(.+?)\s*$")
SHARE: tuple[Column, ...] = (("percent", "% of its CPU", 1),)
PYTHON: tuple[Column, ...] = (("percent", "% of its CPU", 1), ("with_called", "% with what it calls", 1))
COMMANDS: tuple[Column, ...] = (("us_job", "µs a job", 2), ("calls_job", "calls a job", 3))


class Samples:
    """Which Python function runs, looked at each millisecond of the process' own CPU time."""

    def __init__(self) -> None:
        self.own: Counter[str] = Counter()
        self.inside: Counter[str] = Counter()

    def start(self) -> None:
        """Begin to look."""
        signal.signal(signal.SIGPROF, self._look)
        signal.setitimer(signal.ITIMER_PROF, EVERY_S, EVERY_S)

    def write(self, file: Path) -> None:
        """Stop, and keep the percentages."""
        signal.setitimer(signal.ITIMER_PROF, 0)
        total = max(1, self.own.total())
        rows = {
            name: {"percent": 100 * count / total, "with_called": 100 * self.inside[name] / total}
            for name, count in self.own.most_common(TOP)
        }
        file.write_text(json.dumps(rows), encoding="utf-8")

    def _look(self, _: int, frame: FrameType | None) -> None:
        if frame is None:
            return
        self.own[_name(frame)] += 1
        names = set()
        at: FrameType | None = frame
        while at is not None:
            names.add(_name(at))
            at = at.f_back
        self.inside.update(names)


def _name(frame: FrameType) -> str:
    file = frame.f_code.co_filename
    root = max((path for path in [str(ROOT), *sys.path] if file.startswith(path)), key=len, default="")
    return f"{file.removeprefix(root).lstrip('/')}:{frame.f_code.co_qualname}"


_samples = Samples()


async def _start(ctx: dict[str, Any]) -> None:
    _samples.start()


async def _write(ctx: dict[str, Any]) -> None:
    _samples.write(Path(os.environ[FILE]))


class SampledWorker(NoopWorker):
    """The no-op worker, looking at itself."""

    on_startup = _start
    on_shutdown = _write


def measure(aof: Aof, scale: float) -> dict[str, Any]:
    """Run the no-op jobs once under all looks; returns tables."""
    with crew(aof) as workers:
        samples = workers.folder / "samples.json"
        os.environ[FILE] = str(samples)
        seen = uvloop.run(_run(workers, max(1_000, int(JOBS * scale))))
        workers.stop()
        python = json.loads(samples.read_text())
    tables = [as_table(PYTHON, python, f"the worker, Python functions ({seen['worker_us']:.0f} µs of CPU a job)")]
    tables += [as_table(SHARE, rows, title) for title, rows in seen["perf"].items()]
    tables.append(as_table(COMMANDS, seen["commands"], f"Redis, by command ({seen['redis_us']:.0f} µs of CPU a job)"))
    return {"tables": tables}


async def _run(workers: Crew, count: int) -> dict[str, Any]:
    server = workers.server
    async with alone.connected(server) as ours:
        for low in range(0, count, alone.BATCH):
            await ours.enqueue_many(alone.NOOP, range(low, min(low + alone.BATCH, count)))
    worker = workers.worker(alone.SLOTS, COMMAND).process.pid
    workers.until(lambda: workers.completed() > 0, "no job was done")
    looks = {
        "the worker, C functions": Perf(worker, workers.folder),
        "Redis, C functions": Perf(server.p.pid, workers.folder),
    }
    server.client.config_resetstat()
    left, before = count - workers.completed(), (cpu_s(worker), cpu_s(server.p.pid))
    workers.until(lambda: workers.completed() >= count, "not all jobs were done")
    worker_s, redis_s = cpu_s(worker) - before[0], cpu_s(server.p.pid) - before[1]
    return {
        "commands": commands(server, left),
        "perf": {title: rows for title, look in looks.items() if (rows := look.rows())},
        "worker_us": 1e6 * worker_s / left,
        "redis_us": 1e6 * redis_s / left,
    }


def commands(server: RedisServer, jobs: int) -> dict[str, dict[str, float]]:
    """What each command cost since the last reset; `scripts themselves` is Lua without the commands that it calls."""
    stats: Any = server.client.info("commandstats")
    rows = {
        name.removeprefix("cmdstat_"): {"us_job": row["usec"] / jobs, "calls_job": row["calls"] / jobs}
        for name, row in stats.items()
    }
    rows = {name: row for name, row in rows.items() if name not in ("info", "hget", "config|resetstat")}
    inner = sum(row["us_job"] for name, row in rows.items() if name not in OUTER)
    if "evalsha" in rows:
        whole = rows.pop("evalsha")
        rows["scripts, whole (evalsha)"] = whole
        rows["scripts themselves (Lua)"] = {"us_job": whole["us_job"] - inner, "calls_job": whole["calls_job"]}
    return dict(sorted(rows.items(), key=lambda item: -item[1]["us_job"])[:TOP])


class Perf:
    """`perf record` of one process from now on; without perf, or the right to use it, there are no rows."""

    def __init__(self, pid: int, folder: Path) -> None:
        self._file = folder / f"perf-{pid}.data"
        self._process: subprocess.Popen[bytes] | None = None
        if shutil.which("perf"):
            command = ["perf", "record", "-q", "-F", "999", "-p", str(pid), "-o", str(self._file)]
            self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def rows(self) -> Mapping[str, Mapping[str, float]]:
        """The functions that used most, with the library that each is in."""
        if self._process is None:
            return {}
        self._process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(20)
        command = ["perf", "report", "-i", str(self._file), "--stdio", "--no-children", "-F", "overhead,dso,symbol"]
        told = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        found = (PERF_LINE.match(line) for line in told.splitlines())
        rows = [(f"{one[4]} ({_library(one[2])})", float(one[1])) for one in found if one]
        return {name: {"percent": percent} for name, percent in rows[:TOP]}


def _library(name: str) -> str:
    known = {"[kernel.kallsyms]": "kernel", "redis-check-rdb": "redis-server"}  # Debian's redis-server is a link
    return known.get(name, name.partition(".so")[0].partition(".cpython")[0])
