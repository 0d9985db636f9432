"""The least that a web process with one Redis call can be: the route that our submit is compared with.

`python -m ops.bench.bare PORT` serves it as `python -m producer` serves ours: same uvicorn, event loop, HTTP parser and
Redis client. `/raw` does not look at what it was sent; `/json` decodes it and answers with a record like ours.
"""

from __future__ import annotations

import pkgutil
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import uvicorn
from fastapi import FastAPI, Request

from common import scripts
from common.settings import Settings, load_settings

#: How our web process runs; by name, since nobody imports sideways.
CONFIG = "producer.__main__:config"

KEPT = 100_000


def create_app(settings: Settings) -> FastAPI:
    """Two routes, each with one Redis call."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.redis = scripts.connect(settings)
        yield
        await app.state.redis.aclose()

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None)

    @app.post("/raw", status_code=202)
    async def raw(request: Request) -> dict[str, Any]:
        entry = await _add(request, await request.body())
        return {"id": entry, "status": "queued"}

    @app.post("/json", status_code=202)
    async def decoded(request: Request, body: dict[str, Any]) -> dict[str, Any]:
        entry = await _add(request, msgspec.json.encode(body))
        record = {"id": entry, "object": "job", "status": "queued", "created_at": time.time(), "metadata": {}}
        empty = (
            "started_at",
            "finished_at",
            "run_at",
            "worker",
            "error",
            "usage",
            "queue_ms",
            "run_ms",
            "gpu_ms",
            "retry_of",
        )
        return {**record, "kind": body["kind"], "model": body["model"], **dict.fromkeys(empty)}

    return app


async def _add(request: Request, body: bytes) -> str:
    entry = await scripts.execute(request.app.state.redis, "XADD", "bare", "MAXLEN", "~", KEPT, "*", "d", body)
    name: str = entry.decode()
    return name


def main() -> None:
    """Serve until told to stop."""
    settings = load_settings(port=int(sys.argv[1]))
    uvicorn.Server(pkgutil.resolve_name(CONFIG)(create_app(settings), settings)).run()


if __name__ == "__main__":
    main()
