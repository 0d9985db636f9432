"""`python -m ops.bench batch`: what callers who wait notice of a batch that runs beside them.

Callers ask for vectors of one text each at a steady rate, on an idle formation and then while a batch of the same
model is under way, in turn. The lines a second are what the batch gets done beside them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx

from common.catalogue import Catalogue
from common.settings import load_settings
from ops.bench import figures
from ops.bench.client import Connection
from ops.bench.embedding import texts
from ops.bench.formation import Formation, formation
from ops.bench.report import tables
from ops.bench.servers import BenchFailed

OVER = ("completed", "failed", "expired", "cancelled")
LIMIT_S = 120.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `batch`."""
    parser.add_argument("--model", default="minilm", help="alias of an embedding model in the catalogue")
    parser.add_argument(
        "--engine", choices=("sentence-transformers", "onnx", "fake"), help="in place of the catalogue's"
    )
    parser.add_argument("--lines", type=int, default=10_000, help="of the batch, which is cancelled after its round")
    parser.add_argument("--per-s", type=float, default=10, help="calls a second of those who wait")
    parser.add_argument("--seconds", type=float, default=8, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=2, help="interleaved rounds")
    parser.add_argument("--aof", choices=("everysec", "no", "always"), default="everysec", help="of Redis")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure; returns rounds, medians, ratios and errors."""
    model = Catalogue.load(load_settings().catalogue).get("embedding", options.model)
    model = replace(model, engine=options.engine or model.engine)
    with formation(model, options.aof, ["producer.batches"]) as running:
        rounds = [asyncio.run(_round(running, options, number)) for number in range(options.rounds)]
    names = ("lines", "per_s", "seconds")
    return {
        "settings": {**{name: getattr(options, name) for name in names}, "engine": model.engine},
        "rounds": rounds,
        "medians": figures.medians(rounds),
        "ratios": {f"{name}_with_batch": figures.ratio(rounds, "batch", name, ["alone"]) for name in ("p50", "p99")},
        "errors": [],
    }


async def _round(running: Formation, options: argparse.Namespace, number: int) -> dict[str, dict[str, Any]]:
    await _waited(running, options, 2.0)  # warms up
    alone = await _waited(running, options, options.seconds)
    async with _batch(running, options) as seen:
        before, began = await seen(), time.monotonic()
        beside = await _waited(running, options, options.seconds)
        after, took_s = await seen(), time.monotonic() - began
    if after == options.lines:
        raise BenchFailed("the batch was over before the measurement: more --lines, or fewer --seconds")
    found = {"alone": alone, "batch": {**beside, "lines_s": (after - before) / took_s}}
    for name, one in found.items():
        print(f"round {number + 1}: {name}: p50 {one['p50']:.1f} ms, p99 {one['p99']:.1f} ms", flush=True)
    return found


async def _waited(running: Formation, options: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """Calls at a steady rate, each sent when it is due whether the earlier ones are answered or not."""
    idle: deque[Connection] = deque()  # used in turn, so that none is idle for so long that the server closes it
    taken_ms: list[float] = []

    async def call(text: str, due: float) -> None:
        connection = idle.popleft() if idle else await Connection(running.port).__aenter__()
        await connection.call("POST", "/v1/embeddings", {"model": options.model, "input": text})
        taken_ms.append(1000 * (time.perf_counter() - due))
        idle.append(connection)

    given = texts(int(seconds * options.per_s))
    began = time.perf_counter()
    async with asyncio.TaskGroup() as calls:
        for number, text in enumerate(given):
            due = began + number / options.per_s
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            calls.create_task(call(text, due))
    for connection in idle:
        await connection.__aexit__()
    return figures.percentiles(taken_ms)


@asynccontextmanager
async def _batch(running: Formation, options: argparse.Namespace) -> AsyncIterator[Any]:
    """A batch that is well under way; yields what tells how many of its lines are done. It is cancelled in the end."""
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{running.port}", trust_env=False, timeout=LIMIT_S) as http:
        file: Any = {"purpose": (None, "batch"), "file": ("lines.jsonl", _lines(options))}
        uploaded = (await http.post("/v1/files", files=file)).json()
        body = {"input_file_id": uploaded["id"], "endpoint": "/v1/embeddings", "completion_window": "24h"}
        batch_id = (await http.post("/v1/batches", json=body)).json()["id"]

        async def seen() -> int:
            batch = (await http.get(f"/v1/batches/{batch_id}")).json()
            if batch["status"] in ("failed", "expired"):
                raise BenchFailed(f"the batch {batch['status']}: {batch['errors']}")
            return int(batch["request_counts"]["completed"])

        async with asyncio.timeout(LIMIT_S):
            while await seen() < 100:  # noqa: ASYNC110 - another process works on it
                await asyncio.sleep(0.1)
        yield seen
        await http.post(f"/v1/batches/{batch_id}/cancel")
        async with asyncio.timeout(LIMIT_S):
            while (await http.get(f"/v1/batches/{batch_id}")).json()["status"] not in OVER:  # noqa: ASYNC110
                await asyncio.sleep(0.1)


def _lines(options: argparse.Namespace) -> bytes:
    return "\n".join(
        json.dumps(
            {
                "custom_id": f"line-{number}",
                "method": "POST",
                "url": "/v1/embeddings",
                "body": {"model": options.model, "input": text},
            }
        )
        for number, text in enumerate(texts(options.lines))
    ).encode()


def show(document: dict[str, Any]) -> None:
    """Print the table and, last, the ratios."""
    print(f"\n{tables(document)}\n{figures.last_line(document['ratios'])}")
