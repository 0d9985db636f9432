"""Errors on OpenAI's addresses: `{"error": {"message", "type", "param", "code"}}`, as the SDKs turn into exceptions."""

from __future__ import annotations

import re
from typing import Any

import msgspec
from starlette.responses import Response

from common.jobs import JobRecord
from common.states import State

#: Where answers have OpenAI's shapes, those that are not there (yet) included.
PATHS = re.compile(
    r"/v1/(chat|completions|embeddings|audio|models/|responses|files|batches|images|videos|moderations|rerank|vector_stores"
    r"|webhook_endpoints|webhook_event_types|uploads|fine_tuning|assistants|threads|realtime)"
)
#: Why an address of OpenAI's is not here, by how it begins.
NOT_HERE = {
    "/v1/audio/speech": "speech comes with an engine for it, which there is none of yet",
    "/v1/rerank": "reranking comes with an engine for it, which there is none of yet",
    "/v1/vector_stores": "vector stores come with their engine, which there is none of yet",
    "/v1/images": "no engine here makes images",
    "/v1/videos": "no engine here makes videos",
    "/v1/moderations": "no engine here judges texts",
    "/v1/realtime": "nothing here runs outside a job",
    "/v1/uploads": "a file comes as one request, at /v1/files",
    "/v1/fine_tuning": "models are served here, not trained",
    "/v1/assistants": "OpenAI replaced it; conversations are at /v1/responses",
    "/v1/threads": "OpenAI replaced it; conversations are at /v1/responses",
}
TYPES = {403: "permission_error", 429: "rate_limit_error"}
#: Codes of failed jobs that are the request's fault; any other is the server's.
REQUEST_CODES = re.compile(
    "invalid_request|prompt_too_long|text_too_long|no_chat_template|cannot_translate|unknown_|audio_"
)
TOO_LONG = ("prompt_too_long", "text_too_long")
ENDED = {State.CANCELLED: 409, State.EXPIRED: 504}


def is_openai(path: str) -> bool:
    """Whether answers at this address have OpenAI's shapes."""
    return PATHS.match(path) is not None


def not_here(path: str) -> str | None:
    """Why there is nothing at this address, if it is one that a caller of OpenAI might expect."""
    return next((reason for start, reason in NOT_HERE.items() if path.startswith(start)), None)


def document(status: int, message: str, param: str | None, code: str | None) -> dict[str, Any]:
    """The body of an error."""
    kind = TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": native(message), "type": kind, "param": native(param or "") or None, "code": code}}


def native(words: str) -> str:
    """Names of a job's fields as they are called here: `params.max_tokens` is `max_tokens`."""
    return re.sub(r"\b(?:params|input)\.", "", re.sub(r"\binput\.texts\b", "input", words))


def of_record(record: JobRecord) -> tuple[int, dict[str, Any]]:
    """Status and body for a job that has ended without a result."""
    error = record.error
    code, message = (error.code, error.message) if error else (record.status.value, f"the job is {record.status.value}")
    if REQUEST_CODES.match(code):
        return 400, document(400, message, None, "context_length_exceeded" if code in TOO_LONG else code)
    status = ENDED.get(record.status, 500)
    return status, document(status, message, None, code)


def failed(record: JobRecord, headers: dict[str, str]) -> Response:
    """The answer for a job that has ended without a result. The queue has tried again as often as makes sense."""
    status, body = of_record(record)
    return Response(msgspec.json.encode(body), status, {**headers, "x-should-retry": "false"}, "application/json")
