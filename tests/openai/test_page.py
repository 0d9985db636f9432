"""The page about OpenAI's SDKs: its examples run, in their order, against a running stack."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "ops" / "docs" / "openai.md").read_text()


def test_the_examples_of_the_page_run(stack: str, capsys: pytest.CaptureFixture[str]) -> None:
    examples = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(examples) >= 3
    names: dict[str, object] = {}
    for example in examples:
        exec(compile(example.replace("http://127.0.0.1:8000", stack), "openai.md", "exec"), names)
        assert capsys.readouterr().out.strip(), example
