"""What a running stack tells a receiver of chats, responses, embeddings and batches, unwrapped by the SDK."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import openai
import pytest

from common.webhooks import new_secret

SECRET = new_secret()
LIMIT_S = 60


class Receiver(ThreadingHTTPServer):
    """Keeps what it is sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.received: list[tuple[dict[str, str], bytes]] = []

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_address[1]}/"

    def of(self, subject: str) -> tuple[dict[str, str], bytes]:
        """What came about one thing, once it is there."""
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            for headers, body in self.received:
                if json.loads(body)["data"]["id"] == subject:
                    return headers, body
            time.sleep(0.05)
        raise AssertionError(f"nothing came about {subject}: {self.received}")


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        """Take it."""
        body = self.rfile.read(int(self.headers["content-length"]))
        assert isinstance(self.server, Receiver)
        self.server.received.append((dict(self.headers.items()), body))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A receiver in a thread."""
    with Receiver() as made:
        serving = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.05})
        serving.start()
        yield made
        made.shutdown()
        serving.join()


def test_a_job_of_each_kind_is_told_and_unwrapped(
    client: openai.OpenAI, http: httpx.Client, receiver: Receiver
) -> None:
    webhook = {"url": receiver.url, "secret": SECRET, "payload": "full"}
    bodies: dict[str, dict[str, Any]] = {
        "/v1/chat/completions": {"model": "demo", "messages": [{"role": "user", "content": "What is a lease?"}]},
        "/v1/completions": {"model": "demo", "prompt": "A job is"},
        "/v1/embeddings": {"model": "minilm", "input": "a text"},
    }
    for path, body in bodies.items():
        asked = {**body, "webhook": webhook}
        job = http.post(path, json=asked, headers={"Prefer": "respond-async"}).json()["id"]
        headers, sent = receiver.of(job)
        event: Any = client.webhooks.unwrap(sent, headers, secret=SECRET)
        assert (event.type, event.data.id) == ("job.completed", job)
        assert json.loads(sent)["data"]["result"]["output"]
    with pytest.raises(openai.InvalidWebhookSignatureError):
        client.webhooks.unwrap(sent, headers, secret=new_secret())


def test_an_endpoint_is_told_of_a_response_and_of_a_batch(client: openai.OpenAI, receiver: Receiver) -> None:
    made = client.webhooks.create(url=receiver.url, name="all", event_types=["response.completed", "batch.completed"])
    try:
        response = client.responses.create(model="demo", input="What is a lane?", background=True)
        headers, body = receiver.of(response.id)
        event: Any = client.webhooks.unwrap(body, headers, secret=made.signing_secret)
        assert event.type == "response.completed"
        assert event.data.id == response.id

        line = {"custom_id": "1", "method": "POST", "url": "/v1/embeddings", "body": {"model": "minilm", "input": "a"}}
        file = client.files.create(file=("lines.jsonl", json.dumps(line).encode()), purpose="batch")
        batch = client.batches.create(input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h")
        headers, body = receiver.of(batch.id)
        told: Any = client.webhooks.unwrap(body, headers, secret=made.signing_secret)
        assert told.type == "batch.completed"
        assert told.data.id == batch.id
        assert client.webhooks.test(made.id, event_type="batch.completed").status_code == 204
    finally:
        client.webhooks.delete(made.id)
