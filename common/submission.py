"""What of a job goes into the submit script, and what comes out of it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from common.errors import ConversationBusy, IdempotencyMismatch, JarvisError, LimitReached, QueueFull
from common.jobs import JobSpec, Submitted, encode
from common.limits import Left
from common.settings import Settings

#: Jobs in one call of the submit script: bounds how long one call keeps Redis busy (about 5 ms).
SUBMIT_BATCH = 200


class Key(NamedTuple):
    """An Idempotency-Key and the fingerprint of the request it came with."""

    key: str
    fingerprint: str

    def digest(self, api_key: str, user: str) -> str:
        """Its name in Redis, scoped to who asks, by API key or else by user: another one's key must not lead here."""
        # No user's name begins with a NUL, so that no user is ever taken for a key.
        scope = "\0" + api_key if api_key else user
        return hashlib.sha256(f"{scope}\0{self.key}".encode()).hexdigest()


def batches(by_shard: dict[str, list[int]]) -> Iterator[tuple[str, list[int]]]:
    """Places of jobs by shard, no more together than go into one call."""
    for shard, places in by_shard.items():
        for start in range(0, len(places), SUBMIT_BATCH):
            yield shard, places[start : start + SUBMIT_BATCH]


def arguments(job_id: str, spec: JobSpec, work: bytes, key: Key | None, settings: Settings) -> list[Any]:
    """A job, as `submit.lua` takes it."""
    return [
        job_id,
        spec.queue,
        spec.priority,
        spec.user,
        _due_ms(spec),
        int((spec.ttl_s or settings.default_ttl_s) * 1000),
        int((spec.timeout_s or settings.default_timeout_s) * 1000),
        spec.max_attempts or settings.max_attempts,
        work,
        encode(spec.metadata) if spec.metadata else b"",
        spec.retry_of or "",
        key.digest(spec.api_key, spec.user) if key else "",
        key.fingerprint if key else "",
        spec.model if spec.base else "",
        int((spec.keep_s or 0) * 1000),
        encode(spec.hook) if spec.hook else b"",
        spec.units,
        spec.api_key,
        spec.cost_micros,
        spec.conversation.mode[0] + spec.conversation.key if spec.conversation else "",
    ]


def _due_ms(spec: JobSpec) -> int:
    # When the job becomes ready, in Unix milliseconds; 0 for at once.
    if spec.run_at is not None:
        return int(spec.run_at * 1000)
    return int((time.time() + spec.delay_s) * 1000) if spec.delay_s else 0


#: Of each answer, what follows the word; then how the limits of the job's key stand, if it is the first of them.
_ANSWERS = {b"new": 4, b"same": 1, b"mismatch": 1, b"full": 1, b"busy": 1, b"limited": 4}


def submitted(spec: JobSpec, reply: list[Any], limits: dict[str, tuple[Left, ...]]) -> Submitted | JarvisError:
    """What became of one job; `limits` gathers how those of each API key stand."""
    answer = reply[0]
    if len(reply) > _ANSWERS[answer] + 1:
        limits[spec.api_key] = Left.parse(reply[-1].decode())
    left = limits.get(spec.api_key, ())
    if answer == b"full":
        return QueueFull(spec.queue, int(reply[1]))
    if answer == b"busy":
        assert spec.conversation is not None
        return ConversationBusy(spec.conversation.key, reply[1].decode())
    if answer == b"mismatch":
        return IdempotencyMismatch()
    if answer == b"limited":
        retry_after_s = None if reply[1] < 0 else max(reply[1], 1) / 1000
        return LimitReached(reply[2].decode().split(" "), float(reply[3]), float(reply[4]), retry_after_s, left)
    if answer == b"new":
        return Submitted(reply[1].decode(), True, reply[2].decode(), reply[3], left, reply[4])
    return Submitted(reply[1].decode(), False, limits=left)
