"""The bucket of `common/lua/limits.lua` against what it stands for, with a clock that the test sets.

The truth is a fluid: what was really used, poured in when it was asked for, drains at the limit's rate. The bucket must
never hold less than that (else more than the limit gets through), and gives back all that was not used as long as it
has not drained.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import permutations
from typing import Any

import hypothesis.strategies as st
import pytest
import redis
from hypothesis import HealthCheck, given, settings

from common import scripts
from tests.redis_server import RedisServer

AMOUNT, WINDOW_MS, BURST = 600, 60_000, 100  # 10 a second
RATE_PER_US = Fraction(AMOUNT, WINDOW_MS * 1000)
LIMITS = f"{{{{'tokens', {AMOUNT}, {WINDOW_MS}, {BURST}}}}}"
HEAD = """
local P, clock = KEYS[1], {ARGV[1], ARGV[2]}
local NOW = math.floor(clock[1] * 1000 + clock[2] / 1000)
local function append(list, a, b) list[#list + 1] = a if b then list[#list + 1] = b end end
"""
TAKE = f"""
local rows, needs, held = {LIMITS}, {{tokens = tonumber(ARGV[3])}}, {{tokens = true}}
local wait = limits().take_from('k', rows, needs, held)
local kept = wait and '' or limits().held_of('k', needs, held)
limits().keep_buckets()
return {{wait or -2, kept}}
"""
SETTLE = f"""
limits().settle('k', {LIMITS}, ARGV[4], {{tokens = tonumber(ARGV[3])}})
limits().keep_buckets()
"""
LEVEL = f"""
local bucket = limits().buckets_of('k', {LIMITS})[1]
return string.format('%.17g', bucket.used + bucket.held)
"""


class Bucket:
    """The bucket in Redis, at a time that the test says (µs)."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._take, self._settle, self._level = (
            client.register_script(HEAD + scripts.source("limits") + end) for end in (TAKE, SETTLE, LEVEL)
        )
        client.flushall()

    def _run(self, script: Any, now: int, *args: Any) -> Any:
        answer = script(keys=["b:"], args=[now // 1_000_000, now % 1_000_000, *args])
        if self._client.exists("b:bucket:k"):
            self._client.persist("b:bucket:k")  # it goes by Redis' clock, which is not the test's
        return answer

    def take(self, now: int, units: int) -> tuple[int, str]:
        """Milliseconds to wait (-2: it was taken) and what to settle by."""
        wait, held = self._run(self._take, now, units)
        return wait, held.decode()

    def settle(self, now: int, used: int, held: str) -> None:
        """Correct what was taken."""
        self._run(self._settle, now, used, held)

    def level(self, now: int) -> float:
        """How full it is."""
        return float(self._run(self._level, now))


@pytest.fixture
def bucket(redis_server: RedisServer) -> Iterator[Bucket]:
    with redis.Redis.from_url(redis_server.url) as client:
        yield Bucket(client)


def fluid(inputs: list[tuple[int, int]], now: int) -> Fraction:
    """How much of what was poured in (at µs, units) has not drained."""
    level, last = Fraction(0), 0
    for at, units in inputs:
        level = max(Fraction(0), level - (at - last) * RATE_PER_US) + units
        last = at
    return max(Fraction(0), level - (now - last) * RATE_PER_US)


START = 1_800_000_000_000_000
moves = st.lists(
    st.one_of(
        st.tuples(st.just("wait"), st.integers(1, 12_000_000)),
        st.tuples(st.just("take"), st.integers(1, BURST + 1)),
        st.tuples(st.just("settle"), st.integers(0, 40), st.integers(0, 150)),
    ),
    max_size=40,
)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(moves)
def test_a_bucket_never_holds_less_than_what_was_really_used(bucket: Bucket, todo: list[Any]) -> None:
    bucket.__init__(bucket._client)  # type: ignore[misc]
    now = START
    used: list[list[int]] = []  # [at, units]: as held until it is settled
    held: list[tuple[int, str]] = []  # (index, held) of what is not settled
    for move in todo:
        if move[0] == "wait":
            now += move[1]
        elif move[0] == "take":
            before = bucket.level(now)
            wait, text = bucket.take(now, move[1])
            if move[1] > BURST:
                assert wait == -1
            elif wait == -2:
                assert before + move[1] <= BURST + 1e-3
                held.append((len(used), text))
                used.append([now, move[1]])
            else:  # exactly so long that it fits then, and not a millisecond before
                assert wait == pytest.approx((before + move[1] - BURST) * WINDOW_MS / AMOUNT, abs=1)
        elif held:
            index, text = held.pop(move[1] % len(held))
            taken = used[index][1]
            before = bucket.level(now)
            bucket.settle(now, move[2], text)
            used[index][1] = move[2]
            after = bucket.level(now)
            if move[2] >= taken:
                assert after == pytest.approx(before + move[2] - taken, abs=1e-3)
            else:
                assert after <= before + 1e-3
        truth = float(fluid([(at, units) for at, units in used], now))
        assert bucket.level(now) >= truth - 1e-3


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_jobs_that_ran_together_give_back_what_has_not_drained_in_whatever_order_they_end(
    bucket: Bucket, order: tuple[int, ...]
) -> None:
    held = [bucket.take(START, 30)[1] for _ in range(3)]
    for one in order:
        bucket.settle(START + 600_000, 5, held[one])
    assert bucket.level(START + 600_000) == pytest.approx(15 - 6)


def test_what_is_used_drains_before_what_may_come_back(bucket: Bucket) -> None:
    _, first = bucket.take(START, 40)
    bucket.settle(START, 40, first)
    _, held = bucket.take(START, 50)
    bucket.settle(START + 4_000_000, 0, held)
    assert bucket.level(START + 4_000_000) == pytest.approx(0)


def test_what_has_drained_does_not_come_back_to_be_used_twice(bucket: Bucket) -> None:
    """Who holds on to a lot of reservations and gives them back late would else have twice the limit."""
    _, held = bucket.take(START, 100)
    later = START + 10_000_000  # all of it has drained
    assert bucket.take(later, 90)[0] == -2
    bucket.settle(later, 0, held)
    assert bucket.level(later) == pytest.approx(90)


def test_a_bucket_that_was_gone_meanwhile_gives_nothing_back(bucket: Bucket) -> None:
    _, held = bucket.take(START, 60)
    bucket._client.flushall()  # it had drained, and Redis let it go
    assert bucket.take(START + 20_000_000, 50)[0] == -2
    bucket.settle(START + 20_000_000, 0, held)
    assert bucket.level(START + 20_000_000) == pytest.approx(50)


def test_a_clock_that_is_put_back_drains_nothing_and_goes_on_from_there(bucket: Bucket) -> None:
    assert bucket.take(START, 100)[0] == -2
    back = START - 3_600_000_000
    assert bucket.take(back, 10)[0] == 1000
    assert bucket.take(back + 999_000, 10)[0] == 1
    assert bucket.take(back + 1_000_000, 10)[0] == -2
