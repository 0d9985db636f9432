"""The locks of a node's GPUs: what fits, what is given back by a death, what a fork or a second user may not do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import SettingsInvalid
from workers.device_locks import GATE, DeviceLocks, GateBusy, Hold, Holder

# Takes GPU 0, forks a process that outlives it, says so, and waits to be killed.
HOLDER = """
import os, pathlib, signal, sys
from workers.device_locks import DeviceLocks
hold = DeviceLocks(pathlib.Path(sys.argv[1])).take([0], 1, 1.0, "generation:a")
if os.fork() == 0:
    print(os.getpid(), flush=True)
signal.pause()
"""


@pytest.fixture
def locks(tmp_path: Path) -> DeviceLocks:
    return DeviceLocks(tmp_path / "locks")


def take(locks: DeviceLocks, share: float, count: int = 1, among: tuple[int, ...] = (0, 1)) -> Hold | None:
    taken = locks.take(among, count, share, "generation:a")
    return taken if isinstance(taken, Hold) else None


def test_the_gpu_with_the_most_left_is_taken(locks: DeviceLocks) -> None:
    holds = [take(locks, share) for share in (0.3, 0.2, 0.2, 0.2)]
    assert [hold.devices for hold in holds if hold] == [(0,), (1,), (1,), (0,)]


def test_shares_fit_up_to_a_whole_gpu_without_rounding(locks: DeviceLocks) -> None:
    assert all(take(locks, share, among=(0,)) for share in (0.1, 0.2, 0.7))
    assert take(locks, 0.01, among=(0,)) is None


def test_several_gpus_are_taken_at_once_or_not_at_all(locks: DeviceLocks) -> None:
    one = take(locks, 1.0, among=(0,))
    assert one is not None
    assert locks.take((0, 1), 2, 1.0, "generation:b") == [one.holder]
    assert locks.holders() == [one.holder]
    one.release()
    both = take(locks, 1.0, count=2)
    assert both is not None
    assert both.devices == (0, 1)


def test_a_released_gpu_is_free_and_a_second_release_does_nothing(locks: DeviceLocks) -> None:
    hold = take(locks, 1.0, among=(0,))
    assert hold is not None
    hold.release()
    after = take(locks, 1.0, among=(0,))
    hold.release()
    assert after is not None
    assert locks.holders() == [Holder(os.getpid(), "generation:a", (0,), 1.0)]
    assert len(list(locks.folder.iterdir())) == 2  # the gate and one hold: nothing is left behind


def test_a_killed_holder_holds_nothing_even_when_a_process_that_it_forked_lives_on(locks: DeviceLocks) -> None:
    command = [sys.executable, "-c", HOLDER, str(locks.folder)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    forked = int(holder.stdout.readline())
    try:
        assert [one.pid for one in locks.holders()] == [holder.pid]
        assert take(locks, 0.1, among=(0,)) is None
        holder.kill()
        holder.wait()
        os.kill(forked, 0)
        assert take(locks, 1.0, among=(0,)) is not None
    finally:
        os.kill(forked, signal.SIGKILL)
        holder.stdout.close()


def test_while_another_worker_chooses_nobody_else_does(locks: DeviceLocks) -> None:
    with locks._locked(GATE), pytest.raises(GateBusy):
        take(locks, 0.5)
    assert take(locks, 0.5) is not None


def test_a_lock_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsInvalid, match=r"JARVIS_DEVICE_LOCK_DIR: .*file/locks cannot be made"):
        DeviceLocks(tmp_path / "file" / "locks")


def test_a_default_folder_that_others_can_write_to_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_to_all = tmp_path / "open"
    open_to_all.mkdir(mode=0o777)
    open_to_all.chmod(0o777)
    monkeypatch.setattr("workers.device_locks.OWN_FOLDER", str(open_to_all))
    with pytest.raises(SettingsInvalid, match="is not this user's alone"):
        DeviceLocks()
    open_to_all.chmod(0o700)
    assert DeviceLocks().folder == open_to_all
