"""Submits of one moment share a call: each keeps its own answer, and none waits for what it has no part in."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from common.errors import JarvisError, QueueFull, StoreUnavailable
from common.jobs import JobSpec, Submitted
from common.queue import SUBMIT_BATCH, Key
from producer.gather import CALLS, Gathering
from tests.producer.worker import until


class HeldQueue:
    """A queue that answers each call when the test says so."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.go = asyncio.Semaphore(0)
        self.answer_of: dict[str, Any] = {}
        self.away = False

    async def submit_each(self, specs: Sequence[JobSpec], keys: Sequence[Key | None]) -> list[Submitted | JarvisError]:
        names = [spec.model for spec in specs]
        self.calls.append(names)
        await self.go.acquire()
        if self.away:
            raise StoreUnavailable("TimeoutError")
        return [self.answer_of.get(name, Submitted(f"job {name}", True)) for name in names]


@pytest.fixture
def queue() -> HeldQueue:
    """A queue that holds its answers."""
    return HeldQueue()


@pytest.fixture
def gathering(queue: HeldQueue) -> Gathering:
    """What gathers for it."""
    return Gathering(queue)  # type: ignore[arg-type]


def sent(gathering: Gathering, *names: str) -> list[asyncio.Task[Submitted]]:
    """One caller for each name."""
    return [asyncio.create_task(gathering.submit(JobSpec(kind="k", model=name, input={}), None)) for name in names]


async def busy(gathering: Gathering, queue: HeldQueue) -> list[asyncio.Task[Submitted]]:
    """As many calls under way as there may be."""
    tasks = []
    for number in range(CALLS):
        tasks += sent(gathering, f"busy{number}")
        await until(lambda calls=number + 1: len(queue.calls) == calls)  # type: ignore[misc]
    return tasks


async def test_one_alone_is_sent_at_once(gathering: Gathering, queue: HeldQueue) -> None:
    queue.go.release()
    (task,) = sent(gathering, "a")
    for _ in range(5):  # turns of the loop: no clock is waited for
        await asyncio.sleep(0)
    assert task.done()
    assert (await task).id == "job a"


async def test_what_comes_together_goes_together(gathering: Gathering, queue: HeldQueue) -> None:
    tasks = sent(gathering, "a", "b", "c")
    await until(lambda: queue.calls)
    assert queue.calls == [["a", "b", "c"]]
    queue.go.release()
    assert [(await task).id for task in tasks] == ["job a", "job b", "job c"]


async def test_what_comes_while_calls_are_under_way_goes_in_the_next_one(
    gathering: Gathering, queue: HeldQueue
) -> None:
    first = await busy(gathering, queue)
    later = sent(gathering, "a") + sent(gathering, "b")
    await asyncio.sleep(0)
    assert len(queue.calls) == CALLS
    queue.go.release()
    await until(lambda: len(queue.calls) == CALLS + 1)
    assert queue.calls[-1] == ["a", "b"]
    for _ in range(CALLS):
        queue.go.release()
    await asyncio.gather(*first, *later)


async def test_a_call_has_no_more_than_a_batch(gathering: Gathering, queue: HeldQueue) -> None:
    tasks = sent(gathering, *map(str, range(2 * SUBMIT_BATCH + 1)))
    for _ in range(3):
        queue.go.release()
    answers = await asyncio.gather(*tasks)
    assert [answer.id for answer in answers] == [f"job {number}" for number in range(2 * SUBMIT_BATCH + 1)]
    assert max(map(len, queue.calls)) == SUBMIT_BATCH


async def test_one_that_is_refused_takes_nobody_with_it(gathering: Gathering, queue: HeldQueue) -> None:
    queue.answer_of["b"] = QueueFull("k:b", 7)
    queue.go.release()
    a, b, c = await asyncio.gather(*sent(gathering, "a", "b", "c"), return_exceptions=True)
    assert isinstance(a, Submitted)
    assert isinstance(c, Submitted)
    assert isinstance(b, QueueFull)


async def test_a_caller_who_leaves_takes_nobody_with_it(gathering: Gathering, queue: HeldQueue) -> None:
    a, b = sent(gathering, "a", "b")
    await until(lambda: queue.calls)
    a.cancel()
    queue.go.release()
    async with asyncio.timeout(5):
        assert (await b).id == "job b"
    with pytest.raises(asyncio.CancelledError):
        await a


async def test_when_redis_is_away_all_that_wait_are_told_by_one_timeout(gathering: Gathering, queue: HeldQueue) -> None:
    first = await busy(gathering, queue)
    behind = sent(gathering, *map(str, range(5 * SUBMIT_BATCH)))
    await asyncio.sleep(0)
    queue.away = True
    for _ in range(CALLS):
        queue.go.release()
    async with asyncio.timeout(5):
        errors = await asyncio.gather(*first, *behind, return_exceptions=True)
    assert {type(error) for error in errors} == {StoreUnavailable}
    assert len(queue.calls) == CALLS


async def test_after_a_failed_call_the_next_one_goes_out(gathering: Gathering, queue: HeldQueue) -> None:
    queue.away = True
    queue.go.release()
    with pytest.raises(StoreUnavailable):
        await sent(gathering, "a")[0]
    queue.away = False
    queue.go.release()
    assert (await sent(gathering, "b")[0]).id == "job b"


async def test_no_one_is_forgotten_as_a_call_ends(gathering: Gathering, queue: HeldQueue) -> None:
    async def caller(number: int) -> None:
        for again in range(100):  # the next one comes the moment that the answer to this one does
            queue.go.release()
            await gathering.submit(JobSpec(kind="k", model=f"{number} {again}", input={}), None)

    async with asyncio.timeout(5):
        await asyncio.gather(*map(caller, range(3 * CALLS)))
