"""The latency of one job through everything: HTTP in, queue, worker, HTTP out, with a model that does nothing."""

from __future__ import annotations

import time
from typing import Any

import uvloop

from common.catalogue import Model
from ops.bench.client import Connection
from ops.bench.figures import percentiles
from ops.bench.formation import formation
from ops.bench.servers import Aof

JOBS = 300
WARM = 5
NOTHING = Model(alias="nothing", kind="embedding", engine="fake", weights="", max_model_len=512, slots=100)
BODY = {"kind": "embedding", "model": "nothing", "input": {"texts": ["x" * 170]}}


def latency(aof: Aof, scale: float) -> dict[str, Any]:
    """Milliseconds of `POST /v1/jobs` with `Prefer: wait`, one at a time, all processes idle."""
    with formation(NOTHING, aof) as running:
        times = uvloop.run(_times(running.port, WARM + max(20, int(JOBS * min(1, scale)))))[WARM:]
    return percentiles(times)


async def _times(port: int, count: int) -> list[float]:
    times = []
    async with Connection(port) as connection:
        for _ in range(count):
            started = time.perf_counter()
            record = await connection.call("POST", "/v1/jobs", BODY, {"prefer": "wait=30"})
            times.append(1000 * (time.perf_counter() - started))
            assert record["status"] == "completed", record
    return times
