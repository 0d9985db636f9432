"""The places that the same prompts are sent to, and how long each takes: the engine alone, our API, vLLM's server."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count, pairwise
from typing import Any, Protocol

from ops.bench.client import Connection
from ops.bench.direct import Direct, in_turn
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
#: Of a chunk that says nothing: vLLM's server sends one for a token without text (part of a character), we do not. What
#: a reader waits for is text.
EMPTY = '"text":"",'


@dataclass(frozen=True)
class Load:
    """What a load of prompts made and how long it took; of streams also when their pieces came (seconds)."""

    tokens: int
    seconds: float
    first_s: list[float] = field(default_factory=list)  # from a request to its first token, one a stream
    gaps_s: list[float] = field(default_factory=list)  # between a stream's tokens, of all streams


class Place(Protocol):
    """Something that continues prompts: so many at once, the next one as soon as one is through."""

    async def whole(self, prompts: Sequence[str], max_tokens: int, at_once: int) -> Load:
        """Each caller waits for its whole answer."""

    async def streamed(self, prompts: Sequence[str], max_tokens: int, at_once: int) -> Load:
        """Each caller reads its answer as it grows."""

    async def first_token_s(self, prompt: str, max_tokens: int) -> float:
        """From the request to the first token in the caller's hand, with nothing else going on."""


class Engine:
    """The engine alone. It always gives its tokens as they come, so both kinds of load are one."""

    def __init__(self, direct: Direct) -> None:
        self._direct = direct
        self._names = (f"bench-{i}" for i in count())

    async def whole(self, prompts: Sequence[str], max_tokens: int, at_once: int) -> Load:
        """The prompts straight into the engine."""
        answer = await self._ask(prompts, max_tokens, at_once)
        return Load(answer["tokens"], answer["seconds"], answer["first_s"], answer["gaps_s"])

    streamed = whole

    async def first_token_s(self, prompt: str, max_tokens: int) -> float:
        """From the call to the first delta with a token."""
        first: float = (await self._ask([prompt], max_tokens, 1))["first_s"][0]
        return first

    async def _ask(self, prompts: Sequence[str], max_tokens: int, at_once: int) -> Any:
        question = {
            "name": next(self._names),
            "prompts": list(prompts),
            "max_tokens": max_tokens,
            "at_once": at_once,
        }
        return await asyncio.to_thread(self._direct.ask, question)


class Api:
    """Everything: HTTP, queue, worker, engine, and back."""

    def __init__(self, port: int, alias: str) -> None:
        self._port = port
        self._alias = alias

    async def whole(self, prompts: Sequence[str], max_tokens: int, at_once: int) -> Load:
        """One `POST /v1/jobs` with `Prefer: wait` a prompt."""
        return await _load(self._port, prompts, at_once, lambda c, prompt: self._wait(c, prompt, max_tokens))

    async def streamed(self, prompts: Sequence[str], max_tokens: int, at_once: int) -> Load:
        """One `POST /v1/jobs` a prompt, answered with the job's events."""
        ids: list[str] = []
        load = await _streams(self._port, prompts, at_once, lambda c, prompt: self._pieces(c, prompt, max_tokens, ids))
        async with Connection(self._port) as connection:
            tokens = [_tokens(await connection.call("GET", f"/v1/jobs/{job_id}")) for job_id in ids]
        return replace(load, tokens=sum(tokens))

    async def first_token_s(self, prompt: str, max_tokens: int) -> float:
        """From the submit to the first `token` event."""
        return (await self.streamed([prompt], max_tokens, 1)).first_s[0]

    async def _wait(self, connection: Connection, prompt: str, max_tokens: int) -> int:
        body = self._body(prompt, max_tokens)
        return _tokens(await connection.call("POST", "/v1/jobs", body, {"prefer": "wait=60"}))

    async def _pieces(
        self, connection: Connection, prompt: str, max_tokens: int, ids: list[str]
    ) -> AsyncIterator[float]:
        async for event in connection.events("POST", "/v1/jobs", self._body(prompt, max_tokens)):
            if event.get("event") == "token":
                yield time.perf_counter()
        ids.append(connection.headers["location"].rpartition("/")[2])

    def _body(self, prompt: str, max_tokens: int) -> dict[str, Any]:
        params = {"max_tokens": max_tokens, "temperature": 0}
        return {"kind": "generation", "model": self._alias, "input": {"prompt": prompt}, "params": params}


class Completions:
    """A server with OpenAI's address for completions: vLLM's own, or ours."""

    def __init__(self, port: int, alias: str) -> None:
        self._port = port
        self._alias = alias

    async def whole(self, prompts: Sequence[str], max_tokens: int, at_once: int) -> Load:
        """One completion a prompt."""
        return await _load(self._port, prompts, at_once, lambda c, prompt: self._complete(c, prompt, max_tokens))

    async def streamed(self, prompts: Sequence[str], max_tokens: int, at_once: int) -> Load:
        """One streamed completion a prompt."""
        usages: list[int] = []
        load = await _streams(
            self._port, prompts, at_once, lambda c, prompt: self._pieces(c, prompt, max_tokens, usages)
        )
        return replace(load, tokens=sum(usages))

    async def first_token_s(self, prompt: str, max_tokens: int) -> float:
        """From the request to the first chunk."""
        return (await self.streamed([prompt], max_tokens, 1)).first_s[0]

    async def _complete(self, connection: Connection, prompt: str, max_tokens: int) -> int:
        return _tokens(await connection.call("POST", "/v1/completions", self._body(prompt, max_tokens, False)))

    async def _pieces(
        self, connection: Connection, prompt: str, max_tokens: int, usages: list[int]
    ) -> AsyncIterator[float]:
        async for event in connection.events("POST", "/v1/completions", self._body(prompt, max_tokens, True)):
            if '"usage":{' in event["data"]:
                usages.append(_tokens(json.loads(event["data"])))
            elif '"choices":[{' in event["data"] and EMPTY not in event["data"]:
                yield time.perf_counter()

    def _body(self, prompt: str, max_tokens: int, stream: bool) -> dict[str, Any]:
        body = {"model": self._alias, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "stream": stream}
        return {**body, "stream_options": {"include_usage": True}} if stream else body


def prompts(number: int) -> list[str]:
    """So many questions about the project, all different."""
    made = [question.format(subject) for question in QUESTIONS for subject in SUBJECTS]
    return [f"{made[i % len(made)]}{' Again, please.' * (i // len(made))}" for i in range(number)]


async def _load(
    port: int, prompts: Sequence[str], at_once: int, run: Callable[[Connection, str], Awaitable[int]]
) -> Load:
    async def one(prompt: str) -> int:
        async with Connection(port) as connection:
            return await run(connection, prompt)

    started = time.perf_counter()
    tokens = await in_turn(prompts, at_once, one)
    return Load(sum(tokens), time.perf_counter() - started)


async def _streams(
    port: int, prompts: Sequence[str], at_once: int, pieces: Callable[[Connection, str], AsyncIterator[float]]
) -> Load:
    """`pieces` gives the moment (perf_counter, s) of each piece of an answer."""

    async def one(prompt: str) -> list[float]:
        async with Connection(port) as connection:
            asked = time.perf_counter()
            return [asked, *[moment async for moment in pieces(connection, prompt)]]

    started = time.perf_counter()
    moments = await in_turn(prompts, at_once, one)
    seconds = time.perf_counter() - started
    if any(len(one) < 2 for one in moments):
        raise BenchFailed("an answer without a token")
    gaps_s = [later - sooner for one in moments for sooner, later in pairwise(one[1:])]
    return Load(0, seconds, [one[1] - one[0] for one in moments], gaps_s)


def _tokens(answer: dict[str, Any]) -> int:
    usage = answer.get("usage")
    if not usage:
        raise BenchFailed(f"no usage in {answer}")
    tokens: int = usage["completion_tokens"]
    return tokens
