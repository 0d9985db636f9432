"""The queue: submit, claim, renew, commit, cancel, retry, replay and the scheduler's moves.

Every method is one call of one Lua script, so that no job is ever half moved; any of them may be sent
again after a lost reply without doing anything twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import redis.asyncio as redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from common import scripts
from common.blobs import Blobs
from common.errors import JarvisError, NotAllowedNow, NotFound
from common.jobs import ClaimedJob, Conversation, JobSpec, Submitted, Ticket, Work, decode, encode, parse_history
from common.keys import Keys, new_job_id
from common.limits import Left, cost_taken
from common.outcomes import Answer, Emitted, Event, Outcome, ends
from common.settings import Settings
from common.states import State
from common.store import UNAVAILABLE, answered, unavailable
from common.submission import SUBMIT_BATCH, Key, arguments, batches, submitted
from common.webhooks import Hook

__all__ = ["SUBMIT_BATCH", "Answer", "Emitted", "Event", "Key", "Outcome", "Queue", "Swept"]


class Swept(NamedTuple):
    """What one look of the scheduler moved, and how long until there may be more (None: nothing is waiting)."""

    moved: int
    next_ms: int | None


class Queue:
    """The queue's moves over one Redis client."""

    def __init__(self, client: redis.Redis, settings: Settings) -> None:
        self.redis = client
        self.settings = settings
        self.keys = Keys(settings.namespace, settings.shards)
        self.blobs = Blobs(settings)
        self._retention_ms = int(settings.retention_s * 1000)

    @classmethod
    async def connect(cls, settings: Settings) -> Queue:
        """A queue with a client of its own. Does not need Redis to answer yet."""
        return cls(scripts.connect(settings), settings)

    async def close(self) -> None:
        """Close the client's connections."""
        await self.redis.aclose()

    async def prepare(self) -> None:
        """Ask Redis to keep job records compact and lines of owners searchable. Where it does not let us, they are
        larger and slower, and all else holds.
        """
        if not self.settings.tune_redis:
            return
        try:
            kept = await self.redis.config_get("hash-max-*-value")
            if any(int(value) < 1024 for value in kept.values()):
                await self.redis.config_set("hash-max-ziplist-value", 1024)  # both names' old form: 6.2 knows no other
            kept = await self.redis.config_get("zset-max-*-entries")
            if any(int(value) > 16 for value in kept.values()):  # a line of 100 owners would be read from its start
                await self.redis.config_set("zset-max-ziplist-entries", 16)
        except ResponseError:
            return

    # -- a caller's moves

    async def submit(self, spec: JobSpec, idempotency: Key | None = None) -> Submitted:
        """Accept one job. Raises QueueFull, LimitReached, IdempotencyMismatch, StoreUnavailable."""
        return (await self.submit_many([spec], [idempotency]))[0]

    async def submit_many(self, specs: Sequence[JobSpec], idempotency: Sequence[Key | None] = ()) -> list[Submitted]:
        """Accept jobs, in order. When one is refused the error is raised, and the others may have been accepted."""
        answers = await self.submit_each(specs, idempotency)
        for answer in answers:
            if isinstance(answer, JarvisError):
                raise answer
        return answers  # type: ignore[return-value]

    async def submit_each(
        self, specs: Sequence[JobSpec], idempotency: Sequence[Key | None] = (), ids: Sequence[str] = ()
    ) -> list[Submitted | JarvisError]:
        """Accept jobs, in order; one that is refused has its QueueFull, LimitReached or IdempotencyMismatch in
        its place.

        With `ids` the caller names them: a job that is there under its id already is attached to.
        Raises StoreUnavailable; some may have been accepted then, and the same call with keys attaches to those.
        """
        keys = list(idempotency) or [None] * len(specs)
        by_shard: dict[str, list[int]] = {}
        for i, spec in enumerate(specs):
            by_shard.setdefault(self.keys.shard_of_queue(spec.queue), []).append(i)
        answers: dict[int, Submitted | JarvisError] = {}
        under_way: asyncio.Task[None] | None = None

        async def send(shard: str, some: list[int], args: list[Any]) -> None:
            replies = await self._sent(self.keys.prefix(shard), args)
            limits: dict[str, tuple[Left, ...]] = {}  # of each key, told with its first job
            for i, reply in zip(some, replies, strict=True):
                answers[i] = submitted(specs[i], reply, limits)

        try:
            for shard, some in batches(by_shard):
                names = [ids[i] if ids else new_job_id(shard) for i in some]
                args = await self._encoded(names, [specs[i] for i in some], [keys[i] for i in some])
                if under_way:
                    await under_way
                under_way = asyncio.create_task(send(shard, some, args))
                # It is sent now, and Redis works on it while the next batch is encoded: one turn of the loop writes,
                # and uvloop hands that to the socket at the turn's end.
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            if under_way:
                await under_way
        finally:
            if under_way:
                under_way.cancel()
        return [answers[i] for i in range(len(specs))]

    async def _encoded(self, ids: list[str], specs: list[JobSpec], keys: list[Key | None]) -> list[Any]:
        args: list[Any] = []
        for job_id, spec, key in zip(ids, specs, keys, strict=True):
            args += arguments(job_id, spec, await self._work(spec), key, self.settings)
        return args

    async def _sent(self, prefix: str, args: list[Any]) -> list[Any]:
        settings = self.settings
        ordinary_ms = int(settings.default_ttl_s * 1000)
        usage_ms = settings.usage_kept_days * 86_400_000
        bounds = settings.max_depth, settings.events_kept
        head = (int(settings.idempotency_s * 1000), *bounds, ordinary_ms, usage_ms, self._retention_ms)
        try:
            return await scripts.run(self.redis, "submit", prefix, *head, *args)  # type: ignore[no-any-return]
        except UNAVAILABLE as error:
            if not isinstance(error, (RedisConnectionError, RedisTimeoutError)):
                raise unavailable(error) from error
            # The reply may be lost though the jobs were accepted. The ids are ours: the same call is safe to repeat.
            try:
                return await scripts.run(self.redis, "submit", prefix, *head, *args)  # type: ignore[no-any-return]
            except UNAVAILABLE:
                raise unavailable(error) from error

    async def _work(self, spec: JobSpec) -> bytes:
        model = spec.model if spec.base else ""
        work = encode(Work(spec.input, spec.params, spec.function, model, spec.keep_s, spec.front, spec.awaited))
        if len(work) <= self.settings.inline_bytes:
            return work
        return await self.blobs.store(work, self.life_s(spec.ttl_s))

    def life_s(self, ttl_s: float | None) -> float:
        """How long what a job needs must be kept: its life, and the time in which it can be run again."""
        return (ttl_s or self.settings.default_ttl_s) + self.settings.retention_s

    async def cancel(self, job_id: str) -> None:
        """End a job wherever it stands; a terminal one stays as it is. Raises NotFound, StoreUnavailable."""
        if await self._end("cancel", job_id) is None:
            raise NotFound(job_id)

    async def cancel_each(self, job_ids: Sequence[str]) -> None:
        """`cancel` for jobs of which any may be gone. Raises StoreUnavailable; then it may be sent again."""
        for job_id in job_ids:
            with suppress(NotFound):
                await self.cancel(job_id)

    async def let_go(self, job_ids: Sequence[str]) -> None:
        """Records that were kept longer (`keep_s`) are kept for their retention from now on."""
        pipe = self.redis.pipeline(transaction=False)
        for job_id in job_ids:
            pipe.pexpire(self.keys.job(job_id), self._retention_ms)
        await answered(pipe.execute())

    async def erase(self, job_id: str) -> None:
        """End a job wherever it stands and remove all that is kept of it. Raises NotFound, StoreUnavailable."""
        kept = await self._end("erase", job_id)
        if kept is None:
            raise NotFound(job_id)
        for body in kept:
            if body.startswith(b"@"):
                await self.blobs.remove(body.decode())

    async def retry(self, job_id: str) -> Submitted:
        """Submit again what a job that did not complete asked for, as a new job; asked twice, the same one.

        Terminal states never change, so the old record stays. Raises NotFound, NotAllowedNow.
        """
        fields = ["ticket", "history", "work", "metadata", "hook", "held", "conversation"]
        values = await answered(self.redis.hmget(self.keys.job(job_id), fields))
        found, history, work_bytes, metadata, hook, held, conversation = values
        if found is None:
            raise NotFound(job_id)
        state = parse_history(history.decode())[-1][1]
        if state not in (State.FAILED, State.CANCELLED, State.EXPIRED, State.INCOMPLETE):
            raise NotAllowedNow(job_id, state, "retry")
        work = decode(await self.blobs.load(work_bytes), type=Work)
        ticket = Ticket.parse(found.decode())
        kind, _, model = ticket.queue.partition(":")
        spec = JobSpec(
            kind=kind,
            model=work.model or model,
            base=model if work.model else "",
            input=await self._kept_on(work.input),
            params=work.params,
            function=work.function,
            front=work.front,
            user=ticket.user,
            api_key=ticket.api_key,
            units=ticket.units,
            cost_micros=cost_taken(held),
            priority=ticket.lane,
            metadata=decode(metadata) if metadata else {},
            timeout_s=ticket.timeout_ms / 1000,
            max_attempts=ticket.tries,
            retry_of=job_id,
            hook=decode(hook, type=Hook) if hook else None,
            conversation=Conversation(conversation.decode()) if conversation else None,
        )
        return await self.submit(spec, Key(f"retry {job_id}", ""))

    async def _kept_on(self, asked: dict[str, Any]) -> dict[str, Any]:
        """An input whose recording, if it has one, lives as long as a new job may."""
        audio = asked.get("audio")
        if not isinstance(audio, str) or not audio.startswith("@"):
            return asked
        with suppress(FileNotFoundError):  # the job will say that it is gone
            audio = await self.blobs.keep(audio, self.life_s(None))
        return {**asked, "audio": audio}

    async def replay(self, parked_id: str) -> Submitted:
        """Take a job off the parked list and submit it again. Raises NotFound, NotAllowedNow."""
        prefix = self.keys.of_job(parked_id)
        submitted = await self.retry(parked_id)
        await answered(self.redis.zrem(f"{prefix}parked", parked_id))
        await answered(self.redis.hdel(f"{prefix}parked:info", parked_id))
        return submitted

    # -- a worker's moves

    async def claim(
        self, queue: str, worker: str, count: int, request: int, most: int | None = None
    ) -> list[ClaimedJob]:
        """Up to `count` jobs, each with a lease. The same `request` again returns the same jobs.

        Where short jobs of an owner go in a row, up to `most`: his row is then not cut.
        """
        flat = await scripts.run(self.redis, "claim", *self._claim(queue, worker, count, request, most))
        return _claimed_jobs(flat, queue)

    async def help(
        self, queue: str, worker: str, count: int, request: int, after_s: float, before: Sequence[str]
    ) -> list[ClaimedJob]:
        """`claim` for a worker of a fallback model: what no worker of the queue's own model, or of those `before` in
        the chain, is there to take, and what has waited longer than `after_s`."""
        head = self._claim(queue, worker, count, request)
        flat = await scripts.run(self.redis, "help", *head, int(after_s * 1000), *before)
        return _claimed_jobs(flat, queue)

    def _claim(self, queue: str, worker: str, count: int, request: int, most: int | None = None) -> tuple[Any, ...]:
        settings = self.settings
        times = int(settings.lease_s * 1000), self._retention_ms
        limits = settings.events_kept, settings.max_deaths
        return self.keys.of_queue(queue), queue, worker, request, count, *times, *limits, most or count

    async def commit(self, queue: str, outcomes: Sequence[Outcome]) -> list[Answer]:
        """Store how runs ended, each only if its lease still holds. Safe to repeat."""
        head = queue, self._retention_ms, self.settings.events_kept
        answers = await scripts.run(self.redis, "commit", self.keys.of_queue(queue), *head, *ends(outcomes))
        return [answer.decode() for answer in answers]

    async def commit_and_claim(
        self, queue: str, worker: str, outcomes: Sequence[Outcome], count: int, request: int
    ) -> tuple[list[Answer], list[ClaimedJob]]:
        """`commit`, then `claim`, in one call. Safe to repeat."""
        head = self._claim(queue, worker, count, request)
        answers, flat = await scripts.run(self.redis, "turn", *head, *ends(outcomes))
        return [answer.decode() for answer in answers], _claimed_jobs(flat, queue)

    async def emit(self, queue: str, events: Sequence[Event], kept: int = 65_536) -> Emitted:
        """Append events of running jobs. Safe to repeat."""
        args: list[Any] = []
        for job, seq, event, data in events:
            args += (job.lease, seq, event, encode(data))
        lost, unread = await scripts.run(self.redis, "emit", self.keys.of_queue(queue), kept, *args)
        return Emitted([lease.decode() for lease in lost], {job_id.decode() for job_id in unread})

    async def renew(self, queue: str, worker: str, about: bytes, leases: Iterable[str]) -> list[str]:
        """Keep the worker alive and its leases from ending; returns the leases that are gone."""
        lease_ms = int(self.settings.lease_s * 1000)
        prefix = self.keys.of_queue(queue)
        lost = await scripts.run(self.redis, "renew", prefix, queue, worker, lease_ms, about, *leases)
        return [lease.decode() for lease in lost]

    async def loading(self, queue: str, worker: str, holds_s: float) -> None:
        """The worker loads its model, which is known for so long; 0: it does not any more."""
        await scripts.run(self.redis, "loading", self.keys.of_queue(queue), queue, worker, int(holds_s * 1000))

    async def leave(self, queue: str, worker: str) -> None:
        """The worker stops: it is not listed any more."""
        await scripts.run(self.redis, "leave", self.keys.of_queue(queue), queue, worker)

    async def wait_for_bell(self, queue: str) -> bool:
        """Wait until there may be work; false when `bell_timeout_s` passed without a ring."""
        return await self._pop(f"{self.keys.queue(queue)}bell", self.settings.bell_timeout_s) is not None

    async def next_stop(self, queue: str, worker: str) -> str | None:
        """Wait for the next lease that this worker must stop working on; None when none came in time."""
        lease = await self._pop(f"{self.keys.queue(queue)}control:{worker}", self.settings.bell_timeout_s)
        return lease.decode() if lease else None

    async def is_empty(self, queue: str) -> bool:
        """Whether nothing waits or runs now (what a burst worker asks before it leaves)."""
        q = self.keys.queue(queue)
        depth = await scripts.execute(self.redis, "HMGET", f"{q}meta", "depth:high", "depth:normal", "depth:low")
        return not any(int(n or 0) for n in depth) and not await self.redis.zcard(f"{q}leases")

    # -- the scheduler's moves, one shard at a time

    async def promote(self, prefix: str, limit: int = 200) -> Swept:
        """Scheduled jobs whose time has come become queued."""
        return _swept(await scripts.run(self.redis, "promote", prefix, limit, self.settings.events_kept))

    async def rescue(self, prefix: str, limit: int = 200) -> Swept:
        """Jobs whose lease has ended are queued again, or parked after `max_deaths`."""
        settings = self.settings
        args = (limit, settings.max_deaths, self._retention_ms, settings.events_kept)
        return _swept(await scripts.run(self.redis, "rescue", prefix, *args))

    async def expire(self, prefix: str, limit: int = 200) -> Swept:
        """Jobs whose time to live has ended become expired."""
        args = (limit, self._retention_ms, self.settings.events_kept)
        return _swept(await scripts.run(self.redis, "expire", prefix, *args))

    async def trim(self, prefix: str, older_than_s: float = 0, limit: int = 500) -> int:
        """The index forgets jobs whose records are gone; returns how many. Younger entries are not looked at."""
        removed, start = 0, b"-"
        while start:
            moved, start = await scripts.run(self.redis, "trim", prefix, limit, start, int(older_than_s * 1000))
            removed += moved
        return removed

    async def wait_for_schedule(self, prefix: str, timeout_s: float) -> None:
        """Wait until something is due earlier than was known, or the time is over."""
        timeout_s = max(0.01, min(timeout_s, self.settings.bell_timeout_s))
        await self._pop(f"{prefix}scheduler:bell", timeout_s)

    # -- inside

    async def _pop(self, key: str, timeout_s: float) -> bytes | None:
        popped = await scripts.execute(self.redis, "BLPOP", key, timeout_s)
        return popped[1] if popped else None

    async def _end(self, name: str, job_id: str) -> Any:
        args = job_id, self._retention_ms, self.settings.events_kept
        return await answered(scripts.run(self.redis, name, self.keys.of_job(job_id), *args))


def _claimed_jobs(flat: list[Any], queue: str) -> list[ClaimedJob]:
    kind, _, model = queue.partition(":")
    return [ClaimedJob.parse(flat[i : i + 5], kind, model) for i in range(0, len(flat), 5)]


def _swept(reply: list[int]) -> Swept:
    return Swept(reply[0], None if reply[1] < 0 else reply[1])
