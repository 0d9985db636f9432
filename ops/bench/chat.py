"""`python -m ops.bench chat`: what waiting for an answer and reading it as it grows cost at OpenAI's address.

First one chat completion of one token at a time, on an idle formation and on vLLM's own server with the same
settings, in turn. Then many readers at once of one web process, each of its own streamed answer from a model that
only pretends (the fake engine): whether each got all of it, and how large the web process grew.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from common.catalogue import Catalogue, Model
from common.settings import load_settings
from ops.bench import figures, report
from ops.bench.client import Connection
from ops.bench.formation import Formation, formation
from ops.bench.generation import SPIN_S, server_of
from ops.bench.servers import BenchFailed, rss_mib

COLUMNS: tuple[report.Column, ...] = (("p50", "p50 ms", 2), ("p90", "p90 ms", 2), ("p99", "p99 ms", 2))
READING: tuple[report.Column, ...] = (
    ("readers", "readers", 0),
    ("events", "tokens read", 0),
    ("lost", "tokens lost", 0),
    ("first_ms", "first token p50 ms", 0),
    ("events_s", "tokens/s", 0),
    ("rss_mib", "web process RSS MiB, highest", 0),
)
PATH = "/v1/chat/completions"
LOOK_S = 0.2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `chat`."""
    parser.add_argument("--model", default="demo", help="alias in the catalogue; its weights must be a local folder")
    parser.add_argument("--calls", type=int, default=100, help="calls of one token a round")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds of them")
    parser.add_argument("--readers", type=int, default=500, help="streams that are read at once")
    parser.add_argument("--tokens", type=int, default=100, help="of each of those streams")
    parser.add_argument("--pause", type=float, default=0.1, help="seconds between a stream's tokens")
    parser.add_argument("--aof", choices=("everysec", "no", "always"), default="everysec", help="of Redis")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure; returns two tables, what the queue adds in ms, and errors."""
    model = Catalogue.load(load_settings().catalogue).get("generation", options.model)
    with tempfile.TemporaryDirectory(prefix="jarvis-bench-") as name, contextlib.ExitStack() as stack:
        print("starting the formation and vLLM's own server", flush=True)
        ports = {"api": stack.enter_context(formation(model, options.aof)).port}
        ports["server"] = stack.enter_context(server_of(model, Path(name))).port
        rounds = asyncio.run(_rounds(ports, options))
    read = asyncio.run(_readers(options))
    added = [one["api"]["p50"] - one["server"]["p50"] for one in rounds]
    fields = ("calls", "readers", "tokens", "pause")
    return {
        "settings": {field: getattr(options, field) for field in fields},
        "rounds": rounds,
        "tables": [
            report.as_table(COLUMNS, figures.medians(rounds), "One token, waited for"),
            report.as_table(READING, {"web": read}, "Readers at once"),
        ],
        "ratios": {
            "added_p50_ms": sorted(added)[len(added) // 2],
            "lost": float(read["lost"]),
            "rss_mib": read["rss_mib"],
        },
        "errors": [],
    }


show = report.show


async def _rounds(ports: dict[str, int], options: argparse.Namespace) -> list[dict[str, Any]]:
    rounds, names = [], list(ports)
    for port in ports.values():
        await _calls(port, options.model, 20)
    for number in range(options.rounds):
        found = {}
        for name in names if number % 2 else reversed(names):
            await asyncio.sleep(SPIN_S)
            found[name] = figures.percentiles(await _calls(ports[name], options.model, options.calls))
            told = f"p50 {found[name]['p50']:.2f} ms, p99 {found[name]['p99']:.2f} ms"
            print(f"round {number + 1}: {name}: {told}", flush=True)
        rounds.append(found)
    return rounds


async def _calls(port: int, model: str, count: int) -> list[float]:
    taken_ms = []
    async with Connection(port) as connection:
        for number in range(count):
            began = time.perf_counter()
            answer = await connection.call("POST", PATH, _body(model, f"What is {number}?", 1))
            taken_ms.append(1000 * (time.perf_counter() - began))
            if answer["usage"]["completion_tokens"] != 1:
                raise BenchFailed(f"one token was asked for: {answer}")
    return taken_ms


async def _readers(options: argparse.Namespace) -> dict[str, Any]:
    fake: dict[str, Any] = {"tokens": options.tokens, "delay_s": options.pause}
    model = Model("made-up", "generation", "fake", "", 8192, options.readers, options=fake)
    with formation(model, options.aof) as running:
        watching = asyncio.create_task(_highest(running.programs[0].process.pid))
        began = time.perf_counter()
        read = await asyncio.gather(*(_read(running, options, number) for number in range(options.readers)))
        seconds = time.perf_counter() - began
        watching.cancel()
        highest = (await asyncio.gather(watching, return_exceptions=True))[0]
        running.check()
    events = sum(count for count, _ in read)
    return {
        "readers": options.readers,
        "events": events,
        "lost": options.readers * options.tokens - events,
        "first_ms": figures.percentile([1000 * first for _, first in read], 50),
        "events_s": events / seconds,
        "rss_mib": highest,
    }


async def _read(running: Formation, options: argparse.Namespace, number: int) -> tuple[int, float]:
    """Tokens of one stream, whose words are counted, and the seconds to its first."""
    words, first_s, began = "", 0.0, time.perf_counter()
    async with Connection(running.port) as connection:
        body = {**_body("made-up", f"reader {number}", options.tokens), "stream": True}
        async for event in connection.events("POST", PATH, body):
            if event["data"] == "[DONE]":
                break
            delta = json.loads(event["data"])["choices"][0]["delta"]
            if delta.get("content"):
                first_s = first_s or time.perf_counter() - began
                words += delta["content"]
    return len(words.split()), first_s


async def _highest(pid: int) -> float:
    highest = 0.0
    try:
        while True:
            highest = max(highest, rss_mib(pid))
            await asyncio.sleep(LOOK_S)
    except asyncio.CancelledError:
        return highest


def _body(model: str, text: str, tokens: int) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {"model": model, "messages": messages, "max_tokens": tokens, "temperature": 0}
