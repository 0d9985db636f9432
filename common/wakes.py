"""One blocking reader per shard brings the news of all jobs to their followers in this process.

What it brings is only ever a short cut: a follower takes news that continue its numbers without a gap, and reads
the job itself whenever they do not. News that are missed, doubled or late therefore cost a read, never an event.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, TypeVar

import redis.asyncio as redis
from redis.exceptions import RedisError

from common import scripts
from common.jobs import JobEvent, decode, parse_step
from common.looks import Looks, Seen
from common.states import TERMINAL, State

#: News that a follower may leave unread before it has to read the job itself.
UNREAD = 1_000
#: How long a job counts as read after its readers were last noted; they are noted anew three times in that time.
READ_S = 15.0
#: Lua cannot unpack many more in one call.
NOTED_AT_ONCE = 2_000


class Wake:
    """An event for one who waits, with a limit to each wait.

    This runs once a token and reader: `asyncio.Event` and a timer for each wait would cost as much as all the rest. The
    one timer runs on from wait to wait and looks, when it rings, whether the latest wait is over.
    """

    def __init__(self) -> None:
        self._set = False
        self._waiter: asyncio.Future[None] | None = None
        self._until = 0.0  # of the latest wait, by the loop's clock
        self._alarm: asyncio.TimerHandle | None = None
        self._rings_at = 0.0

    def is_set(self) -> bool:
        """Whether the next wait returns at once."""
        return self._set

    def set(self) -> None:
        """Wake who waits, or who will."""
        self._set = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def clear(self) -> None:
        """The next wait waits."""
        self._set = False

    async def wait(self, limit_s: float | None = None) -> None:
        """Wait until it is set; once the limit is over, it is."""
        if self._set:
            return
        loop = asyncio.get_running_loop()
        if limit_s is not None:
            self._until = loop.time() + limit_s
            if self._alarm is None or self._rings_at > self._until:
                self._ring_at(self._until, loop)
        self._waiter = loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def close(self) -> None:
        """Nobody will wait any more."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _ring_at(self, moment: float, loop: asyncio.AbstractEventLoop) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._rings_at = moment
        self._alarm = loop.call_at(moment, self._ring, loop)

    def _ring(self, loop: asyncio.AbstractEventLoop) -> None:
        self._alarm = None
        if self._waiter is None:
            return  # the next wait sets the timer again
        if self._until > loop.time() + 0.001:
            self._ring_at(self._until, loop)
        else:
            self.set()


class Listener:
    """What one follower hears of one job."""

    def __init__(self) -> None:
        self._wake = Wake()
        self._unread: dict[int, JobEvent] = {}
        self._must_look = False
        self.seen: Seen | None = None  # the job as listening began; None when it must be read

    def tell(self, event: JobEvent | None) -> None:
        """Here is an event, or (None) something that only the job itself can tell."""
        if event is None or len(self._unread) >= UNREAD:
            self._must_look = True
        else:
            self._unread[event.seq] = event
        self._wake.set()

    async def news(self, after: int, timeout_s: float) -> list[JobEvent]:
        """The next events after number `after`; none when the job itself must be read (or the time is over)."""
        while True:
            await self._wake.wait(timeout_s)
            self._wake.clear()
            must_look, self._must_look = self._must_look, False
            unread, self._unread = self._unread, {}
            # The first look at a job has often seen what is told of it at the same time.
            if must_look or not unread or max(unread) > after:
                break
        if len(unread) == 1 and after + 1 in unread and not must_look:
            return [unread[after + 1]]
        # States and tokens come by two streams, so that they may be out of order.
        fresh = sorted(seq for seq in unread if seq > after)
        if must_look or fresh != list(range(after + 1, after + 1 + len(fresh))):
            return []
        return [unread[seq] for seq in fresh]

    def close(self) -> None:
        """Nobody listens any more."""
        self._wake.close()


class EndListener(Listener):
    """What one who only waits for a job's end hears of it."""

    def tell(self, event: JobEvent | None) -> None:
        """Here is an event: it counts when it is the last one, or when it may be."""
        if event is None or (event.event == "state" and event.data["status"] in TERMINAL):
            self._wake.set()

    async def end(self, timeout_s: float) -> None:
        """Wait until the job has ended or must be looked at, or the time is over."""
        await self._wake.wait(timeout_s)
        self._wake.clear()


AnyListener = TypeVar("AnyListener", bound=Listener)


class Wakes:
    """Followers by job id, and the readers that tell them."""

    def __init__(self, client: redis.Redis, prefixes: list[str], block_s: float) -> None:
        self._redis = client
        self._prefixes = prefixes
        self._block_ms = int(block_s * 1000)
        self._listeners: dict[str, set[Listener]] = {}
        self._readers: list[asyncio.Task[None]] = []
        self._started: list[asyncio.Event] = []
        self._noting: asyncio.Task[None] | None = None
        self._looks = {_shard_of(prefix): Looks(client, prefix) for prefix in prefixes}

    @asynccontextmanager
    async def listen(self, job_id: str, after: int = 0) -> AsyncIterator[Listener]:
        """What a follower listens with; it hears everything that its first look did not see."""
        with self._listening(job_id, Listener()) as listener:
            self._start()
            # When Redis is away, followers look for themselves until it is back.
            with suppress(TimeoutError, RedisError, OSError):
                async with asyncio.timeout(1):
                    for started in self._started:
                        await started.wait()
                    listener.seen = await self._looks[job_id[4:6]].look(job_id, after, READ_S)
            yield listener

    @contextmanager
    def listen_for_end(self, job_id: str) -> Iterator[EndListener]:
        """What one who waits listens with. A reader that starts later tells it to look again."""
        with self._listening(job_id, EndListener()) as listener:
            self._start()
            yield listener

    @contextmanager
    def _listening(self, job_id: str, listener: AnyListener) -> Iterator[AnyListener]:
        self._listeners.setdefault(job_id, set()).add(listener)
        try:
            yield listener
        finally:
            listener.close()
            listeners = self._listeners[job_id]
            listeners.discard(listener)
            if not listeners:
                del self._listeners[job_id]

    async def close(self) -> None:
        """Stop the readers."""
        for looks in self._looks.values():
            await looks.close()
        tasks = [*self._readers, *([self._noting] if self._noting else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._readers.clear()
        self._noting = None

    def _start(self) -> None:
        if not self._readers:
            self._started = [asyncio.Event() for _ in self._prefixes]
            pairs = zip(self._prefixes, self._started, strict=True)
            self._readers = [asyncio.create_task(self._read(prefix, started)) for prefix, started in pairs]
            self._noting = asyncio.create_task(self._keep_noted())

    async def _keep_noted(self) -> None:
        while True:
            await asyncio.sleep(READ_S / 3)
            with suppress(RedisError, OSError):
                await self._note([job_id for job_id, heard in self._listeners.items() if _any_follows(heard)])

    async def _note(self, job_ids: list[str]) -> None:
        # Workers write the events of jobs that nobody reads less often.
        for prefix in self._prefixes:
            here = [job_id for job_id in job_ids if job_id[4:6] == _shard_of(prefix)]
            for start in range(0, len(here), NOTED_AT_ONCE):
                ids = here[start : start + NOTED_AT_ONCE]
                await scripts.run(self._redis, "read", prefix, int(READ_S * 1000), *ids)

    async def _read(self, prefix: str, started: asyncio.Event) -> None:
        streams: Any = {}
        while True:
            try:
                if not streams:
                    streams = await self._ends(prefix)
                    started.set()
                    for job_id in list(self._listeners):  # whatever happened while nobody read
                        self._tell(job_id, None)
                for stream, entries in await self._redis.xread(streams, block=self._block_ms):
                    streams[stream.decode()] = entries[-1][0]
                    self._pass_on(entries)
            except (RedisError, OSError):
                streams = {}
                await asyncio.sleep(0.1)

    async def _ends(self, prefix: str) -> dict[str, bytes]:
        # "$" would be asked anew by every read, and what came between two reads be missed.
        names = [f"{prefix}events", f"{prefix}ticks"]
        last = [await self._redis.xrevrange(name, count=1) for name in names]
        return {name: entries[0][0] if entries else b"0-0" for name, entries in zip(names, last, strict=True)}

    def _pass_on(self, entries: list[tuple[bytes, dict[bytes, bytes]]]) -> None:
        for _, fields in entries:
            for name, news in fields.items():
                job_id = name.decode()
                if job_id in self._listeners:
                    self._tell(job_id, _event(news))

    def _tell(self, job_id: str, event: JobEvent | None) -> None:
        for listener in self._listeners.get(job_id, ()):
            listener.tell(event)


def _shard_of(prefix: str) -> str:
    return prefix[prefix.index("{") + 1 : prefix.index("}")]


def _any_follows(listeners: set[Listener]) -> bool:
    return any(not isinstance(listener, EndListener) for listener in listeners)


def _event(news: bytes) -> JobEvent | None:
    """An event out of a stream's field: `<seq> <event> <data>`, or a step of a history."""
    seq, space, rest = news.partition(b" ")
    if space:
        event, _, data = rest.partition(b" ")
        return JobEvent(int(seq), event.decode(), decode(data))
    number, state, at = parse_step(news.decode())
    if state in (State.FAILED, State.CANCELLED, State.EXPIRED):
        return None  # why is in the record
    return JobEvent(number, "state", {"status": state.value, "at": at})
