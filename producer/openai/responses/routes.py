"""The addresses of `/v1/responses`."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import Response
from starlette.types import Send

from common.errors import InvalidField, NotFound
from common.jobs import JobEvent
from common.results import StoredResult
from producer import follow
from producer.auth import who
from producer.direct import Direct
from producer.edge import Edge, edge
from producer.openai.asked import read
from producer.openai.errors import failed
from producer.openai.responses import answered, stored
from producer.openai.responses.asked import ResponseAsked
from producer.openai.responses.specs import job_spec
from producer.openai.responses.streamed import EventsGone, ResponseEvents
from producer.openai.routes import Call, answers, body_of
from producer.record import answer, polled

calls = APIRouter(route_class=Direct)
router = APIRouter()
MOST_LISTED = 100

ResponseId = Annotated[str, Path(max_length=64)]
Includes = Annotated[list[str] | None, Query(alias="include")]


@calls.post("/v1/responses", include_in_schema=False)
async def create(request: Request) -> Response:
    """Answer a conversation, now or in the background."""
    here = edge(request)
    asked = read(ResponseAsked, await body_of(request))
    spec = await job_spec(asked, who(request), here.submitter, here.results)
    call = await Call.of_specs(
        request, [spec], stays=bool(asked.background), kept=asked.stored, stream=bool(asked.stream)
    )
    if call.answered:
        return call.answered
    if asked.stream:
        return CreatedStream(call, ResponseEvents(await call.record(), spec.front))
    if asked.background:
        record = await call.record()
        found = await call.ended() if record.terminal else StoredResult(record, None)
        return answer(answered.response(found, spec.front), 200, call.out() | polled(record))
    [found] = await call.results()
    await call.told()
    if not answers(found):
        return failed(found.record, call.out())
    return answer(answered.response(found, spec.front), 200, call.out())


@router.get("/v1/responses/{response_id}", include_in_schema=False)
async def retrieve(
    request: Request,
    response_id: ResponseId,
    stream: bool = False,
    starting_after: Annotated[int | None, Query(ge=0, le=follow.SEQ_MAX)] = None,
    include_obfuscation: bool = False,  # taken for the SDKs' sake
    include: Includes = None,
) -> Response:
    """A response as it stands; with `stream` its events, all or those after a number."""
    here = edge(request)
    found, front = await stored.look(here.results, response_id, who(request).sees)
    if not stream:
        if starting_after is not None:
            raise InvalidField("starting_after", starting_after, "a number only together with stream=true")
        return answer(answered.response(found, front), 200, polled(await here.results.placed(found.record)))
    after = -1 if starting_after is None else starting_after
    last = request.headers.get("last-event-id", "").strip()
    events = ResponseEvents(found.record, front, follow.resume_point(request.headers, after) if last else after)
    return FoundStream(here, found.record.id, events)


@router.post("/v1/responses/{response_id}/cancel", include_in_schema=False)
async def cancel(request: Request, response_id: ResponseId) -> Response:
    """Stop a response in the background. One that has ended stays as it is; asking twice is fine."""
    here = edge(request)
    found, front = await stored.look(here.results, response_id, who(request).sees)
    if not front["response"]["background"]:
        raise InvalidField("background", False, "true: any other response ends with its caller, or has ended")
    if not found.record.terminal:
        await here.audited(request, response_id, found.record.user)
        await here.queue.cancel(found.record.id)
        found, front = await stored.look(here.results, response_id, who(request).sees)
    return answer(answered.response(found, front))


@router.delete("/v1/responses/{response_id}", include_in_schema=False)
async def delete(request: Request, response_id: ResponseId) -> Response:
    """Forget a response, and stop it if it has not ended."""
    here = edge(request)
    found, _ = await stored.look(here.results, response_id, who(request).sees)
    await here.audited(request, response_id, found.record.user)
    with contextlib.suppress(NotFound):  # another caller was quicker
        await here.queue.erase(found.record.id)
    return answer({"id": response_id, "object": "response", "deleted": True})


@router.get("/v1/responses/{response_id}/input_items", include_in_schema=False)
async def input_items(
    request: Request,
    response_id: ResponseId,
    limit: Annotated[int, Query(ge=1, le=MOST_LISTED)] = 20,
    order: Literal["asc", "desc"] = "desc",
    after: Annotated[str | None, Query(max_length=200)] = None,
    include: Includes = None,
) -> Response:
    """The conversation that a response answered, earlier responses' part of it included; the newest item first."""
    items = stored.asked_items(*await stored.look(edge(request).results, response_id, who(request).sees))
    if order == "desc":
        items.reverse()
    if after is not None:
        ids = [item["id"] for item in items]
        if after not in ids:
            raise InvalidField("after", after, "the id of an item of this response")
        items = items[ids.index(after) + 1 :]
    page = items[:limit]
    ends: dict[str, Any] = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {}
    ends = ends or {"first_id": "", "last_id": ""}  # OpenAI's schema has no null here
    return answer({"object": "list", "data": page, **ends, "has_more": len(items) > limit})


class FoundStream(follow.Stream):
    """The events of a response that is there already. Its reader may go and come back."""

    def __init__(self, here: Edge, job_id: str, events: ResponseEvents, headers: dict[str, str] | None = None) -> None:
        super().__init__(here.stopping, headers)
        self._here = here
        self._job_id = job_id
        self._events = events

    async def forward(self, send: Send) -> None:
        """Send the events, then the whole response."""
        try:
            async with contextlib.aclosing(self._job_events()) as together:
                async for events in together:
                    await self._send(send, b"".join(map(self._events.take, events)))
            found = await self._here.results.look(self._job_id)
            last = self._events.end(found)
            await self.told()
        except NotFound:
            last = self._events.broken("not_found", "the response was deleted")
        except EventsGone as gone:
            last = self._events.broken("events_gone", str(gone))
        await self._send(send, last)

    def _job_events(self) -> AsyncGenerator[list[JobEvent]]:
        return self._here.results.follow_together(self._job_id)

    async def _send(self, send: Send, body: bytes) -> None:
        if body:
            await send({"type": "http.response.body", "body": body, "more_body": True})

    async def told(self) -> None:
        """All is known that the last event will tell."""


class CreatedStream(FoundStream):
    """The events of a response from its beginning, for the caller who asked for it."""

    def __init__(self, call: Call, events: ResponseEvents) -> None:
        super().__init__(call.here, call.job_id, events, call.out())
        self._call = call

    async def told(self) -> None:
        """What was not to be stored goes before its end is told."""
        await self._call.told()

    async def left(self) -> None:
        """The reader has gone before the end."""
        await self._call.left()
