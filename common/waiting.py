"""Why a job waits, its place in the line and when it will be done, as far as anybody can know.

How a queue stands is asked once a second for each queue; a place is counted whenever it is asked for, but a submit only
guesses when many come. The first forecast of a job is kept with it, so that it is judged when the job ends.
"""

from __future__ import annotations

import asyncio
import math
import time
from contextlib import suppress
from typing import Any

import msgspec
import redis.asyncio as redis
from redis.exceptions import RedisError

from common import eta, scripts
from common.eta import Eta, Forecast, Pace, Place, Standing
from common.jobs import JobRecord
from common.keys import Keys
from common.states import State

#: How long what is known of a queue is good enough: for its free slots, and for how fast it works.
FRESH_S, KNOWN_S = 1.0, 10.0
#: Of the forecasts for jobs whose place was not counted so many are kept to be judged, for each queue: all of a burst,
#: since its first are not like its last, and of more a sample.
NOTED_BURST, NOTED_EACH_S = 64, 0.02


class Waiting:
    """Places, reasons and forecasts over one Redis client."""

    def __init__(self, client: redis.Redis, keys: Keys) -> None:
        self._redis = client
        self._keys = keys
        self._standings: dict[str, tuple[float, Standing]] = {}
        self._noted: dict[str, float] = {}
        self._noting: set[asyncio.Task[None]] = set()

    async def placed(self, record: JobRecord) -> JobRecord | None:
        """The record with its place, reason and forecast; None when it is not in that state any more."""
        if record.status == State.QUEUED:
            return await self._queued(record)
        standing = await self.standing(record.queue)
        if record.status == State.SCHEDULED:
            return _scheduled(record, standing)
        age_ms = standing.now - (record.started_at or 0) * 1000
        return msgspec.structs.replace(record, eta=eta.of_running(standing, record.units, age_ms))

    def guessed(self, record: JobRecord, ahead: int, own: int = -1) -> JobRecord | None:
        """The record of a job that has just been queued behind `ahead` others, `own` of them of its user and lane (-1:
        not known), without asking Redis; None if nothing is known of its queue. Its place is told only if it is 1."""
        standing = self._known(record.queue, KNOWN_S if ahead else FRESH_S)
        if standing is None:
            return None
        if ahead:
            if self._known(record.queue, FRESH_S) is None:
                standing = msgspec.structs.replace(standing, busy=standing.slots)
            place = eta.uncounted(standing, ahead, own, record.priority, record.units)
            stage = eta.UNCOUNTED + (2 if own < 0 else int(own >= standing.slots))
            forecast = eta.of_waiting(standing, place, record.priority, stage)
            record = msgspec.structs.replace(record, eta=forecast.eta if forecast else None)
        else:
            place = Place(0, 0, 0, 0, 0, False, record.units, True)
            record, forecast = _placed(record, place, standing, stage=eta.FIRST)
        if forecast and self._may_note(record.queue):
            task = asyncio.create_task(self._note_quietly(record, forecast))
            self._noting.add(task)
            task.add_done_callback(self._noting.discard)
        return record

    def _may_note(self, queue: str) -> bool:
        now = time.monotonic()
        free = max(now, self._noted.get(queue, 0.0))
        may = free - now < NOTED_BURST * NOTED_EACH_S
        if may:
            self._noted[queue] = free + NOTED_EACH_S
        return may

    async def standing(self, queue: str) -> Standing:
        """How a queue stands, or stood within the last second."""
        return self._known(queue, FRESH_S) or (await self._look("", queue))[1]

    async def close(self) -> None:
        """Let what is being written be written."""
        await asyncio.gather(*self._noting)

    def _known(self, queue: str, for_s: float) -> Standing | None:
        at, standing = self._standings.get(queue, (-math.inf, None))
        return standing if time.monotonic() < at + for_s else None

    async def _queued(self, record: JobRecord) -> JobRecord | None:
        place, standing = await self._look(record.id, record.queue)
        if place is None:
            return None
        placed, forecast = _placed(record, place, standing)
        if forecast and not place.foretold:
            await self._note(record, forecast)
        return placed

    async def _note(self, record: JobRecord, forecast: Forecast) -> None:
        await scripts.run(self._redis, "foresee", self._keys.of_queue(record.queue), record.id, forecast.note)

    async def _note_quietly(self, record: JobRecord, forecast: Forecast) -> None:
        with suppress(RedisError, OSError):  # it is one of a sample
            await self._note(record, forecast)

    async def _look(self, job_id: str, queue: str) -> tuple[Place | None, Standing]:
        place, row = await scripts.run(self._redis, "position", self._keys.of_queue(queue), job_id, queue)
        standing = _standing(row)
        self._standings[queue] = time.monotonic(), standing
        if not place:
            return None, standing
        before, own, above, below, units, over, its_units, foretold, held = place
        return Place(before, own, above, below, units, over == 1, its_units, foretold == 1, *held), standing


def _standing(row: list[Any]) -> Standing:
    now, workers, slots, loading, busy, high, normal, low, *users, pace, factors, running = row
    return Standing(
        now=now,
        workers=workers,
        slots=slots,
        loading=loading,
        busy=busy,
        depth=(high, normal, low),
        users=(users[0], users[1], users[2]),
        pace=Pace.parse(pace.decode()),
        factors=eta.factors_of(factors),
        running=tuple(zip(running[::2], running[1::2], strict=True)),
    )


def _placed(
    record: JobRecord, place: Place, standing: Standing, stage: int | None = None
) -> tuple[JobRecord, Forecast | None]:
    code, words = reason(place, standing)
    forecast = eta.of_waiting(standing, place, record.priority, stage)
    told: Eta | None = forecast.eta if forecast else None
    placed = msgspec.structs.replace(
        record, queue_position=place.before + 1, waiting_for=words, waiting_code=code, eta=told
    )
    return placed, forecast


def _scheduled(record: JobRecord, standing: Standing) -> JobRecord:
    if record.run_at is None:
        words = "the end of the earlier jobs of its conversation"
        return msgspec.structs.replace(record, waiting_for=words, waiting_code="conversation")
    until = record.run_at or 0
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(until))
    code, words = (
        ("retry_pause", "the pause after a failed attempt, until") if record.attempts else ("scheduled", "its time,")
    )
    found = eta.of_scheduled(standing, record.units, max(0.0, until * 1000 - standing.now))
    return msgspec.structs.replace(record, waiting_for=f"{words} {at}", waiting_code=code, eta=found)


def reason(place: Place, standing: Standing) -> tuple[str, str]:
    """Why a queued job has not started: a code for programs, and words."""
    if standing.workers == 0:
        if standing.loading:
            return "loading", "its model, which is being loaded"
        return "no_worker", "a worker: none is running for this model"
    if place.own_running:
        return "in_progress", f"the end of a job of this user: {place.own_running} run, as many as may at a time"
    if place.held_until_ms:
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(place.held_until_ms / 1000))
        return "limit", f"this user's limit, until {at}"
    if place.before == 0:
        return "slot", "a free slot"
    if place.above:
        return (
            "higher_lane",
            f"jobs of a higher priority ({place.above}) and {place.before - place.above} before it in its lane",
        )
    if place.own == place.before:
        return "own_jobs", f"this user's earlier jobs ({place.own})"
    if place.over:
        others = place.before - place.own
        return (
            "share",
            f"the turn of others ({others}), since this user has had more of late; of its own jobs {place.own}",
        )
    return "turn", f"{_jobs(place.before)} before it, {place.own} of them this user's"


def _jobs(count: int) -> str:
    return f"{count} job{'' if count == 1 else 's'}"
