"""What a job function asks of an engine; every backend, the fake ones too, stands behind these protocols.

An engine is one loaded model. Giving up a request (closing the iterator, cancelling the call) frees what it held
in the engine. An engine that is gone raises EngineDead for every request in flight and until it is restarted.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import msgspec

from common.jobs import Priority

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FinishReason = Literal["stop", "length", "tool_calls"]


class GenerationRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One prompt (or conversation) and how to continue it.

    `resume_text` is what an earlier, interrupted delivery has already given away, and `resume_ids` are its tokens, as
    far as the engine that made them told: generation goes on after them, and they count towards `max_tokens`.
    `stop` may be left to the reader of the deltas, who cuts there too.

    `structured` is what the answer must be, one of {"json": schema}, {"json_object": true}, {"regex": …},
    {"choice": […]}, {"grammar": …}; `logprobs` how many alternatives to tell with each token's log probability;
    `tools`, `tool_choice` and `parallel_tool_calls` are OpenAI's.
    """

    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    max_tokens: int
    sampling: dict[str, Any] = {}
    stop: list[str] = []
    resume_text: str = ""
    resume_ids: list[int] = []
    resumed: bool = False  # something was given away already, be it no text
    adapter: str | None = None  # alias of the model's adapter that answers; None for the model itself
    priority: int = 0  # lower goes first
    structured: dict[str, Any] | None = None
    logprobs: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool = True


class GenerationDelta(msgspec.Struct, frozen=True, gc=False):
    """What one engine step added.

    For a request with `resume_text` or `resume_ids` the first delta repeats what was given away (the text, and the
    reasoning and tool calls before and after it), and has none of the ids. The text of a character whose bytes are not
    complete yet comes with the token that completes it.

    `logprobs` has an entry for each of `token_ids`: {"token", "logprob", "bytes", "top_logprobs"}, the latter a list
    of the first three. `tool_calls` are pieces: {"index", "function": {"arguments"}}, and with a call's first piece
    its "id", "type" and function "name".
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason | None
    prompt_tokens: int
    usage: dict[str, int] | None = None  # of an upstream that counts for itself: {} until it has said
    reasoning: str = ""
    tool_calls: list[dict[str, Any]] | None = None
    logprobs: list[dict[str, Any]] | None = None


#: Takes a delta; returns how many tokens the next one may hold, 0 when no more are wanted.
Take = Callable[[GenerationDelta], int]


class Cut(msgspec.Struct, frozen=True):
    """A text that was longer than the model takes: its place, and the tokens it had."""

    index: int
    tokens: int


class EmbeddingBatch(msgspec.Struct, frozen=True):
    """One vector a text, in order, as a float32 array; how many tokens were read for them; the texts that were cut."""

    vectors: NDArray[np.float32]
    prompt_tokens: int
    truncated: list[Cut] = []


class TranscriptionRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One recording (16 kHz, mono, int16) and how to hear it.

    `from_seek` is where an earlier, interrupted delivery has come to: chunks that begin before it are not heard again.
    Without `timestamps` each chunk is one segment.
    """

    samples: NDArray[np.int16]
    lane: Priority = "normal"
    language: str | None = None
    task: Literal["transcribe", "translate"] = "transcribe"
    prompt: str | None = None
    temperature: float = 0.0
    vad: bool = True
    timestamps: bool = False
    words: bool = False
    from_seek: int = 0


class Word(msgspec.Struct, frozen=True):
    """One word; times are seconds of the recording."""

    word: str
    start: float
    end: float
    probability: float


class Segment(msgspec.Struct, frozen=True):
    """Some words that belong together; times are seconds of the recording."""

    start: float
    end: float
    text: str
    tokens: list[int]
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float
    words: list[Word] | None = None


class Heard(msgspec.Struct, frozen=True):
    """What one chunk of a recording holds. `seek` is where it begins, in hundredths of a second: its name."""

    seek: int
    end_s: float
    language: str
    segments: list[Segment]


class Engine(Protocol):
    """A loaded model's life."""

    async def start(self) -> None:
        """Load the model; returns when it can serve."""

    async def stop(self) -> None:
        """Let the model and its processes go."""

    async def restart(self) -> None:
        """Load the model again if it is dead; does nothing when it is alive."""

    @property
    def alive(self) -> bool:
        """Whether a request would be served now."""


class GenerationEngine(Engine, Protocol):
    """A language model."""

    def generate(self, request_id: str, request: GenerationRequest) -> AsyncGenerator[GenerationDelta]:
        """The answer as it grows; the last delta has a finish reason. Closing it aborts the request."""


@runtime_checkable
class Pushing(Protocol):
    """A language model whose engine can hand its deltas over within its own step."""

    async def push(self, request_id: str, request: GenerationRequest, take: Take) -> None:
        """As `generate`, without a task that wakes for every delta: `take` gets them, and must not take long."""


class EmbeddingEngine(Engine, Protocol):
    """An embedding model."""

    async def embed(self, texts: list[str], truncate: bool = True, low: bool = False) -> EmbeddingBatch:
        """The texts' vectors; calls that wait at the same time share batches. `low` ones let the others go first.

        Raises JobFailed naming the first text that is longer than the model takes, when it must not be cut.
        """


@runtime_checkable
class Measured(Protocol):
    """An engine that knows how it fares."""

    def admits(self) -> int:
        """How many requests it can serve at once, as its memory stands: `slots` or fewer."""

    def figures(self) -> dict[str, float]:
        """What it counts, by the names in `producer/metrics.py`."""


class TranscriptionEngine(Engine, Protocol):
    """A speech recognition model."""

    def transcribe(self, request: TranscriptionRequest) -> AsyncGenerator[Heard]:
        """What is said, chunk by chunk and in order; a lower lane waits for a higher one at every chunk."""
