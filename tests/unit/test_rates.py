"""Headers that say how a key's limits stand."""

from __future__ import annotations

import asyncio

import pytest

from common.errors import LimitReached
from common.limits import Left
from producer import rates

REQUESTS = Left("requests", 3600, 100, 99, 36_000)
TOKENS = Left("tokens", 60, 10_000, 9_500.0, 3_001)
A_DAY = Left("tokens", 86_400, 100_000, 400, 86_399_000)
COST = Left("cost", 86_400, 5.0, 4.5, 8_640_000)


def headers(*limits: Left, refused: LimitReached | None = None) -> dict[str, str]:
    """The headers after a request that learnt of these limits."""
    standing = rates.Standing()
    standing.note(limits)
    standing.refused = refused
    return {name.decode(): value.decode() for name, value in standing.headers()}


def test_every_limit_is_named_with_its_unit() -> None:
    told = headers(REQUESTS, TOKENS, COST)
    assert told["ratelimit-policy"] == (
        '"requests-3600s";q=100;w=3600, "tokens-60s";q=10000;w=60;jarvis-unit="tokens",'
        ' "cost-86400s";q=5000000;w=86400;jarvis-unit="cost-micros"'
    )
    assert told["ratelimit"] == '"requests-3600s";r=99;t=36, "tokens-60s";r=9500;t=4, "cost-86400s";r=4500000;t=8640'


def test_openai_clients_read_the_window_that_has_least_left() -> None:
    told = headers(REQUESTS, TOKENS, A_DAY)
    assert (told["x-ratelimit-limit-requests"], told["x-ratelimit-remaining-requests"]) == ("100", "99")
    assert told["x-ratelimit-reset-requests"] == "36s"
    assert (told["x-ratelimit-limit-tokens"], told["x-ratelimit-remaining-tokens"]) == ("100000", "400")
    assert told["x-ratelimit-reset-tokens"] == "23h59m59s"
    assert "x-ratelimit-limit-tokens" not in headers(REQUESTS)
    assert headers() == {}


def test_no_reset_is_later_than_a_retry_after() -> None:
    refused = LimitReached(["requests-3600s"], 1, 100, 7.2, (REQUESTS,))
    assert (
        headers(REQUESTS, TOKENS, refused=refused)["ratelimit"] == '"requests-3600s";r=99;t=8, "tokens-60s";r=9500;t=4'
    )


def test_of_several_jobs_what_is_least_is_told() -> None:
    standing = rates.Standing()
    for left in (5, 3, 4):
        standing.note((Left("requests", 60, 10, left, 1000),))
    assert [one.left for one in standing.limits] == [3]


async def test_what_a_requests_tasks_learn_is_the_requests_own() -> None:
    async def request(*limits: Left) -> set[str]:
        standing = rates.watch()
        await asyncio.gather(*(asyncio.to_thread(rates.note, (one,)) for one in limits))
        return {one.name for one in standing.limits}

    first, second = await asyncio.gather(request(REQUESTS, TOKENS), request(COST))
    assert (first, second) == ({"requests-3600s", "tokens-60s"}, {"cost-86400s"})


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (0, "0ms"),
        (12, "12ms"),
        (1000, "1s"),
        (1500, "1.5s"),
        (86_400, "1m26.4s"),
        (360_000, "6m0s"),
        (3_600_000, "1h0m0s"),
    ],
)
def test_durations_are_written_as_openai_does(ms: int, text: str) -> None:
    assert rates.duration(ms) == text
