"""Every address of the job interface: what it takes and what it answers. The work is in the modules it calls."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import RedirectResponse, Response

from common.access import ANONYMOUS
from common.api_keys import ApiKeys
from common.batches import Batches
from common.catalogue import Catalogue, Model
from common.files import Files
from common.jobs import JobRecord, JobSpec, Submitted
from common.outbox import Outbox
from common.queue import Queue
from common.results import QueueStats, Results, StoredResult
from common.settings import Settings
from producer import batch, follow, headers, metrics, rates, upload
from producer.answers import (
    HealthOut,
    JobOut,
    JobsOut,
    JobWithResultOut,
    ModelsOut,
    ParkedListOut,
    QueuesOut,
    ReadyOut,
    ResultOut,
    SubmittedListOut,
    WorkerOut,
    WorkersOut,
)
from producer.auth import who
from producer.body import json_body
from producer.direct import Direct
from producer.openapi import SUBMIT, answers
from producer.problems import Refusal
from producer.record import DEEP, NOW, answer, location, new_record, polled, record_out, result_out
from producer.schemas import EXAMPLE_ID, JobsQuery, PageQuery
from producer.submit import Submitter

submits = APIRouter(route_class=Direct)
router = APIRouter()

JobId = Annotated[str, Path(description="A job's id.", examples=[EXAMPLE_ID])]
WaitS = Annotated[
    float, Query(ge=0, allow_inf_nan=False, description="Hold the answer up to so many seconds until the job is done.")
]
StartingAfter = Annotated[int | None, Query(ge=0, le=follow.SEQ_MAX, description="Only events after this number.")]


@dataclass(frozen=True, slots=True)
class Edge:
    """What the handlers work with; one for each process."""

    settings: Settings
    catalogue: Catalogue
    queue: Queue
    results: Results
    submitter: Submitter
    files: Files
    batches: Batches
    stopping: asyncio.Event
    counting: set[str] = field(default_factory=set)  # queues in which a place is being counted

    async def accepted(self, spec: JobSpec, submitted: Submitted) -> JobRecord:
        """The record of a job that has just been submitted, with its place unless the queue is deep or busy."""
        record = new_record(submitted, spec, self.settings)
        if record is None or submitted.ahead is None:
            return await self.results.record(submitted.id)
        if submitted.ahead == 0 and (placed := self.results.waiting.guessed(record, 0)):
            return placed
        if submitted.ahead > DEEP or spec.queue in self.counting:
            return self.results.waiting.guessed(record, submitted.ahead, submitted.own_ahead) or record
        return await self._counted(spec.queue, submitted.id)

    async def _counted(self, queue: str, job_id: str) -> JobRecord:
        # One at a time: counting costs more than submitting, and callers who come in crowds do not read their places.
        self.counting.add(queue)
        try:
            return await self.results.record(job_id)
        finally:
            self.counting.discard(queue)

    async def audited(self, request: Request, thing: str, owner: str) -> None:
        """Note that this request is about to change what is another owner's: only an admin's gets so far."""
        asks = who(request)
        if asks.key and owner != asks.owner:
            action = f"{request.method} {request.scope['route'].path}"
            await ApiKeys(self.queue.redis, self.settings).audit(f"key:{asks.key}", action, thing, owner)

    async def held(self, job_id: str, wait_s: float, request: Request, result: bool = True) -> StoredResult:
        """A job, after at most `wait_s` (and `wait_max_s`) seconds."""
        wait_s = min(wait_s, self.settings.wait_max_s)
        return await follow.held(
            self.results, job_id, wait_s, request.receive, self.stopping, result, who(request).sees
        )


def edge(request: Request) -> Edge:
    """This process' edge."""
    found: Edge = request.app.state.edge
    return found


@submits.post(
    "/v1/jobs",
    status_code=202,
    tags=["jobs"],
    summary="Submit a job, or up to 1,000",
    responses=answers(
        {
            200: (JobWithResultOut, "Finished while the caller waited; or an earlier job with the same key, finished."),
            202: (
                JobOut | SubmittedListOut,
                "Accepted: the job survives whatever happens now. `Location` has its address. For a list: at least"
                " one job was accepted; those that were not are entries that say why.",
            ),
        },
        400, 403, 404, 409, 413, 415, 422, 429, 503,
    ),
    openapi_extra=SUBMIT,
)  # fmt: skip
async def submit(request: Request) -> Response:
    """Accept a job, durably, and answer at once; with `Prefer: wait=N`, when it is done or N seconds are over.

    With `Accept: text/event-stream` the answer is the job's events (200), as at its `events` address; the job
    goes on when the reader leaves. A recording to transcribe comes as base64 in `input.audio`, or as a file: then
    the body is multipart/form-data, with the job (JSON) as `job` and the recording as `file`. With
    `Idempotency-Key` the same request sent again is answered with the same job (for 24 hours by default); the
    same key with another request is refused (422). Keys of different users never meet.
    """
    here, asks = edge(request), who(request)
    preferences = headers.preferences(request.headers, here.settings.wait_max_s)
    key = headers.idempotency_key(request.headers)
    if upload.is_form(request):
        async with upload.form(request, here.settings) as form:
            spec, submitted = await here.submitter.submit(form.job, asks, key, recording=form.recording)
    else:
        body = await json_body(request)
        if isinstance(body, list):
            return await _submit_list(request, body, key, preferences)
        large = len(await request.body()) > here.settings.inline_bytes
        spec, submitted = await here.submitter.submit(body, asks, key, alone=large)
    out = {"Location": location(submitted.id)}
    if key and not submitted.created:
        out["Idempotent-Replayed"] = "true"
    if headers.wants_events(request.headers):
        return follow.EventStream(here.results.follow_together(submitted.id), here.stopping, out)
    if preferences.wait_s:
        found = await here.held(submitted.id, preferences.wait_s, request)
    else:
        found = StoredResult(await here.accepted(spec, submitted), None)
    if applied := preferences.applied(found.record.terminal):
        out["Preference-Applied"] = applied
    if not found.record.terminal:
        return answer(record_out(found.record), 202, out | polled(found.record))
    document = record_out(found.record)
    if preferences.wait_s is not None:
        document["result"] = result_out(found if preferences.wait_s else await here.results.look(submitted.id))
    return answer(document, 200, out)


async def _submit_list(
    request: Request, items: list[msgspec.Raw], key: str | None, preferences: headers.Preferences
) -> Response:
    if preferences.wait_s:
        raise Refusal(400, "Prefer", f"wait={preferences.wait_s}", "no waiting for a list; ask for each of its jobs")
    if headers.wants_events(request.headers):
        raise Refusal(400, "Accept", "text/event-stream", "application/json; each job of a list has its own events")
    here = edge(request)
    answered = await batch.submit(here.submitter, who(request), items, key)
    out = {"Retry-After": str(batch.retry_after_s(answered))}
    if key and not any(isinstance(one, Submitted) and one.created for _, one in answered):
        out["Idempotent-Replayed"] = "true"
    if applied := preferences.applied(finished=False):
        out["Preference-Applied"] = applied
    data = await batch.documents(here.results, answered, request.url.path)
    return answer({"object": "list", "data": data}, 202, out)


@router.get("/v1/jobs", tags=["jobs"], summary="List jobs", responses=answers({200: (JobsOut, "One page.")}, 422, 503))
async def list_jobs(request: Request, query: Annotated[JobsQuery, Query()]) -> Response:
    """Jobs, newest first. With a narrow filter a page may be shorter than `limit` though `has_more` is true."""
    asks = who(request)
    # What nobody's key asked for is anonymous: whoever owns that name has it in the list of all.
    asked = query.model_dump() | {"user": asks.listed(query.user), "keyed": asks.sees not in (None, ANONYMOUS)}
    page = await edge(request).results.list_jobs(**asked)
    return answer(_page([record_out(record) for record in page.records], page.next))


@router.get(
    "/v1/jobs/{job_id}",
    tags=["jobs"],
    summary="A job's record",
    responses=answers({200: (JobOut, "The record.")}, 404, 422, 503),
)
async def job(request: Request, job_id: JobId, wait: WaitS = 0) -> Response:
    """The record, whatever state the job is in."""
    here = edge(request)
    if wait:
        record = (await here.held(job_id, wait, request, result=False)).record
    else:
        record = await here.results.record(job_id, owner=who(request).sees)
    return answer(record_out(record), 200, polled(record))


@router.get(
    "/v1/jobs/{job_id}/result",
    tags=["jobs"],
    summary="A job's result",
    responses=answers(
        {
            200: (ResultOut, "It has ended. Without a result (failed, cancelled, expired), `error` says why."),
            202: (ResultOut, "It has not ended yet; `output` is null. Ask again after `Retry-After`."),
        },
        404, 422, 503,
    ),
)  # fmt: skip
async def result(request: Request, job_id: JobId, wait: WaitS = 0) -> Response:
    """The result once it is there."""
    here = edge(request)
    if wait:
        found = await here.held(job_id, wait, request)
    else:
        found = await here.results.look(job_id, owner=who(request).sees)
    if found.record.terminal:
        return answer(result_out(found))
    record = found.record if wait else await here.results.placed(found.record)
    return answer(result_out(found), 202, polled(record) or NOW)


@router.get(
    "/v1/jobs/{job_id}/events",
    tags=["jobs"],
    summary="A job's events, as they happen",
    responses=answers(
        {
            200: (
                "text/event-stream",
                "`id` is the number, `event` is state, token, segment or progress, `data` is JSON.",
            ),
            204: (None, "The reader has the last event already."),
        },
        404, 422, 503,
    ),
)  # fmt: skip
async def events(request: Request, job_id: JobId, starting_after: StartingAfter = None) -> Response:
    """Server-sent events, from the first one or after the one named by `Last-Event-ID` or `starting_after`.

    The stream ends after the event of a terminal state. One that breaks earlier is taken up again by number:
    every event comes once and in order.
    """
    here = edge(request)
    after = follow.resume_point(request.headers, starting_after)
    record = await here.results.record(job_id, position=False, owner=who(request).sees)
    if follow.nothing_follows(record, after):
        return Response(status_code=204)
    return follow.EventStream(here.results.follow_together(job_id, after), here.stopping)


@router.post(
    "/v1/jobs/{job_id}/cancel",
    tags=["jobs"],
    summary="Cancel a job",
    responses=answers({200: (JobOut, "The record.")}, 404, 503),
)
async def cancel(request: Request, job_id: JobId) -> Response:
    """Stop a job wherever it stands. One that has ended stays as it is; asking twice is fine."""
    here = edge(request)
    record = await here.results.record(job_id, position=False, owner=who(request).sees)
    await here.audited(request, job_id, record.user)
    await here.queue.cancel(job_id)
    return answer(record_out(await here.results.record(job_id)))


@router.post(
    "/v1/jobs/{job_id}/retry",
    status_code=202,
    tags=["jobs"],
    summary="Run a job again",
    responses=answers({202: (JobOut, "The new job.")}, 404, 409, 429, 503),
)
async def retry(request: Request, job_id: JobId) -> Response:
    """A new job that asks for what a failed, cancelled, expired or incomplete one did; asked twice, the same."""
    here = edge(request)
    record = await here.results.record(job_id, position=False, owner=who(request).sees)
    await here.audited(request, job_id, record.user)
    return await _again(here, await here.queue.retry(job_id))


@router.get(
    "/v1/queues",
    tags=["queues"],
    summary="How the queues stand",
    responses=answers({200: (QueuesOut, "All queues.")}, 503),
)
async def queues(request: Request) -> Response:
    """Every queue: waiting jobs by lane, jobs in progress, live workers, how long the oldest has waited."""
    return answer({"object": "list", "data": [_queue_out(stats) for stats in await _queues(edge(request))]})


@router.get(
    "/v1/workers",
    tags=["queues"],
    summary="Who works, and on what",
    responses=answers({200: (WorkersOut, "All live workers.")}, 503),
)
async def workers(request: Request) -> Response:
    """Every live worker: its queue, slots, and the GPU it holds or how much of one."""
    here = edge(request)
    data = [
        {"queue": stats.queue, **{name: about.get(name) for name in WorkerOut.model_fields if name != "queue"}}
        for stats in await _queues(here)
        if stats.workers
        for about in await here.results.workers(stats.queue)
    ]
    return answer({"object": "list", "data": data})


@router.get(
    "/v1/parked",
    tags=["queues"],
    summary="Parked jobs",
    responses=answers({200: (ParkedListOut, "One page.")}, 422, 503),
)
async def parked(request: Request, query: Annotated[PageQuery, Query()]) -> Response:
    """What must not be run, newest first, and why: jobs under which workers died, entries nobody can read."""
    entries = await edge(request).results.parked(query.after, query.limit + 1)
    data = entries[: query.limit]
    return answer(_page(data, data[-1].id if len(entries) > len(data) else None))


@router.post(
    "/v1/parked/{parked_id}/replay",
    status_code=202,
    tags=["queues"],
    summary="Run a parked job again",
    responses=answers({202: (JobOut, "The new job.")}, 404, 409, 429, 503),
)
async def replay(request: Request, parked_id: Annotated[str, Path(description="Id of a parked job.")]) -> Response:
    """Take a job off the parked list and submit what it asked for as a new job."""
    here = edge(request)
    await here.audited(request, parked_id, "")
    return await _again(here, await here.queue.replay(parked_id))


@router.get("/v1/models", tags=["models"], summary="The models", responses=answers({200: (ModelsOut, "All models.")}))
async def models(request: Request) -> Response:
    """The models of the catalogue and their adapters, whether a worker runs for them or not."""
    data = [model_out(model, alias) for model in edge(request).catalogue.models.values() for alias in model.aliases]
    return answer({"object": "list", "data": data})


@router.get(
    "/healthz",
    tags=["service"],
    summary="Is this process alive?",
    responses=answers({200: (HealthOut, "It is.")}),
)
async def healthz() -> Response:
    """Answers as long as this process serves at all, with or without Redis."""
    return answer({"status": "ok"})


@router.get(
    "/readyz",
    tags=["service"],
    summary="Can jobs be accepted?",
    responses=answers({200: (ReadyOut, "They can.")}, 503),
)
async def readyz(request: Request) -> Response:
    """Whether Redis answers; and which queues have how many live workers."""
    here = edge(request)
    await here.results.ready()
    return answer({"status": "ready", "workers": {stats.queue: stats.workers for stats in await _queues(here)}})


@router.get(
    "/metrics",
    tags=["service"],
    summary="Numbers for Prometheus",
    responses=answers({200: ("text/plain", "The exposition.")}, 503),
)
async def scrape(request: Request) -> Response:
    """Depth by queue and lane, jobs by state, wait and run times, workers, engines; same from every web process."""
    here = edge(request)
    queues = await _queues(here)
    workers = {stats.queue: await here.results.workers(stats.queue) for stats in queues if stats.workers}
    webhooks = await Outbox(here.queue.redis, here.settings).standing()
    return Response(metrics.exposition(queues, workers, webhooks), media_type=metrics.CONTENT_TYPE)


@router.get("/docs", include_in_schema=False)
@router.get("/", include_in_schema=False)
async def docs() -> Response:
    """Send a browser to the description of the interface; a page for it would need the internet."""
    return RedirectResponse("/openapi.json")


def model_out(model: Model, alias: str) -> dict[str, Any]:
    """A model, or one of its adapters, under its alias."""
    return {
        "id": alias,
        "object": "model",
        "created": 0,
        "owned_by": "jarvis",
        "kind": model.kind,
        "max_model_len": model.max_model_len,
        "parent": None if alias == model.alias else model.alias,
    }


async def _again(here: Edge, submitted: Submitted) -> Response:
    rates.note(submitted.limits)
    record = await here.results.record(submitted.id)
    return answer(record_out(record), 202, {"Location": location(record.id)} | polled(record))


async def _queues(here: Edge) -> list[QueueStats]:
    # A model that nobody has asked for yet has a queue too: an empty one.
    known = {stats.queue: stats for stats in await here.results.queues()}
    for model in here.catalogue.models.values():
        known.setdefault(model.queue, _unused(model.queue, model.kind, model.alias))
    return [known[name] for name in sorted(known)]


def _unused(queue: str, kind: str, alias: str) -> QueueStats:
    return QueueStats(
        queue=queue,
        kind=kind,
        model=alias,
        depth={"high": 0, "normal": 0, "low": 0},
        in_progress=0,
        workers=0,
        users_waiting=0,
        oldest_wait_s=None,
        counts={},
    )


def _queue_out(stats: QueueStats) -> dict[str, Any]:
    names = ("queue", "kind", "model", "depth", "in_progress", "workers", "users_waiting", "oldest_wait_s")
    return {name: getattr(stats, name) for name in names}


def _page(data: list[Any], following: str | None) -> dict[str, Any]:
    return {"object": "list", "data": data, "has_more": following is not None, "next": following}
