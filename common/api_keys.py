"""API keys: kept in one place, each change one script that writes the audit too.

What a key may use is read elsewhere, by the scripts of every shard (`policies.py`). A change is brought there by who
made it; where a process died in between, the next change or the next start of a web process does it.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import redis.asyncio as redis

from common import scripts
from common.access import LONGEST_NAME, MOST_LIMITS, OWNER_PATTERN, SCOPES, ApiKey, NewKey, Scope, new_key, widest
from common.errors import InvalidField, NoKey, NotAllowedNow, StoreUnavailable, TooMany
from common.jobs import decode, encode
from common.keys import Keys
from common.limits import Policy
from common.policies import Policies
from common.settings import Settings
from common.store import answered

log = logging.getLogger("jarvis.keys")

MOST_KEYS = 10_000
LONGEST_GRACE_S = 30 * 86_400
LONGEST_LIFE_S = 10 * 366 * 86_400
#: How often bringing changes to the shards begins anew because another change came in between.
TRIES = 50


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What a new key is to be; checked when it is made."""

    name: str
    tier: str
    owner: str | None = None  # its name, if not said
    limits: tuple[str, ...] = ()
    scopes: tuple[str, ...] = ("jobs",)
    expires_s: float | None = None


class Audited(msgspec.Struct, frozen=True):
    """One entry of the audit: who did what to which key, or to which thing of another owner; `at` is Unix seconds."""

    id: str
    at: float
    actor: str
    action: str
    thing: str
    owner: str
    detail: dict[str, Any]


class ApiKeys:
    """The API keys of one namespace. `actor` is who asks for a change, for the audit."""

    def __init__(self, client: redis.Redis, settings: Settings) -> None:
        self.redis = client
        self.settings = settings
        self.policies = Policies(client, settings)
        self._prefix = Keys(settings.namespace, settings.shards).files

    # -- changes

    async def create(
        self, asked: Asked, actor: str, new: NewKey | None = None, only_first: bool = False
    ) -> tuple[ApiKey, NewKey] | None:
        """Make a key; its text is in the answer and nowhere else. None: `only_first`, and it is not.

        Raises InvalidField, TooMany, StoreUnavailable.
        """
        owner = self._checked(asked)
        new = new or new_key()
        expires_ms = int((time.time() + asked.expires_s) * 1000) if asked.expires_s else 0
        fields = {
            "name": asked.name,
            "tier": asked.tier,
            "limits": encode(asked.limits),
            "scopes": encode(asked.scopes),
            "expires": expires_ms,
        }
        said = {"name": asked.name, "tier": asked.tier, "limits": asked.limits, "scopes": asked.scopes}
        detail = encode(said | {"expires_at": expires_ms // 1000 or None})
        flat = [item for pair in fields.items() for item in pair]
        head = new.id, MOST_KEYS, int(only_first), actor, detail, owner, new.digest
        answer = await self._again("api_key_create", *head, *flat)
        if answer == b"not_first":
            return None
        if answer == b"full":
            raise TooMany("API keys", MOST_KEYS)
        if answer == b"taken":  # of 10^18 ids
            raise StoreUnavailable("the key's id is taken")
        await self.apply([new.id])
        return await self.get(new.id), new

    async def rotate(self, key_id: str, grace_s: float, actor: str) -> tuple[ApiKey, NewKey]:
        """Another secret for a key; the one before counts for so long. Raises NoKey, NotAllowedNow, InvalidField."""
        if not 0 <= grace_s <= LONGEST_GRACE_S:
            raise InvalidField("grace_s", grace_s, f"0 to {LONGEST_GRACE_S} seconds")
        self._key(key_id)
        new = new_key(key_id)
        detail = encode({"grace_s": int(grace_s)})
        answer = await self._again("api_key_rotate", key_id, actor, detail, new.digest, int(grace_s * 1000))
        self._changed(answer, key_id, "rotate")
        return await self.get(key_id), new

    async def revoke(self, key_id: str, actor: str) -> ApiKey:
        """A key counts no more, for ever; asked twice is fine. Raises NoKey."""
        self._key(key_id)
        self._changed(await self._again("api_key_revoke", key_id, actor), key_id, "revoke")
        await self.apply([key_id])
        return await self.get(key_id)

    async def set_limits(self, key_id: str, tier: str | None, limits: Sequence[str], actor: str) -> ApiKey:
        """Other limits for a key, in place of those it had, and another tier if one is given.

        Raises NoKey, NotAllowedNow, InvalidField.
        """
        self._check_limits(limits)
        if tier is not None:
            self._check_tier(tier)
        self._key(key_id)
        detail = encode({"tier": tier, "limits": limits})
        answer = await self._again("api_key_limits", key_id, actor, detail, tier or "", encode(list(limits)))
        self._changed(answer, key_id, "limits")
        await self.apply([key_id])
        return await self.get(key_id)

    async def used(self, key_id: str) -> None:
        """Note that a key was used just now."""
        await self._run("api_key_used", key_id)

    async def audit(self, actor: str, action: str, thing: str, owner: str) -> None:
        """Note that an admin is about to do something to what is another owner's."""
        await self._run("audit", actor, action, thing, owner)

    # -- bringing changes to where submits and claims read them

    async def apply(self, key_ids: Iterable[str]) -> None:
        """Bring the limits of these keys, and of those that a process died over, to every shard. Safe to repeat."""
        version_key, dirty_key = f"{self._prefix}api_keys:version", f"{self._prefix}api_keys:dirty"
        for _ in range(TRIES):
            version = await answered(self.redis.get(version_key)) or b"0"
            dirty = [name.decode() for name in await answered(self.redis.hkeys(dirty_key))]
            ids = sorted({*key_ids, *dirty})
            found = await self._many(ids)
            now_ms = time.time() * 1000
            for one in found:
                await self._set_door(one)
            for gone in set(ids) - {one.id for one in found}:
                await answered(self.policies.set_door(gone, Policy()))
            for owner in {one.owner for one in found}:
                await self._set_share(owner, now_ms)
            if await self._run("api_key_applied", version, *ids):
                return
        raise StoreUnavailable("API keys are changed all the time")

    async def apply_all(self) -> None:
        """The same for every key: tiers may have changed with the settings."""
        await self.apply([one.id for one in await self.all()])

    async def _set_door(self, one: ApiKey) -> None:
        # A key that was revoked keeps its limits: its jobs can be run again.
        policy = self._policy(one)
        if policy is not None:
            await answered(self.policies.set_door(one.id, policy))

    async def _set_share(self, owner: str, now_ms: float) -> None:
        ids = await answered(self.redis.smembers(f"{self._prefix}api_keys:of:{owner}"))
        found = await self._many([name.decode() for name in ids])
        policies = [policy for one in found if one.live(now_ms) and (policy := self._policy(one)) is not None]
        await answered(self.policies.set_share(owner, widest(policies)))

    def _policy(self, one: ApiKey) -> Policy | None:
        try:
            return one.policy(self.settings.tiers)
        except InvalidField as error:
            # Its limits stay as they were: none at all would be the wrong answer to a mistake in the settings.
            log.error("API key %s (%s): %s", one.id, one.name, error)
            return None

    # -- reads

    async def any_made(self) -> bool:
        """Whether there ever was a key. Raises StoreUnavailable."""
        return bool(await answered(self.redis.exists(f"{self._prefix}api_keys:made")))

    async def get(self, key_id: str) -> ApiKey:
        """A key's record. Raises NoKey, StoreUnavailable."""
        found = await self.look(key_id)
        if found is None:
            raise NoKey(key_id)
        return found

    async def look(self, key_id: str) -> ApiKey | None:
        """A key's record, None when there is no such key. Raises StoreUnavailable."""
        return _record(key_id, await answered(self.redis.hgetall(self._key(key_id))))

    async def all(self) -> list[ApiKey]:
        """Every key, oldest first."""
        ids = await answered(self.redis.zrange(f"{self._prefix}api_keys", 0, -1))
        return await self._many([name.decode() for name in ids])

    async def audited(self, after: str | None = None, limit: int = 50) -> list[Audited]:
        """Entries of the audit, newest first; `after` is the id of the last one seen."""
        start = f"({after}" if after else "+"
        rows = await answered(self.redis.xrevrange(f"{self._prefix}audit", max=start, count=limit))
        return [_audited(entry, fields) for entry, fields in rows]

    # -- inside

    def _checked(self, asked: Asked) -> str:
        if not 1 <= len(asked.name) <= LONGEST_NAME or not asked.name.isprintable():
            raise InvalidField("name", asked.name, f"1 to {LONGEST_NAME} printable characters")
        owner = asked.name if asked.owner is None else asked.owner
        if not re.fullmatch(OWNER_PATTERN, owner):
            allowed = "1 to 64 letters, digits and _ . @ : -; a name of another form needs an owner beside it"
            raise InvalidField("name" if asked.owner is None else "owner", owner, allowed)
        self._check_tier(asked.tier)
        self._check_limits(asked.limits)
        wrong = [scope for scope in asked.scopes if scope not in SCOPES]
        if wrong or not asked.scopes:
            raise InvalidField("scopes", wrong[0] if wrong else "none", ", ".join(SCOPES))
        if asked.expires_s is not None and not 0 < asked.expires_s <= LONGEST_LIFE_S:
            raise InvalidField("expires_s", asked.expires_s, "more than 0 seconds, at most ten years")
        return owner

    def _check_tier(self, tier: str) -> None:
        if tier not in self.settings.tiers:
            raise InvalidField("tier", tier, f"{', '.join(self.settings.tiers)} (JARVIS_TIERS)")

    def _check_limits(self, limits: Sequence[str]) -> None:
        if len(limits) > MOST_LIMITS:
            raise InvalidField("limits", f"{len(limits)} limits", f"at most {MOST_LIMITS}")
        Policy.parse(limits, "limits")

    def _changed(self, answer: bytes, key_id: str, action: str) -> None:
        if answer == b"none":
            raise NoKey(key_id)
        if answer == b"revoked":
            raise NotAllowedNow(key_id, "revoked", action, "API key")

    def _key(self, key_id: str) -> str:
        if not re.fullmatch(r"[a-z0-9]{1,32}", key_id):
            raise NoKey(key_id)
        return f"{self._prefix}api_key:{key_id}"

    async def _many(self, ids: Sequence[str]) -> list[ApiKey]:
        pipe = self.redis.pipeline(transaction=False)
        for key_id in ids:
            pipe.hgetall(self._key(key_id))
        rows = await answered(pipe.execute()) if ids else []
        return [one for key_id, row in zip(ids, rows, strict=True) if (one := _record(key_id, row))]

    async def _again(self, name: str, *args: Any) -> Any:
        # The reply may be lost though it was done. What makes it unique is in the arguments, so it is safe to repeat.
        try:
            return await self._run(name, *args)
        except StoreUnavailable:
            return await self._run(name, *args)

    async def _run(self, name: str, *args: Any) -> Any:
        return await answered(scripts.run(self.redis, name, self._prefix, *args))


def _record(key_id: str, row: dict[bytes, bytes]) -> ApiKey | None:
    if not row:
        return None
    try:
        texts = {name.decode(): value.decode() for name, value in row.items()}
        return ApiKey(
            id=key_id,
            name=texts["name"],
            owner=texts["owner"],
            tier=texts["tier"],
            limits=decode(texts["limits"], type=tuple[str, ...]),
            scopes=decode(texts["scopes"], type=tuple[Scope, ...]),
            digest=texts["digest"],
            old_digest=texts.get("old_digest", ""),
            old_until_ms=int(texts.get("old_until", 0)),
            expires_ms=int(texts.get("expires", 0)),
            created_ms=int(texts.get("created", 0)),
            revoked_ms=int(texts.get("revoked", 0)),
            used_ms=int(texts.get("used", 0)),
        )
    except (KeyError, ValueError) as error:  # msgspec's and broken UTF-8 too
        log.error("the record of API key %s cannot be read: %s", key_id, error)
        return None


def _audited(entry: bytes, fields: dict[bytes, bytes]) -> Audited:
    texts = {name.decode(): value.decode() for name, value in fields.items()}
    at = int(entry.partition(b"-")[0]) / 1000
    detail = decode(texts.pop("detail", "{}"))
    return Audited(entry.decode(), at, texts["actor"], texts["action"], texts["thing"], texts["owner"], detail)


def key_out(one: ApiKey, settings: Settings) -> dict[str, Any]:
    """A key for a reader: all but what could be used in its place."""
    now_ms = time.time() * 1000
    status = "revoked" if one.revoked_ms else "expired" if one.expired(now_ms) else "active"
    try:
        effective: list[str] | None = one.policy(settings.tiers).texts()
    except InvalidField:
        effective = None  # its tier is not in the settings any more
    return {
        "id": one.id,
        "object": "api_key",
        "name": one.name,
        "owner": one.owner,
        "tier": one.tier,
        "limits": list(one.limits),
        "effective_limits": effective,
        "scopes": list(one.scopes),
        "status": status,
        "created_at": _seconds(one.created_ms),
        "expires_at": _seconds(one.expires_ms),
        "revoked_at": _seconds(one.revoked_ms),
        "last_used_at": _seconds(one.used_ms),
        "old_secret_until": _seconds(one.old_until_ms) if one.old_until_ms > now_ms else None,
    }


def _seconds(at_ms: int) -> float | None:
    return at_ms / 1000 if at_ms else None
