"""OpenAI's addresses. Each call is a job like any other; that its caller waits for it is the caller's choice.

A caller that goes away takes its job with it, unless it asked for one that stays: `Prefer: respond-async` (202, the
job's record) or an `Idempotency-Key`, with which the same call again finds the same job.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any, Literal

import msgspec
from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.types import Send

from common.errors import MalformedBody, NotFound, StoreUnavailable, UnknownModel
from common.jobs import Awaited, JobEvent, JobRecord, JobSpec, Submitted
from common.results import StoredResult
from common.states import State
from producer import follow, headers, upload
from producer.auth import who
from producer.body import json_body
from producer.direct import Direct
from producer.edge import Edge, edge
from producer.openai import answered, audio
from producer.openai.asked import ChatAsked, CompletionAsked, EmbeddingsAsked, read
from producer.openai.errors import failed, of_record
from producer.openai.specs import spec_of
from producer.problems import Refusal
from producer.record import answer, location, new_record, polled, record_out
from producer.standing import model_out

calls = APIRouter(route_class=Direct)
router = APIRouter()
STOPPING = "this web process stops; send it again"


@calls.post("/v1/chat/completions", include_in_schema=False)
async def chat_completions(request: Request) -> Response:
    """Continue a conversation."""
    asked = read(ChatAsked, await body_of(request))
    call = await Call.made(request, [asked.job()], bool(asked.stream))
    if call.answered:
        return call.answered
    if asked.stream:
        record = await call.head()
        chunks = answered.ChatChunks(answered.Head.of(record, "chatcmpl"), asked.n or 1, asked.whole_usage)
        return ChunkStream(call, chunks)
    [found] = await call.results()
    if not answers(found):
        return failed(found.record, call.out())
    head = answered.Head.of(found.record, "chatcmpl")
    return answer(answered.chat(head, _output(found), found.record.usage), 200, call.out())


@calls.post("/v1/completions", include_in_schema=False)
async def completions(request: Request) -> Response:
    """Continue texts."""
    asked = read(CompletionAsked, await body_of(request))
    call = await Call.made(request, asked.jobs(), bool(asked.stream))
    if call.answered:
        return call.answered
    if asked.stream:
        record = await call.head()
        chunks = answered.TextChunks(answered.Head.of(record, "cmpl"), asked.n or 1, asked.whole_usage)
        return ChunkStream(call, chunks)
    found = await call.results()
    for one in found:
        if not answers(one):
            return failed(one.record, call.out())
    usages = [one.record.usage for one in found]
    head = answered.Head.of(found[0].record, "cmpl")
    document = answered.completion(head, [_output(one) for one in found], usages, asked.logprobs is not None)
    return answer(document, 200, call.out())


@calls.post("/v1/embeddings", include_in_schema=False)
async def embeddings(request: Request) -> Response:
    """Vectors of texts."""
    call = await Call.made(request, [read(EmbeddingsAsked, await body_of(request)).job()])
    if call.answered:
        return call.answered
    [found] = await call.results()
    if not answers(found) or found.output is None:
        return failed(found.record, call.out())
    return answer(answered.embeddings(found.record.model, found.output, found.record.usage), 200, call.out())


@calls.post("/v1/audio/transcriptions", include_in_schema=False)
async def transcriptions(request: Request) -> Response:
    """Write down what is said."""
    return await _heard(request, "transcribe")


@calls.post("/v1/audio/translations", include_in_schema=False)
async def translations(request: Request) -> Response:
    """Write down in English what is said."""
    return await _heard(request, "translate")


async def _heard(request: Request, task: Literal["transcribe", "translate"]) -> Response:
    if not upload.is_form(request):
        raise Refusal(415, "Content-Type", request.headers.get("content-type"), upload.FORM)
    settings = edge(request).settings
    async with upload.parts_of(request, settings, audio.MOST_FIELDS, audio.FIELDS) as parts:
        asked = audio.fields_of(parts)
        call = await Call.of_recording(
            request, asked.job(task), await upload.recording_of(parts, settings.max_audio_bytes)
        )
    if call.answered:
        return call.answered
    if asked.stream:
        return ChunkStream(call, audio.TranscriptChunks())
    [found] = await call.results()
    return (
        audio.answered(found, asked.response_format, call.out()) if answers(found) else failed(found.record, call.out())
    )


@router.get("/v1/models/{alias}", include_in_schema=False)
async def model(request: Request, alias: str) -> Response:
    """One model of the catalogue."""
    catalogue = edge(request).catalogue
    for known in catalogue.models.values():
        if alias in (known.alias, *known.adapters):
            return answer(model_out(known, alias))
    raise UnknownModel("served", alias, sorted(catalogue.models))


class Call:
    """The jobs that one request stands for, and how its caller stays with them."""

    def __init__(self, here: Edge, request: Request, jobs: Sequence[tuple[JobSpec, Submitted]], stays: bool) -> None:
        self.here = here
        self.stays = stays  # whether the jobs outlive their caller
        self.kept = True  # whether the jobs' records outlive their answer
        self.answered: Response | None = None
        self._request = request
        self._jobs = jobs
        self._began = time.perf_counter()

    @classmethod
    async def made(cls, request: Request, bodies: list[dict[str, Any]], stream: bool = False) -> Call:
        """Submit the jobs; with `Prefer: respond-async` that is all, and the call is answered."""
        # All are checked before the first is accepted.
        return await cls.of_specs(
            request, [await spec_of(body, who(request), edge(request).submitter) for body in bodies], stream=stream
        )

    @classmethod
    async def of_specs(
        cls,
        request: Request,
        specs: Sequence[JobSpec],
        stays: bool = False,
        kept: bool = True,
        stream: bool = False,
    ) -> Call:
        """The same for jobs that are checked.

        With `stays` they outlive their caller without being asked to; what is not to be `kept` is gone when it was
        told, unless it has to be found again.
        """
        here = edge(request)
        preferences = headers.preferences(request.headers, here.settings.wait_max_s)
        key = headers.idempotency_key(request.headers)
        large = len(await request.body()) > here.settings.inline_bytes
        keys = [f"{key}#{number}" if key and number else key for number in range(len(specs))]
        awaited: Awaited = "events" if stream else "" if stays or preferences.respond_async else "end"
        submits = (
            here.submitter.accept(spec, its_key, large, awaited) for spec, its_key in zip(specs, keys, strict=True)
        )
        jobs = list(zip(specs, await asyncio.gather(*submits), strict=True))
        call = await cls._of(request, jobs, stays or bool(key), preferences)
        call.kept = kept or call.stays
        return call

    @classmethod
    async def of_recording(cls, request: Request, body: dict[str, Any], recording: upload.Recording) -> Call:
        """The same for the job of a recording."""
        preferences = headers.preferences(request.headers, edge(request).settings.wait_max_s)
        key = headers.idempotency_key(request.headers)
        job = await edge(request).submitter.submit(body, who(request), key, recording=recording)
        return await cls._of(request, [job], bool(key), preferences)

    @classmethod
    async def _of(
        cls,
        request: Request,
        jobs: Sequence[tuple[JobSpec, Submitted]],
        stays: bool,
        preferences: headers.Preferences,
    ) -> Call:
        call = cls(edge(request), request, jobs, stays or preferences.respond_async)
        if preferences.respond_async:
            record = await call.record()
            out = {"Location": location(record.id), "Preference-Applied": "respond-async", **polled(record)}
            call.answered = answer(record_out(record), 202, out)
        return call

    async def record(self) -> JobRecord:
        """The record of the first job."""
        return await self.here.accepted(*self._jobs[0])

    async def head(self) -> JobRecord:
        """The same without its place in the queue, for what does not tell it."""
        spec, submitted = self._jobs[0]
        return new_record(submitted, spec, self.here.settings) or await self.record()

    def out(self) -> dict[str, str]:
        """Headers of the answer."""
        return {"openai-processing-ms": str(round(1000 * (time.perf_counter() - self._began)))}

    async def results(self) -> list[StoredResult]:
        """How the jobs ended. When the caller or this process goes first, they are cancelled unless they stay."""
        try:
            found = [await self._held(submitted.id) for _, submitted in self._jobs]
        except asyncio.CancelledError:
            await self.left()
            raise
        if all(one.record.terminal for one in found):
            return found
        await self.left()
        raise StoreUnavailable(STOPPING)

    async def left(self) -> None:
        """The caller has gone, or has to come back."""
        if not self.stays:
            end = self.here.queue.cancel if self.kept else self.here.queue.erase
            for _, submitted in self._jobs:
                with contextlib.suppress(StoreUnavailable, NotFound):
                    await end(submitted.id)

    async def told(self) -> None:
        """All that the answer will say is known: erase what is not to be kept, before the caller hears it."""
        if not self.kept:
            for _, submitted in self._jobs:
                with contextlib.suppress(StoreUnavailable, NotFound):
                    await self.here.queue.erase(submitted.id)

    @property
    def job_id(self) -> str:
        """The id of the first job."""
        return self._jobs[0][1].id

    async def _held(self, job_id: str) -> StoredResult:
        life_s = self.here.settings.default_ttl_s
        return await follow.held(
            self.here.results, job_id, life_s, self._request.receive, self.here.stopping, result=True
        )

    def events(self) -> AsyncGenerator[list[JobEvent]]:
        """The first job's events, those of one moment together."""
        return self.here.results.follow_together(self._jobs[0][1].id)

    async def ended(self) -> StoredResult:
        """How the first job ended, once it has."""
        return await self.here.results.look(self._jobs[0][1].id)


class ChunkStream(follow.Stream):
    """An answer as it grows, in OpenAI's chunks."""

    def __init__(self, call: Call, chunks: answered.Chunks) -> None:
        super().__init__(call.here.stopping, call.out())
        self._call = call
        self._chunks = chunks

    async def forward(self, send: Send) -> None:
        """Send the chunks of the job's events, then why it ended."""
        started = False
        async with contextlib.aclosing(self._call.events()) as together:
            async for events in together:
                if len(events) == 1:  # as most often, and this runs once a token
                    piece = self._chunks.piece(events[0])
                else:
                    piece = b"".join(filter(None, map(self._chunks.piece, events)))
                if not piece:
                    continue
                await send(_piece(piece if started else self._chunks.first() + piece))
                started = True
        found = await self._call.ended()
        if answers(found):
            last = self._chunks.last(_output(found), found.record.usage)
        else:
            last = b"data: " + msgspec.json.encode(of_record(found.record)[1]) + b"\n\n"
        await send(_piece((b"" if started else self._chunks.first()) + last + self._chunks.done))

    async def left(self) -> None:
        """The reader has gone before the end."""
        await self._call.left()


def _piece(body: bytes) -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": True}


async def body_of(request: Request) -> dict[str, Any]:
    """The request's body: one object."""
    body = await json_body(request)
    if isinstance(body, list):
        raise MalformedBody("it is a list; an object is expected")
    return body


def answers(found: StoredResult) -> bool:
    """Whether a job has ended with a result."""
    return found.record.status in (State.COMPLETED, State.INCOMPLETE)


def _output(found: StoredResult) -> dict[str, Any]:
    output: dict[str, Any] = msgspec.json.decode(found.output or b"{}")
    return output
