"""Responses that were made earlier: found by their id, in the record of their job."""

from __future__ import annotations

from typing import Any

from common.errors import NoEarlierResponse, NotFound, ResponseNotFound
from common.results import Results, StoredResult
from common.states import State
from producer.openai.responses import answered
from producer.openai.responses.items import Item, named

Front = dict[str, Any]


def job_of(response_id: str) -> str:
    """The id of a response's job."""
    return f"job_{response_id.removeprefix('resp_')}" if response_id.startswith("resp_") else ""


async def look(results: Results, response_id: str, owner: str | None) -> tuple[StoredResult, Front]:
    """A stored response of this owner: its job as it stands, and what was kept with it. Raises ResponseNotFound."""
    try:
        found, work = await results.whole(job_of(response_id), owner)
    except (NotFound, FileNotFoundError):
        raise ResponseNotFound(response_id) from None
    if not work.front.get("response", {}).get("store"):
        raise ResponseNotFound(response_id)
    return found, work.front


async def conversation(results: Results, response_id: str, owner: str | None) -> list[Item]:
    """All that was said up to the end of a response. Raises NoEarlierResponse unless it was answered."""
    try:
        found, front = await look(results, response_id, owner)
    except ResponseNotFound:
        raise NoEarlierResponse(response_id, "not found") from None
    if found.output is None or found.record.status not in (State.COMPLETED, State.INCOMPLETE):
        raise NoEarlierResponse(response_id, f"is {found.record.status}: it has no answer to go on from")
    output: list[Item] = answered.response(found, front)["output"]
    return asked_items(found, front) + output


def asked_items(found: StoredResult, front: Front) -> list[Item]:
    """The conversation that a response answered, each item with its id."""
    return named(front["items"], answered.short_of(found.record.id))
