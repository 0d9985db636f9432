"""`/v1/admin`: API keys and the audit of what was done to them. Only a key with the scope `admin` gets here."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel, Field

from common.access import LONGEST_NAME, OWNER_PATTERN, SCOPES, ApiKey
from common.api_keys import LONGEST_GRACE_S, LONGEST_LIFE_S, ApiKeys, Asked, key_out
from producer.asked import read
from producer.auth import who
from producer.edge import Edge, edge
from producer.openapi import answers, body_of
from producer.record import answer
from producer.strict import Strict

router = APIRouter(prefix="/v1/admin", tags=["admin"])
KeyId = Annotated[str, Path(description="An API key's id.", examples=["k3q9tma7w2xv"])]
DAY_S = 86_400.0
LIMITS = "Its own limits, each as on the command line: `requests=100/3600s`, `in_progress=4`, `weight=2`."


class NewKeyAsked(Strict):
    """An API key to make."""

    name: str = Field(min_length=1, max_length=LONGEST_NAME, description="What you call it.")
    tier: str = Field(max_length=64, description="One of the tiers of the settings.", examples=["free"])
    owner: str | None = Field(
        None, pattern=f"^{OWNER_PATTERN}$", description="Whose jobs its jobs are; its name, if left out."
    )
    limits: list[str] = Field([], max_length=32, description=LIMITS)
    scopes: list[str] = Field(["jobs"], min_length=1, max_length=3, description=f"Of {', '.join(SCOPES)}.")
    expires_s: float | None = Field(
        None, gt=0, le=LONGEST_LIFE_S, description="How long it counts; for ever if left out."
    )


class RotationAsked(Strict):
    """How a key's secret changes."""

    grace_s: float = Field(
        DAY_S, ge=0, le=LONGEST_GRACE_S, description="How long the old secret counts beside the new."
    )


class LimitsAsked(Strict):
    """What a key may use from now on."""

    limits: list[str] = Field(max_length=32, description=f"{LIMITS} They replace those it had.")
    tier: str | None = Field(None, max_length=64, description="Another tier; left out, it stays in its tier.")


class AuditQuery(Strict):
    """Which page of the audit."""

    after: str | None = Field(None, pattern=r"^\d{1,15}-\d{1,19}$", description="`next` of the page before.")
    limit: int = Field(50, ge=1, le=200, description="Most entries to answer.", strict=False)


class ApiKeyOut(BaseModel):
    """An API key, without what could be used in its place."""

    id: str
    object: str
    name: str
    owner: str
    tier: str
    limits: list[str] = Field(description="Its own limits.")
    effective_limits: list[str] | None = Field(description="With its tier's; null when the settings lack the tier.")
    scopes: list[str]
    status: str = Field(description="active, expired or revoked.")
    created_at: float | None
    expires_at: float | None
    revoked_at: float | None
    last_used_at: float | None = Field(description="To the minute.")
    old_secret_until: float | None = Field(description="While the secret before the last rotation counts too.")


class ApiKeyWithTextOut(ApiKeyOut):
    """An API key that was just made or rotated."""

    key: str = Field(description="The key itself. It is in no other answer.")


class ApiKeysOut(BaseModel):
    """Every API key, newest first."""

    object: str
    data: list[ApiKeyOut]


class AuditedOut(BaseModel):
    """Who did what to which key, or to which thing of another owner."""

    id: str
    at: float
    actor: str = Field(description="`key:<id>`, or `cli:<name>` for the command line on the server's machine.")
    action: str = Field(description="create, rotate, revoke, limits; or method and address of another call.")
    thing: str = Field(description="Id of the key or the other thing.")
    owner: str
    detail: dict[str, Any]


class AuditOut(BaseModel):
    """A page of the audit, newest first."""

    object: str
    data: list[AuditedOut]
    has_more: bool
    next: str | None = Field(description="Cursor for `after`.")


@router.post(
    "/keys",
    status_code=201,
    summary="Make an API key",
    responses=answers({201: (ApiKeyWithTextOut, "The key, and its text, once.")}, 400, 413, 415, 422, 429, 503),
    openapi_extra=body_of(NewKeyAsked),
)
async def create(request: Request) -> Response:
    """Make a key. Its text is in this answer only: what is stored is its SHA-256."""
    here, asked = edge(request), await read(NewKeyAsked, request)
    wanted = Asked(
        name=asked.name,
        tier=asked.tier,
        owner=asked.owner,
        limits=tuple(asked.limits),
        scopes=tuple(dict.fromkeys(asked.scopes)),
        expires_s=asked.expires_s,
    )
    made = await _keys(here).create(wanted, _actor(request))
    assert made
    return answer({**key_out(made[0], here.settings), "key": made[1].text}, 201)


@router.get("/keys", summary="Every API key", responses=answers({200: (ApiKeysOut, "All keys.")}, 503))
async def list_keys(request: Request) -> Response:
    """Every key, newest first, those that were revoked too."""
    here = edge(request)
    return answer({"object": "list", "data": [key_out(one, here.settings) for one in (await _keys(here).all())[::-1]]})


@router.get("/keys/{key_id}", summary="An API key", responses=answers({200: (ApiKeyOut, "The key.")}, 404, 503))
async def key(request: Request, key_id: KeyId) -> Response:
    """One key, without its text."""
    here = edge(request)
    return _answer(here, await _keys(here).get(key_id))


@router.post(
    "/keys/{key_id}/rotate",
    summary="Give an API key another secret",
    responses=answers(
        {200: (ApiKeyWithTextOut, "The key, and its new text, once.")}, 400, 404, 409, 413, 415, 422, 503
    ),
    openapi_extra=body_of(RotationAsked, required=False),
)
async def rotate(request: Request, key_id: KeyId) -> Response:
    """Another secret under the same id; the one before counts for `grace_s` seconds more."""
    here, asked = edge(request), await read(RotationAsked, request)
    rotated, new = await _keys(here).rotate(key_id, asked.grace_s, _actor(request))
    return answer({**key_out(rotated, here.settings), "key": new.text})


@router.post(
    "/keys/{key_id}/revoke",
    summary="Revoke an API key",
    responses=answers({200: (ApiKeyOut, "The key.")}, 404, 503),
)
async def revoke(request: Request, key_id: KeyId) -> Response:
    """The key counts no more, in every web process within `key_cache_s`. Its jobs go on; asking twice is fine."""
    here = edge(request)
    return _answer(here, await _keys(here).revoke(key_id, _actor(request)))


@router.put(
    "/keys/{key_id}/limits",
    summary="Change what an API key may use",
    responses=answers({200: (ApiKeyOut, "The key.")}, 400, 404, 409, 413, 415, 422, 503),
    openapi_extra=body_of(LimitsAsked),
)
async def set_limits(request: Request, key_id: KeyId) -> Response:
    """Other limits in place of its own, and another tier if one is given; they hold from the next call on."""
    here, asked = edge(request), await read(LimitsAsked, request)
    return _answer(here, await _keys(here).set_limits(key_id, asked.tier, asked.limits, _actor(request)))


@router.get("/audit", summary="What admins did", responses=answers({200: (AuditOut, "One page.")}, 422, 503))
async def audit(request: Request, query: Annotated[AuditQuery, Query()]) -> Response:
    """Who made, rotated, revoked or changed which key, and what admins did to other owners' things: cancelled, retried,
    deleted, changed, sent again. Newest first; the last 10,000 entries are kept."""
    found = await _keys(edge(request)).audited(query.after, query.limit + 1)
    data = found[: query.limit]
    following = data[-1].id if len(found) > len(data) else None
    return answer({"object": "list", "data": data, "has_more": following is not None, "next": following})


def _keys(here: Edge) -> ApiKeys:
    return ApiKeys(here.queue.redis, here.settings)


def _actor(request: Request) -> str:
    return f"key:{who(request).key}"


def _answer(here: Edge, one: ApiKey) -> Response:
    return answer(key_out(one, here.settings))
