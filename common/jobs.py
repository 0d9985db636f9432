"""The values that cross a border: what was asked, what a worker claims, how a run ended, what a reader sees.

All are frozen and encoded by msgspec, as JSON (vectors: `vectors.py`); nothing is ever pickled.
"""

from __future__ import annotations

import re
from typing import Any, Literal

import msgspec

from common.eta import Eta
from common.limits import Left
from common.states import STATES, State
from common.vectors import Vectors
from common.webhooks import Hook

Priority = Literal["high", "normal", "low"]
LANES: tuple[Priority, ...] = ("high", "normal", "low")
#: What a job's caller stays for: its end, its events as they come, or neither that anybody knows of.
Awaited = Literal["", "end", "events"]


#: What a run has used: tokens, and of a model that costs money also `cost_micros` and `cost_currency`.
Usage = dict[str, int | str]


class Conversation(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a job's user calls the conversation that it is a turn of, and what becomes of the turns before it."""

    key: str
    mode: Literal["enqueue", "reject", "cancel_previous"] = "enqueue"


class JobSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a caller asks for; checked at the edge before it gets here."""

    kind: str
    model: str
    input: dict[str, Any]
    params: dict[str, Any] = {}
    user: str = "anonymous"
    api_key: str = ""  # id of the key that asked, if one did: whose limits count it and whose usage it is
    units: int = 0  # tokens, or seconds of audio, that it may need at most; 0: not known
    cost_micros: int = 0  # what that may cost at most, in millionths; 0: nothing, or not known
    priority: Priority = "normal"
    metadata: dict[str, str] = {}
    delay_s: float | None = None
    run_at: float | None = None  # Unix seconds
    ttl_s: float | None = None
    timeout_s: float | None = None
    max_attempts: int | None = None
    retry_of: str | None = None
    function: str = ""  # the job function, when it is not named like the kind (a worker's cron jobs)
    base: str = ""  # the model whose workers run it, when `model` is an adapter of it
    keep_s: float | None = None  # its record and result are kept so long from the submit, whatever their retention
    conversation: Conversation | None = None  # its turns run one after another
    hook: Hook | None = None  # where its end is told, and as what
    front: dict[str, Any] = {}  # what the address that it came through will want to tell of it; no worker reads this
    awaited: Awaited = ""  # not part of what is asked: the same job, whoever waits how

    @property
    def queue(self) -> str:
        """The queue that serves it, e.g. `generation:demo`."""
        return f"{self.kind}:{self.base or self.model}"


class Work(msgspec.Struct, frozen=True, omit_defaults=True):
    """The part of a spec that the queue itself does not need, as it is stored with the job."""

    input: dict[str, Any]
    params: dict[str, Any] = {}
    function: str = ""
    model: str = ""  # what was asked for, when that is not the queue's model but an adapter of it
    keep_s: float | None = None  # how long its result must be kept at least
    front: dict[str, Any] = {}  # see JobSpec
    awaited: Awaited = ""  # tells the worker how soon events are wanted; it decides nothing else
    v: int = 1  # version of this encoding; a worker parks what it does not know


class ClaimedJob(msgspec.Struct, frozen=True):
    """A job that this worker holds a lease for.

    The lease is `<id>:<step>`, the step of the job's history that began this delivery; it is the fence too: it holds
    for as long as that is the last step.
    """

    id: str
    lease: str
    claims: int  # deliveries, this one included
    attempts: int
    seq: int  # sequence number of the job's last event
    lane: Priority
    user: str
    timeout_s: float
    raw: bytes  # the encoded Work
    kind: str
    model: str  # the queue's
    max_attempts: int = 3
    suspect: bool = False  # the next death of its worker would park it: it runs alone, so that no other dies with it

    @classmethod
    def parse(cls, row: list[Any], kind: str, model: str) -> ClaimedJob:
        """Read one, as `claiming.lua` answers it: lease, claims, whether it is suspect, ticket, work."""
        lease = row[0].decode()
        ticket = Ticket.parse(row[3].decode())
        return cls(
            lease[:28],
            lease,
            row[1],
            ticket.attempts,
            int(lease[29 : lease.index("p", 29)]),
            ticket.lane,
            ticket.user,
            ticket.timeout_ms / 1000,
            row[4],
            kind,
            model,
            ticket.tries,
            row[2] == 1,
        )

    @property
    def spec(self) -> JobSpec:
        """What was asked. Raises msgspec.DecodeError for a foreign or broken encoding."""
        work = _work.decode(self.raw)
        if work.v != 1:
            raise msgspec.ValidationError(f"unknown encoding version {work.v}")
        return JobSpec(
            kind=self.kind,
            model=work.model or self.model,
            input=work.input,
            params=work.params,
            user=self.user,
            priority=self.lane,
            function=work.function,
            base=self.model if work.model else "",
            keep_s=work.keep_s,
            awaited=work.awaited,
        )


class JobResult(msgspec.Struct, frozen=True):
    """What a job function returns. `incomplete`: cut by the model's context end, not by the caller's limit.

    A reader sees `vectors` as `embeddings` in the output.
    """

    output: dict[str, Any]
    usage: Usage = {}
    incomplete: bool = False
    vectors: Vectors | None = None


class JobError(msgspec.Struct, frozen=True):
    """Why a job did not complete."""

    code: str
    message: str


class Submitted(msgspec.Struct, frozen=True):
    """The answer to a submit. `created` is false when an earlier submit of the same thing is attached to.

    A new job's `step` is the first of its history, and `ahead` the jobs that waited in its queue: with what was
    asked for, that is its whole record. `own_ahead` of those are of its user and lane; -1: that was not
    counted. `limits` are its key's, as they stand now.
    """

    id: str
    created: bool
    step: str | None = None
    ahead: int | None = None
    limits: tuple[Left, ...] = ()
    own_ahead: int = -1


class JobEvent(msgspec.Struct, frozen=True):
    """One event of a job: `event` is state, token, segment or progress; `seq` counts from 1 without a gap or repeat."""

    seq: int
    event: str
    data: dict[str, Any]


class JobRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A job as a reader sees it; times are Unix seconds with milliseconds."""

    id: str
    kind: str
    model: str
    status: State
    priority: Priority
    user: str
    created_at: float
    started_at: float | None = None
    finished_at: float | None = None
    expires_at: float | None = None
    run_at: float | None = None
    attempts: int = 0
    claims: int = 0
    max_attempts: int
    worker: str | None = None
    queue_position: int | None = None
    waiting_for: str | None = None
    error: JobError | None = None
    usage: Usage | None = None
    queue_ms: int | None = None
    run_ms: int | None = None
    gpu_ms: int | None = None  # its runs' part of their workers' busy time
    metadata: dict[str, str] = {}
    retry_of: str | None = None
    history: list[tuple[int, State, float]]  # (seq, state, Unix seconds)
    queue: str = ""  # the one it is, or was, in
    units: int = 0  # see JobSpec
    waiting_code: str | None = None  # `waiting_for`, for programs
    eta: Eta | None = None

    @property
    def terminal(self) -> bool:
        """Whether nothing will change any more."""
        return self.finished_at is not None

    @property
    def served_by(self) -> str | None:
        """Alias of the model that ran it last: its own, or the one of its fallback chain that the worker names."""
        return (self.worker.partition("@")[2] or self.model) if self.worker else None


Step = tuple[int, State, float]  # sequence number, state, Unix seconds


def parse_step(step: str) -> Step:
    """One step of a job's history, as `common/lua/job.lua` writes it: `<seq><code><milliseconds>`."""
    found = _STEP.fullmatch(step)
    if found is None:
        raise ValueError(f"{step!r} is not a step of a history")
    return int(found[1]), STATES[found[2]], int(found[3]) / 1000


def parse_history(text: str) -> list[Step]:
    """Every state that a job has had, in order."""
    return [parse_step(step) for step in text.removeprefix("w ").split()]


class Ticket(msgspec.Struct, frozen=True):
    """What the queue itself knows of a job, one field of its record (`common/lua/job.lua`)."""

    expires_ms: int
    attempts: int
    deaths: int
    timeout_ms: int
    tries: int
    lane: Priority
    queue: str
    user: str
    units: int = 0
    api_key: str = ""

    @classmethod
    def parse(cls, text: str) -> Ticket:
        """Read one."""
        expires, attempts, deaths, timeout, tries, lane, queue, user = text.split(" ", 7)
        numbers = int(expires), int(attempts), int(deaths), int(timeout), int(tries)
        units, _, api_key = lane[1:].partition(",")
        return cls(*numbers, _LANE_OF[lane[0]], queue, user, int(units or 0), api_key)


_LANE_OF: dict[str, Priority] = {lane[0]: lane for lane in LANES}
_STEP = re.compile(r"(\d+)([a-z])(\d+)")
_work = msgspec.json.Decoder(Work)
encode = msgspec.json.encode
decode = msgspec.json.decode
