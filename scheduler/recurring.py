"""Recurring jobs: cron expressions in a TOML file, exactly one run per tick whatever the number of schedulers.

    [[job]]
    name = "nightly-summary"
    cron = "0 3 * * *"          # five fields; six with seconds in front
    timezone = "Europe/Berlin"  # default UTC
    kind = "generation"
    model = "demo"
    input = { prompt = "What is Jarvis?" }

A tick's job is submitted with the tick as its idempotency key, so that it does not matter who submits it. A
scheduler that was away submits the last missed tick of each job when it is not older than `catch_up_s`.
"""

from __future__ import annotations

import asyncio
import logging
import tomllib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec
from cronsim import CronSim, CronSimError

from common.errors import JarvisError, SettingsInvalid
from common.jobs import JobSpec, Priority
from common.queue import Key, Queue

log = logging.getLogger("jarvis.recurring")


class RecurringJob(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One entry of the file."""

    name: str
    cron: str
    kind: str
    model: str
    input: dict[str, Any]
    params: dict[str, Any] = {}
    priority: Priority = "low"
    user: str = "recurring"
    timezone: str = "UTC"
    catch_up_s: float = 60.0

    def ticks(self, after: datetime) -> Iterator[datetime]:
        """The ticks after a moment, in UTC."""
        for tick in CronSim(self.cron, after.astimezone(ZoneInfo(self.timezone))):
            yield tick.astimezone(UTC)

    def spec(self) -> JobSpec:
        """What each tick submits."""
        return JobSpec(
            kind=self.kind,
            model=self.model,
            input=self.input,
            params=self.params,
            user=self.user,
            priority=self.priority,
            metadata={"recurring": self.name},
        )


class Recurring:
    """All recurring jobs of a file."""

    def __init__(self, jobs: list[RecurringJob]) -> None:
        self.jobs = jobs

    @classmethod
    def load(cls, path: Path) -> Recurring:
        """Read and check a file. Raises SettingsInvalid naming the job and what is wrong with it."""
        try:
            rows = tomllib.loads(path.read_text()).get("job", [])
            jobs = [msgspec.convert(row, RecurringJob) for row in rows]
        except (OSError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
            raise SettingsInvalid(f"{path}: {error}") from error
        for job in jobs:
            _check(path, job)
        names = [job.name for job in jobs]
        if len(set(names)) < len(names):
            raise SettingsInvalid(f"{path}: two recurring jobs have the same name")
        return cls(jobs)

    async def run(self, queue: Queue) -> None:
        """Submit every tick of every job as it comes."""
        await asyncio.gather(*(self._run(queue, job) for job in self.jobs))

    async def _run(self, queue: Queue, job: RecurringJob) -> None:
        async for tick in _as_they_come(job):
            key = Key(f"recurring {job.name} {int(tick.timestamp())}", "")
            while True:
                try:
                    submitted = await queue.submit(job.spec(), key)
                    break
                except JarvisError as error:  # Redis is away or the queue is full: this tick is not given up
                    log.warning("recurring job %s: %s", job.name, error)
                    await asyncio.sleep(1)
            log.log(logging.INFO if submitted.created else logging.DEBUG, "%s at %s: %s", job.name, tick, submitted.id)


async def _as_they_come(job: RecurringJob) -> Any:
    now = datetime.now(UTC)
    missed = list(_between(job, now - timedelta(seconds=job.catch_up_s), now))
    if missed:
        yield missed[-1]
    for tick in job.ticks(now):
        await asyncio.sleep(max(0.0, (tick - datetime.now(UTC)).total_seconds()))
        yield tick


def _between(job: RecurringJob, start: datetime, end: datetime) -> Iterator[datetime]:
    for tick in job.ticks(start):
        if tick > end:
            return
        yield tick


def _check(path: Path, job: RecurringJob) -> None:
    try:
        next(job.ticks(datetime.now(UTC)))
    except (CronSimError, StopIteration) as error:
        raise SettingsInvalid(f"{path}: job {job.name}: cron {job.cron!r} is not valid: {error}") from error
    except (ZoneInfoNotFoundError, ValueError) as error:
        raise SettingsInvalid(f"{path}: job {job.name}: timezone {job.timezone!r} is not known") from error
