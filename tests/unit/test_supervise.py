"""Reading the Procfile, pauses between starts, and the ready banner: all that needs no process."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from ops import ready, supervise
from ops.process import Backoff, Program, explain, shell_command

ROOT = Path(__file__).parents[2]
PROCFILE = "web: python -m producer\ngeneration: python -m workers generation\n"


def names(programs: list[Program]) -> list[str]:
    return [program.name for program in programs]


def test_every_process_of_the_procfile_runs_once_by_default() -> None:
    assert names(supervise.read_formation(PROCFILE, {}, 8000)) == ["web.1", "generation.1"]


def test_processes_are_scaled_as_honcho_scales_them() -> None:
    counts = supervise.parse_concurrency("generation=2,web=0")
    assert names(supervise.read_formation(PROCFILE, counts, 8000)) == ["generation.1", "generation.2"]


def test_only_web_processes_get_a_port_each_their_own() -> None:
    programs = supervise.read_formation(PROCFILE, {"web": 2}, 8100)
    assert [program.environment.get("PORT") for program in programs] == ["8100", "8101", None]


def test_only_the_named_processes_run_when_some_are_named() -> None:
    assert names(supervise.read_formation(PROCFILE, {}, 8000, ["generation"])) == ["generation.1"]


def test_a_process_that_the_procfile_has_not_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="not in the Procfile: typo; it has web, generation"):
        supervise.read_formation(PROCFILE, {"typo": 2}, 8000)


@pytest.mark.parametrize("text", ["web", "web=", "web=two", "web=-1"])
def test_a_scale_that_is_no_count_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not name=count"):
        supervise.parse_concurrency(text)


def test_pauses_between_starts_double_up_to_ten_seconds() -> None:
    backoff = Backoff()
    assert [backoff.after(0.1) for _ in range(8)] == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]


def test_a_healthy_run_resets_the_pause() -> None:
    backoff = Backoff()
    for _ in range(5):
        backoff.after(0.1)
    assert backoff.after(30.0) == 0.2
    assert backoff.after(0.1) == 0.4


@pytest.mark.parametrize(
    ("command", "run"),
    [
        ("python -m producer", "exec python -m producer"),
        ("exec python -m producer", "exec python -m producer"),
        ("A=1 python -m producer", "A=1 python -m producer"),
        ("one && two", "one && two"),
    ],
)
def test_the_shell_stands_aside_for_a_simple_command(command: str, run: str) -> None:
    assert shell_command(command)[-1] == run


def test_ends_are_explained_in_words() -> None:
    assert (explain(3), explain(-9)) == ("exit code 3", "SIGKILL")


@pytest.mark.parametrize(
    ("answer", "missing"),
    [
        (None, ["web"]),
        ({"workers": {"generation:demo": 0, "embedding:minilm": 1}}, ["generation"]),
        # a second model that nobody serves, and a kind without a process here, hold nothing up
        ({"workers": {"generation:demo": 1, "generation:large": 0, "transcription:x": 0}}, []),
    ],
)
def test_ready_means_web_and_a_live_worker_of_each_kind_that_runs_here(answer: object, missing: list[str]) -> None:
    assert ready.not_ready(answer, {"web", "generation", "embedding"}) == missing


def test_the_banner_shows_a_call_with_a_valid_body() -> None:
    shown = ready.banner("http://127.0.0.1:8000", Path(".jarvis/api-key"))
    assert json.loads(shown.split("-d '")[1].split("'")[0])["kind"] == "generation"
    assert '-H "Authorization: Bearer $(cat .jarvis/api-key)"' in shown


async def test_the_banner_waits_for_web_and_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([None, {"workers": {"generation:demo": 0}}, {"workers": {"generation:demo": 1}}])
    monkeypatch.setattr(ready, "read_json", lambda _url: next(answers))
    monkeypatch.setattr(ready, "LOOK_EVERY_S", 0.0)
    said: list[bytes | str] = []
    await ready.announce(
        "http://here", {"generation"}, asyncio.Event(), lambda _name, text: said.append(text), Path("x")
    )
    assert len(said) == 1
    assert "Jarvis is ready at http://here" in str(said[0])


def test_honcho_itself_takes_the_procfile() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "honcho", "check"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "web, scheduler, generation, embedding" in done.stderr


def test_the_procfile_exports_to_systemd(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "honcho",
        "export",
        "-p",
        "8000",
        "-a",
        "jarvis",
        "systemd",
        str(tmp_path),
    ]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    unit = (tmp_path / "jarvis-web-1.service").read_text()
    assert "python -m producer" in unit
    assert "PORT=8000" in unit
