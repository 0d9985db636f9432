"""The beat: what it renews, what it tells, and its process as the worker sees it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from common.queue import Queue
from common.settings import Settings
from tests.waiting import until
from tests.worker.place import Gate, Place
from workers.beat import Beat, Order, is_stopped
from workers.beat_process import BeatProcess
from workers.slots import SlotTable


class HeardQueue:
    """Notes what is renewed; answers as it is told."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.renewed: list[list[str]] = []
        self.gone: list[str] = []
        self.away = False

    async def renew(self, queue: str, worker: str, about: bytes, leases: list[str]) -> list[str]:
        if self.away:
            raise RedisConnectionError("away")
        self.renewed.append(list(leases))
        return [lease for lease in leases if lease in self.gone]


@pytest.fixture
async def heard(settings: Settings) -> HeardQueue:
    return HeardQueue(settings)


@pytest.fixture
async def table() -> AsyncIterator[SlotTable]:
    table = SlotTable.create(4)
    yield table
    table.close()


def beat_of(heard: HeardQueue, table: SlotTable, pid: int | None = None) -> Beat:
    order = Order({}, "work:test", "w", pid or os.getpid(), table.file.fileno(), 4, {})
    return Beat(heard, order, table)  # type: ignore[arg-type]


async def test_it_says_once_that_it_is_ready_and_once_of_each_lease_that_it_is_lost(
    heard: HeardQueue, table: SlotTable, capsys: pytest.CaptureFixture[str]
) -> None:
    beat = beat_of(heard, table)
    now = time.monotonic()
    table.hold("job_a:1", now, now + 60)
    table.hold("job_b:1", now, now + 60)
    await beat._beat()
    heard.gone = ["job_b:1"]
    await beat._beat()
    await beat._beat()
    assert capsys.readouterr().out.split("\n") == ["ready", "lost job_b:1", ""]
    assert sorted(heard.renewed[-1]) == ["job_a:1", "job_b:1"]


async def test_it_renews_no_job_beyond_its_timeout(heard: HeardQueue, table: SlotTable) -> None:
    beat = beat_of(heard, table)
    now = time.monotonic()
    table.hold("job_a:1", now - 10, now - 1)
    table.hold("job_b:1", now - 10, now + 60)
    await beat._beat()
    assert heard.renewed == [["job_b:1"]]


async def test_with_redis_away_it_gives_leases_up_after_their_time_and_not_before(
    heard: HeardQueue, table: SlotTable, capsys: pytest.CaptureFixture[str]
) -> None:
    beat = beat_of(heard, table)
    now = time.monotonic()
    lease_s = heard.settings.lease_s
    table.hold("job_old:1", now - lease_s - 1, now + 60)
    table.hold("job_new:1", now, now + 60)
    heard.away = True
    await beat._beat()
    assert capsys.readouterr().out == "lost job_old:1\n"
    heard.away = False
    await beat._beat()
    heard.away = True
    await beat._beat()
    assert "lost" not in capsys.readouterr().out, "renewed a moment ago"


async def test_it_does_not_renew_for_a_worker_that_is_stopped(heard: HeardQueue, table: SlotTable) -> None:
    sleeper = await asyncio.create_subprocess_exec("sleep", "60")
    try:
        now = time.monotonic()
        table.hold("job_a:1", now, now + 60)
        sleeper.send_signal(signal.SIGSTOP)
        await until(lambda: is_stopped(sleeper.pid), "it is stopped")
        beating = asyncio.create_task(beat_of(heard, table, sleeper.pid).run())
        await asyncio.sleep(heard.settings.lease_s / 2)
        assert heard.renewed == []
        sleeper.send_signal(signal.SIGCONT)
        await until(lambda: heard.renewed != [], "it goes on")
        beating.cancel()
        with suppress(asyncio.CancelledError):
            await beating
    finally:
        sleeper.kill()
        await sleeper.wait()


def test_whether_a_process_is_stopped_is_known_without_proc_too(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoProc:
        def __init__(self, path: str) -> None: ...

        def exists(self) -> bool:
            return False

    monkeypatch.setattr("workers.beat.Path", NoProc)
    assert not is_stopped(os.getpid())


async def test_the_beat_process_renews_while_the_worker_lives(real_place: Place) -> None:
    gate = Gate()
    worker = await real_place.worker(gate.function)
    await until(lambda: worker.beat._ready.is_set(), "it is ready")
    assert [one["id"] for one in await real_place.results.workers("work:test")] == [worker.id]
    job = await real_place.submit()
    await until(lambda: gate.now == 1, "it runs")
    await asyncio.sleep(real_place.settings.lease_s * 1.5)
    assert (await real_place.queue.rescue(real_place.queue.keys.of_queue("work:test"))).moved == 0
    gate.open.set()
    assert (await real_place.end(job)).claims == 1


async def test_what_an_engine_counts_reaches_redis_with_the_beat(real_place: Place) -> None:
    counted = 1
    await real_place.worker(Gate().function, ctx={"figures": lambda: {"preemptions": counted}, "admits": lambda: 1})

    async def told() -> bool:
        said = [(about["figures"], about["takes"]) for about in await real_place.results.workers("work:test")]
        return said == [({"preemptions": counted}, 1)]

    await until(told, "the first count")
    counted = 7
    await until(told, "the count of now")


async def test_a_lost_lease_comes_to_the_worker_from_its_beat_process(real_place: Place) -> None:
    gate = Gate()
    worker = await real_place.worker(gate.function)
    job = await real_place.submit()
    await until(lambda: gate.now == 1, "it runs")
    # Gone without a word to the worker, as after a loss of data.
    leases = f"{real_place.queue.keys.queue('work:test')}leases"
    await real_place.queue.redis.delete(leases)
    await until(lambda: gate.stopped == [job], "the work is stopped")
    await until(lambda: not worker.running, "the slot is free")


async def test_a_beat_process_that_ends_is_started_again(real_place: Place) -> None:
    worker = await real_place.worker(Gate().function)
    await until(lambda: worker.beat._ready.is_set(), "it is ready")
    first = worker.beat.process
    assert first is not None
    first.kill()
    await until(lambda: worker.beat.process not in (None, first), "another one")
    second = worker.beat.process
    assert second is not None
    assert second.pid != first.pid
    assert second.returncode is None


async def test_a_beat_process_that_cannot_be_started_is_tried_again(
    settings: Settings, table: SlotTable, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spawn = asyncio.create_subprocess_exec
    fails = iter([OSError("no more processes"), OSError("no more processes")])

    async def flaky(*args: object, **options: object) -> asyncio.subprocess.Process:
        for error in fails:
            raise error
        return await spawn(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(asyncio, "create_subprocess_exec", flaky)
    process = BeatProcess(settings, "work:test", "w", table, {}, lambda lost: None)
    await asyncio.wait_for(process.start(), 20)
    await process.stop()
    assert "no more processes" in caplog.text


async def test_without_an_order_the_process_ends_at_once() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "workers.beat", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await asyncio.wait_for(process.communicate(b""), 20)
    assert (process.returncode, output) == (0, b"")


async def test_queue_renew_is_what_the_beat_expects(settings: Settings) -> None:
    queue = await Queue.connect(settings)
    assert await queue.renew("work:test", "w", b"{}", ["job_a:1"]) == ["job_a:1"]
    await queue.close()
