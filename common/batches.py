"""Batches: what was asked, how far it is, and the moves of whoever works on one. The work itself is the producer's.

A batch belongs to one process at a time, by a lease like a job's: each move is one script that checks it, so that one
that fell silent and comes back changes nothing. Its lines' answers are stored in stretches, each exactly once.
"""

from __future__ import annotations

import logging
from enum import StrEnum
from typing import Any, Literal

import msgspec
import redis.asyncio as redis

from common import scripts
from common.access import ANONYMOUS
from common.errors import IdempotencyMismatch, NotFound, TooMany
from common.files import FileRecord, forget_gone, ids_after, list_of, stored
from common.jobs import decode, encode
from common.keys import Keys, is_batch_id, new_batch_id
from common.settings import Settings
from common.store import UNAVAILABLE, answered
from common.submission import Key
from common.webhooks import Hook

log = logging.getLogger("jarvis.batches")


class BatchState(StrEnum):
    """Where a batch stands. Spelled as on the wire."""

    VALIDATING = "validating"  #: Its lines are being checked.
    IN_PROGRESS = "in_progress"  #: Its lines run.
    FINALIZING = "finalizing"  #: All lines have ended; the files are being written.
    COMPLETED = "completed"  #: The files are there.
    FAILED = "failed"  #: Nothing of it ran, or it cannot be read any more; `errors` says why.
    EXPIRED = "expired"  #: Its window ended first; the files have what was done by then.
    CANCELLING = "cancelling"  #: Somebody asked for it to stop.
    CANCELLED = "cancelled"  #: It has stopped; the files have what was done by then.


_S = BatchState
#: Claims after which a batch that cannot even be failed, since its record is broken, is left alone.
GIVEN_UP = 20
#: From each state to where it may go (`common/lua/batch.lua` has the same table). Terminal states never change.
BATCH_TRANSITIONS: dict[BatchState, frozenset[BatchState]] = {
    _S.VALIDATING: frozenset({_S.IN_PROGRESS, _S.CANCELLING, _S.FAILED, _S.EXPIRED}),
    _S.IN_PROGRESS: frozenset({_S.FINALIZING, _S.CANCELLING, _S.FAILED}),
    _S.FINALIZING: frozenset({_S.COMPLETED, _S.EXPIRED, _S.FAILED}),
    _S.CANCELLING: frozenset({_S.CANCELLED, _S.FAILED}),
} | {state: frozenset() for state in (_S.COMPLETED, _S.FAILED, _S.EXPIRED, _S.CANCELLED)}
OVER = frozenset(state for state, to in BATCH_TRANSITIONS.items() if not to)

COUNTED = ("input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens")
_FIELDS = (
    "about", "state", "seq", "created_at", "expires_ms", "total", "completed", "failed", "live", "errors", "ending",
    "model", "output_file_id", "error_file_id", *COUNTED,
    *(f"{state}_at" for state in BatchState if state != _S.VALIDATING),
)  # fmt: skip


class BatchAsked(msgspec.Struct, frozen=True):
    """What a caller asked for, and where the input's content is."""

    endpoint: str
    input_file_id: str
    blob: str
    window: str
    window_s: float
    metadata: dict[str, str] | None = None
    output_kept_s: float | None = None
    user: str = ANONYMOUS  # whose it is, and whose endpoints are told of its end
    api_key: str = ""  # id of the key that asked, if one did: whose limits and usage its jobs are
    hook: Hook | None = None  # where its end is told beside


class LineError(msgspec.Struct, frozen=True):
    """What is wrong with a line of the input; `line` counts from 1."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None


class Stretch(msgspec.Struct, frozen=True, array_like=True):
    """Some lines of the input that are worked on together."""

    offset: int  # where they begin, in bytes
    end: int
    line: int  # number of the first, from 1
    jobs: int  # that they stand for


class Part(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where the answers of a stretch are: references to the lines of the two files, None where there are none."""

    output: str | None = None
    errors: str | None = None


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """A batch as a reader sees it; stamps are Unix seconds, by state."""

    id: str
    asked: BatchAsked
    state: BatchState
    seq: int  # counts its changes
    created_at: int
    expires_at: int
    stamps: dict[BatchState, int]
    total: int
    completed: int
    failed: int
    errors: list[LineError]
    ending: BatchState | None  # while it is finalizing: what it will be
    model: str | None  # when all lines name the same
    output_file_id: str | None
    error_file_id: str | None
    usage: dict[str, int]


class Live(msgspec.Struct, frozen=True):
    """Lines that have ended."""

    completed: int = 0
    failed: int = 0

    def __add__(self, other: Live) -> Live:
        return Live(self.completed + other.completed, self.failed + other.failed)


class Claimed(msgspec.Struct, frozen=True):
    """A batch that this process may work on; `claims`: how often somebody took it since it last got on."""

    id: str
    claims: int


class Standing(msgspec.Struct, frozen=True):
    """What a renewal says."""

    state: BatchState
    left_s: float  # until its window ends


Stored = Literal["stored", "mine", "lost"]
Moved = Literal["moved", "not_allowed", "lost"]


class Batches:
    """The batches of one namespace."""

    def __init__(self, client: redis.Redis, settings: Settings) -> None:
        self.redis = client
        self.settings = settings
        self._prefix = Keys(settings.namespace, settings.shards).files

    # -- a caller's moves

    async def create(self, asked: BatchAsked, key: Key | None = None) -> str:
        """Accept a batch; returns its id.

        Raises NotFound (its file), TooMany, IdempotencyMismatch, StoreUnavailable.
        """
        settings = self.settings
        batch_id = new_batch_id()
        digest = key.digest(asked.api_key, asked.user) if key else ""
        args = (
            *(batch_id, encode(asked), asked.input_file_id, int(asked.window_s * 1000), settings.max_batches),
            *(digest, key.fingerprint if key else "", int(settings.idempotency_s * 1000)),
            asked.user,
            settings.max_owner_batches if asked.api_key else 0,
        )
        try:
            answer, *name = await scripts.run(self.redis, "batch_create", self._prefix, *args)
        except UNAVAILABLE:  # the reply may be lost though it was accepted; the id is ours, so it is safe to repeat
            answer, *name = await self._run("batch_create", *args)
        if answer == b"no_file":
            raise NotFound(asked.input_file_id, "file")
        if answer == b"full":
            raise TooMany("unfinished batches", settings.max_batches)
        if answer == b"full_own":
            raise TooMany(f"unfinished batches of {asked.user}", settings.max_owner_batches)
        if answer == b"mismatch":
            raise IdempotencyMismatch()
        return str(name[0].decode())

    # With `owner`, a batch of another one is not there: nothing tells it from one that never was.

    async def get(self, batch_id: str, owner: str | None = None) -> Batch:
        """A batch. Raises NotFound, StoreUnavailable."""
        values = await answered(self.redis.hmget(self._key(batch_id), list(_FIELDS)))
        found = _batch(batch_id, values)
        if found is None or owner not in (None, found.asked.user):
            raise NotFound(batch_id, "batch")
        return found

    async def cancel(self, batch_id: str) -> None:
        """Ask for a batch to stop; one that is over or nearly so stays as it is. Raises NotFound, StoreUnavailable."""
        self._key(batch_id)
        if await self._run("batch_cancel", batch_id) is None:
            raise NotFound(batch_id, "batch")

    async def list_batches(self, after: str | None, limit: int, owner: str | None = None) -> tuple[list[Batch], bool]:
        """A page of batches, newest first, and whether there are more."""
        found: list[Batch] = []
        while len(found) <= limit:
            ids = await ids_after(
                self.redis, list_of(self._prefix, "batches", owner), after, limit + 1, newest_first=True
            )
            if not ids:
                break
            after = ids[-1]
            pipe = self.redis.pipeline(transaction=False)
            for name in ids:
                pipe.hmget(self._key(name), list(_FIELDS))
            rows = await answered(pipe.execute())
            found += [one for name, row in zip(ids, rows, strict=True) if (one := _batch(name, row))]
        return found[:limit], len(found) > limit

    async def reads(self, blob: str) -> bool:
        """Whether an unfinished batch reads this content."""
        return any(decode(row, type=BatchAsked).blob == blob for row in await self._of_unfinished("about"))

    async def standing(self) -> dict[BatchState, int]:
        """How many batches are in each state that is not the last, for metrics."""
        found = await self._of_unfinished("state")
        return {state: found.count(state.encode()) for state in BatchState if state not in OVER}

    async def _of_unfinished(self, field: str) -> list[bytes]:
        names = await answered(self.redis.zrange(f"{self._prefix}batches:due", 0, -1))
        pipe = self.redis.pipeline(transaction=False)
        for name in names:
            pipe.hget(self._key(name.decode()), field)
        return [value for value in await answered(pipe.execute()) if value]

    # -- the moves of who works on a batch; `owner` is its name

    async def wait_for_work(self, timeout_s: float) -> None:
        """Wait until there may be a batch to take, or the time is over."""
        await answered(scripts.execute(self.redis, "BLPOP", f"{self._prefix}batches:bell", timeout_s))

    async def claim(self, owner: str) -> Claimed | None:
        """Take a batch that nobody works on, if there is one."""
        found = await self._run("batch_claim", owner, self._lease_ms, GIVEN_UP)
        return Claimed(found[0].decode(), found[1]) if found else None

    async def renew(self, batch_id: str, owner: str, live: Live | None) -> Standing | None:
        """Keep a batch, and tell how many lines under way have ended; None when it is another's now."""
        told = "" if live is None else f"{live.completed} {live.failed}"
        return _standing(await self._run("batch_renew", batch_id, owner, self._lease_ms, told))

    async def release(self, batch_id: str, owner: str) -> None:
        """Let another process go on with a batch."""
        await self._run("batch_renew", batch_id, owner, 0, "")

    async def plan(self, batch_id: str, owner: str, total: int, plan: list[Stretch], model: str | None) -> Moved:
        """Every line has been checked: they may run."""
        fields = {"total": total, "plan": encode(plan), **({"model": model} if model else {})}
        return await self._move(batch_id, owner, _S.IN_PROGRESS, (), fields)

    async def planned(self, batch_id: str) -> list[Stretch]:
        """The stretches of a batch that is in progress."""
        return decode(await answered(self.redis.hget(self._key(batch_id), "plan")) or b"[]", type=list[Stretch])

    async def store_part(
        self, batch_id: str, owner: str, number: int, part: Part, counts: Live, live: Live, usage: dict[str, int]
    ) -> Stored:
        """Store where a stretch's answers are, and count them; `live` are those of the others. Safe to repeat."""
        used = [item for pair in usage.items() for item in pair if pair[1]]
        told = (counts.completed, counts.failed, f"{live.completed} {live.failed}")
        answer = await self._run("batch_part", batch_id, owner, number, encode(part), *told, *used)
        return answer.decode()  # type: ignore[no-any-return]

    async def parts(self, batch_id: str) -> dict[int, Part]:
        """The stored parts by the number of their stretch."""
        rows = await answered(self.redis.hgetall(f"{self._key(batch_id)}:parts"))
        return {int(number): decode(row, type=Part) for number, row in rows.items()}

    async def finalize(self, batch_id: str, owner: str, ending: BatchState) -> Moved:
        """All lines have ended, or the window has; `ending` is what the batch will be."""
        return await self._move(batch_id, owner, _S.FINALIZING, (), {"ending": ending.value})

    async def fail(self, batch_id: str, owner: str, errors: list[LineError]) -> Moved:
        """It cannot be run."""
        return await self._move(batch_id, owner, _S.FAILED, (), {"errors": encode(errors)})

    async def end(
        self, batch_id: str, owner: str, state: BatchState, output: FileRecord | None, errors: FileRecord | None
    ) -> Moved:
        """It is over; its files appear with its last state."""
        fields = {"output_file_id": output.id if output else None, "error_file_id": errors.id if errors else None}
        files = tuple(file for file in (output, errors) if file)
        return await self._move(batch_id, owner, state, files, {name: at for name, at in fields.items() if at})

    async def tidy(self) -> int:
        """The lists forget batches whose records are gone; returns how many."""
        return await forget_gone(self.redis, self._prefix, "batches", "batch:")

    # -- inside

    @property
    def _lease_ms(self) -> int:
        return int(self.settings.lease_s * 1000)

    async def _move(
        self, batch_id: str, owner: str, state: BatchState, files: tuple[FileRecord, ...], fields: dict[str, Any]
    ) -> Moved:
        made = [value for file in files for value in stored(file)]
        told = [item for pair in fields.items() for item in pair]
        keep_ms = int(self.settings.batch_kept_s * 1000)
        head = (batch_id, owner, state.value, keep_ms, len(files))
        answer = await self._run("batch_move", *head, *made, *told)
        return answer.decode()  # type: ignore[no-any-return]

    def _key(self, batch_id: str) -> str:
        if not is_batch_id(batch_id):
            raise NotFound(batch_id, "batch")
        return f"{self._prefix}batch:{batch_id}"

    async def _run(self, name: str, *args: Any) -> Any:
        return await answered(scripts.run(self.redis, name, self._prefix, *args))


def _standing(reply: list[Any]) -> Standing | None:
    return Standing(BatchState(reply[0].decode()), reply[1] / 1000) if reply else None


def _batch(batch_id: str, values: list[bytes | None]) -> Batch | None:
    if values[0] is None:
        return None
    try:
        return _read(batch_id, values)
    except (msgspec.MsgspecError, ValueError, KeyError) as error:
        log.error("the record of batch %s cannot be read: %s", batch_id, error)
        return None


def _read(batch_id: str, values: list[bytes | None]) -> Batch:
    told = {name: value.decode() for name, value in zip(_FIELDS, values, strict=True) if value is not None}
    under_way = [int(count) for count in told.get("live", "0 0").split()]
    return Batch(
        id=batch_id,
        asked=decode(told["about"], type=BatchAsked),
        state=BatchState(told["state"]),
        seq=int(told["seq"]),
        created_at=int(told["created_at"]),
        expires_at=int(told["expires_ms"]) // 1000,
        stamps={state: int(told[f"{state}_at"]) for state in BatchState if f"{state}_at" in told},
        total=int(told["total"]),
        completed=int(told["completed"]) + under_way[0],
        failed=int(told["failed"]) + under_way[1],
        errors=decode(told["errors"], type=list[LineError]) if "errors" in told else [],
        ending=BatchState(told["ending"]) if "ending" in told else None,
        model=told.get("model"),
        output_file_id=told.get("output_file_id"),
        error_file_id=told.get("error_file_id"),
        usage={name: int(told.get(name, 0)) for name in COUNTED},
    )
