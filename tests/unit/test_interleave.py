"""Whose piece comes next: batches that are held and let go by the test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from common.errors import EngineDead, JobFailed
from common.jobs import Priority
from workers.engines.interleave import Interleaver, Line


class Held:
    """Batches that end when they are let go."""

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []
        self.gates: list[asyncio.Event] = []
        self.came = asyncio.Condition()
        self.bad: set[Any] = set()
        self.error: Exception = ValueError("a bad piece")

    async def run(self, works: list[Any]) -> Sequence[Any]:
        gate = asyncio.Event()
        async with self.came:
            self.batches.append(works)
            self.gates.append(gate)
            self.came.notify_all()
        await gate.wait()
        if self.bad & set(works):
            raise self.error
        return [f"did {work}" for work in works]

    async def batch(self, number: int) -> list[Any]:
        """Batch number n, once it has begun."""
        async with asyncio.timeout(5), self.came:
            await self.came.wait_for(lambda: len(self.batches) > number)
        return self.batches[number]

    async def quiet(self) -> None:
        """Everything that can begin has begun."""
        for _ in range(10):
            await asyncio.sleep(0)

    def let_go(self, number: int) -> None:
        self.gates[number].set()


class Place:
    def __init__(self) -> None:
        self.held = Held()
        self.interleaver = Interleaver(self.held.run, 2)
        self.lines: dict[str, Line] = {}

    def job(self, name: str, pieces: int, lane: Priority = "normal", key: Any = None) -> list[asyncio.Future[Any]]:
        line = self.lines[name] = self.interleaver.open(lane)
        return [self.interleaver.put(line, f"{name}{n}", key) for n in range(pieces)]


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    made = Place()
    working = asyncio.create_task(made.interleaver.work())
    yield made
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)


async def test_jobs_of_a_lane_take_turns_however_much_one_has(place: Place) -> None:
    place.job("long", 8)
    assert await place.held.batch(0) == ["long0", "long1"]
    place.job("short", 1)
    place.job("other", 2)
    for number in range(4):
        place.held.let_go(number)
        await place.held.batch(number + 1)
    assert place.held.batches[1:3] == [["long2", "short0"], ["other0", "long3"]]


async def test_a_job_that_comes_late_does_not_have_all_turns_until_it_has_caught_up(place: Place) -> None:
    place.job("early", 9)
    for number in range(2):
        await place.held.batch(number)
        place.held.let_go(number)
    await place.held.batch(2)
    place.job("late", 4)
    place.held.let_go(2)
    assert {work[:-1] for work in await place.held.batch(3)} == {"early", "late"}


async def test_a_piece_of_a_higher_lane_begins_beside_the_batch_that_runs(place: Place) -> None:
    place.job("long", 6, "low")
    await place.held.batch(0)
    (done,) = place.job("urgent", 1, "high")
    assert await place.held.batch(1) == ["urgent0"]
    place.held.let_go(1)
    assert await done == "did urgent0"
    assert len(place.held.batches) == 2, "the batch of the long job still runs"


async def test_one_of_the_same_lane_waits_for_the_next_batch(place: Place) -> None:
    place.job("long", 6, "high")
    await place.held.batch(0)
    place.job("more", 1, "high")
    await place.held.quiet()
    assert len(place.held.batches) == 1
    place.held.let_go(0)
    assert "more0" in await place.held.batch(1)


async def test_there_is_one_express_place(place: Place) -> None:
    place.job("long", 6, "low")
    await place.held.batch(0)
    place.job("a", 2, "normal")
    place.job("b", 2, "high")
    await place.held.quiet()
    assert len(place.held.batches) == 2


async def test_a_batch_mixes_jobs_only_as_far_as_their_pieces_go_together(place: Place) -> None:
    place.job("first", 1, key="x")
    await place.held.batch(0)
    place.job("a", 1, key="x")
    place.job("b", 1, key="y")
    place.job("c", 1, key="x")
    place.held.let_go(0)
    assert await place.held.batch(1) == ["a0", "c0"]
    place.held.let_go(1)
    assert await place.held.batch(2) == ["b0"]


async def test_a_bad_piece_fails_its_own_job_only(place: Place) -> None:
    place.job("first", 1)
    await place.held.batch(0)
    place.held.bad = {"bad0"}
    (bad,), (good,) = place.job("bad", 1), place.job("good", 1)
    for number in range(4):  # the batch, then each job's part alone
        place.held.let_go(number)
        await place.held.quiet()
    with pytest.raises(JobFailed, match="ValueError: a bad piece") as caught:
        await bad
    assert caught.value.retryable
    assert await good == "did good0"


async def test_an_engine_that_is_dead_fails_all_of_a_batch_at_once(place: Place) -> None:
    place.held.bad, place.held.error = {"a0"}, EngineDead()
    futures = [*place.job("a", 1), *place.job("b", 1)]
    await place.held.batch(0)
    place.held.let_go(0)
    for future in futures:
        with pytest.raises(EngineDead):
            await future


async def test_a_job_that_leaves_takes_its_pieces_out_of_the_batches_to_come(place: Place) -> None:
    place.job("gone", 6)
    await place.held.batch(0)
    place.job("stays", 1)
    place.interleaver.close(place.lines["gone"])
    place.held.let_go(0)
    assert await place.held.batch(1) == ["stays0"]


async def test_what_is_left_when_it_stops_hears_that_the_engine_is_dead() -> None:
    held = Held()
    interleaver = Interleaver(held.run, 1)
    working = asyncio.create_task(interleaver.work())
    line = interleaver.open("normal")
    futures = [interleaver.put(line, n, None) for n in range(2)]
    await held.batch(0)
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)
    for future in futures:
        with pytest.raises(EngineDead):
            await future
