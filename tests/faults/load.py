"""A steady load for the soak: submitters who do not give up, and a check of every job as soon as it has ended.

Every submit carries a key and is sent until it is acknowledged, so that each number is one job for certain.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any, NamedTuple

from common.errors import NotFound, StoreUnavailable
from common.jobs import JobSpec, decode
from common.queue import Key, Queue
from common.results import StoredResult
from common.states import TERMINAL, State
from tests.faults.callers import insist
from tests.faults.formation import LEASE_S, Formation

TICK_S = 0.2
TOKENS = 10
TEXT = "".join(f"t{n} " for n in range(TOKENS))


class Ended(NamedTuple):
    """What is kept of a job that has been checked: the delivery whose result is stored, and by which process."""

    claims: int
    pid: int | None


def deed(number: int) -> dict[str, Any]:
    """What the job of a number does: mostly little, some write tokens, few outlast several leases."""
    if number % 50 == 2:
        return {"do": "sleep", "s": 4 * LEASE_S}
    if number % 20 == 3:
        return {"do": "sleep", "s": 60}  # cancelled
    if number % 5 == 0:
        return {"do": "tokens", "n": TOKENS, "s": 0.05}
    return {"do": "sleep", "s": 0.02 + 0.04 * (number % 7)}


class Load:
    """Submits at a steady rate and checks what comes of it; `wrong` counts and `notes` says what did not hold."""

    def __init__(self, formation: Formation, queue: Queue, per_s: float) -> None:
        self.formation = formation
        self.queue = queue  # behind a proxy, as the web process is
        self.per_tick = max(2, round(per_s * TICK_S))
        self.jobs: dict[str, int] = {}  # acknowledged id -> number
        self.ended: dict[str, Ended] = {}  # of those that completed
        self.wrong: Counter[str] = Counter()
        self.notes: list[str] = []
        self.checked = 0
        self._number = 0
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def open(self) -> int:
        """Acknowledged jobs that have not been seen to end."""
        return len(self.jobs) - self.checked

    async def run(self, ends: float) -> None:
        """Submit until then (monotonic seconds)."""
        async with self.formation.client() as self.client:
            while (now := time.monotonic()) < ends:
                numbers = range(self._number, self._number + self.per_tick)
                self._number += self.per_tick
                self._do(self._list(list(numbers[:-1])))
                self._do(self._request(numbers[-1]))
                await asyncio.sleep(max(0.0, now + TICK_S - time.monotonic()))
            await self.rest(60)

    async def rest(self, deadline_s: float) -> None:
        """Wait until every job has ended and been checked, or for so long."""
        ends = time.monotonic() + deadline_s
        while self._tasks and time.monotonic() < ends:
            await asyncio.wait(self._tasks, timeout=ends - time.monotonic())

    def fault(self, what: str, note: str, times: int = 1) -> None:
        """Something does not hold."""
        self.wrong[what] += times
        if len(self.notes) < 100:
            self.notes.append(f"{what}: {note}")

    def _do(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self.fault("unexpected", repr(error))

    async def _list(self, numbers: list[int]) -> None:
        specs = [JobSpec(kind="work", model="test", input=deed(n), user=f"user {n % 9}") for n in numbers]
        keys = [Key(f"job {n}", "") for n in numbers]
        while True:
            try:
                submitted = await self.queue.submit_many(specs, keys)
                break
            except StoreUnavailable:
                await asyncio.sleep(0.1)
        for number, one in zip(numbers, submitted, strict=True):
            self._accepted(one.id, number)

    async def _request(self, number: int) -> None:
        body = {"kind": "embedding", "model": "vectors", "input": {"texts": [f"text {number}"]}}
        self._accepted(await insist(self.client, f"job {number}", body), number, web=True)

    def _accepted(self, job: str, number: int, web: bool = False) -> None:
        if job in self.jobs:
            self.fault("doubled", f"{job} was given to {self.jobs[job]} and to {number}")
        self.jobs[job] = number
        self._do(self._check(job, "web" if web else str(deed(number)["do"]), deed(number).get("s") == 60 and not web))

    async def _check(self, job: str, do: str, cancelled: bool) -> None:
        if cancelled:
            await asyncio.sleep(1)
            await _insistently(self.queue.cancel, job)
        try:
            stored = await self._result(job)
        except NotFound:
            self.fault("lost", f"{job} is not there any more")
        else:
            await self._judge(job, do, cancelled, stored)
        self.checked += 1

    async def _result(self, job: str) -> StoredResult:
        while True:
            await _insistently(self.formation.results.wait, job, 30)
            if stored := await _insistently(self.formation.results.result, job):
                return stored  # type: ignore[no-any-return]

    async def _judge(self, job: str, do: str, cancelled: bool, stored: StoredResult) -> None:
        record = stored.record
        if [state in TERMINAL for _, state, _ in record.history].count(True) != 1:
            self.fault("doubled", f"{job} has ended more than once: {record.history}")
        if record.status not in ((State.CANCELLED, State.COMPLETED) if cancelled else (State.COMPLETED,)):
            self.fault("unexpected", f"{job} is {record.status}: {record.error}")
        if record.status != State.COMPLETED:
            return
        assert stored.output is not None, "a completed job has a result"
        output = decode(stored.output)
        if do != "web" and output["claims"] != record.claims:
            self.fault("stale", f"{job}: delivery {output['claims']} is stored, the record names {record.claims}")
        self.ended[job] = Ended(record.claims, output.get("pid"))
        if do == "tokens":
            await self._judge_events(job, output["text"])

    async def _judge_events(self, job: str, text: str) -> None:
        events = await _insistently(self.formation.results.events, job)
        if [event.seq for event in events] != list(range(1, len(events) + 1)):
            self.fault("doubled", f"{job}: numbers of its events {[event.seq for event in events]}")
        shown = "".join(event.data["text"] for event in events if event.event == "token")
        if not shown == text == TEXT:
            self.fault("stale", f"{job}: its events say {shown!r}, its result {text!r}")


async def _insistently(call: Any, *args: Any) -> Any:
    while True:
        try:
            return await call(*args)
        except StoreUnavailable:
            await asyncio.sleep(0.1)
