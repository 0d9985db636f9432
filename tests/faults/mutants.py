"""`python -m tests.faults.mutants`: each promise is broken on purpose in a copy of the tree, and its test must fail.

First all named tests must pass on the copy as it is. A mutant whose text is not found exactly once is an error, so
that the list cannot rot unseen.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from tests.waiting import DEADLINE_VARIABLE

ROOT = Path(__file__).parents[2]
COPIED = ("common", "workers", "scheduler", "producer", "ops", "tests", "pyproject.toml", "Procfile")
STOPPING = "tests/worker/test_stopping.py"
ALIVE = "tests/faults/test_alive_or_not.py"
ONCE = "tests/faults/test_once.py"
NETWORK = "tests/faults/test_network.py"
BOUNDS = "tests/faults/test_bounds.py"
REDIS = "tests/faults/test_redis_killed.py"
BATCHES = "tests/faults/test_batches.py"
HOSTILE = "tests/faults/test_hostile.py"
TRUST = "tests/faults/test_trust.py"
WEBHOOKS = "tests/faults/test_webhooks.py"
EGRESS = "tests/delivery/test_egress.py"
TENANTS = f"{TRUST}::test_15_nothing_tells_another_tenants_things_from_those_that_nobody_has"
AUTH = "tests/producer/test_auth.py"
WAITING = "tests/conformance/test_waiting.py"
LIMITS = "tests/faults/test_limits.py"
DOOR = "tests/conformance/test_limits.py"
BUCKET = "tests/integration/test_limits.py"
FAIR = "tests/conformance/test_fairness.py"
HELD = "tests/conformance/test_held.py"
TURNS = "tests/conformance/test_conversations.py"
PLAN = "tests/integration/test_plan.py"
CALLS = "tests/integration/test_calls.py"
RESPONSES = "tests/producer/test_responses.py"
VLLM = "tests/engines/test_vllm_engine.py"
RESUMED = f"{RESPONSES}::test_a_stream_goes_on_in_another_web_process_and_from_another_worker"
LOST = "tests/faults/test_lost_replies.py::test_replies_lost_at_random_leave_no_job_behind_and_double_nothing"
RECOVERY = (
    "tests/faults/test_killed_processes.py::"
    "test_of_500_short_jobs_those_of_a_killed_worker_run_again_within_the_bound[tuned]"
)


class Mutant(NamedTuple):
    """One promise broken."""

    what: str
    file: str
    old: str
    new: str
    test: str


MUTANTS = (
    Mutant(
        "owners take turns by jobs, whatever those cost",
        "common/lua/owners.lua",
        "if run.cost ~= paid then owe",
        "if false then owe",
        f"{FAIR}::test_who_asks_for_larger_jobs_gets_fewer_of_them",
    ),
    Mutant(
        "weights count for nothing",
        "common/lua/claiming.lua",
        "step_of(cost, owner.weight)",
        "step_of(cost, 1)",
        f"{PLAN}::test_two_who_always_wait_differ_by_one_job_of_each_over_any_interval",
    ),
    Mutant(
        "jobs of a claim take of a limit what the last of them needs",
        "common/lua/claiming.lua",
        "  if owner.bounded then owners().take_room(owner) end -- of those before",
        "  owner.units = units if owner.bounded then owners().take_room(owner) end -- of those before",
        f"{HELD}::test_jobs_of_one_claim_take_of_a_limit_what_each_of_them_needs",
    ),
    Mutant(
        "a turn of short jobs has no end",
        "common/lua/claiming.lua",
        "local is_over = owner.tag >= ends or",
        "local is_over = in_a_turn == 1 or",
        f"{FAIR}::test_the_bound_holds_with_short_jobs_at_every_moment",
    ),
    Mutant(
        "turns of short jobs are long from the start",
        "common/lua/claiming.lua",
        "math.floor(stretch / STARTED_FOR_ONE)",
        "SHORT_IN_A_TURN",
        f"{FAIR}::test_ten_weights_get_their_parts_of_short_jobs_within_five_percent",
    ),
    Mutant(
        "turns stay long though the queue was empty",
        "common/lua/claiming.lua",
        "got >= want and stretch + got or 0",
        "stretch + got",
        f"{FAIR}::test_short_jobs_take_turns_one_by_one_when_the_queue_was_empty_and_the_longer_it_was_not_the_more",
    ),
    Mutant(
        "a turn of short jobs goes on beyond the room that there is",
        "common/lua/claiming.lua",
        "        if got > k then spare = spare - 1 end\n",
        "",
        f"{FAIR}::test_a_turn_of_short_jobs_is_not_cut_while_the_worker_has_room",
    ),
    Mutant(
        "a turn of short jobs goes on beyond its lane's portion",
        "common/lua/claiming.lua",
        "if #lanes > 1 then spare = 0 end",
        "if #lanes > 1 then spare = spare end",
        f"{FAIR}::test_a_turn_of_short_jobs_is_not_cut_while_the_worker_has_room",
    ),
    Mutant(
        "a worker says that all its slots are free",
        "workers/worker.py",
        "await self._claim(want, self._room())",
        "await self._claim(want, self.max_jobs)",
        "tests/worker/test_holding.py::test_turns_of_short_jobs_take_no_more_than_there_is_room_for",
    ),
    Mutant(
        "what runs when a share changes is taken for charged by the new one",
        "common/lua/share.lua",
        "  redis.call('HSET', P .. 'job:' .. id, 'charged', charged)\n",
        "",
        f"{HELD}::test_jobs_that_run_when_a_bound_changes_count_as_they_were_claimed",
    ),
    Mutant(
        "an owner stays held by a bound that he no longer has",
        "common/lua/share.lua",
        "then owners().unhold(owner) end",
        "then owners() end",
        f"{HELD}::test_jobs_that_run_when_a_bound_changes_count_as_they_were_claimed",
    ),
    Mutant(
        "a job that was given back and is cancelled counts on among the running ones",
        "common/lua/job.lua",
        "if string.find(history, 'p%d+ %d+q%d+$') then",
        "if false then",
        f"{HELD}::test_a_job_that_was_given_back_and_is_cancelled_counts_no_more",
    ),
    Mutant(
        "an answer that a helper puts first is taken for paid by its owner",
        "common/lua/claiming.lua",
        "        redis.call('HSET', key, 'charged', '0')",
        "        -- redis.call('HSET', key, 'charged', '0')",
        "tests/conformance/test_help.py::test_a_begun_answer_that_a_helper_leaves_counts_for_nothing_of_its_owners_bound",
    ),
    Mutant(
        "the ends of jobs that nothing was written for give nothing back",
        "common/lua/committing.lua",
        "if not (charged or some_bounded) and gpu_ms <= LEAST_COST then",
        "if not charged and gpu_ms <= LEAST_COST then",
        f"{HELD}::test_every_way_of_ending_lets_the_owners_next_job_run",
    ),
    Mutant(
        "long jobs go in a row too",
        "common/lua/claiming.lua",
        "if PER_JOB > 0 and PER_JOB <= LEAST_COST then",
        "if PER_JOB > 0 then",
        f"{FAIR}::test_only_of_jobs_that_are_known_to_be_short_some_go_in_a_row",
    ),
    Mutant(
        "what is claimed is charged one by one, whatever it is thought to cost",
        "common/lua/claiming.lua",
        "if PER_JOB > 0 then cost =",
        "if false then cost =",
        f"{FAIR}::test_what_a_job_is_thought_to_cost_goes_by_its_units_and_what_the_queue_measured",
    ),
    Mutant(
        "an owner who returns is first every time",
        "common/lua/owners.lua",
        "math.max(start, tonumber(tag or 0))",
        "math.min(start, tonumber(tag or 0))",
        f"{FAIR}::test_an_owner_who_leaves_and_returns_does_not_get_ahead",
    ),
    Mutant(
        "what an owner is given in one lane does not count in the others",
        "common/lua/claiming.lua",
        "if owner.cost > 0 then owners().move_tag",
        "if false then owners().move_tag",
        f"{FAIR}::test_interactive_and_batch_of_one_owner_share_his_part",
    ),
    Mutant(
        "ended jobs go on counting among the owner's running ones",
        "common/lua/owners.lua",
        "math.max(0, share.running - run.n)",
        "math.max(0, share.running)",
        f"{HELD}::test_every_way_of_ending_lets_the_owners_next_job_run",
    ),
    Mutant(
        "the end of a job that a claim finds outlived leaves its owner held",
        "common/lua/owners.lua",
        "if held then unhold(bounded[i]) end",
        "if false then unhold(bounded[i]) end",
        f"{HELD}::test_a_claim_that_only_ends_lives_makes_room_for_the_next_one_and_wakes_a_worker",
    ),
    Mutant(
        "claims do not look how many of an owner's jobs run",
        "common/lua/owners.lua",
        "room = share.terms.most - share.running",
        "room = share.terms.most",
        "tests/faults/test_fairness.py::test_an_owners_bound_holds_and_frees_itself_while_workers_are_killed",
    ),
    Mutant(
        "what was held of a limit and not used is kept",
        "common/lua/owners.lua",
        "if share.at[i] > 0 then",
        "if false then",
        f"{HELD}::test_what_was_reserved_of_a_limit_and_not_used_is_free_at_the_jobs_end",
    ),
    Mutant(
        "what jobs use beyond their guess is forgotten once the guess is free again",
        "common/lua/trim.lua",
        "(NOW - SPENT_KEPT_MS) * 1000",
        "NOW * 1000",
        f"{HELD}::test_what_a_job_used_beyond_its_guess_counts_though_its_guess_is_free_again",
    ),
    Mutant(
        "jobs whose ends were missed count among their owner's running ones for ever",
        "common/lua/promote.lua",
        "    if limit then count_running() end\n",
        "",
        f"{HELD}::test_an_end_that_was_missed_does_not_hold_an_owner_for_ever",
    ),
    Mutant(
        "a held owner's next submit puts him back into the line",
        "common/lua/owners.lua",
        "if some_held and redis.call('ZSCORE', P .. 'held', owner) then\n",
        "if false then\n",
        f"{HELD}::test_what_a_held_owner_submits_waits_too",
    ),
    Mutant(
        "a load of high jobs that lasts leaves the low lane next to nothing",
        "common/lua/lanes.lua",
        "local BURST = 64",
        "local BURST = 64000",
        "tests/conformance/test_claim.py::test_the_low_lane_has_a_tenth_of_the_starts_under_endless_higher_load",
    ),
    Mutant(
        "a turn that ends does not pass its conversation on",
        "common/lua/conversation.lua",
        "if was_first then start_turn(key) end",
        "if false then start_turn(key) end",
        f"{TURNS}::test_every_end_passes_the_turn_on",
    ),
    Mutant(
        "a turn that ends while it waits starts the others",
        "common/lua/conversation.lua",
        "if was_first then start_turn(key) end",
        "start_turn(key)",
        f"{TURNS}::test_a_turn_that_ends_while_it_waits_changes_nothing_for_the_others",
    ),
    Mutant(
        "cancel_previous leaves the earlier turns alone",
        "common/lua/submit.lua",
        "    for _, short in ipairs(unfinished) do",
        "    for _, short in ipairs({}) do",
        f"{TURNS}::test_cancel_previous_ends_all_that_are_unfinished_and_tells_the_worker",
    ),
    Mutant(
        "commit without fence",
        "common/lua/committing.lua",
        "if not history or not is_last(history, step) then",
        "if not history then",
        f"{STOPPING}::test_the_commit_of_a_stale_run_changes_nothing",
    ),
    Mutant(
        "emit without fence",
        "common/lua/emit.lua",
        "mine[held] = history and is_last(history, step) and id or false",
        "mine[held] = history and id or false",
        "tests/worker/test_events.py::test_events_of_a_lost_lease_are_not_written_and_stop_the_run",
    ),
    Mutant(
        "followers: a first look passes over a token",
        "common/lua/follow.lua",
        "ARGV[i + 1] + 1), '+'",
        "ARGV[i + 1] + 2), '+'",
        "tests/integration/test_wakes.py::test_followers_that_begin_together_look_together",
    ),
    Mutant(
        "followers: a first look does not say that somebody reads",
        "common/lua/follow.lua",
        "redis.call('ZADD', P .. 'readers', unpack(places))",
        "",
        "tests/integration/test_wakes.py::test_followers_that_begin_together_look_together",
    ),
    Mutant(
        "beat in the worker's own loop",
        "workers/worker.py",
        "self.beat = BeatProcess(",
        "self.beat = __import__('tests.worker.place', fromlist=['']).InlineBeat(",
        f"{ALIVE}::test_2_a_long_job_and_one_that_holds_the_gil_run_once",
    ),
    Mutant(
        "a beat that renews once",
        "workers/beat.py",
        "if not is_stopped(self._order.pid):",
        "if not self._ready:",
        f"{ALIVE}::test_2_a_long_job_and_one_that_holds_the_gil_run_once",
    ),
    Mutant(
        "a beat that renews for a stopped worker",
        "workers/beat.py",
        "if not is_stopped(self._order.pid):",
        "if self._order.pid:",
        f"{ALIVE}::test_3_a_stopped_worker_that_goes_on_stops_its_work_within_a_second",
    ),
    Mutant(
        "a beat that renews beyond the timeout",
        "workers/beat.py",
        "if row.deadline > now",
        "if row.lease",
        f"{ALIVE}::test_a_run_longer_than_its_timeout_is_not_kept_alive",
    ),
    Mutant(
        "claim without request number",
        "common/lua/claiming.lua",
        "if kept and string.match(kept, '^%S+') == request then again(kept) else claim() end",
        "claim()",
        f"{ONCE}::test_9_a_lost_claim_reply_leaves_no_job_that_nobody_runs",
    ),
    Mutant(
        "release counts an attempt",
        "workers/worker.py",
        'if run.reason == "shutdown":\n            return Outcome.release(run.job, run.seq)',
        "if run.reason == 'shutdown':\n            return self._failed(run, JobFailed('shutdown', '', True, 0))",
        f"{STOPPING}::test_a_drain_gives_a_long_job_back_without_counting_an_attempt",
    ),
    Mutant(
        "rescue without counting deaths",
        "common/lua/rescue.lua",
        "ticket.deaths = ticket.deaths + 1",
        "ticket.deaths = 1",
        "tests/faults/test_poison.py::test_4_a_job_that_kills_its_worker_is_parked_after_three_deaths",
    ),
    Mutant(
        "suspects run beside others",
        "workers/worker.py",
        "await self._alone(run)",
        "pass",
        "tests/worker/test_holding.py::test_a_job_whose_workers_died_runs_alone_before_it_is_parked",
    ),
    Mutant(
        "submit without idempotency key",
        "common/lua/submit.lua",
        "local kept = digest ~= '' and redis.call('GET', P .. 'idem:' .. digest)",
        "local kept = false",
        f"{ONCE}::test_9_one_key_is_one_job_however_often_it_is_sent_and_however_many_replies_are_lost",
    ),
    Mutant(
        "submit sent again is another job",
        "common/lua/submit.lua",
        "if redis.call('EXISTS', P .. 'job:' .. id) == 1 then return {'same', id} end",
        "",
        f"{ONCE}::test_9_a_retrying_submitter_makes_one_entry_of_each_job",
    ),
    Mutant(
        "a stop that may come before the task's first step",
        "workers/run.py",
        "asyncio.get_running_loop().call_soon(self.task.cancel)",
        "self.task.cancel()",
        f"{STOPPING}::test_a_cancel_that_meets_the_claim_costs_no_slot",
    ),
    Mutant(
        "redis-py's own way of writing",
        "common/connections.py",
        "    async def send_packed_command(",
        "    async def another_name(",
        f"{STOPPING}::test_a_cancel_that_comes_as_a_write_ends_is_not_swallowed",
    ),
    Mutant(
        "a drain that takes more jobs",
        "workers/worker.py",
        "while not self._draining.is_set():",
        "while not self._hurry.is_set():",
        f"{STOPPING}::test_a_drain_lets_short_jobs_finish_and_takes_no_more",
    ),
    Mutant(
        "a delivery without a lease",
        "common/lua/claiming.lua",
        "redis.call('ZADD', q .. 'leases', unpack(leases))",
        "redis.call('ZADD', q .. 'leases', NOW + 600000, 'nobody')",
        RECOVERY,
    ),
    Mutant(
        "a submit acknowledged without Redis",
        "common/queue.py",
        "                raise unavailable(error) from error\n\n",
        "                return [[b'new', i.encode(), b'1q1795000000000', 0] for i in args[::14]]\n\n",
        f"{REDIS}::test_6_redis_killed_under_submits_loses_nothing_acknowledged",
    ),
    Mutant(
        "a worker that gives up when Redis is away",
        "workers/outbox.py",
        "except (RedisError, OSError, StoreUnavailable) as error:",
        "except StoreUnavailable as error:",
        f"{REDIS}::test_6_redis_killed_under_submits_loses_nothing_acknowledged",
    ),
    Mutant(
        "a scheduler that gives up when Redis is away",
        "common/service.py",
        "except (RedisError, OSError, StoreUnavailable) as error:",
        "except StoreUnavailable as error:",
        "tests/integration/test_scheduler.py::test_a_scheduler_outlives_a_restart_of_redis",
    ),
    Mutant(
        "an outage of Redis is told as a mistake of ours",
        "common/store.py",
        "raise unavailable(error) from error",
        "raise",
        "tests/integration/test_results.py::test_while_redis_is_away_every_call_says_so_in_time",
    ),
    Mutant(
        "an entry without a record is run",
        "common/lua/claiming.lua",
        "park('entry-' .. entry",
        "tostring('entry-' .. entry",
        f"{REDIS}::test_7_an_emptied_redis_and_damaged_parts_of_it_need_no_hand",
    ),
    Mutant(
        "what is counted after a loss stays wrong",
        "common/lua/claiming.lua",
        "append(writes, 'depth:' .. lane, left_in(lane))",
        "append(writes, 'elsewhere', 0)",
        f"{REDIS}::test_7_an_emptied_redis_and_damaged_parts_of_it_need_no_hand",
    ),
    Mutant(
        "a cut worker that works on after its lease",
        "workers/beat.py",
        "self._tell(self._silent_too_long(held))",
        "self._tell([])",
        f"{NETWORK}::test_8_a_cut_worker_stops_its_work_at_the_end_of_the_lease",
    ),
    Mutant(
        "calls of Redis that may hang for ever",
        "common/connections.py",
        '"socket_timeout": settings.redis_timeout_s,',
        '"socket_timeout": 3600.0,',
        f"{NETWORK}::test_8_a_cut_worker_loses_its_job_and_changes_nothing_after_the_cut[silent]",
    ),
    Mutant(
        "a queue that takes one job too many",
        "common/lua/submit.lua",
        "if depth.n >= MAX_DEPTH then",
        "if depth.n > MAX_DEPTH then",
        f"{BOUNDS}::test_11_a_full_queue_takes_no_job_more_than_its_bound_and_says_so_at_once",
    ),
    Mutant(
        "a commit that needs memory",
        "common/lua/committing.lua",
        "  even_when_full()\n",
        "",
        f"{BOUNDS}::test_11_a_redis_without_memory_refuses_new_jobs_and_finishes_what_it_has",
    ),
    Mutant(
        "records that are kept for ever",
        "common/lua/committing.lua",
        "redis.call('PEXPIRE', key, RETENTION_MS, 'NX') -- a record that must be kept longer has its end already",
        "",
        f"{BOUNDS}::test_11_after_many_jobs_and_their_retention_redis_is_as_it_was",
    ),
    Mutant(
        "news that are kept for ever",
        "common/lua/trim.lua",
        "redis.call('XTRIM', P .. news, 'MINID', NOW - ARGV[3])",
        "redis.call('EXISTS', P .. news)",
        f"{BOUNDS}::test_11_after_many_jobs_and_their_retention_redis_is_as_it_was",
    ),
    Mutant(
        "lost replies: claim without request number",
        "common/lua/claiming.lua",
        "if kept and string.match(kept, '^%S+') == request then again(kept) else claim() end",
        "claim()",
        LOST,
    ),
    Mutant(
        "lost replies: a submit sent again has other ids",
        "common/queue.py",
        "            # The reply may be lost though the jobs were accepted.",
        "            args[::14] = [new_job_id(args[0][4:6]) for _ in args[::14]]\n            # The",
        LOST,
    ),
    Mutant(
        "lost replies: an event sent again is another event",
        "common/lua/emit.lua",
        "number .. '-0', 'e', event",
        "number .. '-*', 'e', event",
        LOST,
    ),
    Mutant(
        "a helper that takes what the queue's own workers would",
        "common/lua/help.lua",
        "    if is_before(name) then return false end\n",
        "",
        "tests/conformance/test_help.py",
    ),
    Mutant(
        "a helper that goes on with another model's answer",
        "common/lua/help.lua",
        "helping = true",
        "helping = false",
        "tests/conformance/test_help.py",
    ),
    Mutant(
        "an upstream that takes nothing costs an attempt",
        "workers/worker.py",
        "            return Outcome.release(run.job, run.seq)\n        except Exception",
        "            return self._failed(run, JobFailed('busy', 'busy', True))\n        except Exception",
        "tests/faults/test_fallback.py::test_a_hosted_model_that_takes_nothing_loses_no_job_and_none_of_its_attempts",
    ),
    Mutant(
        "an answer asked for again is shown again",
        "workers/engines/openai_engine.py",
        "_after(request.resume_text, pieces",
        '_after("", pieces',
        "tests/unit/test_openai_engine.py",
    ),
    Mutant(
        "a batch: a finished line is run again",
        "producer/batches/stretches.py",
        "return line_job_id(queue.keys.shard_of_queue(spec.queue), batch.id, line, place)",
        "return __import__('common.keys').keys.new_job_id(queue.keys.shard_of_queue(spec.queue))",
        f"{BATCHES}::test_a_line_that_has_finished_is_not_run_again_by_who_takes_the_batch_over",
    ),
    Mutant(
        "a batch: answers out of order",
        "producer/batches/run.py",
        "for number in sorted(parts)]",
        "for number in sorted(parts, key=str)]",
        f"{BATCHES}::test_every_line_of_a_batch_is_answered_once_in_order_whoever_is_killed",
    ),
    Mutant(
        "a batch: a line lost by who takes it over",
        "producer/batches/run.py",
        "left = [number for number in range(len(plan)) if number not in done]",
        "left = list(range(max(done, default=-1) + 1, len(plan)))",
        "tests/producer/test_batches.py::test_who_takes_a_batch_over_finishes_the_lines_that_were_left_behind",
    ),
    Mutant(
        "a batch: parts without fence",
        "common/lua/batch_part.lua",
        "if not has(id, ARGV[2]) then return 'lost' end",
        "",
        "tests/conformance/test_batches.py::test_whoever_lost_a_batch_changes_nothing",
    ),
    Mutant(
        "low embedding calls go with the others",
        "workers/engines/batching.py",
        "            if low:\n                await self._others_first(encoder)",
        "            if False:\n                await self._others_first(encoder)",
        "tests/unit/test_batching.py",
    ),
    Mutant(
        "embedding: vectors that were held back for a crowd are lost with the engine",
        "workers/engines/batching.py",
        "        finally:\n            self._done.tell()\n",
        "        finally:\n",
        "tests/unit/test_batching.py",
    ),
    Mutant(
        "embedding: vectors are held back though nobody waits",
        "workers/engines/batching.py",
        "later=self._crowded",
        "later=True",
        "tests/unit/test_batching.py",
    ),
    Mutant(
        "embedding: a thread waits for the event loop",
        "workers/engines/batching.py",
        "encoder.threads if low else encoder.threads * 2",
        "encoder.threads",
        "tests/unit/test_batching.py",
    ),
    Mutant(
        "embedding: groups are filled whatever that pads",
        "workers/engines/grouping.py",
        "ends = [full, *changes[bisect_right(changes, start) : bisect_right(changes, full)]]",
        "ends = [full]",
        "tests/unit/test_grouping.py",
    ),
    Mutant(
        "n-grams: the first guess takes all cores for the model",
        "workers/engines/vllm_one_process.py",
        'with _environment("NUMBA_NUM_THREADS", count):',
        'with _environment("NUMBA_NUM_THREADS", str(os.cpu_count())):',
        "tests/engines/test_one_process_threads.py",
    ),
    Mutant(
        "reads of jobs: one that comes as the last call ends is never made",
        "common/reads.py",
        "            self._call_if_free()  # somebody may",
        "            pass  # somebody may",
        "tests/unit/test_reads.py",
    ),
    Mutant(
        "reads of jobs: one hears that Redis is away",
        "common/reads.py",
        "_tell(some, [error] * len(some))",
        "_tell(some[:1], [error])",
        "tests/unit/test_reads.py",
    ),
    Mutant(
        "a batch: results go with their retention",
        "common/lua/committing.lua",
        "redis.call('PEXPIRE', key, RETENTION_MS, 'NX')",
        "redis.call('PEXPIRE', key, RETENTION_MS)",
        "tests/conformance/test_submit.py::test_a_record_that_must_be_kept_outlives_its_retention",
    ),
    Mutant(
        "webhooks: the script that stores a result writes no outbox entry",
        "common/lua/committing.lua",
        "  tell(id, code, history)\n",
        "",
        f"{WEBHOOKS}::test_every_end_is_told_though_workers_and_delivery_workers_are_killed_all_the_time",
    ),
    Mutant(
        "webhooks: what a scheduler ends is not told",
        "common/lua/job.lua",
        "  tell(id, code, history)\n  close(",
        "  close(",
        "tests/conformance/test_outbox.py::test_every_end_of_a_job_with_a_webhook_is_told",
    ),
    Mutant(
        "webhooks: a delivery is taken without a lease",
        "common/lua/deliver.lua",
        "redis.call('ZADD', P .. 'outbox', LEASE_UNTIL, name)",
        "redis.call('ZREM', P .. 'outbox', name)",
        f"{WEBHOOKS}::test_a_delivery_worker_that_dies_after_its_post_leads_to_the_same_event_again",
    ),
    Mutant(
        "webhooks: a delivery worker whose lease has ended settles all the same",
        "common/lua/settle.lua",
        "if redis.call('HGET', key, 'claims') ~= ARGV[2] then return 0 end",
        "",
        "tests/conformance/test_outbox.py::test_a_worker_whose_lease_has_ended_settles_nothing",
    ),
    Mutant(
        "webhooks: a host's addresses are looked up and checked once, not at each attempt",
        "common/egress.py",
        "addresses = [target.address] if target.address else await self._resolve(target.host, target.port)",
        "addresses = self.__dict__.setdefault(target.host, [target.address] if target.address else "
        "await self._resolve(target.host, target.port))",
        "tests/delivery/test_delivery.py::test_an_attempt_is_checked_anew_each_time",
    ),
    Mutant(
        "webhooks: one good address of a host is enough",
        "common/egress.py",
        "self.destinations.check(target, addresses)",
        "self.destinations.check(target, addresses[:1])",
        f"{EGRESS}::test_a_name_that_leads_to_such_an_address_is_not_connected_to",
    ),
    Mutant(
        "webhooks: whoever connects does not check",
        "common/egress.py",
        'self._destinations.check(Target("https", host, port, "/", None), [address_of(host)])',
        "address_of(host)",
        f"{EGRESS}::test_whoever_connects_checks_once_more",
    ),
    Mutant(
        "webhooks: is_global is believed",
        "common/destinations.py",
        "return address.is_global and not any(address in network for network in DENIED)",
        "return address.is_global",
        "tests/unit/test_destinations.py::test_an_address_that_is_not_one_public_host_is_not_public",
    ),
    Mutant(
        "webhooks: redirects are followed",
        "common/egress.py",
        "follow_redirects=False",
        "follow_redirects=True",
        "tests/delivery/test_delivery.py::test_a_redirect_is_not_followed",
    ),
    Mutant(
        "webhooks: an answer is read to its end",
        "common/egress.py",
        "MOST_READ = 65_536",
        "MOST_READ = 10**12",
        f"{EGRESS}::test_of_a_gigabyte_little_is_read",
    ),
    Mutant(
        "a body without a length is read to its end",
        "producer/guard.py",
        'limit = self._form_limit(scope["path"]) if _is_form(headers) else self.max_body_bytes',
        "limit = 2**40",
        f"{HOSTILE}::test_14_a_gigabyte_without_a_length_and_a_gzip_bomb_are_cut_off_early",
    ),
    Mutant(
        "what is wrong with an address is the server's mistake",
        "producer/problems.py",
        "app.add_exception_handler(RequestValidationError, _on_invalid_parameters)",
        "app.add_exception_handler(RequestValidationError, _on_http_error)",
        f"{HOSTILE}::test_14_thousands_of_hostile_requests_get_no_5xx_and_leave_the_web_process_as_it_was",
    ),
    Mutant(
        "a record of any size is run",
        "workers/worker.py",
        "elif len(job.raw) > self.settings.max_body_bytes:",
        "elif False:",
        f"{TRUST}::test_15_what_is_forged_in_redis_is_never_run_and_costs_no_process",
    ),
    Mutant(
        "a response is erased under its worker",
        "common/lua/erase.lua",
        "if not end_job(ARGV[1], 'x', 'cancelled', 'deleted by request', ARGV[2]) then return false end",
        "if not kept[1] then return false end",
        "tests/conformance/test_ends.py::test_the_worker_of_an_erased_job_is_told_and_can_write_nothing",
    ),
    Mutant(
        "the events of an erased response stay",
        "common/lua/erase.lua",
        "redis.call('DEL', key, P .. 'tokens:' .. ARGV[1])",
        "redis.call('DEL', key)",
        "tests/conformance/test_ends.py::test_an_erased_job_leaves_nothing_wherever_it_stood",
    ),
    Mutant(
        "a resumed stream of a response begins anew",
        "producer/openai/responses/streamed.py",
        "if number <= self._after:",
        "if False:",
        RESUMED,
    ),
    Mutant(
        "a response's events are numbered by who reads them",
        "producer/openai/responses/routes.py",
        "return self._here.results.follow_together(self._job_id)",
        "return self._here.results.follow_together(self._job_id, 3)",
        RESUMED,
    ),
    Mutant(
        "every delivery of a response's job begins it again",
        "producer/openai/responses/streamed.py",
        'elif status == "in_progress" and not self._begun:',
        'elif status == "in_progress":',
        "tests/unit/test_response_events.py",
    ),
    Mutant(
        "a response that its caller left is kept though it was not to be stored",
        "producer/openai/routes.py",
        "end = self.here.queue.cancel if self.kept else self.here.queue.erase",
        "end = self.here.queue.cancel",
        f"{RESPONSES}::test_a_response_that_its_caller_left_is_gone_if_it_was_not_to_be_stored",
    ),
    Mutant(
        "a response that was not to be stored can be asked for",
        "producer/openai/responses/stored.py",
        'if not work.front.get("response", {}).get("store"):',
        'if "response" not in work.front:',
        f"{RESPONSES}::test_with_a_key_a_response_that_is_not_stored_is_found_again_only_by_its_key",
    ),
    Mutant(
        "webhooks call a response by its job",
        "common/lua/job.lua",
        "hook.subject and 'resp_' .. short or id",
        "id",
        f"{RESPONSES}::test_the_end_of_a_response_in_the_background_is_told_by_its_own_id",
    ),
    Mutant(
        "an answer begins anew after its engine's death",
        "workers/generation.py",
        'emitted = await ctx["emitted"](job) if job.claims > 1 else []',
        "emitted: list[dict[str, Any]] = []",
        "tests/faults/test_engine_killed.py",
    ),
    Mutant(
        "a recording begins anew after its worker's death",
        "workers/transcription.py",
        'emitted = await ctx["emitted"](job) if job.claims > 1 else []',
        "emitted: list[dict[str, Any]] = []",
        "tests/faults/test_transcription_killed.py",
    ),
    Mutant(
        "a job is shown whoever asks",
        "common/records.py",
        "if owner not in (None, record.user):",
        "if owner == '':",
        TENANTS,
    ),
    Mutant(
        "a job is cancelled whoever asks",
        "producer/routes.py",
        "    record = await here.results.record(job_id, position=False, owner=who(request).sees)\n"
        "    await here.audited(request, job_id, record.user)\n    await here.queue.cancel",
        "    await here.queue.cancel",
        TENANTS,
    ),
    Mutant(
        "a file is shown whoever asks", "common/files.py", "if owner not in (None, record.owner):", "if False:", TENANTS
    ),
    Mutant(
        "a batch is shown whoever asks",
        "common/batches.py",
        "if found is None or owner not in (None, found.asked.user):",
        "if found is None:",
        TENANTS,
    ),
    Mutant(
        "a response goes on from anybody's",
        "producer/openai/responses/specs.py",
        "stored.conversation(results, earlier, who.sees)",
        "stored.conversation(results, earlier, None)",
        TENANTS,
    ),
    Mutant(
        "a file's list has everybody's",
        "producer/openai/files.py",
        "files, owner = edge(request).files, who(request).sees",
        "files, owner = edge(request).files, None",
        TENANTS,
    ),
    Mutant(
        "another's delivery takes longer to be refused",
        "producer/webhooks.py",
        "        raise NoDelivery(delivery_id)",
        "        await asyncio.sleep(0.008)\n        raise NoDelivery(delivery_id)",
        TENANTS,
    ),
    Mutant(
        "a key is stored as it is",
        "common/access.py",
        "return hashlib.sha256(text.encode()).hexdigest()",
        "return text",
        TENANTS,
    ),
    Mutant(
        "a revoked key goes on",
        "producer/auth.py",
        "or record is None or record.revoked_ms:",
        "or record is None:",
        f"{AUTH}::test_a_revoked_key_works_no_longer_than_its_record_is_trusted",
    ),
    Mutant(
        "no live key, no lock",
        "common/api_keys.py",
        'self.redis.exists(f"{self._prefix}api_keys:made")',
        'self.redis.exists(f"{self._prefix}api_keys")',
        "tests/integration/test_api_keys.py::test_a_server_that_once_had_a_key_knows_it_though_none_is_left",
    ),
    Mutant(
        "a change of limits dies with its process",
        "common/api_keys.py",
        "ids = sorted({*key_ids, *dirty})",
        "ids = sorted({*key_ids})",
        "tests/integration/test_api_keys.py::"
        "test_a_change_whose_process_died_before_it_reached_the_queues_gets_there_with_the_next",
    ),
    Mutant(
        "the last of two changes may be the first",
        "common/lua/api_key_applied.lua",
        "if (redis.call('GET', P .. 'api_keys:version') or '0') ~= ARGV[1] then return 0 end",
        "",
        "tests/integration/test_api_keys.py::test_of_two_changes_at_once_the_last_is_what_the_queues_have",
    ),
    Mutant(
        "a forecast brings an erased job back",
        "common/lua/foresee.lua",
        "if job[1] and not job[3] then",
        "if not job[3] then",
        f"{WAITING}::test_a_forecast_brings_no_erased_job_back_and_a_cancelled_one_is_not_judged",
    ),
    Mutant(
        "the last forecast counts, not the first",
        "common/lua/foresee.lua",
        "if job[1] and not job[3] then",
        "if job[1] then",
        f"{WAITING}::test_only_the_first_forecast_of_a_job_counts",
    ),
    Mutant(
        "forecasts of jobs that were quicker than they are not judged",
        "common/lua/foresee.lua",
        "if code == 'c' or code == 'i' or code == 'f' then",
        "if false then",
        f"{WAITING}::test_a_forecast_of_a_job_that_has_ended_meanwhile_counts_once",
    ),
    Mutant(
        "a place forgets what its users pay in other lanes",
        "common/lua/order.lua",
        "if same.name == user.name then same.tag = same.tag + (user.tag - before) end",
        "",
        f"{WAITING}::test_jobs_start_in_the_order_of_their_positions",
    ),
    Mutant(
        "a place forgets weights",
        "common/lua/order.lua",
        "step_of(cost_of(units), owners().share_of(user.name).weight)",
        "cost_of(units)",
        f"{WAITING}::test_jobs_start_in_the_order_of_their_positions",
    ),
    Mutant(
        "forecasts do not learn from how they came out",
        "common/lua/pace.lua",
        "  high = high + step * (above_most and COVERED or COVERED - 1)\n",
        "",
        f"{WAITING}::test_what_was_foretold_is_judged_when_the_job_ends",
    ),
    Mutant(
        "all who are refused come back at once",
        "common/lua/submit.lua",
        "  redis.call('HSET', depth.q .. 'meta', 'room', string.format('%d', depth.room))\n",
        "",
        "tests/conformance/test_submit.py::test_those_who_are_refused_are_not_all_told_to_come_at_once",
    ),
    Mutant(
        "a full queue promises a pace of long ago",
        "common/lua/submit.lua",
        "local rate = (meta[4] or 0) * math.exp(math.min(0, (meta[5] or 0) - NOW) / 30000)",
        "local rate = tonumber(meta[4] or 0)",
        "tests/conformance/test_submit.py::test_a_queue_that_stands_still_does_not_promise_its_old_pace",
    ),
    Mutant(
        "who polls is told the same whatever is expected",
        "producer/record.py",
        "    seconds = hint_s(record.eta, time.time() - record.created_at)\n",
        "    seconds = 1.0\n",
        "tests/producer/test_poll_hints.py::test_a_poll_is_due_a_little_before_the_job_is_expected_to_be_done",
    ),
    Mutant(
        "a model that is loaded still counts as loading",
        "workers/loading.py",
        "        with suppress(*UNAVAILABLE, ResponseError):\n            await client.loading(queue, worker, 0)\n",
        "",
        "tests/worker/test_loading.py::test_a_model_that_is_being_loaded_is_said_so_until_it_is_there",
    ),
    Mutant(
        "limits by the first that lets a job through",
        "common/lua/limits.lua",
        "if violated then return wait, violated end",
        "if violated and #violated == #buckets then return wait, violated end",
        f"{DOOR}::test_limits_are_taken_all_or_none",
    ),
    Mutant(
        "one more than the burst",
        "common/lua/limits.lua",
        "elseif need > 0 and over > bucket.burst * 1e-9 and wait >= 0 then",
        "elseif need > 0 and over > 1 and wait >= 0 then",
        f"{LIMITS}::test_12_exactly_the_burst_gets_through_four_processes_one_of_which_has_a_wrong_clock",
    ),
    Mutant(
        "a Retry-After that is a little too early",
        "common/lua/limits.lua",
        "wait = math.max(wait, math.ceil(over / bucket.rate - 1e-6))",
        "wait = math.max(wait, math.ceil(over / bucket.rate * 0.9))",
        f"{LIMITS}::test_12_exactly_the_burst_gets_through_four_processes_one_of_which_has_a_wrong_clock",
    ),
    Mutant(
        "what has drained comes back too",
        "common/lua/limits.lua",
        "left = math.min(bucket.held, taken * math.exp(bucket.share - share))",
        "left = math.min(bucket.used + bucket.held, taken)",
        f"{BUCKET}::test_a_bucket_never_holds_less_than_what_was_really_used",
    ),
    Mutant(
        "what was held in an earlier stretch comes back from this one",
        "common/lua/limits.lua",
        "if bucket.held > 0 and bucket.since == tonumber(since) then",
        "if bucket.held > 0 then",
        f"{BUCKET}::test_a_bucket_that_was_gone_meanwhile_gives_nothing_back",
    ),
    Mutant(
        "what a job used beyond its estimate is forgotten",
        "common/lua/limits.lua",
        "bucket.used + math.max(0, left + (used[bucket.what] or taken) - taken)",
        "bucket.used + math.max(0, left - math.max(0, taken - (used[bucket.what] or taken)))",
        f"{DOOR}::test_what_a_job_used_beyond_its_estimate_is_taken_afterwards",
    ),
    Mutant(
        "a stopped run gives all back",
        "common/lua/usage.lua",
        "    used = {}\n",
        "",
        f"{DOOR}::test_a_run_that_is_stopped_keeps_what_it_may_have_used",
    ),
    Mutant(
        "a replay takes of the limits",
        "common/lua/submit.lua",
        "  if known then return known end\n",
        "  if known then\n    stopped_at(door_of(ARGV[i + 17]), i, queue, ARGV[i + 17])\n    return known\n  end\n",
        f"{DOOR}::test_what_is_accepted_already_or_refused_for_another_reason_takes_nothing",
    ),
    Mutant(
        "a job that comes back does not wait again",
        "common/lua/committing.lua",
        "    give_back(id, q, ticket.lane, history, number)\n    wait_on(id, ticket.api_key)\n",
        "    give_back(id, q, ticket.lane, history, number)\n",
        f"{DOOR}::test_so_many_jobs_of_a_key_may_wait",
    ),
    Mutant(
        "usage counted for a commit that was stored before",
        "common/lua/committing.lua",
        "    return history and is_mine(id, history, step) and 'mine' or 'lost'\n",
        "    if history then use(who_of(look_at_ticket(job[2]), job[5]), 'completed', 1) end\n"
        "    return history and is_mine(id, history, step) and 'mine' or 'lost'\n",
        "tests/conformance/test_usage.py::test_all_runs_of_a_job_count_as_gpu_time_and_one_of_them_as_a_job",
    ),
    Mutant(
        "a Retry-After in seconds that is rounded down",
        "producer/problems.py",
        '"retry-after": str(max(1, math.ceil(retry_after_s))),',
        '"retry-after": str(max(1, int(retry_after_s))),',
        "tests/producer/test_limits.py::test_a_used_up_limit_is_a_problem_that_names_it_and_says_when",
    ),
    Mutant(
        "a connection is used again though a reply is still to come",
        "common/connections.py",
        "            await self.disconnect(nowait=True)  # half a command may be written, or half a reply read\n",
        "",
        f"{CALLS}::test_the_reply_to_a_cancelled_call_is_not_taken_for_the_next_ones",
    ),
    Mutant(
        "a cancel that comes as a call is overdue is lost",
        "common/connections.py",
        "if self._overdue and isinstance(error, Exception):",
        "if self._overdue:",
        f"{CALLS}::test_a_cancel_that_comes_as_a_call_is_overdue_stays_a_cancel",
    ),
    Mutant(
        "calls that Redis does not answer wait for ever",
        "common/connections.py",
        "            self._writer.transport.abort()",
        "            pass",
        f"{CALLS}::test_a_call_that_is_not_answered_fails_within_its_time",
    ),
    Mutant(
        "the alarm of an answered call cuts an idle connection",
        "common/connections.py",
        "            self._began = None\n        if isinstance(reply, ResponseError)",
        "            pass\n        if isinstance(reply, ResponseError)",
        f"{CALLS}::test_an_idle_connection_is_not_cut_by_the_alarm_of_a_call_that_was_answered",
    ),
    Mutant(
        "an engine core that begins with the first of those who come together",
        "workers/engines/vllm_together.py",
        "while core.jarvis_followed and",
        "while False and",
        f"{VLLM}::test_jobs_that_come_together_begin_in_one_step",
    ),
    Mutant(
        "an engine core that waits for ever for who was announced",
        "workers/engines/vllm_together.py",
        "LIMIT_S = 0.02",
        "LIMIT_S = 60.0",
        f"{VLLM}::test_a_request_that_was_said_to_be_followed_and_is_not_begins_all_the_same",
    ),
    Mutant(
        "a stream's first tokens wait for their reader to be noted",
        "workers/outbox.py",
        "if self._coming.get(lease, 0.0) > now:",
        "if False:",
        "tests/worker/test_events.py::"
        "test_a_job_whose_caller_comes_for_its_events_is_written_at_once_before_he_is_there[60.0-True]",
    ),
    Mutant(
        "how a caller waits is part of what he asks",
        "producer/submit.py",
        "key = key_of(spec, idempotency_key)\n        spec",
        "key = key_of(msgspec.structs.replace(spec, awaited=awaited), idempotency_key)\n        spec",
        "tests/producer/test_idempotency.py::test_the_same_request_of_one_who_waits_otherwise_is_the_same_job",
    ),
    Mutant(
        "the first of the ends that come together goes ahead",
        "workers/outbox.py",
        "len(outcomes), WRITE_BATCH):\n                await self._commit(outcomes[start : start + WRITE_BATCH])",
        "1):\n                await self._commit(outcomes[:1])\n                await self._commit(outcomes[1:])",
        "tests/worker/test_holding.py::test_jobs_that_end_together_are_followed_by_jobs_that_begin_together",
    ),
    Mutant(
        "a slotful of few slots is claimed in parts",
        "workers/worker.py",
        "min(self.max_jobs, FEW_SLOTS)",
        "1",
        "tests/worker/test_holding.py::test_jobs_that_end_together_are_followed_by_jobs_that_begin_together",
    ),
)


def main(wanted: list[str]) -> int:
    """Run the mutants whose names contain one of the words (all without any); returns how many survived."""
    mutants = [one for one in MUTANTS if not wanted or any(word in one.what for word in wanted)]
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        for name in COPIED:
            _copy(ROOT / name, tree / name)
        if not passes(tree, sorted({one.test for one in mutants}), say=True):
            print("the tests do not pass without a mutant: nothing can be said")
            return 1
        survivors = [one for one in mutants if survives(tree, one)]
    print(f"mutants={len(mutants)} killed={len(mutants) - len(survivors)} survived={len(survivors)}")
    return len(survivors)


def survives(tree: Path, mutant: Mutant) -> bool:
    """Whether the mutant's test passes all the same."""
    file = tree / mutant.file
    text = file.read_text()
    if text.count(mutant.old) != 1:
        raise SystemExit(f"{mutant.what}: found {text.count(mutant.old)} times in {mutant.file}: {mutant.old}")
    started = time.monotonic()
    file.write_text(text.replace(mutant.old, mutant.new))
    try:
        survived = passes(tree, [mutant.test])
    finally:
        file.write_text(text)
    print(f"{'SURVIVED' if survived else 'killed'}  {mutant.what}  ({time.monotonic() - started:.0f} s)", flush=True)
    return survived


def passes(tree: Path, tests: list[str], say: bool = False) -> bool:
    """Whether these tests pass in a tree."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1", DEADLINE_VARIABLE: "30"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--timeout=100", *tests]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    if done.returncode and say:
        print(done.stdout[-5000:])
    return done.returncode == 0


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
