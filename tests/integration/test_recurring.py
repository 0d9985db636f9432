"""Recurring jobs: the file, the ticks, and exactly one run per tick."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

import pytest

from common import scripts
from common.errors import SettingsInvalid
from common.jobs import JobSpec
from common.queue import Key
from common.settings import Settings
from scheduler.recurring import Recurring, RecurringJob
from tests.conformance.world import World, eventually
from tests.redis_server import RedisServer

EACH_SECOND = """
[[job]]
name = "tick"
cron = "* * * * * *"
kind = "generation"
model = "demo"
input = { prompt = "What time is it?" }
catch_up_s = 0.001
"""


@pytest.fixture
async def world(redis_url: str, tmp_path: Path) -> AsyncIterator[World]:
    """An empty queue."""
    made = Settings(redis_url=redis_url, data_dir=tmp_path)
    world = World(scripts.connect(made), made, "redis")
    yield world
    await world.queue.close()


def written(tmp_path: Path, text: str) -> Path:
    """A file of recurring jobs."""
    path = tmp_path / "recurring.toml"
    path.write_text(text)
    return path


RECURRING = JobSpec(kind="generation", model="demo", input={}, user="recurring")


async def ticks(world: World) -> list[int]:
    """The ticks, in Unix seconds, for which a job was submitted in the last half minute."""
    now = int(time.time())
    keys = {
        second: f"{world.prefix}idem:{Key(f'recurring tick {second}', '').digest(RECURRING.api_key, RECURRING.user)}"
        for second in range(now - 30, now + 2)
    }
    return [second for second, key in keys.items() if await world.redis.exists(key)]


async def submitted(world: World) -> int:
    """How many jobs there are."""
    return int(await world.redis.xlen(f"{world.prefix}index"))


# -- exactly one run


async def test_each_tick_runs_once_though_there_are_two_schedulers_and_one_is_killed(
    world: World, tmp_path: Path
) -> None:
    path = written(tmp_path, EACH_SECOND)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("JARVIS_")}
    variables = {
        "JARVIS_REDIS_URL": world.settings.redis_url,
        "JARVIS_DATA_DIR": str(tmp_path),
        "JARVIS_RECURRING": str(path),
        "JARVIS_LOG_LEVEL": "error",
    }
    processes = [started(kept | variables) for _ in range(2)]
    try:
        await eventually(lambda: has_ticks(world, 3), 40, "three ticks")
        processes[0].kill()
        await eventually(lambda: has_ticks(world, 7), 40, "four more ticks")
    finally:
        for process in processes:
            process.kill()
            process.wait()
    done = await ticks(world)
    assert done == list(range(done[0], done[-1] + 1))
    assert await submitted(world) == len(done)


def started(environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """A scheduler process."""
    return subprocess.Popen([sys.executable, "-m", "scheduler"], env=environment)


async def has_ticks(world: World, count: int) -> bool:
    """Whether so many ticks have had their job."""
    return len(await ticks(world)) >= count


async def test_a_ticks_job_is_what_the_file_says_and_comes_at_its_time(world: World, tmp_path: Path) -> None:
    text = EACH_SECOND + 'priority = "high"\nuser = "ada"\nparams = { seed = 1 }\n'
    recurring = Recurring.load(written(tmp_path, text))
    running = asyncio.create_task(recurring.run(world.queue))
    job = (await eventually(world.claim, 10))[0]
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    record = await world.results.record(job.id)
    assert (record.user, record.priority, record.metadata) == ("ada", "high", {"recurring": "tick"})
    assert (job.spec.input, job.spec.params) == ({"prompt": "What time is it?"}, {"seed": 1})
    assert record.created_at % 1 < 0.9  # not before its second began, and soon after


async def test_a_scheduler_that_comes_late_submits_the_last_missed_tick_once(world: World) -> None:
    job = hourly(catch_up_s=3700)
    for _ in range(2):
        running = asyncio.create_task(Recurring([job]).run(world.queue))
        await eventually(lambda: has_jobs(world, 1))
        await asyncio.wait([running], timeout=0.3)
        assert not running.done()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert await submitted(world) == 1


async def has_jobs(world: World, count: int) -> bool:
    """Whether so many jobs were submitted."""
    return await submitted(world) >= count


async def test_a_tick_is_not_given_up_while_redis_is_away(
    start_redis: Callable[..., RedisServer], tmp_path: Path
) -> None:
    server = start_redis(aof=True)
    made = Settings(redis_url=server.url, data_dir=tmp_path, redis_timeout_s=1, bell_timeout_s=0.5)
    world = World(scripts.connect(made), made, "redis")
    server.kill9()
    running = asyncio.create_task(Recurring([hourly(catch_up_s=3700)]).run(world.queue))
    await asyncio.wait([running], timeout=0.5)
    assert not running.done()
    server.start()
    await eventually(lambda: has_jobs(world, 1))
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await world.queue.close()


# -- the file


def hourly(**fields: object) -> RecurringJob:
    """A job at each full hour."""
    base = {"name": "hourly", "cron": "0 * * * *", "kind": "generation", "model": "demo", "input": {}}
    return RecurringJob(**base | fields)  # type: ignore[arg-type]


def test_an_empty_file_has_no_jobs(tmp_path: Path) -> None:
    assert Recurring.load(written(tmp_path, "")).jobs == []


def test_what_a_job_does_not_say_has_a_default(tmp_path: Path) -> None:
    (job,) = Recurring.load(written(tmp_path, EACH_SECOND)).jobs
    assert (job.priority, job.user, job.timezone, job.params) == ("low", "recurring", "UTC", {})


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsInvalid, match="none"):
        Recurring.load(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (("[[job]]", "[[job"), "recurring.toml"),  # no TOML
        (('name = "tick"\n', ""), "name"),
        (('cron = "* * * * * *"', 'cron = "every day"'), "job tick: cron 'every day' is not valid"),
        (('cron = "* * * * * *"', 'cron = "61 * * * *"'), "job tick: cron '61 * * * *' is not valid"),
        (('cron = "* * * * * *"', 'cron = "0 0 30 2 *"'), "job tick: cron '0 0 30 2 *' is not valid"),
        (('cron = "* * * * * *"', "cron = 5"), "cron"),
        (("catch_up_s = 0.001", 'timezone = "Mars/Olympus"'), "job tick: timezone 'Mars/Olympus' is not known"),
        (("catch_up_s = 0.001", 'timezone = "../etc"'), "job tick: timezone '../etc' is not known"),
        (("catch_up_s = 0.001", 'priority = "urgent"'), "priority"),
        (("catch_up_s = 0.001", 'colour = "red"'), "colour"),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path: Path, change: tuple[str, str], wanted: str) -> None:
    with pytest.raises(SettingsInvalid) as refused:
        Recurring.load(written(tmp_path, EACH_SECOND.replace(*change)))
    assert wanted in str(refused.value)
    assert "recurring.toml" in str(refused.value)


def test_two_jobs_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsInvalid, match="same name"):
        Recurring.load(written(tmp_path, EACH_SECOND + EACH_SECOND))


# -- the ticks


def first_ticks(job: RecurringJob, after: datetime, count: int) -> list[str]:
    """The first ticks after a moment."""
    return [tick.strftime("%d %H:%M:%S") for tick in islice(job.ticks(after), count)]


def test_ticks_are_those_of_the_jobs_own_timezone() -> None:
    job = hourly(cron="0 3 * * *", timezone="Europe/Berlin")
    assert first_ticks(job, datetime(2026, 1, 1, tzinfo=UTC), 2) == ["01 02:00:00", "02 02:00:00"]
    assert first_ticks(job, datetime(2026, 7, 1, tzinfo=UTC), 1) == ["01 01:00:00"]


def test_a_tick_in_the_hour_that_summer_time_skips_or_doubles_comes_once() -> None:
    job = hourly(cron="30 2 * * *", timezone="Europe/Berlin")
    spring = list(islice(job.ticks(datetime(2026, 3, 28, 12, tzinfo=UTC)), 2))
    autumn = list(islice(job.ticks(datetime(2026, 10, 24, 12, tzinfo=UTC)), 2))
    for found, day in ((spring, 29), (autumn, 25)):
        assert [tick.day for tick in found] == [day, day + 1]


def test_six_fields_tick_by_the_second() -> None:
    job = hourly(cron="*/20 * * * * *")
    assert first_ticks(job, datetime(2026, 1, 1, tzinfo=UTC), 3) == ["01 00:00:20", "01 00:00:40", "01 00:01:00"]
