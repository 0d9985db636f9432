"""`python -m ops.bench embedding`: what the queue costs an embedding model.

The same texts go, in turn, to one call of the engine alone (with the batch size that suits it best), through the whole
API as jobs of a few texts each, submitted one by one and in lists, and to vLLM's own pooling server, one request a
text. All are loaded; no two of them work at the same time.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import math
import struct
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import uvloop

from common.catalogue import Catalogue, Model
from common.settings import load_settings
from ops.bench import figures, retrieval
from ops.bench.client import Connection
from ops.bench.direct import Direct
from ops.bench.formation import Formation, formation, write_catalogue
from ops.bench.report import tables
from ops.bench.servers import cpu_s, rss_mib, tree_cpu_s
from ops.bench.vllm_server import AMX_ALLOWED, VllmServer, vllm_server

SENTENCE = "Number {}: a job waits in its lane, a worker claims it, and its result is stored once. {}"
MORE = "Nothing that was acknowledged is ever lost."
BATCH_SIZES = (8, 16, 32, 64, 128, 256)
COMPARED = 64  # texts whose vectors are compared
LISTED = 1000  # jobs of one list

Vector = Sequence[float]
Sent = str | Vector  # a vector as it came
Ask = Callable[[Connection, Any], Awaitable[list[Sent]]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `embedding`."""
    parser.add_argument("--model", default="minilm", help="alias in the catalogue")
    parser.add_argument("--engine", choices=("sentence-transformers", "onnx"), help="in place of the catalogue's")
    parser.add_argument("--texts", type=int, default=2000, help="texts in all")
    parser.add_argument("--texts-per-job", type=int, default=1, help="texts of one job")
    parser.add_argument("--clients", type=int, default=256, help="callers that wait at the same time")
    parser.add_argument("--encoding-format", choices=("float", "base64"), default="base64", help="of the vectors")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds")
    parser.add_argument("--no-server", action="store_true", help="leave vLLM's own server out")
    parser.add_argument("--server-dtype", default="auto", help="of vLLM's server")
    parser.add_argument("--aof", choices=("everysec", "no", "always"), default="everysec", help="of Redis")


class Alone:
    """The engine in a process of its own."""

    def __init__(self, process: Direct, given: list[str]) -> None:
        self._process = process
        self._given = given
        self.batch_size = BATCH_SIZES[0]

    def seconds(self, batch_size: int) -> float:
        """How long all texts take in one call."""
        found: float = self._process.ask({"texts": self._given, "batch_size": batch_size})["seconds"]
        return found

    def tune(self) -> dict[str, float]:
        """Take the batch size that is fastest of two calls each; returns texts/s of each size."""
        self.seconds(BATCH_SIZES[2])  # warms up
        best = {size: min(self.seconds(size) for _ in range(2)) for size in BATCH_SIZES}
        self.batch_size = min(best, key=lambda size: best[size])
        return {str(size): round(len(self._given) / seconds, 1) for size, seconds in best.items()}

    def measure(self) -> dict[str, float]:
        """One call."""
        pid = self._process.pid
        before = cpu_s(pid)
        seconds = self.seconds(self.batch_size)
        used = {"engine_ms": _per_text(cpu_s(pid) - before, self._given)}
        return {**_speed(seconds, self._given), **used, "rss_mib": rss_mib(pid)}


@dataclass
class Served:
    """A server that is asked by many clients at once."""

    port: int
    ask: Ask
    pids: dict[str, int]  # of the processes whose CPU time counts, by column
    clients: int
    texts_per_call: int
    given: list[str]

    def measure(self) -> dict[str, float]:
        """All texts."""
        before = {name: tree_cpu_s([pid]) for name, pid in self.pids.items()}
        mine = time.process_time()
        seconds, _ = uvloop.run(self._all(self.given))
        used = {name: _per_text(tree_cpu_s([pid]) - before[name], self.given) for name, pid in self.pids.items()}
        used["client_ms"] = _per_text(time.process_time() - mine, self.given)
        return {**_speed(seconds, self.given), **used, "rss_mib": rss_mib(self.pids["engine_ms"])}

    def vectors(self, some: list[str]) -> list[Vector]:
        """The vectors of some texts."""
        return [_vector(one) for one in uvloop.run(self._all(some))[1]]

    async def _all(self, given: list[str]) -> tuple[float, list[Sent]]:
        found: dict[int, list[Sent]] = {}
        started = time.perf_counter()
        calls = [given[low : low + self.texts_per_call] for low in range(0, len(given), self.texts_per_call)]
        waiting = list(enumerate(await self.prepared(calls)))[::-1]

        async def client() -> None:
            async with Connection(self.port) as connection:
                while waiting:
                    place, asked = waiting.pop()
                    found[place] = await self.ask(connection, asked)

        await asyncio.gather(*(client() for _ in range(self.clients)))
        seconds = time.perf_counter() - started
        vectors = [vector for place in sorted(found) for vector in found[place]]
        assert len(vectors) == len(given), "a vector for each text"
        return seconds, vectors

    async def prepared(self, calls: list[list[str]]) -> Sequence[Any]:
        """What `ask` is given, for the texts of each call."""
        return calls


@dataclass
class Listed(Served):
    """Jobs that are submitted many at a time; `ask` gets a job's id and waits for its result."""

    body: Callable[[list[str]], dict[str, Any]]  # of one job

    async def prepared(self, calls: list[list[str]]) -> Sequence[Any]:
        """The jobs' ids, once all are accepted."""
        async with Connection(self.port) as connection:
            lists = [list(map(self.body, calls[low : low + LISTED])) for low in range(0, len(calls), LISTED)]
            answers = [await connection.call("POST", "/v1/jobs", one) for one in lists]
        return [job["id"] for answer in answers for job in answer["data"]]


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure; returns rounds, medians, ratios and errors."""
    model = Catalogue.load(load_settings().catalogue).get("embedding", options.model)
    model = replace(model, engine=options.engine or model.engine, weights=model.weights_path())
    given = texts(options.texts)
    with tempfile.TemporaryDirectory(prefix="jarvis-bench-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        command = [sys.executable, "-m", "ops.bench.direct_embedding", str(write_catalogue(folder, model))]
        process = stack.enter_context(Direct.started(command, folder))
        alone = Alone(process, given)
        sizes = alone.tune()
        print(f"alone, texts/s by batch size: {sizes}", flush=True)
        served = dict(_served(model, options, folder, stack, given))
        rounds = [_round(alone, served, number) for number in range(-1, options.rounds)][1:]  # the first warms up
        quality = _quality(process, served, given[:COMPARED])
    medians = figures.medians(rounds)
    for name, found in quality.items():
        medians[name].update(found)
    return {
        "settings": {**_settings(options), "engine": model.engine, "alone_by_batch_size": sizes},
        "rounds": rounds,
        "medians": medians,
        "ratios": {
            "vs_direct": figures.ratio(rounds, "api", "texts_s", ["direct"]),
            "vs_server": figures.ratio(rounds, "api", "texts_s", ["server"]),
            "listed_vs_direct": figures.ratio(rounds, "listed", "texts_s", ["direct"]),
            "listed_vs_server": figures.ratio(rounds, "listed", "texts_s", ["server"]),
        },
        "errors": [],
    }


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    names = ("texts", "texts_per_job", "clients", "encoding_format", "server_dtype")
    return {name: getattr(options, name) for name in names}


def _served(
    model: Model, options: argparse.Namespace, folder: Path, stack: contextlib.ExitStack, given: list[str]
) -> Iterator[tuple[str, Served]]:
    print("starting the formation", flush=True)
    running = stack.enter_context(formation(model, options.aof))
    how = options.clients, options.texts_per_job, given
    body = _job(model, options.encoding_format)
    yield "api", Served(running.port, _ask_api(body), _pids(running), *how)
    yield "listed", Listed(running.port, _ask_result, _pids(running), *how, body)
    if not options.no_server:
        print("starting vLLM's own server", flush=True)
        server = stack.enter_context(_pooling_server(model, options.server_dtype, folder))
        yield (
            "server",
            Served(server.port, _ask_openai(model, options.encoding_format), {"engine_ms": server.pid}, *how),
        )


def _pids(running: Formation) -> dict[str, int]:
    web, _, worker = (program.process.pid for program in running.programs)
    return {"engine_ms": worker, "web_ms": web, "redis_ms": running.redis.p.pid}


def _pooling_server(model: Model, dtype: str, folder: Path) -> contextlib.AbstractContextManager[VllmServer]:
    own = {"model": model.weights_path(), "served_model_name": model.alias, "max_model_len": model.max_model_len}
    return vllm_server({**own, **AMX_ALLOWED, "runner": "pooling", "dtype": dtype}, folder)


def texts(number: int) -> list[str]:
    """So many texts of different lengths, all different."""
    return [SENTENCE.format(i, MORE * (i % 4)) for i in range(number)]


def _round(alone: Alone, served: dict[str, Served], number: int) -> dict[str, dict[str, float]]:
    ways = {"direct": alone.measure, **{name: one.measure for name, one in served.items()}}
    names = list(ways)
    start = max(number, 0) % len(names)
    found = {}
    for name in [*names[start:], *names[:start]]:
        found[name] = ways[name]()
        if number >= 0:
            print(f"round {number + 1}: {name}: {found[name]['texts_s']:,.0f} texts/s", flush=True)
    return {name: found[name] for name in names}


def _job(model: Model, encoding: str) -> Callable[[list[str]], dict[str, Any]]:
    params = {"encoding_format": encoding}
    return lambda some: {"kind": "embedding", "model": model.alias, "input": {"texts": some}, "params": params}


def _ask_api(body: Callable[[list[str]], dict[str, Any]]) -> Ask:
    async def ask(connection: Connection, some: list[str]) -> list[Sent]:
        record = await connection.call("POST", "/v1/jobs", body(some), {"prefer": "wait=60"})
        return _output(record["result"])

    return ask


async def _ask_result(connection: Connection, job_id: str) -> list[Sent]:
    return _output(await connection.call("GET", f"/v1/jobs/{job_id}/result?wait=60"))


def _output(result: dict[str, Any]) -> list[Sent]:
    found: list[Sent] = result["output"]["embeddings"]
    return found


def _ask_openai(model: Model, encoding: str) -> Ask:
    async def ask(connection: Connection, some: list[str]) -> list[Sent]:
        body = {"model": model.alias, "input": some, "encoding_format": encoding}
        answer = await connection.call("POST", "/v1/embeddings", body)
        return [one["embedding"] for one in answer["data"]]

    return ask


def _vector(sent: Sent) -> Vector:
    if not isinstance(sent, str):
        return sent
    data = base64.b64decode(sent)
    return struct.unpack(f"<{len(data) // 4}f", data)


def _quality(process: Direct, served: dict[str, Served], some: list[str]) -> dict[str, dict[str, float]]:
    """How near the vectors are to sentence-transformers' in float32, and how well each finds answers to questions."""
    questions, answers = retrieval.pairs()
    every = [*some, *questions, *answers]
    ends = len(some), len(some) + len(questions)

    def found(vectors: Sequence[Vector]) -> float:
        return retrieval.ndcg(vectors[ends[0] : ends[1]], vectors[ends[1] :])

    reference = process.ask({"reference": every})["vectors"]
    quality = {"direct": {"ndcg": found(reference)}}
    for name, one in served.items():
        vectors = one.vectors(every)
        cosine = _agreement(vectors[: ends[0]], reference[: ends[0]])
        quality[name] = {"cosine": cosine, "ndcg": found(vectors)}
    return quality


def _agreement(ours: Sequence[Vector], reference: Sequence[Vector]) -> float:
    """The least cosine of any vector to its reference."""
    return min(_cosine(a, b) for a, b in zip(ours, reference, strict=True))


def _cosine(a: Vector, b: Vector) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))


def _speed(seconds: float, given: Sequence[str]) -> dict[str, float]:
    return {"seconds": seconds, "texts_s": len(given) / seconds}


def _per_text(seconds: float, given: Sequence[str]) -> float:
    return 1000 * seconds / len(given)


def show(document: dict[str, Any]) -> None:
    """Print the table and, last, the ratios."""
    print(f"\n{tables(document)}\n{figures.last_line(document['ratios'])}")
