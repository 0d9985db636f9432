"""SIGKILL of vLLM's own process under streaming jobs: the worker stays, restarts it, and every answer is whole.

Once in `make test`, 20 times with JARVIS_FAULTS_FULL=1.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from common.jobs import JobSpec
from common.states import State
from tests.engines.tiny_model import write_tiny_model
from tests.faults.conftest import FULL
from tests.faults.formation import Formation, Kept
from tests.faults.sizes import children
from tests.waiting import until

KILLS = 20 if FULL else 1
JOBS = 16  # a round; the worker has 8 slots
TOKENS = 900  # a job: so long that the kill finds it running, on a fast machine too
SLOW_S = 300  # a start of vLLM on two cores that others use
CATALOGUE = """
[models.tiny]
kind = "generation"
engine = "vllm"
weights = "./tiny"
max_model_len = 1024
slots = 8
options = { enforce_eager = true, kv_cache_memory_bytes = 67108864 }
"""


def engine_cores(pid: int) -> list[int]:
    """The engine core processes below a process."""
    below = children(pid)
    own = [child for child in below if b"EngineCore" in Path(f"/proc/{child}/cmdline").read_bytes()]
    return own + [found for child in below if child not in own for found in engine_cores(child)]


async def submit(formation: Formation, count: int, tokens: int, **fields: str) -> list[str]:
    params = {"max_tokens": tokens, "min_tokens": tokens, "temperature": 0}
    spec = {"kind": "generation", "model": "tiny", "params": params, "max_attempts": 100} | fields
    specs = [JobSpec(input={"prompt": f"{n}: tell"}, **spec) for n in range(count)]  # type: ignore[arg-type]
    return [one.id for one in await formation.queue.submit_many(specs)]


async def streaming(formation: Formation, jobs: list[str]) -> None:
    """Wait until half of the slots have streamed something; events may hold many tokens, so one is enough."""

    async def there() -> bool:
        return sum([bool(await formation.results.emitted(job)) for job in jobs[:8]]) >= 4

    await until(there, f"tokens\n{formation.logs()}", SLOW_S, step_s=0.02)


async def kill_and_recover(formation: Formation, worker: Kept) -> float:
    """SIGKILL the engine core; returns the seconds until a job that was submitted then has completed."""
    [core] = engine_cores(worker.pid)
    os.kill(core, signal.SIGKILL)
    killed_at = time.monotonic()
    await formation.ends(await submit(formation, 1, 1, priority="high"), SLOW_S)
    return time.monotonic() - killed_at


@pytest.mark.timeout(3600 if FULL else 900)
async def test_an_engine_killed_under_load_comes_back_and_every_answer_is_whole(formation: Formation) -> None:
    write_tiny_model(formation.folder / "tiny", positions=1024)
    (formation.folder / "models.toml").write_text(CATALOGUE)
    await formation.scheduler()
    started_at = time.monotonic()
    worker = formation.start("workers", "generation")
    pid = await first_pid(worker)
    [probe] = await formation.ends(await submit(formation, 1, 1), SLOW_S)
    start_s, back_s = time.monotonic() - started_at, []
    jobs = [probe.id]
    for _ in range(KILLS):
        added = await submit(formation, JOBS, TOKENS)
        await streaming(formation, added)
        back_s.append(await kill_and_recover(formation, worker))
        jobs += added
        await formation.ends(added, SLOW_S)
    print(f"start {start_s:.1f} s; back after {', '.join(f'{s:.1f}' for s in back_s)} s")
    records = await formation.ends(jobs, SLOW_S)
    assert {record.status for record in records} == {State.COMPLETED}
    [stats] = [one for one in await formation.results.queues() if one.queue == "generation:tiny"]
    assert stats.counts["state:completed"] == len(jobs) + KILLS, "each job once"
    for job in jobs:
        found = await formation.results.result(job)
        assert found is not None
        output = json.loads(bytes(found.output or b"{}"))
        assert "".join(event["text"] for event in await formation.results.emitted(job)) == output["text"]
        assert found.record.usage is not None
        assert found.record.usage["completion_tokens"] == (1 if job == probe.id else TOKENS)
    assert sum(record.claims > 1 for record in records) >= KILLS, "kills hit running jobs"
    assert (worker.pid, worker.exits) == (pid, []), "the worker never ended"
    assert max(back_s) < 2 * start_s + 5  # others use this machine too


async def first_pid(worker: Kept) -> int:
    await until(lambda: worker.alive, "the worker's process")
    return worker.pid
