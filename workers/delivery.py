"""Sends webhooks: takes what is due in the outbox, makes one attempt at each, writes down how it went.

Any number may run. A delivery that was taken comes back when its lease ends, so that a worker that dies loses
nothing; its receiver may hear an event twice then, with the same id.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import msgspec
from redis.exceptions import RedisError

from common.destinations import Destinations, parse
from common.documents import record_out, result_out
from common.egress import Egress, Reply
from common.endpoints import Endpoints
from common.errors import DestinationRefused, JarvisError, NoEndpoint, NotFound, StoreUnavailable
from common.outbox import Delivery, Outbox, Status
from common.queue import Queue
from common.results import Results
from common.service import keep
from common.settings import Settings
from common.states import State
from common.webhooks import event_body, headers_of
from workers.hosts import Hosts

log = logging.getLogger("jarvis.delivery")

#: How often the lists are tidied and the shards' notes of endpoints repaired; nothing waits for it.
TIDY_S = 60.0
#: The status with which a receiver says that it is not there any more.
GONE = 410
JITTER = 0.1
#: Deliveries taken in one call.
MOST_TAKEN = 16


class Receiver(msgspec.Struct, frozen=True):
    """Where a delivery goes, and with which secrets."""

    url: str
    secrets: list[str]
    full: bool


class Dropped(JarvisError):
    """A delivery that nobody wants any more; the message says why."""


class Deliverer:
    """Delivers what the outboxes of all shards hold."""

    def __init__(self, queue: Queue, egress: Egress | None = None) -> None:
        settings = queue.settings
        self.settings = settings
        self.keys = queue.keys
        self.outbox = Outbox(queue.redis, settings)
        self.endpoints = Endpoints(queue.redis, settings)
        self.results = Results(queue.redis, settings)
        self.egress = egress or Egress(Destinations(settings.webhook_allow), settings.webhook_timeout_s)
        self._slots = asyncio.Semaphore(settings.webhook_slots)
        self._hosts = Hosts(settings.webhook_slots)
        self._under_way: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Work until cancelled, then end what is under way; outlives restarts of Redis."""
        loops = [keep(log, self._shard, prefix) for prefix in self.keys.prefixes()]
        try:
            await asyncio.gather(*loops, keep(log, self._tidy))
        finally:
            if self._under_way:
                await asyncio.wait(self._under_way, timeout=self.settings.webhook_timeout_s)
            await self.egress.close()
            await self.results.close()

    async def _shard(self, prefix: str) -> None:
        while True:
            # Nothing is taken that cannot be tried at once: its lease would run out meanwhile.
            places = await self._places()
            taken: list[Delivery] = []
            try:
                due = await self.outbox.due(prefix, places)
                taken = due.deliveries
            finally:
                for _ in range(places - len(taken)):
                    self._slots.release()
            for delivery in taken:
                task = asyncio.create_task(self._deliver(delivery))
                self._under_way.add(task)
                task.add_done_callback(self._done)
            if not taken:
                longest_s = self.settings.bell_timeout_s
                await self.outbox.wait(prefix, longest_s if due.next_ms is None else due.next_ms / 1000)

    async def _places(self) -> int:
        await self._slots.acquire()
        places = 1
        while places < MOST_TAKEN and not self._slots.locked():
            await self._slots.acquire()
            places += 1
        return places

    def _done(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        self._slots.release()
        if not task.cancelled() and (error := task.exception()):
            # The delivery comes back when its lease ends.
            log.error("a delivery failed in a way nobody foresaw", exc_info=error)

    async def _tidy(self) -> None:
        while True:
            await self.endpoints.repair()
            for prefix in self.keys.prefixes():
                await self.outbox.forget(prefix)
            await asyncio.sleep(TIDY_S)

    # -- one delivery

    async def _deliver(self, delivery: Delivery) -> None:
        try:
            receiver = await self._receiver(delivery)
        except Dropped as error:
            await self._settle(delivery, "failed", _no_attempt(str(error)), why=str(error))
        except StoreUnavailable:
            pass  # it comes back when its lease ends
        else:
            await self._in_turn(delivery, receiver)

    async def _in_turn(self, delivery: Delivery, receiver: Receiver) -> None:
        host = _host_of(receiver.url)
        if wait_s := self._hosts.wait_s(host):
            await self._patiently(self.outbox.put_off, delivery, wait_s)
            return
        self._hosts.enter(host)
        took_ms = None
        try:
            body = await self._body(delivery, receiver)
            headers = headers_of(delivery.event, int(time.time()), body, receiver.secrets)
            reply = await self.egress.post(receiver.url, headers, body)
            took_ms = None if reply.status is None else reply.took_ms
        finally:
            self._hosts.leave(host, took_ms)
        await self._end(delivery, reply, host, body if receiver.full else b"")

    async def _end(self, delivery: Delivery, reply: Reply, host: str, body: bytes) -> None:
        pause_s = pause_before_next(self.settings, delivery.tries, reply)
        if reply.good:
            await self._settle(delivery, "delivered", reply)
        elif reply.status == GONE:
            await self._disable(delivery)
            await self._settle(delivery, "failed", reply, why="its receiver is gone (410)")
        elif pause_s is None:
            await self._settle(
                delivery, "failed", reply, why=f"{delivery.attempts + 1} attempts, the last: {reply.words}"
            )
        else:
            # What is sent again is what was sent: a job's record may be gone by then.
            log.info("%s to %s: %s; again in %.0f s", delivery.id, host, reply.words, pause_s)
            await self._settle(delivery, "pending", reply, pause_s, b"" if delivery.body else body)

    async def _receiver(self, delivery: Delivery) -> Receiver:
        hook = delivery.hook
        if hook is not None and hook.url is not None:
            return Receiver(hook.url, [hook.secret] if hook.secret else [], hook.payload == "full")
        try:
            endpoint = await self.endpoints.get(delivery.endpoint or "")
        except NoEndpoint:
            raise Dropped("its endpoint was deleted") from None
        if endpoint.disabled:
            raise Dropped(f"its endpoint is disabled: {endpoint.disabled}")
        return Receiver(endpoint.url, endpoint.valid(time.time()), endpoint.payload == "full")

    async def _body(self, delivery: Delivery, receiver: Receiver) -> bytes:
        if delivery.body:
            with suppress(FileNotFoundError):
                return await self.outbox.blobs.load(delivery.body)
        thin: dict[str, Any] = {"id": delivery.subject}
        own = delivery.job == delivery.subject  # OpenAI's own events, of responses and batches, are thin
        if own:
            thin |= {"object": "job", "status": delivery.type.partition(".")[2]}
        data = (await self._full(delivery) or thin) if receiver.full and own else thin
        body = event_body(delivery.event, delivery.type, delivery.at_ms, data)
        if len(body) > self.settings.webhook_body_bytes:
            return event_body(delivery.event, delivery.type, delivery.at_ms, thin)
        return body

    async def _full(self, delivery: Delivery) -> dict[str, Any] | None:
        assert delivery.job is not None
        try:
            found = await self.results.look(delivery.job)
        except (NotFound, FileNotFoundError):
            return None  # its retention has ended
        has_result = found.record.status in (State.COMPLETED, State.INCOMPLETE)
        return {**record_out(found.record), "result": result_out(found) if has_result else None}

    async def _disable(self, delivery: Delivery) -> None:
        if delivery.endpoint is None:
            return
        log.error("endpoint %s is disabled: its receiver answered 410 (gone)", delivery.endpoint)
        try:
            await self._patiently(
                self.endpoints.change,
                delivery.endpoint,
                lambda one: msgspec.structs.replace(one, disabled="its receiver answered 410 (gone)"),
            )
        except NoEndpoint:
            return

    async def _settle(
        self, delivery: Delivery, status: Status, reply: Reply, pause_s: float = 0, body: bytes = b"", why: str = ""
    ) -> None:
        if status == "failed":
            log.error(
                "%s (%s) is given up: %s; jarvis webhooks redeliver brings it back", delivery.id, delivery.type, why
            )
        await self._patiently(self.outbox.settle, delivery, status, reply, pause_s, body)

    async def _patiently(self, call: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        # While Redis is away the attempt is not forgotten; after the lease it would be somebody else's.
        deadline = time.monotonic() + self.settings.lease_s
        while True:
            try:
                return await call(*args)
            except (RedisError, OSError, StoreUnavailable) as error:
                if time.monotonic() > deadline:
                    log.warning("an attempt could not be written down (%s): it is made again", type(error).__name__)
                    return None
                await asyncio.sleep(0.2)


def pause_before_next(settings: Settings, tries: int, reply: Reply) -> float | None:
    """Seconds until the next attempt, after `tries` before this one; None when there is none any more."""
    if tries >= len(settings.webhook_retry_s):
        return None
    pause_s = settings.webhook_retry_s[tries] * random.uniform(1 - JITTER, 1 + JITTER)
    return max(pause_s, reply.retry_after_s or 0)


def _no_attempt(why: str) -> Reply:
    return Reply(at=round(time.time(), 3), took_ms=0, error=why)


def _host_of(url: str) -> str:
    # For logs and for counting: the rest of an address may hold secrets.
    try:
        return parse(url).authority
    except DestinationRefused:
        return "an address that is not allowed"
