"""An engine alone, in a process of its own: no queue, no HTTP, the same class as the worker's, on the same loop.

`python -m ops.bench.direct KIND CATALOGUE` loads the model and then answers each line of JSON with one. The engine is
looked up by its name, as the Procfile names programs: nothing here builds on the workers' code.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pkgutil
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Self, TypeVar

from common.catalogue import Catalogue, Model
from common.heap import settle_heap
from ops.bench.machine import ROOT
from ops.bench.servers import BenchFailed

ENGINE = "workers.engines:generation_engine"
REQUEST = "workers.engines.protocol:GenerationRequest"

Prompt = TypeVar("Prompt")
Answer = TypeVar("Answer")


class Direct:
    """The measuring process' end of it."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self._process = process
        self._log = log

    @classmethod
    @contextlib.contextmanager
    def started(cls, command: list[str], folder: Path) -> Iterator[Self]:
        """A process that has said `ready`; it is gone afterwards."""
        log = folder / "direct.log"
        with log.open("ab") as errors:
            process = subprocess.Popen(
                command,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=folder,
            )
        direct = cls(process, log)
        try:
            direct.read()
            yield direct
        finally:
            direct.stop()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def ask(self, question: dict[str, Any]) -> Any:
        """Its answer to one line."""
        assert self._process.stdin is not None, "opened with PIPE"
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return self.read()

    def read(self) -> Any:
        """Its next line that is JSON: libraries print what they like."""
        assert self._process.stdout is not None, "opened with PIPE"
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise BenchFailed(f"the engine's process ended:\n{self._log.read_text(errors='replace')[-2000:]}")

    def stop(self) -> None:
        """Close its input, which ends it."""
        assert self._process.stdin is not None, "opened with PIPE"
        self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def generation_command(catalogue: Path) -> list[str]:
    """The command of a process with the catalogue's generation model."""
    return [sys.executable, "-m", "ops.bench.direct", str(catalogue)]


async def serve(model: Model) -> None:
    """Load the engine, answer questions until the input ends."""
    engine = pkgutil.resolve_name(ENGINE)(model)
    await engine.start()
    settle_heap()
    print("{}", flush=True)
    try:
        while line := await asyncio.to_thread(sys.stdin.readline):
            print(json.dumps(await _answer(engine, json.loads(line))), flush=True)
    finally:
        await engine.stop()


async def _answer(engine: Any, question: dict[str, Any]) -> dict[str, Any]:
    # `question` has name, prompts, max_tokens, at_once: how many prompts the engine holds at a time.
    async def one(numbered: tuple[int, str]) -> tuple[int, list[float]]:
        number, prompt = numbered
        request = pkgutil.resolve_name(REQUEST)(
            prompt=prompt, max_tokens=question["max_tokens"], sampling={"temperature": 0.0}
        )
        asked = time.perf_counter()
        tokens, moments = await _run(engine, f"{question['name']}-{number}", request)
        return tokens, [asked, *moments]

    started = time.perf_counter()
    done = await in_turn(list(enumerate(question["prompts"])), question["at_once"], one)
    seconds = time.perf_counter() - started
    return {
        "seconds": seconds,
        "tokens": sum(tokens for tokens, _ in done),
        "first_s": [moments[1] - moments[0] for _, moments in done],
        "gaps_s": [later - sooner for _, moments in done for sooner, later in pairwise(moments[1:])],
    }


async def in_turn(prompts: Sequence[Prompt], at_once: int, run: Callable[[Prompt], Awaitable[Answer]]) -> list[Answer]:
    """Run all prompts, so many at once, the next one as soon as one is through; their answers as they ended."""
    left, answers = iter(prompts), list[Answer]()

    async def caller() -> None:
        for prompt in left:
            answers.append(await run(prompt))

    await asyncio.gather(*(caller() for _ in range(at_once)))
    return answers


async def _run(engine: Any, name: str, request: Any) -> tuple[int, list[float]]:
    tokens, moments = 0, []
    async for delta in engine.generate(name, request):
        if delta.text:
            moments.append(time.perf_counter())
        tokens += len(delta.token_ids)
    return tokens, moments


def main(catalogue: str) -> None:
    """Serve the first generation model of a catalogue, on the worker's event loop."""
    import uvloop

    uvloop.run(serve(Catalogue.load(catalogue).of_kind("generation")[0]))


if __name__ == "__main__":
    main(sys.argv[1])
