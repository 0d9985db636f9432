"""Our module of the peers' harness: the real Queue, the real worker, the real Results.

The harness starts this file as a script (`enqueue`, `latency`, `collect`, `worker`) and its `common.main` does the
rest; `alone.py` uses the same class without a harness.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
if __name__ == "__main__":
    sys.path[0] = str(ROOT)  # not this folder: its modules are no top-level names

from common.jobs import JobSpec, decode  # noqa: E402
from common.keys import Keys  # noqa: E402
from common.queue import Queue  # noqa: E402
from common.results import Results, StoredResult  # noqa: E402
from common.settings import Settings, load_settings  # noqa: E402
from ops.bench.noop import QUEUE, payload  # noqa: E402

NAMESPACE = "bench"
WAIT_S = 60.0
WORKER = [sys.executable, "-m", "workers", "ops.bench.noop.NoopWorker"]
#: What the harness' done probe asks Redis: how many jobs have completed; it is counted where the result is stored.
COMPLETED = ("HGET", Keys(NAMESPACE, 1).queue(":".join(QUEUE)) + "counts", "state:completed")


def settings_for(port: int) -> Settings:
    """The defaults, on the benchmark's own Redis."""
    return load_settings(redis_url=f"redis://127.0.0.1:{port}/0", namespace=NAMESPACE, shards=1)


def worker_environment(port: int, slots: int) -> dict[str, str]:
    """What WORKER needs to serve the benchmark's queue."""
    return {
        "PYTHONPATH": str(ROOT),
        "BENCH_SLOTS": str(slots),
        "JARVIS_REDIS_URL": f"redis://127.0.0.1:{port}/0",
        "JARVIS_NAMESPACE": NAMESPACE,
        "JARVIS_SHARDS": "1",
        "JARVIS_LOG_LEVEL": "warning",
    }


class Ours:
    """What the harness asks of a peer. BENCH_USERS spreads the jobs over so many users."""

    batch_kind = "native"
    port = int(os.environ.get("PB_PORT", "6390"))
    users = int(os.environ.get("BENCH_USERS", "1"))

    async def connect(self) -> None:
        """A client of our own; the scheduler's `prepare` has run wherever Jarvis runs, so it runs here."""
        self.queue = await Queue.connect(settings_for(self.port))
        self.results = Results(self.queue.redis, self.queue.settings)
        await self.queue.prepare()

    async def close(self) -> None:
        """Let the client go."""
        await self.results.close()
        await self.queue.close()

    async def enqueue(self, kind: str, i: int) -> str:
        """Submit one job; returns its id."""
        return (await self.queue.submit(self._spec(kind, i))).id

    async def enqueue_many(self, kind: str, numbers: Sequence[int]) -> list[str]:
        """Submit jobs in one call."""
        return [one.id for one in await self.queue.submit_many([self._spec(kind, i) for i in numbers])]

    async def wait(self, job_id: str) -> Any:
        """A job's result as soon as it is there, the way the API waits."""
        return _decoded(await self.results.finished(job_id, WAIT_S))

    async def result(self, job_id: str) -> Any:
        """A job's result, None while there is none."""
        return _decoded(await self.results.result(job_id))

    def worker(self, concurrency: int) -> None:
        """Become a worker; BENCH_WORKERS says how many there are to be."""
        environment = {**os.environ, **worker_environment(self.port, concurrency)}
        for _ in range(int(os.environ.get("BENCH_WORKERS", "1")) - 1):
            subprocess.Popen(WORKER, env=environment)
        os.execve(sys.executable, WORKER, environment)

    def _spec(self, kind: str, i: int) -> JobSpec:
        function = "" if kind == QUEUE[0] else kind
        return JobSpec(
            kind=QUEUE[0], model=QUEUE[1], input=payload(i), function=function, user=f"user-{i % self.users}"
        )


def _decoded(stored: StoredResult | None) -> Any:
    return None if stored is None or stored.output is None else decode(stored.output)


def main() -> None:
    """Hand over to the harness, whose folder is in BENCH_PEERS_DIR."""
    place = Path(os.environ["BENCH_PEERS_DIR"]) / "common.py"
    spec = importlib.util.spec_from_file_location("peers_common", place)
    if spec is None or spec.loader is None:
        raise SystemExit(f"no harness in {place.parent}")
    harness = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(harness)
    harness.main(Ours)


if __name__ == "__main__":
    main()
