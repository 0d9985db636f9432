"""What OpenAI's endpoints take, and the job that each request stands for.

Fields that only concern OpenAI's own service (`store`, cache and safety identifiers) are taken and change nothing.
Those that would change the answer and that no engine here does are refused by name. vLLM's own sampling fields are
taken too.
"""

from __future__ import annotations

import hashlib
import re
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError

from common.errors import InvalidField
from producer.explain import invalid_body
from producer.params import SEED_MAX
from producer.schemas import USER_PATTERN

Tier = Literal["auto", "default", "flex", "scale", "priority", "fast"]
LANES = {"auto": "normal", "default": "normal", "flex": "low", "scale": "high", "priority": "high", "fast": "high"}
SERVED = {"high": "priority", "normal": "default", "low": "flex"}
MOST_PROMPTS = 64
#: Sampling parameters of a job that have the same name here; the first ones are OpenAI's, the others vLLM's.
SAME = (
    "temperature", "top_p", "presence_penalty", "frequency_penalty", "stop", "n",
    "top_k", "min_p", "repetition_penalty", "min_tokens", "ignore_eos",
)  # fmt: skip
SAME_IN_CHAT = ("logprobs", "top_logprobs", "response_format", "tools", "tool_choice", "parallel_tool_calls")


def _nothing_like_it(value: Any) -> Any:
    if value in (None, {}, []):
        return None
    raise ValueError("it is not supported here")


#: A field of OpenAI's that only its empty value is taken for.
Unsupported = Annotated[Any, PlainValidator(_nothing_like_it)]


class _Asked(BaseModel):
    """What all three have."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    model: str = Field(min_length=1, max_length=64)
    user: str | None = Field(None, max_length=512)
    webhook: Any = None  # ours: where the job's end is told, as in a job
    conversation: Any = None  # ours: its turns run one after another, as in a job

    def _job(self, kind: str, asked: dict[str, Any], params: dict[str, Any], tier: str | None) -> dict[str, Any]:
        given = {name: value for name, value in params.items() if value is not None}
        job = {"kind": kind, "model": self.model, "input": asked, "params": given}
        if self.webhook is not None:
            job["webhook"] = self.webhook
        if self.conversation is not None:
            job["conversation"] = self.conversation
        return {**job, "priority": LANES[tier or "auto"], **({"user": user_of(self.user)} if self.user else {})}


class StreamOptions(BaseModel):
    """How a stream ends."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    continuous_usage_stats: Unsupported = None


class _Generating(_Asked):
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    temperature: Any = None
    top_p: Any = None
    presence_penalty: Any = None
    frequency_penalty: Any = None
    stop: Any = None
    n: Any = None
    seed: int | None = None
    logit_bias: Unsupported = None
    service_tier: Tier | None = None
    top_k: Any = None
    min_p: Any = None
    repetition_penalty: Any = None
    min_tokens: Any = None
    ignore_eos: Any = None

    @property
    def whole_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def _params(self, names: tuple[str, ...]) -> dict[str, Any]:
        return {
            **{name: getattr(self, name) for name in names},
            "max_tokens": self.max_tokens,
            "seed": None if self.seed is None else self.seed % (SEED_MAX + 1),  # OpenAI's may be negative
        }


class ChatAsked(_Generating):
    """`POST /v1/chat/completions`."""

    messages: list[dict[str, Any]] = Field(min_length=1, max_length=1000)
    max_completion_tokens: int | None = None
    logprobs: Any = None
    top_logprobs: Any = None
    response_format: Any = None
    tools: Any = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    metadata: Any = None
    store: bool | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None
    safety_identifier: str | None = None
    modalities: list[Literal["text"]] | None = None
    audio: Unsupported = None
    functions: Unsupported = None
    function_call: Unsupported = None
    moderation: Unsupported = None
    prediction: Unsupported = None
    web_search_options: Unsupported = None

    def job(self) -> dict[str, Any]:
        """The body of the same request to `/v1/jobs`."""
        params = self._params((*SAME, *SAME_IN_CHAT))
        if self.max_completion_tokens is not None:
            params["max_tokens"] = self.max_completion_tokens
        if not self.tools:
            params |= {"tools": None, "tool_choice": None, "parallel_tool_calls": None}
        if not self.logprobs:
            params |= {"logprobs": None, "top_logprobs": None}
        asked = {"messages": [_message(number, one) for number, one in enumerate(self.messages)]}
        job = self._job("generation", asked, params, self.service_tier)
        return {**job, "metadata": self.metadata} if self.metadata else job


class CompletionAsked(_Generating):
    """`POST /v1/completions`."""

    prompt: Any
    logprobs: int | None = Field(None, ge=0, le=20)
    best_of: Literal[1] | None = None
    echo: Literal[False] | None = None
    suffix: Unsupported = None

    def jobs(self) -> list[dict[str, Any]]:
        """The bodies of the same requests to `/v1/jobs`, one a prompt."""
        prompts = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        if not isinstance(prompts, list) or not prompts or not all(isinstance(one, str) and one for one in prompts):
            raise InvalidField("prompt", _short(self.prompt), "a text, or a list of texts; tokens are not taken here")
        if len(prompts) > MOST_PROMPTS or (self.stream and len(prompts) > 1):
            most = 1 if self.stream else MOST_PROMPTS
            raise InvalidField("prompt", f"{len(prompts)} texts", f"at most {most}{' with stream' * bool(self.stream)}")
        params = self._params(SAME)
        if self.logprobs is not None:
            params |= {"logprobs": True, "top_logprobs": self.logprobs}
        return [self._job("generation", {"prompt": prompt}, params, self.service_tier) for prompt in prompts]


class EmbeddingsAsked(_Asked):
    """`POST /v1/embeddings`."""

    input: Any
    encoding_format: Any = None
    dimensions: Any = None
    input_type: Any = None  # vLLM's and Cohere's name for what the catalogue calls prompts
    service_tier: Tier | None = None

    def job(self) -> dict[str, Any]:
        """The body of the same request to `/v1/jobs`."""
        texts = [self.input] if isinstance(self.input, str) else self.input
        if isinstance(texts, list) and texts and isinstance(texts[0], int | list):
            allowed = "texts: tokens of another model's tokenizer mean nothing to this one (LangChain:"
            raise InvalidField("input", "tokens", f"{allowed} check_embedding_ctx_length=False)")
        if not isinstance(texts, list):
            raise InvalidField("input", _short(self.input), "a text, or a list of texts")
        params = {name: getattr(self, name) for name in ("encoding_format", "dimensions", "input_type")}
        return self._job("embedding", {"texts": texts}, params, self.service_tier)


Shape = TypeVar("Shape", bound=BaseModel)


def read(shape: type[Shape], body: dict[str, Any]) -> Shape:
    """The request with the fields of its shape; raises Invalid naming those that are wrong."""
    try:
        return shape.model_validate(body)
    except ValidationError as error:
        raise invalid_body(error, whole=True) from None


def user_of(name: str) -> str:
    """Whose job it is. A name that ours cannot have stands for itself by its digest, the same one each time."""
    if re.fullmatch(USER_PATTERN, name):
        return name
    return f"u_{hashlib.sha256(name.encode()).hexdigest()[:32]}"


def _message(number: int, given: dict[str, Any]) -> dict[str, Any]:
    """A turn as jobs have it: without the names and empty fields that SDKs send back with an answer."""
    kept = ("role", "content", "tool_calls", "tool_call_id")
    dropped = ("name", "refusal", "audio", "annotations", "function_call", "reasoning_content", "reasoning")
    for name in given:
        if name not in (*kept, *dropped):
            raise InvalidField(f"messages[{number}].{name}", _short(given[name]), f"one of {', '.join(kept)}")
    message = {name: given[name] for name in kept if given.get(name) is not None}
    if message.get("role") == "developer":
        message["role"] = "system"
    content = message.get("content")
    if isinstance(content, list):
        parts = [_part(part) for part in content]
        texts = [part["text"] for part in parts if isinstance(part, dict) and part.get("type") == "text"]
        plain = len(texts) == len(parts) and all(isinstance(text, str) for text in texts)
        message["content"] = "\n".join(texts) if plain else parts
    if message.get("content") == "" and message.get("tool_calls"):
        del message["content"]
    return message


def _part(part: Any) -> Any:
    # What `detail` asks for, a small or a large picture, is the model's processor's to decide.
    if isinstance(part, dict) and part.get("type") == "image_url" and isinstance(part.get("image_url"), dict):
        return {"type": "image_url", "image_url": {k: v for k, v in part["image_url"].items() if k != "detail"}}
    return part


def _short(value: Any) -> Any:
    return value if isinstance(value, str | int | float) else type(value).__name__
