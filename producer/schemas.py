"""What may be sent, field by field: the one source of the edge's checks and of /openapi.json. Answers: `answers.py`.

Types are strict and unknown fields are refused, so that a typing mistake is an answer and not a default.
Checks that need the catalogue (which models there are, how long a prompt may be) are in `submit.py`.
"""

from __future__ import annotations

import time
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    TypeAdapter,
    ValidationInfo,
    field_validator,
    model_validator,
)

from common.languages import LANGUAGES
from common.states import State
from producer.conversation import Message
from producer.strict import Strict
from producer.structure import CHOICES, TOOL_CHOICE, Choices, ResponseFormat, Tool, ToolChoice
from producer.webhook_schemas import Webhook

MONTH_S = 30 * 86_400
SEED_MAX = 2**63 - 1
MOMENT = "ISO 8601 with an offset (2027-01-31T08:00:00Z) or Unix seconds, at most 30 days ahead"
STOPS = "a text or up to 4 texts, each of 1 to 64 characters"
USER_PATTERN = r"^[A-Za-z0-9_.@:-]{1,64}$"
EXAMPLE_ID = "job_0006fq3k9tma7w2xv5hc8n1re4d"


def _moment(value: Any) -> float:
    """Unix seconds of a time as a caller writes it."""
    try:
        seconds = _unix_seconds(value)
    except (ValueError, OverflowError):
        raise ValueError(f"allowed: {MOMENT}") from None
    if not 0 <= seconds <= time.time() + MONTH_S:
        raise ValueError(f"allowed: {MOMENT}")
    return seconds


def _unix_seconds(value: Any) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, str):
        raise ValueError("neither a number nor a text")
    moment = datetime.fromisoformat(value)
    if moment.tzinfo is None:
        raise ValueError("which zone?")
    return moment.timestamp()


def _stops(value: Any) -> str | list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or len(texts) > 4:
        raise ValueError(f"allowed: {STOPS}")
    if not all(isinstance(text, str) and 1 <= len(text) <= 64 for text in texts):
        raise ValueError(f"allowed: {STOPS}")
    return value  # type: ignore[no-any-return]


# Checked by a function, since pydantic names a member of a union as if it were a field of the request.
Moment = Annotated[float, BeforeValidator(_moment, json_schema_input_type=float | str)]
Stops = Annotated[str | list[str], PlainValidator(_stops, json_schema_input_type=str | list[str])]


Key = Annotated[str, Field(min_length=1, max_length=64)]
Value = Annotated[str, Field(max_length=512)]
Metadata = Annotated[dict[Key, Value], Field(max_length=16)]


class ConversationIn(Strict):
    """A conversation that the job is a turn of."""

    key: str = Field(
        pattern=USER_PATTERN, description="The user's name for it: letters, digits and `_ . @ : -`, at most 64."
    )
    mode: Literal["enqueue", "reject", "cancel_previous"] = Field(
        "enqueue",
        description="While an earlier job of it is unfinished: wait for its end, be refused (409), or cancel it.",
    )


class JobRequest(Strict):
    """What every kind of job has."""

    model: str = Field(min_length=1, max_length=64, description="Alias of a model, see GET /v1/models.")
    user: str = Field(
        "anonymous",
        pattern=USER_PATTERN,
        description="Whose job it is: users share a queue fairly. At most 64 letters, digits and `_ . @ : -`.",
    )
    priority: Literal["high", "normal", "low"] = Field(
        "normal", description="Lane of the queue; high is served sooner."
    )
    metadata: Metadata | None = Field(
        None,
        description="Up to 16 pairs of strings (64 and 512 characters) that come back with the record.",
        examples=[{"order": "4711"}],
    )
    delay_s: float | None = Field(None, ge=0, le=MONTH_S, description="Seconds before it may start. Not with run_at.")
    run_at: Moment | None = Field(
        None,
        description="When it may start: ISO 8601 with an offset or Unix seconds, at most 30 days ahead.",
        examples=["2027-01-31T08:00:00Z", 1801382400],
    )
    ttl_s: float | None = Field(
        None,
        gt=0,
        le=2 * MONTH_S,
        description="Whole life in seconds: without a result by then, the job is expired.",
    )
    timeout_s: float | None = Field(None, gt=0, le=86_400, description="Longest running time in seconds.")
    max_attempts: int | None = Field(None, ge=1, le=20, description="Handled failures before the job is failed.")
    webhook: Webhook | None = Field(None, description="Where the job's end is told.")
    conversation: ConversationIn | None = Field(
        None, description="Jobs of one conversation run one after another. Not with delay_s or run_at."
    )

    @model_validator(mode="after")
    def _one_start(self) -> JobRequest:
        if self.conversation is not None and (self.delay_s, self.run_at) != (None, None):
            raise ValueError("conversation excludes delay_s and run_at")
        if self.delay_s is not None and self.run_at is not None:
            raise ValueError("delay_s and run_at exclude each other")
        return self


class GenerationInput(Strict):
    """Either `prompt` or `messages`."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": ["prompt"]}, {"required": ["messages"]}]})

    prompt: str | None = Field(None, min_length=1, description="Text to go on from, as it is.")
    messages: list[Message] | None = Field(
        None,
        min_length=1,
        max_length=1000,
        description="A conversation; the model's chat template is applied.",
    )

    @model_validator(mode="after")
    def _either(self) -> GenerationInput:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("either prompt or messages is required, not both")
        return self


class GenerationParams(Strict):
    """How to sample; what is left out is the model's default (see the catalogue)."""

    max_tokens: int | None = Field(
        None, ge=1, description="Most tokens to generate; with the prompt's they fit the model."
    )
    min_tokens: int | None = Field(None, ge=0, description="Do not end before so many tokens; at most max_tokens.")
    ignore_eos: bool | None = Field(None, description="Go on to max_tokens whatever the model thinks of it.")
    temperature: float | None = Field(None, ge=0, le=2, description="0 always takes the likeliest token.")
    top_p: float | None = Field(
        None, gt=0, le=1, description="Sample from the likeliest tokens of this total probability."
    )
    top_k: int | None = Field(
        None, ge=-1, le=1_000_000, description="Sample from so many likeliest tokens; -1 or 0: from all."
    )
    min_p: float | None = Field(
        None, ge=0, le=1, description="Leave out tokens less likely than this share of the likeliest."
    )
    presence_penalty: float | None = Field(None, ge=-2, le=2, description="Against tokens that have come up already.")
    frequency_penalty: float | None = Field(
        None, ge=-2, le=2, description="Against tokens by how often they have come up."
    )
    repetition_penalty: float | None = Field(None, gt=0, le=2, description="Above 1: against repetition.")
    seed: int | None = Field(None, ge=0, le=SEED_MAX, description="Makes sampling repeatable.")
    stop: Stops | None = Field(None, description="Up to 4 texts of at most 64 characters that end the answer.")
    n: int | None = Field(
        None, ge=1, le=8, description="So many answers, as `choices`; more than 1 needs a temperature above 0."
    )
    logprobs: bool | None = Field(None, description="Tell the log probability of each token.")
    top_logprobs: int | None = Field(
        None, ge=0, le=20, description="With logprobs: those of so many likeliest tokens at each place, too."
    )
    response_format: ResponseFormat | None = Field(
        None, description="JSON of a schema or any JSON object instead of text."
    )
    regex: str | None = Field(None, min_length=1, max_length=4096, description="The answer matches this as a whole.")
    choice: Choices | None = Field(None, description=f"The answer is one of {CHOICES}.")
    grammar: str | None = Field(
        None, min_length=1, max_length=65_536, description="The answer is of this grammar (EBNF or Lark)."
    )
    tools: list[Tool] | None = Field(
        None, min_length=1, max_length=128, description="Functions the model may call; only with input.messages."
    )
    tool_choice: ToolChoice | None = Field(
        None, validate_default=True, description=f"With tools: {TOOL_CHOICE}; auto if left out."
    )

    parallel_tool_calls: bool | None = Field(None, description="False: one call at most.")

    @field_validator("min_tokens")
    @classmethod
    def _at_most_max_tokens(cls, value: int | None, info: ValidationInfo) -> int | None:
        most = info.data.get("max_tokens")
        if value and value > (most or 1):
            raise ValueError(f"at most max_tokens, which is {most}" if most else "only together with max_tokens")
        return value

    @field_validator("top_logprobs")
    @classmethod
    def _with_logprobs(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and not info.data.get("logprobs"):
            raise ValueError("only together with logprobs: true")
        return value

    @field_validator("regex", "choice", "grammar")
    @classmethod
    def _one_structure(cls, value: Any, info: ValidationInfo) -> Any:
        if value is not None and (other := _structure(info.data)):
            raise ValueError(f"not together with {other}: an answer has one structure")
        return value

    @field_validator("tools")
    @classmethod
    def _tools_apart(cls, value: list[Tool] | None) -> list[Tool] | None:
        names = [tool.function.name for tool in value or []]
        if len(set(names)) < len(names):
            raise ValueError("two of them have the same name")
        return value

    @field_validator("tool_choice")
    @classmethod
    def _of_the_tools(cls, value: Any, info: ValidationInfo) -> Any:
        names = [tool.function.name for tool in info.data.get("tools") or []]
        if value is not None and not names:
            raise ValueError("only together with tools")
        if isinstance(value, dict) and value["function"]["name"] not in names:
            raise ValueError(f"no such tool; there are {', '.join(names)[:200]}")
        if names and value != "none" and (other := _structure(info.data)):
            raise ValueError(f"none, or without {other}: a tool's call and that exclude each other")
        return value


def _structure(params: dict[str, Any]) -> str | None:
    """The name of the parameter, of those checked so far, that gives the answer a structure."""
    wanted = params.get("response_format")
    if wanted is not None and wanted.type != "text":
        return "response_format"
    return next((name for name in ("regex", "choice", "grammar") if params.get(name) is not None), None)


class EmbeddingInput(Strict):
    """Texts to embed, in order."""

    texts: list[Annotated[str, Field(min_length=1, max_length=32_768)]] = Field(
        min_length=1,
        max_length=2048,
        description="1 to 2,048 texts of 1 to 32,768 characters; past the model's length they are cut.",
    )


class EmbeddingParams(Strict):
    """How to embed."""

    normalize: bool | None = Field(None, description="Scale each vector to length 1; some models (minilm) always do.")
    dimensions: int | None = Field(
        None,
        ge=1,
        description="Cut each vector to its first numbers and scale it to length 1: a size that the catalogue allows.",
    )
    encoding_format: Literal["float", "base64"] | None = Field(
        None, description="Vectors as numbers, or as base64 of float32, little-endian (a quarter of the bytes)."
    )
    input_type: str | None = Field(
        None,
        max_length=32,
        description="What the texts are, e.g. query or passage: the catalogue's prompt of that name goes before each.",
    )
    truncate: bool | None = Field(
        None,
        description="Cut texts that are longer than the model takes and say which (default), or refuse them (false).",
    )


class TranscriptionInput(Strict):
    """A recording: base64 here, or a file in the part `file` of multipart/form-data."""

    audio: str | None = Field(
        None,
        description="The recording in base64: wav, mp3, flac, ogg, m4a, mp4, webm, … For what does not fit a JSON body,"
        " send the file as a part of a form.",
    )


class TranscriptionParams(Strict):
    """How to hear it, and in which form to write it down."""

    language: str | None = Field(
        None,
        description="Code of the language spoken (en, de, …); left out, it is heard from the first half minute.",
        json_schema_extra={"enum": [*LANGUAGES, None]},
    )
    task: Literal["transcribe", "translate"] | None = Field(
        None, description="transcribe writes what is said, translate writes it in English."
    )
    prompt: str | None = Field(
        None, max_length=4096, description="Text in the style and with the names to expect; its last 223 tokens count."
    )
    temperature: float | None = Field(None, ge=0, le=1, description="0 searches for the likeliest text.")
    response_format: Literal["json", "text", "srt", "vtt", "verbose_json"] | None = Field(
        None,
        description="What the result holds beside `text`: subtitles as `srt` or `vtt`, `segments` and `words` with"
        " verbose_json. json and text are the same here.",
    )
    timestamp_granularities: list[Literal["word", "segment"]] | None = Field(
        None, min_length=1, max_length=2, description="With verbose_json: what has times, segments if left out."
    )
    vad: bool | None = Field(
        None, description="Leave out what is no speech (the default); false hears all, and cuts at quiet moments."
    )

    @field_validator("language")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        if value is not None and value not in LANGUAGES:
            raise ValueError(f"allowed: {', '.join(LANGUAGES)}")
        return value

    @field_validator("timestamp_granularities")
    @classmethod
    def _only_verbose(cls, value: list[str] | None, info: ValidationInfo) -> list[str] | None:
        if value is not None and info.data.get("response_format") != "verbose_json":
            raise ValueError("only together with response_format verbose_json")
        return value


class GenerationRequest(JobRequest):
    """A job that generates text."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "kind": "generation",
                    "model": "demo",
                    "input": {"prompt": "A job is"},
                    "params": {"max_tokens": 64},
                }
            ]
        }
    )

    kind: Literal["generation"]
    input: GenerationInput
    params: GenerationParams | None = None


class EmbeddingRequest(JobRequest):
    """A job that embeds texts."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"kind": "embedding", "model": "minilm", "input": {"texts": ["A job is durable."]}}]
        }
    )

    kind: Literal["embedding"]
    input: EmbeddingInput
    params: EmbeddingParams | None = None


class TranscriptionRequest(JobRequest):
    """A job that writes down what is said in a recording."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "kind": "transcription",
                    "model": "whisper",
                    "input": {"audio": "UklGRiQAAABXQVZF…"},
                    "params": {"language": "en", "response_format": "srt"},
                }
            ]
        }
    )

    kind: Literal["transcription"]
    input: TranscriptionInput
    params: TranscriptionParams | None = None


Request = GenerationRequest | EmbeddingRequest | TranscriptionRequest
AnyJobRequest = Annotated[Request, Field(discriminator="kind")]
job_request: TypeAdapter[Request] = TypeAdapter(AnyJobRequest)


class JobsQuery(Strict):
    """Which jobs to list, newest first."""

    model_config = ConfigDict(strict=False)

    status: State | None = Field(None, description="Only jobs in this state.")
    kind: Literal["generation", "embedding", "transcription"] | None = Field(
        None, description="Only jobs of this kind."
    )
    model: str | None = Field(None, max_length=64, description="Only jobs of this model.")
    user: str | None = Field(None, pattern=USER_PATTERN, description="Only this user's jobs.")
    after: str | None = Field(None, pattern=r"^[1-9]\d{0,15}-\d{1,19}$", description="`next` of the page before.")
    limit: int = Field(50, ge=1, le=200, description="Most jobs to answer.")


class PageQuery(Strict):
    """Which page of a list."""

    model_config = ConfigDict(strict=False)

    after: str | None = Field(None, max_length=200, description="`next` of the page before.")
    limit: int = Field(50, ge=1, le=200, description="Most entries to answer.")


def json_schema_of_requests() -> dict[str, Any]:
    """The schema of a job request, with its parts in `$defs`, for /openapi.json."""
    return job_request.json_schema(ref_template="#/components/schemas/{model}")
