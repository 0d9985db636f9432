"""The job behind a request, checked as any job is, with what OpenAI leaves to be understood."""

from __future__ import annotations

from typing import Any

import msgspec

from common.access import Principal
from common.jobs import JobSpec
from producer.submit import Submitter

LOCAL = ("vllm", "fake")  # engines that know how much room a prompt leaves


async def spec_of(body: dict[str, Any], who: Principal, submitter: Submitter) -> JobSpec:
    """The job that a body of `/v1/jobs` describes; raises for the first thing that is wrong with it."""
    spec = await submitter.spec_of(of_caller(body, who), who)
    if spec.kind != "generation" or "max_tokens" in spec.params:
        return spec
    model = submitter.catalogue.get(spec.kind, spec.model)
    if model.engine not in LOCAL or "max_tokens" in model.defaults:
        return spec
    # OpenAI's default is all the room that there is: the engine cuts this to what the prompt leaves.
    return msgspec.structs.replace(spec, params={**spec.params, "max_tokens": model.max_model_len})


def of_caller(body: dict[str, Any], who: Principal) -> dict[str, Any]:
    """A body without its `user` when a key says whose it is: OpenAI's field names somebody behind the caller."""
    return {name: value for name, value in body.items() if name != "user"} if who.key else body
