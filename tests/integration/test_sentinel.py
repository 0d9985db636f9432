"""A master that dies under submits, and sentinels that replace it: every process goes on by itself on the new one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import httpx
import pytest

from common.errors import NotFound, StoreUnavailable
from common.queue import Queue
from common.settings import Settings
from common.states import State
from ops.check import examine
from tests.faults.formation import WEB, Formation
from tests.redis_server import RedisServer
from tests.redis_topologies import Sentinels
from tests.waiting import until

#: The master refuses writes that no replica could hear of, so that it cannot accept jobs when it stands alone.
CONFIG = {"min-replicas-to-write": "1", "min-replicas-max-lag": "2", "repl-diskless-sync-delay": "0"}
BODY = {"kind": "embedding", "model": "vectors", "input": {"texts": ["a text"]}}
QUEUE = "embedding:vectors"
#: Replication is asynchronous: what was answered so shortly before the master's death may be lost.
LAG_S = 1.0


class Answer(NamedTuple):
    """What a submit was told, and when."""

    at: float
    status: int
    job: str


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Sentinels]:
    """A master, two replicas and three sentinels."""
    servers = Sentinels(tmp_path / "redis", config=CONFIG)
    servers.start()
    yield servers
    servers.stop()


@pytest.fixture
async def formation(servers: Sentinels, tmp_path: Path) -> AsyncIterator[Formation]:
    """Nothing runs yet but Redis."""
    formation = Formation(cast("RedisServer", servers), tmp_path)  # only its url is asked for
    await formation.open()
    yield formation
    await formation.close()


class Caller:
    """Submits all the time and keeps every answer."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client
        self.answers: list[Answer] = []

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            answer = await self._client.post("/v1/jobs", json=BODY)
            self.answers.append(Answer(time.monotonic(), answer.status_code, answer.json().get("id", "")))
            await asyncio.sleep(0.02)

    def accepted(self, since: float, before: float = float("inf")) -> list[Answer]:
        """The answers of a time that acknowledged a job."""
        return [answer for answer in self.answers if answer.status == 202 and since <= answer.at < before]


async def test_a_killed_master_is_replaced_and_every_process_goes_on_by_itself(
    formation: Formation, servers: Sentinels
) -> None:
    formation.start("workers", "tests.faults.handlers.embedding")
    formation.start(*WEB)
    await formation.scheduler()
    await formation.workers(QUEUE, 1)
    async with formation.client() as client:
        await formation.web_answers(client)
        settled = [(await client.post("/v1/jobs", json=BODY)).json()["id"] for _ in range(30)]
        await until(servers.replicas_level, "the replicas have all")
        caller = Caller(client)
        calling = asyncio.create_task(caller.run())
        await until(lambda: len(caller.answers) > 30, "submits are under way")
        killed_at = await kill(servers)
        await until(lambda: len(caller.accepted(killed_at)) > 30, f"submits are accepted again\n{formation.logs()}")
        calling.cancel()
    taken = [answer.job for answer in caller.accepted(killed_at)]
    in_flight = caller.accepted(0, killed_at)
    lost = [answer for answer in in_flight if await is_gone(formation, answer.job)]
    recovery_s = caller.accepted(killed_at)[0].at - killed_at
    print(f"accepted again after {recovery_s:.2f} s; lost {len(lost)} of {len(in_flight)} accepted while it was killed")

    statuses = {answer.status for answer in caller.answers}
    assert statuses == {202, 503}
    assert recovery_s < 15
    assert [answer for answer in lost if answer.at < killed_at - LAG_S] == []
    there = [answer.job for answer in in_flight if answer not in lost]
    for record in await formation.ends([*settled, *there, *taken]):
        assert record.status == State.COMPLETED, record
    assert [kept.exits for kept in formation.kept] == [[], [], []], "no process was started again"


async def kill(servers: Sentinels) -> float:
    """SIGKILL the master; returns when."""
    master = servers.master()
    killed_at = time.monotonic()
    await asyncio.to_thread(master.kill9)
    return killed_at


async def is_gone(formation: Formation, job: str) -> bool:
    try:
        await formation.results.record(job)
    except NotFound:
        return True
    return False


async def test_a_master_that_only_hung_takes_no_jobs_once_another_has_its_place(
    servers: Sentinels, tmp_path: Path
) -> None:
    settings = Settings(redis_url=servers.url, bell_timeout_s=0.5, redis_timeout_s=1, data_dir=tmp_path)
    formation = Formation(cast("RedisServer", servers), tmp_path)
    formation.settings = settings
    await formation.open()
    try:
        (before,) = await formation.submit()
        await until(servers.replicas_level, "the replicas have all")
        old = servers.master()
        old.pause()
        after = await accepted(formation)
        old.resume()
        more = [await accepted(formation) for _ in range(20)]
        await until(lambda: role(old) == "slave", "the old master follows the new one", step_s=0.05)
        for job in (before, after, *more):
            assert (await formation.results.record(job)).status == State.QUEUED
    finally:
        await formation.close()


async def accepted(formation: Formation) -> str:
    """Submit as soon as that is possible."""
    jobs: list[str] = []

    async def done() -> bool:
        try:
            jobs.extend(await formation.submit())
        except StoreUnavailable:
            return False
        return True

    await until(done, "a job is accepted", 20)
    return jobs[0]


def role(server: RedisServer) -> str:
    with server.client() as client:
        told: Any = client.info("replication")
        return str(told["role"])


async def test_a_master_without_replicas_refuses_jobs_instead_of_keeping_them_alone(
    start_redis: Callable[..., RedisServer], tmp_path: Path
) -> None:
    formation = Formation(start_redis(config=CONFIG), tmp_path)
    await formation.open()
    with pytest.raises(StoreUnavailable):
        await formation.submit()
    await formation.close()


async def test_a_sentinel_that_hangs_or_is_gone_is_passed_over(servers: Sentinels, tmp_path: Path) -> None:
    first, second, _ = servers.watchers
    first.pause()
    second.kill9()
    queue = await Queue.connect(Settings(redis_url=servers.url, redis_timeout_s=5, data_dir=tmp_path))
    try:
        async with asyncio.timeout(4):
            assert await queue.is_empty("work:test")
    finally:
        await queue.close()
        first.resume()


async def test_a_master_name_that_no_sentinel_knows_is_an_outage_not_a_crash(
    servers: Sentinels, tmp_path: Path
) -> None:
    url = servers.url.replace("/jarvis/", "/another/")
    formation = Formation(cast("RedisServer", servers), tmp_path)
    formation.settings = Settings(redis_url=url, data_dir=tmp_path)
    await formation.open()
    with pytest.raises(StoreUnavailable, match="MasterNotFoundError"):
        await formation.submit()
    await formation.close()


def test_check_looks_at_the_master_that_the_sentinels_name(servers: Sentinels, tmp_path: Path) -> None:
    settings = Settings(redis_url=servers.url, data_dir=tmp_path)
    findings = {finding.key: finding for finding in examine(settings)}
    master = f"127.0.0.1:{servers.master().port}"
    assert findings["JARVIS_REDIS_URL"].level == "ok"
    assert findings[f"min-replicas-to-write of {master}"].level == "ok"
    with servers.master().client() as client:
        client.config_set("min-replicas-to-write", 0)
    findings = {finding.key: finding for finding in examine(settings)}
    assert findings[f"min-replicas-to-write of {master}"].level == "warning"
    missing = settings.model_copy(update={"redis_url": servers.url.replace("/jarvis/", "/another/")})
    assert "No master found for 'another'" in " ".join(map(str, examine(missing)))
