"""vLLM's own load generator, `vllm bench serve`, against our chat endpoint."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.openai.conftest import DEMO, ROOT

PROMPTS, CONCURRENCY = 500, 64
LIMIT_S = 240
#: The `vllm` command asks for the version of a distribution called vllm, which the CPU build is not; the module asks
#: for nothing.
COMMAND = """
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser

parser = FlexibleArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
"""


@pytest.mark.slow
def test_five_hundred_prompts_at_once_sixty_four_fail_none(stack: str, tmp_path: Path) -> None:
    options = {
        "backend": "openai-chat",
        "base-url": stack,
        "endpoint": "/v1/chat/completions",
        "model": "demo",
        "tokenizer": str(DEMO),
        "dataset-name": "random",
        "random-input-len": "32",
        "random-output-len": "16",
        "num-prompts": str(PROMPTS),
        "max-concurrency": str(CONCURRENCY),
        "result-dir": str(tmp_path),
        "result-filename": "result.json",
    }
    flags = [part for name, value in options.items() for part in (f"--{name}", value)]
    quiet = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "no_proxy": "*"}
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *flags, "--save-result", "--ignore-eos", "--disable-tqdm"],
        cwd=ROOT,
        env={**os.environ, **quiet},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    print(done.stdout[-3000:])
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["completed"], result["failed"]) == (PROMPTS, 0)
    assert result["total_output_tokens"] == PROMPTS * 16
