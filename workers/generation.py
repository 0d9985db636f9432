"""The job function of `generation`: one prompt to one text, streamed while it grows.

What a delivery has emitted is a commitment. A job that is delivered again goes on from the emitted tokens, so
that the texts of all its token events, put together, are always the text of its result.
"""

from __future__ import annotations

import logging
import time
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from common.catalogue import Catalogue, Model
from common.cost import priced
from common.errors import EngineDead, JobFailed
from common.jobs import ClaimedJob, JobResult, JobSpec, Priority
from common.settings import Settings, load_settings
from workers.engines import generation_engine
from workers.engines.protocol import FinishReason, GenerationDelta, GenerationRequest, Measured
from workers.engines.revival import Revival
from workers.placement import leave, loading, settle

log = logging.getLogger("jarvis.generation")

DEFAULT_MAX_TOKENS = 256
SAMPLING = (
    "min_tokens",
    "ignore_eos",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "seed",
)


# The engine's own scheduler takes lower numbers first, and gives up higher ones when memory runs out.
PRIORITIES: dict[Priority, int] = {"high": 0, "normal": 1, "low": 2}


async def generation(ctx: dict[str, Any], job: ClaimedJob) -> JobResult:
    """Run one generation job: stream its tokens as events, return its text."""
    spec = job.spec
    params = {**ctx["model"].defaults, **spec.params}
    emitted = await ctx["emitted"](job) if job.claims > 1 else []
    answer = Answer(params, emitted)
    try:
        await ctx["revival"].ready()
        await _run(ctx, job, answer, _request(spec, params, answer))
    except EngineDead as death:
        ctx["revival"].begin()
        raise JobFailed("engine_died", str(death), retryable=True) from death
    return priced(ctx["model"].cost, answer.result())


async def _run(ctx: dict[str, Any], job: ClaimedJob, answer: Answer, request: GenerationRequest) -> None:
    emit = ctx["emit"]
    # aclosing: whatever ends this block (a stop string, a cancel, a failed emit) aborts the request in the engine.
    async with aclosing(ctx["engine"].generate(job.id, request)) as deltas:
        async for delta in deltas:
            if text := answer.take(delta):
                await emit(job, "token", answer.event(text))
            if answer.finish_reason is not None:
                return
    raise EngineDead("the engine ended an answer without a reason")


def _request(spec: JobSpec, params: dict[str, Any], answer: Answer) -> GenerationRequest:
    return GenerationRequest(
        prompt=spec.input.get("prompt"),
        messages=spec.input.get("messages"),
        max_tokens=answer.max_tokens,
        sampling={name: params[name] for name in SAMPLING if params.get(name) is not None},
        stop=answer.stop,
        resume_text=answer.resumed_text,
        resume_ids=answer.resumed_ids,
        adapter=spec.model if spec.base else None,
        priority=PRIORITIES[spec.priority],
    )


class Answer:
    """A text as it grows out of deltas, cut at a stop string, from where an earlier delivery left it."""

    def __init__(self, params: dict[str, Any], emitted: list[dict[str, Any]]) -> None:
        self.max_tokens: int = params.get("max_tokens") or DEFAULT_MAX_TOKENS
        self.finish_reason: FinishReason | None = None
        self.resumed_text = "".join(event["text"] for event in emitted)
        # An upstream tells no ids: what it began is known by its text alone.
        known = all("ids" in event for event in emitted)
        self.resumed_ids = [token for event in emitted for token in event["ids"]] if known else []
        stop = params.get("stop") or []
        self.stop: list[str] = [stop] if isinstance(stop, str) else stop
        self._texts = [self.resumed_text]
        self._resuming = bool(self.resumed_text)
        self._stop = StopStrings(self.stop)
        self._ids: list[int] = []
        self._prompt_tokens = 0
        self._completion_tokens = len(self.resumed_ids)
        self._usage: dict[str, int] | None = None

    def take(self, delta: GenerationDelta) -> str:
        """Add one step; returns the text that can be shown now, which may be empty."""
        self._prompt_tokens = delta.prompt_tokens
        self._usage = delta.usage
        self._completion_tokens += len(delta.token_ids)
        self._ids += delta.token_ids
        text = self._stop.pass_on(delta.text, last=delta.finish_reason is not None)
        self.finish_reason = "stop" if self._stop.met else delta.finish_reason
        if self._resuming:
            text = self._not_shown_yet(text)
        self._texts.append(text)
        return text

    def event(self, text: str) -> dict[str, Any]:
        """A token event; ids of tokens without text go along with the next text. An upstream tells no ids."""
        if self._usage is not None:
            return {"text": text}
        ids, self._ids = self._ids, []
        return {"text": text, "ids": ids}

    def result(self) -> JobResult:
        """The whole answer; incomplete when the model's context ended it before the caller's limit."""
        usage = self._counted() if self._usage is None else dict(self._usage)
        if usage:
            usage["total_tokens"] = sum(usage.values())
        output = {"text": "".join(self._texts), "finish_reason": self.finish_reason}
        cut = self.finish_reason == "length" and usage.get("completion_tokens", self.max_tokens) < self.max_tokens
        return JobResult(output, {**usage}, incomplete=cut)

    def _counted(self) -> dict[str, int]:
        return {"prompt_tokens": self._prompt_tokens, "completion_tokens": self._completion_tokens}

    def _not_shown_yet(self, replayed: str) -> str:
        # The first delta of a resumed answer repeats the text of the resumed tokens. It can reach further than
        # what was shown: the earlier delivery may have held back the start of a stop string.
        self._resuming = False
        shown = self._texts[0]
        return replayed[len(shown) :] if replayed.startswith(shown) else ""


class StopStrings:
    """Passes text on until a stop string comes, holding back only what may be the beginning of one."""

    def __init__(self, stop: str | list[str]) -> None:
        self.met = False
        self._stop = [stop] if isinstance(stop, str) else stop
        self._longest = max(map(len, self._stop), default=0)
        self._held = ""

    def pass_on(self, text: str, last: bool) -> str:
        """The text that is certainly before any stop string; with `last`, everything that is left."""
        if not self._stop:
            return text
        text = self._held + text
        ends = [(found + len(stop), found) for stop in self._stop if (found := text.find(stop)) >= 0]
        if ends:
            self.met, self._held = True, ""
            # The one that is complete first wins, as if the text had come character by character.
            return text[: min(ends)[1]]
        held = 0 if last else self._possible_start(text)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def _possible_start(self, text: str) -> int:
        for length in range(min(self._longest - 1, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stop):
                return length
        return 0


async def on_startup(ctx: dict[str, Any]) -> None:
    """Load the engine of `ctx["model"]` (else of the catalogue's first generation model)."""
    settings = ctx.get("settings") or load_settings()
    model: Model = ctx.get("model") or Catalogue.load(settings.catalogue).of_kind("generation")[0]
    started = time.monotonic()
    engine = generation_engine(await settle(ctx, model, settings))
    async with loading(ctx, model, settings):
        await engine.start()
    ctx.update(settings=settings, model=model, engine=engine, revival=Revival(engine))
    if isinstance(engine, Measured):
        ctx.update(admits=engine.admits, figures=engine.figures)
    log.info("loaded %s: %s %s in %.1f s", model.queue, model.engine, model.weights, time.monotonic() - started)


async def on_shutdown(ctx: dict[str, Any]) -> None:
    """Let the engine go."""
    if "engine" in ctx:
        await ctx["revival"].end()
        await ctx["engine"].stop()
    leave(ctx)


class GenerationSettings:
    """What `arq` and `python -m workers generation` read; `settings_for` adds the model's part."""

    functions = (generation,)
    on_startup = on_startup
    on_shutdown = on_shutdown


def settings_for(model: Model, settings: Settings) -> dict[str, Any]:
    """The worker's settings for one model, by keyword."""
    model = replace(model, slots=settings.slots or model.slots)
    return {
        "functions": [generation],
        "on_startup": on_startup,
        "on_shutdown": on_shutdown,
        "queue_name": model.queue,
        "max_jobs": model.slots,
        "ctx": {"model": model, "settings": settings},
    }
