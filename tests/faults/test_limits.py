"""A key's limits under many web processes, wrong clocks, and jobs that use other than was thought: test 12.

Which requests are let through is asked of Redis alone: no web process knows, or has to be right about the time.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from common.api_keys import ApiKeys, Asked
from common.jobs import JobResult, JobSpec
from common.queue import Outcome
from tests.faults.conftest import FULL
from tests.faults.formation import WEB, Formation
from tests.redis_server import free_port

BODY: dict[str, Any] = {"kind": "embedding", "model": "vectors", "input": {"texts": ["one"]}}
LATE = ("tests.faults.late_clock", "producer")


@dataclass
class Answered:
    """One answer, and between which moments (Unix seconds) it was made."""

    sent: float
    came: float
    response: httpx.Response


class Crowd:
    """Web processes, and one key that calls them all at once."""

    def __init__(self, formation: Formation, clients: list[httpx.AsyncClient], text: str) -> None:
        self.formation = formation
        self.clients = clients
        self.id = text[3:15]
        self.headers = {"authorization": f"Bearer {text}"}

    @classmethod
    async def gathered(cls, formation: Formation, webs: int, *limits: str) -> Crowd:
        """So many web processes, the last with a clock of its own, and a key with these limits."""
        keys = ApiKeys(formation.queue.redis, formation.settings)
        made = await keys.create(Asked(name="crowd", tier="custom", limits=limits), "test")
        assert made
        clients = []
        for number in range(webs):
            port = free_port()
            formation.start(*(LATE if number == webs - 1 else WEB), port=port)
            many = httpx.Limits(max_connections=None)
            url = f"http://127.0.0.1:{port}"
            clients.append(httpx.AsyncClient(base_url=url, timeout=60, trust_env=False, limits=many))
        for client in clients:
            await formation.web_answers(client)
        return cls(formation, clients, made[1].text)

    async def ask(self, number: int) -> Answered:
        """One request, of one of the processes in turn."""
        sent = time.time()
        client = self.clients[number % len(self.clients)]
        response = await client.post("/v1/jobs", json=BODY, headers=self.headers)
        return Answered(sent, time.time(), response)

    async def rush(self, count: int) -> tuple[list[Answered], list[Answered]]:
        """So many requests at once: those that were let through, and those that were refused."""
        answers = await asyncio.gather(*(self.ask(number) for number in range(count)))
        statuses = {one.response.status_code for one in answers}
        assert statuses <= {202, 429}, statuses
        over = [one for one in answers if one.response.status_code == 429]
        return [one for one in answers if one.response.status_code == 202], over

    async def close(self) -> None:
        """Hang up."""
        await asyncio.gather(*(client.aclose() for client in self.clients))


Gather = Callable[..., Awaitable[Crowd]]


@pytest.fixture
async def gather(formation: Formation) -> AsyncIterator[Gather]:
    """Make a crowd: `gather(4, "requests=60/60s")`; whatever becomes of the test, it hangs up."""
    crowds: list[Crowd] = []

    async def made(webs: int, *limits: str) -> Crowd:
        crowds.append(await Crowd.gathered(formation, webs, *limits))
        return crowds[-1]

    yield made
    for crowd in crowds:
        await crowd.close()


async def test_12_exactly_the_burst_gets_through_four_processes_one_of_which_has_a_wrong_clock(
    formation: Formation, gather: Gather
) -> None:
    crowd = await gather(4, "requests=60/60s,burst=10")
    let_in, over = await crowd.rush(200)
    # One more is free each second: none of them may come before its time, and each must come in it.
    took_s = max(one.came for one in let_in + over) - min(one.sent for one in let_in + over)
    assert 10 <= len(let_in) <= 10 + math.floor(took_s)
    for one in over:
        assert one.response.headers["retry-after"] == "1"
        assert 0 < int(one.response.headers["retry-after-ms"]) <= 1000
    # One after the other: each says in how long the next one is free, by whichever process' clock it was made.
    bucket = await formation.queue.redis.get(f"{formation.queue.keys.prefixes()[0]}bucket:k:{crowd.id}")
    assert bucket
    at, used = bucket.decode().split(" ")[0], float(bucket.decode().partition("=")[2].split(",")[0])
    free_at = int(at) / 1e6 + used + 1 - 10
    probes = [await crowd.ask(number) for number in range(40) if time.time() < free_at]
    for one in probes:
        if one.response.status_code != 429:
            continue  # it was free by then
        told_s = int(one.response.headers["retry-after-ms"]) / 1000
        assert one.sent + told_s - 0.002 <= free_at <= one.came + told_s + 0.002
        assert free_at <= one.came + int(one.response.headers["retry-after"]) <= free_at + 1 + one.came - one.sent
    if not [one for one in probes if one.response.status_code == 202]:  # the last one may have come just in time
        await asyncio.sleep(max(0, free_at - time.time()))
        assert (await crowd.ask(3)).response.status_code == 202, "the wait was as long as it was said to be"
    print(f"let in {len(let_in)} of 200 in {took_s:.2f} s; refused {len(over)}")


async def test_many_requests_at_once_get_exactly_the_limit(formation: Formation, gather: Gather) -> None:
    webs, count = (8, 2000) if FULL else (3, 400)
    crowd = await gather(webs, "requests=100/1d")
    let_in, over = await crowd.rush(count)
    assert (len(let_in), len(over)) == (100, count - 100)
    assert {one.response.headers["x-should-retry"] for one in over} == {"false"}
    (stats,) = await formation.results.queues()
    assert (sum(stats.depth.values()), stats.counts["limited:requests-86400s"]) == (100, count - 100)


async def test_a_token_budget_is_never_exceeded_by_more_than_one_job_s_true_cost_over_its_estimate(
    formation: Formation,
) -> None:
    """Eight submitters and a worker; most jobs use less than was thought, one uses more at the end."""
    budget, estimate, beyond = 10_000, 100, 300
    keys = ApiKeys(formation.queue.redis, formation.settings)
    made = await keys.create(Asked(name="k", tier="custom", limits=(f"tokens={budget}/366d",)), "test")
    assert made
    spec = JobSpec(kind="work", model="test", input={}, user="k", api_key=made[0].id, units=estimate)
    used = 0
    refused = asyncio.Event()

    async def submit() -> None:
        tries = 0
        while tries < 40:  # far beyond what the budget allows
            answers = await formation.queue.submit_each([spec] * 5)
            tries = tries + 1 if any(isinstance(one, Exception) for one in answers) else 0
            await asyncio.sleep(0.005)
        refused.set()

    async def work() -> None:
        nonlocal used
        request, over = 0, False
        while True:
            request += 1
            jobs = await formation.queue.claim("work:test", "w", 8, request)
            if not jobs and refused.is_set():
                return
            for number, job in enumerate(jobs):
                if number % 5 == 4:
                    await formation.queue.cancel(job.id)
                    used += estimate  # nobody knows; it is counted whole
                    continue
                tokens = estimate if number % 4 == 3 else 20
                if refused.is_set() and not over:
                    over, tokens = True, beyond
                result = JobResult({}, {"prompt_tokens": 10, "completion_tokens": tokens - 10})
                assert await formation.queue.commit("work:test", [Outcome.done(job, job.seq, result)]) == ["stored"]
                used += tokens
            await asyncio.sleep(0.005)

    await asyncio.gather(work(), *(submit() for _ in range(8)))
    print(f"used {used} of {budget}")
    assert 0.9 * budget < used <= budget + beyond - estimate
    again = await formation.queue.submit_each([spec])
    assert isinstance(again[0], Exception)
