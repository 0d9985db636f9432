"""Strangers' clients against a running stack, each in its own process with nothing changed but the address.

What they need is installed here: npm's lock for Node, and an environment beside ours for LangChain and LiteLLM.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import openai
import pytest

HERE = Path(__file__).parent
NODE = HERE / "node"
CLIENTS = HERE / "clients"
INSTALL_LIMIT_S = 240
LIMIT_S = 120
#: None of them is to look for anything but the stack.
QUIET = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LANGSMITH_TRACING": "false", "no_proxy": "*", "NO_PROXY": "*"}


def run(*command: str | Path, limit_s: int = LIMIT_S, cwd: Path = HERE, env: dict[str, str] | None = None) -> str:
    """What a command prints; fails with all that it says when it fails."""
    done = subprocess.run(
        [*map(str, command)],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        capture_output=True,
        timeout=limit_s,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def told(*command: str | Path) -> Any:
    """The JSON that a client prints last."""
    return json.loads(run(*command, env=QUIET).splitlines()[-1])


@pytest.fixture(scope="session")
def node() -> str:
    """Node, with OpenAI's SDK as npm's lock has it."""
    npm, found = shutil.which("npm"), shutil.which("node")
    if npm is None or found is None:
        pytest.skip("npm is missing: OpenAI's Node SDK cannot be installed (Debian: apt-get install nodejs npm)")
    installed = NODE / "node_modules" / ".package-lock.json"
    if not installed.is_file() or installed.stat().st_mtime < (NODE / "package-lock.json").stat().st_mtime:
        run(npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts", cwd=NODE, limit_s=INSTALL_LIMIT_S)
    return found


@pytest.fixture(scope="session")
def python() -> Path:
    """The Python of an environment with LangChain's and LiteLLM's clients, made anew when what it needs changes."""
    wanted = CLIENTS / "requirements.txt"
    folder = Path(sys.prefix) / "clients"
    stamp, found = folder / "made-of", folder / "bin" / "python"
    if not stamp.is_file() or stamp.read_text() != wanted.read_text():
        run(sys.executable, "-m", "venv", "--clear", folder, limit_s=INSTALL_LIMIT_S)
        _install(found, wanted)
        stamp.write_text(wanted.read_text())
    return found


def _install(python: Path, wanted: Path) -> None:
    # uv takes a tenth of pip's time; pip knows mirrors that uv may not.
    try:
        run(
            sys.executable,
            "-m",
            "uv",
            "pip",
            "install",
            "-q",
            "--python",
            python,
            "-r",
            wanted,
            limit_s=INSTALL_LIMIT_S,
        )
    except AssertionError:
        run(python, "-m", "pip", "install", "-q", "-r", wanted, limit_s=INSTALL_LIMIT_S)


@pytest.fixture(scope="session")
def expected(stack: str) -> dict[str, Any]:
    """What OpenAI's Python SDK gets for the same."""
    with openai.OpenAI(base_url=f"{stack}/v1", api_key="not checked yet", max_retries=0) as client:
        chat = client.chat.completions.create(
            model="demo", messages=[{"role": "user", "content": "What is a lease?"}], max_tokens=20
        )
        vectors = client.embeddings.create(model="minilm", input=["A lane", "A lease"]).data
    assert chat.usage is not None
    return {
        "whole": chat.choices[0].message.content,
        "tokens": chat.usage.completion_tokens,
        "vectors": [pytest.approx(one.embedding, abs=1e-6) for one in vectors],
    }


def check(got: Any, expected: dict[str, Any]) -> None:
    """A client got what OpenAI's own got."""
    assert got["whole"] == got["response"] == expected["whole"]
    assert "".join(got["pieces"]) == expected["whole"]
    assert got["usage"]["output_tokens"] == expected["tokens"]
    assert got["vectors"] == expected["vectors"]


def test_openais_node_sdk(stack: str, node: str, expected: dict[str, Any]) -> None:
    got = told(node, NODE / "client.mjs", f"{stack}/v1")
    check(got, expected)
    deltas = [event["delta"] for event in got["events"] if event["type"] == "response.output_text.delta"]
    assert "".join(deltas) == expected["whole"]
    assert [event["sequence_number"] for event in got["events"]] == list(range(len(got["events"])))
    assert got["refused"] == {"name": "BadRequestError", "status": 400, "param": "temperature"}


def test_langchains_client(stack: str, python: Path, expected: dict[str, Any]) -> None:
    got = told(python, CLIENTS / "langchain_client.py", f"{stack}/v1")
    check(got, expected)
    assert got["query"] == expected["vectors"][0]
    assert "".join(got["response_pieces"]) == expected["whole"]
    assert isinstance(got["called"]["urgent"], bool)
    assert isinstance(got["structured"]["urgent"], bool)


def test_litellms_client(stack: str, python: Path, expected: dict[str, Any]) -> None:
    check(told(python, CLIENTS / "litellm_client.py", f"{stack}/v1"), expected)
