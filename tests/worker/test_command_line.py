"""`python -m workers`: what it takes, what it says, how it exits."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from common.errors import SettingsInvalid
from common.settings import Settings
from tests.worker.place import QUEUE, Place
from workers import __main__ as command

ROOT = Path(__file__).parents[2]
CATALOGUE = """
[models.one]
kind = "generation"
engine = "fake"
max_model_len = 100
slots = 3
[models.two]
kind = "generation"
engine = "fake"
max_model_len = 100
[models.vectors]
kind = "embedding"
engine = "fake"
"""
MODULE = """
from __future__ import annotations
import os, pathlib
async def work(ctx, a):
    return a + 1
async def on_startup(ctx):
    with pathlib.Path(os.environ["STARTS"]).open("a") as starts:
        starts.write(f"{os.getpid()}\\n")
class Settings:
    functions = [work]
    on_startup = on_startup
    queue_name = "work:test"
class Broken:
    queue_name = "work:test"
class NoQueue:
    functions = [work]
"""
Run = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def run(settings: Settings, tmp_path: Path) -> Iterator[Run]:
    """Start `python -m workers <arguments>` in a folder with a settings module and a catalogue."""
    (tmp_path / "models.toml").write_text(CATALOGUE)
    (tmp_path / "mine.py").write_text(MODULE)
    clean = {key: value for key, value in os.environ.items() if not key.startswith("JARVIS_")}
    environment = {
        **clean,
        "PYTHONPATH": str(ROOT),
        "STARTS": str(tmp_path / "starts"),
        "JARVIS_REDIS_URL": settings.redis_url,
        "JARVIS_LEASE_S": "2",
        "JARVIS_BELL_TIMEOUT_S": "1",
        "JARVIS_DATA_DIR": str(tmp_path),
        "JARVIS_CATALOGUE": str(tmp_path / "models.toml"),
    }
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str, **variables: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "workers", *arguments],
            cwd=tmp_path,
            env=environment | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=40)
    return process.returncode, out, err


async def ended_soon(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    return await asyncio.to_thread(ended, process)


async def test_a_burst_worker_of_a_settings_class_runs_the_jobs_and_exits_with_0(place: Place, run: Run) -> None:
    jobs = await place.submit_many(3, function="work", input={"a": 1})
    code, _, err = await ended_soon(run("mine.Settings", "--burst"))
    assert code == 0, err
    for record in await place.ends(jobs):
        assert await place.output(record.id) == {"value": 2}


async def test_a_kind_runs_its_first_model_and_model_chooses_another(place: Place, run: Run) -> None:
    asked: dict[str, Any] = {"kind": "generation", "input": {"prompt": "hello"}}
    first = await place.submit(model="one", **asked)
    second = await place.submit(model="two", **asked)
    vectors = await place.submit(kind="embedding", model="vectors", input={"texts": ["a"]})
    runs = [run("generation", "--burst"), run("generation", "--model", "two", "--burst"), run("embedding", "--burst")]
    for process in runs:
        code, _, err = await ended_soon(process)
        assert code == 0, err
    assert {record.status for record in await place.ends([first, second, vectors])} == {"completed"}


async def test_slots_and_verbose_are_heard_and_check_sees_the_worker(place: Place, run: Run) -> None:
    code, out, err = await ended_soon(run("generation", "--check"))
    assert (code, out) == (1, "")
    assert "generation:one: no live worker" in err
    worker = run("generation", "--slots", "7", "--verbose")
    while not await place.results.workers("generation:one"):
        assert worker.poll() is None, worker.communicate()
        await asyncio.sleep(0.05)
    code, out, err = await ended_soon(run("generation", "--check"))
    assert code == 0, err
    assert "with 7 slots" in out
    await place.end(await place.submit(kind="generation", model="one", input={"prompt": "hello"}))
    worker.send_signal(signal.SIGINT)
    code, _, err = await ended_soon(worker)
    assert code == 0
    assert "DEBUG" in err
    assert "starts, delivery 1" in err


def test_an_unknown_kind_is_named_with_what_there_is(run: Run) -> None:
    code, _, err = ended(run("translation"))
    assert code == 1
    assert "workers: 'translation' is neither one of generation, embedding, transcription nor a settings class" in err
    assert "Traceback" not in err


def test_an_unknown_model_is_named_with_what_there_is(run: Run) -> None:
    code, _, err = ended(run("generation", "--model", "three"))
    assert code == 1
    assert "known: one, two" in err
    assert "Traceback" not in err


def test_a_catalogue_without_a_model_of_the_kind_says_so(run: Run, tmp_path: Path) -> None:
    (tmp_path / "models.toml").write_text(CATALOGUE.partition("[models.vectors]")[0])
    code, _, err = ended(run("embedding"))
    assert code == 1
    assert "no embedding model" in err
    assert "Traceback" not in err


def test_a_settings_class_that_is_wrong_is_an_error(run: Run) -> None:
    code, _, err = ended(run("mine.Nothing"))
    assert code == 1
    assert "mine.Nothing" in err
    code, _, err = ended(run("mine.Broken"))
    assert code == 1
    assert "at least one function or cron_job must be registered" in err
    assert "Traceback" not in err


def test_wrong_settings_and_wrong_flags_have_their_own_exit_codes(run: Run) -> None:
    code, _, err = ended(run("generation", JARVIS_LEASE_S="never"))
    assert code == 1
    assert "JARVIS_LEASE_S" in err
    assert ended(run("generation", "--nonsense"))[0] == 2


def test_an_engine_that_cannot_start_exits_with_an_error(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        MODULE.replace("with pathlib", "raise RuntimeError('no engine')\n    with pathlib")
    )
    code, _, err = ended(run("mine.Settings"))
    assert code == 1
    assert "no engine" in err


def test_watch_starts_the_worker_again_when_a_file_changes(run: Run, tmp_path: Path) -> None:
    process = run("mine.Settings", "--watch", str(tmp_path))
    starts = tmp_path / "starts"

    def pids() -> list[str]:
        return starts.read_text().split() if starts.exists() else []

    def wait_for(count: int) -> None:
        deadline = time.monotonic() + 40
        while len(pids()) < count:
            assert time.monotonic() < deadline, f"{count} starts"
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)

    wait_for(1)
    (tmp_path / "mine.py").write_text(MODULE + "# changed")
    wait_for(2)
    assert len(set(pids())) == len(pids())
    process.send_signal(signal.SIGINT)
    assert process.wait(40) == 0


async def test_check_of_a_class_asks_its_own_redis(settings: Settings) -> None:
    assert await command.check(QUEUE, settings) == 1


def test_a_class_without_a_queue_name_gets_arqs(run: Run, settings: Settings) -> None:
    code, _, err = ended(run("mine.NoQueue", "--check"))
    assert code == 1
    assert "no live worker" in err
    assert "Traceback" not in err


def test_a_settings_path_without_a_class_is_explained(settings: Settings) -> None:
    with pytest.raises(SettingsInvalid, match="'nonsense' is neither"):
        command.worker_settings("nonsense", None, settings)
