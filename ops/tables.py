"""Records, results and queues in words and columns, for people and for awk."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ops.client import Json

JOB_HEAD = ("ID", "STATUS", "KIND", "MODEL", "PRIORITY", "USER", "AGE")
PARKED_HEAD = ("ID", "QUEUE", "REASON", "AGE")
WORKER_HEAD = ("QUEUE", "HOST", "PID", "SLOTS", "DEVICE", "SHARE", "UP")
QUEUE_HEAD = ("QUEUE", "HIGH", "NORMAL", "LOW", "RUNNING", "WORKERS", "OLDEST")

# Text from a server or a model could do anything to a terminal with these.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """A text without the characters that steer a terminal."""
    return _CONTROL.sub("�", text)


def waiting_words(record: Json) -> str:
    """Where a job stands, its place in the queue and what it waits for."""
    parts = [str(record.get("status", "")).replace("_", " ")]
    if record.get("queue_position"):
        parts.append(f"place {record['queue_position']} in the line")
    if record.get("waiting_for"):
        parts.append(f"waits for {record['waiting_for']}")
    if eta := record.get("eta"):
        parts.append(f"done in about {seconds(eta['p50'])}, likely within {seconds(eta['p90'])}")
    return " · ".join(parts)


def end_words(record: Json) -> str:
    """How a job ended, what it took and what it used."""
    words = [str(record.get("status", "unknown"))]
    error = record.get("error")
    if error:
        words.append(_error_words(error, words[0]))
    metrics, usage = record.get("metrics") or {}, record.get("usage") or {}
    for name, label in (("queue_ms", "waited"), ("run_ms", "ran")):
        if metrics.get(name) is not None:
            words.append(f"{label} {seconds(metrics[name] / 1000)}")
    if usage.get("completion_tokens") is not None:
        words.append(f"{usage['completion_tokens']} tokens")
    return " · ".join(words)


def _error_words(error: Json, status: object = None) -> str:
    code, message = error.get("code"), error.get("message")
    return str(message) if code == status else f"{code}: {message}"


def table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> list[str]:
    """Aligned columns; plain enough for awk."""
    cells = [[printable(_cell(value)) for value in row] for row in [list(head), *rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in cells]
    return ["  ".join(row).rstrip() for row in padded]


def seconds(value: float) -> str:
    """A length of time in the unit that suits it."""
    if value < 1:
        return f"{value * 1000:.0f} ms"
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if value < limit:
            return f"{value / unit:.3g} {name}"
    return f"{value / 86_400:.3g} d"


def result_text(document: Json) -> str:
    """A result's text, or a line of numbers per embedded text."""
    output = document.get("output") or {}
    for subtitles in ("srt", "vtt"):
        if subtitles in output:
            return str(output[subtitles]).rstrip("\n")
    if "segments" in output or "words" in output:
        return json.dumps(output, ensure_ascii=False)
    if "text" in output:
        return str(output["text"])
    if "embeddings" in output:
        return "\n".join(json.dumps(vector) for vector in output["embeddings"])
    return json.dumps(output, ensure_ascii=False)


def facts(record: Json) -> Iterator[tuple[str, Any]]:
    """What a record says, by name."""
    yield "id", record.get("id")
    yield "status", waiting_words(record)
    yield "job", " · ".join(str(record.get(name)) for name in ("kind", "model", "priority", "user"))
    for name in ("created_at", "started_at", "finished_at", "expires_at"):
        yield name.removesuffix("_at"), _moment(record.get(name))
    yield "tries", f"{record.get('attempts')} failed, given to a worker {record.get('claims')} times"
    error = record.get("error")
    yield "error", _error_words(error, record.get("status")) if error else None
    for name in ("usage", "metrics", "metadata"):
        given = {key: value for key, value in (record.get(name) or {}).items() if value is not None}
        yield name, ", ".join(f"{key} {value}" for key, value in given.items())


def _moment(value: Any) -> str | None:
    if not isinstance(value, int | float):
        return value if value is None else str(value)
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(value))


def age(value: Any) -> str | None:
    """How long ago a moment was, in Unix seconds."""
    return seconds(max(time.time() - value, 0)) if isinstance(value, int | float) else value


def job_row(record: Json) -> list[Any]:
    """A job's line in a list, as JOB_HEAD names its columns."""
    names = ("id", "status", "kind", "model", "priority", "user")
    return [*(record.get(name) for name in names), age(record.get("created_at"))]


def parked_row(entry: Json) -> list[Any]:
    """A parked job's line in a list, as PARKED_HEAD names its columns."""
    return [entry.get("id"), entry.get("queue"), entry.get("reason"), age(entry.get("parked_at"))]


def queue_table(document: Json) -> list[str]:
    """Every queue's line."""
    return table(QUEUE_HEAD, [_queue_row(queue) for queue in document.get("data") or []])


def _queue_row(queue: Json) -> list[Any]:
    from common.jobs import LANES  # late: it brings msgspec, and --help needs none

    depth = queue.get("depth") or {}
    oldest = queue.get("oldest_wait_s")
    return [
        queue.get("queue"),
        *(depth.get(lane, 0) for lane in LANES),
        queue.get("in_progress"),
        queue.get("workers"),
        None if oldest is None else seconds(oldest),
    ]


def worker_table(document: Json) -> list[str]:
    """Every live worker's line."""
    return table(WORKER_HEAD, [_worker_row(worker) for worker in document.get("data") or []])


def _worker_row(worker: Json) -> list[Any]:
    share = worker.get("gpu_share")
    names = ("queue", "host", "pid", "slots", "device")
    return [*(worker.get(name) for name in names), f"{share:g}" if share else None, age(worker.get("started_at"))]


def _cell(value: Any) -> str:
    return "-" if value is None or value == "" else str(value).replace("\n", " ").replace("\t", " ")
