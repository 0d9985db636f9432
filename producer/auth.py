"""Who asks: the layer inside the guard that finds a request's key, and refuses it before anything else looks at it.

A key's record is trusted for `key_cache_s`; then it is read again, once for all requests that wait for it. Redis hears
of no key that is mistyped, nor more than once in that time of one that is unknown. While Redis is away, a key that was
good goes on being good: there is nobody who could revoke it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import msgspec
from redis.exceptions import RedisError
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from common.access import ANYBODY, ApiKey, Principal, digest_of, id_of
from common.access import Scope as Permission
from common.api_keys import ApiKeys
from common.errors import JarvisError, NotAuthenticated, NotPermitted, StoreUnavailable
from common.settings import Settings
from producer import problems

log = logging.getLogger("jarvis.keys")

#: What is answered to everybody.
OPEN = frozenset(("/healthz", "/readyz", "/openapi.json", "/docs", "/"))
#: What needs more than `jobs`, by how the address begins.
ADMIN = ("/v1/admin/", "/v1/parked")
REMEMBERED = 10_000
USED_EVERY_S = 60.0
#: While Redis is away it is asked about a known key no more often than this.
AWAY_S = 1.0
#: Compared with where there is no key, so that this takes as long as a wrong secret.
NO_KEY = ApiKey(id="", name="", owner="", tier="", limits=(), scopes=(), digest="0" * 64)

MISSING = "send an API key: Authorization: Bearer jv_…"
WRONG = "the API key is not valid"
MISTYPED = "the API key is mistyped or cut off: its checksum is wrong"
EXPIRED = "the API key has expired"


def who(request: Request) -> Principal:
    """Who sent a request."""
    found: Principal = request.scope["principal"]
    return found


class _Known(msgspec.Struct):
    """What was last read of a key; None: there is no such key."""

    record: ApiKey | None
    until: float  # time.monotonic()
    noted: float = 0.0  # when its use was last written down


Answer = TypeVar("Answer")


class Authenticator:
    """Finds who asks; one for each process."""

    def __init__(self, keys: ApiKeys, settings: Settings, always: bool) -> None:
        self.keys = keys
        self.settings = settings
        self._made = always  # once there was a key there is no way back; strangers never come in without one
        self._look_at = 0.0
        self._unmade = False  # whether Redis has said that there never was a key
        # Those that there are not have a place of their own, else a crowd of them would push out those that there are.
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._unknown: OrderedDict[str, _Known] = OrderedDict()
        self._asking: dict[str, asyncio.Task[Any]] = {}
        self._notes: set[asyncio.Task[None]] = set()

    async def principal(self, text: str | None) -> Principal:
        """Who a key's text stands for. Raises NotAuthenticated, StoreUnavailable."""
        if not self._made and not await self._are_there_keys():
            return ANYBODY
        if text is None:
            raise NotAuthenticated(MISSING)
        key_id = id_of(text)
        if key_id is None:
            raise NotAuthenticated(MISTYPED if text.startswith("jv_") else WRONG)
        record = await self._record(key_id)
        now_ms = time.time() * 1000
        if not (record or NO_KEY).matches(digest_of(text), now_ms) or record is None or record.revoked_ms:
            raise NotAuthenticated(WRONG)
        if record.expired(now_ms):
            raise NotAuthenticated(EXPIRED)
        self._note_use(record)
        return Principal(record.owner, record.id, record.scopes)

    async def _are_there_keys(self) -> bool:
        now = time.monotonic()
        if self._unmade and now < self._look_at:
            return False
        try:
            self._made = await self._once("", self.keys.any_made)
        except StoreUnavailable:
            if not self._unmade:  # it may be a server with keys
                raise
            self._look_at = now + AWAY_S
            return False
        self._unmade, self._look_at = not self._made, now + self.settings.key_cache_s
        return self._made

    async def _record(self, key_id: str) -> ApiKey | None:
        known = self._known.get(key_id) or self._unknown.get(key_id)
        now = time.monotonic()
        if known and now < known.until:
            return known.record
        try:
            record = await self._once(key_id, lambda: self.keys.look(key_id))
        except StoreUnavailable:
            if known is None or known.record is None:
                raise
            known.until = now + AWAY_S
            return known.record
        place, other = (self._known, self._unknown) if record else (self._unknown, self._known)
        other.pop(key_id, None)
        place[key_id] = _Known(record, now + self.settings.key_cache_s, known.noted if known else 0.0)
        place.move_to_end(key_id)
        if len(place) > REMEMBERED:
            place.popitem(last=False)
        return record

    async def _once(self, name: str, ask: Callable[[], Coroutine[Any, Any, Answer]]) -> Answer:
        """Ask Redis, or wait for the answer that another request is waiting for."""
        task = self._asking.get(name)
        if task is None:
            task = self._asking[name] = asyncio.create_task(ask())
            task.add_done_callback(lambda _: self._asking.pop(name, None))
        answer: Answer = await asyncio.shield(task)
        return answer

    def _note_use(self, record: ApiKey) -> None:
        known = self._known.get(record.id)
        now = time.monotonic()
        if known is None or (known.noted and now - known.noted < USED_EVERY_S):
            return
        known.noted = now
        task = asyncio.create_task(self._used(record.id))
        self._notes.add(task)
        task.add_done_callback(self._notes.discard)

    async def _used(self, key_id: str) -> None:
        try:
            await self.keys.used(key_id)
        except (JarvisError, RedisError) as error:
            log.warning("could not note that API key %s was used: %s", key_id, error)


class Authentication:
    """Wraps the application: each request that reaches it has its `principal`."""

    def __init__(self, app: ASGIApp, metrics_open: bool) -> None:
        self.app = app
        self.open = OPEN | {"/metrics"} if metrics_open else OPEN

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or answer why not."""
        if scope["type"] == "http" and scope["path"] not in self.open:
            try:
                scope["principal"] = principal = await _authenticator(scope).principal(_text_of(scope))
                _check_scope(principal, scope["path"])
            except JarvisError as error:
                await problems.of_error(error, scope["path"])(scope, receive, send)
                return
        await self.app(scope, receive, send)


def _authenticator(scope: Scope) -> Authenticator:
    found: Authenticator = scope["app"].state.authenticator
    return found


def _text_of(scope: Scope) -> str | None:
    other = None
    for name, value in scope["headers"]:
        if name == b"authorization":
            kind, _, text = value.partition(b" ")
            if kind.lower() == b"bearer":
                return str(text.strip().decode("latin-1"))
        elif name == b"x-api-key":
            other = value.strip().decode("latin-1")
    return other


def _check_scope(principal: Principal, path: str) -> None:
    if path.startswith(ADMIN):
        if not principal.key and path.startswith("/v1/admin/"):
            raise NotPermitted(
                "there are no API keys yet: `jarvis keys create` on the server's machine makes the first"
            )
        needed: Permission = "admin"
    else:
        needed = "metrics" if path == "/metrics" else "jobs"
    if not principal.may(needed):
        raise NotPermitted(f"this API key has the scopes {', '.join(principal.scopes)}; needed: {needed}")
