"""Says when the formation is ready for its first job, with one call to try."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.error
import urllib.request
from typing import Any

from ops.process import Say

READY_LIMIT_S = 600.0
LOOK_EVERY_S = 0.5


def read_json(url: str) -> Any:
    """Return the JSON that a GET answers with, None when it does not answer with 200."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return json.loads(answer.read())
    except (urllib.error.URLError, OSError, ValueError):
        return None


async def announce(base: str, stopping: asyncio.Event, say: Say) -> None:
    """Print the ready banner once the web process and every model's worker are up, or who is not by then."""
    deadline = time.monotonic() + READY_LIMIT_S
    while not stopping.is_set():
        ready = await asyncio.to_thread(read_json, f"{base}/readyz")
        waiting = queues_without_worker(await asyncio.to_thread(read_json, f"{base}/v1/queues"))
        if ready is not None and not waiting:
            say("system", banner(base))
            return
        if time.monotonic() > deadline:
            say("system", f"still not ready: {'web' if ready is None else ', '.join(waiting)}")
            return
        await asyncio.sleep(LOOK_EVERY_S)


def queues_without_worker(answer: Any) -> list[str]:
    """Return the queues that no worker serves yet, from what `GET /v1/queues` answered."""
    queues = answer.get("data", []) if isinstance(answer, dict) else []
    return [str(queue.get("queue")) for queue in queues if not queue.get("workers")]


def banner(base: str) -> str:
    """Return what to print when everything is up: one call to try."""
    body = '{"kind": "generation", "model": "demo", "input": {"prompt": "What is Jarvis?"}}'
    lines = [
        "",
        f"Jarvis is ready at {base}  (API: {base}/docs). Try:",
        "",
        f"  curl -s {base}/v1/jobs -H 'content-type: application/json' -H 'Prefer: wait=30' \\",
        f"    -d '{body}'",
        "",
    ]
    return "\n".join(line or " " for line in lines)
