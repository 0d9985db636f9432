"""Random moves of the queue on a real Redis, against a small model; after each, everything must add up.

`QUEUE_MACHINE_EXAMPLES=500 QUEUE_MACHINE_STEPS=50` makes it thorough; with `QUEUE_MACHINE_SHRINK=1` a failing
example is made as small as can be.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import pytest
import redis
from hypothesis import HealthCheck, Phase
from hypothesis import settings as profile
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from common import scripts
from common.endpoints import Endpoint, Endpoints, Secret
from common.errors import ConversationBusy, IdempotencyMismatch, NotAllowedNow
from common.jobs import LANES, ClaimedJob, Conversation, JobError, encode, parse_history
from common.limits import Policy
from common.policies import Policies
from common.queue import Event, Key, Outcome
from common.settings import Settings
from common.states import TERMINAL, TRANSITIONS, State
from common.webhooks import Hook
from tests.conformance.world import QUEUE, World, spec

EXAMPLES = int(os.environ.get("QUEUE_MACHINE_EXAMPLES", "60"))
STEPS = int(os.environ.get("QUEUE_MACHINE_STEPS", "40"))
MAX_DEATHS = 2
OWN_LIFE_S = 7200.0
HOUR_MS = 3_600_000
#: Making a failing example smaller takes minutes; the example as it was found is mostly readable.
PHASES = [Phase.explicit, Phase.generate] + [Phase.shrink] * ("QUEUE_MACHINE_SHRINK" in os.environ)
ERROR = encode(JobError("x", "y"))
HOOK = Hook("https://example.org/")
#: Bob comes with a key. What its limits hold drains so slowly that it does not while a test runs.
BOBS = "bobs"
LIMITS = Policy.parse(["tokens=1000/366d,burst=1000000", "waiting=1000000"])
UNITS, USED = 100, 7
USAGE = encode({"prompt_tokens": 3, "completion_tokens": USED - 3})
GPU_MS = 5

T = TypeVar("T")
users = st.sampled_from(["ada", "bob", "eve"])
#: ada has a larger part than the others; bob has no more running than this; eve's turns of a conversation take turns.
WEIGHT, MOST_RUNNING, TALK = "weight=3", 3, Conversation("talk")
lanes = st.sampled_from(LANES)
workers = st.sampled_from(["worker-1", "worker-2", "worker-3"])
places = st.integers(0, 10_000)  # which of a list, modulo its length


@dataclass
class Job:
    """What the model knows of a job."""

    id: str
    user: str
    lane: str
    tries: int
    state: State
    claims: int = 0
    attempts: int = 0
    deaths: int = 0
    by: list[int] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    own_life: bool = False
    outlived: bool = False
    talks: bool = False
    held_back: bool = False  # it waits for its turn
    was_given_back: bool = False  # it goes before others, paid for
    counted: bool = False  # among its owner's running ones, also while it was given back
    parked: bool = False
    final: dict[str, str] | None = None


@dataclass
class Delivery:
    """A lease that was once given out, and how far its worker has written."""

    claimed: ClaimedJob
    worker: str
    seq: int


def eves(endpoint_id: str, now: float) -> Endpoint:
    """An endpoint of everything that `eve` does."""
    secrets = (Secret("whsec_" + "A" * 32),)
    return Endpoint(
        id=endpoint_id, user="eve", url="https://example.org/", secrets=secrets, created_at=now, updated_at=now
    )


def picked(pool: list[T], place: int) -> T:
    """One of a list that is not empty."""
    return pool[place % len(pool)]


class QueueMachine(RuleBasedStateMachine):
    """Submits, claims, ends, loses and rescues jobs in any order.

    No rule has a precondition: what a run that was stopped costs its owner is real time, and so is who is claimed next.
    The same moves may lead to another state, and what Hypothesis draws must not depend on it.
    """

    url: str

    @initialize()
    def start(self) -> None:
        """An empty Redis."""
        self.runner = asyncio.Runner()
        self.folder = tempfile.TemporaryDirectory()
        self.plain = redis.Redis.from_url(self.url, decode_responses=True)
        self.plain.flushall()
        made = Settings(redis_url=self.url, data_dir=Path(self.folder.name), max_deaths=MAX_DEATHS, lease_s=600)
        self.world = World(self.wait_for(connected(made)), made, "redis")
        self.jobs: dict[str, Job] = {}
        self.deliveries: list[Delivery] = []
        self.keys: dict[tuple[str, int], tuple[str, str]] = {}
        self.requests: dict[str, int] = {}
        self.wait_for(Policies(self.world.redis, made).set_door(BOBS, LIMITS))
        self.endpoint = self.wait_for(Endpoints(self.world.redis, made).create(eves, "eve"))
        policies = Policies(self.world.redis, made)
        self.wait_for(policies.set_share("ada", Policy.parse([WEIGHT])))
        self.most: int | None = MOST_RUNNING
        self.wait_for(policies.set_share("bob", Policy.parse([f"in_progress={MOST_RUNNING}"])))
        for user in ("ada", "bob"):
            self.submit(user, "normal", False, 3, 2)

    def teardown(self) -> None:
        """Close what was opened."""
        if hasattr(self, "runner"):
            self.wait_for(self.world.queue.close())
            self.plain.close()
            self.runner.close()
            self.folder.cleanup()

    def wait_for(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run one move to its end."""
        return self.runner.run(coroutine)

    def of(self, *states: State) -> list[Job]:
        """The model's jobs in these states."""
        return [job for job in self.jobs.values() if job.state in states]

    def delivery(self, place: int) -> Delivery:
        """One that was given out; preferably a live one, or a stale one whose job another worker runs now, or any."""
        live = [one for one in self.deliveries if self.lives(one)]
        running = {one.claimed.id for one in live}
        stale = [one for one in self.deliveries if one.claimed.id in running and one not in live]
        preferred = (live, live, stale, self.deliveries)[place % 4]
        return picked(preferred or self.deliveries, place // 4)

    def lives(self, delivery: Delivery) -> bool:
        """Whether a lease is still good."""
        job = self.jobs[delivery.claimed.id]
        return job.state == State.IN_PROGRESS and job.claims == delivery.claimed.claims

    # -- moves

    @rule(user=users, lane=lanes, delayed=st.booleans(), count=st.integers(1, 4), tries=st.integers(1, 3))
    def more_jobs(self, user: str, lane: str, delayed: bool, count: int, tries: int) -> None:
        """Somebody submits."""
        self.submit(user, lane, delayed, count, tries)

    def submit(self, user: str, lane: str, delayed: bool, count: int, tries: int) -> None:
        """Accept some jobs."""
        more: dict[str, Any] = {
            "user": user,
            "priority": lane,
            "delay_s": 3600.0 if delayed else None,
            "max_attempts": tries,
        }
        more |= {"api_key": BOBS, "units": UNITS} if user == "bob" else {}
        more["ttl_s"] = OWN_LIFE_S if tries == 2 else None
        more["hook"] = HOOK if tries == 3 else None
        for job_id in self.wait_for(self.world.submit_many(count, **more)):
            state = State.SCHEDULED if delayed else State.QUEUED
            self.jobs[job_id] = Job(job_id, user, lane, tries, state, own_life=tries == 2)

    @rule(lane=lanes, mode=st.sampled_from(["enqueue", "enqueue", "reject", "cancel_previous"]))
    def talk(self, lane: str, mode: Any) -> None:
        """Another turn of eve's conversation."""
        unfinished = [job for job in self.jobs.values() if job.talks and job.state not in TERMINAL]
        said = Conversation(TALK.key, mode)
        turn = self.world.submit(user="eve", priority=lane, max_attempts=1, conversation=said)
        if mode == "reject" and unfinished:
            with pytest.raises(ConversationBusy) as busy:
                self.wait_for(turn)
            assert busy.value.job_id == unfinished[0].id
            return
        made = self.wait_for(turn)
        if mode == "cancel_previous":
            for job in unfinished:
                job.state, job.held_back = State.CANCELLED, False
        waits = mode == "enqueue" and bool(unfinished)
        state = State.SCHEDULED if waits else State.QUEUED
        self.jobs[made] = Job(made, "eve", lane, 1, state, talks=True, held_back=waits)

    def pass_the_turn_on(self) -> None:
        """The model's part of a turn's end: the first of the conversation that has not ended runs, or may."""
        unfinished = [job for job in self.jobs.values() if job.talks and job.state not in TERMINAL]
        if unfinished and unfinished[0].held_back:
            unfinished[0].held_back = False
            unfinished[0].state = State.QUEUED

    def whose_turn_may_come(self) -> list[Job]:
        """The one of the conversation whose turn comes when a claim finds that the life of all before him has ended."""
        for job in [job for job in self.jobs.values() if job.talks and job.state not in TERMINAL]:
            if not job.outlived:
                return [job] if job.held_back else []
            if job.state is not State.QUEUED and not job.held_back:
                break
        return []

    def may_run(self, freed: int = 0) -> list[Job]:
        """Those that wait, without what bob's bound holds back (which of his it is does not matter).

        `freed`: his jobs that count as running and that the claim itself may end.
        """
        ready = [job for job in self.of(State.QUEUED) if not job.outlived]
        bobs = [job for job in ready if job.user == "bob" and not job.was_given_back]
        most = len(bobs) if self.most is None else max(0, self.most - self.running_of_bob() + freed)
        return [job for job in ready if job not in bobs] + bobs[:most]

    def running_of_bob(self) -> int:
        """How many jobs of bob's count as running."""
        paid = [job for job in self.jobs.values() if job.user == "bob" and job.counted]
        return sum(job.state == State.IN_PROGRESS or (job.state == State.QUEUED and job.was_given_back) for job in paid)

    @rule(most=st.sampled_from([2, 3, 4, None]))
    def bound_bob(self, most: int | None) -> None:
        """An admin changes how many of bob's jobs may run; those that run count as they did."""
        self.most = most
        limits = [] if most is None else [f"in_progress={most}"]
        self.wait_for(Policies(self.world.redis, self.world.settings).set_share("bob", Policy.parse(limits)))

    @rule(user=users, number=st.integers(0, 2), fingerprint=st.sampled_from(["a", "b"]))
    def submit_with_key(self, user: str, number: int, fingerprint: str) -> None:
        """One key leads to one job of one user, and to no other request."""
        known = self.keys.get((user, number))
        try:
            made = self.wait_for(
                self.world.queue.submit(spec(user=user, max_attempts=1), Key(str(number), fingerprint))
            )
        except IdempotencyMismatch:
            assert known is not None
            assert known[1] != fingerprint
            return
        assert made.created == (known is None)
        if known is not None:
            assert known == (made.id, fingerprint)
            return
        self.keys[user, number] = (made.id, fingerprint)
        self.jobs[made.id] = Job(made.id, user, "normal", 1, State.QUEUED)

    @rule(worker=workers, count=st.integers(1, 9), reply_lost=st.booleans())
    def claim(self, worker: str, count: int, reply_lost: bool) -> None:
        """A worker gets what it asked for, or all there is; asked again, the same."""
        ready = [job for job in self.of(State.QUEUED) if not job.outlived]
        least, turn = len(self.may_run()), self.whose_turn_may_come()
        freed = [job for job in self.of(State.QUEUED) if job.outlived and job.was_given_back and job.counted]
        most = len(self.may_run(len(freed))) + len(turn)
        request = self.requests[worker] = self.requests.get(worker, 0) + 1
        claimed = self.wait_for(self.world.queue.claim(QUEUE, worker, count, request))
        if reply_lost:
            again = self.wait_for(self.world.queue.claim(QUEUE, worker, count, request))
            # An empty answer gave out no lease: asked again it is a new claim, and ends may have made room for it.
            assert again == claimed or (not claimed and (freed or turn))
            claimed = again
        # A job whose next death would park it ends the claim: nothing is handed out behind it.
        cut_short = bool(claimed) and claimed[-1].suspect
        assert min(count, least) <= len(claimed) <= min(count, most) or (cut_short and len(claimed) < count)
        assert {one.id for one in claimed} <= {job.id for job in ready + turn}
        for one in claimed:
            job = self.jobs[one.id]
            if not job.was_given_back:
                job.counted = job.user == "bob" and self.most is not None
            job.state, job.claims, job.was_given_back = State.IN_PROGRESS, job.claims + 1, False
            job.held_back = False
            assert (one.claims, one.user, one.lane) == (job.claims, job.user, job.lane)
            assert one.suspect == (job.deaths == MAX_DEATHS - 1)
            self.deliveries.append(Delivery(one, worker, one.seq))
        for job in self.jobs.values():  # a claim may have met those whose life has ended
            in_line = job.state is State.QUEUED or job.held_back
            if in_line and job.outlived and self.wait_for(self.world.state(job.id)) == "expired":
                job.state, job.held_back = State.EXPIRED, False
        self.pass_the_turn_on()
        if len(claimed) < count and not (cut_short or turn or freed):
            assert not [self.plain.exists(f"{self.world.q}{lane}:users") for lane in LANES].count(1)

    @rule(worker=workers, count=st.integers(1, 4))
    def claim_a_few(self, worker: str, count: int) -> None:
        """The most usual move."""
        self.claim(worker, count, False)

    @rule(place=places)
    def complete(self, place: int) -> None:
        """The next most usual one."""
        self.commit(place, "completed", False)

    @rule(
        place=places,
        outcome=st.sampled_from(["completed", "incomplete", "failed", "retry", "release"]),
        twice=st.booleans(),
    )
    def commit(self, place: int, outcome: Any, twice: bool) -> None:
        """A lease, perhaps a stale one, is used to write how a run ended."""
        if not self.deliveries:
            return
        delivery = self.delivery(place)
        job, fence = self.jobs[delivery.claimed.id], delivery.claimed.claims
        body = ERROR if outcome in ("failed", "retry") else b"{}"
        usage = USAGE if outcome in ("completed", "incomplete") else b""
        write = [Outcome(delivery.claimed, outcome, delivery.seq, body, usage, HOUR_MS, GPU_MS)]
        lives = self.lives(delivery)
        (answer,) = self.wait_for(self.world.queue.commit(QUEUE, write))
        if lives:
            assert answer == "stored"
            self.ended(job, outcome)
        elif fence in job.by[:-1]:
            assert answer in ("mine", "lost")  # what was stored is history, and another delivery has ended since
        else:
            assert answer == ("mine" if fence in job.by else "lost")
        if twice:
            again = self.wait_for(self.world.queue.commit(QUEUE, write))
            assert again == ["mine" if answer == "stored" else answer]

    def ended(self, job: Job, outcome: str) -> None:
        """What a stored outcome does."""
        job.by.append(job.claims)
        if outcome == "release":
            job.state, job.was_given_back = State.QUEUED, True
        elif outcome == "retry":
            job.attempts += 1
            job.state = State.FAILED if job.attempts >= job.tries else State.SCHEDULED
        else:
            job.state = State(outcome)
        self.pass_the_turn_on()

    @rule(place=places, texts=st.lists(st.sampled_from("abc"), min_size=1, max_size=4), twice=st.booleans())
    def emit(self, place: int, texts: list[str], twice: bool) -> None:
        """A lease, perhaps a stale one, is used to write tokens."""
        if not self.deliveries:
            return
        delivery = self.delivery(place)
        claimed = delivery.claimed
        events = [Event(claimed, delivery.seq + 1 + i, "token", {"text": text}) for i, text in enumerate(texts)]
        lives = self.lives(delivery)
        for _ in range(1 + twice):
            lost = self.wait_for(self.world.queue.emit(QUEUE, events)).lost
            assert lost == ([] if lives else [claimed.lease])
        if lives:
            delivery.seq += len(texts)
            self.jobs[claimed.id].tokens += texts

    @rule(worker=workers)
    def renew(self, worker: str) -> None:
        """A worker beats with every lease it ever had, and hears which are lost."""
        mine = [delivery for delivery in self.deliveries if delivery.worker == worker]
        lost = self.wait_for(self.world.renew(*(delivery.claimed.lease for delivery in mine), worker=worker))
        assert lost == [delivery.claimed.lease for delivery in mine if not self.lives(delivery)]

    @rule(what=st.sampled_from(["cancel", "outlive", "expire", "expire one", "retry", "forget"]), place=places)
    def interfere(self, what: str, place: int) -> None:
        """What comes from outside a job's usual way, all in one rule so that it does not crowd that out."""
        if what == "forget":
            self.plain.script_flush()
        elif what == "outlive":
            self.outlive(place)
        elif what == "cancel":
            self.cancel(place)
        elif what == "retry":
            self.retry(place)
        else:
            self.expire(place, what == "expire one")

    def cancel(self, place: int) -> None:
        """Somebody cancels a job, wherever it stands."""
        job = picked(list(self.jobs.values()), place)
        self.wait_for(self.world.queue.cancel(job.id))
        if job.state not in TERMINAL:
            job.state = State.CANCELLED
        self.pass_the_turn_on()

    @rule(place=places, count=st.integers(1, 3))
    def worker_dies(self, place: int, count: int) -> None:
        """Some leases end, and the jobs are rescued."""
        running = self.of(State.IN_PROGRESS)
        if not running:
            return
        some = {job.id: job for job in (picked(running, place + i) for i in range(count))}
        live = [delivery.claimed for delivery in self.deliveries if self.lives(delivery)]
        swept = self.wait_for(self.world.rescue(*(claimed for claimed in live if claimed.id in some)))
        assert swept.moved == len(some)
        for job in some.values():
            job.deaths += 1
            job.parked = job.deaths >= MAX_DEATHS
            job.state = State.FAILED if job.parked else State.QUEUED
            job.was_given_back = not job.parked
        self.pass_the_turn_on()

    @rule(place=places)
    def become_due(self, place: int) -> None:
        """A scheduled job's time comes, if its life has not ended."""
        if not self.of(State.SCHEDULED):
            return
        job = picked(self.of(State.SCHEDULED), place)
        assert self.wait_for(self.world.promote(job.id)).moved == 1
        job.state = State.SCHEDULED if job.held_back else State.QUEUED

    def outlive(self, place: int) -> None:
        """A waiting job's life ends before the scheduler looks."""
        for job in self.of(State.QUEUED)[place % 7 :][:1]:
            self.wait_for(self.world.outlive(job.id))
            job.outlived = True

    def expire(self, place: int, one: bool) -> None:
        """The scheduler expires whatever has outlived its time; perhaps one more, wherever it stands."""
        live = self.of(State.SCHEDULED, State.QUEUED, State.IN_PROGRESS)
        ending = {job.id: job for job in live if job.outlived}
        if one and live:
            job = picked(live, place)
            ending[job.id] = job
        assert self.wait_for(self.world.expire(*ending)).moved == len(ending)
        for job in ending.values():
            job.state = State.EXPIRED
        self.pass_the_turn_on()

    def retry(self, place: int) -> None:
        """Somebody asks for another run of a job."""
        job = picked(list(self.jobs.values()), place)
        allowed = job.state in TERMINAL - {State.COMPLETED}
        try:
            made = self.wait_for(self.world.queue.retry(job.id))
        except NotAllowedNow:
            assert not allowed
            return
        assert allowed
        assert made.created == (made.id not in self.jobs)
        if made.created:
            others = [one for one in self.jobs.values() if one.talks and one.state not in TERMINAL]
            waits = job.talks and bool(others)
            state = State.SCHEDULED if waits else State.QUEUED
            again = Job(made.id, job.user, job.lane, job.tries, state, talks=job.talks, held_back=waits)
            self.jobs[made.id] = again

    # -- what must hold after every move

    @invariant()
    def each_job_stands_where_the_model_has_it(self) -> None:
        """One state each, by a legal walk, with events without a gap; terminal ones as they were."""
        if not hasattr(self, "jobs"):
            return
        pipe = self.plain.pipeline(transaction=False)
        for job in self.jobs.values():
            pipe.hgetall(self.world.job_key(job.id))
            pipe.xrange(f"{self.world.prefix}tokens:{job.id}")
            pipe.pttl(self.world.job_key(job.id))
        replies = pipe.execute()
        self.moves: Counter[str] = Counter()
        self.used: Counter[str] = Counter()
        self.held = 0
        self.waits: set[str] = set()
        for i, job in enumerate(self.jobs.values()):
            self.check_job(job, *replies[3 * i : 3 * i + 3])

    def check_job(self, job: Job, record: dict[str, str], tokens: list[Any], ttl_ms: int) -> None:
        """One job's record against the model."""
        history = parse_history(record["history"])
        assert history[-1][1] == job.state
        walk = [None, *(state for _, state, _ in history)]
        assert all(after in TRANSITIONS[before] for before, after in pairwise(walk) if after)
        self.moves.update(state.value for state in walk if state)
        numbers = [seq for seq, _, _ in history] + [int(entry.split("-")[0]) for entry, _ in tokens]
        assert sorted(numbers) == list(range(1, len(numbers) + 1))
        assert [seq for seq, _, _ in history] == sorted(seq for seq, _, _ in history)
        assert "".join(fields["d"][9] for _, fields in tokens) == "".join(job.tokens)
        assert ("result" in record) == (job.state in (State.COMPLETED, State.INCOMPLETE))
        assert [state for _, state, _ in history].count(State.IN_PROGRESS) == job.claims
        assert (ttl_ms > 0) == (job.state in TERMINAL)
        if job.state in TERMINAL:
            job.final = job.final or record
            assert record == job.final
        self.account(job, record, [state for _, state, _ in history], bool(tokens))

    def account(self, job: Job, record: dict[str, str], states: list[State], begun: bool) -> None:
        """What a job adds to the sums of usage, and what is held for it of its key's limits."""
        keyed = f",{BOBS} " in record["ticket"]
        who = f"{BOBS if keyed else '-'} demo {job.user}"
        self.used[f"gpu_ms {who}"] += int(record.get("gpu_ms", 0))
        if job.state in TERMINAL:
            self.used[f"{job.state.value} {who}"] += 1
        if "usage" in record:
            self.used[f"prompt_tokens {who}"] += 3
            self.used[f"completion_tokens {who}"] += USED - 3
        if not keyed:
            return
        if job.state in (State.SCHEDULED, State.QUEUED):
            self.waits.add(job.id)
        stopped = states[-2:-1] == [State.IN_PROGRESS] and (begun or job.state != State.FAILED)
        kept = UNITS if job.state not in TERMINAL or stopped else 0
        self.held += USED if "usage" in record else kept

    @invariant()
    def usage_and_limits_are_what_the_jobs_records_add_up_to(self) -> None:
        """Each job counts once, and holds of its key's limits what it may still need or has used."""
        if not hasattr(self, "used"):
            return
        plain, prefix = self.plain, self.world.prefix
        sums: Counter[str] = Counter()
        for day in plain.keys(f"{prefix}usage:*"):  # type: ignore[union-attr]
            sums.update({name: int(n) for name, n in plain.hgetall(day).items()})  # type: ignore[union-attr]
        assert sums == +self.used
        assert set(plain.smembers(f"{prefix}waits:{BOBS}")) == self.waits  # type: ignore[arg-type]
        bucket: Any = plain.get(f"{prefix}bucket:k:{BOBS}") or ""
        levels = dict(word.split("=") for word in bucket.split(" ")[1:])
        used, held, *_ = levels.get(f"tokens-{366 * 86_400_000}", "0,0").split(",")
        assert float(used) + float(held) == pytest.approx(self.held, abs=0.1)

    @invariant()
    def what_webhooks_are_to_tell_is_what_has_ended(self) -> None:
        """A delivery for each end of a job that brought a webhook (those with three tries), one for each of eve's."""
        if not hasattr(self, "jobs"):
            return
        over = self.of(*TERMINAL)
        expected = {job.id[4:] for job in over if job.tries == 3}
        expected |= {f"{job.id[4:]}-{self.endpoint.id[3:]}" for job in over if job.user == "eve"}
        assert set(self.plain.zrange(f"{self.world.prefix}outbox", 0, -1)) == expected  # type: ignore[arg-type]

    @invariant()
    def the_queues_books_add_up(self) -> None:
        """Depths, leases, due times, lives, streams and users fit the jobs' states."""
        if not hasattr(self, "jobs"):
            return
        plain, q, prefix = self.plain, self.world.q, self.world.prefix
        waiting, running = self.of(State.QUEUED), self.of(State.IN_PROGRESS)
        scheduled = self.of(State.SCHEDULED)
        for lane in LANES:
            assert int(plain.hget(f"{q}meta", f"depth:{lane}") or 0) == len([j for j in waiting if j.lane == lane])  # type: ignore[arg-type]
        leases: Any = plain.zrange(f"{q}leases", 0, -1)
        assert set(leases) == {one.claimed.lease for one in self.deliveries if self.lives(one)}
        assert set(plain.zrange(f"{prefix}due", 0, -1)) == {job.id for job in scheduled}  # type: ignore[arg-type]
        live = [job for job in waiting + running + scheduled if job.own_life or job.outlived]
        assert set(plain.zrange(f"{prefix}expiry", 0, -1)) == {job.id for job in live}  # type: ignore[arg-type]
        assert set(plain.zrange(f"{prefix}parked", 0, -1)) == {job.id for job in self.jobs.values() if job.parked}  # type: ignore[arg-type]
        self.check_streams(waiting)
        counts: Any = plain.hgetall(f"{q}counts")
        assert {name[6:]: int(n) for name, n in counts.items() if name.startswith("state:")} == self.moves

    def check_streams(self, waiting: list[Job]) -> None:
        """Each waiting job stands in its user's stream or was given back; users only while they have entries."""
        plain, q = self.plain, self.world.q
        streams: Any = plain.keys(f"{q}*:u:*")
        entries: list[tuple[str, str]] = []
        for stream in streams:
            found: Any = plain.xrange(stream)
            assert found
            entries += [(stream, fields["j"]) for _, fields in found]
        for lane in LANES:
            returned: Any = plain.lrange(f"{q}{lane}:returned", 0, -1)
            mine = [job for job in waiting if job.lane == lane]
            lines = sorted((self.world.stream(job.user, lane), job.id[6:]) for job in mine if job.id not in returned)
            assert sorted(entry for entry in entries if f":{lane}:u:" in entry[0]) == lines
            assert len(set(returned)) == len(returned)
            assert set(returned) <= {job.id for job in mine}
            standing: Any = plain.zrange(f"{q}{lane}:users", 0, -1)
            held: Any = plain.smembers(f"{self.world.prefix}held:bob")
            standing += ["bob"] * (f"{lane} {QUEUE}" in held and "bob" not in standing and bool(self.bobs(lane, lines)))
            assert {self.world.stream(user, lane) for user in standing} == {stream for stream, _ in lines}

    def bobs(self, lane: str, lines: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """Bob's among the entries of a lane's streams."""
        return [line for line in lines if line[0] == self.world.stream("bob", lane)]

    @invariant()
    def bounds_and_turns_are_as_the_model_has_them(self) -> None:
        """Who counts as running, who is held for good reason only, and whose turn it is."""
        if not hasattr(self, "jobs"):
            return
        plain, prefix = self.plain, self.world.prefix
        running = self.running_of_bob()
        assert running <= 4
        counted: Any = plain.hget(f"{prefix}standing", "running bob")
        assert int(counted or 0) == running
        assert plain.exists(f"{prefix}held:bob") == plain.zcard(f"{prefix}held")
        if plain.exists(f"{prefix}held"):
            assert self.most is not None
            assert running >= self.most
        unfinished = [job.id[6:] for job in self.jobs.values() if job.talks and job.state not in TERMINAL]
        assert plain.lrange(f"{prefix}conversation:eve:{TALK.key}", 0, -1) == unfinished


async def connected(made: Settings) -> Any:
    """A client of the machine's own loop."""
    return scripts.connect(made)


@pytest.mark.timeout(3600)
def test_random_moves_always_leave_books_that_add_up(redis_url: str) -> None:
    QueueMachine.url = redis_url
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    run_state_machine_as_test(
        QueueMachine,
        settings=profile(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            phases=PHASES,
            report_multiple_bugs=False,
            suppress_health_check=checks,
            database=None,
        ),
    )
