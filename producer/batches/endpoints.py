"""What a line of a batch may call: for each address the jobs that its body stands for, and the answer they make.

The checks are those of the address itself. A new address is a function here and a line in `ENDPOINTS`.
"""

from __future__ import annotations

import io
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import msgspec
from pydantic import Field

from common.access import ANYBODY, Principal
from common.batches import BatchAsked
from common.errors import InvalidField
from common.files import Files
from common.jobs import JobSpec
from common.results import Results, StoredResult
from producer.openai import answered, audio
from producer.openai.asked import ChatAsked, CompletionAsked, EmbeddingsAsked, read
from producer.openai.responses.answered import response
from producer.openai.responses.asked import ResponseAsked
from producer.openai.responses.specs import job_spec
from producer.openai.specs import spec_of
from producer.submit import Submitter
from producer.upload import Recording

#: Purpose of the files that lines may name.
SPOKEN = "user_data"


@dataclass(frozen=True, slots=True)
class Here:
    """What a line is checked with, and for whom."""

    submitter: Submitter
    files: Files
    results: Results
    who: Principal = ANYBODY

    def for_batch(self, asked: BatchAsked) -> Here:
        """The same for a batch: its lines may do what its owner may."""
        return replace(self, who=Principal(asked.user, asked.api_key, ("jobs",)))


@dataclass(frozen=True, slots=True)
class Prepared:
    """The jobs of a line, and how their results become the body of its answer."""

    specs: list[JobSpec]
    answer: Callable[[Sequence[StoredResult]], Any]
    texts: int = 0  # that it embeds


Endpoint = Callable[[dict[str, Any], Here], Awaitable[Prepared]]


async def _chat(body: dict[str, Any], here: Here) -> Prepared:
    asked = read(ChatAsked, body)
    _refuse_stream(asked.stream)
    return Prepared([await spec_of(asked.job(), here.who, here.submitter)], _chat_answer)


def _chat_answer(found: Sequence[StoredResult]) -> Any:
    record = found[0].record
    return answered.chat(answered.Head.of(record, "chatcmpl"), _output(found[0]), record.usage)


async def _completions(body: dict[str, Any], here: Here) -> Prepared:
    asked = read(CompletionAsked, body)
    _refuse_stream(asked.stream)
    specs = [await spec_of(job, here.who, here.submitter) for job in asked.jobs()]
    return Prepared(specs, partial(_completion_answer, logprobs=asked.logprobs is not None))


def _completion_answer(found: Sequence[StoredResult], logprobs: bool) -> Any:
    head = answered.Head.of(found[0].record, "cmpl")
    usages = [one.record.usage for one in found]
    return answered.completion(head, [_output(one) for one in found], usages, logprobs)


async def _embeddings(body: dict[str, Any], here: Here) -> Prepared:
    spec = await spec_of(read(EmbeddingsAsked, body).job(), here.who, here.submitter)
    return Prepared([spec], _embeddings_answer, len(spec.input["texts"]))


def _embeddings_answer(found: Sequence[StoredResult]) -> Any:
    record = found[0].record
    return answered.embeddings(record.model, found[0].output or msgspec.Raw(b"{}"), record.usage)


async def _responses(body: dict[str, Any], here: Here) -> Prepared:
    asked = read(ResponseAsked, body)
    _refuse_stream(asked.stream)
    if asked.background:
        raise InvalidField("background", True, "false: all of a batch is in the background")
    spec = await job_spec(asked, here.who, here.submitter, here.results)
    return Prepared([spec], partial(_response_answer, front=spec.front))


def _response_answer(found: Sequence[StoredResult], front: dict[str, Any]) -> Any:
    return response(found[0], front)


class SpokenAsked(audio.AudioAsked):
    """The body of a line to transcribe: the fields of the form, and which file holds the recording."""

    file_id: str = Field(max_length=64)


async def _heard(body: dict[str, Any], here: Here, task: Literal["transcribe", "translate"]) -> Prepared:
    asked = read(SpokenAsked, body)
    _refuse_stream(asked.stream)
    file = await here.files.get(asked.file_id, here.who.sees)
    if file.purpose != SPOKEN:
        raise InvalidField("file_id", f"a file of purpose {file.purpose}", f"a file of purpose {SPOKEN}")
    spec = await here.submitter.spec_of(asked.job(task), here.who, Recording(io.BytesIO(), ""))
    spec = msgspec.structs.replace(spec, input={**spec.input, "audio": file.blob})
    return Prepared([spec], partial(_heard_answer, form=asked.response_format))


def _heard_answer(found: Sequence[StoredResult], form: str | None) -> Any:
    return audio.document(found[0], form)


ENDPOINTS: dict[str, Endpoint] = {
    "/v1/responses": _responses,
    "/v1/chat/completions": _chat,
    "/v1/completions": _completions,
    "/v1/embeddings": _embeddings,
    "/v1/audio/transcriptions": partial(_heard, task="transcribe"),
    "/v1/audio/translations": partial(_heard, task="translate"),
}


def _refuse_stream(stream: bool | None) -> None:
    if stream:
        raise InvalidField("stream", True, "false: the answers of a batch are whole")


def _output(found: StoredResult) -> dict[str, Any]:
    output: dict[str, Any] = msgspec.json.decode(found.output or b"{}")
    return output
