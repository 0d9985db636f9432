"""The outbox: what webhooks are still to be told, each entry written by the script that ended its job.

A delivery is one event for one receiver. It is due at once, is leased to a delivery worker for each attempt, and stays
until the receiver has it or it is given up; its event has one id for ever.
"""

from __future__ import annotations

import logging
import secrets
import time
from contextlib import suppress
from typing import Any, Literal, get_args

import msgspec
import redis.asyncio as redis

from common import scripts
from common.blobs import Blobs
from common.egress import Reply
from common.errors import NoDelivery
from common.jobs import decode, encode
from common.keys import Keys
from common.settings import Settings
from common.store import answered
from common.webhooks import Hook

log = logging.getLogger("jarvis.outbox")

Status = Literal["pending", "delivered", "failed"]
#: Most attempts whose record is kept with a delivery.
ATTEMPTS_KEPT = 20
#: Most entries looked at for one page of a list: bounds what a narrow filter may cost.
SCAN = 5_000


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """One event for one receiver: a job's own webhook (`hook`), or a standing endpoint."""

    id: str
    event: str
    type: str
    at_ms: int
    status: Status
    tries: int  # since it was made, or delivered again
    attempts: int
    user: str
    subject: str
    job: str | None = None
    hook: Hook | None = None
    endpoint: str | None = None
    claims: str = "0"
    body: bytes = b""
    ended_ms: int | None = None
    due_ms: int | None = None

    @property
    def name(self) -> str:
        """It, as keys have it."""
        return self.id.removeprefix("dlv_")


class Due(msgspec.Struct, frozen=True):
    """What a worker took, and how long until there may be more (None: nothing waits)."""

    deliveries: list[Delivery]
    next_ms: int | None


class DeliveryPage(msgspec.Struct, frozen=True):
    """Part of a list, newest first; `next` continues it."""

    deliveries: list[Delivery]
    next: str | None


class Standing(msgspec.Struct, frozen=True):
    """How the outboxes stand: deliveries that wait, the most overdue one, and counters since Redis was new."""

    pending: int
    overdue_s: float
    counts: dict[str, int]


class Outbox:
    """The outboxes of all shards, over one Redis client."""

    def __init__(self, client: redis.Redis, settings: Settings) -> None:
        self.redis = client
        self.settings = settings
        self.keys = Keys(settings.namespace, settings.shards)
        self.blobs = Blobs(settings)
        self.lease_ms = int((settings.webhook_timeout_s + settings.lease_s) * 1000)

    # -- a delivery worker's moves, one shard at a time

    async def due(self, prefix: str, count: int) -> Due:
        """Take up to `count` deliveries that are due; each comes back when its lease ends."""
        rows, next_ms = await scripts.run(self.redis, "deliver", prefix, count, self.lease_ms)
        taken = []
        for name, flat in rows:
            try:
                taken.append(_delivery(name, _fields(flat)))
            except (KeyError, ValueError):  # msgspec's too
                await self._lay_aside(prefix, name)
        return Due(taken, None if next_ms < 0 else next_ms)

    async def _lay_aside(self, prefix: str, name: bytes) -> None:
        # Its record cannot be read, so it never will be: it must not come back for ever.
        log.error("dlv_%s is not one that can be read: it is taken out of the outbox", name.decode("ascii", "replace"))
        await self.redis.zrem(f"{prefix}outbox", name)
        await self.redis.pexpire(f"{prefix}delivery:".encode() + name, int(self.settings.webhook_retention_s * 1000))

    async def settle(
        self, delivery: Delivery, status: Status, reply: Reply, due_s: float = 0, body: bytes = b""
    ) -> bool:
        """Write down an attempt and what follows; false when the delivery is somebody else's by now.

        `body` is what the next attempt sends again.
        """
        kept = await self.blobs.store(body, self._longest_s()) if body else b""
        counter = "attempt:good" if reply.good else f"attempt:{reply.status}" if reply.status else "attempt:none"
        return await self._settle(delivery, status, due_s, encode(reply), kept, counter)

    async def put_off(self, delivery: Delivery, due_s: float) -> bool:
        """Give a delivery back without an attempt."""
        return await self._settle(delivery, "pending", due_s, b"", b"", "")

    async def _settle(
        self, delivery: Delivery, status: Status, due_s: float, attempt: bytes, body: bytes, counter: str
    ) -> bool:
        head = delivery.name, delivery.claims, status, int(due_s * 1000)
        rest = attempt, body, ATTEMPTS_KEPT, int(self.settings.webhook_retention_s * 1000), counter
        return bool(await scripts.run(self.redis, "settle", self._of(delivery.id), *head, *rest))

    async def wait(self, prefix: str, timeout_s: float) -> None:
        """Wait until there is a new delivery, or the time is over."""
        timeout_s = max(0.01, min(timeout_s, self.settings.bell_timeout_s))
        await scripts.execute(self.redis, "BLPOP", f"{prefix}outbox:bell", timeout_s)

    async def forget(self, prefix: str, limit: int = 500) -> int:
        """The list forgets what is over and past its retention or bound; returns how many went."""
        first = gone = 0
        looked = limit
        while looked == limit:
            args = (limit, self.settings.webhook_kept, first)
            looked, went = await scripts.run(self.redis, "forget", prefix, *args)
            first += looked - went
            gone += went
        return gone

    def _longest_s(self) -> float:
        return 1.2 * sum(self.settings.webhook_retry_s) + self.settings.webhook_retention_s

    # -- other moves

    async def sample(self, endpoint_id: str, user: str, kind: str) -> str:
        """Send an endpoint an event of a kind about nothing, once; returns the delivery's id."""
        name = f"{endpoint_id[3:5]}{secrets.token_hex(11)}"
        await answered(scripts.run(self.redis, "sample", self._of(f"dlv_{name}"), name, kind, user, endpoint_id))
        return f"dlv_{name}-{endpoint_id[3:]}"

    async def redeliver(self, delivery_id: str) -> None:
        """Make a delivery due now, whatever became of it. Raises NoDelivery, StoreUnavailable."""
        prefix = self._of(delivery_id)
        if not await answered(scripts.run(self.redis, "redeliver", prefix, delivery_id.removeprefix("dlv_"))):
            raise NoDelivery(delivery_id)

    # -- readers

    async def get(self, delivery_id: str) -> Delivery:
        """One delivery. Raises NoDelivery, StoreUnavailable."""
        found = await self._many([delivery_id])
        if not found:
            raise NoDelivery(delivery_id)
        return found[0]

    async def attempts(self, delivery_id: str) -> list[Reply]:
        """Its last attempts, oldest first."""
        key = f"{self._of(delivery_id)}attempts:{delivery_id.removeprefix('dlv_')}"
        rows = await answered(scripts.execute(self.redis, "LRANGE", key, 0, -1))
        return [decode(row, type=Reply) for row in rows]

    async def page(
        self,
        status: Status | None = None,
        user: str | None = None,
        endpoint: str | None = None,
        job: str | None = None,
        after: str | None = None,
        limit: int = 50,
    ) -> DeliveryPage:
        """Deliveries, newest first. A narrow filter may return a short page with a `next`: SCAN are looked at."""
        found: list[Delivery] = []
        cursor, scanned = after, 0
        wanted = {"status": status, "user": user, "endpoint": endpoint, "job": job}
        while len(found) < limit and scanned < SCAN:
            rows = await self._index(cursor, 200)
            if not rows:
                return DeliveryPage(found, None)
            scanned += len(rows)
            known = {one.id: one for one in await self._many([row[1] for row in rows])}
            for place, delivery_id in rows:
                cursor = place
                one = known.get(delivery_id)
                if one and all(value in (None, getattr(one, name)) for name, value in wanted.items()):
                    found.append(one)
                    if len(found) == limit:
                        break
        return DeliveryPage(found, cursor)

    async def standing(self) -> Standing:
        """How the outboxes stand, for metrics."""
        pending, oldest, counts = 0, 0.0, dict[str, int]()
        for prefix in self.keys.prefixes():
            pipe = self.redis.pipeline(transaction=False)
            pipe.zcard(f"{prefix}outbox")
            pipe.zrange(f"{prefix}outbox", 0, 0, withscores=True)
            pipe.hgetall(f"{prefix}outbox:counts")
            waiting, first, some = await answered(pipe.execute())
            pending += waiting
            if first:
                oldest = max(oldest, time.time() - first[0][1] / 1000)
            for name, value in some.items():
                counts[name.decode()] = counts.get(name.decode(), 0) + int(value)
        return Standing(pending, oldest, counts)

    # -- inside

    async def _index(self, before: str | None, count: int) -> list[tuple[str, str]]:
        # (cursor, id) of all shards, newest first; a cursor is a time and a name, so that shards merge by it.
        at_ms, _, name = (before or "").partition("-")
        rows: list[tuple[int, str]] = []
        for prefix in self.keys.prefixes():
            top = at_ms or "+inf"
            key, start = f"{prefix}deliveries", 0
            some: list[tuple[int, str]] = []
            while len(some) < count:
                page = await answered(
                    self.redis.zrevrangebyscore(key, top, "-inf", start=start, num=count, withscores=True)
                )
                some += [(int(at), one.decode()) for one, at in page]
                if before:
                    some = [row for row in some if row < (int(at_ms), name)]
                start += count
                if len(page) < count:
                    break
            rows += some
        rows.sort(reverse=True)
        return [(f"{at}-{one}", f"dlv_{one}") for at, one in rows[:count]]

    async def _many(self, ids: list[str]) -> list[Delivery]:
        pipe = self.redis.pipeline(transaction=False)
        prefixes = [self._of(one) for one in ids]
        for prefix, one in zip(prefixes, ids, strict=True):
            name = one.removeprefix("dlv_")
            pipe.hgetall(f"{prefix}delivery:{name}")
            pipe.zscore(f"{prefix}outbox", name)
        rows = await answered(pipe.execute())
        found = []
        for number, one in enumerate(ids):
            fields, due_ms = rows[2 * number : 2 * number + 2]
            if fields:
                with suppress(KeyError, ValueError):
                    made = _delivery(one.removeprefix("dlv_").encode(), fields)
                    found.append(msgspec.structs.replace(made, due_ms=None if due_ms is None else int(due_ms)))
        return found

    def _of(self, delivery_id: str) -> str:
        known = delivery_id.startswith("dlv_") and len(delivery_id) <= 64 and delivery_id.isascii()
        prefix = self.keys.named(delivery_id[4:6])
        if not known or prefix is None:
            raise NoDelivery(delivery_id)
        return prefix


def _fields(flat: Any) -> dict[bytes, bytes]:
    return {flat[i]: flat[i + 1] for i in range(0, len(flat), 2)}


def _delivery(name: bytes, fields: dict[bytes, bytes]) -> Delivery:
    texts = {key.decode(): value for key, value in fields.items()}
    status = texts["status"].decode()
    if status not in get_args(Status):
        raise ValueError(f"{status!r} is no status")
    return Delivery(
        id=f"dlv_{name.decode()}",
        event=texts["event"].decode(),
        type=texts["type"].decode(),
        at_ms=int(texts["at"]),
        status=status,  # type: ignore[arg-type]
        tries=int(texts["tries"]),
        attempts=int(texts.get("attempts", 0)),
        user=texts["user"].decode(),
        subject=texts["subject"].decode(),
        job=texts["job"].decode() if "job" in texts else None,
        hook=decode(texts["hook"], type=Hook) if "hook" in texts else None,
        endpoint=texts["endpoint"].decode() if "endpoint" in texts else None,
        claims=texts.get("claims", b"0").decode(),
        body=texts.get("body", b""),
        ended_ms=int(texts["ended"]) if "ended" in texts else None,
    )
