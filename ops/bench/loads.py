"""The places that the same prompts are sent to, and how long each takes: the engine alone, our API, vLLM's server."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Protocol

from ops.bench.client import Connection
from ops.bench.direct import Direct
from ops.bench.servers import BenchFailed

SUBJECTS = ("a job", "a lane", "a lease", "a claim", "a commit", "a queue", "a worker", "the scheduler")
QUESTIONS = (
    "What is {}?",
    "How does {} work?",
    "Why is there {}?",
    "Where is {} kept?",
    "What happens to {} when Redis restarts?",
    "Who looks after {}?",
    "Can {} be lost?",
    "How long does {} last?",
)


@dataclass(frozen=True)
class Load:
    """What one burst of prompts made and how long it took."""

    tokens: int
    seconds: float


class Place(Protocol):
    """Something that continues prompts."""

    async def whole(self, prompts: Sequence[str], max_tokens: int) -> Load:
        """All prompts at once, each caller waiting for its whole answer."""

    async def streamed(self, prompts: Sequence[str], max_tokens: int) -> Load:
        """All prompts at once, each caller reading its answer as it grows."""

    async def first_token_s(self, prompt: str, max_tokens: int) -> float:
        """From the request to the first token in the caller's hand, with nothing else going on."""


class Engine:
    """The engine alone. It always gives its tokens as they come, so both kinds of load are one."""

    def __init__(self, direct: Direct) -> None:
        self._direct = direct
        self._names = (f"bench-{i}" for i in count())

    async def whole(self, prompts: Sequence[str], max_tokens: int) -> Load:
        """All prompts into the engine at once."""
        answer = await self._ask(prompts, max_tokens)
        return Load(answer["tokens"], answer["seconds"])

    streamed = whole

    async def first_token_s(self, prompt: str, max_tokens: int) -> float:
        """From the call to the first delta with a token."""
        first: float = (await self._ask([prompt], max_tokens))["first_s"][0]
        return first

    async def _ask(self, prompts: Sequence[str], max_tokens: int) -> Any:
        question = {"name": next(self._names), "prompts": list(prompts), "max_tokens": max_tokens}
        return await asyncio.to_thread(self._direct.ask, question)


class Api:
    """Everything: HTTP, queue, worker, engine, and back."""

    def __init__(self, port: int, alias: str) -> None:
        self._port = port
        self._alias = alias

    async def whole(self, prompts: Sequence[str], max_tokens: int) -> Load:
        """One `POST /v1/jobs` with `Prefer: wait` a prompt."""
        return await _load(self._port, prompts, lambda c, prompt: self._wait(c, prompt, max_tokens))

    async def streamed(self, prompts: Sequence[str], max_tokens: int) -> Load:
        """One submit and one reader of its events a prompt."""
        return await _load(self._port, prompts, lambda c, prompt: self._follow(c, prompt, max_tokens))

    async def first_token_s(self, prompt: str, max_tokens: int) -> float:
        """From the submit to the first `token` event."""
        async with Connection(self._port) as connection:
            started = time.perf_counter()
            record = await connection.call("POST", "/v1/jobs", self._body(prompt, max_tokens))
            first = None
            async for event in connection.events("GET", record["links"]["events"]):
                if first is None and event.get("event") == "token":
                    first = time.perf_counter() - started
            return _seen(first)

    async def _wait(self, connection: Connection, prompt: str, max_tokens: int) -> int:
        body = self._body(prompt, max_tokens)
        return _tokens(await connection.call("POST", "/v1/jobs", body, {"prefer": "wait=60"}))

    async def _follow(self, connection: Connection, prompt: str, max_tokens: int) -> int:
        record = await connection.call("POST", "/v1/jobs", self._body(prompt, max_tokens))
        async for _ in connection.events("GET", record["links"]["events"]):
            pass
        return _tokens(await connection.call("GET", record["links"]["self"]))

    def _body(self, prompt: str, max_tokens: int) -> dict[str, Any]:
        params = {"max_tokens": max_tokens, "temperature": 0}
        return {"kind": "generation", "model": self._alias, "input": {"prompt": prompt}, "params": params}


class Server:
    """vLLM's own OpenAI server."""

    def __init__(self, port: int, alias: str) -> None:
        self._port = port
        self._alias = alias

    async def whole(self, prompts: Sequence[str], max_tokens: int) -> Load:
        """One completion a prompt."""
        return await _load(self._port, prompts, lambda c, prompt: self._complete(c, prompt, max_tokens))

    async def streamed(self, prompts: Sequence[str], max_tokens: int) -> Load:
        """One streamed completion a prompt."""
        return await _load(self._port, prompts, lambda c, prompt: self._stream(c, prompt, max_tokens))

    async def first_token_s(self, prompt: str, max_tokens: int) -> float:
        """From the request to the first chunk."""
        async with Connection(self._port) as connection:
            started = time.perf_counter()
            first = None
            async for event in connection.events("POST", "/v1/completions", self._body(prompt, max_tokens, True)):
                if first is None and '"choices":[{' in event["data"].replace(" ", ""):
                    first = time.perf_counter() - started
            return _seen(first)

    async def _complete(self, connection: Connection, prompt: str, max_tokens: int) -> int:
        return _tokens(await connection.call("POST", "/v1/completions", self._body(prompt, max_tokens, False)))

    async def _stream(self, connection: Connection, prompt: str, max_tokens: int) -> int:
        last: dict[str, str] = {}
        async for event in connection.events("POST", "/v1/completions", self._body(prompt, max_tokens, True)):
            last = event if "usage" in event["data"] else last
        return _tokens(json.loads(last["data"]))

    def _body(self, prompt: str, max_tokens: int, stream: bool) -> dict[str, Any]:
        body = {"model": self._alias, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "stream": stream}
        return {**body, "stream_options": {"include_usage": True}} if stream else body


def prompts(number: int) -> list[str]:
    """So many questions about the project, all different."""
    made = [question.format(subject) for question in QUESTIONS for subject in SUBJECTS]
    return [f"{made[i % len(made)]}{' Again, please.' * (i // len(made))}" for i in range(number)]


async def _load(port: int, prompts: Sequence[str], run: Callable[[Connection, str], Awaitable[int]]) -> Load:
    async def one(prompt: str) -> int:
        async with Connection(port) as connection:
            return await run(connection, prompt)

    started = time.perf_counter()
    tokens = await asyncio.gather(*(one(prompt) for prompt in prompts))
    return Load(sum(tokens), time.perf_counter() - started)


def _tokens(answer: dict[str, Any]) -> int:
    usage = answer.get("usage")
    if not usage:
        raise BenchFailed(f"no usage in {answer}")
    tokens: int = usage["completion_tokens"]
    return tokens


def _seen(first: float | None) -> float:
    if first is None:
        raise BenchFailed("an answer without a token")
    return first
