"""The job behind a request for a response: checked as any job is, with all that is needed to tell of it later."""

from __future__ import annotations

import msgspec

from common.errors import InvalidField
from common.jobs import JobSpec
from common.results import Results
from producer.openai.responses import stored
from producer.openai.responses.asked import ResponseAsked, renamed
from producer.openai.responses.truncated import fitting
from producer.openai.specs import spec_of
from producer.submit import Submitter, check_webhook_url


async def job_spec(asked: ResponseAsked, submitter: Submitter, results: Results) -> JobSpec:
    """The checked job; raises any error that has a row in `PROBLEMS`, with the names that fields have here."""
    earlier = asked.previous_response_id
    items = asked.items(await stored.conversation(results, earlier) if earlier else [])
    model = submitter.catalogue.get("generation", asked.model)
    turns = asked.messages(items)
    if asked.truncation == "auto":
        turns = await fitting(turns, model, asked.max_output_tokens, submitter.prompts)
    try:
        spec = await spec_of(asked.job(turns), submitter)
    except InvalidField as error:
        raise renamed(error) from None
    if asked.webhook:
        check_webhook_url(submitter.destinations, "webhook.url", asked.webhook.url)
    return msgspec.structs.replace(spec, front=asked.front(items, model), hook=asked.hook)
