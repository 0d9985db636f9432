from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from workers.engines.owner import Owner

ROOT = Path(__file__).parents[2]
PARENT = """
import multiprocessing, sys, time
from workers.engines.owner import Owner
from tests.unit.test_engine_owner import report
if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    child = context.Process(target=report, args=(Owner(),))
    child.start()
    time.sleep(60)
"""


def report(owner: Owner) -> None:
    """The child: it says who it is and would live on for a minute."""
    print(os.getpid(), os.getsid(0), flush=True)
    time.sleep(60)


def test_a_process_that_got_its_owner_dies_with_it_and_leaves_its_group(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout is not None
        child, session = map(int, parent.stdout.readline().split())
        assert session == child
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        assert gone_within(child, 5.0)


def test_a_copy_inside_the_owner_ties_nothing() -> None:
    import copy

    session = os.getsid(0)
    assert copy.deepcopy(Owner()).pid == os.getpid()
    assert os.getsid(0) == session
    assert Owner().compute_hash() == ""


def fail(owner: Owner) -> None:
    """The child: logging is set up anew, as vLLM does it, and an error is logged."""
    import logging.config

    logging.config.dictConfig({"version": 1, "loggers": {"vllm": {"handlers": []}}, "disable_existing_loggers": False})
    try:
        raise ValueError("No available memory\nfor the cache blocks")
    except ValueError:
        logging.getLogger("vllm.v1.engine.core").exception("EngineCore failed to start.")
    logging.getLogger("vllm").error("no exception, so no cause")


def test_what_a_process_of_the_engine_logs_before_it_gives_up_comes_back_once() -> None:
    owner = Owner()
    assert owner.told() == []
    child = multiprocessing.get_context("spawn").Process(target=fail, args=(owner,))
    child.start()
    child.join(30)
    assert owner.told() == ["ValueError: No available memory for the cache blocks"]
    assert owner.told() == []


def gone_within(pid: int, timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        stat = Path(f"/proc/{pid}/stat")
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.01)
    return False
