"""Conversations: turns one after another, or refused, or in place of those before."""

from __future__ import annotations

import pytest

from common.errors import ConversationBusy
from common.jobs import Conversation
from common.queue import Key
from tests.conformance.world import MakeWorld, World

CHAT = Conversation("chat-1")
REJECT = Conversation("chat-1", "reject")
CANCEL = Conversation("chat-1", "cancel_previous")


async def list_of(world: World) -> int:
    """How many jobs of ada's conversation are unfinished."""
    return int(await world.redis.llen(f"{world.prefix}conversation:ada:chat-1"))  # type: ignore[misc]


async def turns(world: World, count: int, conversation: Conversation = CHAT) -> list[str]:
    """Submit so many turns of ada's."""
    return [await world.submit(i, user="ada", conversation=conversation) for i in range(count)]


async def test_turns_run_one_after_another_in_their_order(world: World) -> None:
    for job_id in await turns(world, 4):
        (job,) = await world.claim(4)
        assert job.id == job_id
        assert await world.claim(4) == []
        await world.complete(job)


async def test_conversations_of_others_and_other_keys_do_not_wait(world: World) -> None:
    await turns(world, 2)
    await world.submit(user="bob", conversation=CHAT)
    await world.submit(user="ada", conversation=Conversation("chat-2"))
    await world.submit(user="ada")
    assert len(await world.claim(9)) == 4


@pytest.mark.parametrize("end", ["complete", "fail", "cancel", "expire", "poison", "incomplete"])
async def test_every_end_passes_the_turn_on(make_world: MakeWorld, end: str) -> None:
    world = make_world(max_deaths=1)
    _, second = await turns(world, 2)
    job = await world.claim_one()
    await world.end(job, end)
    following = await world.claim_one()
    assert following.id == second
    await world.complete(following)
    assert await list_of(world) == 0
    assert await world.depth() == 0


async def test_a_commit_that_claims_brings_the_next_turn_with_the_next_claim(world: World) -> None:
    _, second = await turns(world, 2)
    job = await world.claim_one()
    await world.complete(job)
    assert await world.depth() == 1
    assert await world.queue.wait_for_bell("generation:demo")
    assert (await world.claim_one()).id == second


@pytest.mark.parametrize("how", ["retry", "release", "rescue"])
async def test_a_turn_that_will_run_again_keeps_its_place(world: World, how: str) -> None:
    first, _ = await turns(world, 2)
    job = await world.claim_one()
    if how == "retry":
        await world.fail(job, retryable=True, delay_s=100)
        assert await world.claim(2) == []
        await world.promote(first)
    elif how == "release":
        await world.release(job)
    else:
        await world.rescue(job)
    assert [job.id for job in await world.claim(2)] == [first]


async def test_a_turn_that_ends_while_it_waits_changes_nothing_for_the_others(world: World) -> None:
    first, second, third = await turns(world, 3)
    job = await world.claim_one()
    await world.fail(job, retryable=True, delay_s=100)
    await world.queue.cancel(second)
    assert (await world.state(first), await world.state(third)) == ("scheduled", "scheduled")
    await world.promote(first)
    await world.complete(await world.claim_one())
    assert (await world.claim_one()).id == third


async def test_a_waiting_turn_says_what_it_waits_for(world: World) -> None:
    _, second = await turns(world, 2)
    record = await world.results.record(second)
    assert (record.status.value, record.waiting_code) == ("scheduled", "conversation")
    assert record.run_at is None


async def test_reject_refuses_while_one_is_unfinished_and_names_it(world: World) -> None:
    (first,) = await turns(world, 1)
    with pytest.raises(ConversationBusy) as refused:
        await world.submit(user="ada", conversation=REJECT)
    assert refused.value.job_id == first
    await world.complete(await world.claim_one())
    await world.submit(user="ada", conversation=REJECT)
    assert len(await world.claim(2)) == 1


async def test_a_refused_turn_costs_nothing_and_leaves_nothing(world: World) -> None:
    await turns(world, 1)
    before = set(await world.keys())
    with pytest.raises(ConversationBusy):
        await world.submit(user="ada", conversation=REJECT)
    assert set(await world.keys()) == before
    assert await list_of(world) == 1


async def test_cancel_previous_ends_all_that_are_unfinished_and_tells_the_worker(world: World) -> None:
    first, second = await turns(world, 2)
    running = await world.claim_one()
    (third,) = await turns(world, 1, CANCEL)
    assert [await world.state(job) for job in (first, second, third)] == ["cancelled", "cancelled", "queued"]
    assert await world.queue.next_stop("generation:demo", "worker-1") == running.lease
    assert await world.complete(running) == ["lost"]
    assert (await world.claim_one()).id == third
    assert await list_of(world) == 1


async def test_readers_of_a_cancelled_turn_are_told(world: World) -> None:
    (first,) = await turns(world, 1)
    await turns(world, 1, CANCEL)
    news = await world.redis.xrevrange(f"{world.prefix}events", count=1)
    assert any(value.decode() == first for value in news[0][1])


async def test_the_same_request_again_is_attached_to_and_cancels_nothing(world: World) -> None:
    key = Key("once", "same")
    first = await world.submit(1, key, user="ada", conversation=CANCEL)
    assert await world.submit(1, key, user="ada", conversation=CANCEL) == first
    assert await world.state(first) == "queued"
    assert await list_of(world) == 1


async def test_a_retried_job_joins_its_conversation_again(world: World) -> None:
    first, second = await turns(world, 2)
    await world.fail(await world.claim_one(), retryable=False)
    again = (await world.queue.retry(first)).id
    assert (await world.claim_one()).id == second
    assert await world.state(again) == "scheduled"
    assert await list_of(world) == 2


async def test_a_turn_that_nobody_passed_on_is_found_by_the_scheduler(world: World) -> None:
    first, second = await turns(world, 2)
    await world.claim_one()
    await world.redis.delete(f"{world.prefix}job:{first}")  # Redis lost it
    await world.promote(second)
    assert (await world.claim_one()).id == second


async def test_a_look_of_the_scheduler_starts_no_turn_too_early(world: World) -> None:
    _, second = await turns(world, 2)
    await world.claim_one()
    await world.promote(second)
    assert await world.state(second) == "scheduled"
    assert await world.redis.zscore(f"{world.prefix}due", second) is not None


async def test_what_names_no_job_in_a_conversation_is_thrown_out(world: World) -> None:
    await world.redis.rpush(f"{world.prefix}conversation:ada:chat-1", *(["x"] * 5))  # type: ignore[misc]
    (first,) = await turns(world, 1)  # what names no job is thrown out
    assert (await world.claim_one()).id == first
