"""The outermost layer, pure ASGI: counts what comes in whatever its headers say, names each request, and
answers for our mistakes.

Nothing behind it ever gets more than `max_body_bytes` of a body, or `max_form_bytes` of a form with a file in it, and
no exception leaves it.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from common.errors import BodyTooLarge
from producer import problems, rates

log = logging.getLogger(__name__)

MAX_HEADERS = 100
MAX_HEADER_BYTES = 32 * 1024


class Guard:
    """Wraps the application."""

    def __init__(self, app: ASGIApp, max_body_bytes: int, max_form_bytes: Mapping[str, int] | None = None) -> None:
        self.app = app
        self.max_body_bytes = max_body_bytes
        self.max_form_bytes = max_form_bytes or {"": max_body_bytes}  # by path; "": any other

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        answering = _Answering(send)
        try:
            await self._serve(scope, receive, answering)
        except Exception:
            log.exception("request %s to %s failed", answering.request_id, scope["path"])
            if answering.started:
                raise  # the connection has to break: the answer is not whole
            await problems.unexpected(scope["path"])(scope, receive, answering)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = scope["headers"]
        size = sum(len(name) + len(value) for name, value in headers)
        limit = self._form_limit(scope["path"]) if _is_form(headers) else self.max_body_bytes
        if len(headers) > MAX_HEADERS or size > MAX_HEADER_BYTES:
            detail = f"headers are {len(headers)}, {size} bytes; allowed: {MAX_HEADERS}, {MAX_HEADER_BYTES} bytes"
            entry = {"field": "headers", "value": None, "message": detail}
            await problems.of_status(431, detail, scope["path"], entry)(scope, receive, send)
        elif _declared(headers) > limit:
            refusal = problems.of_error(BodyTooLarge(limit), scope["path"])
            await refusal(scope, receive, send)
        else:
            await self.app(scope, _counted(receive, limit), send)

    def _form_limit(self, path: str) -> int:
        return self.max_form_bytes.get(path, self.max_form_bytes[""])


class _Answering:
    """Sends, with the headers that every answer has."""

    def __init__(self, send: Send) -> None:
        self.send = send
        self.started = False
        self.request_id = f"req_{secrets.token_hex(12)}"
        self.limits = rates.watch()

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            own = [(b"x-request-id", self.request_id.encode()), (b"x-content-type-options", b"nosniff")]
            message = {**message, "headers": [*message["headers"], *own, *self.limits.headers()]}
        await self.send(message)


def _is_form(headers: list[tuple[bytes, bytes]]) -> bool:
    return any(name == b"content-type" and value.lower().startswith(b"multipart/form-data") for name, value in headers)


def _declared(headers: list[tuple[bytes, bytes]]) -> int:
    # Only a hint that saves reading: `_counted` decides.
    for name, value in headers:
        if name == b"content-length" and value.isdigit():
            return int(value[:20])
    return 0


def _counted(receive: Receive, limit: int) -> Receive:
    read = 0

    async def counted() -> Message:
        nonlocal read
        message = await receive()
        read += len(message.get("body", b""))
        if read > limit:
            raise BodyTooLarge(limit)
        return message

    return counted
