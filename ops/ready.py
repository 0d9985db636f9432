"""Says when the formation is ready for its first job, with one call to try."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from ops import own_key
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


async def announce(base: str, processes: set[str], stopping: asyncio.Event, say: Say, data_dir: Path) -> None:
    """Print the ready banner once the web process and every kind of worker are up, or who is not by then."""
    deadline = time.monotonic() + READY_LIMIT_S
    while not stopping.is_set():
        missing = not_ready(await asyncio.to_thread(read_json, f"{base}/readyz"), processes)
        if not missing:
            say("system", banner(base, own_key.kept_in(data_dir)))
            return
        if time.monotonic() > deadline:
            say("system", f"still not ready: {', '.join(missing)}")
            return
        await asyncio.sleep(LOOK_EVERY_S)


def not_ready(answer: Any, processes: set[str]) -> list[str]:
    """Return what is missing: `web`, or the kinds among `processes` that have no live worker in a `/readyz` answer."""
    if not isinstance(answer, dict):
        return ["web"]
    workers: dict[str, int] = answer.get("workers", {})
    # The catalogue may hold more models than this formation serves, so one live worker of a kind is enough.
    kinds = {queue.partition(":")[0] for queue in workers} & processes
    live = {queue.partition(":")[0] for queue, count in workers.items() if count}
    return sorted(kinds - live)


def banner(base: str, key_file: Path) -> str:
    """Return what to print when everything is up: one call to try, with the key that is kept in a file."""
    body = '{"kind": "generation", "model": "demo", "input": {"prompt": "What is Jarvis?"}}'
    lines = [
        "",
        f"Jarvis is ready at {base}  (API: {base}/openapi.json). Try:",
        "",
        f'  curl -s {base}/v1/jobs -H "Authorization: Bearer $(cat {key_file})" \\',
        "    -H 'content-type: application/json' -H 'Prefer: wait=30' \\",
        f"    -d '{body}'",
        "",
    ]
    return "\n".join(line or " " for line in lines)
