"""The job behind a request, checked as any job is, with what OpenAI leaves to be understood."""

from __future__ import annotations

from typing import Any

import msgspec

from common.jobs import JobSpec
from producer.submit import Submitter

LOCAL = ("vllm", "fake")  # engines that know how much room a prompt leaves


async def spec_of(body: dict[str, Any], submitter: Submitter) -> JobSpec:
    """The job that a body of `/v1/jobs` describes; raises for the first thing that is wrong with it."""
    spec = await submitter.spec_of(body)
    if spec.kind != "generation" or "max_tokens" in spec.params:
        return spec
    model = submitter.catalogue.get(spec.kind, spec.model)
    if model.engine not in LOCAL or "max_tokens" in model.defaults:
        return spec
    # OpenAI's default is all the room that there is: the engine cuts this to what the prompt leaves.
    return msgspec.structs.replace(spec, params={**spec.params, "max_tokens": model.max_model_len})
