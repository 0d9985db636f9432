"""What OpenAI's endpoints answer: whole documents out of jobs' results, and chunks out of their events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec

from common.jobs import JobEvent, JobRecord
from producer.openai.asked import SERVED

Usage = Mapping[str, Any]
_json = msgspec.json.Encoder().encode


class Head(msgspec.Struct, frozen=True):
    """What all chunks of an answer have in common with the whole one."""

    id: str
    created: int
    model: str
    service_tier: str

    @classmethod
    def of(cls, record: JobRecord, prefix: str) -> Head:
        """The head of a job's answer; `prefix` is chatcmpl or cmpl."""
        name = f"{prefix}-{record.id.removeprefix('job_')}"
        return cls(name, int(record.created_at), record.model, SERVED[record.priority])

    def document(self, kind: str) -> dict[str, Any]:
        """The members that stand in every document."""
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def choices_of(output: dict[str, Any]) -> list[dict[str, Any]]:
    """A result's answers: the several that were asked for, or the one."""
    return output.get("choices") or [{"index": 0, **output}]


def chat(head: Head, output: dict[str, Any], usage: Usage | None) -> dict[str, Any]:
    """A chat completion."""
    choices = [
        {
            "index": one["index"],
            "message": _message(one),
            "logprobs": _chat_logprobs(one.get("logprobs")),
            "finish_reason": one["finish_reason"],
        }
        for one in choices_of(output)
    ]
    document = {**head.document("chat.completion"), "choices": choices, "service_tier": head.service_tier}
    return {**document, "usage": usage_of(usage)} if usage else document


def completion(
    head: Head, outputs: list[dict[str, Any]], usages: Sequence[Usage | None], logprobs: bool
) -> dict[str, Any]:
    """A completion of one prompt or several, whose answers are numbered on."""
    answers = [one for output in outputs for one in choices_of(output)]
    choices = [
        {
            "index": index,
            "text": one["text"],
            "logprobs": _text_logprobs(one.get("logprobs") or [], 0) if logprobs else None,
            "finish_reason": one["finish_reason"],
        }
        for index, one in enumerate(answers)
    ]
    document = {**head.document("text_completion"), "choices": choices}
    known = [usage_of(usage) for usage in usages if usage]
    if len(known) < len(usages):  # a hosted model does not always say
        return document
    return {**document, "usage": {name: sum(usage[name] for usage in known) for name in known[0]}}


def usage_of(usage: Usage) -> dict[str, int]:
    """The three counts that OpenAI has."""
    return {name: int(usage.get(name, 0)) for name in ("prompt_tokens", "completion_tokens", "total_tokens")}


def embeddings(model: str, raw: msgspec.Raw, usage: Usage | None) -> dict[str, Any]:
    """Embeddings, of which each goes through as it is stored, numbers or base64."""
    vectors = msgspec.json.decode(raw, type=_Vectors).embeddings
    data = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(vectors)]
    counts = usage_of(usage or {})
    document = {"object": "list", "data": data, "model": model}
    return {**document, "usage": {name: counts[name] for name in ("prompt_tokens", "total_tokens")}}


class Chunks(Protocol):
    """A stream in OpenAI's form, piece by piece."""

    done: bytes  # what ends it

    def first(self) -> bytes:
        """What comes before the first piece."""

    def piece(self, event: JobEvent) -> bytes | None:
        """What a job's event is to this stream."""

    def last(self, output: dict[str, Any], usage: Usage | None) -> bytes:
        """What follows the last piece of a job that has this result."""


DONE = b"data: [DONE]\n\n"
#: Of a token event that is nothing but text, whose chunk is put together instead of being encoded.
PLAIN = {"text", "ids", "index"}
NOTHING_MORE = b',"logprobs":null,"finish_reason":null}'


class ChatChunks:
    """The chunks of a streamed chat completion."""

    done = DONE

    def __init__(self, head: Head, count: int, whole_usage: bool) -> None:
        self._head = head
        self._count = count
        self._usage: dict[str, Any] = {"usage": None} if whole_usage else {}
        # What does not change from token to token is encoded once.
        start = msgspec.json.encode({**head.document("chat.completion.chunk"), "service_tier": head.service_tier})
        self._start = b"data: " + start[:-1] + b',"choices":['
        self._end = b"]" + (b',"usage":null' if whole_usage else b"") + b"}\n\n"
        self._text_ends = b"}" + NOTHING_MORE + self._end

    def first(self) -> bytes:
        """Who speaks."""
        delta = {"role": "assistant", "content": ""}
        return b"".join(self._chunk(index, delta, None, None) for index in range(self._count))

    def piece(self, event: JobEvent) -> bytes | None:
        """What a token event says; nothing for any other event."""
        if event.event != "token":
            return None
        data = event.data
        if data.keys() <= PLAIN and data["text"]:
            start = b'%s{"index":%d,"delta":{"content":' % (self._start, data.get("index", 0))
            return b"%s%s%s" % (start, _json(data["text"]), self._text_ends)
        delta: dict[str, Any] = {}
        if data["text"]:
            delta["content"] = data["text"]
        if data.get("reasoning"):
            delta["reasoning_content"] = data["reasoning"]
        if data.get("tool_calls"):
            delta["tool_calls"] = data["tool_calls"]
        return self._chunk(data.get("index", 0), delta, _chat_logprobs(data.get("logprobs")), None)

    def last(self, output: dict[str, Any], usage: Usage | None) -> bytes:
        """Why each answer ended and, if asked for, what it all took."""
        ends = [self._chunk(one["index"], {}, None, one["finish_reason"]) for one in choices_of(output)]
        if self._usage and usage:
            document = {**self._head.document("chat.completion.chunk"), "choices": [], "usage": usage_of(usage)}
            ends.append(b"data: " + msgspec.json.encode(document) + b"\n\n")
        return b"".join(ends)

    def _chunk(self, index: int, delta: dict[str, Any], logprobs: Any, finish_reason: str | None) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        return self._start + msgspec.json.encode(choice) + self._end


class TextChunks:
    """The chunks of a streamed completion."""

    done = DONE

    def __init__(self, head: Head, count: int, whole_usage: bool) -> None:
        self._head = head
        self._whole_usage = whole_usage
        self._offsets = [0] * count
        self._start = b"data: " + msgspec.json.encode(head.document("text_completion"))[:-1] + b',"choices":['
        self._end = b"]" + (b',"usage":null' if whole_usage else b"") + b"}\n\n"
        self._text_ends = NOTHING_MORE + self._end

    def first(self) -> bytes:
        """Nothing: completions begin with their first token."""
        return b""

    def piece(self, event: JobEvent) -> bytes | None:
        """What a token event says; nothing for any other event."""
        if event.event != "token":
            return None
        index, text = event.data.get("index", 0), event.data["text"]
        told = event.data.get("logprobs")
        logprobs = None if told is None else _text_logprobs(told, self._offsets[index])
        self._offsets[index] += len(text)
        if logprobs is None:
            return b'%s{"index":%d,"text":%s%s' % (self._start, index, _json(text), self._text_ends)
        return self._chunk(index, text, logprobs, None)

    def last(self, output: dict[str, Any], usage: Usage | None) -> bytes:
        """Why each answer ended and, if asked for, what it all took."""
        ends = [self._chunk(one["index"], "", None, one["finish_reason"]) for one in choices_of(output)]
        if self._whole_usage and usage:
            document = {**self._head.document("text_completion"), "choices": [], "usage": usage_of(usage)}
            ends.append(b"data: " + msgspec.json.encode(document) + b"\n\n")
        return b"".join(ends)

    def _chunk(self, index: int, text: str, logprobs: Any, finish_reason: str | None) -> bytes:
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}
        return self._start + msgspec.json.encode(choice) + self._end


class _Vectors(msgspec.Struct):
    embeddings: list[msgspec.Raw]


def _message(answer: dict[str, Any]) -> dict[str, Any]:
    calls = answer.get("tool_calls")
    message: dict[str, Any] = {"role": "assistant", "content": answer["text"] or None if calls else answer["text"]}
    message["refusal"] = None
    if calls:
        message["tool_calls"] = calls
    if answer.get("reasoning"):
        message["reasoning_content"] = answer["reasoning"]
    return message


def _chat_logprobs(told: list[dict[str, Any]] | None) -> dict[str, Any] | None:
    return None if told is None else {"content": told, "refusal": None}


def _text_logprobs(told: list[dict[str, Any]], offset: int) -> dict[str, Any]:
    offsets = []
    for one in told:
        offsets.append(offset)
        offset += len(one["token"])
    return {
        "tokens": [one["token"] for one in told],
        "token_logprobs": [one["logprob"] for one in told],
        "top_logprobs": [{top["token"]: top["logprob"] for top in one["top_logprobs"]} for one in told],
        "text_offset": offsets,
    }
