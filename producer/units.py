"""What a job may need at most, before it has run: tokens or seconds of audio, and money.

A key's limits are held against this when the job is accepted, and set right when it ends. It is an upper bound
wherever that can be known: what is counted too high comes back, what is counted too low was let through too early.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import msgspec

from common.blobs import Blobs
from common.catalogue import Catalogue, Model
from common.cost import Cost
from common.jobs import JobSpec, encode
from common.limits import Left
from common.settings import Settings
from producer.conversation import images, texts
from producer.duration import HEAD, TAIL, seconds_of, seconds_told
from producer.prompt import NOT_BYTES, Prompts
from producer.upload import Recording

#: What a job gets that names no `max_tokens`, nor does its model (`workers/answer.py` has the same).
DEFAULT_MAX_TOKENS = 256
#: What a chat template may add: to a conversation (a system prompt of its own), and to each of its messages.
TEMPLATE_TOKENS, MESSAGE_TOKENS = 64, 16
REMEMBERED = 10_000


class Metering:
    """Measures jobs for their keys' limits; one for each process.

    To count a prompt's tokens costs as much as to submit it: that is done for keys with a limit on them, and for keys
    of which nothing is known yet; for others a token is taken for a byte.
    """

    def __init__(self, catalogue: Catalogue, settings: Settings, prompts: Prompts, blobs: Blobs) -> None:
        self.catalogue = catalogue
        self.settings = settings
        self.prompts = prompts
        self.blobs = blobs
        self._metered: OrderedDict[str, bool] = OrderedDict()

    def learn(self, api_key: str, limits: Iterable[Left]) -> None:
        """Note from an answer of the queue whether a key has limits that need a count."""
        if not api_key:
            return
        self._metered[api_key] = any(one.what in ("tokens", "cost") for one in limits)
        self._metered.move_to_end(api_key)
        if len(self._metered) > REMEMBERED:
            self._metered.popitem(last=False)

    async def measured(self, spec: JobSpec) -> JobSpec:
        """The job with what it may need."""
        model = self.catalogue.get(spec.kind, spec.model)
        exact = bool(spec.api_key) and self._metered.get(spec.api_key, True)
        if spec.kind == "transcription":
            most = {"audio_seconds": await self._seconds(spec.input.get("audio"))}
        elif spec.kind == "embedding":
            most = {"prompt_tokens": await self._embedded(model, spec, exact)}
        else:
            most = await self._generated(model, spec, exact)
        cost = 0
        if model.cost or model.fallback:
            cost = max(_micros(one.cost, most) for one in self.catalogue.chain(model))
        return msgspec.structs.replace(spec, units=sum(most.values()), cost_micros=cost)

    async def _generated(self, model: Model, spec: JobSpec, exact: bool) -> dict[str, int]:
        params = {**model.defaults, **spec.params}
        answers, room = params.get("n") or 1, model.max_model_len
        prompt = min(await self._prompt(model, spec.input, params, exact), room)
        each = min(params.get("max_tokens") or DEFAULT_MAX_TOKENS, room)
        if answers == 1:
            prompt = min(prompt, max(1, room - each)) if each < room else prompt
            return {"prompt_tokens": prompt, "completion_tokens": min(each, room - prompt)}
        return {"prompt_tokens": prompt, "completion_tokens": each * answers}

    async def _prompt(self, model: Model, asked: dict[str, Any], params: dict[str, Any], exact: bool) -> int:
        if "prompt" in asked:
            return await self._tokens(model, [asked["prompt"]], exact)
        messages = asked["messages"]
        words: list[str] = []
        around = TEMPLATE_TOKENS + MESSAGE_TOKENS * len(messages)
        for message in messages:
            content = message.get("content")
            if isinstance(content, str):
                words.append(content)
            elif images(content):
                return model.max_model_len  # how many tokens an image becomes, its model alone knows
            else:
                words += texts(content)
            for name in ("tool_calls", "reasoning"):
                # What a template writes of calls and tools is JSON, of which a token is a byte at least.
                around += len(encode(message[name])) if message.get(name) else 0
        around += len(encode(params["tools"])) if params.get("tools") else 0
        return await self._tokens(model, words, exact) + around

    async def _embedded(self, model: Model, spec: JobSpec, exact: bool) -> int:
        prompt = spec.params.get("input_type") or model.defaults.get("input_type") or model.default_prompt
        before = model.prompts.get(prompt, "") if prompt else ""
        given = spec.input["texts"]
        most = await self._tokens(model, [before + text for text in given] if before else given, exact)
        return min(most, len(given) * model.max_model_len)

    async def _tokens(self, model: Model, words: list[str], exact: bool) -> int:
        counted = await self.prompts.exact(model, words, special=True) if exact else None
        # A token covers at least one byte.
        return sum(map(_bytes, words)) + NOT_BYTES * len(words) if counted is None else counted

    async def _seconds(self, audio: Any) -> int:
        most = int(self.settings.max_audio_s)
        if isinstance(audio, Recording):
            return min(most, await asyncio.to_thread(seconds_of, audio.file))
        try:  # a batch's line names a file that is stored already
            size = await self.blobs.length(audio)
            head, tail = await self.blobs.read(audio, 0, HEAD), await self.blobs.read(audio, max(0, size - TAIL), TAIL)
        except FileNotFoundError:
            return most
        return min(most, seconds_told(head, tail, size))


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _micros(cost: Cost | None, most: dict[str, int]) -> int:
    return int(cost.of({**most})["cost_micros"]) if cost else 0
