"""A fallback chain with real processes: a local worker, one that runs its jobs on a hosted model, a real Redis."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest

from common.states import State
from tests.faults.formation import Formation
from tests.upstream_stand_in import Reply, StandIn
from tests.waiting import until

QUEUE = "generation:chat"
CATALOGUE = """
[models.chat]
kind = "generation"
engine = "fake"
max_model_len = 4096
slots = 4
fallback = ["hosted"]
fallback_after_s = {after_s}
options = {{ tokens = 3, delay_s = {delay_s} }}

[models.hosted]
kind = "generation"
engine = "openai"
weights = "big"
max_model_len = 4096
options = {{ base_url = "{url}", concurrency = 3, hold_s = 1 }}
cost = {{ currency = "EUR", input = 1, output = 2 }}
"""


@pytest.fixture
async def upstream() -> AsyncIterator[StandIn]:
    async with StandIn().serving() as stand_in:
        yield stand_in


def write(formation: Formation, upstream: StandIn, after_s: float = 600, delay_s: float = 0.005) -> None:
    text = CATALOGUE.format(url=upstream.url, after_s=after_s, delay_s=delay_s)
    (formation.folder / "models.toml").write_text(text)


async def submit(formation: Formation, count: int) -> list[str]:
    return await formation.submit(count, kind="generation", model="chat", input={"prompt": "a b"})


async def text_of(formation: Formation, job_id: str) -> str:
    found = await formation.results.result(job_id)
    assert found is not None
    assert found.output is not None
    return str(json.loads(bytes(found.output))["text"])


async def served(formation: Formation, ids: list[str]) -> list[str | None]:
    """Wait for all; who ran each. Each has one start and one end, and its events are its text."""
    records = await formation.ends(ids)
    assert {record.status for record in records} == {State.COMPLETED}, formation.logs()
    for record in records:
        assert sum(state == State.COMPLETED for _, state, _ in record.history) == 1
        events = await formation.results.events(record.id)
        shown = "".join(event.data["text"] for event in events if event.event == "token")
        assert shown == await text_of(formation, record.id)
    return [record.served_by for record in records]


async def test_jobs_go_to_the_hosted_model_while_the_local_worker_is_down_and_back_when_it_returns(
    formation: Formation, upstream: StandIn
) -> None:
    write(formation, upstream)
    await formation.scheduler()
    local = formation.start("workers", "generation", name="local")
    formation.start("workers", "generation", "--model", "hosted", "--for", "chat", name="helper")
    await formation.workers(QUEUE, 2)
    assert await served(formation, await submit(formation, 20)) == ["chat"] * 20
    assert upstream.requests == []

    local.again = False
    local.kill()
    jobs = await submit(formation, 20)
    assert await served(formation, jobs) == ["hosted"] * 20
    assert len(upstream.requests) == 20, "each once"
    assert upstream.most <= 3
    records = await formation.ends(jobs)
    assert all(record.claims == 1 for record in records)
    cost = {"cost_micros": 7 * 1 + 4 * 2, "cost_currency": "EUR"}
    assert all(record.usage is not None and cost.items() <= record.usage.items() for record in records)
    (queue,) = [one for one in await formation.results.queues() if one.queue == QUEUE]
    assert queue.counts["cost:EUR:hosted"] == 20 * 15

    formation.start("workers", "generation", name="local-again")
    await formation.workers(QUEUE, 2)
    assert await served(formation, await submit(formation, 20)) == ["chat"] * 20
    assert len(upstream.requests) == 20


async def test_answers_that_a_killed_worker_had_begun_wait_for_their_own_model(
    formation: Formation, upstream: StandIn
) -> None:
    write(formation, upstream, delay_s=0.5)
    await formation.scheduler()
    local = formation.start("workers", "generation", name="local")
    formation.start("workers", "generation", "--model", "hosted", "--for", "chat", name="helper")
    await formation.workers(QUEUE, 2)
    jobs = await submit(formation, 6)

    async def begun() -> bool:
        events = [await formation.results.events(job) for job in jobs[:4]]
        return all(any(event.event == "token" for event in some) for some in events)

    await until(begun, "four answers have begun")
    local.again = False
    local.kill()
    assert await served(formation, jobs[4:]) == ["hosted"] * 2
    await until(lambda: rescued(formation, jobs[:4]), "the four are given back")
    formation.start("workers", "generation", name="local-again")
    assert await served(formation, jobs[:4]) == ["chat"] * 4
    assert len(upstream.requests) == 2


async def rescued(formation: Formation, jobs: list[str]) -> bool:
    return {record.status for record in await formation.results.records(jobs)} == {State.QUEUED}


async def test_what_waits_longer_than_the_bound_is_helped_with_while_the_local_worker_is_busy(
    formation: Formation, upstream: StandIn
) -> None:
    write(formation, upstream, after_s=1, delay_s=1.5)  # a job takes the local worker 4.5 s, four at a time
    await formation.scheduler()
    formation.start("workers", "generation", name="local")
    formation.start("workers", "generation", "--model", "hosted", "--for", "chat", name="helper")
    await formation.workers(QUEUE, 2)
    jobs = await submit(formation, 12)
    who = await served(formation, jobs)
    assert who[:4] == ["chat"] * 4
    assert who[4:] == ["hosted"] * 8
    for record in (await formation.ends(jobs))[4:]:
        assert record.queue_ms is not None
        assert 900 < record.queue_ms < 4500


async def test_a_hosted_model_that_takes_nothing_loses_no_job_and_none_of_its_attempts(
    formation: Formation, upstream: StandIn
) -> None:
    write(formation, upstream)
    upstream.usual = Reply(429, {"retry-after": "2"}, {"error": {"message": "slow down"}})
    helper = formation.start("workers", "generation", "--model", "hosted", "--for", "chat", name="helper")
    await formation.workers(QUEUE, 1)
    jobs = await submit(formation, 10)
    await formation.says(helper, "goes back to the queue")
    records = await formation.results.records(jobs)
    assert {record.attempts for record in records} == {0}
    formation.start("workers", "generation", name="local")
    assert set(await served(formation, jobs)) == {"chat"}
    assert len(upstream.requests) < 12, "it was left alone while it asked for that"


async def test_a_hosted_model_has_a_queue_of_its_own_and_a_cancel_reaches_it(
    formation: Formation, upstream: StandIn
) -> None:
    write(formation, upstream)
    upstream.replies = [Reply(429, {"retry-after-ms": "100"}, {"error": {"message": "slow down"}})]
    formation.start("workers", "generation", "--model", "hosted", name="hosted")
    await formation.workers("generation:hosted", 1)
    jobs = await formation.submit(5, kind="generation", model="hosted", input={"prompt": "a b"})
    assert await served(formation, jobs) == ["hosted"] * 5
    assert {record.attempts for record in await formation.ends(jobs)} == {0}

    upstream.gate.clear()
    (job,) = await formation.submit(1, kind="generation", model="hosted", input={"prompt": "a b"})
    await until(lambda: upstream.running == 1, "it runs")
    await formation.queue.cancel(job)
    assert await until(lambda: upstream.left == 1, "its connection is closed") < 1
    (record,) = await formation.ends([job])
    assert record.status == State.CANCELLED


async def test_a_key_that_is_missing_stops_the_start_by_its_variables_name(
    formation: Formation, upstream: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    text = CATALOGUE.format(url=upstream.url, after_s=1, delay_s=0)
    (formation.folder / "models.toml").write_text(text.replace("hold_s = 1", 'api_key_env = "NO_SUCH_KEY"'))
    worker = formation.start("workers", "generation", "--model", "hosted", name="hosted")
    worker.again = False
    await until(lambda: bool(worker.exits), "it stops")
    assert worker.exits == [1]
    said = (formation.folder / "hosted.log").read_text()
    assert "options of hosted: the environment variable NO_SUCH_KEY (api_key_env) is not set" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--model", "chat", "--for", "hosted"), "hosted does not fall back to chat; its fallback is nothing"),
        (("--for", "chat"), "--for belongs to `generation --model ALIAS`"),
    ],
)
async def test_a_worker_for_a_chain_that_is_none_is_refused(
    formation: Formation, upstream: StandIn, arguments: tuple[str, ...], said: str
) -> None:
    write(formation, upstream)
    worker = formation.start("workers", "generation", *arguments, name="wrong")
    worker.again = False
    await until(lambda: bool(worker.exits), "it stops")
    assert worker.exits == [1]
    assert said in (formation.folder / "wrong.log").read_text()
