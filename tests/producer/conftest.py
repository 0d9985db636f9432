"""A catalogue of models that need no engine, the application on a real Redis, and a worker that does as it is told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from tokenizers import Tokenizer, models, pre_tokenizers

from common import scripts
from common.api_keys import ApiKeys
from common.settings import Settings
from producer.__main__ import Server, config
from producer.app import create_app
from tests.producer.worker import PlayedWorker

CATALOGUE = """
[models.echo]
kind = "generation"
engine = "fake"
max_model_len = 1024

[models.words]
kind = "generation"
engine = "vllm"
weights = "./words"
max_model_len = 16
adapters = { terse = "./terse" }

[models.vectors]
kind = "embedding"
engine = "fake"
max_model_len = 16
dimensions = [4, 8]
prompts = { query = "query: ", passage = "" }

[models.ears]
kind = "transcription"
engine = "fake"
"""


@pytest.fixture(scope="session")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalogue with `echo`, `vectors`, `ears` (fake engines) and `words`, whose tokens are words."""
    folder = tmp_path_factory.mktemp("catalogue")
    (folder / "words").mkdir()
    (folder / "words" / "config.json").write_text(json.dumps({"max_position_embeddings": 16}))
    tokenizer = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment, unused-ignore]
    tokenizer.save(str(folder / "words" / "tokenizer.json"))
    path = folder / "models.toml"
    path.write_text(CATALOGUE)
    return path


@pytest.fixture
def settings(redis_url: str, catalogue: Path, tmp_path: Path) -> Settings:
    """Settings for the test's Redis, with small bounds."""
    return Settings(
        redis_url=redis_url,
        catalogue=catalogue,
        data_dir=tmp_path,
        max_body_bytes=100_000,
        max_audio_bytes=400_000,
        wait_max_s=5,
        port=0,
    )


@pytest.fixture
async def app(settings: Settings) -> AsyncIterator[FastAPI]:
    """The application, started."""
    made = create_app(settings)
    async with made.router.lifespan_context(made):
        yield made


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application, without a socket between them."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as made:
        yield made


@pytest.fixture
async def keys(settings: Settings) -> AsyncIterator[ApiKeys]:
    """The keys of the test's Redis."""
    client = scripts.connect(settings)
    yield ApiKeys(client, settings)
    await client.aclose()


@pytest.fixture
async def worker(app: FastAPI) -> PlayedWorker:
    """A worker of the model `echo`."""
    return PlayedWorker(app.state.edge.queue, "generation:echo")


@pytest.fixture
async def server(settings: Settings) -> AsyncIterator[Server]:
    """The application behind a real socket, for what is streamed."""
    app = create_app(settings)
    made = Server(config(app, settings), app, settings)
    serving = asyncio.create_task(made.serve())
    await made.listening.wait()
    yield made
    made.should_exit = True
    await serving


@pytest.fixture
async def live(server: Server) -> AsyncIterator[httpx.AsyncClient]:
    """A client that reaches the application through a socket."""
    port = server.servers[0].sockets[0].getsockname()[1]
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=10) as made:
        yield made


@pytest.fixture
async def live_worker(server: Server) -> PlayedWorker:
    """A worker of the model `echo` beside the `server`."""
    return PlayedWorker(server.web.state.edge.queue, "generation:echo")
