"""The official SDK's files and batches against a running stack, the command line's, and the page about them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
from openai.types import Batch

from ops.bench.voice import voice, wav
from tests.openai.test_sdk import until

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "ops" / "docs" / "batches.md").read_text()
CHAT: Literal["/v1/chat/completions"] = "/v1/chat/completions"


def jsonl(url: str, *bodies: dict[str, Any]) -> bytes:
    """Requests as a file."""
    return "\n".join(
        json.dumps({"custom_id": f"line-{number}", "method": "POST", "url": url, "body": body})
        for number, body in enumerate(bodies)
    ).encode()


def ended(client: openai.OpenAI, batch_id: str) -> Batch:
    """The batch once it is over."""

    def over() -> Batch | None:
        batch = client.batches.retrieve(batch_id)
        return batch if batch.status in ("completed", "failed", "expired", "cancelled") else None

    found: Batch = until(over, f"the end of {batch_id}", limit_s=60)
    return found


def run(client: openai.OpenAI, url: Any, *bodies: dict[str, Any]) -> tuple[Batch, list[dict[str, Any]]]:
    """A batch of these bodies, and its answers."""
    file = client.files.create(file=("lines.jsonl", jsonl(url, *bodies)), purpose="batch")
    batch = ended(client, client.batches.create(input_file_id=file.id, endpoint=url, completion_window="24h").id)
    assert batch.output_file_id
    text = client.files.content(batch.output_file_id).text
    return batch, [json.loads(line)["response"]["body"] for line in text.splitlines()]


def test_files_are_uploaded_listed_read_and_deleted(client: openai.OpenAI) -> None:
    made = client.files.create(file=("a.jsonl", b"{}\n"), purpose="batch")
    expires: Any = {"anchor": "created_at", "seconds": 3600}
    other = client.files.create(file=("b.wav", b"b"), purpose="user_data", expires_after=expires)
    assert (made.filename, made.bytes, made.status, made.purpose) == ("a.jsonl", 3, "processed", "batch")
    assert other.expires_at == other.created_at + 3600
    assert client.files.retrieve(made.id) == made
    first_two = [file.id for file in client.files.list(limit=1)][:2]  # the SDK turns the pages
    assert first_two == [other.id, made.id]
    assert client.files.content(made.id).content == b"{}\n"
    assert client.files.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(made.id)
    with pytest.raises(openai.BadRequestError) as caught:
        client.files.create(file=("c.txt", b"c"), purpose="assistants")
    assert caught.value.param == "purpose"


def test_answers_of_a_batch_are_those_of_the_address(client: openai.OpenAI) -> None:
    asked: Any = {"model": "demo", "messages": [{"role": "user", "content": "What is a lease?"}], "max_tokens": 30}
    batch, answers = run(client, CHAT, asked, asked | {"max_tokens": 5})
    alone = client.chat.completions.create(**asked)
    assert answers[0]["choices"][0]["message"]["content"] == alone.choices[0].message.content
    assert answers[0]["object"] == "chat.completion"
    assert batch.request_counts is not None
    assert (batch.request_counts.total, batch.request_counts.completed) == (2, 2)
    assert batch.usage is not None
    assert batch.usage.output_tokens == sum(answer["usage"]["completion_tokens"] for answer in answers)
    assert batch.usage.total_tokens == batch.usage.input_tokens + batch.usage.output_tokens
    assert batch.model == "demo"
    assert batch.id in [one.id for one in client.batches.list(limit=1)]


def test_responses_of_a_batch_are_responses_that_are_there(client: openai.OpenAI) -> None:
    _, [answer] = run(client, "/v1/responses", {"model": "demo", "input": "What is a lease?", "max_output_tokens": 20})
    assert (answer["object"], answer["status"]) == ("response", "incomplete")
    found = client.responses.retrieve(answer["id"])
    assert found.output_text == answer["output"][0]["content"][0]["text"]


def test_completions_of_several_prompts_are_one_line(client: openai.OpenAI) -> None:
    _, [answer] = run(client, "/v1/completions", {"model": "demo", "prompt": ["A lane is", "A lease"], "max_tokens": 4})
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]


def test_embeddings_come_as_numbers_or_base64(client: openai.OpenAI) -> None:
    bodies = {"model": "minilm", "input": "a"}, {"model": "minilm", "input": ["a"], "encoding_format": "base64"}
    _, answers = run(client, "/v1/embeddings", *bodies)
    assert len(answers[0]["data"][0]["embedding"]) == 384
    assert isinstance(answers[1]["data"][0]["embedding"], str)


def test_recordings_are_transcribed_by_their_files(client: openai.OpenAI) -> None:
    spoken = client.files.create(file=("spoken.wav", wav(voice(10))), purpose="user_data")
    _, [answer] = run(client, "/v1/audio/transcriptions", {"model": "ears", "file_id": spoken.id})
    assert answer["text"].strip()
    assert answer["usage"] == {"type": "duration", "seconds": 10}


def test_a_batch_is_cancelled(client: openai.OpenAI) -> None:
    body = {"model": "slow", "messages": [{"role": "user", "content": "x"}], "max_tokens": 4000}
    file = client.files.create(file=("lines.jsonl", jsonl(CHAT, *[body] * 20)), purpose="batch")
    made = client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
    until(lambda: client.batches.retrieve(made.id).status == "in_progress", "it is in progress")
    assert client.batches.cancel(made.id).status == "cancelling"
    batch = ended(client, made.id)
    assert (batch.status, batch.output_file_id) == ("cancelled", None)
    assert batch.cancelled_at
    assert client.batches.cancel(made.id).status == "cancelled"


def test_a_wrong_line_is_told_as_openai_does(client: openai.OpenAI) -> None:
    file = client.files.create(file=("lines.jsonl", b'{"custom_id": "a"\n'), purpose="batch")
    made = client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
    batch = ended(client, made.id)
    assert batch.status == "failed"
    assert batch.errors is not None
    assert batch.errors.data is not None
    assert (batch.errors.data[0].code, batch.errors.data[0].line) == ("invalid_json_line", 1)
    other: Any = "/v1/moderations"
    with pytest.raises(openai.BadRequestError):
        client.batches.create(input_file_id=file.id, endpoint=other, completion_window="24h")


def test_the_example_of_the_page_runs(
    stack: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JARVIS_API_KEY", "any: the stack has none")
    [example] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(example.replace("http://127.0.0.1:8000", stack), "batches.md", "exec"), {})
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("completed")
    assert shown[1:] == [f"text-{number} 384" for number in range(100)]


def test_the_commands_of_the_page_run(stack: str, tmp_path: Path) -> None:
    [commands] = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    bodies = [{"model": "minilm", "input": f"text {number}"} for number in range(5)]
    (tmp_path / "texts.jsonl").write_bytes(jsonl("/v1/embeddings", *bodies))
    jarvis = f'set -e; jarvis() {{ "{sys.executable}" -m ops.cli "$@"; }}\n'
    environment = {**os.environ, "JARVIS_URL": stack, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-c", jarvis + commands], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [answer["custom_id"] for answer in answers] == [f"line-{number}" for number in range(5)]
    assert "5 of 5 completed, 0 failed" in done.stdout
    wrong = subprocess.run(
        [sys.executable, "-m", "ops.cli", "batch", "status", "batch_nonsense"],
        env=environment, cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (wrong.returncode, "no batch" in wrong.stderr) == (1, True)
