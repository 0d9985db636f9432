"""The peers' harness, used from where it lies: its registry gets one more peer, ours, and nothing there is changed.

The harness is not part of this project. Its modules are imported at run time from the folder that is named.
"""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ops.bench.figures import percentiles
from ops.bench.peer import COMPLETED
from ops.bench.servers import Aof, RedisServer, tree_cpu_s

SCRIPT = Path(__file__).parent / "peer.py"
#: Callers on the event loop that all our processes run on, as the harness does it for its rows with uvloop.
UVLOOP = {"PB_UVLOOP": "1"}
#: (environment, note) of our own entries in the registry.
OURS: dict[str, tuple[dict[str, str], str]] = {
    "ours": (UVLOOP, "all promises on, one user; uvloop"),
    "ours-50-users": ({**UVLOOP, "BENCH_USERS": "50"}, "the same, jobs of 50 users in turn"),
    "ours-2-workers": ({**UVLOOP, "BENCH_WORKERS": "2"}, "the same, two worker processes"),
}
JOBS = (3_000, 27_000)
SETTLE_LIMIT_S = 60.0


class HarnessRedis(RedisServer):
    """A Redis as the harness wants it: with the harness' own small client as `c`."""

    def __init__(self, harness: Harness, aof: Aof) -> None:
        super().__init__(aof)
        self.c = harness.rig.Resp(self.port)


class Harness:
    """The harness' modules, with ours registered."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        sys.path.append(str(self.folder))  # last: its `common` must not hide ours
        self.registry = _module("registry")
        self.rig = _module("rig")
        self.bench = _module("bench")
        Path(self.rig.LOGS).mkdir(parents=True, exist_ok=True)
        self._theirs, self.rig.argv = self.rig.argv, self._argv
        self._call, self.rig.call = self.rig.call, self._noted
        self._times: list[float] = []
        for name, (environment, note) in OURS.items():
            environment = {**environment, "BENCH_PEERS_DIR": str(self.folder)}
            done = (list(COMPLETED), _all)
            self.registry.PEERS[name] = self.registry.P(str(SCRIPT), "ours", done, JOBS, env=environment, note=note)

    def setup(self) -> None:
        """Install what is missing: the harness' own script, into its own folder."""
        environment = {**os.environ, "PB_ROOT": self.registry.ROOT}
        subprocess.run(["sh", str(self.folder / "setup.sh")], env=environment, check=True)

    def installed(self, name: str) -> bool:
        """Whether a peer of the registry can be run here."""
        venv = self.registry.PEERS[name]["venv"]
        if venv == "node":
            return shutil.which("node") is not None and Path(self.registry.NODE_MODULES, "bullmq").is_dir()
        return name in OURS or Path(self.registry.VENVS, venv, "bin", "python").exists()

    def python_queues(self) -> list[str]:
        """The Python queues among the peers: not ours, not Node, and not the bounds, which are no queues."""
        others = {name: peer["venv"] for name, peer in self.registry.PEERS.items() if name not in OURS}
        return [name for name, venv in others.items() if venv not in ("node", "limit")]

    def throughput(self, name: str, aof: Aof, scale: float) -> dict[str, Any]:
        """No-op jobs through one worker: jobs/s, enqueue rates, commands and reads per job, CPU."""
        with HarnessRedis(self, aof) as server:
            measured: dict[str, Any] = self.bench.throughput(name, server, scale)
            return measured

    def latency(self, name: str, aof: Aof, scale: float) -> dict[str, Any]:
        """One job at a time through an idle worker: milliseconds from submit to the result in hand."""
        with HarnessRedis(self, aof) as server:
            self.bench.latency(name, server, scale)
            return percentiles(self._times)

    def utilization(self, name: str, aof: Aof) -> dict[str, Any]:
        """Jobs of 50 ms on 10 slots, from the first start to the last stored result."""
        with HarnessRedis(self, aof) as server:
            measured: dict[str, Any] = self.bench.utilization(name, server)
            return measured

    def idle(self, name: str, aof: Aof, workers: int, seconds: float) -> dict[str, Any]:
        """What idle workers cost: commands a second, and CPU of Redis and of the workers with all their children."""
        with HarnessRedis(self, aof) as server:
            slots = self.registry.PEERS[name]["conc"]
            running = [self.rig.Worker(name, server.port, slots, tag=f"_idle{i}") for i in range(workers)]
            try:
                pids = [worker.p.pid for worker in running]
                settle(pids)
                return {"workers": workers, "seconds": seconds, **_idle_cost(server, pids, seconds)}
            finally:
                for worker in running:
                    worker.stop()

    def versions(self) -> dict[str, Any]:
        """The peers' versions."""
        found: dict[str, Any] = self.bench.versions()
        return found

    def _noted(self, name: str, port: int, *args: Any, **options: Any) -> Any:
        # The harness keeps p50 and p99 of what its latency call prints; we want all of it.
        answer = self._call(name, port, *args, **options)
        self._times = answer.get("ms", self._times)
        return answer

    def _argv(self, name: str, *args: Any) -> list[str]:
        if name in OURS:
            return [sys.executable, str(SCRIPT), *map(str, args)]
        argv: list[str] = self._theirs(name, *args)
        return argv


def find(folder: Path, root: str | None = None) -> Harness | None:
    """The harness in this folder, None when there is none; its environments are under `root`."""
    if not (folder / "registry.py").is_file():
        return None
    os.environ.setdefault("PB_ROOT", root or str(Path(tempfile.gettempdir(), "peerbench")))
    return Harness(folder)


def _all(completed: bytes | None, count: int) -> bool:
    return int(completed or 0) >= count


def _module(name: str) -> Any:
    return importlib.import_module(name)


def settle(pids: list[int]) -> None:
    """Wait until processes only idle: imports are over once the CPU that is used changes little in three looks."""
    deadline = time.monotonic() + SETTLE_LIMIT_S
    used = tree_cpu_s(pids)
    rates: list[float] = []
    while time.monotonic() < deadline:
        time.sleep(2)
        before, used = used, tree_cpu_s(pids)
        rates = [*rates[-2:], (used - before) / 2]
        if len(rates) == 3 and max(rates) - min(rates) < 0.02 + 0.1 * min(rates):
            return


def _idle_cost(server: RedisServer, pids: list[int], seconds: float) -> dict[str, float]:
    calls, cpu, redis_cpu = sum(server.calls().values()), tree_cpu_s(pids), tree_cpu_s([server.p.pid])
    started = time.monotonic()
    time.sleep(seconds)
    took = time.monotonic() - started
    own = 1  # the INFO before it
    return {
        "commands_s": (sum(server.calls().values()) - calls - own) / took,
        "worker_cpu_percent": 100 * (tree_cpu_s(pids) - cpu) / took,
        "redis_cpu_percent": 100 * (tree_cpu_s([server.p.pid]) - redis_cpu) / took,
    }
