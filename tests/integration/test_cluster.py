"""A Redis Cluster of three masters: every call works with its keys on three nodes, and while a slot moves."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import pytest
from redis.crc import key_slot

import workers.worker
from common import cluster
from common.egress import Reply
from common.endpoints import Endpoint, Endpoints, Secret
from common.errors import JobFailed, StoreUnavailable
from common.jobs import ClaimedJob, JobSpec
from common.outbox import Outbox
from common.settings import Settings
from common.states import State
from common.webhooks import Hook, new_secret
from ops.check import examine
from ops.embedded_redis import RedisUnavailable, find_running
from tests.redis_server import free_port
from tests.redis_topologies import RedisCluster
from tests.waiting import until
from tests.worker.place import InlineBeat, Place

SHARDS = 8
MODELS = [f"m{number}" for number in range(SHARDS)]


@pytest.fixture
def start_cluster(tmp_path: Path) -> Iterator[Callable[..., RedisCluster]]:
    """Start a cluster of one's own, free to be killed."""
    started: list[RedisCluster] = []

    def start(**options: Any) -> RedisCluster:
        started.append(RedisCluster(tmp_path / "cluster", **options))
        started[-1].start()
        return started[-1]

    yield start
    for one in started:
        one.stop()


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    """Three masters."""
    nodes = RedisCluster(tmp_path_factory.mktemp("cluster"))
    nodes.start()
    yield nodes
    nodes.stop()


class MakePlace(Protocol):
    """Makes places with settings by name."""

    async def __call__(self, **values: Any) -> Place: ...


@pytest.fixture
async def make_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[MakePlace]:
    """Queues spread over the nodes, under keys of this test alone."""
    monkeypatch.setattr(workers.worker, "BeatProcess", InlineBeat)
    places: list[Place] = []

    async def make(**values: Any) -> Place:
        clocks: dict[str, Any] = {"lease_s": 10, "bell_timeout_s": 1, "redis_timeout_s": 3, "retry_delay_s": 0.05}
        own: dict[str, Any] = {"namespace": f"n{secrets.token_hex(4)}", "shards": SHARDS, "data_dir": tmp_path}
        places.append(Place(Settings(**(clocks | own | values))))
        await places[-1].open()
        return places[-1]

    yield make
    for place in places:
        await place.close()


@pytest.fixture
async def place(nodes: RedisCluster, make_place: MakePlace) -> Place:
    """A place with settings that fit most tests."""
    return await make_place(redis_url=nodes.url)


def slot_of(place: Place, model: str) -> int:
    return key_slot(place.queue.keys.of_queue(f"work:{model}").encode())


def owners(nodes: RedisCluster, place: Place) -> dict[str, int]:
    """Which node has each model's queue."""
    return {model: nodes.owner(slot_of(place, model)) for model in MODELS}


async def test_jobs_of_queues_on_all_nodes_run_and_are_listed_together(nodes: RedisCluster, place: Place) -> None:
    assert set(owners(nodes, place).values()) == {0, 1, 2}

    async def echo(ctx: dict[str, Any], job: ClaimedJob) -> dict[str, Any]:
        return job.spec.input

    await place.results.ready()
    for model in MODELS:
        await place.worker(echo, queue_name=f"work:{model}")
    jobs = {model: await place.submit_many(5, model=model, input={"model": model}) for model in MODELS}
    every = [job for some in jobs.values() for job in some]
    assert {record.status for record in await place.ends(every)} == {State.COMPLETED}
    for model, some in jobs.items():
        assert await place.output(some[0]) == {"model": model}
    assert [queue.queue for queue in await place.results.queues()] == [f"work:{model}" for model in MODELS]
    assert sum(queue.counts["state:completed"] for queue in await place.results.queues()) == len(every)
    listed = await pages(place, 7)
    assert sorted(listed) == sorted(every)
    accepted = [(await place.results.record(job)).created_at for job in listed]
    # Entries are ordered by the moment at which each was written, which is up to 1 ms after the job's own.
    assert all(a >= b - 0.002 for a, b in pairwise(accepted)), "newest first, over all nodes"


async def pages(place: Place, limit: int) -> list[str]:
    """The ids of all jobs, read page by page."""
    listed, after = [], None
    while True:
        page = await place.results.list_jobs(after=after, limit=limit)
        listed += [record.id for record in page.records]
        after = page.next
        if after is None:
            return listed


async def test_followers_of_jobs_on_all_nodes_hear_every_event_as_it_happens(place: Place) -> None:
    async def tell(ctx: dict[str, Any], job: ClaimedJob) -> str:
        for number in range(20):
            await ctx["emit"](job, "token", {"text": f"{number} "})
            await asyncio.sleep(0.005)
        return "told"

    async def follow(job: str) -> list[Any]:
        return [event async for event in place.results.follow(job)]

    for model in MODELS:
        await place.worker(tell, queue_name=f"work:{model}")
    jobs = [await place.submit(model=model) for model in MODELS]
    for events in await asyncio.gather(*map(follow, jobs)):
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        text = "".join(event.data["text"] for event in events if event.event == "token")
        assert text.split() == [str(number) for number in range(20)]
        assert events[-1].data["status"] == State.COMPLETED


async def test_delays_retries_cancelling_and_parking_work_on_every_node(nodes: RedisCluster, place: Place) -> None:
    async def fail_once(ctx: dict[str, Any], job: ClaimedJob) -> str:
        if job.attempts == 0:
            raise JobFailed("flaky", "try again", retryable=True)
        return "second time"

    place.schedule()
    by_node = {node: model for model, node in owners(nodes, place).items()}
    for model in by_node.values():
        idle = f"{model}x"  # nobody serves it
        waiting = await place.submit(model=idle)
        await place.queue.cancel(waiting)
        assert (await place.record(waiting)).status == State.CANCELLED
        again = await place.queue.retry(waiting)
        assert (await place.record(again.id)).queue_position == 1
        await place.worker(fail_once, queue_name=f"work:{model}")
    delayed = [await place.submit(model=model, delay_s=0.3) for model in by_node.values()]
    for record in await place.ends(delayed):
        assert (record.status, record.attempts) == (State.COMPLETED, 1)
    assert await place.results.parked() == []


async def test_jobs_of_a_worker_that_fell_silent_are_rescued_on_their_node(
    nodes: RedisCluster, make_place: MakePlace
) -> None:
    place = await make_place(redis_url=nodes.url, lease_s=1)
    job = await place.submit(model="m2")
    (claimed,) = await place.queue.claim("work:m2", "silent", 1, 1)
    assert claimed.id == job

    async def fine(ctx: dict[str, Any]) -> str:
        return "fine"

    place.schedule()
    await place.worker(fine, queue_name="work:m2")
    record = await place.end(job)
    assert (record.status, record.claims) == (State.COMPLETED, 2)


async def test_no_job_is_lost_or_run_twice_while_its_slot_moves_to_another_node(
    nodes: RedisCluster, place: Place
) -> None:
    """Keys move a few at a time, as in a resharding: until all are there, what would see only half is refused."""
    ran: list[str] = []
    stop = asyncio.Event()
    refused, accepted = 0, await place.submit_many(300, model="m3")

    async def run(ctx: dict[str, Any]) -> str:
        ran.append(ctx["job_id"])
        await asyncio.sleep(0.01)
        return "ran"

    async def submit() -> None:
        nonlocal refused
        while not stop.is_set():
            try:
                accepted.extend(await place.submit_many(2, model="m3"))
            except StoreUnavailable:
                refused += 1
            await asyncio.sleep(0.01)

    place.schedule()
    await place.worker(run, queue_name="work:m3", max_jobs=5)
    submitting = asyncio.create_task(submit())
    await until(lambda: len(ran) > 50, "jobs run")
    slot = slot_of(place, "m3")
    source = nodes.owner(slot)
    target = (source + 1) % len(nodes.nodes)
    moving_at = time.monotonic()
    await move(nodes, slot, source, target)
    before = len(accepted)
    await until(lambda: len(accepted) >= before + 20, "submits are accepted by the new node")
    print(f"{refused} submits refused, slot moved and in use after {time.monotonic() - moving_at:.2f} s")
    stop.set()
    await submitting
    records = await place.ends(accepted)
    assert nodes.owner(slot) == target
    assert refused > 0, "the slot was open long enough to be noticed"
    assert {record.status for record in records} == {State.COMPLETED}
    assert sorted(ran) == sorted(accepted), "each ran once"


async def move(nodes: RedisCluster, slot: int, source: int, target: int) -> None:
    await asyncio.to_thread(nodes.begin_move, slot, source, target)
    while await asyncio.to_thread(nodes.move_keys, slot, source, target):
        pass
    await asyncio.to_thread(nodes.end_move, slot, target)


async def test_a_record_is_read_and_a_wait_goes_on_while_its_slot_moves(nodes: RedisCluster, place: Place) -> None:
    job = await place.submit(model="m5")
    slot = slot_of(place, "m5")
    source = nodes.owner(slot)
    target = (source + 1) % len(nodes.nodes)
    waiting = asyncio.create_task(place.results.wait(job, 20))
    await asyncio.to_thread(nodes.begin_move, slot, source, target)
    assert (await place.results.record(job, position=False)).id == job  # still where it was
    while await asyncio.to_thread(nodes.move_keys, slot, source, target):
        pass
    assert (await place.results.record(job, position=False)).id == job  # by ASK
    with pytest.raises(StoreUnavailable):
        await place.queue.cancel(job)
    await asyncio.to_thread(nodes.end_move, slot, target)
    await place.queue.cancel(job)
    assert (await waiting).status == State.CANCELLED


async def test_a_pipeline_and_a_transaction_follow_a_slot_that_has_moved(nodes: RedisCluster, place: Place) -> None:
    client: Any = place.queue.redis
    name = f"{place.settings.namespace}:{{moving}}:x"
    other = f"{place.settings.namespace}:{{staying}}:x"
    await client.set(name, "1")
    await client.set(other, "2")
    for transaction, keys in ((False, [name, other]), (True, [name, name])):
        slot = key_slot(name.encode())
        source = nodes.owner(slot)
        await move(nodes, slot, source, (source + 1) % len(nodes.nodes))
        pipe = client.pipeline(transaction=transaction)
        for key in keys:
            pipe.get(key)
        assert await pipe.execute() == ([b"1", b"2"] if keys[1] == other else [b"1", b"1"])


async def test_one_node_that_hangs_does_not_keep_the_queues_of_the_others_from_work(
    nodes: RedisCluster, place: Place
) -> None:
    where = owners(nodes, place)
    hanging = where["m0"]
    sound = next(model for model, node in where.items() if node != hanging)
    nodes.nodes[hanging].pause()
    try:
        stuck = asyncio.create_task(place.submit(model="m0"))
        await at_once(place, sound)
        with pytest.raises(StoreUnavailable):
            await stuck
        await at_once(place, sound)  # though who has which slots had to be asked again
    finally:
        nodes.nodes[hanging].resume()
    await accepted(place, "m0")


async def at_once(place: Place, model: str) -> None:
    """Submit in less than a call's time limit."""
    async with asyncio.timeout(place.settings.redis_timeout_s / 2):
        await place.submit(model=model)


async def accepted(place: Place, model: str) -> str:
    """Submit as soon as that is possible."""
    job = ""

    async def done() -> bool:
        nonlocal job
        with suppress(StoreUnavailable):
            job = await place.submit(model=model)
        return bool(job)

    await until(done, f"{model} accepts jobs")
    return job


async def test_a_client_that_saw_all_nodes_go_away_is_used_again_when_they_are_back(
    start_cluster: Callable[..., RedisCluster], make_place: MakePlace
) -> None:
    nodes = await asyncio.to_thread(start_cluster)
    place = await make_place(redis_url=nodes.url)
    await place.results.ready()
    for node in nodes.nodes:
        node.kill9()
    for _ in range(4):  # once for every node that it knows of, and once more
        with pytest.raises(StoreUnavailable):
            await place.results.ready()
    for node in nodes.nodes:
        await asyncio.to_thread(node.start)
    await accepted(place, "m1")


async def test_a_replica_that_takes_over_from_a_killed_master_is_found(
    start_cluster: Callable[..., RedisCluster], make_place: MakePlace
) -> None:
    nodes = await asyncio.to_thread(start_cluster, replicated=True)
    place = await make_place(redis_url=nodes.url)

    async def fine(ctx: dict[str, Any]) -> str:
        return "fine"

    model = next(model for model, node in owners(nodes, place).items() if node == 0)
    place.schedule()
    await place.worker(fine, queue_name=f"work:{model}")
    await place.end(await place.submit(model=model))
    waiting = await place.submit(model=model, delay_s=4)
    await until(nodes.replica_level, "the replica has all")
    nodes.nodes[0].kill9()
    killed_at = time.monotonic()
    with pytest.raises(StoreUnavailable):
        await place.submit(model=model)
    after = await accepted(place, model)
    print(f"accepted by the replica after {time.monotonic() - killed_at:.2f} s")
    assert {record.status for record in await place.ends([waiting, after])} == {State.COMPLETED}


def test_check_looks_at_every_master_and_at_how_queues_are_spread(nodes: RedisCluster, tmp_path: Path) -> None:
    settings = Settings(redis_url=nodes.url, shards=1, data_dir=tmp_path)
    findings = {finding.key: finding for finding in examine(settings)}
    for node in nodes.nodes:
        assert findings[f"appendonly of 127.0.0.1:{node.port}"].level == "wrong"
    assert findings["JARVIS_SHARDS"].level == "warning"
    assert findings["JARVIS_REDIS_URL"].level == "ok"


def test_check_names_the_address_that_would_fit(nodes: RedisCluster, redis_url: str, tmp_path: Path) -> None:
    def said(url: str) -> str:
        findings = examine(Settings(redis_url=url, data_dir=tmp_path))
        return next(str(finding) for finding in findings if finding.key == "JARVIS_REDIS_URL")

    assert "one node of a cluster: redis-cluster://" in said(nodes.nodes[0].url)
    assert "cluster support disabled" in said(redis_url.replace("redis://", "redis-cluster://"))
    assert said(redis_url).startswith("ok")


def test_make_run_uses_a_cluster_that_is_there_and_starts_none(nodes: RedisCluster) -> None:
    running = find_running(nodes.url)
    assert running is not None
    assert running.address == nodes.url
    gone = f"redis-cluster://127.0.0.1:{free_port()}"
    with pytest.raises(RedisUnavailable, match=gone):
        find_running(gone)


def test_an_argument_with_braces_is_not_taken_for_a_key_of_a_script() -> None:
    prefix = "jarvis:{01}:"
    assert cluster.slot_of(("EVAL", "return {1}", 2, prefix, f"{prefix}:")) == key_slot(prefix.encode())
    assert cluster.slot_of(("XREAD", "BLOCK", 10, "STREAMS", f"{prefix}events", "$")) == key_slot(prefix.encode())
    assert cluster.slot_of(("PING",)) is None


async def test_ends_are_told_from_every_shard(place: Place) -> None:
    endpoints, outbox = Endpoints(place.queue.redis, place.settings), Outbox(place.queue.redis, place.settings)

    def made(endpoint_id: str, now: float) -> Endpoint:
        some = (Secret(new_secret()),)
        url = "https://example.org/"
        return Endpoint(id=endpoint_id, user="ann", url=url, secrets=some, created_at=now, updated_at=now)

    one = await endpoints.create(made, "ann")
    await endpoints.repair()
    assert await endpoints.all() == [one]
    hook = Hook("https://example.org/own")
    specs = [JobSpec(kind="work", model=f"m{i}", input={}, user="ann", hook=hook) for i in range(12)]
    jobs = [submitted.id for submitted in await place.queue.submit_many(specs)]
    for job in jobs:
        await place.queue.cancel(job)
    assert (await outbox.standing()).pending == 24
    taken = [
        delivery for prefix in place.queue.keys.prefixes() for delivery in (await outbox.due(prefix, 50)).deliveries
    ]
    assert {delivery.job for delivery in taken} == set(jobs)
    for delivery in taken:
        assert await outbox.settle(delivery, "delivered", Reply(at=1, took_ms=1, status=200))
    page = await outbox.page(status="delivered", limit=20)
    rest = await outbox.page(status="delivered", after=page.next)
    assert len({delivery.id for delivery in [*page.deliveries, *rest.deliveries]}) == 24
