"""What OpenAI's SDK has no words for, said with its own client: lanes, why a job waits, parked jobs.

JARVIS_API_KEY=$(cat .jarvis/api-key) python ops/examples/jobs.py http://127.0.0.1:8000/v1 demo
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from typing import Any, cast

from openai import OpenAI

OVER = ("completed", "incomplete", "failed", "cancelled", "expired")


def submit(client: OpenAI, model: str, prompt: str, **more: Any) -> dict[str, Any]:
    """A job, accepted: `priority` is its lane (high, normal, low), `user` whose turn it takes, `delay_s`, `ttl_s`..."""
    body = {"kind": "generation", "model": model, "input": {"prompt": prompt}, **more}
    return cast(dict[str, Any], client.post("/jobs", body=body, cast_to=object))


def record(client: OpenAI, job: str) -> dict[str, Any]:
    """How a job stands: `status`, `queue_position`, `waiting_for` (in words), `attempts`, `error`, `usage`."""
    return cast(dict[str, Any], client.get(f"/jobs/{job}", cast_to=object))


def waits(client: OpenAI, job: str, every_s: float = 0.2) -> Iterator[str]:
    """What a job waits for, whenever that changes, until it has ended; the last word is its state."""
    told = ""
    while True:
        now = record(client, job)
        state = now["status"]
        word = state if state in OVER else f"{state}: {now['waiting_for'] or 'being run'}"
        if word != told:
            yield word
        if state in OVER:
            return
        told = word
        time.sleep(every_s)


def ended(client: OpenAI, job: str, wait_s: int = 60) -> dict[str, Any]:
    """The record of a job once it has ended: the connection is held, nothing is polled."""
    while True:
        found = client.get(f"/jobs/{job}?wait={wait_s}", cast_to=object)
        if cast(dict[str, Any], found)["status"] in OVER:
            return cast(dict[str, Any], found)


def cancel(client: OpenAI, job: str) -> dict[str, Any]:
    """End a job, wherever it stands: its slot and its KV cache are free at the engine's next step."""
    return cast(dict[str, Any], client.post(f"/jobs/{job}/cancel", cast_to=object))


def parked(client: OpenAI) -> list[dict[str, Any]]:
    """Jobs that killed their workers or cannot be read: they run no more until somebody says so."""
    return cast(Any, client.get("/parked", cast_to=object))["data"]  # type: ignore[no-any-return]


def replay(client: OpenAI, job: str) -> dict[str, Any]:
    """A parked job as a new one; its record tells of the old one (`retry_of`)."""
    return cast(dict[str, Any], client.post(f"/parked/{job}/replay", cast_to=object))


def queues(client: OpenAI) -> list[dict[str, Any]]:
    """Every queue: jobs waiting by lane, in progress, live workers, the oldest one's wait."""
    return cast(Any, client.get("/queues", cast_to=object))["data"]  # type: ignore[no-any-return]


def main(base_url: str, model: str) -> None:
    """Show it all once."""
    client = OpenAI(base_url=base_url, api_key=os.environ.get("JARVIS_API_KEY", "none"))
    later = submit(client, model, "What is a lane?", priority="low", delay_s=3600)
    print(f"{later['id']} waits: {next(waits(client, later['id']))}")
    print(f"and now: {cancel(client, later['id'])['status']}")
    urgent = submit(client, model, "What is a lease?", priority="high", user="ann", params={"max_tokens": 16})
    for word in waits(client, urgent["id"]):
        print(f"{urgent['id']} {word}")
    print(f"its usage: {ended(client, urgent['id'])['usage']}")
    for job in parked(client):
        print(f"{job['id']} is parked: {job['reason']}; again as {replay(client, job['id'])['id']}")
    for queue in queues(client):
        print(f"{queue['queue']}: {queue['depth']} waiting, {queue['in_progress']} in progress")


if __name__ == "__main__":
    main(*sys.argv[1:])
