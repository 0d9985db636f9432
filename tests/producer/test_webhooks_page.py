"""The page about webhooks and `jarvis webhooks`: what they say to type is typed here, against a running stack."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from typer.testing import CliRunner, Result

from common.webhooks import EVENT_TYPES
from ops.cli import app as command_line
from tests.conformance.world import eventually
from tests.producer.test_webhooks import JOB, SECRET, deliverer, settings
from tests.receiver import Receiver, status
from workers.delivery import Deliverer

__all__ = ["deliverer", "settings"]  # fixtures
PAGE = (Path(__file__).parents[2] / "ops" / "docs" / "webhooks.md").read_text()


def snippets(language: str) -> list[str]:
    """The page's examples in a language."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def functions(base_url: str) -> dict[str, Any]:
    """What the page's Python defines."""
    names: dict[str, Any] = {}
    for snippet in snippets("python"):
        exec(compile(snippet.replace("http://127.0.0.1:8000", base_url), "webhooks.md", "exec"), names)
    return names


async def test_the_pages_receivers_take_what_is_sent(
    live: httpx.AsyncClient, deliverer: Deliverer, receiver: Receiver
) -> None:
    job = (await live.post("/v1/jobs", json={**JOB, "webhook": {"url": receiver.url, "secret": SECRET}})).json()["id"]
    await live.post(f"/v1/jobs/{job}/cancel")
    (got,) = await receiver.get(1)
    page = functions(str(live.base_url))
    assert page["receive"](got.headers, got.body, SECRET) == ("job.cancelled", job)
    assert page["unwrap"](got.headers, got.body, SECRET) == ("job.cancelled", job)
    with pytest.raises(openai.InvalidWebhookSignatureError):
        page["unwrap"](got.headers, got.body + b" ", SECRET)


async def test_the_pages_endpoint_is_registered_and_rotated(live: httpx.AsyncClient) -> None:
    page = functions(str(live.base_url))

    def there() -> tuple[str, str, str]:
        with openai.OpenAI(base_url=f"{live.base_url}/v1", api_key="x") as client:
            endpoint_id, secret = page["register"](client, "https://example.org/")
            return endpoint_id, secret, page["rotate"](client, endpoint_id)

    endpoint_id, secret, rotated = await asyncio.to_thread(there)
    found = (await live.get(f"/v1/webhook_endpoints/{endpoint_id}")).json()
    assert (found["user"], found["secrets_valid"]) == ("anonymous", 2)
    assert secret != rotated


async def test_the_pages_job_is_accepted(live: httpx.AsyncClient) -> None:
    (example,) = [one for one in snippets("sh") if "curl" in one]
    words = shlex.split(example)
    body = json.loads(words[words.index("-d") + 1])
    assert (await live.post("/v1/jobs", json={**body, "model": "echo"})).status_code == 202


def test_the_page_names_the_schedule_and_every_event_of_a_job() -> None:
    assert "[5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400]" in PAGE
    assert all(kind in PAGE for kind in EVENT_TYPES if kind.startswith("job."))


async def test_the_command_line_manages_endpoints_and_deliveries(
    live: httpx.AsyncClient, deliverer: Deliverer, receiver: Receiver
) -> None:
    async def jarvis(*arguments: str, code: int = 0) -> str:
        def run() -> Result:
            environment = {"JARVIS_URL": str(live.base_url)}
            return CliRunner().invoke(command_line, ["webhooks", *arguments], env=environment)

        done = await asyncio.to_thread(run)
        assert done.exit_code == code, done.output
        return done.stdout.strip()

    made = await jarvis("create", receiver.url, "--event", "job.cancelled", "--name", "mine")
    endpoint_id, secret = made.split()
    assert secret.startswith("whsec_")
    assert endpoint_id in await jarvis("list", "--user", "anonymous")
    assert await jarvis("test", endpoint_id) == "200"
    assert "job.cancelled" in await jarvis("show", endpoint_id)
    assert (await jarvis("rotate", endpoint_id)).split()[1] != secret
    assert json.loads(await jarvis("show", endpoint_id, "--json"))["secrets_valid"] == 2

    receiver.will(status(500, body="not today"))
    job = (await live.post("/v1/jobs", json=JOB)).json()["id"]
    await live.post(f"/v1/jobs/{job}/cancel")

    async def given_up() -> str:
        listed = await jarvis("deliveries", "--status", "failed", "--job", job, "--json")
        data = json.loads(listed)["data"]
        return str(data[0]["id"]) if data else ""

    delivery = await eventually(given_up)
    shown = await jarvis("delivery", delivery)
    assert shown.count("status 500") == 2
    assert "not today" in shown
    receiver.will(status(200))
    assert await jarvis("redeliver", delivery) == f"{delivery} pending"

    async def delivered() -> bool:
        return "delivered" in await jarvis("deliveries", "--job", job)

    await eventually(delivered)
    assert await jarvis("update", endpoint_id, "--disable") == f"{endpoint_id} disabled"
    assert await jarvis("delete", endpoint_id) == f"{endpoint_id} deleted"
    await jarvis("show", endpoint_id, code=1)
    await jarvis("create", "https://10.0.0.1/", code=1)
