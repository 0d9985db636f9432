"""The same request, claim, commit or tick sent many times counts once. Acceptance test 9."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import httpx

from common.queue import Queue
from common.scripts import digest, execute
from common.states import State
from tests.faults.conftest import FULL
from tests.faults.formation import SCHEDULER, WEB, WORK, Formation
from tests.faults.proxy import Proxy
from tests.waiting import until

BODY: dict[str, Any] = {"kind": "embedding", "model": "vectors", "input": {"texts": ["one"]}}


async def test_9_one_key_is_one_job_however_often_it_is_sent_and_however_many_replies_are_lost(
    formation: Formation, proxy: Proxy
) -> None:
    formation.start(*WEB, redis_url=proxy.url)
    async with formation.client() as client:
        await formation.web_answers(client)
        headers = {"idempotency-key": "the same"}

        async def insist(body: dict[str, Any]) -> httpx.Response:
            while True:
                try:
                    answer = await client.post("/v1/jobs", json=body, headers=headers)
                except httpx.TransportError:
                    continue
                if answer.status_code != 503:
                    return answer
                await asyncio.sleep(0.05)

        async def flicker() -> None:
            while True:
                proxy.cut_replies = [digest("submit").encode()]
                await asyncio.sleep(0.15)
                proxy.cut_replies = []
                await asyncio.sleep(0.1)

        flickering = asyncio.create_task(flicker())
        answers = await asyncio.gather(*(insist(BODY) for _ in range(50)))
        for _ in range(100):
            answers.append(await insist(BODY))
        flickering.cancel()
        proxy.cut_replies = []
        assert {answer.status_code for answer in answers} <= {200, 202}
        ids = {answer.json()["id"] for answer in answers}
        assert len(ids) == 1
        assert proxy.cuts > 5, "replies were lost"
        prefix = formation.queue.keys.of_queue("embedding:vectors")
        assert await formation.queue.redis.xlen(f"{prefix}index") == 1
        streams = [key async for key in formation.queue.redis.scan_iter(match="*:u:*")]
        assert [await formation.queue.redis.xlen(key) for key in streams] == [1]

        others = await asyncio.gather(*(insist(BODY | {"input": {"texts": [f"{n}"]}}) for n in range(10)))
        assert {answer.status_code for answer in others} == {422}
        foreign = await insist(BODY | {"user": "somebody"})
        assert foreign.json()["id"] not in ids


async def test_9_a_lost_claim_reply_leaves_no_job_that_nobody_runs(formation: Formation, proxy: Proxy) -> None:
    formation.start(*WORK, slots=6, redis_url=proxy.url)
    await formation.scheduler()
    await formation.workers("work:test", 1)
    for _ in range(5):
        proxy.cut_replies = [digest("claim").encode()]
        cuts = proxy.cuts
        jobs = await formation.submit(6, input={"s": 0.05})
        await until(lambda cuts=cuts: proxy.cuts > cuts, "a claim's reply is lost")  # type: ignore[misc]
        proxy.cut_replies = []
        records = await formation.ends(jobs)
        assert {(record.status, record.claims) for record in records} == {(State.COMPLETED, 1)}
    assert len(formation.ledger.starts()) == 30


async def test_9_a_lost_commit_reply_stores_one_end(formation: Formation, proxy: Proxy) -> None:
    formation.start(*WORK, slots=6, redis_url=proxy.url)
    await formation.workers("work:test", 1)
    proxy.cut_replies = [digest("commit").encode(), digest("emit").encode()]
    jobs = await formation.submit(20, input={"do": "tokens", "n": 5, "s": 0.01})
    await until(lambda: proxy.cuts >= 5, "replies are lost")
    proxy.cut_replies = []
    records = await formation.ends(jobs)
    assert {(record.status, record.claims) for record in records} == {(State.COMPLETED, 1)}
    for job in jobs:
        events = await formation.results.events(job)
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        shown = "".join(event.data["text"] for event in events if event.event == "token")
        assert shown == "t0 t1 t2 t3 t4 "
    stats = (await formation.results.queues())[0]
    assert stats.counts["state:completed"] == 20


async def test_9_two_schedulers_of_which_one_is_killed_run_a_tick_once(formation: Formation) -> None:
    ticks = 1000 if FULL else 8
    recurring = formation.folder / "recurring.toml"
    recurring.write_text(
        '[[job]]\nname = "every second"\ncron = "* * * * * *"\ncatch_up_s = 1\n'
        'kind = "work"\nmodel = "test"\ninput = {}\n'
    )
    formation.start(*WORK)
    one, _ = (formation.start(*SCHEDULER, recurring=recurring, log_level="debug") for _ in range(2))
    for _ in range(2):
        await until(lambda: len(formation.ledger.starts()) > 1, "ticks run")
        one.kill()
    await until(lambda: len(formation.ledger.starts()) >= ticks, "ticks run", deadline_s=ticks * 2 + 30)
    keys = [key async for key in formation.queue.redis.scan_iter(match="*idem:*")]
    records = (await formation.results.list_jobs(limit=2000)).records
    runs = Counter(start.job for start in formation.ledger.starts())
    assert set(runs.values()) == {1}
    assert len(keys) == len(records), "one key, that is one job, a tick"
    created = sorted(record.created_at for record in records)
    assert len(created) <= created[-1] - created[0] + 2


async def test_9_a_cron_job_on_two_workers_of_which_one_is_killed_runs_a_tick_once(formation: Formation) -> None:
    workers = [formation.start("workers", "tests.faults.handlers.Ticking") for _ in range(2)]
    await until(lambda: len(formation.ledger.starts()) >= 3, "ticks run")
    workers[0].kill()
    before = len(formation.ledger.starts())
    await until(lambda: len(formation.ledger.starts()) >= before + 3, "ticks run")
    records = (await formation.results.list_jobs(limit=2000)).records
    created = sorted(record.created_at for record in records)
    assert len(created) <= created[-1] - created[0] + 2


async def test_9_a_retrying_submitter_makes_one_entry_of_each_job(formation: Formation, proxy: Proxy) -> None:
    from common.jobs import JobSpec

    queue = await Queue.connect(formation.settings.model_copy(update={"redis_url": proxy.url}))
    spec = JobSpec(kind="work", model="test", input={})
    await queue.submit(spec)  # the script is known from here on
    for number in range(20):
        proxy.cut_replies = [digest("submit").encode()]
        cuts = proxy.cuts
        submitting = asyncio.create_task(queue.submit(spec))
        await until(lambda cuts=cuts: proxy.cuts > cuts, "the reply is lost")  # type: ignore[misc]
        proxy.cut_replies = []
        await asyncio.gather(submitting, return_exceptions=True)
        entries = await execute(formation.queue.redis, "XLEN", f"{queue.keys.of_queue(spec.queue)}index")
        assert entries == number + 2
    await queue.close()
