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
    TypeAdapter,
    model_validator,
)

from common.states import State
from producer.params import (
    EmbeddingInput,
    EmbeddingParams,
    GenerationInput,
    GenerationParams,
    TranscriptionInput,
    TranscriptionParams,
)
from producer.strict import Strict
from producer.webhook_schemas import Webhook

MONTH_S = 30 * 86_400
MOMENT = "ISO 8601 with an offset (2027-01-31T08:00:00Z) or Unix seconds, at most 30 days ahead"
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


# Checked by a function, since pydantic names a member of a union as if it were a field of the request.
Moment = Annotated[float, BeforeValidator(_moment, json_schema_input_type=float | str)]
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
