"""What would happen: a trace's jobs through the queue's own scripts, in simulated time.

The scripts are the real ones, in a Redis of its own that lives as long as the plan; only their clock is a key. What is
simulated is the workers: each has slots, claims and commits as `workers/worker.py` does, and a job keeps a slot for as
long as the trace says that it ran.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import tempfile
import time
from asyncio.subprocess import DEVNULL
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import redis.asyncio as redis
from redis.exceptions import RedisError

from common.jobs import ClaimedJob, JobSpec, encode
from common.limits import Policy
from common.policies import Policies
from common.queue import Outcome, Queue
from common.scripts import SimulatedTime
from common.settings import Settings
from ops.embedded_redis import SERVER_CONFIG, RedisUnavailable, config_arguments, find_redis_server
from ops.trace import Arrival, Trace

#: Times in Redis have thirteen digits: a trace that counts from 0 is moved to here.
EPOCH_S = 1_700_000_000.0
#: Slots of a worker of which nobody has said how many it has.
SLOTS = 8
FEW_SLOTS = 16  # as in workers/worker.py: what one claim fills
START_LIMIT_S = 10.0
YEAR_S = 366 * 86_400.0


@dataclass
class Worker:
    """A worker of one queue."""

    queue: str
    slots: int
    name: str
    running: int = 0
    requests: int = 0
    busy_s: float = 0.0


@dataclass(frozen=True)
class Start:
    """A job that started."""

    at: float
    waited_s: float
    arrival: Arrival
    worker: str


@dataclass
class Outcomes:
    """What a simulation saw."""

    starts: list[Start] = field(default_factory=list)
    unstarted: list[Arrival] = field(default_factory=list)
    workers: list[Worker] = field(default_factory=list)
    began: float = 0.0
    ended: float = 0.0


@asynccontextmanager
async def private_redis() -> AsyncIterator[SimulatedTime]:
    """A Redis of our own on a socket in a temporary folder, empty, without a file; gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="jarvis-plan-") as folder:
        socket = Path(folder, "redis.sock")
        config = {**SERVER_CONFIG, "port": "0", "unixsocket": str(socket), "dir": folder, "appendonly": "no"}
        command = [find_redis_server(), *config_arguments(config)]
        server = await asyncio.create_subprocess_exec(*command, stdin=DEVNULL, stdout=DEVNULL)
        client = SimulatedTime(unix_socket_path=str(socket))
        try:
            await _answers(client)
            yield client
        finally:
            await client.aclose()
            server.kill()
            await server.wait()


async def _answers(client: redis.Redis) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while True:
        try:
            await client.ping()
            return
        except (RedisError, OSError) as error:
            if time.monotonic() > deadline:
                raise RedisUnavailable(f"the plan's own redis-server did not start: {error}") from None
            await asyncio.sleep(0.02)


class Simulation:
    """One run of a trace."""

    def __init__(self, client: SimulatedTime, trace: Trace, workers: dict[str, list[int]]) -> None:
        self._client = client
        self._trace = trace
        # In one shard, so that limits over all queues hold as they do on one Redis.
        self._queue = Queue(client, Settings(shards=1, max_depth=10**9, default_ttl_s=YEAR_S, namespace="plan"))
        self._prefix = self._queue.keys.prefix("00")
        self._offset = max(0.0, EPOCH_S - trace.arrivals[0].at)
        self._known: dict[str, Arrival] = {}
        self._ends: list[tuple[float, int, Worker, ClaimedJob, Arrival]] = []
        self._number = itertools.count()
        self.out = Outcomes()
        for queue, slots in workers.items():
            self.out.workers += [Worker(queue, n, f"worker-{i}") for i, n in enumerate(slots)]

    async def run(self, seen: Callable[[Start], None] | None = None) -> Outcomes:
        """Until every job has ended, or waits for ever."""
        await self._client.flushdb()
        await self._client.set_time(self._prefix, self._trace.arrivals[0].at + self._offset)
        policies = Policies(self._client, self._queue.settings)
        for owner, limits in self._trace.shares.items():
            await policies.set_share(owner, Policy.parse(limits))
        arrivals, at = self._trace.arrivals, 0
        self.out.began = self.out.ended = arrivals[0].at
        while at < len(arrivals) or self._ends or await self._held() is not None:
            now = await self._next(arrivals[at].at if at < len(arrivals) else None)
            await self._client.set_time(self._prefix, now + self._offset)
            first = at
            while at < len(arrivals) and arrivals[at].at <= now:
                at += 1
            await self._arrive(arrivals[first:at])
            await self._finish(now)
            await self._queue.promote(self._prefix)
            for worker in self.out.workers:
                await self._fill(worker, now, seen)
            self.out.ended = now
        started = {id(start.arrival) for start in self.out.starts}
        self.out.unstarted = [arrival for arrival in arrivals if id(arrival) not in started]
        return self.out

    async def _held(self) -> float | None:
        first = await self._client.zrange(f"{self._prefix}held", 0, 0, withscores=True)
        return first[0][1] / 1000 - self._offset if first else None

    async def _next(self, arrival: float | None) -> float:
        times = [arrival, self._ends[0][0] if self._ends else None, await self._held()]
        return max(self.out.ended, min(at for at in times if at is not None))

    async def _arrive(self, arrivals: Sequence[Arrival]) -> None:
        if not arrivals:
            return
        made = await self._queue.submit_many([_spec(arrival) for arrival in arrivals])
        self._known |= {one.id: arrival for one, arrival in zip(made, arrivals, strict=True)}

    async def _finish(self, now: float) -> None:
        done: defaultdict[str, list[Outcome]] = defaultdict(list)
        while self._ends and self._ends[0][0] <= now:
            _, _, worker, job, arrival = heapq.heappop(self._ends)
            worker.running -= 1
            gpu_ms = arrival.run_ms / worker.slots if arrival.gpu_ms is None else arrival.gpu_ms
            used = "audio_seconds" if arrival.queue.startswith("transcription:") else "total_tokens"
            usage = encode({used: arrival.units}) if arrival.units else b""
            done[worker.queue].append(Outcome(job, "completed", job.seq, b"{}", usage, gpu_ms=round(gpu_ms)))
        for queue, outcomes in done.items():
            await self._queue.commit(queue, outcomes)

    async def _fill(self, worker: Worker, now: float, seen: Callable[[Start], None] | None) -> None:
        chunk = max(worker.slots // 3, min(worker.slots, FEW_SLOTS))
        while want := min(chunk, worker.slots - worker.running):
            worker.requests += 1
            jobs = await self._queue.claim(worker.queue, worker.name, want, worker.requests)
            for job in jobs:
                self._start(worker, job, now, seen)
            if len(jobs) < want:
                return

    def _start(self, worker: Worker, job: ClaimedJob, now: float, seen: Callable[[Start], None] | None) -> None:
        arrival = self._known.pop(job.id)
        run_s = arrival.run_ms / 1000
        worker.running += 1
        worker.busy_s += run_s
        heapq.heappush(self._ends, (now + run_s, next(self._number), worker, job, arrival))
        start = Start(now, now - arrival.at, arrival, worker.name)
        self.out.starts.append(start)
        if seen:
            seen(start)


def _spec(arrival: Arrival) -> JobSpec:
    kind, _, model = arrival.queue.partition(":")
    return JobSpec(kind=kind, model=model, input={}, user=arrival.user, priority=arrival.lane, units=arrival.units)


def workers_of(trace: Trace) -> dict[str, list[int]]:
    """The workers that a trace has, and one for each queue of which it does not say."""
    return {arrival.queue: [SLOTS] for arrival in trace.arrivals} | {
        queue: list(slots) for queue, slots in trace.workers.items()
    }


def summary(out: Outcomes) -> dict[str, object]:
    """Waits by user and use by queue."""
    waits: defaultdict[str, list[float]] = defaultdict(list)
    for start in out.starts:
        waits[start.arrival.user].append(start.waited_s)
    unstarted: defaultdict[str, int] = defaultdict(int)
    for arrival in out.unstarted:
        unstarted[arrival.user] += 1
    span = max(out.ended - out.began, 1e-9)
    slots: defaultdict[str, int] = defaultdict(int)
    busy: defaultdict[str, float] = defaultdict(float)
    for worker in out.workers:
        slots[worker.queue] += worker.slots
        busy[worker.queue] += worker.busy_s
    return {
        "users": {
            user: {"jobs": len(times), "wait_p50_s": _at(times, 0.5), "wait_p95_s": _at(times, 0.95)}
            | ({"never_started": unstarted[user]} if unstarted[user] else {})
            for user in sorted({*waits, *unstarted})
            for times in [sorted(waits[user])]
        },
        "queues": {
            queue: {
                "workers": sum(worker.queue == queue for worker in out.workers),
                "slots": slots[queue],
                "utilisation": round(busy[queue] / (slots[queue] * span), 4),
            }
            for queue in sorted(slots)
        },
        "span_s": round(span, 3),
    }


def _at(ordered: list[float], share: float) -> float | None:
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 3) if ordered else None
