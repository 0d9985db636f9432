"""Addresses that say how everything stands: queues, workers, parked jobs, models, health and numbers for Prometheus."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import RedirectResponse, Response

from common.catalogue import Model
from common.lists import QueueStats
from common.outbox import Outbox
from producer import metrics
from producer.answers import HealthOut, JobOut, ModelsOut, ParkedListOut, QueuesOut, ReadyOut, WorkerOut, WorkersOut
from producer.edge import Edge, edge, page_out
from producer.openapi import answers
from producer.record import answer
from producer.schemas import PageQuery

router = APIRouter()


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
    return answer(page_out(data, data[-1].id if len(entries) > len(data) else None))


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
    return await here.again(await here.queue.replay(parked_id))


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
    batches = await here.batches.standing()
    return Response(metrics.exposition(queues, workers, webhooks, batches), media_type=metrics.CONTENT_TYPE)


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
