"""Two tenants with fifty keys each, the things of one of them, and every address that names a thing.

The addresses are those of the application itself, so that a new one cannot be forgotten: one that names something which
this does not know fails the test.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any

import httpx
from fastapi.routing import APIRoute

from common.access import NewKey
from common.api_keys import ApiKeys, Asked
from common.keys import new_batch_id, new_file_id, new_job_id
from common.settings import Settings
from producer.app import create_app
from tests.waiting import until

KEYS_EACH = 50
#: Requests of each kind to an address, of which the median is compared.
TRIES = 15
SLACK_S = 0.005
#: Addresses that name what everybody may see, or where only an admin comes.
EVERYBODYS = ("alias",)
ADMINS = ("parked_id", "key_id")
#: What a request to an address needs beside the id.
BODIES: dict[str, dict[str, Any]] = {
    "/v1/webhook_endpoints/{endpoint_id}": {"name": "mine now"},
    "/v1/webhook_endpoints/{endpoint_id}/test": {"event_type": "job.completed"},
    "/v1/webhook_endpoints/{endpoint_id}/rotate_secret": {},
    "/v1/admin/keys/{key_id}/limits": {"limits": []},
    "/v1/admin/keys/{key_id}/rotate": {},
}


@dataclass(frozen=True, slots=True)
class Address:
    """A method and a path with one name in it."""

    method: str
    path: str

    @property
    def name(self) -> str:
        """What the path names, e.g. `job_id`."""
        return self.path.partition("{")[2].partition("}")[0]

    def of(self, thing: str) -> str:
        """The path to one thing."""
        return self.path.replace(f"{{{self.name}}}", thing)


def addresses(settings: Settings) -> tuple[list[Address], list[Address]]:
    """Every address that names something; and every one that lists things."""
    routes = [route for route in create_app(settings).routes if isinstance(route, APIRoute)]
    every = [Address(method, route.path) for route in routes for method in sorted(route.methods)]
    assert all(one.path.count("{") <= 1 for one in every), "an address with two names is new to this test"
    return [one for one in every if one.name], [one for one in every if one.method == "GET" and not one.name]


async def keys_of(keys: ApiKeys, owner: str) -> list[NewKey]:
    """A tenant's keys."""
    found = []
    for number in range(KEYS_EACH):
        made = await keys.create(Asked(name=f"{owner}-{number}", owner=owner, tier="custom"), "test")
        assert made
        found.append(made[1])
    return found


def bearer(key: NewKey) -> dict[str, str]:
    """The header of a key."""
    return {"authorization": f"Bearer {key.text}"}


async def things_of(client: httpx.AsyncClient, key: NewKey, prompt: str, secret: str) -> dict[str, str]:
    """One of each thing that a tenant has, by the name that it has in addresses."""
    headers = bearer(key)

    async def made(path: str, status: int, **body: Any) -> dict[str, Any]:
        response = await client.post(path, headers=headers, **body)
        assert response.status_code == status, response.text
        document: dict[str, Any] = response.json()
        return document

    job = {"kind": "generation", "model": "chat", "input": {"prompt": prompt}, "params": {"max_tokens": 3}}
    asked = {"model": "chat", "input": prompt, "background": True}
    endpoint = {"url": "https://example.org/", "event_types": ["*"], "secret": secret}
    things = {"endpoint_id": (await made("/v1/webhook_endpoints", 200, json=endpoint))["id"]}
    ended = (await made("/v1/jobs", 202, json=job))["id"]
    await made(f"/v1/jobs/{ended}/cancel", 200)
    things["job_id"] = (await made("/v1/jobs", 202, json=job))["id"]
    things["response_id"] = (await made("/v1/responses", 200, json=asked))["id"]
    line = b'{"custom_id":"a","method":"POST","url":"/v1/embeddings","body":{"model":"vectors","input":"%s"}}\n'
    files = {"file": ("lines.jsonl", line % prompt.encode())}
    things["file_id"] = (await made("/v1/files", 200, data={"purpose": "batch"}, files=files))["id"]
    batch = {"input_file_id": things["file_id"], "endpoint": "/v1/embeddings", "completion_window": "24h"}
    things["batch_id"] = (await made("/v1/batches", 200, json=batch))["id"]

    async def told() -> bool:
        page = (await client.get("/v1/webhook_deliveries", headers=headers)).json()["data"]
        things["delivery_id"] = page[0]["id"] if page else ""
        return bool(page)

    await until(told, "the cancelled job is told of")
    return things


def unknown(things: dict[str, str]) -> dict[str, str]:
    """Ids of the same form that nobody has."""
    job, last = new_job_id("00"), "0" if things["endpoint_id"][-1] != "0" else "1"
    return {
        "job_id": job,
        "response_id": f"resp_{new_job_id('00')[4:]}",
        "file_id": new_file_id(),
        "batch_id": new_batch_id(),
        "endpoint_id": things["endpoint_id"][:-1] + last,
        "delivery_id": f"dlv_{job[4:]}-{things['endpoint_id'][3:]}",
    }


class Prober:
    """Asks for somebody else's things and for those that nobody has, in turns, and compares the answers."""

    def __init__(self, client: httpx.AsyncClient, keys: list[NewKey]) -> None:
        self.client = client
        self.keys = keys
        self._asked = 0

    async def _ask(self, address: Address, thing: str) -> tuple[float, int, str]:
        key = self.keys[self._asked % len(self.keys)]
        self._asked += 1
        body = BODIES.get(address.path)
        started = time.perf_counter()
        response = await self.client.request(address.method, address.of(thing), headers=bearer(key), json=body)
        took = time.perf_counter() - started
        return took, response.status_code, response.text.replace(thing, "ID")

    async def differences(self, address: Address, theirs: str, nobodys: str) -> list[str]:
        """What tells the two apart; nothing may. A time that differs is taken again: others use this machine too."""
        found, apart = await self._apart(address, theirs, nobodys)
        if apart > SLACK_S:
            found, apart = await self._apart(address, theirs, nobodys)
        return found + ([f"{address}: {apart * 1000:.1f} ms apart"] if apart > SLACK_S else [])

    async def _apart(self, address: Address, theirs: str, nobodys: str) -> tuple[list[str], float]:
        took: tuple[list[float], list[float]] = ([], [])
        answers: tuple[set[tuple[int, str]], set[tuple[int, str]]] = (set(), set())
        for _ in range(TRIES):
            for place, thing in enumerate((theirs, nobodys)):
                seconds, status, text = await self._ask(address, thing)
                took[place].append(seconds)
                answers[place].add((status, text))
        found = [f"{address}: {answers[0]} and {answers[1]}"] if answers[0] != answers[1] else []
        if {status for status, _ in answers[0]} != {404}:
            found.append(f"{address}: {answers[0]} is no 404")
        return found, abs(statistics.median(took[0]) - statistics.median(took[1]))
