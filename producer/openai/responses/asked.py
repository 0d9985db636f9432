"""What `POST /v1/responses` takes, the job that it stands for, and what is kept with that job to tell later.

As on the other addresses, fields that only concern OpenAI's own service change nothing, and those that would change the
answer and that nothing here does are refused by name.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import msgspec
from pydantic import BaseModel, ConfigDict, Field, PlainValidator

from common.catalogue import Model
from common.errors import InvalidField
from common.webhooks import Hook
from producer.explain import Invalid
from producer.openai.asked import LANES, SERVED, Tier, Unsupported, user_of
from producer.openai.responses.items import Item, messages_of, read_items
from producer.schemas import Metadata
from producer.webhook_schemas import ResponseWebhook

#: Sampling parameters of a job that have the same name here; all but the first two are vLLM's.
SAME = (
    "temperature", "top_p", "presence_penalty", "frequency_penalty", "stop", "seed",
    "top_k", "min_p", "repetition_penalty", "min_tokens", "ignore_eos",
)  # fmt: skip
IDENTIFIERS = ("prompt_cache_key", "safety_identifier", "user")
LOGPROBS = "message.output_text.logprobs"
Included = Literal["message.output_text.logprobs", "message.input_image.image_url", "reasoning.encrypted_content"]
TOOL_CHOICE = 'auto, none, required or {"type": "function", "name"}'
#: How the fields of a job are called here.
NAMES = (
    (re.compile(r"\binput\.messages[\w.\[\]]*"), "input"),
    (re.compile(r"\bparams\.max_tokens\b"), "max_output_tokens"),
    (re.compile(r"\bparams\.response_format(\.json_schema)?\b"), "text.format"),
    (re.compile(r"\bparams\.logprobs\b"), "include"),
    (re.compile(r"\bparams\.tools\[(\d+)\]\.function\b"), r"tools[\1]"),
    (re.compile(r"\bparams\."), ""),
)


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class StreamOptions(_Part):
    """How events are sent."""

    include_obfuscation: bool | None = None


class Reasoning(_Part):
    """How to think; a model's own chat template decides."""

    effort: str | None = Field(None, max_length=32)
    summary: str | None = Field(None, max_length=32)
    generate_summary: str | None = Field(None, max_length=32)
    context: str | None = Field(None, max_length=32)
    mode: str | None = Field(None, max_length=32)


class Text(_Part):
    """What the answer's text is to be."""

    format: dict[str, Any] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


def _tool(value: Any) -> Any:
    if not isinstance(value, dict) or value.get("type") != "function":
        raise ValueError('allowed: {"type": "function", "name", "parameters"}; OpenAI\'s own tools are not here')
    known = ("type", "name", "description", "parameters", "strict")
    for name, given in value.items():
        if name not in known and given not in (None, [], {}, False):
            raise ValueError(f"{name}: allowed: {', '.join(known)}")
    return {name: value.get(name) for name in known if value.get(name) is not None}


Tool = Annotated[dict[str, Any], PlainValidator(_tool)]


def _conversation(value: Any) -> Any:
    """Ours has a key; OpenAI's is an id, or an object with one."""
    if value in (None, {}, []):
        return None
    if isinstance(value, dict) and "key" in value:
        return value
    raise ValueError('it is not supported here, other than {"key": ..., "mode": ...}')


class ResponseAsked(_Part):
    """`POST /v1/responses`."""

    model: str = Field(min_length=1, max_length=64)
    input: Any
    instructions: str | None = None
    previous_response_id: str | None = Field(None, max_length=64)
    background: bool | None = None
    store: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    include: list[Included] | None = None
    tools: list[Tool] | None = Field(None, max_length=128)
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: int | None = Field(None, ge=1)  # of OpenAI's own tools, of which there are none
    text: Text | None = None
    max_output_tokens: int | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    truncation: Literal["auto", "disabled"] | None = None
    metadata: Metadata | None = None
    service_tier: Tier | None = None
    reasoning: Reasoning | None = None
    user: str | None = Field(None, max_length=512)
    safety_identifier: str | None = Field(None, max_length=512)
    prompt_cache_key: str | None = Field(None, max_length=512)
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None
    temperature: Any = None
    top_p: Any = None
    presence_penalty: Any = None
    frequency_penalty: Any = None
    stop: Any = None
    seed: Any = None
    top_k: Any = None
    min_p: Any = None
    repetition_penalty: Any = None
    min_tokens: Any = None
    ignore_eos: Any = None
    webhook: ResponseWebhook | None = None  # ours: where its end is told
    access_programs: Unsupported = None
    background_options: Unsupported = None
    context_management: Unsupported = None
    conversation: Annotated[Any, PlainValidator(_conversation)] = None  # ours: its turns run one after another
    image: Unsupported = None
    moderation: Unsupported = None
    prompt: Unsupported = None

    @property
    def stored(self) -> bool:
        """Whether it can be asked for again."""
        return self.store is not False

    def items(self, earlier: list[Item]) -> list[Item]:
        """The conversation: that of the response it goes on from, and its own."""
        if self.background and not self.stored:
            raise InvalidField("background", True, "only with store: true, else nobody could ask for it")
        return earlier + read_items(self.input)

    def job(self, messages: list[dict[str, Any]]) -> dict[str, Any]:
        """The body of the same request to `/v1/jobs`."""
        params = {name: getattr(self, name) for name in SAME}
        params |= {"max_tokens": self.max_output_tokens, "response_format": _format(self.text)}
        if self.tools:
            tools = [_as_chat(tool) for tool in self.tools]
            params |= {"tools": tools, "tool_choice": _choice(self.tool_choice)}
            params["parallel_tool_calls"] = self.parallel_tool_calls
        if LOGPROBS in (self.include or []):
            params |= {"logprobs": True, "top_logprobs": self.top_logprobs or 0}
        job = {
            "kind": "generation",
            "model": self.model,
            "input": {"messages": messages},
            "params": {name: value for name, value in params.items() if value is not None},
            "priority": LANES[self.service_tier or "auto"],
            "metadata": self.metadata or {},
        }
        if self.conversation is not None:
            job["conversation"] = self.conversation
        return {**job, "user": user_of(self.user)} if self.user else job

    def messages(self, items: list[Item]) -> list[dict[str, Any]]:
        """What the model sees."""
        first = [{"role": "system", "content": self.instructions}] if self.instructions else []
        return first + messages_of(items)

    @property
    def hook(self) -> Hook | None:
        """How its end is told: one in the background, as OpenAI does it, to standing endpoints too."""
        if self.webhook:
            return msgspec.structs.replace(self.webhook.hook(), subject="response")
        return Hook(subject="response") if self.background else None

    def front(self, items: list[Item], model: Model) -> dict[str, Any]:
        """What is kept with the job: the response as far as it is known now, and its conversation."""
        return {"response": self._echo(model.defaults), "items": items}

    def _echo(self, defaults: dict[str, Any]) -> dict[str, Any]:
        text = self.text or Text()
        reasoning = self.reasoning or Reasoning()
        # These have no null in OpenAI's schema.
        given = {name: value for name in IDENTIFIERS if (value := getattr(self, name)) is not None}
        return {
            **given,
            "background": self.background or False,
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "max_tool_calls": self.max_tool_calls,
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "previous_response_id": self.previous_response_id,
            "reasoning": {"effort": reasoning.effort, "summary": reasoning.summary},
            "service_tier": SERVED[LANES[self.service_tier or "auto"]],
            "store": self.stored,
            "temperature": defaults.get("temperature", 1.0) if self.temperature is None else self.temperature,
            "text": {"format": text.format or {"type": "text"}, "verbosity": text.verbosity or "medium"},
            "tool_choice": self.tool_choice or "auto",
            "tools": [_whole(tool) for tool in self.tools or []],
            "top_logprobs": self.top_logprobs or 0,
            "top_p": defaults.get("top_p", 1.0) if self.top_p is None else self.top_p,
            "truncation": self.truncation or "disabled",
        }


def renamed(error: InvalidField) -> InvalidField:
    """The error of a job's field, with the name that the field has here."""
    if isinstance(error, Invalid):
        return Invalid([{name: _named(text) for name, text in entry.items()} for entry in error.entries])
    found = InvalidField(_named(error.field) or "", None, _named(error.allowed) or "")
    found.value = error.value
    found.args = (_named(str(error)),)
    return found


def _named(text: str | None) -> str | None:
    for pattern, name in NAMES:
        text = pattern.sub(name, text) if text else text
    return text


def _format(text: Text | None) -> dict[str, Any] | None:
    form = text.format if text else None
    if form is None or form.get("type") != "json_schema":
        return form
    return {"type": "json_schema", "json_schema": {name: value for name, value in form.items() if name != "type"}}


def _as_chat(tool: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}


def _whole(tool: dict[str, Any]) -> dict[str, Any]:
    return {"description": None, "parameters": None, "strict": True, **tool}


def _choice(value: Any) -> Any:
    if value is None or value in ("auto", "none", "required"):
        return value
    if not isinstance(value, dict) or value.keys() != {"type", "name"} or value["type"] != "function":
        raise InvalidField("tool_choice", value if isinstance(value, str) else "an object", TOOL_CHOICE)
    return {"type": "function", "function": {"name": value["name"]}}
