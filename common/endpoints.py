"""Standing webhook endpoints: a user's addresses that are told of every end of its jobs, with secrets that rotate.

An endpoint's document lies on the shard of its user's name. What it wants to be told is noted on every shard beside,
for the scripts that end jobs there; `repair` mends those notes where a process died between the two.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable

import msgspec
import redis.asyncio as redis

from common import scripts
from common.errors import EndpointsFull, NoEndpoint, StoreUnavailable
from common.jobs import decode, encode
from common.keys import Keys
from common.settings import Settings
from common.store import answered
from common.webhooks import EVENT_TYPES, Payload

#: Most endpoints of one user, and secrets of one endpoint that are valid at a time.
MOST_ENDPOINTS = 20
MOST_SECRETS = 4
TRIES = 20
GONE = 2**53  # a version above all others


class Secret(msgspec.Struct, frozen=True, omit_defaults=True):
    """What deliveries are signed with, until it ends."""

    text: str
    until: float | None = None  # Unix seconds

    def __repr__(self) -> str:
        return "Secret(…)"


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A standing endpoint. The newest secret comes first."""

    id: str
    user: str
    url: str
    name: str = ""
    event_types: tuple[str, ...] = ("*",)
    payload: Payload = "thin"
    secrets: tuple[Secret, ...]
    created_at: float
    updated_at: float
    disabled: str | None = None  # why, when it is
    version: int = 1

    @property
    def wants(self) -> tuple[str, ...]:
        """The event types it is told of; none while it is disabled."""
        if self.disabled:
            return ()
        return EVENT_TYPES if "*" in self.event_types else self.event_types

    def valid(self, now: float) -> list[str]:
        """The secrets that sign now."""
        return [one.text for one in self.secrets if one.until is None or one.until > now]

    def rotated(self, secret: str, keep_old_s: float, now: float) -> Endpoint:
        """With a new secret; the present one stays valid for so long, those before it as long as they had."""
        old = [Secret(self.secrets[0].text, now + keep_old_s), *self.secrets[1:]]
        still = [one for one in old if one.until is not None and one.until > now]
        kept = (Secret(secret), *still)[:MOST_SECRETS]
        return msgspec.structs.replace(self, secrets=kept, updated_at=now)


class Endpoints:
    """All users' endpoints, over one Redis client."""

    def __init__(self, client: redis.Redis, settings: Settings) -> None:
        self.redis = client
        self.settings = settings
        self.keys = Keys(settings.namespace, settings.shards)

    async def create(self, endpoint_of: Callable[[str, float], Endpoint], user: str) -> Endpoint:
        """Make one: `endpoint_of` gets its id and the time. Raises EndpointsFull, StoreUnavailable."""
        shard = self.keys.shard_of_queue(user)
        made = endpoint_of(f"we_{shard}{secrets.token_hex(12)}", time.time())
        await self._write(made.id, user, b"", made)
        return made

    async def get(self, endpoint_id: str) -> Endpoint:
        """One endpoint. Raises NoEndpoint, StoreUnavailable."""
        return (await self._read(endpoint_id))[1]

    async def change(self, endpoint_id: str, changed: Callable[[Endpoint], Endpoint]) -> Endpoint:
        """Change one; another change at the same moment is not lost. Raises NoEndpoint, StoreUnavailable."""
        for _ in range(TRIES):
            before, found = await self._read(endpoint_id)
            after = msgspec.structs.replace(changed(found), version=found.version + 1)
            if await self._write(endpoint_id, found.user, before, after):
                return after
        raise StoreUnavailable("the endpoint is changed all the time")

    async def delete(self, endpoint_id: str) -> None:
        """Remove one; what waits in the outbox for it is not sent. Raises NoEndpoint, StoreUnavailable."""
        for _ in range(TRIES):
            before, found = await self._read(endpoint_id)
            if await self._write(endpoint_id, found.user, before, None):
                return
        raise StoreUnavailable("the endpoint is changed all the time")

    async def all(self, user: str | None = None) -> list[Endpoint]:
        """A user's endpoints, or everybody's, oldest first."""
        prefixes = self.keys.prefixes() if user is None else [self.keys.prefix(self.keys.shard_of_queue(user))]
        found: list[Endpoint] = []
        for prefix in prefixes:
            call = (
                self.redis.zrange(f"{prefix}endpoints", 0, -1)
                if user is None
                else self.redis.smembers(f"{prefix}endpoints:{user}")
            )
            ids = [one.decode() for one in await answered(call)]
            if ids:
                rows = await answered(self.redis.mget([f"{prefix}endpoint:{one}" for one in ids]))
                found += [decode(row, type=Endpoint) for row in rows if row]
        return sorted(found, key=lambda one: (one.created_at, one.id))

    async def repair(self) -> None:
        """Bring every shard's notes in line with the documents."""
        known = {one.id: one for one in await self.all()}
        for prefix in self.keys.prefixes():
            for owner in await answered(scripts.execute(self.redis, "SMEMBERS", f"{prefix}owners")):
                user = owner.decode()
                noted_ids = await answered(scripts.execute(self.redis, "HKEYS", f"{prefix}hooks:{user}"))
                for noted in noted_ids or [b""]:
                    # One that was made since the documents were read is there to stay.
                    if noted.decode() not in known and (not noted or await self._is_gone(noted.decode())):
                        await self._note(prefix, user, noted.decode(), GONE, ())
            for one in known.values():
                await self._note(prefix, one.user, one.id, one.version, one.wants)

    # -- inside

    async def _is_gone(self, endpoint_id: str) -> bool:
        try:
            await self._read(endpoint_id)
        except NoEndpoint:
            return True
        return False

    async def _read(self, endpoint_id: str) -> tuple[bytes, Endpoint]:
        document = await answered(scripts.execute(self.redis, "GET", f"{self._of(endpoint_id)}endpoint:{endpoint_id}"))
        if document is None:
            raise NoEndpoint(endpoint_id)
        return document, decode(document, type=Endpoint)

    async def _write(self, endpoint_id: str, user: str, before: bytes, after: Endpoint | None) -> bool:
        document = encode(after) if after else b""
        args = endpoint_id, user, before, document, MOST_ENDPOINTS
        answer = await answered(scripts.run(self.redis, "endpoint", self._of(endpoint_id), *args))
        if answer == b"full":
            raise EndpointsFull(f"user {user} has {MOST_ENDPOINTS} webhook endpoints, which is as many as it may have")
        if answer == b"changed":
            return False
        wants = after.wants if after else ()
        version = after.version if after else GONE
        await asyncio.gather(
            *(self._note(prefix, user, endpoint_id, version, wants) for prefix in self.keys.prefixes())
        )
        return True

    async def _note(self, prefix: str, user: str, endpoint_id: str, version: int, wants: tuple[str, ...]) -> None:
        kinds = "".join(f" {kind}" for kind in wants)
        await answered(scripts.run(self.redis, "hook", prefix, user, endpoint_id, version, kinds))

    def _of(self, endpoint_id: str) -> str:
        known = endpoint_id.startswith("we_") and len(endpoint_id) == 29 and endpoint_id.isascii()
        prefix = self.keys.named(endpoint_id[3:5])
        if not known or prefix is None:
            raise NoEndpoint(endpoint_id)
        return prefix
