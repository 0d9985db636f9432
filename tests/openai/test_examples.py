"""The example of what OpenAI's SDK has no words for: short, and it does what it says against a running stack."""

from __future__ import annotations

import subprocess
import sys

from tests.openai.conftest import ROOT

EXAMPLE = ROOT / "ops" / "examples" / "jobs.py"


def test_the_example_has_at_most_a_hundred_lines() -> None:
    assert len(EXAMPLE.read_text().splitlines()) <= 100


def test_the_example_shows_a_wait_a_cancel_a_run_and_the_queues(stack: str) -> None:
    command = [sys.executable, str(EXAMPLE), f"{stack}/v1", "demo"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "waits: scheduled: its time, " in lines[0]
    assert lines[1] == "and now: cancelled"
    ran = [line for line in lines if line.endswith((" completed", " incomplete"))]
    assert len(ran) == 1, lines
    assert any(line.startswith("its usage: {") and "'completion_tokens': 16" in line for line in lines), lines
    assert any(line.startswith("generation:demo: {'high': 0") for line in lines), lines
