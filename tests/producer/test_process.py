"""`python -m producer` as a process: it starts, is killed, comes back, and a reader of events never notices."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from common import scripts
from common.api_keys import ApiKeys, Asked
from common.errors import SettingsInvalid
from common.queue import Queue
from common.settings import Settings
from producer.__main__ import check_host
from tests.producer.sse import Seen, events_of
from tests.producer.test_submit import GENERATION
from tests.producer.worker import PlayedWorker
from tests.redis_server import free_port

ROOT = Path(__file__).parents[2]


class WebProcess:
    """One web process on a port of its own, which it keeps over restarts."""

    def __init__(self, settings: Settings) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = {
            **os.environ,
            "PORT": str(self.port),
            "JARVIS_REDIS_URL": settings.redis_url,
            "JARVIS_CATALOGUE": str(settings.catalogue),
            "JARVIS_DATA_DIR": str(settings.data_dir),
        }
        self.process: subprocess.Popen[str] | None = None

    def start(self, **environment: str) -> str:
        """Start it; returns the line that it says when it listens."""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "producer"],
            cwd=ROOT,
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def end(self, how: signal.Signals) -> int:
        """Send a signal and wait for the end; returns the exit status."""
        assert self.process is not None
        self.process.send_signal(how)
        status = self.process.wait(timeout=15)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return status

    def running(self) -> bool:
        """Whether it lives."""
        return self.process is not None and self.process.poll() is None


@pytest.fixture
def web(settings: Settings) -> Iterator[WebProcess]:
    """A web process, not yet started."""
    process = WebProcess(settings)
    yield process
    if process.running():
        process.end(signal.SIGKILL)


@pytest.fixture
async def played(settings: Settings) -> AsyncIterator[PlayedWorker]:
    """A worker of the model `echo` with a connection of its own."""
    queue = await Queue.connect(settings)
    yield PlayedWorker(queue, "generation:echo")
    await queue.close()


async def test_it_says_where_it_listens_and_stops_in_order(web: WebProcess) -> None:
    line = await asyncio.to_thread(web.start)
    assert line.startswith(f"web listens on {web.url}, Redis is redis://")
    async with httpx.AsyncClient(base_url=web.url, trust_env=False) as client:
        assert (await client.get("/readyz")).status_code == 200
    assert await asyncio.to_thread(web.end, signal.SIGTERM) == -signal.SIGTERM or not web.running()


async def read_over_deaths(url: str, job_id: str, seen: list[Seen]) -> None:
    """Read events as a browser does: come back with the last number whenever the connection is lost."""
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=10) as client:
        while not seen or seen[-1].data.get("status") != "completed":
            headers = {"Last-Event-ID": str(seen[-1].seq)} if seen else {}
            try:
                async with client.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers) as response:
                    async for event in events_of(response):
                        seen.append(event)
            except httpx.TransportError:
                await asyncio.sleep(0.05)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
async def test_a_reader_resumes_over_the_death_of_the_web_process(
    web: WebProcess, played: PlayedWorker, how: signal.Signals
) -> None:
    await asyncio.to_thread(web.start)
    async with httpx.AsyncClient(base_url=web.url, trust_env=False) as client:
        job_id = (await client.post("/v1/jobs", json=GENERATION)).json()["id"]
    seen: list[Seen] = []
    reading = asyncio.create_task(read_over_deaths(web.url, job_id, seen))
    job = await played.claim()
    said = [f"w{number}" for number in range(40)]
    for number, text in enumerate(said):
        await played.say(job, text)
        if number in (10, 25):
            await asyncio.to_thread(web.end, how)
        if number in (15, 30):
            await asyncio.to_thread(web.start)
    await played.finish(job)
    async with asyncio.timeout(15):
        await reading
    assert [event.seq for event in seen] == list(range(1, 44))
    assert [event.data["text"] for event in seen if event.event == "token"] == said


async def test_sigterm_ends_it_soon_though_readers_are_there(web: WebProcess) -> None:
    await asyncio.to_thread(web.start)
    async with httpx.AsyncClient(base_url=web.url, trust_env=False) as client:
        job_id = (await client.post("/v1/jobs", json=GENERATION)).json()["id"]
        async with client.stream("GET", f"/v1/jobs/{job_id}/events") as response:
            await anext(events_of(response))
            started = time.monotonic()
            await asyncio.to_thread(web.end, signal.SIGTERM)
            assert time.monotonic() - started < 3


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("JARVIS_HOST", "0.0.0.0", "JARVIS_HOST has value '0.0.0.0': only loopback"),
        ("JARVIS_CATALOGUE", "/nowhere.toml", "catalogue /nowhere.toml cannot be read"),
        ("JARVIS_WAIT_MAX_S", "-1", "JARVIS_WAIT_MAX_S has value '-1'"),
    ],
)
async def test_a_wrong_setting_ends_it_at_its_start_and_is_named(
    web: WebProcess, name: str, value: str, said: str
) -> None:
    line = await asyncio.to_thread(web.start, **{name: value})
    assert web.process is not None
    assert web.process.stdout is not None
    rest = await asyncio.to_thread(web.process.stdout.read)
    web.process.stdout.close()
    assert said in line + rest
    assert web.process.wait(timeout=5) == 1


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_is_allowed_without_keys(settings: Settings, host: str) -> None:
    check_host(settings.model_copy(update={"host": host}))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", ""])
def test_any_other_address_is_refused_while_there_are_no_keys(settings: Settings, host: str) -> None:
    with pytest.raises(SettingsInvalid, match="jarvis keys create"):
        check_host(settings.model_copy(update={"host": host}))


def test_any_address_will_do_once_there_was_a_key_or_while_nobody_can_say(settings: Settings) -> None:
    everywhere = settings.model_copy(update={"host": "0.0.0.0"})

    async def make_a_key() -> None:
        client = scripts.connect(settings)
        await ApiKeys(client, settings).create(Asked(name="first", tier="free"), "test")
        await client.aclose()

    asyncio.run(make_a_key())
    check_host(everywhere)
    check_host(everywhere.model_copy(update={"redis_url": f"redis://127.0.0.1:{free_port()}/0"}))
