"""The pages' examples run, in their order, against a running stack."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ops.bench.voice import voice, wav
from tests.openai.conftest import ROOT

PAGE = (ROOT / "ops" / "docs" / "openai.md").read_text()
PAGES = {name: (ROOT / name).read_text() for name in ("README.md", "ops/docs/cli.md", "ops/docs/transcription.md")}
TYPED = [
    pytest.param(example, id=f"{name}-{number}")
    for name, text in PAGES.items()
    for number, example in enumerate(re.findall(r"```sh\n(.*?)```", text, re.DOTALL))
    if "curl" in example or "jarvis " in example
]


@pytest.fixture(autouse=True)
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stack has no keys, so that any will do where the examples look for one."""
    monkeypatch.setenv("JARVIS_API_KEY", "any")
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".jarvis").mkdir()
    (tmp_path / ".jarvis" / "api-key").write_text("any\n")


def test_the_examples_of_the_page_run(stack: str, capsys: pytest.CaptureFixture[str]) -> None:
    examples = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(examples) >= 3
    names: dict[str, object] = {}
    for example in examples:
        exec(compile(example.replace("http://127.0.0.1:8000", stack), "openai.md", "exec"), names)
        assert capsys.readouterr().out.strip(), example


def test_the_readmes_python_runs(stack: str) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", PAGES["README.md"], re.DOTALL)
    exec(compile(example.replace("http://127.0.0.1:8000", stack), "README.md", "exec"), {})


@pytest.mark.parametrize("example", TYPED)
def test_what_a_page_says_to_type_can_be_typed(stack: str, example: str, tmp_path: Path) -> None:
    for name in ("talk.mp3", "film.mp4"):  # what is in a file counts, not how it is called
        (tmp_path / name).write_bytes(wav(voice(10)))
    program = f"{sys.executable} -m ops.cli"
    script = re.sub(r"^((?:id=\$\()?)jarvis ", rf"\1{program} ", example, flags=re.MULTILINE)
    script = script.replace("transcribe ", "transcribe --model ears ").replace('"whisper"', '"ears"')
    script = re.sub(r"(http://)?(localhost|127\.0\.0\.1):8000", stack, script)
    environment = {**os.environ, "JARVIS_URL": stack, "PYTHONPATH": str(ROOT), "NO_PROXY": "*"}
    command = ["bash", "-euo", "pipefail", "-c", script]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
    assert done.stdout.strip()
    assert '"error":{' not in done.stdout.replace(" ", "")
