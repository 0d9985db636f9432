"""Every address of jobs: what it takes and what it answers. The work is in the modules it calls."""

from __future__ import annotations

from typing import Annotated

import msgspec
from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import Response

from common.access import ANONYMOUS
from common.jobs import Awaited, Submitted
from common.results import StoredResult
from producer import batch, follow, headers, upload
from producer.answers import JobOut, JobsOut, JobWithResultOut, ResultOut, SubmittedListOut
from producer.auth import who
from producer.body import json_body
from producer.direct import Direct
from producer.edge import edge, page_out
from producer.openapi import SUBMIT, answers
from producer.problems import Refusal
from producer.record import NOW, answer, location, polled, record_out, result_out
from producer.schemas import EXAMPLE_ID, JobsQuery

submits = APIRouter(route_class=Direct)
router = APIRouter()

JobId = Annotated[str, Path(description="A job's id.", examples=[EXAMPLE_ID])]
WaitS = Annotated[
    float, Query(ge=0, allow_inf_nan=False, description="Hold the answer up to so many seconds until the job is done.")
]
StartingAfter = Annotated[int | None, Query(ge=0, le=follow.SEQ_MAX, description="Only events after this number.")]


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
    events = headers.wants_events(request.headers)
    awaited: Awaited = "events" if events else "end" if preferences.wait_s else ""
    if upload.is_form(request):
        async with upload.form(request, here.settings) as form:
            spec, submitted = await here.submitter.submit(
                form.job, asks, key, recording=form.recording, awaited=awaited
            )
    else:
        body = await json_body(request)
        if isinstance(body, list):
            return await _submit_list(request, body, key, preferences)
        large = len(await request.body()) > here.settings.inline_bytes
        spec, submitted = await here.submitter.submit(body, asks, key, alone=large, awaited=awaited)
    out = {"Location": location(submitted.id)}
    if key and not submitted.created:
        out["Idempotent-Replayed"] = "true"
    if events:
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
    return answer(page_out([record_out(record) for record in page.records], page.next))


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
    return await here.again(await here.queue.retry(job_id))
