"""GET /v1/usage: what was used, by day, model, API key and owner."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any, Literal, get_args

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from common.errors import InvalidField
from common.usage import COUNTED, GROUPS, Group, UsageSums, Used, total
from producer.auth import who
from producer.edge import edge
from producer.openapi import answers
from producer.record import answer
from producer.schemas import USER_PATTERN
from producer.strict import Strict

router = APIRouter()

LONGEST_DAYS = 400
USUAL_DAYS = 30


class UsageQuery(Strict):
    """Which usage."""

    model_config = ConfigDict(strict=False)

    first: date | None = Field(None, alias="from", description="First day (UTC); 29 days before `to` if left out.")
    last: date | None = Field(None, alias="to", description="Last day (UTC), itself included; today if left out.")
    group_by: str = Field(
        "day,model",
        max_length=64,
        description=f"What sums are told apart by, of {', '.join(GROUPS)}; empty: one sum of all.",
        examples=["day,model,api_key"],
    )
    owner: str | None = Field(None, pattern=USER_PATTERN, description="Only this owner's.")
    api_key: str | None = Field(None, pattern=r"^[a-z0-9]{0,64}$", description="Only this key's; empty: without a key.")


class UsedJobsOut(BaseModel):
    """Jobs by how they ended."""

    completed: int
    incomplete: int
    failed: int
    cancelled: int
    expired: int


class UsedOut(BaseModel):
    """One sum. A name by which sums are not told apart is null."""

    day: str | None = Field(examples=["2026-11-28"])
    model: str | None
    api_key: str | None = Field(description="Id of the key; empty for jobs that came without one.")
    owner: str | None
    jobs: UsedJobsOut
    prompt_tokens: int
    completion_tokens: int
    audio_seconds: int
    gpu_ms: int = Field(description="The jobs' parts of the time in which their workers were busy, in milliseconds.")
    cost_micros: dict[str, int] = Field(description="Millionths of each currency.", examples=[{"EUR": 1250}])


class UsageOut(BaseModel):
    """What was used. A job counts on the day on which it ended."""

    object: Literal["list"]
    from_: str = Field(alias="from", examples=["2026-11-01"])
    to: str = Field(examples=["2026-11-28"])
    group_by: list[Group]
    data: list[UsedOut]
    total: UsedOut


@router.get(
    "/v1/usage",
    tags=["usage"],
    summary="What was used",
    responses=answers({200: (UsageOut, "The sums.")}, 403, 422, 503),
)
async def usage(request: Request, query: Annotated[UsageQuery, Query()]) -> Response:
    """Jobs, tokens, audio, GPU time and cost by day, model, API key and owner: one's own, for an admin everybody's."""
    here = edge(request)
    last = query.last or datetime.now(UTC).date()
    first = query.first or last - timedelta(USUAL_DAYS - 1)
    if not 0 <= (last - first).days < LONGEST_DAYS:
        raise InvalidField("from", first.isoformat(), f"a day up to {last}, and at most {LONGEST_DAYS} days in all")
    groups = _groups(query.group_by)
    sums = UsageSums(here.queue.redis, here.settings)
    rows = await sums.used(first, last, groups, who(request).listed(query.owner, "owner"), query.api_key)
    document = {
        "object": "list",
        "from": first.isoformat(),
        "to": last.isoformat(),
        "group_by": groups,
        "data": [_used_out(row) for row in rows],
        "total": _used_out(total(rows)),
    }
    return answer(document)


def _groups(text: str) -> list[Group]:
    given = [name.strip() for name in text.split(",") if name.strip()]
    for name in given:
        if name not in get_args(Group):
            raise InvalidField("group_by", name, ", ".join(GROUPS))
    return [name for name in GROUPS if name in given]


def _used_out(row: Used) -> dict[str, Any]:
    return {
        "day": row.day and row.day.isoformat(),
        "model": row.model,
        "api_key": row.api_key,
        "owner": row.owner,
        "jobs": row.jobs,
        **{name: row.sums.get(name, 0) for name in COUNTED},
        "cost_micros": row.cost_micros,
    }
