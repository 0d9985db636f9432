"""The job function of `generation`: one prompt to one answer or several, streamed while they grow.

What a delivery has emitted is a commitment. A job that is delivered again goes on from the emitted tokens, so
that the texts of all its token events, put together, are always the text of its result. That holds for whatever was
asked: each of several answers (`n`) is a request of its own in the engine and goes on by itself; a structured answer's
grammar is led over the emitted tokens before it goes on; reasoning and tool calls are read again from them.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from typing import Any

from common.catalogue import Model
from common.cost import priced
from common.errors import EngineDead
from common.jobs import Awaited, ClaimedJob, JobResult, JobSpec, Priority
from common.settings import Settings
from workers.answer import Answer, DetailedAnswer, result
from workers.engines import generation_engine
from workers.engines.protocol import GenerationDelta, GenerationRequest, Pushing, Take
from workers.serving import revived, starter, worker_settings

SEEDS = 2**63
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
#: Beside `response_format`: what an answer must match. One at most, which the edge checks.
CONSTRAINTS = ("regex", "choice", "grammar")
#: What makes an answer more than a text. The reasoning that a model's parser finds needs no asking.
DETAILS = ("logprobs", "tools")
#: Tokens that nobody reads as they come are taken from the engine so often (of a young answer after this part of its
#: age), or so many at a time. Who begins to read waits no longer for the next ones.
GATHER_S = 0.1
YOUNG_PART = 1 / 4
GATHERED_TOKENS = 32
# The engine's own scheduler takes lower numbers first, and gives up higher ones when memory runs out.
PRIORITIES: dict[Priority, int] = {"high": 0, "normal": 1, "low": 2}


async def generation(ctx: dict[str, Any], job: ClaimedJob) -> JobResult:
    """Run one generation job: stream its tokens as events, return its text."""
    spec = job.spec
    params = {**ctx["model"].defaults, **spec.params}
    emitted = await ctx["emitted"](job) if job.claims > 1 else []
    answers = _answers(ctx["model"], params, emitted)
    async with revived(ctx):
        if len(answers) == 1:
            await _run(ctx, job, job.id, answers[0], _request(spec, params, answers[0]), spec.awaited)
        else:
            await _run_all(ctx, job, spec, answers, params)
    return priced(ctx["model"].cost, result(answers))


def _answers(model: Model, params: dict[str, Any], emitted: list[dict[str, Any]]) -> list[Answer]:
    count = params.get("n") or 1
    if count > 1:
        return [DetailedAnswer(params, emitted, index) for index in range(count)]
    if model.reasoning_parser or any(params.get(name) for name in DETAILS):
        return [DetailedAnswer(params, emitted)]
    return [Answer(params, emitted)]


async def _run(
    ctx: dict[str, Any],
    job: ClaimedJob,
    request_id: str,
    answer: Answer,
    request: GenerationRequest,
    awaited: Awaited = "",
) -> None:
    if isinstance(ctx["engine"], Pushing) and answer.alone:
        await ctx["engine"].push(request_id, request, _taker(ctx, job, answer, awaited))
        if answer.finish_reason is not None:
            return
        raise EngineDead("the engine ended an answer without a reason")
    emit = ctx["emit"]
    # aclosing: whatever ends this block (a stop string, a cancel, a failed emit) aborts the request in the engine.
    async with aclosing(ctx["engine"].generate(request_id, request)) as deltas:
        async for delta in deltas:
            if event := answer.take(delta):
                await emit(job, "token", event)
            if answer.finish_reason is not None:
                return
    raise EngineDead("the engine ended an answer without a reason")


def _taker(ctx: dict[str, Any], job: ClaimedJob, answer: Answer, awaited: Awaited) -> Take:
    """What takes the deltas of a job's only answer; while nobody reads them, they may come together.

    Where the caller waits for the end that holds from the beginning, else it comes with the answer's age.
    """
    tell, may_gather = ctx["tell"], answer.plain
    began_at = taken_at = 0.0  # CLOCK_MONOTONIC, s

    def take(delta: GenerationDelta) -> int:
        nonlocal began_at, taken_at
        event = answer.take(delta)
        read = tell(job, "token", event) if event else True
        if answer.finish_reason is not None:
            return 0
        now = time.monotonic()
        waited_s, taken_at = now - taken_at, now
        began_at = began_at or now
        if read or not may_gather:
            return 1
        wanted_s = GATHER_S if awaited == "end" else min(GATHER_S, (now - began_at) * YOUNG_PART)
        return min(max(1, int(len(delta.token_ids) * wanted_s / waited_s)), GATHERED_TOKENS)

    return take


async def _run_all(
    ctx: dict[str, Any], job: ClaimedJob, spec: JobSpec, answers: list[Answer], params: dict[str, Any]
) -> None:
    """Several answers at once; what ends one of them badly ends the others."""
    runs = []
    for index, answer in enumerate(answers):
        seed = None if params.get("seed") is None else (params["seed"] + index) % SEEDS  # as vLLM's own server does
        request = _request(spec, {**params, "seed": seed}, answer)
        runs.append(asyncio.create_task(_run(ctx, job, f"{job.id}-{index}", answer, request)))
    try:
        await asyncio.gather(*runs)
    finally:
        for run in runs:
            run.cancel()
        await asyncio.gather(*runs, return_exceptions=True)


def _request(spec: JobSpec, params: dict[str, Any], answer: Answer) -> GenerationRequest:
    return GenerationRequest(
        prompt=spec.input.get("prompt"),
        messages=spec.input.get("messages"),
        max_tokens=answer.max_tokens,
        sampling={name: params[name] for name in SAMPLING if params.get(name) is not None},
        stop=answer.stop,
        resume_text=answer.resumed_text,
        resume_ids=answer.resumed_ids,
        resumed=answer.resuming,
        adapter=spec.model if spec.base else None,
        priority=PRIORITIES[spec.priority],
        structured=_structured(params),
        logprobs=(params.get("top_logprobs") or 0) if params.get("logprobs") else None,
        tools=params.get("tools"),
        tool_choice=params.get("tool_choice"),
        parallel_tool_calls=params.get("parallel_tool_calls") is not False,
    )


def _structured(params: dict[str, Any]) -> dict[str, Any] | None:
    wanted = params.get("response_format") or {"type": "text"}
    if wanted["type"] == "json_schema":
        return {"json": wanted["json_schema"]["schema"]}
    if wanted["type"] == "json_object":
        return {"json_object": True}
    return {name: params[name] for name in CONSTRAINTS if params.get(name) is not None} or None


on_startup = starter("generation", lambda model, settings: generation_engine(model))


def settings_for(model: Model, settings: Settings) -> dict[str, Any]:
    """The worker's settings for one model, by keyword."""
    return worker_settings(generation, on_startup, model, settings)
