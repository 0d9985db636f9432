"""`python -m ops.bench embedding`: what the queue costs an embedding model.

The same texts go, in turn, to one call of sentence-transformers and through the whole API as jobs of a few texts
each. Both models are loaded; they never work at the same time.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.catalogue import Catalogue
from common.settings import load_settings
from ops.bench import figures
from ops.bench.client import Connection
from ops.bench.direct import Direct
from ops.bench.formation import formation
from ops.bench.report import tables

SENTENCE = "Number {}: a job waits in its lane, a worker claims it, and its result is stored once. {}"
MORE = "Nothing that was acknowledged is ever lost."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `embedding`."""
    parser.add_argument("--model", default="minilm", help="alias in the catalogue")
    parser.add_argument("--texts", type=int, default=512, help="texts in all")
    parser.add_argument("--texts-per-job", type=int, default=1, help="texts of one job")
    parser.add_argument("--clients", type=int, default=64, help="callers that wait at the same time")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds")
    parser.add_argument("--aof", choices=("everysec", "no", "always"), default="everysec", help="of Redis")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure; returns rounds, medians, ratios and errors."""
    model = Catalogue.load(load_settings().catalogue).get("embedding", options.model)
    with tempfile.TemporaryDirectory(prefix="jarvis-bench-") as name, contextlib.ExitStack() as stack:
        command = [sys.executable, "-m", "ops.bench.direct_embedding", model.weights_path()]
        direct = stack.enter_context(Direct.started(command, Path(name)))
        port = stack.enter_context(formation(model, options.aof)).port
        rounds: list[dict[str, Any]] = []
        for number in range(-1, options.rounds):  # the first only warms up
            found = _round(direct, port, texts(options.texts), options, number)
            if number >= 0:
                rounds.append(found)
    return {
        "settings": {"texts": options.texts, "texts_per_job": options.texts_per_job, "clients": options.clients},
        "rounds": rounds,
        "medians": figures.medians(rounds),
        "ratios": {"vs_direct": figures.ratio(rounds, "api", "texts_s", ["direct"]), "vs_server": None},
        "errors": [],
    }


def texts(number: int) -> list[str]:
    """So many texts of different lengths, all different."""
    return [SENTENCE.format(i, MORE * (i % 4)) for i in range(number)]


def _round(
    direct: Direct, port: int, given: list[str], options: argparse.Namespace, number: int
) -> dict[str, dict[str, float]]:
    def alone() -> float:
        seconds: float = direct.ask({"texts": given})["seconds"]
        return seconds

    def api() -> float:
        return asyncio.run(_through_api(port, given, options))

    ways = {"direct": alone, "api": api}
    order = list(ways) if number % 2 == 0 else list(reversed(ways))
    found = {}
    for name in order:
        seconds = ways[name]()
        found[name] = {"seconds": seconds, "texts_s": len(given) / seconds}
        if number >= 0:
            print(f"round {number + 1}: {name}: {len(given) / seconds:,.0f} texts/s", flush=True)
    return found


async def _through_api(port: int, given: Sequence[str], options: argparse.Namespace) -> float:
    size = options.texts_per_job
    waiting = [given[low : low + size] for low in range(0, len(given), size)]
    waiting.reverse()

    async def client() -> None:
        async with Connection(port) as connection:
            while waiting:
                some = waiting.pop()
                body = {"kind": "embedding", "model": options.model, "input": {"texts": some}}
                record = await connection.call("POST", "/v1/jobs", body, {"prefer": "wait=60"})
                assert len(record["result"]["output"]["embeddings"]) == len(some), record

    started = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(options.clients)))
    return time.perf_counter() - started


def show(document: dict[str, Any]) -> None:
    """Print the table and, last, the ratios."""
    print(f"\n{tables(document)}\n{figures.last_line(document['ratios'])}")
