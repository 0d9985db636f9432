"""What is answered, field by field, as /openapi.json says it. What may be sent: `schemas.py`.

These describe; the answers themselves are encoded without them (a test compares the two).
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from common.states import State
from producer.schemas import EXAMPLE_ID


class ErrorOut(BaseModel):
    """Why a job did not complete."""

    code: str = Field(examples=["engine_dead"])
    message: str


class MetricsOut(BaseModel):
    """How long it took."""

    queue_ms: int | None = Field(description="From accepted (or due) to started.")
    run_ms: int | None = Field(description="From started to finished.")
    gpu_ms: int | None = Field(
        None,
        description="Its part of its workers' busy time: of a moment in which n jobs run, each has an n-th.",
    )


class LinksOut(BaseModel):
    """Where to go from here; follow these instead of building addresses."""

    self: str
    result: str
    events: str
    cancel: str


WaitingCode = Literal[
    "slot",
    "in_progress",
    "limit",
    "conversation",
    "own_jobs",
    "turn",
    "share",
    "higher_lane",
    "no_worker",
    "loading",
    "scheduled",
    "retry_pause",
]


class EtaOut(BaseModel):
    """When it is expected to be done."""

    p50: float = Field(description="As likely sooner as later.", examples=[4.2])
    p90: float = Field(description="In nine cases of ten it is done by then.", examples=[6.5])


class JobOut(BaseModel):
    """A job's record. Times are Unix seconds."""

    id: str = Field(examples=[EXAMPLE_ID])
    object: Literal["job"]
    kind: str
    model: str
    served_by: str | None = Field(
        description="Alias of the model that ran it: its own, or one of its fallback chain. Null before it has started."
    )
    status: State
    priority: Literal["high", "normal", "low"]
    user: str
    created_at: float
    started_at: float | None
    finished_at: float | None
    expires_at: float | None = Field(description="When its ttl ends; of a finished job, when its record goes.")
    run_at: float | None = Field(description="When a scheduled job becomes ready.")
    attempts: int = Field(description="Runs that failed and were handled.")
    max_attempts: int
    claims: int = Field(description="How often a worker took it.")
    queue_position: int | None = Field(
        description="Of a waiting job: 1 is next. Null in the answer to a submit of a list, or to a deep or busy queue."
    )
    waiting_for: str | None = Field(description="Of a waiting job: why it waits, in words.")
    waiting_code: WaitingCode | None = Field(description="The same for programs.")
    eta: EtaOut | None = Field(
        description="Seconds from now until it is done, as far as can be known; null where nothing is: nobody works, no"
        " job of this model has run yet, or the place was not counted."
    )
    error: ErrorOut | None
    usage: dict[str, int | str] | None = Field(
        description="Tokens in and out, or seconds of audio; of a model with a price also `cost_micros`, millionths of"
        " `cost_currency`.",
        examples=[{"prompt_tokens": 4, "completion_tokens": 64}],
    )
    metrics: MetricsOut
    metadata: dict[str, str]
    retry_of: str | None = Field(description="The job that this one runs again.")
    links: LinksOut


class ResultOut(BaseModel):
    """A job's result. `output` is null while there is none, and for a job that ended without one."""

    id: str
    kind: str
    model: str
    status: State
    output: dict[str, JsonValue] | None = Field(
        description="generation: `text`, `finish_reason` (stop, length, tool_calls), and as asked `choices`, "
        "`tool_calls`, `logprobs`, `reasoning`; embedding: `embeddings`, `dimensions`, and in `truncated` the index and"
        " tokens of each text that was cut; transcription: `text`, `language`, `duration` and what `response_format`"
        " asks for.",
        examples=[
            {"text": "durable.", "finish_reason": "stop"},
            {"embeddings": [[0.1, -0.2]], "dimensions": 2},
        ],
    )
    usage: dict[str, int | str] | None
    error: ErrorOut | None


class JobWithResultOut(JobOut):
    """A record; with the result when the caller waited and the job finished in time."""

    result: ResultOut | None = None


class JobsOut(BaseModel):
    """A page of jobs, newest first."""

    object: Literal["list"]
    data: list[JobOut]
    has_more: bool
    next: str | None = Field(description="Cursor for `after`.")


class ProblemEntryOut(BaseModel):
    """One field that is wrong."""

    field: str
    value: str | None
    message: str


class ProblemOut(BaseModel):
    """RFC 9457 problem details."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str
    instance: str
    field: str | None = Field(None, description="The first field that is wrong.")
    value: str | None = Field(None, description="Its value, shortened.")
    errors: list[ProblemEntryOut] | None = Field(None, description="Every field that is wrong (at most 20).")


class RefusedOut(BaseModel):
    """A job of a list that was not accepted."""

    object: Literal["job.refused"]
    status: int = Field(description="What it would have been answered with alone.", examples=[429])
    index: int = Field(description="Its place in the list, from 0.")
    error: ProblemOut


class SubmittedListOut(BaseModel):
    """The answer to a list: an entry for each request, in order. Records have no `queue_position` here."""

    object: Literal["list"]
    data: list[JobOut | RefusedOut]


class DepthOut(BaseModel):
    """Waiting jobs by lane."""

    high: int
    normal: int
    low: int


class QueueOut(BaseModel):
    """How one queue stands. A queue is what one kind of worker serves: a kind and a model."""

    queue: str = Field(examples=["generation:demo"])
    kind: str
    model: str
    depth: DepthOut
    in_progress: int
    workers: int = Field(description="Workers that are alive.")
    users_waiting: int
    oldest_wait_s: float | None


class QueuesOut(BaseModel):
    """All queues, by name."""

    object: Literal["list"]
    data: list[QueueOut]


class WorkerOut(BaseModel):
    """One live worker."""

    queue: str = Field(examples=["generation:demo"])
    id: str
    host: str | None
    pid: int | None
    slots: int = Field(description="Jobs it runs at once.")
    device: str = Field(description="Where its model runs.", examples=["cpu", "GPU 0 (NVIDIA L4)"])
    gpu_share: float | None = Field(description="How much of each of its GPUs it holds; 0 on a CPU.", examples=[0.4])
    started_at: float | None


class WorkersOut(BaseModel):
    """All live workers, by queue."""

    object: Literal["list"]
    data: list[WorkerOut]


class ParkedOut(BaseModel):
    """Something that must not be run."""

    id: str
    queue: str
    reason: str
    parked_at: float


class ParkedListOut(BaseModel):
    """A page of what is parked, newest first."""

    object: Literal["list"]
    data: list[ParkedOut]
    has_more: bool
    next: str | None = Field(description="Cursor for `after`.")


class HealthOut(BaseModel):
    """This process serves."""

    status: Literal["ok"]


class ReadyOut(BaseModel):
    """Jobs can be accepted."""

    status: Literal["ready"]
    workers: dict[str, int] = Field(description="Live workers of each queue.", examples=[{"generation:demo": 1}])


class ModelOut(BaseModel):
    """One model of the catalogue."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    kind: str
    max_model_len: int
    parent: str | None = Field(description="The model that an adapter belongs to; null for a model.")


class ModelsOut(BaseModel):
    """All models of the catalogue."""

    object: Literal["list"]
    data: list[ModelOut]
