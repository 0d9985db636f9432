"""A response as a document: what was kept with its job, where the job stands, and its result."""

from __future__ import annotations

from typing import Any

import msgspec

from common.jobs import JobRecord
from common.results import StoredResult
from common.states import State
from producer.openai.errors import REQUEST_CODES
from producer.openai.responses.items import Item

#: How a job's states are called here. `expired` has no word of its own.
STATUS = {State.SCHEDULED: "queued", State.EXPIRED: "failed"}
TOO_LONG = {"reason": "max_output_tokens"}


def short_of(job_id: str) -> str:
    """What the ids of a response, its items and its job have in common."""
    return job_id.removeprefix("job_")


def response(found: StoredResult, front: dict[str, Any]) -> dict[str, Any]:
    """The document of a job that has ended, or as far as it has come."""
    record = found.record
    output = msgspec.json.decode(found.output) if found.output is not None and record.terminal else None
    return document(record, front, output)


def document(record: JobRecord, front: dict[str, Any], output: dict[str, Any] | None) -> dict[str, Any]:
    """The document with this result, or with none."""
    status = status_of(record, output)
    items = [] if output is None else output_items(short_of(record.id), output, status)
    done = status == "completed" and record.finished_at is not None
    usage = usage_of(record) if output is not None else None
    return {
        **snapshot(record, front, status),
        "completed_at": int(record.finished_at or 0) if done else None,
        "error": _error(record) if status == "failed" else None,
        "incomplete_details": TOO_LONG if status == "incomplete" else None,
        "output": items,
        **({"usage": usage} if usage else {}),  # OpenAI's schema has no null here
    }


def snapshot(record: JobRecord, front: dict[str, Any], status: str) -> dict[str, Any]:
    """The document without a result."""
    return {
        "id": f"resp_{short_of(record.id)}",
        "object": "response",
        "created_at": int(record.created_at),
        "status": status,
        "completed_at": None,
        "error": None,
        "incomplete_details": None,
        "metadata": record.metadata,
        "model": record.model,
        "output": [],
        **front["response"],
    }


def status_of(record: JobRecord, output: dict[str, Any] | None) -> str:
    """A job's state in OpenAI's words: an answer that the caller's limit has cut is incomplete too."""
    if record.status == State.COMPLETED and output is not None and output["finish_reason"] == "length":
        return "incomplete"
    return STATUS.get(record.status, record.status.value)


def output_items(short: str, output: dict[str, Any], status: str) -> list[Item]:
    """What the model has said: its reasoning, its text, its calls. Of what was cut, the last is incomplete."""
    items: list[Item] = []
    calls = output.get("tool_calls") or []
    if output.get("reasoning"):
        items.append(reasoning(short, output["reasoning"]))
    if output["text"] or not items + calls:
        items.append(message(short, output["text"], output.get("logprobs") or []))
    items += [call(short, number, one["id"], one["function"]) for number, one in enumerate(calls)]
    if status == "incomplete":
        items[-1]["status"] = "incomplete"
    return items


def message(short: str, text: str, logprobs: list[Any], status: str = "completed") -> Item:
    """A text."""
    part = text_part(text, logprobs)
    return {"type": "message", "id": f"msg_{short}", "status": status, "role": "assistant", "content": [part]}


def text_part(text: str, logprobs: list[Any]) -> dict[str, Any]:
    """The only part of a text."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def reasoning(short: str, text: str, status: str = "completed") -> Item:
    """What was thought before."""
    return {"type": "reasoning", "id": f"rs_{short}", "summary": [], "content": [thought(text)], "status": status}


def thought(text: str) -> dict[str, Any]:
    """The only part of reasoning."""
    return {"type": "reasoning_text", "text": text}


def call(short: str, number: int, call_id: str, function: dict[str, Any], status: str = "completed") -> Item:
    """A call of a function."""
    asked = {"name": function["name"], "arguments": function["arguments"]}
    return {"type": "function_call", "id": f"fc_{short}_{number}", "call_id": call_id, **asked, "status": status}


def usage_of(record: JobRecord) -> dict[str, Any] | None:
    """The counts; nothing of them is known to come from a cache or to be reasoning."""
    counts = record.usage
    if not counts:
        return None
    taken, given = int(counts.get("prompt_tokens", 0)), int(counts.get("completion_tokens", 0))
    return {
        "input_tokens": taken,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": given,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": taken + given,
    }


def _error(record: JobRecord) -> dict[str, Any]:
    if record.error is None:
        return {"code": "server_error", "message": f"the job is {record.status.value}"}
    # OpenAI's codes are a closed list: ours stands before the message.
    code = "invalid_prompt" if REQUEST_CODES.match(record.error.code) else "server_error"
    return {"code": code, "message": f"{record.error.code}: {record.error.message}"}
