"""The addresses about webhooks: standing endpoints as OpenAI's SDK calls them, and deliveries, which are ours.

An endpoint is its key's owner's; without keys, `user` says whose. A secret is in the one answer that made it.
"""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import Response

from common.destinations import parse
from common.endpoints import Endpoint, Endpoints, Secret
from common.errors import NoDelivery, NoEndpoint, StoreUnavailable
from common.outbox import Delivery, Outbox
from common.webhooks import EVENT_TYPES, hint, new_key, new_secret, public_key
from producer.asked import read
from producer.auth import who
from producer.edge import Edge, edge
from producer.openapi import answers
from producer.problems import Refusal
from producer.record import answer
from producer.submit import check_webhook_url
from producer.webhook_schemas import (
    ChangedEndpoint,
    DeliveriesOut,
    DeliveriesQuery,
    DeliveryWithAttemptsOut,
    EndpointsQuery,
    NewEndpoint,
    Rotation,
    Trial,
)

router = APIRouter()
#: A sample is waited for a little longer than an attempt may take.
SAMPLE_MARGIN_S = 2.0
LOOK_EVERY_S = 0.1
DeliveryId = Annotated[str, Path(description="A delivery's id.", examples=["dlv_0006fq3k9tma7w2xv5hc8n1re4d"])]


@router.post("/v1/webhook_endpoints", include_in_schema=False)
async def create(request: Request) -> Response:
    """Make an endpoint; the answer has its secret."""
    here, asked = edge(request), await read(NewEndpoint, request)
    user = who(request).user(asked.user)
    check_webhook_url(here.submitter.destinations, "url", asked.url)
    secret = _secret(asked.secret, asked.signature)

    def made(endpoint_id: str, now: float) -> Endpoint:
        return Endpoint(
            id=endpoint_id,
            user=user,
            url=asked.url,
            name=asked.name,
            event_types=tuple(dict.fromkeys(asked.event_types)),
            payload=asked.payload,
            secrets=(Secret(secret),),
            created_at=now,
            updated_at=now,
        )

    endpoint = await _endpoints(here).create(made, user)
    return answer({**endpoint_out(endpoint), "signing_secret": secret})


@router.get("/v1/webhook_endpoints", include_in_schema=False)
async def list_endpoints(request: Request, query: Annotated[EndpointsQuery, Query()]) -> Response:
    """Endpoints, newest first."""
    found = (await _endpoints(edge(request)).all(who(request).listed(query.user)))[::-1]
    ids = [one.id for one in found]
    if query.after is not None:
        found = found[ids.index(query.after) + 1 :] if query.after in ids else []
    data = [endpoint_out(one) for one in found[: query.limit]]
    first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    page = {"object": "list", "data": data, "has_more": len(found) > query.limit, "first_id": first, "last_id": last}
    return answer(page)


@router.get("/v1/webhook_endpoints/{endpoint_id}", include_in_schema=False)
async def endpoint(request: Request, endpoint_id: str) -> Response:
    """One endpoint."""
    return answer(endpoint_out(await _owned(request, endpoint_id)))


@router.post("/v1/webhook_endpoints/{endpoint_id}", include_in_schema=False)
async def change(request: Request, endpoint_id: str) -> Response:
    """Change an endpoint; enabled again, it hears of what ends from now on."""
    here, asked = edge(request), await read(ChangedEndpoint, request)
    await _owned(request, endpoint_id)
    if asked.url is not None:
        check_webhook_url(here.submitter.destinations, "url", asked.url)

    def changed(one: Endpoint) -> Endpoint:
        given = {name: value for name, value in asked.model_dump(exclude={"enabled"}).items() if value is not None}
        if asked.event_types is not None:
            given["event_types"] = tuple(dict.fromkeys(asked.event_types))
        if asked.enabled is not None:
            given["disabled"] = None if asked.enabled else "by request"
        return msgspec.structs.replace(one, **given, updated_at=time.time())

    return answer(endpoint_out(await _endpoints(here).change(endpoint_id, changed)))


@router.delete("/v1/webhook_endpoints/{endpoint_id}", include_in_schema=False)
async def delete(request: Request, endpoint_id: str) -> Response:
    """Remove an endpoint; what waits for it is not sent."""
    await _owned(request, endpoint_id)
    await _endpoints(edge(request)).delete(endpoint_id)
    return answer({"id": endpoint_id, "object": "webhook_endpoint.deleted", "deleted": True})


@router.post("/v1/webhook_endpoints/{endpoint_id}/rotate_secret", include_in_schema=False)
async def rotate_secret(request: Request, endpoint_id: str) -> Response:
    """A new secret; the old one signs beside it for as long as was asked."""
    asked = await read(Rotation, request)
    before = await _owned(request, endpoint_id)
    secret = _secret(asked.secret, asked.signature or _kind(before.secrets[0].text))
    rotated = await _endpoints(edge(request)).change(
        endpoint_id, lambda one: one.rotated(secret, asked.keep_s, time.time())
    )
    return answer({**endpoint_out(rotated), "signing_secret": secret})


@router.post("/v1/webhook_endpoints/{endpoint_id}/test", include_in_schema=False)
async def test(request: Request, endpoint_id: str) -> Response:
    """Send a sample and say what the receiver answered. A delivery worker sends it, as it would any other."""
    here, asked = edge(request), await read(Trial, request)
    found = await _owned(request, endpoint_id)
    outbox = _outbox(here)
    sample = await outbox.sample(endpoint_id, found.user, asked.event_type)
    deadline = time.monotonic() + here.settings.webhook_timeout_s + SAMPLE_MARGIN_S
    while not (tried := await outbox.attempts(sample)):
        if time.monotonic() > deadline or here.stopping.is_set():
            raise StoreUnavailable("no delivery worker took the sample")
        await asyncio.sleep(LOOK_EVERY_S)
    if tried[0].status is None:
        raise Refusal(424, "url", tried[0].error, "a receiver that answers")
    return answer(
        {
            "object": "webhook_endpoint.test",
            "success": True,
            "status_code": tried[0].status,
            "event_type": asked.event_type,
            "webhook_endpoint_id": endpoint_id,
        }
    )


@router.get("/v1/webhook_event_types", include_in_schema=False)
async def event_types() -> Response:
    """Every event there is."""
    return answer({"object": "list", "data": EVENT_TYPES})


@router.get(
    "/v1/webhook_deliveries",
    tags=["webhooks"],
    summary="Deliveries of webhooks",
    responses=answers({200: (DeliveriesOut, "One page.")}, 422, 503),
)
async def deliveries(request: Request, query: Annotated[DeliveriesQuery, Query()]) -> Response:
    """What was told or is to be told, newest first. With a narrow filter a page may be shorter than `limit`."""
    asked = query.model_dump() | {"user": who(request).listed(query.user)}
    page = await _outbox(edge(request)).page(**asked)
    data = [delivery_out(one) for one in page.deliveries]
    return answer({"object": "list", "data": data, "has_more": page.next is not None, "next": page.next})


@router.get(
    "/v1/webhook_deliveries/{delivery_id}",
    tags=["webhooks"],
    summary="A delivery and its attempts",
    responses=answers({200: (DeliveryWithAttemptsOut, "The delivery.")}, 404, 503),
)
async def delivery(request: Request, delivery_id: DeliveryId) -> Response:
    """A delivery with its last 20 attempts, oldest first: when, where to, what came back."""
    return answer(await _with_attempts(request, delivery_id))


@router.post(
    "/v1/webhook_deliveries/{delivery_id}/redeliver",
    status_code=202,
    tags=["webhooks"],
    summary="Deliver again",
    responses=answers({202: (DeliveryWithAttemptsOut, "It is due now.")}, 404, 503),
)
async def redeliver(request: Request, delivery_id: DeliveryId) -> Response:
    """Send an event again now, whatever became of it, with its old id; the schedule begins anew."""
    found = await _owned_delivery(request, delivery_id)
    await edge(request).audited(request, delivery_id, found.user)
    await _outbox(edge(request)).redeliver(delivery_id)
    return answer(await _with_attempts(request, delivery_id), 202)


def endpoint_out(one: Endpoint) -> dict[str, Any]:
    """An endpoint, without its secrets."""
    newest = one.secrets[0].text
    return {
        "id": one.id,
        "object": "webhook_endpoint",
        "url": one.url,
        "name": one.name,
        "event_types": one.event_types,
        "user": one.user,
        "payload": one.payload,
        "status": "disabled" if one.disabled else "enabled",
        "disabled_reason": one.disabled,
        "signature": _kind(newest),
        "public_key": public_key(newest),
        "signing_secret_hint": hint(newest),
        "secrets_valid": len(one.valid(time.time())),
        "created_at": int(one.created_at),
        "updated_at": int(one.updated_at),
    }


def delivery_out(one: Delivery) -> dict[str, Any]:
    """A delivery, without what is secret in its address."""
    return {
        "id": one.id,
        "object": "webhook_delivery",
        "event": one.event,
        "type": one.type,
        "status": one.status,
        "job": one.job,
        "subject": one.subject,
        "user": one.user,
        "endpoint": one.endpoint,
        "url": parse(one.hook.url).shown if one.hook and one.hook.url else None,
        "attempts": one.attempts,
        "created_at": one.at_ms / 1000,
        "next_attempt_at": one.due_ms / 1000 if one.due_ms is not None and one.status == "pending" else None,
        "ended_at": one.ended_ms / 1000 if one.ended_ms is not None else None,
    }


async def _owned(request: Request, endpoint_id: str) -> Endpoint:
    """An endpoint that its caller may see. Raises NoEndpoint."""
    found = await _endpoints(edge(request)).get(endpoint_id)
    if not who(request).may_see(found.user):
        raise NoEndpoint(endpoint_id)
    if request.method != "GET":
        await edge(request).audited(request, endpoint_id, found.user)
    return found


async def _owned_delivery(request: Request, delivery_id: str) -> Delivery:
    """A delivery that its caller may see. Raises NoDelivery."""
    found = await _outbox(edge(request)).get(delivery_id)
    if not who(request).may_see(found.user):
        raise NoDelivery(delivery_id)
    return found


async def _with_attempts(request: Request, delivery_id: str) -> dict[str, Any]:
    outbox = _outbox(edge(request))
    found = await _owned_delivery(request, delivery_id)
    names = ("at", "took_ms", "status", "error", "address", "shown")
    log = [{name: getattr(one, name) for name in names} for one in await outbox.attempts(delivery_id)]
    return {**delivery_out(found), "log": log}


def _endpoints(here: Edge) -> Endpoints:
    return Endpoints(here.queue.redis, here.settings)


def _outbox(here: Edge) -> Outbox:
    return Outbox(here.queue.redis, here.settings)


def _secret(given: str | None, signature: str) -> str:
    if given is None:
        return new_key() if signature == "ed25519" else new_secret()
    return given


def _kind(secret: str) -> str:
    return "ed25519" if public_key(secret) else "hmac"
