"""Reads that begin together, with a Redis that only counts calls and answers when it is told to."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from common.errors import StoreUnavailable
from common.reads import AT_ONCE, Reads


class CountingRedis:
    """A fake client: answers each hash with its own name, once `go` is set."""

    def __init__(self) -> None:
        self.calls: list[int] = []  # reads of each
        self.go = asyncio.Event()
        self.away = False

    async def hmget(self, key: str, fields: list[str]) -> list[bytes]:
        """One read."""
        return (await self.answer([key]))[0]

    def pipeline(self, transaction: bool) -> Any:
        """A fake pipeline."""
        client, keys = self, list[str]()

        class Pipeline:
            def hmget(self, key: str, fields: list[str]) -> None:
                keys.append(key)

            async def execute(self) -> list[list[bytes]]:
                return await client.answer(keys)

        return Pipeline()

    async def answer(self, keys: list[str]) -> list[list[bytes]]:
        self.calls.append(len(keys))
        await asyncio.sleep(0)  # no call is answered at once
        await self.go.wait()
        if self.away:
            raise RedisConnectionError("gone")
        return [[key.encode()] for key in keys]


@pytest.fixture
def redis() -> CountingRedis:
    return CountingRedis()


@pytest.fixture
def reads(redis: CountingRedis) -> Reads:
    return Reads(redis)  # type: ignore[arg-type]


async def turns(count: int = 3) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def ask(reads: Reads, *names: Any) -> list[asyncio.Task[Any]]:
    return [asyncio.create_task(reads.read(str(name), ["a"])) for name in names]


async def test_what_begins_together_goes_together_behind_the_first_and_each_gets_its_own(
    redis: CountingRedis, reads: Reads
) -> None:
    redis.go.set()
    found = await asyncio.gather(*ask(reads, *range(10)))
    assert found == [[str(n).encode()] for n in range(10)]
    assert redis.calls == [1, 9]


async def test_what_comes_while_calls_are_under_way_goes_in_the_next_one(redis: CountingRedis, reads: Reads) -> None:
    tasks = ask(reads, "first")
    await turns()
    tasks += ask(reads, "second")
    await turns()
    for name in range(20):
        tasks += ask(reads, name)
        await turns()
    assert redis.calls == [1, 1]
    redis.go.set()
    await asyncio.gather(*tasks)
    assert redis.calls == [1, 1, 20]


async def test_no_call_has_more_than_its_bound(redis: CountingRedis, reads: Reads) -> None:
    redis.go.set()
    await asyncio.gather(*ask(reads, *range(2 * AT_ONCE + 1)))
    assert sorted(redis.calls) == [1, AT_ONCE, AT_ONCE]


async def test_every_one_hears_that_redis_is_away_and_the_next_read_asks_again(
    redis: CountingRedis, reads: Reads
) -> None:
    redis.go.set()
    redis.away = True
    found = await asyncio.gather(*ask(reads, 1, 2, 3), return_exceptions=True)
    assert [type(one) for one in found] == [StoreUnavailable] * 3
    redis.away = False
    assert await reads.read("4", ["a"]) == [b"4"]


async def test_a_caller_that_leaves_takes_nobody_with_it(redis: CountingRedis, reads: Reads) -> None:
    tasks = ask(reads, 1, 2, 3)
    await turns()
    tasks[0].cancel()
    await turns()
    redis.go.set()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(found[0], asyncio.CancelledError)
    assert found[1:] == [[b"2"], [b"3"]]


async def test_a_read_that_comes_as_the_last_call_ends_is_made(
    redis: CountingRedis, reads: Reads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.reads.CALLS", 1)
    redis.go.set()

    async def twice(name: str) -> Any:
        await reads.read(name, ["a"])
        return await reads.read(f"{name} again", ["a"])  # the call that has told the first one is not quite over

    async with asyncio.timeout(5):
        assert (await asyncio.gather(*ask(reads, "alone"), twice("x")))[1] == [b"x again"]


async def test_who_waits_for_others_calls_is_cancelled_when_reading_ends(redis: CountingRedis, reads: Reads) -> None:
    alone, *others = ask(reads, 1, 2, 3)
    await turns()
    await reads.close()
    found = await asyncio.gather(*others, return_exceptions=True)
    assert all(isinstance(one, asyncio.CancelledError) for one in found)
    redis.go.set()
    assert await alone == [b"1"]
