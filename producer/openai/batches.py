"""`/v1/batches`: what callers ask of batches. The work on them is in `producer/batches`, a process of its own."""

from __future__ import annotations

import asyncio
import hashlib
import re
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.types import Send

from common.access import Principal
from common.batches import OVER, Batch, BatchAsked, Batches, BatchState
from common.errors import InvalidField, MalformedBody, StoreUnavailable
from common.jobs import JobEvent
from common.keys import is_batch_id
from common.queue import Key
from producer import follow, headers
from producer.auth import who
from producer.batches.endpoints import ENDPOINTS
from producer.body import json_body
from producer.edge import Edge, edge
from producer.openai.asked import read
from producer.openai.files import LONGEST_S, SHORTEST_S, page
from producer.record import answer
from producer.routes import StartingAfter
from producer.submit import check_webhook_url
from producer.webhook_schemas import USER, BatchWebhook

router = APIRouter()
WINDOW = re.compile(r"([1-9]\d{0,5})([smhd])")
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
LONGEST_WINDOW_S = 7 * 86_400
LOOK_S = 0.5
AFTERWARDS_S = 86_400.0


class Expiry(BaseModel):
    """When files go."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    anchor: Literal["created_at"]
    seconds: int = Field(ge=SHORTEST_S, le=LONGEST_S)


class BatchBody(BaseModel):
    """`POST /v1/batches`."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    input_file_id: str = Field(min_length=1, max_length=64)
    endpoint: str = Field(max_length=64)
    completion_window: str = Field(max_length=8)
    metadata: dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]] | None = Field(
        None, max_length=16
    )
    output_expires_after: Expiry | None = None
    user: str | None = Field(None, pattern=USER)  # ours, as the webhook: whose endpoints are told of its end
    webhook: BatchWebhook | None = None


class BatchesQuery(BaseModel):
    """Which page of the batches."""

    model_config = ConfigDict(extra="forbid")

    after: str | None = None
    limit: int = Field(20, ge=1, le=100)


@router.post("/v1/batches", include_in_schema=False)
async def create(request: Request) -> Response:
    """Accept a batch."""
    body = await json_body(request)
    if isinstance(body, list):
        raise MalformedBody("it is a list; an object is expected")
    asked = read(BatchBody, body)
    if asked.endpoint not in ENDPOINTS:
        raise InvalidField("endpoint", asked.endpoint, ", ".join(ENDPOINTS))
    window_s = _window_s(asked.completion_window)
    here = edge(request)
    if asked.webhook:
        check_webhook_url(here.submitter.destinations, "webhook.url", asked.webhook.url)
    key = headers.idempotency_key(request.headers)
    batch_id = await _create(here, asked, who(request), window_s, key)
    return answer(batch_out(await here.batches.get(batch_id)))


async def _create(here: Edge, asked: BatchBody, asks: Principal, window_s: float, key: str | None) -> str:
    user = asks.user(asked.user)
    file = await here.files.get(asked.input_file_id, asks.sees)
    if file.purpose != "batch":
        raise InvalidField("input_file_id", f"a file of purpose {file.purpose}", "a file of purpose batch")
    # A file that would end before the batch may is copied.
    blob = await here.files.blobs.keep(file.blob, window_s + AFTERWARDS_S)
    wanted = BatchAsked(
        endpoint=asked.endpoint,
        input_file_id=file.id,
        blob=blob,
        window=asked.completion_window,
        window_s=window_s,
        metadata=asked.metadata,
        output_kept_s=asked.output_expires_after.seconds if asked.output_expires_after else None,
        user=user,
        api_key=asks.key,
        hook=asked.webhook.hook() if asked.webhook else None,
    )
    fingerprint = hashlib.sha256(msgspec.json.encode(msgspec.structs.replace(wanted, blob=""))).hexdigest()
    try:
        return await here.batches.create(wanted, Key(key, fingerprint) if key else None)
    except StoreUnavailable:
        raise  # it may have been accepted: a copy goes when its time is over
    except BaseException:
        if blob != file.blob:
            await here.files.blobs.remove(blob)
        raise


def _window_s(text: str) -> float:
    found = WINDOW.fullmatch(text)
    seconds = int(found[1]) * SECONDS[found[2]] if found else 0
    if not 0 < seconds <= LONGEST_WINDOW_S:
        raise InvalidField("completion_window", text, "24h, or another number of s, m, h or d up to 7d")
    return float(seconds)


@router.get("/v1/batches", include_in_schema=False)
async def list_batches(request: Request, query: Annotated[BatchesQuery, Query()]) -> Response:
    """The batches, newest first."""
    if query.after is not None and not is_batch_id(query.after):
        raise InvalidField("after", query.after, "the id of a batch")
    found, more = await edge(request).batches.list_batches(query.after, query.limit, who(request).sees)
    return answer(page([batch_out(batch) for batch in found], more))


@router.get("/v1/batches/{batch_id}", include_in_schema=False)
async def batch(request: Request, batch_id: str) -> Response:
    """A batch as it stands."""
    return answer(batch_out(await edge(request).batches.get(batch_id, who(request).sees)))


@router.post("/v1/batches/{batch_id}/cancel", include_in_schema=False)
async def cancel(request: Request, batch_id: str) -> Response:
    """Stop a batch. One that is over, or whose files are being written, stays as it is; asking twice is fine."""
    here = edge(request)
    found = await here.batches.get(batch_id, who(request).sees)
    await here.audited(request, batch_id, found.asked.user)
    await here.batches.cancel(batch_id)
    return answer(batch_out(await here.batches.get(batch_id)))


@router.get("/v1/batches/{batch_id}/events", include_in_schema=False)
async def events(request: Request, batch_id: str, starting_after: StartingAfter = None) -> Response:
    """The batch each time that it has changed, as server-sent events, until it is over."""
    here = edge(request)
    after = follow.resume_point(request.headers, starting_after)
    found = await here.batches.get(batch_id, who(request).sees)
    if found.state in OVER and found.seq <= after:
        return Response(status_code=204)
    return BatchStream(here, batch_id, after)


class BatchStream(follow.Stream):
    """A batch as it gets on. Each event is all of it, so that a reader that missed some has missed nothing."""

    def __init__(self, here: Edge, batch_id: str, after: int) -> None:
        super().__init__(here.stopping)
        self._batches: Batches = here.batches
        self._id = batch_id
        self._after = after

    async def forward(self, send: Send) -> None:
        """Send the batch whenever its number has changed."""
        await send({"type": "http.response.body", "body": b"retry: %d\n\n" % follow.RETRY_MS, "more_body": True})
        while True:
            try:
                found = await self._batches.get(self._id)
            except StoreUnavailable:
                await asyncio.sleep(LOOK_S)
                continue
            if found.seq > self._after:
                self._after = found.seq
                event = JobEvent(found.seq, "batch", batch_out(found))
                await send({"type": "http.response.body", "body": follow.encoded(event), "more_body": True})
            if found.state in OVER:
                return
            await asyncio.sleep(LOOK_S)


def batch_out(batch: Batch) -> dict[str, Any]:
    """A batch, for a reader: as in OpenAI's schema, what there is not has no member rather than a null."""
    errors = [msgspec.structs.asdict(error) for error in batch.errors]
    stamps = {f"{state}_at": batch.stamps.get(state) for state in BatchState if state != BatchState.VALIDATING}
    members = {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.asked.endpoint,
        "model": batch.model,
        "errors": {"object": "list", "data": errors} if errors else None,
        "input_file_id": batch.asked.input_file_id,
        "completion_window": batch.asked.window,
        "status": batch.state,
        "output_file_id": batch.output_file_id,
        "error_file_id": batch.error_file_id,
        "created_at": batch.created_at,
        "expires_at": batch.expires_at,
        **stamps,
        "request_counts": {"total": batch.total, "completed": batch.completed, "failed": batch.failed},
        "usage": _usage(batch.usage),
        "metadata": batch.asked.metadata,
    }
    return {name: value for name, value in members.items() if value is not None or name == "metadata"}


def _usage(used: dict[str, int]) -> dict[str, Any]:
    return {
        "input_tokens": used["input_tokens"],
        "input_tokens_details": {"cached_tokens": used["cached_tokens"]},
        "output_tokens": used["output_tokens"],
        "output_tokens_details": {"reasoning_tokens": used["reasoning_tokens"]},
        "total_tokens": used["input_tokens"] + used["output_tokens"],
    }
