"""Where the queue's scripts find what a key may do: two hashes in every shard, so that each script reads its own.

`limits` has a key's door limits by its id; `shares` has an owner's weight and what is enforced where jobs are claimed,
by his name. Who has nothing in them has no limits, and weight 1.
"""

from __future__ import annotations

from collections.abc import Iterable

import redis.asyncio as redis

from common import scripts
from common.jobs import decode, encode
from common.keys import Keys
from common.limits import Limit, Policy
from common.settings import Settings
from common.store import answered


class Policies:
    """The policies of all shards, over one Redis client."""

    def __init__(self, client: redis.Redis, settings: Settings) -> None:
        self.redis = client
        self.keys = Keys(settings.namespace, settings.shards)

    async def set_door(self, api_key: str, policy: Policy) -> None:
        """From now on submits of this key are held against the policy's limits (those without `wait`) and `waiting`."""
        limits = door(policy)
        for prefix in self.keys.prefixes():
            if limits:
                await self.redis.hset(f"{prefix}limits", api_key, encode(limits).decode())  # type: ignore[misc]
            else:
                await self.redis.hdel(f"{prefix}limits", api_key)  # type: ignore[misc]

    async def set_share(self, owner: str, policy: Policy) -> None:
        """From now on claims go by the policy's weight, its `in_progress` and its limits with `wait`."""
        text = encode(share(policy)) if share(policy) else b""
        for prefix in self.keys.prefixes():
            await scripts.run(self.redis, "share", prefix, owner, text)

    async def shares(self) -> dict[str, dict[str, object]]:
        """By owner, what claims go by. Raises StoreUnavailable."""
        found: dict[str, dict[str, object]] = {}
        for prefix in self.keys.prefixes():
            rows = await answered(self.redis.hgetall(f"{prefix}shares"))
            found |= {owner.decode(): decode(text) for owner, text in rows.items()}
        return found


def door(policy: Policy) -> dict[str, object]:
    """What submit.lua reads: `{"limits": [[what, amount, window in ms, burst], ...], "waiting": N}`; {} for nothing."""
    limits = _rows(limit for limit in policy.limits if not limit.wait)
    return ({"limits": limits} if limits else {}) | ({"waiting": policy.waiting} if policy.waiting else {})


def share(policy: Policy) -> dict[str, object]:
    """What claiming.lua reads: `{"weight": W, "in_progress": N, "limits": [as at the door]}`; {} if ordinary."""
    limits = _rows(limit for limit in policy.limits if limit.wait)
    out: dict[str, object] = {} if policy.weight == 1.0 else {"weight": policy.weight}
    if policy.in_progress:
        out["in_progress"] = policy.in_progress
    return out | ({"limits": limits} if limits else {})


def _rows(limits: Iterable[Limit]) -> list[list[object]]:
    return [[limit.what, limit.amount, limit.window_s * 1000, limit.burst] for limit in limits]
