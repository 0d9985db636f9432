"""Worker processes on a node of simulated GPUs: real locks, real waiting, real deaths; only the cards are made up."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.worker.place import Place

ROOT = Path(__file__).parents[2]
ONE, TWO = "0:24GiB", "0:24GiB,1:24GiB"
CATALOGUE = """
[models]
whole = { kind = "generation", engine = "fake", max_model_len = 100, gpu_share = 1 }
small = { kind = "generation", engine = "fake", max_model_len = 100, gpu_share = 0.4 }
most = { kind = "generation", engine = "fake", max_model_len = 100, gpu_share = 0.6 }
more = { kind = "generation", engine = "fake", max_model_len = 100, gpu_share = 0.7 }
wide = { kind = "generation", engine = "fake", max_model_len = 100, gpu_share = 1, tensor_parallel = 2 }
plain = { kind = "generation", engine = "fake", max_model_len = 100 }
slow = { kind = "generation", engine = "fake", max_model_len = 100, gpu_share = 0.4, options = { start_s = 600 } }
vectors = { kind = "embedding", engine = "fake", gpu_share = 0.5 }
"""
DEADLINE_S = 30.0


class Node:
    """Workers of one simulated node; `start` gives each the node's cards and its lock folder."""

    def __init__(self, place: Place, folder: Path) -> None:
        self.place = place
        self.folder = folder
        self.workers: list[asyncio.subprocess.Process] = []
        self.logs: dict[int, Path] = {}
        (folder / "models.toml").write_text(CATALOGUE)

    def environment(self, cards: str) -> dict[str, str]:
        """What a worker here reads; nothing of this machine's own settings."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("JARVIS_", "CUDA_"))}
        return clean | {
            "PYTHONPATH": str(ROOT),
            "JARVIS_REDIS_URL": self.place.queue.settings.redis_url,
            "JARVIS_LEASE_S": "2",
            "JARVIS_BELL_TIMEOUT_S": "1",
            "JARVIS_CATALOGUE": str(self.folder / "models.toml"),
            "JARVIS_DEVICES": cards,
            "JARVIS_DEVICE_LOCK_DIR": str(self.folder / "locks"),
        }

    async def start(self, model: str, *flags: str, cards: str = TWO, **variables: str) -> asyncio.subprocess.Process:
        """Start a worker of `model`, in a working folder of its own."""
        kind = "embedding" if model == "vectors" else "generation"
        home = self.folder / f"home{len(self.workers)}"
        home.mkdir()
        log = home / "log"
        with log.open("wb") as out:
            worker = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "workers", kind, "--model", model, *flags,
                cwd=home, env=self.environment(cards) | variables, stdout=out, stderr=out,
            )  # fmt: skip
        self.workers.append(worker)
        self.logs[worker.pid] = log
        return worker

    def log(self, worker: asyncio.subprocess.Process) -> str:
        return self.logs[worker.pid].read_text()

    async def says(self, worker: asyncio.subprocess.Process, pattern: str) -> str:
        """Wait for a line of this worker's log; returns what the pattern's group holds, or the whole match."""
        await until(lambda: re.search(pattern, self.log(worker)) is not None, pattern, lambda: self.log(worker))
        match = re.search(pattern, self.log(worker))
        assert match is not None
        return match[match.lastindex or 0]

    async def device(self, model: str, worker: asyncio.subprocess.Process) -> str:
        """Wait for this worker's entry in Redis; returns its device."""
        return str((await self.entry(model, worker))["device"])

    async def entry(self, model: str, worker: asyncio.subprocess.Process) -> dict[str, Any]:
        found: list[dict[str, Any]] = []
        queue = f"{'embedding' if model == 'vectors' else 'generation'}:{model}"

        async def there() -> bool:
            found[:] = [one for one in await self.place.results.workers(queue) if one["pid"] == worker.pid]
            return bool(found)

        await until(there, f"an entry of {model}", lambda: self.log(worker))
        return found[0]

    async def end(self) -> None:
        for worker in self.workers:
            if worker.returncode is None:
                worker.kill()
            await worker.wait()


async def until(met: Callable[[], bool | Awaitable[bool]], what: str, log: Callable[[], str]) -> None:
    started = time.monotonic()
    while True:
        now = met()
        if now if isinstance(now, bool) else await now:
            return
        assert time.monotonic() - started < DEADLINE_S, f"not in {DEADLINE_S} s: {what}\n{log()}"
        await asyncio.sleep(0.02)


def child_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


@pytest_asyncio.fixture
async def node(place: Place, tmp_path: Path) -> AsyncIterator[Node]:
    node = Node(place, tmp_path)
    yield node
    await node.end()


async def test_two_workers_take_different_gpus_and_a_third_says_why_it_waits_and_follows_a_killed_one(
    node: Node,
) -> None:
    first, second = await node.start("whole"), await node.start("whole")
    devices = {await node.device("whole", first), await node.device("whole", second)}
    assert devices == {"GPU 0 (simulated)", "GPU 1 (simulated)"}
    third = await node.start("whole")
    why = await node.says(third, "waiting for a GPU: (.*)")
    assert why.startswith("generation:whole needs a whole GPU; both GPUs of this node are taken: GPU 0 by ")
    for worker in (first, second):
        assert f"generation:whole pid {worker.pid} (1)" in why
    gone = await node.device("whole", second)
    second.kill()
    killed = time.monotonic()
    await node.says(third, "runs on GPU")
    assert time.monotonic() - killed < 2
    assert await node.device("whole", third) == gone


async def test_shares_that_add_up_to_one_gpu_fit_on_it_and_more_do_not(node: Node) -> None:
    small = await node.start("small", cards=ONE)
    assert (await node.entry("small", small))["gpu_share"] == 0.4
    more = await node.start("more", cards=ONE)
    why = await node.says(more, "waiting for a GPU: (.*)")
    assert why == (
        f"generation:more needs 0.7 of a GPU; GPU 0 is taken: GPU 0 by generation:small pid {small.pid} (0.4)"
    )
    most = await node.start("most", cards=ONE)
    assert await node.device("most", most) == "GPU 0 (simulated)"


async def test_models_that_share_a_gpu_are_loaded_one_after_the_other(node: Node) -> None:
    slow = await node.start("slow", cards=ONE)
    await node.says(slow, "runs on GPU 0")
    small = await node.start("small", cards=ONE)
    await node.says(small, "generation:small waits while another model is loaded on GPU 0")
    slow.kill()
    assert await node.device("small", small) == "GPU 0 (simulated)"


async def test_a_model_over_two_gpus_waits_until_both_are_free_and_takes_none_before(node: Node) -> None:
    first = await node.start("whole")
    await node.device("whole", first)
    wide = [await node.start("wide"), await node.start("wide")]
    for one in wide:
        assert "only 1 of 2 GPUs is that free" in await node.says(one, "waiting for a GPU: (.*)")
    second = await node.start("whole")  # the free one is still free, although two wait
    assert await node.device("whole", second) != await node.device("whole", first)
    for worker in (first, second):
        worker.kill()
    await until(
        lambda: sum("runs on GPU" in node.log(one) for one in wide) == 1,
        "one of them has both",
        lambda: "".join(map(node.log, wide)),
    )
    runs = next(one for one in wide if "runs on GPU" in node.log(one))
    assert await node.device("wide", runs) == "GPU 0 (simulated), GPU 1 (simulated)"
    other = next(one for one in wide if one is not runs)
    await node.says(other, f"both GPUs of this node are taken: GPU 0 by generation:wide pid {runs.pid}")


async def test_sigterm_ends_a_waiting_worker_in_order(node: Node) -> None:
    await node.device("whole", await node.start("whole", cards=ONE))
    waiting = await node.start("whole", cards=ONE)
    await node.says(waiting, "waiting for a GPU")
    waiting.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(waiting.wait(), 5) == 0
    assert "Traceback" not in node.log(waiting)


async def test_no_wait_and_burst_end_with_the_reason(node: Node) -> None:
    await node.device("whole", await node.start("whole", cards=ONE))
    for refused in [await node.start("whole", flag, cards=ONE) for flag in ("--no-wait", "--burst")]:
        assert await asyncio.wait_for(refused.wait(), DEADLINE_S) == 1
        assert "workers: generation:whole needs a whole GPU; GPU 0 is taken" in node.log(refused)
        assert "Traceback" not in node.log(refused)


async def test_a_named_device_is_taken_and_locked(node: Node) -> None:
    named = await node.start("whole", "--device", "1")
    assert await node.device("whole", named) == "GPU 1 (simulated)"
    again = await node.start("whole", "--device", "1", "--no-wait")
    assert await asyncio.wait_for(again.wait(), DEADLINE_S) == 1
    assert f"GPU 1 is taken: GPU 1 by generation:whole pid {named.pid} (1)" in node.log(again)


async def test_what_the_worker_started_neither_keeps_its_gpu_nor_takes_it_along(node: Node) -> None:
    first = await node.start("whole", cards=ONE)
    await node.device("whole", first)
    beat = child_of(first.pid)
    os.kill(beat, signal.SIGSTOP)  # it cannot notice that its worker is gone
    try:
        first.kill()
        await first.wait()
        second = await node.start("whole", "--no-wait", cards=ONE)
        assert await node.device("whole", second) == "GPU 0 (simulated)"
    finally:
        os.kill(beat, signal.SIGKILL)


async def test_models_without_a_share_and_workers_told_so_run_beside_any_number_on_the_cpu(node: Node) -> None:
    whole, plain = await node.start("whole", cards=ONE), await node.start("plain", cards=ONE)
    vectors = await node.start("vectors", "--device", "cpu", cards=ONE)
    assert await node.device("whole", whole) == "GPU 0 (simulated)"
    assert await node.device("plain", plain) == "cpu"
    assert await node.device("vectors", vectors) == "cpu"


@pytest.mark.parametrize("command", [("ops.supervise", "-c"), ("honcho", "start", "-c")])
async def test_scaling_in_the_procfile_gives_every_instance_its_own_gpu(node: Node, command: tuple[str, ...]) -> None:
    (node.folder / "Procfile").write_text(f"generation: {sys.executable} -m workers generation\n")
    with (node.folder / "log").open("wb") as out:
        formation = await asyncio.create_subprocess_exec(
            sys.executable, "-m", *command, "generation=2",
            cwd=node.folder, env=node.environment(TWO), stdout=out, stderr=out,
        )  # fmt: skip
    try:
        found: list[dict[str, Any]] = []

        async def both() -> bool:
            found[:] = await node.place.results.workers("generation:whole")
            return len(found) == 2

        await until(both, "two workers", (node.folder / "log").read_text)
        assert {worker["device"] for worker in found} == {"GPU 0 (simulated)", "GPU 1 (simulated)"}
    finally:
        formation.send_signal(signal.SIGTERM)
        await formation.wait()
