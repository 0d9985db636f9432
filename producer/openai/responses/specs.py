"""The job behind a request for a response: checked as any job is, with all that is needed to tell of it later."""

from __future__ import annotations

import msgspec

from common.access import Principal
from common.errors import InvalidField
from common.jobs import JobSpec
from common.results import Results
from producer.openai.responses import stored
from producer.openai.responses.asked import ResponseAsked, renamed
from producer.openai.responses.items import MOST_ITEMS, Item
from producer.openai.responses.truncated import fitting
from producer.openai.specs import spec_of
from producer.submit import Submitter, check_webhook_url

BODIES = 2  # a conversation may have the size of so many request bodies


async def job_spec(asked: ResponseAsked, who: Principal, submitter: Submitter, results: Results) -> JobSpec:
    """The checked job; raises any error that has a row in `PROBLEMS`, with the names that fields have here."""
    earlier = asked.previous_response_id
    items = asked.items(await stored.conversation(results, earlier, who.sees) if earlier else [])
    if earlier:
        _check_size(items, BODIES * submitter.settings.max_body_bytes)
    model = submitter.catalogue.get("generation", asked.model)
    turns = asked.messages(items)
    if asked.truncation == "auto":
        turns = await fitting(turns, model, asked.max_output_tokens, submitter.prompts)
    try:
        spec = await spec_of(asked.job(turns), who, submitter)
    except InvalidField as error:
        raise renamed(error) from None
    if asked.webhook:
        check_webhook_url(submitter.destinations, "webhook.url", asked.webhook.url)
    return msgspec.structs.replace(spec, front=asked.front(items, model), hook=asked.hook)


def _check_size(items: list[Item], most_bytes: int) -> None:
    # A conversation grows with every response that goes on from another, and each keeps all of it.
    size = len(msgspec.json.encode(items))
    if len(items) > MOST_ITEMS or size > most_bytes:
        allowed = f"a conversation of at most {MOST_ITEMS} items and {most_bytes} bytes, with what is added"
        raise InvalidField("previous_response_id", f"{len(items)} items, {size} bytes", allowed)
