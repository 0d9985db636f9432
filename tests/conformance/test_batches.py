"""The moves of a batch, on fakeredis and on a real redis-server: whose it is, what is counted, where it may go."""

from __future__ import annotations

import asyncio
import re

import pytest

from common.batches import (
    BATCH_TRANSITIONS,
    OVER,
    Batch,
    BatchAsked,
    Batches,
    BatchState,
    LineError,
    Live,
    Part,
    Stretch,
)
from common.errors import IdempotencyMismatch, NotFound, TooMany
from common.files import FileRecord, Files, made, stored
from common.queue import Key
from common.scripts import FOLDER, run
from tests.conformance.world import MakeWorld, World

PAGE = FOLDER.parents[1] / "ops" / "docs" / "batches.md"
PLAN = [Stretch(0, 10, 1, 2), Stretch(10, 20, 3, 2)]


@pytest.fixture
def batches(world: World) -> Batches:
    """The batches of the world."""
    return Batches(world.redis, world.settings)


async def a_file(world: World) -> FileRecord:
    """A file that is there."""
    record = made(20, "lines.jsonl", "batch", 3600, "@1/x", "ann")
    await run(world.redis, "file_put", world.queue.keys.files, *stored(record), 10, 0)
    return record


async def a_batch(world: World, key: Key | None = None, window_s: float = 60) -> str:
    """A batch that nobody works on yet."""
    file = await a_file(world)
    asked = BatchAsked("/v1/embeddings", file.id, file.blob, "24h", window_s)
    return await Batches(world.redis, world.settings).create(asked, key)


async def claimed(world: World, batches: Batches, owner: str = "a") -> Batch:
    """A batch in the hands of `owner`."""
    batch_id = await a_batch(world)
    found = await batches.claim(owner)
    assert found is not None
    assert found.id == batch_id
    return await batches.get(batch_id)


async def forget_lease(world: World, batch_id: str) -> None:
    """The lease of a batch has ended."""
    await world.redis.zadd(f"{world.queue.keys.files}batches:due", {batch_id: 1})


async def test_a_batch_is_one_process_at_a_time(world: World, batches: Batches) -> None:
    batch_id = await a_batch(world)
    found = [one for one in await asyncio.gather(*(batches.claim(f"p{n}") for n in range(5))) if one]
    assert [one.id for one in found] == [batch_id]


async def test_whoever_lost_a_batch_changes_nothing(world: World, batches: Batches) -> None:
    batch = await claimed(world, batches)
    assert await batches.plan(batch.id, "a", 4, PLAN, None) == "moved"
    await forget_lease(world, batch.id)
    assert await batches.claim("b")
    before = await batches.get(batch.id)
    assert await batches.renew(batch.id, "a", Live(9, 9)) is None
    assert await batches.store_part(batch.id, "a", 0, Part("@1/a"), Live(2), Live(), {}) == "lost"
    assert await batches.finalize(batch.id, "a", BatchState.COMPLETED) == "lost"
    assert await batches.end(batch.id, "a", BatchState.COMPLETED, None, None) == "lost"
    assert await batches.fail(batch.id, "a", [LineError("x", "y")]) == "lost"
    await batches.release(batch.id, "a")
    assert await batches.get(batch.id) == before
    assert await batches.parts(batch.id) == {}
    assert await batches.claim("c") is None


async def test_a_stretch_is_counted_once(world: World, batches: Batches) -> None:
    batch = await claimed(world, batches)
    await batches.plan(batch.id, "a", 4, PLAN, "demo")
    await batches.renew(batch.id, "a", Live(2, 1))
    assert (await batches.get(batch.id)).completed == 2
    told = Part("@1/a", "@1/b"), Live(1, 1), Live(1, 0), {"input_tokens": 7}
    assert await batches.store_part(batch.id, "a", 1, *told) == "stored"
    assert await batches.store_part(batch.id, "a", 1, *told) == "mine"
    seen = await batches.get(batch.id)
    assert (seen.total, seen.completed, seen.failed, seen.usage["input_tokens"]) == (4, 2, 1, 7)
    assert await batches.parts(batch.id) == {1: Part("@1/a", "@1/b")}
    assert await batches.planned(batch.id) == PLAN


async def test_a_batch_and_its_files_appear_together_and_nothing_else_stays(world: World, batches: Batches) -> None:
    batch = await claimed(world, batches)
    files = Files(world.redis, world.settings)
    output = made(5, "out.jsonl", "batch_output", 3600, "@1/o", "ann")
    await batches.plan(batch.id, "a", 4, PLAN, None)
    assert await batches.end(batch.id, "a", BatchState.COMPLETED, output, None) == "not_allowed"
    with pytest.raises(NotFound):
        await files.get(output.id)
    await batches.finalize(batch.id, "a", BatchState.COMPLETED)
    assert await batches.end(batch.id, "a", BatchState.COMPLETED, output, None) == "moved"
    assert await files.get(output.id) == output
    over = await batches.get(batch.id)
    assert (over.state, over.output_file_id, over.error_file_id) == (BatchState.COMPLETED, output.id, None)
    assert await batches.claim("b") is None
    assert await world.redis.exists(f"{world.queue.keys.files}batch:{batch.id}:parts") == 0
    assert await world.redis.pttl(f"{world.queue.keys.files}batch:{batch.id}") > 0


async def test_a_batch_that_is_over_or_nearly_is_not_cancelled(world: World, batches: Batches) -> None:
    batch = await claimed(world, batches)
    await batches.plan(batch.id, "a", 4, PLAN, None)
    await batches.finalize(batch.id, "a", BatchState.COMPLETED)
    await batches.cancel(batch.id)
    assert (await batches.get(batch.id)).state == BatchState.FINALIZING
    with pytest.raises(NotFound):
        await batches.cancel("batch_" + "0" * 22)


async def test_a_cancelled_batch_can_only_become_cancelled(world: World, batches: Batches) -> None:
    batch = await claimed(world, batches)
    await batches.cancel(batch.id)
    standing = await batches.renew(batch.id, "a", None)
    assert standing is not None
    assert standing.state == BatchState.CANCELLING
    assert await batches.plan(batch.id, "a", 4, PLAN, None) == "not_allowed"
    assert await batches.end(batch.id, "a", BatchState.CANCELLED, None, None) == "moved"


async def test_claims_are_counted_until_the_batch_gets_on(world: World, batches: Batches) -> None:
    batch = await claimed(world, batches)
    await batches.plan(batch.id, "a", 4, PLAN, None)
    for expected, owner in enumerate(("b", "c"), start=1):
        await forget_lease(world, batch.id)
        found = await batches.claim(owner)
        assert found is not None
        assert found.claims == expected
    await batches.release(batch.id, "c")  # an orderly stop is nobody's death
    again = await batches.claim("d")
    assert again is not None
    assert again.claims == 2
    await batches.store_part(batch.id, "d", 0, Part(), Live(), Live(), {})
    await forget_lease(world, batch.id)
    last = await batches.claim("e")
    assert last is not None
    assert last.claims == 1


async def test_one_key_is_one_batch_and_another_request_a_mismatch(world: World, batches: Batches) -> None:
    first = await a_batch(world, Key("monday", "print"))
    assert await a_batch(world, Key("monday", "print")) == first
    with pytest.raises(IdempotencyMismatch):
        await a_batch(world, Key("monday", "another"))
    assert await a_batch(world, Key("tuesday", "print")) != first


async def test_unfinished_batches_are_bounded(make_world: MakeWorld) -> None:
    world = make_world(max_batches=1)
    await a_batch(world)
    with pytest.raises(TooMany):
        await a_batch(world)


async def test_a_batch_needs_its_file(world: World, batches: Batches) -> None:
    with pytest.raises(NotFound):
        await batches.create(BatchAsked("/v1/embeddings", "file-" + "0" * 22, "@1/x", "24h", 60))


async def test_lists_go_on_after_what_is_gone_and_forget_it(world: World, batches: Batches) -> None:
    ids = sorted([await a_batch(world) for _ in range(5)])  # those of one millisecond sort by chance
    prefix = world.queue.keys.files
    await world.redis.delete(f"{prefix}batch:{ids[3]}")
    page, more = await batches.list_batches(None, 2)
    assert ([one.id for one in page], more) == ([ids[4], ids[2]], True)
    page, more = await batches.list_batches(ids[3], 10)
    assert ([one.id for one in page], more) == ([ids[2], ids[1], ids[0]], False)
    assert await batches.tidy() == 1
    assert await world.redis.zcard(f"{prefix}batches") == 4


async def test_files_are_listed_both_ways_and_deleted_once(world: World) -> None:
    files = Files(world.redis, world.settings)
    ids = sorted([(await a_file(world)).id for _ in range(3)])
    assert [one.id for one in (await files.list_files(None, 10))[0]] == ids[::-1]
    found, more = await files.list_files(None, 2, newest_first=False)
    assert ([one.id for one in found], more) == (ids[:2], True)
    assert await files.list_files(None, 10, purpose="batch_output") == ([], False)
    assert (await files.delete(ids[0])).id == ids[0]
    with pytest.raises(NotFound):
        await files.delete(ids[0])
    with pytest.raises(NotFound):
        await files.get("file-nonsense")


def test_the_table_of_the_script_is_the_table_of_the_states() -> None:
    text = (FOLDER / "batch.lua").read_text()
    rows = dict(re.findall(r"^  (\w+) = \{(.*)\},$", text, re.MULTILINE))
    told = {(state, to) for state, row in rows.items() for to in re.findall(r"(\w+) = 1", row)}
    assert told == {(str(state), str(to)) for state, ways in BATCH_TRANSITIONS.items() for to in ways}


def test_the_diagram_of_the_page_shows_the_table() -> None:
    diagram = PAGE.read_text().partition("stateDiagram-v2")[2].partition("```")[0]
    drawn = set(re.findall(r"(\S+) --> (\S+)", diagram))
    table = {(str(state), str(to)) for state, ways in BATCH_TRANSITIONS.items() for to in ways}
    assert drawn == table | {("[*]", "validating")} | {(str(state), "[*]") for state in OVER}


async def test_a_batch_counts_in_the_state_that_it_has_until_it_is_over(world: World, batches: Batches) -> None:
    batch = await claimed(world, batches)
    await a_batch(world)
    await batches.plan(batch.id, "a", 4, PLAN, None)
    counts = await batches.standing()
    assert counts == {"validating": 1, "in_progress": 1, "finalizing": 0, "cancelling": 0}
    await batches.finalize(batch.id, "a", BatchState.COMPLETED)
    await batches.end(batch.id, "a", BatchState.COMPLETED, None, None)
    assert sum((await batches.standing()).values()) == 1
