"""Real processes, each kept running as a supervisor would keep it, and ways to harm them.

The settings are the acceptance tests' profile: a lease of 2 s, so that a job whose worker died must run
again within B = L + L/2 + 1 s = 4 s.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx

from common.jobs import JobRecord, JobSpec
from common.queue import Queue
from common.results import Results
from common.settings import Settings
from tests.faults.ledger import VARIABLE, Ledger
from tests.redis_server import RedisServer, free_port
from tests.waiting import DEADLINE_S, until

ROOT = Path(__file__).parents[2]
LEASE_S = 2.0
PROFILE: dict[str, Any] = {
    "lease_s": LEASE_S,
    "bell_timeout_s": 1,
    "redis_timeout_s": 3,
    "retry_delay_s": 0.1,
    "grace_s": 5,
}
BOUND_S = LEASE_S + LEASE_S / 2 + 1
WORK = ("workers", "tests.faults.handlers.Work")
SCHEDULER = ("scheduler",)
WEB = ("producer",)
BATCHES = ("producer.batches",)
CATALOGUE = """
[models.chat]
kind = "generation"
engine = "fake"
max_model_len = 4096
slots = 8
options = { tokens = 400, delay_s = 0.02 }

[models.vectors]
kind = "embedding"
engine = "fake"
slots = 8
options = { delay_s = 0.2 }

[models.quick]
kind = "embedding"
engine = "fake"
slots = 32
options = { delay_s = 0.05 }
"""


class Kept:
    """One process that is started again whenever it ends."""

    def __init__(self, name: str, arguments: tuple[str, ...], environment: dict[str, str], log: Path) -> None:
        self.name = name
        self.exits: list[int] = []
        self.process: asyncio.subprocess.Process | None = None
        self._arguments = arguments
        self._environment = environment
        self._log = log
        self._keeper: asyncio.Task[None] | None = None
        self.again = True
        self._over = False

    def start(self) -> None:
        """Start it and keep it."""
        self._keeper = asyncio.create_task(self._keep())

    async def _keep(self) -> None:
        while True:
            with self._log.open("ab") as log:
                self.process = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", *self._arguments, env=self._environment, cwd=ROOT, stdout=log, stderr=log
                )
            if self._over:  # it was ended while it was being started again
                self.kill()
            self.exits.append(await self.process.wait())
            if self.again:
                await asyncio.sleep(0.1)
            if not self.again:
                return

    @property
    def alive(self) -> bool:
        """Whether it runs now."""
        return self.process is not None and self.process.returncode is None

    @property
    def pid(self) -> int:
        """Of the process that runs now."""
        assert self.process is not None
        return self.process.pid

    def send(self, signum: signal.Signals) -> None:
        """Send a signal, if it is there."""
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(signum)

    def kill(self) -> None:
        """SIGKILL: it is started again."""
        self.send(signal.SIGKILL)

    async def end(self, signum: signal.Signals = signal.SIGTERM, deadline_s: float = 20) -> int:
        """Stop it for good; returns its exit code."""
        self.again = False
        self._over = True
        self.send(signal.SIGCONT)
        self.send(signum)
        assert self._keeper is not None
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self._keeper), deadline_s)
        if not self._keeper.done():
            self.kill()
            await self._keeper
        return self.exits[-1]


class Formation:
    """Processes on one Redis, with one ledger; keywords are settings of them all."""

    def __init__(self, redis: RedisServer, folder: Path, **settings: Any) -> None:
        self.redis = redis
        self.folder = folder
        self.ledger = Ledger(folder / "ledger")
        self.port = free_port()
        self.kept: list[Kept] = []
        (folder / "models.toml").write_text(CATALOGUE)
        own: dict[str, Any] = {
            "redis_url": redis.url,
            "data_dir": folder,
            "catalogue": folder / "models.toml",
            "port": self.port,
        }
        self.settings = Settings(**(own | PROFILE | settings))
        self.queue: Queue
        self.results: Results

    async def open(self) -> None:
        """Connect this test's own reader."""
        self.queue = await Queue.connect(self.settings)
        self.results = Results(self.queue.redis, self.settings)

    async def close(self) -> None:
        """Kill everything."""
        for kept in self.kept:
            kept.again = False
            kept.send(signal.SIGCONT)
            kept.kill()
        await asyncio.gather(*(kept.end(signal.SIGKILL) for kept in self.kept))
        await self.results.close()
        await self.queue.close()

    def start(self, *arguments: str, name: str | None = None, **variables: Any) -> Kept:
        """Start `python -m <arguments>`; variables are settings, e.g. slots=2."""
        own = self.settings.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
        values = {f"JARVIS_{key.upper()}": str(value) for key, value in (own | variables).items()}
        clean = {key: value for key, value in os.environ.items() if not key.startswith("JARVIS_")}
        environment = {**clean, **values, VARIABLE: str(self.ledger.path), "PYTHONPATH": str(ROOT)}
        name = name or f"{arguments[-1].rsplit('.', 1)[-1]}.{len(self.kept)}"
        kept = Kept(name, arguments, environment, self.folder / f"{name}.log")
        self.kept.append(kept)
        kept.start()
        return kept

    async def workers(self, queue: str, count: int) -> None:
        """Wait until so many live workers serve a queue."""

        async def there() -> bool:
            return len(await self.results.workers(queue)) >= count

        await until(there, f"{count} workers of {queue}\n{self.logs()}", step_s=0.05)

    async def submit(self, count: int = 1, **spec: Any) -> list[str]:
        """Submit so many jobs of `work:test`; `input` as the handlers know it."""
        spec = {"kind": "work", "model": "test", "input": {}} | spec
        return [one.id for one in await self.queue.submit_many([JobSpec(**spec)] * count)]

    async def ends(self, jobs: list[str], deadline_s: float = DEADLINE_S) -> list[JobRecord]:
        """The records of all, each once it is terminal."""
        async with asyncio.timeout(deadline_s):
            return list(await asyncio.gather(*(self.results.wait(job, deadline_s) for job in jobs)))

    async def started(self, job: str, times: int = 1, deadline_s: float = DEADLINE_S) -> float:
        """Wait until the ledger has so many starts of a job; returns how long that took."""
        return await until(
            lambda: len(self.ledger.starts(job)) >= times, f"start {times} of {job}", deadline_s, step_s=0.02
        )

    def client(self, port: int | None = None) -> httpx.AsyncClient:
        """A client of the web process, or of one at another port."""
        return httpx.AsyncClient(base_url=f"http://127.0.0.1:{port or self.port}", timeout=10, trust_env=False)

    async def says(self, kept: Kept, text: str) -> None:
        """Wait until a process has written this to its log."""
        path = self.folder / f"{kept.name}.log"
        await until(lambda: path.exists() and text in path.read_text(), f"{kept.name} says {text!r}", step_s=0.05)

    async def scheduler(self, **variables: Any) -> Kept:
        """Start a scheduler and wait until it works."""
        scheduler = self.start(*SCHEDULER, **variables)
        await self.says(scheduler, "scheduler ready")
        return scheduler

    async def web_answers(self, client: httpx.AsyncClient) -> None:
        """Wait until the web process serves."""

        async def answers() -> bool:
            try:
                return (await client.get("/readyz")).status_code == 200
            except httpx.TransportError:
                return False

        await until(answers, f"the web process serves\n{self.logs()}", step_s=0.05)

    async def kill_redis(self) -> None:
        """SIGKILL redis-server while it has written what it acknowledged."""
        # With appendfsync everysec it answers before it writes while its fsync is under way (a few milliseconds a
        # second, more on a slow disk): what is acknowledged then dies with it. That is not what is tested.
        while True:
            about = await self.queue.redis.info("persistence")
            if not about["aof_pending_bio_fsync"] and not about["aof_buffer_length"]:
                break
            await asyncio.sleep(0.002)
        self.redis.kill9()

    def logs(self) -> str:
        """The end of every process' log, for the message of a failing wait."""
        return "\n".join(f"--- {path.name}\n{path.read_text()[-600:]}" for path in self.folder.glob("*.log"))
