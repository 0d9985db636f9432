"""Calls to an OpenAI-compatible upstream: never more at once than it takes, and none while it asks for a pause.

An upstream that takes nothing now (too many requests, overloaded, unreachable, the key refused) is no fault of the
job: all calls hold back together, then one goes first. A call that waits longer than `hold_s` ends with NotNow, and
its job goes back to the queue without losing an attempt.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
import msgspec

from common.catalogue import Model
from common.errors import JobFailed, NotNow, SettingsInvalid
from common.upstream import Upstream

log = logging.getLogger("jarvis.engines")

#: Answers that say nothing about this request: the key is refused, the money is used up, or there are too many.
NOT_NOW = (401, 402, 429, 503, 529)
PAUSE_S = 1.0  # before the second call to an upstream that says no time itself; doubles each time
PAUSE_MAX_S = 30.0
LEAST_S = 0.02  # before the second call, whatever the upstream says; doubles each time
ASKED_MAX_S = 3600.0  # the longest pause that is believed
RETRY_S = 0.5  # before the second try of a call that failed; doubles each time
BODY_BYTES = 65_536  # of an error that are read


class UpstreamClient:
    """The connections to one upstream."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.options = Upstream.of(model.options)
        self._turns = asyncio.Semaphore(self.options.concurrency)
        self._first = asyncio.Lock()
        self._refused = 0  # pauses in a row
        self._not_before = 0.0
        self._client: httpx.AsyncClient | None = None
        self._secrets: list[str] = []

    def open(self) -> None:
        """Read the key; raises SettingsInvalid naming the variable that is missing."""
        options = self.options
        headers = {name: self._secret("headers_env", variable) for name, variable in options.headers_env.items()}
        if options.api_key_env:
            key = self._secret("api_key_env", options.api_key_env)
            bearer = options.api_key_header.lower() == "authorization"
            headers[options.api_key_header] = f"Bearer {key}" if bearer else key
        self._client = httpx.AsyncClient(
            headers=headers,
            timeout=httpx.Timeout(options.timeout_s, connect=options.connect_timeout_s, pool=None),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=options.concurrency),
        )

    async def close(self) -> None:
        """Close all connections."""
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    @property
    def is_open(self) -> bool:
        """Whether calls can be made."""
        return self._client is not None

    @property
    def held_s(self) -> float:
        """Seconds until the upstream may be asked again; 0 when it may be now."""
        return max(0.0, self._not_before - time.monotonic())

    @asynccontextmanager
    async def call(self, path: str, body: dict[str, Any]) -> AsyncIterator[httpx.Response]:
        """An accepted call whose answer is not read yet. Leaving the block early closes the connection."""
        async with self._turns:
            response = await self._accepted(path, body)
            try:
                yield response
            except httpx.TimeoutException as error:
                raise self.failed("upstream_timeout", f"silent for {self.options.timeout_s:g} s") from error
            except httpx.RequestError as error:
                raise self.failed("upstream_broke", f"{type(error).__name__} in the middle of the answer") from error
            finally:
                await response.aclose()

    def failed(self, code: str, message: str, retryable: bool = True) -> JobFailed:
        """How a job fails, in words without secrets."""
        for secret in self._secrets:
            message = message.replace(secret, "***")
        return JobFailed(code, f"upstream of {self.model.alias}: {message[:300]}", retryable)

    async def _accepted(self, path: str, body: dict[str, Any]) -> httpx.Response:
        until = time.monotonic() + self.options.hold_s
        tries = 0
        while True:
            try:
                response = await self._in_turn(path, body, until)
                if response is None:
                    continue
                if response.is_success:
                    return response
                failure = await self._failure(response)
            except httpx.TimeoutException as error:
                raise self.failed("upstream_timeout", f"no answer in {self.options.timeout_s:g} s") from error
            except httpx.RequestError as error:
                failure = self.failed("upstream_broke", f"{type(error).__name__} before an answer")
            tries += 1
            if not failure.retryable or tries > self.options.max_retries:
                raise failure
            await asyncio.sleep(RETRY_S * 2.0**tries * random.uniform(0.25, 0.5))

    async def _in_turn(self, path: str, body: dict[str, Any], until: float) -> httpx.Response | None:
        """The answer, or None when nothing is taken now. After a refusal one call goes first and the others wait."""
        if not self._refused:
            return await self._send(path, body)
        try:
            async with asyncio.timeout(max(0.0, until - time.monotonic())):
                await self._first.acquire()
        except TimeoutError:
            raise NotNow(f"the upstream of {self.model.alias} takes one call after the other") from None
        try:
            if self._refused:
                await self._pause(until)
                return await self._send(path, body)
        finally:
            self._first.release()
        return await self._send(path, body)

    async def _pause(self, until: float) -> None:
        while self.held_s:  # it may grow meanwhile
            if self._not_before > until:
                raise NotNow(f"the upstream of {self.model.alias} takes no calls for {self.held_s:.0f} s")
            await asyncio.sleep(self.held_s)

    async def _send(self, path: str, body: dict[str, Any]) -> httpx.Response | None:
        assert self._client is not None, "opened"
        request = self._client.build_request("POST", self.options.base_url.rstrip("/") + path, json=body)
        try:
            response = await self._client.send(request, stream=True)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            self._hold(None, f"no connection: {error or type(error).__name__}")
            return None
        if response.status_code in NOT_NOW:
            pause_s = retry_after_s(response.headers)
            self._hold(pause_s, f"{response.status_code} {await _message(response)}")
            return None
        if not self.held_s:  # else it was asked before another call was refused
            self._refused = 0
        return response

    def _hold(self, pause_s: float | None, why: str) -> None:
        """Make no call for as long as the upstream asks for, else for longer each time."""
        again = 2.0 ** min(self._refused, 10)
        if pause_s is None:
            pause_s = min(PAUSE_MAX_S, PAUSE_S * again) * random.uniform(0.5, 1.0)
        else:
            pause_s = min(ASKED_MAX_S, max(pause_s, LEAST_S * again))  # "0" again and again must not be a storm
        if not self.held_s:  # calls that were under way together are refused together: that counts once
            self._refused += 1
            log.warning("%s; no calls for %.1f s", self.failed("", why).message, pause_s)
        self._not_before = max(self._not_before, time.monotonic() + pause_s)

    async def _failure(self, response: httpx.Response) -> JobFailed:
        message = f"{response.status_code} {await _message(response)}"
        if response.status_code in (408, 409) or response.status_code >= 500:
            return self.failed("upstream_error", message)
        return self.failed("upstream_refused", message, retryable=False)

    def _secret(self, option: str, variable: str) -> str:
        value = os.environ.get(variable, "").strip()
        place = f"{self.model.place}: options of {self.model.alias}"
        if not value:
            raise SettingsInvalid(f"{place}: the environment variable {variable} ({option}) is not set")
        if not value.isascii() or not value.isprintable():
            raise SettingsInvalid(f"{place}: the environment variable {variable} ({option}) is not printable ASCII")
        self._secrets.append(value)
        return value


def retry_after_s(headers: httpx.Headers) -> float | None:
    """The pause an answer asks for: `retry-after-ms` before `retry-after` (seconds or a date); None: it says none."""
    try:
        if "retry-after-ms" in headers:
            return max(0.0, float(headers["retry-after-ms"]) / 1000)
        return max(0.0, float(headers["retry-after"]))
    except KeyError:
        return None
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(headers.get("retry-after", "")).timestamp() - time.time())
    except ValueError:
        return None


async def _message(response: httpx.Response) -> str:
    """What an error says of itself, shortened; closes it."""
    body = b""
    try:
        async for piece in response.aiter_bytes():
            body += piece
            if len(body) > BODY_BYTES:
                break
    except httpx.RequestError:
        pass  # what came of it is enough
    finally:
        await response.aclose()
    try:
        return said(msgspec.json.decode(body))[:300] or response.reason_phrase
    except (msgspec.DecodeError, UnicodeDecodeError):
        return said(body.decode("utf-8", "replace"))[:300] or response.reason_phrase


def said(document: Any) -> str:
    """The message in an error as OpenAI, FastAPI and others write it."""
    error = document.get("error", document) if isinstance(document, dict) else document
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail") or error
    return " ".join(str(error).split())
