"""The supervisor over real processes that are killed, crash, or will not end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ops import embedded_redis, own_key
from tests.redis_server import free_port

DEADLINE_S = 20.0
ROOT = Path(__file__).parents[2]
# Writes its pid and that of a child in its group into a file of its own, then waits for a signal.
LEADER = """
import json, os, pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
name = os.environ["HONCHO_PROCESS_NAME"]
file = pathlib.Path(f"{name}.{os.getpid()}.json")
file.with_suffix(".part").write_text(json.dumps([os.getpid(), child.pid]))
file.with_suffix(".part").rename(file)
print("up", flush=True)
time.sleep(600)
"""
STUBBORN = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + LEADER


class Formation:
    """A supervisor in a folder of its own, and what its processes wrote there."""

    def __init__(self, folder: Path, leader: str) -> None:
        self.folder = folder
        self.url = f"redis://127.0.0.1:{free_port()}/0"
        (folder / "leader.py").write_text(textwrap.dedent(leader))
        (folder / "Procfile").write_text("one: python leader.py\ntwo: python leader.py\n")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *flags: str, **settings: str) -> None:
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "JARVIS_REDIS_URL": self.url,
            "JARVIS_DATA_DIR": str(self.folder),
            **settings,
        }
        command = [sys.executable, "-m", "ops.supervise", *flags]
        with (self.folder / "output").open("wb") as output:
            self.process = subprocess.Popen(command, cwd=self.folder, env=environment, stdout=output, stderr=output)

    def runs(self, name: str) -> list[tuple[int, int]]:
        """Return (leader, child) of every run of a process so far, oldest first."""
        files = sorted(self.folder.glob(f"{name}.*.json"), key=lambda file: file.stat().st_mtime_ns)
        return [tuple(json.loads(file.read_text())) for file in files]

    def wait_for_runs(self, name: str, count: int) -> list[tuple[int, int]]:
        wait_until(lambda: len(self.runs(name)) >= count, f"{count} runs of {name}")
        return self.runs(name)

    def end(self, how: signal.Signals) -> int:
        assert self.process is not None
        self.process.send_signal(how)
        return self.process.wait(DEADLINE_S)

    def everyone(self) -> list[int]:
        return [pid for name in ("one.1", "two.1") for run in self.runs(name) for pid in run]


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"not in {DEADLINE_S} s: {what}"
        time.sleep(0.02)


def lives(pid: int) -> bool:
    """Whether a process runs: an ended one that nobody has reaped yet does not."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Formation]]:
    made: list[Formation] = []

    def formation(leader: str = LEADER) -> Formation:
        made.append(Formation(tmp_path, leader))
        return made[-1]

    yield formation
    for each in made:
        if each.process is not None and each.process.poll() is None:
            each.end(signal.SIGKILL)
        for pid in each.everyone():
            if lives(pid):
                os.kill(pid, signal.SIGKILL)


def test_a_killed_process_comes_back_and_what_it_left_behind_is_killed_first(
    make: Callable[..., Formation],
) -> None:
    formation = make()
    formation.start()
    leader, child = formation.wait_for_runs("one.1", 1)[0]
    formation.wait_for_runs("two.1", 1)
    os.kill(leader, signal.SIGKILL)
    formation.wait_for_runs("one.1", 2)
    assert not lives(child)
    assert len(formation.runs("two.1")) == 1, "nobody else was touched"


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_everything_with_exit_code_0(make: Callable[..., Formation], how: signal.Signals) -> None:
    formation = make()
    formation.start()
    formation.wait_for_runs("one.1", 1)
    formation.wait_for_runs("two.1", 1)
    assert formation.end(how) == 0
    wait_until(lambda: not any(map(lives, formation.everyone())), "all ended")


def test_a_process_that_ignores_sigterm_is_killed_after_the_grace(make: Callable[..., Formation]) -> None:
    formation = make(STUBBORN)
    formation.start(JARVIS_GRACE_S="0.5")
    formation.wait_for_runs("one.1", 1)
    formation.wait_for_runs("two.1", 1)
    started = time.monotonic()
    assert formation.end(signal.SIGTERM) == 0
    assert time.monotonic() - started > 5.0, "grace plus 5 s"
    assert not any(map(lives, formation.everyone()))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent died")
def test_a_killed_supervisor_takes_its_processes_with_it(make: Callable[..., Formation]) -> None:
    formation = make()
    formation.start()
    leaders = [formation.wait_for_runs(name, 1)[0][0] for name in ("one.1", "two.1")]
    formation.end(signal.SIGKILL)
    wait_until(lambda: not any(map(lives, leaders)), "all leaders ended")


def test_a_killed_redis_comes_back_on_its_address(make: Callable[..., Formation]) -> None:
    formation = make()
    formation.start("--redis")
    formation.wait_for_runs("one.1", 1)
    first = redis_pid(formation.url)
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: embedded_redis.answers(formation.url), "Redis answers again")
    assert redis_pid(formation.url) != first
    assert len(formation.runs("one.1")) == 1
    assert formation.end(signal.SIGTERM) == 0
    assert not embedded_redis.answers(formation.url)


def redis_pid(url: str) -> int:
    with embedded_redis.connect(url) as client:
        info = client.info("server")
        assert isinstance(info, dict)
        return int(info["process_id"])


def test_the_first_start_prints_a_key_that_its_server_takes_and_the_next_one_says_where_it_is(
    make: Callable[..., Formation],
) -> None:
    formation, port = make(), str(free_port())
    (formation.folder / "Procfile").write_text("web: python -m producer\n")
    output = formation.folder / "output"
    formation.start("--redis", "-p", port)
    wait_until(lambda: "Jarvis is ready" in output.read_text(), "it is ready")
    key = own_key.read(own_key.kept_in(formation.folder))
    assert key
    assert output.read_text().count(key) == 1
    asked = urllib.request.Request(f"http://127.0.0.1:{port}/v1/jobs", headers={"authorization": f"Bearer {key}"})
    assert urllib.request.urlopen(asked, timeout=5).status == 200
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/jobs", timeout=5)
    assert formation.end(signal.SIGTERM) == 0
    formation.start("--redis", "-p", port)
    wait_until(lambda: "Jarvis is ready" in output.read_text(), "it is ready again")
    assert key not in output.read_text()
    assert f"the API key of this machine is in {own_key.kept_in(formation.folder)}" in output.read_text()
    assert formation.end(signal.SIGTERM) == 0
