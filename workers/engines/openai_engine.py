"""Models that something else serves already, behind OpenAI's API: another vLLM, llama.cpp's server, a hosted model.

The upstream does the batching; here is one call a job. Closing a request closes its connection, which is what frees
it there. An upstream cannot be handed back its own tokens, so a job that was interrupted is asked for again, and
nothing is shown until the new answer has repeated what was shown before; if it says something else the job fails.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any, TypeVar, cast

import httpx
import msgspec

from common.catalogue import Model
from common.errors import EngineDead, JobFailed
from workers.engines.protocol import EmbeddingBatch, FinishReason, GenerationDelta, GenerationRequest
from workers.engines.upstream_client import UpstreamClient, said

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

T = TypeVar("T")

READ_OUT_S = 0.5
LINE_BYTES = 4 * 1024 * 1024  # of one event of a stream


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _Call(msgspec.Struct):
    index: int = 0
    id: str | None = None
    function: _Function = msgspec.field(default_factory=_Function)


class _Delta(msgspec.Struct):
    content: str | None = None
    tool_calls: list[_Call] | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None  # of a chat
    text: str | None = None  # of a completion
    finish_reason: str | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


class _Vector(msgspec.Struct):
    index: int
    embedding: list[float] | str


class _Vectors(msgspec.Struct):
    data: list[_Vector]
    usage: _Usage = msgspec.field(default_factory=_Usage)


class _Billed(msgspec.Struct):
    input_tokens: int = 0


class _Meta(msgspec.Struct):
    billed_units: _Billed = msgspec.field(default_factory=_Billed)


class _CohereVectors(msgspec.Struct):
    embeddings: dict[str, list[list[float]]]
    meta: _Meta = msgspec.field(default_factory=_Meta)


class _UpstreamEngine:
    def __init__(self, model: Model) -> None:
        self.model = model
        self.client = UpstreamClient(model)

    async def start(self) -> None:
        """Read the key. Nothing is asked: an upstream that is away may come back."""
        self.client.open()

    async def stop(self) -> None:
        """Close all connections."""
        await self.client.close()

    async def restart(self) -> None:
        """Open again if closed."""
        if not self.client.is_open:
            self.client.open()

    @property
    def alive(self) -> bool:
        """Whether calls can be made; whether the upstream takes them is found out by each."""
        return self.client.is_open

    def admits(self) -> int:
        """No more jobs while the upstream asks for a pause: they wait in the queue, where others may take them."""
        return 0 if self.client.held_s else self.model.slots

    def figures(self) -> dict[str, float]:
        """How long it will not be asked."""
        return {"held_s": self.client.held_s}

    def _check_open(self) -> None:
        if not self.client.is_open:
            raise EngineDead("the upstream's connections are closed")


class OpenAIGenerationEngine(_UpstreamEngine):
    """A language model behind `/chat/completions` and `/completions`."""

    async def generate(self, request_id: str, request: GenerationRequest) -> AsyncGenerator[GenerationDelta]:
        """Deltas as the upstream streams them, without token ids; the last has the upstream's own count of tokens."""
        self._check_open()
        path = "/chat/completions" if request.messages else "/completions"
        whole = request.resumed and request.tools is not None
        async with (
            self.client.call(path, self._body(request)) as response,
            aclosing(self._answer(response)) as answer,
            aclosing(_joined(answer) if whole else answer) as pieces,
            aclosing(_after(request.resume_text, pieces, self.model.alias)) as deltas,
        ):
            async for delta in deltas:
                yield delta

    def _body(self, request: GenerationRequest) -> dict[str, Any]:
        asked = {"messages": request.messages} if request.messages else {"prompt": request.prompt}
        field = self.client.options.max_tokens_field if request.messages else "max_tokens"
        return {
            "model": self.model.weights,
            **asked,
            field: request.max_tokens,
            **request.sampling,
            **({"stop": request.stop} if request.stop else {}),
            **self._structured(request.structured),
            **_tools(request),
            "stream": True,
            "stream_options": {"include_usage": True},
        }

    def _structured(self, wanted: dict[str, Any] | None) -> dict[str, Any]:
        if not wanted:
            return {}
        if self.client.options.extensions:
            return {"structured_outputs": wanted}  # vLLM's field has our words
        if "json" not in wanted:
            return {"response_format": {"type": "json_object"}}
        # Strict: an upstream that cannot hold to the schema refuses it, as a local engine would.
        schema = {"name": "answer", "schema": wanted["json"], "strict": True}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}

    async def _answer(self, response: httpx.Response) -> AsyncGenerator[GenerationDelta]:
        """The deltas of one answer. Its end is held back until the stream's, since the usage comes in between.

        So are tool calls, that an answer which is interrupted has shown all of them or none.
        """
        reason: FinishReason | None = None
        usage: dict[str, int] = {}
        calls = _Calls()
        async with aclosing(self._chunks(response)) as chunks:
            async for chunk in chunks:
                if chunk.usage is not None:
                    usage = msgspec.structs.asdict(chunk.usage)
                for choice in chunk.choices[:1]:
                    text = choice.text if choice.delta is None else choice.delta.content
                    calls.add(choice.delta.tool_calls if choice.delta else None)
                    if text:
                        yield GenerationDelta(text, [], None, 0, usage={})
                    if choice.finish_reason is not None:
                        reason = self._reason(choice.finish_reason)
        if reason is None:
            raise self.client.failed("upstream_broke", "the stream ended in the middle of the answer")
        yield GenerationDelta("", [], reason, usage.get("prompt_tokens", 0), usage, tool_calls=calls.whole)

    async def _chunks(self, response: httpx.Response) -> AsyncGenerator[_Chunk]:
        async with aclosing(self._lines(response)) as lines:
            async for line in lines:
                if not line.startswith(b"data:"):
                    continue
                data = line[5:].strip()
                if data == b"[DONE]":
                    await _read_out(lines)
                    return
                yield self._chunk(data)

    def _chunk(self, data: bytes) -> _Chunk:
        try:
            chunk = msgspec.json.decode(data, type=_Chunk)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise self.client.failed("upstream_broke", "a line of the stream is not an event") from None
        if chunk.error is not None:
            raise self.client.failed("upstream_error", f"in the middle of the answer: {said(chunk.error)}")
        return chunk

    async def _lines(self, response: httpx.Response) -> AsyncGenerator[bytes]:
        # httpx's own lines would also end at U+2028 and its like, which may stand in a text.
        rest = b""
        async for piece in response.aiter_bytes():
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                yield line
            if len(rest) > LINE_BYTES:
                raise self.client.failed("upstream_broke", f"a line of the stream is longer than {LINE_BYTES} bytes")
        yield rest

    def _reason(self, reason: str) -> FinishReason:
        if reason == "content_filter":
            raise self.client.failed("content_filter", "its filter ended the answer", retryable=False)
        return cast(FinishReason, reason) if reason in ("length", "tool_calls") else "stop"


class _Calls:
    """Tool calls put together from their pieces, as the answer's last delta tells them."""

    def __init__(self) -> None:
        self._calls: dict[int, dict[str, Any]] = {}

    def add(self, pieces: list[_Call] | None) -> None:
        """Add pieces in their order; a call's first one names it."""
        for piece in pieces or []:
            name, call_id = piece.function.name or "", piece.id or f"call_{piece.index}"
            new = {"id": call_id, "type": "function", "function": {"name": name, "arguments": ""}}
            call = self._calls.setdefault(piece.index, new)
            call["function"]["arguments"] += piece.function.arguments or ""

    @property
    def whole(self) -> list[dict[str, Any]] | None:
        """All calls, in their order; None when there is none."""
        return [{"index": index, **call} for index, (_, call) in enumerate(sorted(self._calls.items()))] or None


def _tools(request: GenerationRequest) -> dict[str, Any]:
    if request.tools is None:
        return {}
    choice = {} if request.tool_choice is None else {"tool_choice": request.tool_choice}
    alone = {} if request.parallel_tool_calls else {"parallel_tool_calls": False}
    return {"tools": request.tools, **choice, **alone}


async def _joined(deltas: AsyncGenerator[GenerationDelta]) -> AsyncGenerator[GenerationDelta]:
    """One delta of all."""
    text = ""
    async for delta in deltas:
        text += delta.text
        if delta.finish_reason is not None:
            yield msgspec.structs.replace(delta, text=text)


async def _after(shown: str, deltas: AsyncGenerator[GenerationDelta], alias: str) -> AsyncGenerator[GenerationDelta]:
    """The deltas of an answer asked for again: the first has all that was shown before, and perhaps more."""
    text = ""
    async for delta in deltas:
        if len(text) >= len(shown):
            yield delta
            continue
        text += delta.text
        ended_early = delta.finish_reason is not None and len(text) < len(shown)
        if ended_early or not (shown.startswith(text) or text.startswith(shown)):
            broke_off = f"the answer broke off after {len(shown)} characters"
            raise JobFailed("interrupted", f"{broke_off}, and asked again {alias} says something else", retryable=True)
        if len(text) >= len(shown):
            yield msgspec.structs.replace(delta, text=text)


async def _read_out(lines: AsyncGenerator[bytes]) -> None:
    """Read what follows the end, which is nothing but the end of the answer: then the connection can be used again."""
    with suppress(TimeoutError):
        async with asyncio.timeout(READ_OUT_S):
            async for _ in lines:
                pass


class OpenAIEmbeddingEngine(_UpstreamEngine):
    """An embedding model behind OpenAI's `/embeddings` or Cohere's `/embed`."""

    async def embed(self, texts: list[str], truncate: bool = True, low: bool = False) -> EmbeddingBatch:
        """One vector a text, in order, by as many calls as the upstream's largest batch makes necessary.

        Whether a text that is too long is cut is the upstream's to say: OpenAI's API refuses it always, Cohere's and
        vLLM's do as they are told. None of them tells which were cut.
        """
        import numpy as np

        self._check_open()
        size = self.client.options.texts
        ask = self._cohere if self.client.options.flavour == "cohere" else self._openai
        calls = [asyncio.create_task(ask(texts[i : i + size], truncate)) for i in range(0, len(texts), size)]
        try:
            parts = await asyncio.gather(*calls)
        finally:
            for call in calls:
                call.cancel()
        return EmbeddingBatch(
            np.concatenate([part.vectors for part in parts]), sum(part.prompt_tokens for part in parts)
        )

    async def _openai(self, texts: list[str], truncate: bool) -> EmbeddingBatch:
        options = self.client.options
        body: dict[str, Any] = {"model": self.model.weights, "input": texts, "encoding_format": options.encoding_format}
        if options.extensions and truncate:
            body["truncate_prompt_tokens"] = -1  # to the model's length, as vLLM says it
        answer = await self._ask("/embeddings", body, _Vectors)
        ordered = sorted(answer.data, key=lambda vector: vector.index)
        if [vector.index for vector in ordered] != list(range(len(texts))):
            raise self.client.failed("upstream_broke", f"{len(ordered)} vectors for {len(texts)} texts")
        return self._batch([vector.embedding for vector in ordered], answer.usage.prompt_tokens)

    async def _cohere(self, texts: list[str], truncate: bool) -> EmbeddingBatch:
        options = self.client.options
        body = {"model": self.model.weights, "texts": texts, "input_type": options.input_type}
        body |= {"embedding_types": ["float"], "truncate": "END" if truncate else "NONE"}
        answer = await self._ask("/embed", body, _CohereVectors)
        vectors = answer.embeddings.get("float", [])
        if len(vectors) != len(texts):
            raise self.client.failed("upstream_broke", f"{len(vectors)} vectors for {len(texts)} texts")
        return self._batch(vectors, answer.meta.billed_units.input_tokens)

    async def _ask(self, path: str, body: dict[str, Any], kind: type[T]) -> T:
        async with self.client.call(path, body) as response:
            read = await response.aread()
        try:
            return msgspec.json.decode(read, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise self.client.failed("upstream_broke", f"its answer cannot be read: {error}") from None

    def _batch(self, vectors: Sequence[list[float] | str], prompt_tokens: int) -> EmbeddingBatch:
        import numpy as np

        try:
            rows = [_row(vector) for vector in vectors]
            return EmbeddingBatch(np.stack(rows), prompt_tokens)
        except ValueError as error:  # not base64, or of different lengths
            raise self.client.failed("upstream_broke", f"its vectors cannot be read: {error}") from None


def _row(vector: list[float] | str) -> NDArray[np.float32]:
    import numpy as np

    if isinstance(vector, str):  # base64 of little-endian float32
        return np.frombuffer(base64.b64decode(vector, validate=True), "<f4").astype(np.float32)
    return np.asarray(vector, np.float32)
